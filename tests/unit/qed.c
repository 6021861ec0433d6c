/* SPDX-License-Identifier: MIT */
/* The QED driver over memory: what it takes, what it refuses, what it says. */
#include <errno.h>

#include "format/option.h"
#include "image_lib.h"

#define CLUSTER 4096

static const struct rhea_format_ops *qed_ops(void)
{
    return rhea_format_find("qed");
}

/* A new, empty image. */
static struct rhea_storage *qed_make(uint64_t size, const char *options,
                                     const char *backing)
{
    const struct rhea_create how = {.size = size, .backing_file = backing};
    return image_make(qed_ops(), how, options);
}

static struct rhea_format *qed_open_ok(struct rhea_storage *s, unsigned flags)
{
    return image_open_ok(qed_ops(), s, flags);
}

/* An image by hand, the way other programs may lay it out: two header
 * clusters, L1 at 2, an L2 table at 4, data at 7, 8 and 3, tables of one
 * cluster, a zero cluster, and some bytes after the last cluster. */
static struct rhea_storage *make_odd(void)
{
    struct rhea_storage *s;
    CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, 9 * CLUSTER + 100, &err), &err);
    put_le32(s, 0, 0x00444551);
    put_le32(s, 4, CLUSTER);
    put_le32(s, 8, 1);
    put_le32(s, 12, 2);
    put_le64(s, 40, 2 * CLUSTER);
    put_le64(s, 48, 100 * CLUSTER + 512);
    put_le64(s, 2 * CLUSTER, 4 * CLUSTER);
    put_le64(s, 4 * CLUSTER, 7 * CLUSTER);
    put_le64(s, 4 * CLUSTER + 8, 8 * CLUSTER);
    put_le64(s, 4 * CLUSTER + 16, 1);
    put_le64(s, 4 * CLUSTER + 24, 3 * CLUSTER);
    return s;
}

static void headers_out_of_range_are_refused(void)
{
    static const struct {
        unsigned offset, bytes;
        uint64_t value;
    } bad[] = {
        {0, 4, 0x00444550},
        {4, 4, 0},
        {4, 4, 2048},
        {4, 4, 4097},
        {4, 4, UINT64_C(128) << 20},
        {8, 4, 0},
        {8, 4, 3},
        {8, 4, 32},
        {12, 4, 0},
        {12, 4, 3}, /* the L1 table would be inside */
        {12, 4, UINT32_MAX},
        {16, 8, 8},
        {16, 8, UINT64_C(1) << 63},
        {40, 8, 0},
        {40, 8, 2 * CLUSTER + 8},
        {40, 8, 9 * CLUSTER}, /* what is there is no whole cluster */
        {40, 8, UINT64_MAX - CLUSTER + 1},
        {48, 8, 511},
        {48, 8, UINT64_C(512) * 512 * CLUSTER + 512},
        {48, 8, UINT64_MAX - 511},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        struct rhea_storage *s = make_odd();
        struct rhea_format *f = NULL;
        if (bad[i].bytes == 4)
            put_le32(s, bad[i].offset, (uint32_t)bad[i].value);
        else
            put_le64(s, bad[i].offset, bad[i].value);
        if (!CHECK(rhea_format_open_over(qed_ops(), &f, s, 0, &err) < 0)) {
            printf("# case %zu\n", i);
            f->ops->close(f, NULL);
        }
        rhea_storage_close(s);
    }
}

static void files_cut_short_are_refused(void)
{
    struct rhea_storage *s = make_odd();
    struct rhea_format *f;
    for (uint64_t size = 3 * CLUSTER - 1; size > 10; size = size * 7 / 8) {
        CHECK_OK(rhea_storage_truncate(s, size, &err), &err);
        CHECK(rhea_format_open_over(qed_ops(), &f, s, 0, &err) < 0);
    }
    rhea_storage_close(s);
}

