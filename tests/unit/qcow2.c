/* SPDX-License-Identifier: MIT */
/* The qcow2 driver over memory: what it takes, what it refuses, what it says,
 * what it costs. */
#include <errno.h>
#include <time.h>

#include "qcow2_lib.h"
#include "storage/fault.h"

#define CLUSTER 65536
#define COPIED (UINT64_C(1) << 63)

/* Where qcow2_make puts things in an image without preallocation. */
enum { L1 = 3 * CLUSTER, L2 = 4 * CLUSTER, DATA = 5 * CLUSTER };

/* Five clusters of header and tables, one of data for guest offset 0. */
static struct rhea_storage *make_one(void)
{
    struct rhea_storage *s = qcow2_make(10 * CLUSTER, "", NULL);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    static uint8_t bytes[CLUSTER];
    memset(bytes, 7, sizeof(bytes));
    CHECK_OK(f->ops->write(f, 0, bytes, sizeof(bytes), &err), &err);
    image_close_ok(f);
    CHECK_EQ(get_be64(s, 40), L1);
    CHECK_EQ(get_be64(s, L1), L2 | COPIED);
    CHECK_EQ(get_be64(s, L2), DATA | COPIED);
    return s;
}

struct change {
    uint64_t offset;
    unsigned bytes;
    uint64_t value;
};

static void apply(struct rhea_storage *s, const struct change *c)
{
    if (c->bytes == 4)
        put_be32(s, c->offset, (uint32_t)c->value);
    else
        put_be64(s, c->offset, c->value);
}

static void headers_out_of_range_are_refused(void)
{
    static const struct change bad[] = {
        {0, 4, 0x514649fa},
        {4, 4, 1},
        {4, 4, 4},
        {8, 8, CLUSTER + 1}, /* backing file's name */
        {20, 4, 8},
        {20, 4, 22},
        {24, 8, UINT64_MAX},
        {24, 8, UINT64_C(1) << 40}, /* more than the L1 table maps */
        {36, 4, 0},
        {36, 4, (32 << 20) / 8 + 1},
        {40, 8, L1 + 512},
        {40, 8, UINT64_C(1) << 63},
        {48, 8, CLUSTER + 512},
        {48, 8, UINT64_MAX - CLUSTER + 1},
        {56, 4, 0},
        {56, 4, (8 << 20) / CLUSTER + 1},
        {60, 4, 65537},
        {64, 8, 512}, /* snapshot table */
        {72, 8, 1 << 5},
        {72, 8, 1 << 3}, /* compression type that is not there */
        {88, 8, 2},      /* a raw external file without one */
        {96, 4, 7},
        {100, 4, 96},
        {100, 4, CLUSTER + 8},
        {104, 4, 0x02000000},
        {104, 4, 0x01000000},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        struct rhea_storage *s = make_one();
        struct rhea_format *f = NULL;
        apply(s, &bad[i]);
        if (!CHECK(rhea_format_open_over(qcow2_ops(), &f, s, 0, &err) < 0)) {
            printf("# case %zu\n", i);
            f->ops->close(f, NULL);
        }
        rhea_storage_close(s);
    }
}

static void unknown_features_are_named(void)
{
    struct rhea_storage *s = make_one();
    struct rhea_format *f;
    put_be64(s, 72, UINT64_C(1) << 40 | UINT64_C(1) << 5);
    CHECK_EQ(rhea_format_open_over(qcow2_ops(), &f, s, 0, &err), -ENOTSUP);
    CHECK_CONTAINS(err.text, "bit 5, bit 40");
    /* The third entry of the feature name table, after its extension's head. */
    CHECK_OK(rhea_storage_write(s, "\0\050a new thing\0", 14, 112 + 8 + 2 * 48,
                                &err),
             &err);
    CHECK_EQ(rhea_format_open_over(qcow2_ops(), &f, s, 0, &err), -ENOTSUP);
    CHECK_CONTAINS(err.text, "bit 5, a new thing");
    rhea_storage_close(s);
}

static int count_use(void *opaque, enum rhea_use use, uint64_t host,
                     uint64_t length, struct rhea_error *e)
{
    (void)use;
    (void)host;
    (void)e;
    *(uint64_t *)opaque += length;
    return 0;
}

