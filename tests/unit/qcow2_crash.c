/* SPDX-License-Identifier: MIT */
/*
 * What format_crash.h promises, of QCOW2; an image with lazy refcounts repairs
 * itself.
 */
#define SECTORS ((uint64_t)1000)

#include "format_crash.h"
#include "format_threads.h"
#include "qcow2_lib.h"

static const struct kind {
    const char *options;
    bool over;     /* over a backing file of nines */
    bool snapshot; /* with a snapshot that shares everything */
    uint64_t past; /* data past the virtual size, so that the refcount table
                      soon has to grow */
} kinds[] = {
    {"cluster_size=4096", false, false, 0},
    {"cluster_size=4096", true, false, 0},
    {"cluster_size=4096", true, true, 0},
    {"cluster_size=512 refcount_bits=64", true, false, 0},
    {"cluster_size=512 refcount_bits=64", false, false, 1700 << 10},
    {"cluster_size=512 refcount_bits=16", false, true, 0},
    {"cluster_size=4096 lazy_refcounts=on", true, false, 0},
    {"cluster_size=16384 extended_l2=on", true, false, 0},
    {"cluster_size=16384 extended_l2=on", true, true, 0},
    {"cluster_size=4096 compat=0.10", true, false, 0},
    {"cluster_size=4096 compression_type=zstd", false, false, 0},
    {"cluster_size=16384 preallocation=metadata", false, false, 0},
};

/* The one that is tested now. */
static const struct kind *kind;

/* A compressed cluster of random place and value, or nothing where the image
 * cannot take one there. */
static int random_compress(struct rhea_format *f, struct model *m,
                           uint64_t *random)
{
    static uint8_t bytes[16384];
    struct rhea_format_info info;
    f->ops->info(f, &info);
    uint64_t cluster = info.cluster_size;
    uint64_t at = test_random(random) % (SIZE / cluster) * cluster;
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);
    memset(bytes, value, sizeof(bytes));
    model_write(m, at / SECTOR, cluster / SECTOR, value);
    int ret = f->ops->write_compressed(f, at, bytes, cluster, &err);
    model_result(m, at / SECTOR, cluster / SECTOR, ret < 0);
    return ret;
}

/* Whole clusters, with the bytes of another storage. */
static int random_clone(struct rhea_format *f, struct model *m,
                        uint64_t *random)
{
    static uint8_t bytes[64 * SECTOR];
    struct rhea_storage *from = NULL;
    uint64_t count = 32 + 32 * (test_random(random) % 2);
    uint64_t sector =
        align_down(test_random(random) % (SECTORS - 2 * count), 32);
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);

    memset(bytes, value, sizeof(bytes));
    CHECK_OK(rhea_memory_open(&from, INT64_MAX, &err), &err);
    CHECK_OK(rhea_storage_write(from, bytes, sizeof(bytes), 4096, &err), &err);
    model_write(m, sector, count, value);
    int ret =
        f->ops->clone(f, sector * SECTOR, from, 4096, count * SECTOR, &err);
    model_result(m, sector, count, ret < 0);
    rhea_storage_close(from);
    return ret;
}

/* One random change of guest and model. */
static int change(struct rhea_format *f, struct model *m, uint64_t *random,
                  bool *flushed)
{
    static uint8_t bytes[64 * SECTOR];
    uint64_t count = 1 + test_random(random) % 64;
    uint64_t sector = test_random(random) % (SECTORS - count);
    uint64_t what = test_random(random) % 10;
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);
    *flushed = what == 0;
    if (*flushed)
        return f->ops->flush(f, &err);
    if (what == 1)
        return random_compress(f, m, random);
    if (what == 4)
        return random_clone(f, m, random);

    int ret;
    bool zero = what < 4;
    model_write(m, sector, count, zero ? 0 : value);
    memset(bytes, value, sizeof(bytes));
    if (zero)
        ret = f->ops->write_zeroes(f, sector * SECTOR, count * SECTOR,
                                   what == 2, &err);
    else
        ret = f->ops->write(f, sector * SECTOR, bytes, (size_t)count * SECTOR,
                            &err);
    model_result(m, sector, count, ret < 0);
    return ret;
}

/* Add a snapshot to a new image by hand, after some data: a copy of the L1
 * table, one reference more to all that it leads to. */
