/* SPDX-License-Identifier: MIT */
/* What format_crash.h promises, of VHD; and that changes of a whole image
 * survive crashes. */
#include "format_crash.h"
#include "format_threads.h"
#include "vpc_lib.h"

static struct rhea_storage *make(bool over, uint64_t seed)
{
    (void)seed;
    return over ? vpc_make_child(SIZE) : vpc_make(SIZE);
}

static struct rhea_storage *make_fixed(bool over, uint64_t seed)
{
    (void)over;
    (void)seed;
    return vpc_make_fixed(SIZE);
}

/* The footers may differ, or the last one be missing, until the image is opened
 * for writing. */
static struct subject subject = {.make = make, .tells_unclean = true};
static struct subject fixed = {.make = make_fixed, .tells_unclean = true};

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        crash_once(&subject, seed, seed % 2);
}

static void a_crash_anywhere_leaves_a_whole_fixed_image(void)
{
    for (uint64_t seed = 1; seed <= 3; seed++)
        crash_once(&fixed, seed, false);
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
    subject.ops = fixed.ops = vpc_ops();
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_crash_anywhere_leaves_a_whole_fixed_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_blocks);
    TEST(a_crash_while_it_shrinks_loses_nothing_of_the_rest);
    return test_finish();
}