static void an_odd_layout_is_mapped(void)
{
    static const struct {
        uint64_t offset, length;
        enum rhea_extent_kind kind;
        uint64_t host;
    } want[] = {
        {0, 2 * CLUSTER, RHEA_EXTENT_DATA, 7 * CLUSTER},
        {100, 2 * CLUSTER - 100, RHEA_EXTENT_DATA, 7 * CLUSTER + 100},
        {2 * CLUSTER, CLUSTER, RHEA_EXTENT_ZERO, 0},
        {3 * CLUSTER, CLUSTER, RHEA_EXTENT_DATA, 3 * CLUSTER},
        {4 * CLUSTER, 96 * CLUSTER + 512, RHEA_EXTENT_UNALLOCATED, 0},
    };
    struct rhea_storage *s = make_odd();
    struct rhea_format *f = qed_open_ok(s, 0);
    struct rhea_extent x;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(want); i++) {
        CHECK_OK(qed_ops()->map(f, want[i].offset, UINT64_MAX, &x, &err), &err);
        CHECK_EQ(x.kind, want[i].kind);
        CHECK_EQ(x.length, want[i].length);
        CHECK_EQ(x.has_host, want[i].kind == RHEA_EXTENT_DATA);
        CHECK_EQ(x.host, want[i].host);
    }
    CHECK_OK(qed_ops()->map(f, 5, 7, &x, &err), &err);
    CHECK_EQ(x.length, 7);
    CHECK_EQ(qed_ops()->map(f, f->size, 1, &x, &err), -EINVAL);
    image_close_ok(f);
    rhea_storage_close(s);
}

static const uint64_t bad_offsets[] = {
    2,
    CLUSTER,           /* inside the header */
    7 * CLUSTER + 512, /* reserved bits */
    7 * CLUSTER + 1,
    9 * CLUSTER, /* the file's tail is no cluster */
    10 * CLUSTER,
    UINT64_C(1) << 63,
    UINT64_MAX - CLUSTER + 1,
};

static int count_uses(void *opaque, enum rhea_use use, uint64_t host,
                      uint64_t length, struct rhea_error *e)
{
    uint64_t *sums = opaque;
    (void)host;
    (void)e;
    sums[use] += length;
    return 0;
}

static void offsets_where_no_cluster_can_be_are_errors(void)
{
    for (size_t i = 0; i < 2 * RHEA_ARRAY_SIZE(bad_offsets); i++) {
        bool l1 = i % 2;
        if (l1 && i / 2 == 0)
            continue;
        struct rhea_storage *s = make_odd();
        put_le64(s, l1 ? 2 * CLUSTER : 4 * CLUSTER + 8, bad_offsets[i / 2]);
        struct rhea_format *f = qed_open_ok(s, 0);
        struct rhea_extent x;
        uint64_t sums[8] = {0};
        CHECK_EQ(qed_ops()->map(f, CLUSTER, 1, &x, &err), -EIO);
        CHECK_EQ(qed_ops()->walk(f, count_uses, sums, &err), -EIO);
        if (!l1) {
            CHECK_OK(qed_ops()->map(f, 0, UINT64_MAX, &x, &err), &err);
            CHECK_EQ(x.length, CLUSTER);
        }
        struct rhea_check check = image_checked(f, 0);
        CHECK_EQ(check.corruptions, 1);
        image_close_ok(f);

        /* Never repaired but by a check that was asked to. */
        CHECK_OK(rhea_format_open_over(qed_ops(), &f, s,
                                       RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK,
                                       &err),
                 &err);
        check = image_checked(f, RHEA_FIX_LEAKS);
        CHECK_EQ(check.corruptions_fixed, 0);
        check = image_checked(f, RHEA_FIX_LEAKS | RHEA_FIX_ERRORS);
        CHECK_EQ(check.corruptions_fixed, 1);
        CHECK_EQ(check.corruptions, 0);
        CHECK_OK(qed_ops()->map(f, CLUSTER, 1, &x, &err), &err);
        CHECK_EQ(x.kind, RHEA_EXTENT_UNALLOCATED);
        image_close_ok(f);
        rhea_storage_close(s);
    }
}