/* Entries that make no sense are errors of map and walk alike, not garbage. */
static void damaged_entries_are_errors(void)
{
    static const struct {
        struct change c;
        const char *word;
    } bad[] = {
        {{L1, 8, L2 | COPIED | 1}, "reserved bits"},
        {{L1, 8, (L2 + 512) | COPIED}, "not a cluster's"},
        {{L1, 8, (L2 + 100 * CLUSTER) | COPIED}, "past the end"},
        {{L2, 8, DATA | COPIED | 2}, "reserved bits"},
        {{L2, 8, DATA | COPIED | UINT64_C(1) << 56}, "reserved bits"},
        {{L2, 8, (DATA + 512) | COPIED}, "not a cluster's"},
        {{L2, 8, (DATA + CLUSTER) | COPIED}, "past the end"},
        {{L2, 8, (UINT64_C(1) << 62) | 100 * CLUSTER}, "past the end"},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        struct rhea_storage *s = make_one();
        struct rhea_extent x;
        uint64_t total = 0;
        apply(s, &bad[i].c);
        struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
        CHECK_EQ(f->ops->map(f, 0, 1, &x, &err), -EIO);
        CHECK_CONTAINS(err.text, bad[i].word);
        CHECK_EQ(f->ops->walk(f, count_use, &total, &err), -EIO);
        CHECK_CONTAINS(err.text, bad[i].word);
        CHECK_EQ(f->ops->write(f, 0, "x", 1, &err), -EIO);
        image_close_ok(f);
        rhea_storage_close(s);
    }
}

