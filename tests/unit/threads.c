/* SPDX-License-Identifier: MIT */
/*
 * Many threads use one image at once. Built with -Db_sanitize=thread this is
 * what shows data races (`make tsan`); built plainly it shows wrong bytes.
 *
 * The disk is cut into stripes that are no multiple of a cluster, so that
 * threads share clusters and tables. Each stripe has one writer, which gives
 * it one generation after the other: zeroes, or words that name the stripe and
 * the generation. Whoever reads meanwhile must see, in each word, a generation
 * that the stripe had while the read went on.
 */
#include <errno.h>
#include <pthread.h>
#include <rhea/image.h>
#include <rhea/secret.h>
#include <stdatomic.h>

#include "base/checked.h"
#include "lib/test.h"

enum {
    WRITERS = 4,
    READERS = 3,
    STRIPE = 5 * 1024,
    STRIPES = 400,
    ROUNDS = 60
};
#define DISK ((uint64_t)STRIPE * STRIPES)
#define WORDS (STRIPE / sizeof(uint64_t))

struct shared {
    struct rhea_image *image;
    _Atomic uint32_t started[STRIPES], done[STRIPES]; /* generations */
    _Atomic unsigned writers;                         /* still at work */
    _Atomic unsigned wrong;
    char first_wrong[256];
};

struct worker {
    pthread_t thread;
    struct shared *s;
    uint64_t random;
    unsigned index;
};

/* What an image is created with, and what it is opened with. */
struct kind {
    const char *format;
    const struct rhea_option *create;
    size_t n_create;
    const struct rhea_option *open;
    size_t n_open;
    const char *backing; /* NULL: none */
    bool bitmap;         /* it has one that follows writes */
    bool noise;          /* what was never written does not read as zeroes */
};

static bool is_zero(uint32_t stripe, uint32_t generation)
{
    return generation == 0 || (stripe + generation) % 3 == 0;
}

static uint64_t word(uint32_t stripe, uint32_t generation)
{
    return is_zero(stripe, generation)
               ? 0
               : (uint64_t)(stripe + 1) << 32 | generation;
}

static void complain(struct shared *s, const char *fmt, ...) RHEA_PRINTF(2, 3);

static void complain(struct shared *s, const char *fmt, ...)
{
    if (atomic_fetch_add(&s->wrong, 1))
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->first_wrong, sizeof(s->first_wrong), fmt, ap);
    va_end(ap);
}

/* --- the threads --------------------------------------------------------- */

static void write_stripe(struct worker *w, uint32_t stripe)
{
    struct shared *s = w->s;
    uint64_t words[WORDS];
    struct rhea_error err;
    uint32_t generation = atomic_load(&s->started[stripe]) + 1;
    uint64_t offset = (uint64_t)stripe * STRIPE;
    int ret;

    atomic_store(&s->started[stripe], generation);
    if (is_zero(stripe, generation)) {
        ret = rhea_image_write_zeroes(s->image, offset, STRIPE, generation & 1,
                                      &err);
    } else {
        for (size_t i = 0; i < WORDS; i++)
            words[i] = word(stripe, generation);
        ret = rhea_image_write(s->image, words, sizeof(words), offset, &err);
    }
    if (ret)
        complain(s, "write: %s", err.text);
    atomic_store(&s->done[stripe], generation);
}

static void *writer(void *opaque)
{
    struct worker *w = opaque;
    struct shared *s = w->s;
    struct rhea_error err;

    for (unsigned i = 0; i < ROUNDS * STRIPES / WRITERS; i++) {
        uint32_t pick =
            (uint32_t)(test_random(&w->random) % (STRIPES / WRITERS));

        write_stripe(w, pick * WRITERS + w->index);
        if (test_random(&w->random) % 200 == 0 &&
            rhea_image_flush(s->image, &err))
            complain(s, "flush: %s", err.text);
    }
    atomic_fetch_sub(&s->writers, 1);
    return NULL;
}

static bool word_is_right(uint64_t found, uint32_t stripe, uint32_t low,
                          uint32_t high)
{
    for (uint32_t g = low; g <= high; g++) {
        if (found == word(stripe, g))
            return true;
    }
    return false;
}