static void tables_cut_off_by_the_end_are_errors(void)
{
    struct rhea_storage *s =
        qed_make(1 << 20, "cluster_size=4k table_size=2", NULL);
    CHECK_OK(rhea_storage_truncate(s, 4 * CLUSTER, &err), &err);
    put_le64(s, CLUSTER, 3 * CLUSTER); /* needs two clusters, has one */
    struct rhea_format *f = qed_open_ok(s, 0);
    struct rhea_extent x;
    CHECK_EQ(qed_ops()->map(f, 0, 1, &x, &err), -EIO);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void a_walk_names_all_that_is_used(void)
{
    struct rhea_storage *s = make_odd();
    /* Past the image's end, where no guest offset leads. */
    put_le64(s, 4 * CLUSTER + 511 * 8, 5 * CLUSTER);
    struct rhea_format *f = qed_open_ok(s, 0);
    uint64_t sums[8] = {0};
    CHECK_OK(qed_ops()->walk(f, count_uses, sums, &err), &err);
    CHECK_EQ(sums[RHEA_USE_HEADER], 2 * CLUSTER);
    CHECK_EQ(sums[RHEA_USE_TABLE], 2 * CLUSTER);
    CHECK_EQ(sums[RHEA_USE_DATA], 4 * CLUSTER);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void leaks_and_clusters_used_twice_are_counted(void)
{
    struct rhea_storage *s = make_odd();
    put_le64(s, 4 * CLUSTER + 32, 7 * CLUSTER);
    struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_CHECK);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions, 1);
    CHECK_EQ(check.leaks, 2); /* 5 and 6 */
    CHECK_EQ(check.allocated_clusters, 4);
    CHECK_EQ(check.image_end, 9 * CLUSTER);
    CHECK_EQ(f->ops->check(f, RHEA_FIX_ERRORS, &check, &err), -EACCES);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void leaks_at_the_end_are_cut_off(void)
{
    struct rhea_storage *s = make_odd();
    CHECK_OK(rhea_storage_truncate(s, 20 * CLUSTER + 7, &err), &err);
    struct rhea_format *f =
        qed_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    struct rhea_check check = image_checked(f, RHEA_FIX_LEAKS);
    CHECK_EQ(check.leaks_fixed, 11);
    CHECK_EQ(check.leaks, 2);
    uint64_t size = 0;
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 9 * CLUSTER);
    /* And the next cluster goes to the new end. */
    CHECK_OK(f->ops->write(f, 50 * CLUSTER, "x", 1, &err), &err);
    struct rhea_extent x;
    CHECK_OK(f->ops->map(f, 50 * CLUSTER, 1, &x, &err), &err);
    CHECK_EQ(x.host, 9 * CLUSTER);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void an_unclean_image_is_checked_before_it_is_written(void)
{
    struct rhea_storage *s = make_odd();
    put_le64(s, 16, 2);
    struct rhea_format *f = qed_open_ok(s, 0);
    struct rhea_format_info info;
    f->ops->info(f, &info);
    CHECK(info.dirty);
    image_close_ok(f);
    CHECK_EQ(get_le64(s, 16), 2);

    /* Leaks do no harm. */
    f = qed_open_ok(s, RHEA_FORMAT_WRITE);
    CHECK_EQ(get_le64(s, 16), 2);
    image_close_ok(f);
    CHECK_EQ(get_le64(s, 16), 0);

    put_le64(s, 16, 2);
    put_le64(s, 4 * CLUSTER + 32, 7 * CLUSTER);
    CHECK_EQ(rhea_format_open_over(qed_ops(), &f, s, RHEA_FORMAT_WRITE, &err),
             -EIO);
    CHECK_CONTAINS(err.text, "check -r all");
    CHECK_EQ(get_le64(s, 16), 2);
    f = qed_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    image_close_ok(f);
    CHECK_EQ(get_le64(s, 16), 2);
    put_le64(s, 4 * CLUSTER + 32, 9 * CLUSTER);
    f = qed_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    image_checked(f, RHEA_FIX_ERRORS);
    image_close_ok(f);
    CHECK_EQ(get_le64(s, 16), 0);
    rhea_storage_close(s);
}

static void unknown_autoclear_bits_go_when_it_is_written(void)
{
    struct rhea_storage *s = make_odd();
    put_le64(s, 24, 0x40); /* compatible ones stay */
    put_le64(s, 32, 0x80);
    image_close_ok(qed_open_ok(s, 0));
    image_close_ok(qed_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK));
    CHECK_EQ(get_le64(s, 32), 0x80);
    struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
    CHECK_EQ(get_le64(s, 32), 0);
    image_close_ok(f);
    CHECK_EQ(get_le64(s, 24), 0x40);
    rhea_storage_close(s);
}

