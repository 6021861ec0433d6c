/* SPDX-License-Identifier: MIT */
/* What format_crash.h promises, of QCOW version 1: plain, with compressed
 * clusters, and encrypted. */
#include <rhea/secret.h>

#include "format_crash.h"
#include "format_threads.h"

enum { CLUSTER = 1024 };

static struct rhea_storage *make_by(bool over, bool encrypted)
{
    const struct rhea_create how = {
        .size = SIZE,
        .backing_file = over ? "base" : NULL,
    };
    return image_make(rhea_format_find("qcow"), how,
                      encrypted ? "cluster_size=1024 encrypt.format=aes "
                                  "encrypt.key-secret=key"
                                : "cluster_size=1024");
}

static struct rhea_storage *make(bool over, uint64_t seed)
{
    (void)seed;
    return make_by(over, false);
}

static struct rhea_storage *make_encrypted(bool over, uint64_t seed)
{
    (void)seed;
    return make_by(over, true);
}

static const struct rhea_option key[] = {{"encrypt.key-secret", "key"}};
static struct subject plain = {.make = make, .cluster = CLUSTER};
static struct subject encrypted = {
    .make = make_encrypted, .options = key, .n_options = 1};

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        crash_once(&plain, seed, seed % 2);
}

static void a_crash_anywhere_leaves_a_whole_encrypted_image(void)
{
    for (uint64_t seed = 1; seed <= 4; seed++)
        crash_once(&encrypted, seed, seed % 2);
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    faults_everywhere(&plain);
    faults_everywhere(&encrypted);
}

static void threads_share_clusters(void)
{
    threads_share(&plain);
    threads_share(&encrypted);
}

static void a_crash_while_it_shrinks_loses_nothing_of_the_rest(void)
{
    for (uint64_t seed = 1; seed <= 6; seed++) {
        uint64_t small = seed * SIZE / 8 / SECTOR * SECTOR;
        shrink_survives(&plain, seed, seed % 2, small);
        shrink_survives(&encrypted, seed, seed % 2, small);
    }
}

int main(int argc, char **argv)
{
    const struct rhea_option secret[] = {{"id", "key"}, {"data", "a secret"}};
    test_init(argc, argv);
    CHECK_OK(rhea_secret_add(secret, 2, &err), &err);
    plain.ops = encrypted.ops = rhea_format_find("qcow");
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_crash_anywhere_leaves_a_whole_encrypted_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_clusters);
    TEST(a_crash_while_it_shrinks_loses_nothing_of_the_rest);
    return test_finish();
}