static void read_stripe(struct shared *s, uint32_t stripe)
{
    uint64_t words[WORDS];
    struct rhea_error err;
    uint32_t low = atomic_load(&s->done[stripe]);

    if (rhea_image_read(s->image, words, sizeof(words),
                        (uint64_t)stripe * STRIPE, &err)) {
        complain(s, "read: %s", err.text);
        return;
    }
    uint32_t high = atomic_load(&s->started[stripe]);
    for (size_t i = 0; i < WORDS; i++) {
        if (!word_is_right(words[i], stripe, low, high)) {
            complain(s,
                     "word %zu of stripe %u is %" PRIx64
                     " at generation %u to %u",
                     i, stripe, words[i], low, high);
            return;
        }
    }
}

static void *reader(void *opaque)
{
    struct worker *w = opaque;

    while (atomic_load(&w->s->writers)) {
        struct rhea_image_extent e;
        struct rhea_error err;
        uint32_t stripe = (uint32_t)(test_random(&w->random) % STRIPES);

        read_stripe(w->s, stripe);
        if (stripe % 16 == 0 &&
            rhea_image_map(w->s->image, (uint64_t)stripe * STRIPE, STRIPE, &e,
                           &err))
            complain(w->s, "map: %s", err.text);
    }
    return NULL;
}

/* --- the tests ----------------------------------------------------------- */

static void create(const char *path, const char *format,
                   const struct rhea_create *how)
{
    struct rhea_error err;

    unlink(path);
    CHECK_OK(rhea_image_create(path, format, how, false, &err), &err);
}

static struct rhea_image *open_as(const char *path, const struct kind *kind,
                                  unsigned flags)
{
    struct rhea_option options[4] = {{"driver", kind->format}};
    struct rhea_image *image = NULL;
    struct rhea_error err;

    for (size_t i = 0; i < kind->n_open; i++)
        options[i + 1] = kind->open[i];
    CHECK_OK(rhea_image_open_named(&image, path, options, kind->n_open + 1,
                                   flags, &err),
             &err);
    return image;
}

/* All bits of what was written are set. */
static void check_bitmap(struct rhea_image *image)
{
    static uint8_t bits[DISK / 4096 / 8 + 1];
    struct rhea_format *f = rhea_image_format(image);
    struct rhea_error err;
    uint64_t n = div_up(DISK, (uint64_t)4096);

    CHECK_OK(f->ops->bitmap_load(f, "b", bits, div_up(n, (uint64_t)8), &err),
             &err);
    for (uint64_t i = 0; i < n; i++)
        CHECK(bits[i / 8] & 1 << i % 8);
}

static void add_bitmap(const char *path, const struct kind *kind)
{
    struct rhea_image *image = open_as(path, kind, RHEA_IMAGE_WRITE);
    char name[] = "b";
    struct rhea_bitmap bitmap = {
        .name = name, .granularity = 4096, .enabled = true};
    struct rhea_error err;

    CHECK_OK(rhea_image_bitmap_add(image, &bitmap, &err), &err);
    CHECK_OK(rhea_image_close(image, &err), &err);
}

static void fill_with_zeroes(const char *path, const struct kind *kind)
{
    struct rhea_image *image = open_as(path, kind, RHEA_IMAGE_WRITE);
    struct rhea_error err;

    CHECK_OK(rhea_image_write_zeroes(image, 0, DISK, false, &err), &err);
    CHECK_OK(rhea_image_close(image, &err), &err);
}

static void check_image(struct rhea_image *image)
{
    struct rhea_format *f = rhea_image_format(image);
    struct rhea_check check = {0};
    struct rhea_error err;

    if (f->ops->check && CHECK_OK(f->ops->check(f, 0, &check, &err), &err)) {
        CHECK_EQ(check.corruptions, 0);
        CHECK_EQ(check.errors, 0);
        CHECK_EQ(check.leaks, 0);
    }
}

static void work(const char *path, const struct kind *kind)
{
    static struct shared s;
    struct worker workers[WRITERS + READERS];
    struct rhea_error err;

    memset(&s, 0, sizeof(s));
    s.image = open_as(path, kind, RHEA_IMAGE_WRITE);
    if (!s.image)
        return;
    atomic_store(&s.writers, WRITERS);
    for (unsigned i = 0; i < WRITERS + READERS; i++) {
        workers[i] = (struct worker){.s = &s, .random = i + 1, .index = i};
        pthread_create(&workers[i].thread, NULL, i < WRITERS ? writer : reader,
                       &workers[i]);
    }
    for (unsigned i = 0; i < WRITERS + READERS; i++)
        pthread_join(workers[i].thread, NULL);
    for (uint32_t i = 0; i < STRIPES; i++)
        read_stripe(&s, i);
    CHECK_OK(rhea_image_close(s.image, &err), &err);

    /* And all of it is in the file. */
    s.image = open_as(path, kind, 0);
    if (!s.image)
        return;
    for (uint32_t i = 0; i < STRIPES; i++)
        read_stripe(&s, i);
    check_image(s.image);
    if (kind->bitmap)
        check_bitmap(s.image);
    CHECK_OK(rhea_image_close(s.image, &err), &err);
    CHECK(!s.wrong);
    if (s.wrong)
        printf("# %u wrong, first: %s\n", s.wrong, s.first_wrong);
}