static void backing_names_are_read_and_bounded(void)
{
    struct rhea_storage *s = make_odd();
    struct rhea_format_info info;
    put_le64(s, 16, 1 | 4);
    CHECK_OK(rhea_storage_write(s, "../base", 7, 2 * CLUSTER - 7, &err), &err);
    put_le32(s, 56, 2 * CLUSTER - 7);
    put_le32(s, 60, 7);
    struct rhea_format *f = qed_open_ok(s, 0);
    f->ops->info(f, &info);
    CHECK_STR(info.backing_file, "../base");
    CHECK_STR(info.backing_format, "raw");
    CHECK_EQ(info.backing_file_offset, 2 * CLUSTER - 7);
    image_close_ok(f);

    put_le64(s, 16, 1);
    f = qed_open_ok(s, 0);
    f->ops->info(f, &info);
    CHECK(info.backing_format == NULL);
    image_close_ok(f);

    put_le32(s, 60, 8); /* one byte too many */
    CHECK_EQ(rhea_format_open_over(qed_ops(), &f, s, 0, &err), -EINVAL);
    put_le32(s, 56, UINT32_MAX);
    CHECK_EQ(rhea_format_open_over(qed_ops(), &f, s, 0, &err), -EINVAL);
    put_le32(s, 56, 64);
    put_le32(s, 60, 5000);
    CHECK_EQ(rhea_format_open_over(qed_ops(), &f, s, 0, &err), -EINVAL);
    put_le32(s, 60, 0); /* none at all */
    f = qed_open_ok(s, 0);
    f->ops->info(f, &info);
    CHECK(info.backing_file == NULL);
    image_close_ok(f);
    rhea_storage_close(s);
}

static int below_is_ones(void *opaque, uint64_t offset, void *buf, size_t len,
                         struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, 1, len);
    return 0;
}

