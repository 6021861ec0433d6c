/* SPDX-License-Identifier: MIT */
/* What format_crash.h promises, of VDI. */
#include "format_crash.h"
#include "format_threads.h"
#include "vdi_lib.h"

static struct rhea_storage *make(bool over, uint64_t seed)
{
    (void)seed;
    return over ? vdi_make_child(SIZE) : vdi_make(SIZE);
}

static struct subject subject = {.make = make, .files = &vdi_files};

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        crash_once(&subject, seed, seed % 2);
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    faults_everywhere(&subject);
}

static void threads_share_blocks(void)
{
    threads_share(&subject);
}

static void a_crash_while_it_shrinks_loses_nothing_of_the_rest(void)
{
    for (uint64_t seed = 1; seed <= 6; seed++)
        shrink_survives(&subject, seed, seed % 2,
                        seed * SIZE / 8 / SECTOR * SECTOR);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    subject.ops = vdi_ops();
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_blocks);
    TEST(a_crash_while_it_shrinks_loses_nothing_of_the_rest);
    rhea_storage_close(vdi_base);
    return test_finish();
}