static void a_last_cluster_may_be_cut_short(void)
{
    static uint8_t bytes[CLUSTER];
    struct rhea_storage *s = make_one();
    struct rhea_extent x;
    CHECK_OK(rhea_storage_truncate(s, DATA + 1000, &err), &err);
    struct rhea_format *f = qcow2_open_ok(s, 0);
    CHECK_OK(f->ops->map(f, 0, CLUSTER, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_DATA);
    CHECK_EQ(x.length, CLUSTER);
    CHECK_OK(image_read(f, bytes, CLUSTER, 0, 1), &err);
    CHECK_EQ(bytes[999], 7);
    CHECK_EQ(bytes[1000], 0);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void subclusters_that_contradict_are_errors(void)
{
    struct rhea_storage *s = qcow2_make(10 * CLUSTER, "extended_l2=on", NULL);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    struct rhea_extent x;
    CHECK_OK(f->ops->write(f, 4096, "x", 1, &err), &err);
    image_close_ok(f);
    CHECK_EQ(get_be64(s, L2), DATA | COPIED);
    CHECK_EQ(get_be64(s, L2 + 8), 4);

    f = qcow2_open_ok(s, 0);
    CHECK_OK(f->ops->map(f, 0, CLUSTER, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_UNALLOCATED);
    CHECK(x.has_host && x.host == DATA && x.length == 4096);
    CHECK_OK(f->ops->map(f, 4096, CLUSTER, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_DATA);
    CHECK(x.host == DATA + 4096 && x.length == 2048);
    image_close_ok(f);

    put_be64(s, L2 + 8, UINT64_C(4) << 32 | 4);
    f = qcow2_open_ok(s, 0);
    CHECK_EQ(f->ops->map(f, 0, 1, &x, &err), -EIO);
    CHECK_EQ(image_checked(f, 0).corruptions, 1);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void a_corrupt_image_is_only_repaired(void)
{
    struct rhea_storage *s = make_one();
    struct rhea_format_info info;
    struct rhea_format *f;
    put_be64(s, 72, 2);
    CHECK_EQ(rhea_format_open_over(qcow2_ops(), &f, s, RHEA_FORMAT_WRITE, &err),
             -EACCES);
    f = qcow2_open_ok(s, 0);
    f->ops->info(f, &info);
    CHECK(info.corrupt);
    image_close_ok(f);
    f = qcow2_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    CHECK_EQ(f->ops->write(f, 0, "x", 1, &err), -EACCES);
    image_checked(f, RHEA_FIX_ERRORS | RHEA_FIX_LEAKS);
    CHECK_OK(f->ops->write(f, 0, "x", 1, &err), &err);
    image_close_ok(f);
    CHECK_EQ(get_be64(s, 72), 0);
    rhea_storage_close(s);
}

/* Refcounts that say "free" where a table is must not cost the table. */
static void tables_are_not_given_away(void)
{
    struct rhea_storage *s = make_one();
    struct rhea_format *f;
    put_be64(s, 2 * CLUSTER, 0); /* clusters 0 to 3: all of them tables */
    f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    CHECK_EQ(f->ops->write(f, 5 * CLUSTER, "x", 1, &err), -EIO);
    CHECK_CONTAINS(err.text, "must be checked");
    f->ops->close(f, NULL);
    CHECK_EQ(get_be64(s, L1), L2 | COPIED);
    rhea_storage_close(s);
}

/* An offset far away would make the file as long as that. */
static void damaged_places_do_not_make_the_file_grow(void)
{
    static const uint64_t far = UINT64_C(1) << 50;
    static const struct change bad[] = {
        {CLUSTER, 8, far},             /* refcount block */
        {40, 8, far},                  /* L1 table */
        {48, 8, far},                  /* refcount table */
        {L1, 8, far | COPIED},         /* L2 table */
        {L2 + 8, 8, far | COPIED},     /* data */
        {L2 + 8, 8, far | COPIED | 1}, /* zero cluster with a place */
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        struct rhea_storage *s = make_one();
        struct rhea_format *f;
        uint64_t size;
        apply(s, &bad[i]);
        for (unsigned pass = 0; pass < 2; pass++) {
            unsigned flags = pass ? RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK
                                  : RHEA_FORMAT_WRITE;
            if (rhea_format_open_over(qcow2_ops(), &f, s, flags, &err) < 0)
                continue;
            CHECK(f->ops->write(f, CLUSTER, "x", 1, &err) < 0);
            f->ops->close(f, NULL);
        }
        f = qcow2_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
        struct rhea_check check = {0};
        f->ops->check(f, RHEA_FIX_ERRORS | RHEA_FIX_LEAKS, &check, NULL);
        f->ops->close(f, NULL);
        CHECK_OK(rhea_storage_size(s, &size, &err), &err);
        if (!CHECK(size < 20 * CLUSTER))
            printf("# case %zu\n", i);
        rhea_storage_close(s);
    }
}

static void external_data_is_refused(void)
{
    static const struct change external = {72, 8, 4};
    struct rhea_storage *s = make_one();
    struct rhea_format_info info;
    struct rhea_extent x;
    apply(s, &external);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    f->ops->info(f, &info);
    CHECK(info.external_data);
    CHECK_EQ(f->ops->map(f, 0, 1, &x, &err), -ENOTSUP);
    CHECK_EQ(f->ops->write(f, 0, "x", 1, &err), -ENOTSUP);
    CHECK_EQ(f->ops->write_zeroes(f, 0, 1, true, &err), -ENOTSUP);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void unknown_autoclear_bits_go_with_the_first_write(void)
{
    struct rhea_storage *s = make_one();
    struct rhea_format_info info;
    put_be64(s, 88, 1 << 7);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    f->ops->info(f, &info);
    CHECK(info.extensions);
    CHECK_EQ(get_be64(s, 88), 1 << 7);
    CHECK_OK(f->ops->write(f, 0, "x", 1, &err), &err);
    CHECK_EQ(get_be64(s, 88), 0);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void creation_options_that_make_no_sense_are_refused(void)
{
    static const char *const bad[][2] = {
        {"cluster_size", "256"},     {"cluster_size", "4M"},
        {"cluster_size", "65535"},   {"compat", "1.0"},
        {"refcount_bits", "3"},      {"refcount_bits", "128"},
        {"lazy_refcounts", "maybe"}, {"compression_type", "lz4"},
        {"preallocation", "some"},   {"colour", "blue"},
    };
    static const char *const pairs[][4] = {
        {"compat", "0.10", "lazy_refcounts", "on"},
        {"compat", "0.10", "extended_l2", "on"},
        {"compat", "0.10", "refcount_bits", "8"},
        {"compat", "0.10", "compression_type", "zstd"},
        {"cluster_size", "8k", "extended_l2", "on"},
    };
    struct rhea_storage *s;
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        struct rhea_option o = {bad[i][0], bad[i][1]};
        struct rhea_create how = {
            .size = 1 << 20, .options = &o, .n_options = 1};
        if (!CHECK_EQ(qcow2_ops()->create(s, &how, &err), -EINVAL))
            printf("# %s=%s\n", o.name, o.value);
    }
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(pairs); i++) {
        struct rhea_option o[] = {{pairs[i][0], pairs[i][1]},
                                  {pairs[i][2], pairs[i][3]}};
        struct rhea_create how = {
            .size = 1 << 20, .options = o, .n_options = 2};
        CHECK_EQ(qcow2_ops()->create(s, &how, &err), -EINVAL);
    }
    struct rhea_create how = {.size = UINT64_C(1) << 62};
    CHECK_EQ(qcow2_ops()->create(s, &how, &err), -EFBIG);
    rhea_storage_close(s);
}

static void freed_clusters_are_used_again_only_after_a_flush(void)
{
    struct rhea_storage *s = make_one();
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    struct rhea_extent x;
    static uint8_t bytes[CLUSTER];
    CHECK_OK(f->ops->write_zeroes(f, 0, CLUSTER, true, &err), &err);
    CHECK_OK(f->ops->write(f, CLUSTER, bytes, CLUSTER, &err), &err);
    CHECK_OK(f->ops->map(f, CLUSTER, 1, &x, &err), &err);
    CHECK_EQ(x.host, DATA + CLUSTER);
    CHECK_OK(f->ops->flush(f, &err), &err);
    CHECK_OK(f->ops->write(f, 2 * CLUSTER, bytes, CLUSTER, &err), &err);
    CHECK_OK(f->ops->map(f, 2 * CLUSTER, 1, &x, &err), &err);
    CHECK_EQ(x.host, DATA);
    image_close_ok(f);
    rhea_storage_close(s);
}

/* The table of refcounts outgrows its place many times over. */
static void the_refcount_table_grows(void)
{
    uint64_t size = 40 << 20;
    struct rhea_storage *s =
        qcow2_make(size, "cluster_size=512 refcount_bits=64", NULL);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    static uint8_t bytes[1 << 20];
    uint64_t before = get_be64(s, 56) >> 32;
    for (uint64_t at = 0; at < size; at += sizeof(bytes)) {
        memset(bytes, (int)(at >> 20) + 1, sizeof(bytes));
        CHECK_OK(f->ops->write(f, at, bytes, sizeof(bytes), &err), &err);
        if (at % (7 << 20) == 0)
            CHECK_OK(f->ops->flush(f, &err), &err);
    }
    image_close_ok(f);
    CHECK(get_be64(s, 56) >> 32 > 4 * before);
    f = qcow2_open_ok(s, 0);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    for (uint64_t at = 0; at < size; at += sizeof(bytes)) {
        CHECK_OK(image_read(f, bytes, sizeof(bytes), at, 0), &err);
        CHECK(bytes[0] == (at >> 20) + 1 &&
              !memcmp(bytes, bytes + 1, sizeof(bytes) - 1));
    }
    image_close_ok(f);
    rhea_storage_close(s);
}

static void a_full_disk_is_an_error_and_no_more(void)
{
    struct fault_plan plan = {.limit_growth = true, .budget = 20 * CLUSTER};
    struct rhea_storage *s = qcow2_make(100 * CLUSTER, "", NULL), *full;
    static uint8_t bytes[CLUSTER];
    uint64_t at = 0;
    memset(bytes, 3, sizeof(bytes));
    CHECK_OK(fault_open(&full, s, &plan, &err), &err);
    struct rhea_format *f = qcow2_open_ok(full, RHEA_FORMAT_WRITE);
    while (at < 100 * CLUSTER &&
           f->ops->write(f, at, bytes, CLUSTER, &err) == 0)
        at += CLUSTER;
    CHECK_EQ(err.code, ENOSPC);
    CHECK(at > 15 * CLUSTER);
    /* What was written before stays, and the image goes on working. */
    CHECK_OK(f->ops->write(f, 0, bytes, CLUSTER, &err), &err);
    CHECK_OK(f->ops->write_zeroes(f, 0, CLUSTER, true, &err), &err);
    CHECK_OK(f->ops->flush(f, &err), &err);
    CHECK_OK(f->ops->write(f, at, bytes, CLUSTER, &err), &err);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    image_close_ok(f);
    rhea_storage_close(full);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A terabyte is looked through in a moment; the limits are ten times what it
 * takes, for slow machines. */
static void a_terabyte_is_mapped_at_once(void)
{
    struct rhea_storage *s =
        qcow2_make(UINT64_C(1) << 40, "preallocation=metadata", NULL);
    struct rhea_format *f = qcow2_open_ok(s, 0);
    double start = seconds();
    uint64_t total = 0, calls = 0;
    for (uint64_t at = 0; at < f->size; calls++) {
        struct rhea_extent x;
        if (!CHECK_OK(f->ops->map(f, at, f->size - at, &x, &err), &err) ||
            !CHECK_EQ(x.kind, RHEA_EXTENT_DATA))
            break;
        at += x.length;
    }
    printf("# map: %.3f s, %" PRIu64 " calls\n", seconds() - start, calls);
    CHECK(seconds() - start < 2);
    CHECK(calls < 1000);
    start = seconds();
    CHECK_OK(f->ops->walk(f, count_use, &total, &err), &err);
    printf("# walk: %.3f s\n", seconds() - start);
    CHECK(seconds() - start < 2);
    CHECK(total > UINT64_C(1) << 40);
    image_close_ok(f);
    rhea_storage_close(s);
}

/* Table entries that lead to tables: an L2 entry to the L1 table or to another
 * L2 table, which a write, a discard or a snapshot would follow. */
static void guest_data_never_goes_over_tables(void)
{
    static const uint8_t bytes[4096] = {1};
    for (unsigned what = 0; what < 6; what++) {
        struct rhea_storage *s = qcow2_make(8 << 20, "cluster_size=4096", NULL);
        struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
        struct rhea_snapshot snapshot = {.name = NULL};
        CHECK_OK(f->ops->write(f, 0, bytes, sizeof(bytes), &err), &err);
        CHECK_OK(f->ops->write(f, 4 << 20, bytes, sizeof(bytes), &err), &err);
        image_close_ok(f);

        uint64_t mask = 0x00fffffffffffe00, l1 = get_be64(s, 40);
        uint64_t l2 = get_be64(s, l1) & mask;
        uint64_t target = what % 2 ? get_be64(s, l1 + 16) & mask : l1;
        uint64_t before = get_be64(s, target);
        put_be64(s, l2, target | UINT64_C(1) << 63);
        f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
        int ret = what / 2 == 0
                      ? f->ops->write(f, 0, bytes, sizeof(bytes), &err)
                  : what / 2 == 1 ? f->ops->write_zeroes(f, 0, 4096, true, &err)
                                  : f->ops->snapshot_create(f, &snapshot, &err);
        CHECK(ret < 0);
        CHECK(strstr(err.text, "tables"));
        (void)f->ops->close(f, &err);
        CHECK_EQ(get_be64(s, target), before);
        CHECK_EQ(get_be64(s, 72) >> 1 & 1, what / 2 < 2);
        rhea_storage_close(s);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(headers_out_of_range_are_refused);
    TEST(unknown_features_are_named);
    TEST(damaged_entries_are_errors);
    TEST(a_last_cluster_may_be_cut_short);
    TEST(subclusters_that_contradict_are_errors);
    TEST(a_corrupt_image_is_only_repaired);
    TEST(guest_data_never_goes_over_tables);
    TEST(tables_are_not_given_away);
    TEST(damaged_places_do_not_make_the_file_grow);
    TEST(external_data_is_refused);
    TEST(unknown_autoclear_bits_go_with_the_first_write);
    TEST(creation_options_that_make_no_sense_are_refused);
    TEST(freed_clusters_are_used_again_only_after_a_flush);
    TEST(the_refcount_table_grows);
    TEST(a_full_disk_is_an_error_and_no_more);
    TEST(a_terabyte_is_mapped_at_once);
    return test_finish();
}