static void new_clusters_take_what_lies_below(void)
{
    uint64_t size = 64 * CLUSTER + 512;
    struct rhea_storage *s =
        qed_make(size, "cluster_size=4k table_size=1", "base");
    struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
    f->below = below_is_ones;
    uint8_t buf[3 * CLUSTER];
    CHECK_OK(f->ops->write(f, CLUSTER + 1000, "ab", 2, &err), &err);
    CHECK_OK(image_read(f, buf, CLUSTER, CLUSTER, 0), &err);
    for (unsigned i = 0; i < CLUSTER; i++)
        if (!CHECK_EQ(buf[i], i == 1000 ? 'a' : i == 1001 ? 'b' : 1))
            break;

    /* Zeroes hide what is below, and a write into them does not bring it
     * back. */
    CHECK_OK(f->ops->write_zeroes(f, 4 * CLUSTER, 2 * CLUSTER, true, &err),
             &err);
    struct rhea_extent x;
    CHECK_OK(f->ops->map(f, 4 * CLUSTER, 10 * CLUSTER, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_ZERO);
    CHECK_EQ(x.length, 2 * CLUSTER);
    CHECK_OK(f->ops->write(f, 4 * CLUSTER + 7, "c", 1, &err), &err);
    CHECK_OK(image_read(f, buf, CLUSTER, 4 * CLUSTER, 0), &err);
    CHECK(buf[6] == 0 && buf[7] == 'c' && buf[8] == 0 && buf[4095] == 0);

    /* A part of a cluster is written out; the image's last part is whole. */
    CHECK_OK(f->ops->write_zeroes(f, 8 * CLUSTER + 512, 512, true, &err), &err);
    CHECK_OK(image_read(f, buf, CLUSTER, 8 * CLUSTER, 0), &err);
    CHECK(buf[511] == 1 && buf[512] == 0 && buf[1023] == 0 && buf[1024] == 1);
    CHECK_OK(f->ops->write_zeroes(f, 64 * CLUSTER, 512, true, &err), &err);
    CHECK_OK(f->ops->map(f, 64 * CLUSTER, 512, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_ZERO);
    image_close_ok(f);
    f = qed_open_ok(s, RHEA_FORMAT_CHECK);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    image_close_ok(f);
    rhea_storage_close(s);
}

/* What follows the last cluster belongs to nobody, and no guest sees it. */
static void bytes_after_the_last_cluster_never_show(void)
{
    struct rhea_storage *s = make_odd();
    uint8_t junk[100], buf[CLUSTER];
    memset(junk, 0xee, sizeof(junk));
    CHECK_OK(rhea_storage_write(s, junk, 100, 9 * CLUSTER, &err), &err);
    struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
    CHECK_OK(f->ops->write(f, 20 * CLUSTER + 4000, "x", 1, &err), &err);
    CHECK_OK(image_read(f, buf, CLUSTER, 20 * CLUSTER, 0), &err);
    CHECK_EQ(buf[4000], 'x');
    buf[4000] = 0;
    for (unsigned i = 0; i < CLUSTER; i++)
        if (!CHECK_EQ(buf[i], 0))
            break;
    CHECK_EQ(get_le64(s, 16), 2); /* in need of a check while it is open */
    image_close_ok(f);
    CHECK_EQ(get_le64(s, 16), 0);
    uint64_t size = 0;
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 10 * CLUSTER);
    rhea_storage_close(s);
}

static void writes_are_kept_inside_the_image(void)
{
    struct rhea_storage *s = make_odd();
    struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
    CHECK_EQ(f->ops->write(f, f->size - 1, "xy", 2, &err), -EINVAL);
    CHECK_EQ(f->ops->write(f, UINT64_MAX, "xy", 2, &err), -EINVAL);
    CHECK_EQ(f->ops->write_zeroes(f, f->size, 1, false, &err), -EINVAL);
    CHECK_OK(f->ops->write(f, f->size - 2, "xy", 2, &err), &err);
    image_close_ok(f);
    f = qed_open_ok(s, 0);
    CHECK_EQ(f->ops->write(f, 0, "x", 1, &err), -EACCES);
    image_close_ok(f);
    rhea_storage_close(s);
}

static void creation_refuses_what_the_format_cannot_hold(void)
{
    static const struct {
        const char *cluster, *table;
        uint64_t size;
        int ret;
    } cases[] = {
        {"4k", "1", UINT64_C(512) * 512 * CLUSTER, 0},
        {"4k", "1", UINT64_C(512) * 512 * CLUSTER + 512, -EFBIG},
        {"64M", "1", INT64_MAX & ~511, 0},
        {"2k", "4", 512, -EINVAL},
        {"128M", "4", 512, -EINVAL},
        {"5000", "4", 512, -EINVAL},
        {"64k", "3", 512, -EINVAL},
        {"64k", "32", 512, -EINVAL},
        {"64k", "0", 512, -EINVAL},
        {"64kk", "4", 512, -EINVAL},
        {"", "4", 512, -EINVAL},
        {"64k", "4", 0, 0},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++) {
        struct rhea_storage *s;
        const struct rhea_option options[] = {
            {"cluster_size", cases[i].cluster}, {"table_size", cases[i].table}};
        const struct rhea_create how = {
            .size = cases[i].size, .options = options, .n_options = 2};
        CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
        CHECK_EQ(qed_ops()->create(s, &how, &err), cases[i].ret);
        if (!cases[i].ret) {
            struct rhea_format *f = qed_open_ok(s, 0);
            CHECK_EQ(f->size, cases[i].size);
            image_close_ok(f);
        }
        rhea_storage_close(s);
    }
}

static void sizes_are_parsed_as_people_write_them(void)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"0", 0},
        {"512", 512},
        {"0x200", 512},
        {"1k", 1024},
        {"1.5G", UINT64_C(3) << 29},
        {"0.25k", 256},
        {"7E", UINT64_C(7) << 60},
        {"64M", 64 << 20},
        {"2b", 2},
    };
    static const char *const bad[] = {
        "",    "-1",   " 1", "k", "1kb", "1.5", "16E", "99999999999999999999",
        "0xg", "1.k.2"};
    uint64_t value = 0;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(good); i++) {
        CHECK_OK(option_parse_size(good[i].text, &value, &err), &err);
        CHECK_EQ(value, good[i].value);
    }
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(bad); i++)
        if (!CHECK_EQ(option_parse_size(bad[i], &value, &err), -EINVAL))
            printf("# %s\n", bad[i]);
}

/* All a reader, a writer or a check can be led to by a damaged image. */
static void use_everything(struct rhea_storage *s, unsigned flags)
{
    struct rhea_format *f;
    struct rhea_extent x;
    uint64_t sums[8] = {0};
    if (rhea_format_open_over(qed_ops(), &f, s, flags, &err))
        return;
    for (uint64_t at = 0, n = 0; at < f->size && n < 1000; n++) {
        if (f->ops->map(f, at, f->size - at, &x, &err)) {
            at += CLUSTER;
            continue;
        }
        CHECK(x.length > 0 && x.length <= f->size - at);
        uint64_t end = 0;
        CHECK_OK(rhea_storage_size(s, &end, &err), &err);
        if (x.kind == RHEA_EXTENT_DATA)
            CHECK(range_inside(x.host, x.length, end));
        at += x.length;
    }
    f->ops->walk(f, count_uses, sums, &err);
    image_checked(f, 0);
    if (flags & RHEA_FORMAT_WRITE) {
        for (uint64_t at = 0; at < f->size && at < 40 * CLUSTER; at += 7777)
            f->ops->write(f, at, "x", 1, &err);
        struct rhea_check check =
            image_checked(f, RHEA_FIX_LEAKS | RHEA_FIX_ERRORS);
        uint64_t twice = check.corruptions;
        check = image_checked(f, 0);
        /* Only what is used twice may be left. */
        CHECK_EQ(check.corruptions, twice);
    }
    f->ops->close(f, &err);
}