static void run(const struct kind *kind)
{
    const struct rhea_create how = {.size = DISK,
                                    .backing_file = kind->backing,
                                    .backing_format =
                                        kind->backing ? "raw" : NULL,
                                    .options = kind->create,
                                    .n_options = kind->n_create};
    const char *path = test_path("image");

    create(path, kind->format, &how);
    if (kind->bitmap)
        add_bitmap(path, kind);
    if (kind->noise)
        fill_with_zeroes(path, kind);
    work(path, kind);
    unlink(path);
}

static void run_qcow2(const struct rhea_option *options, size_t n)
{
    run(&(struct kind){.format = "qcow2", .create = options, .n_create = n});
}

static void raw_image(void)
{
    run(&(struct kind){.format = "raw"});
}

static void qed_image(void)
{
    const struct rhea_option small[] = {{"cluster_size", "4k"},
                                        {"table_size", "1"}};

    run(&(struct kind){.format = "qed", .create = small, .n_create = 2});
}

static void qcow2_image(void)
{
    const struct rhea_option small[] = {{"cluster_size", "4k"}};

    run_qcow2(small, 1);
}

static void qcow2_image_of_tiny_clusters(void)
{
    const struct rhea_option tiny[] = {{"cluster_size", "512"},
                                       {"refcount_bits", "1"}};

    run_qcow2(tiny, 2);
}

static void qcow2_image_with_subclusters(void)
{
    const struct rhea_option sub[] = {{"cluster_size", "16k"},
                                      {"extended_l2", "on"}};

    run_qcow2(sub, 2);
}

static void qcow2_image_over_a_backing_file(void)
{
    const struct rhea_option small[] = {{"cluster_size", "4k"}};
    const struct rhea_create how = {.size = DISK};
    const char *path = test_path("base");

    create(path, "raw", &how);
    run(&(struct kind){
        .format = "qcow2", .create = small, .n_create = 1, .backing = path});
    unlink(path);
}

static void qcow2_image_with_a_bitmap(void)
{
    const struct rhea_option small[] = {{"cluster_size", "4k"},
                                        {"lazy_refcounts", "on"}};

    run(&(struct kind){
        .format = "qcow2", .create = small, .n_create = 2, .bitmap = true});
}

static void qcow2_image_with_a_data_file(void)
{
    const char *path = test_path("data");
    const struct rhea_option options[] = {
        {"cluster_size", "4k"}, {"data_file", path}, {"data_file_raw", "on"}};

    run_qcow2(options, 3);
    unlink(path);
}

static void encrypted_qcow2_image(void)
{
    const struct rhea_option options[] = {{"cluster_size", "4k"},
                                          {"encrypt.format", "luks"},
                                          {"encrypt.key-secret", "s"},
                                          {"encrypt.iter-time", "1"}};
    const struct rhea_option key[] = {{"encrypt.key-secret", "s"}};

    run(&(struct kind){.format = "qcow2",
                       .create = options,
                       .n_create = 4,
                       .open = key,
                       .n_open = 1});
}

static void luks_image(void)
{
    const struct rhea_option options[] = {{"key-secret", "s"},
                                          {"iter-time", "1"}};

    run(&(struct kind){.format = "luks",
                       .create = options,
                       .n_create = 2,
                       .open = options,
                       .n_open = 1,
                       .noise = true});
}

int main(int argc, char **argv)
{
    const struct rhea_option secret[] = {{"id", "s"}, {"data", "passphrase"}};

    test_init(argc, argv);
    CHECK_OK(rhea_secret_add(secret, 2, NULL), NULL);
    TEST(raw_image);
    TEST(qed_image);
    TEST(qcow2_image);
    TEST(qcow2_image_of_tiny_clusters);
    TEST(qcow2_image_with_subclusters);
    TEST(qcow2_image_over_a_backing_file);
    TEST(qcow2_image_with_a_bitmap);
    TEST(qcow2_image_with_a_data_file);
    TEST(encrypted_qcow2_image);
    TEST(luks_image);
    return test_finish();
}
