/* SPDX-License-Identifier: MIT */
/* What format_crash.h promises, of QED. */
#include "format_crash.h"
#include "format_threads.h"

static struct rhea_storage *make(bool over, uint64_t seed)
{
    const struct rhea_create how = {
        .size = SIZE,
        .backing_file = over ? "base" : NULL,
    };
    return image_make(rhea_format_find("qed"), how,
                      seed % 3 ? "cluster_size=4k table_size=1"
                               : "cluster_size=4k table_size=2");
}

static struct subject subject = {.make = make};

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        crash_once(&subject, seed, seed % 2);
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    faults_everywhere(&subject);
}

static void threads_share_clusters(void)
{
    threads_share(&subject);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    subject.ops = rhea_format_find("qed");
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_clusters);
    return test_finish();
}