static void random_damage_leads_nowhere(void)
{
    static const unsigned places[] = {0, 2 * CLUSTER, 4 * CLUSTER};
    for (uint64_t seed = 0; seed < 3000; seed++) {
        uint64_t random = seed;
        struct rhea_storage *s = make_odd();
        for (uint64_t n = 1 + test_random(&random) % 4; n; n--) {
            uint64_t value = test_random(&random);
            uint8_t byte = (uint8_t)value;
            unsigned place = places[test_random(&random) % 3];
            uint64_t at = place + test_random(&random) % 64;
            if (value >> 63)
                put_le64(s, align_down(at, 8), (value >> 8) % 12 * CLUSTER);
            else
                CHECK_OK(rhea_storage_write(s, &byte, 1, at, &err), &err);
        }
        /* The magic number, or nothing else is looked at. */
        put_le32(s, 0, 0x00444551);
        use_everything(s, 0);
        use_everything(s, RHEA_FORMAT_WRITE);
        use_everything(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
        rhea_storage_close(s);
    }
}

static void check_backing(struct rhea_storage *s, const char *name,
                          const char *format)
{
    struct rhea_format *f = qed_open_ok(s, 0);
    struct rhea_format_info info;
    f->ops->info(f, &info);
    CHECK(name ? info.backing_file && !strcmp(info.backing_file, name)
               : !info.backing_file);
    CHECK(!format == !info.backing_format);
    image_close_ok(f);
}

static void another_backing_file_can_be_named(void)
{
    char name[1024];
    struct rhea_storage *s =
        qed_make(1 << 20, "cluster_size=4096 table_size=2", "base");
    memset(name, 'x', sizeof(name));
    name[1023] = 0;
    const char *const names[] = {"other", name, name + 100, "short",
                                 NULL,    name, name + 1,   name};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
        const char *format = i % 2 ? "raw" : "qed";
        CHECK_OK(f->ops->set_backing(f, names[i], format, NULL, &err), &err);
        image_close_ok(f);
        check_backing(s, names[i], names[i] && i % 2 ? "raw" : NULL);
    }
    rhea_storage_close(s);
}

static void an_emptied_image_holds_nothing(void)
{
    struct rhea_storage *s =
        qed_make(1 << 20, "cluster_size=4096 table_size=2", "base");
    struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
    struct rhea_extent x;
    uint64_t size;
    CHECK_OK(f->ops->write(f, 5000, "data", 4, &err), &err);
    CHECK_OK(f->ops->make_empty(f, &err), &err);
    CHECK_OK(f->ops->map(f, 0, 1 << 20, &x, &err), &err);
    CHECK_EQ(x.kind, RHEA_EXTENT_UNALLOCATED);
    CHECK_EQ(x.length, 1 << 20);
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_EQ(size, 3 * 4096);
    CHECK_OK(f->ops->write(f, 9000, "data", 4, &err), &err);
    image_close_ok(f);
    f = qed_open_ok(s, 0);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    CHECK_EQ(check.allocated_clusters, 1);
    image_close_ok(f);
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(headers_out_of_range_are_refused);
    TEST(files_cut_short_are_refused);
    TEST(an_odd_layout_is_mapped);
    TEST(offsets_where_no_cluster_can_be_are_errors);
    TEST(tables_cut_off_by_the_end_are_errors);
    TEST(a_walk_names_all_that_is_used);
    TEST(leaks_and_clusters_used_twice_are_counted);
    TEST(leaks_at_the_end_are_cut_off);
    TEST(an_unclean_image_is_checked_before_it_is_written);
    TEST(unknown_autoclear_bits_go_when_it_is_written);
    TEST(backing_names_are_read_and_bounded);
    TEST(new_clusters_take_what_lies_below);
    TEST(bytes_after_the_last_cluster_never_show);
    TEST(writes_are_kept_inside_the_image);
    TEST(creation_refuses_what_the_format_cannot_hold);
    TEST(sizes_are_parsed_as_people_write_them);
    TEST(another_backing_file_can_be_named);
    TEST(an_emptied_image_holds_nothing);
    TEST(random_damage_leads_nowhere);
    return test_finish();
}