static void add_snapshot(struct rhea_storage *s, bool over)
{
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    struct rhea_format_info info;
    uint8_t bytes[8 * SECTOR], entry[64] = {0};
    f->below = over ? below_is_full : NULL;
    f->ops->info(f, &info);
    uint64_t cluster = info.cluster_size, l1_size, l1, end, table;
    bool extended = get_be64(s, 72) & (1 << 4);
    memset(bytes, BELOW, sizeof(bytes));
    for (uint64_t at = 0; at + sizeof(bytes) <= SIZE; at += SIZE / 8)
        CHECK_OK(f->ops->write(f, at, bytes, sizeof(bytes), &err), &err);
    image_close_ok(f);

    CHECK_OK(rhea_storage_size(s, &end, &err), &err);
    end = align_up(end, cluster);
    l1_size = get_be64(s, 32) & UINT32_MAX;
    l1 = get_be64(s, 40);
    table = end + align_up(l1_size * 8, cluster);
    put_be64(s, table, end);
    put_be32(s, table + 8, (uint32_t)l1_size);
    entry[13] = 1;
    entry[15] = 1;
    entry[39] = 16;
    entry[48 + 6] = (uint8_t)(SIZE >> 8);
    entry[48 + 5] = (uint8_t)(SIZE >> 16);
    entry[56] = '1';
    entry[57] = 's';
    CHECK_OK(rhea_storage_write(s, entry + 12, 52, table + 12, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, table + cluster, &err), &err);
    for (uint64_t i = 0; i < l1_size; i++) {
        uint64_t l2 = get_be64(s, l1 + i * 8) & ~(UINT64_C(1) << 63);
        put_be64(s, l1 + i * 8, l2);
        put_be64(s, end + i * 8, l2);
        for (uint64_t k = 0; l2 && k < cluster; k += extended ? 16 : 8)
            put_be64(s, l2 + k, get_be64(s, l2 + k) & ~(UINT64_C(1) << 63));
    }
    put_be32(s, 60, 1);
    put_be64(s, 64, table);
    /* The refcounts are made by the repair. */
    f = qcow2_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    image_checked(f, RHEA_FIX_ERRORS | RHEA_FIX_LEAKS);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    image_close_ok(f);
}

static struct rhea_storage *make(bool over, uint64_t seed)
{
    const struct kind *k = kind;
    (void)seed;
    struct rhea_storage *s =
        qcow2_make(SIZE + k->past, k->options, over ? "base" : NULL);
    if (k->past) {
        struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
        for (uint64_t at = SIZE; at < SIZE + k->past; at += SECTOR)
            CHECK_OK(f->ops->write(f, at, "past", 4, &err), &err);
        image_close_ok(f);
        put_be64(s, 24, SIZE);
    }
    if (k->snapshot)
        add_snapshot(s, over);
    return s;
}

/* The image in STATE is whole, by what M allows; also after it was opened for
 * writing, written to and closed. */
static bool whole_by(struct rhea_storage *state, const struct model *m)
{
    static uint8_t guest[SIZE], byte[SECTOR];
    for (unsigned pass = 0; pass < 2; pass++) {
        struct rhea_format *f =
            qcow2_open_ok(state, pass ? RHEA_FORMAT_WRITE : 0);
        struct rhea_format_info info;
        f->below = kind->over ? below_is_full : NULL;
        f->ops->info(f, &info);
        bool good =
            CHECK_OK(image_read(f, guest, SIZE, 0, kind->over ? BELOW : 0),
                     &err) &&
            CHECK(model_holds(m, guest));
        /* The first change repairs what is marked as not closed. */
        memcpy(byte, guest, SECTOR);
        if (good && pass)
            good = CHECK_OK(f->ops->write(f, 0, byte, SECTOR, &err), &err);
        if (good && (pass || !info.dirty)) {
            struct rhea_check check = image_checked(f, 0);
            good = CHECK_EQ(check.corruptions + check.errors, 0);
        }
        image_close_ok(f);
        if (!good)
            return false;
    }
    return true;
}

static struct subject subject_of(const struct kind *k)
{
    kind = k;
    return (struct subject){.ops = qcow2_ops(),
                            .make = make,
                            .change = change,
                            .is_good = whole_by,
                            .states = 250,
                            .name = k->options};
}

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        const struct subject t = subject_of(&kinds[i]);
        for (uint64_t seed = 1; seed <= 4; seed++)
            crash_once(&t, seed * 100 + i, kinds[i].over);
    }
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        const struct subject t = subject_of(&kinds[i]);
        faults_of(&t, kinds[i].over,
                  FAULT_READ | FAULT_WRITE | FAULT_FLUSH | FAULT_ZERO);
    }
}

static void threads_share_clusters(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        const struct subject t = subject_of(&kinds[i]);
        for (unsigned turn = 0; turn < 3; turn++)
            threads_once(&t, kinds[i].over, turn);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_clusters);
    return test_finish();
}
