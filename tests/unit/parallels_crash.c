/* SPDX-License-Identifier: MIT */
/* What format_crash.h promises, of Parallels' growing files, and of their
 * bitmaps, repairs and sizes. */
#include "base/byteorder.h"
#include "format/parallels/hds.h"
#include "format_crash.h"
#include "format_threads.h"

/* As a file of a bundle is opened over another one. */
static int open_over(struct rhea_format **out,
                     const struct rhea_format_open *how, struct rhea_error *e)
{
    return hds_open(out, how, true, e);
}

static struct rhea_format_ops ops;

/* The file has clusters that nobody uses, with anything in them, for new ones
 * to go to. */
static void leave_gaps(struct rhea_storage *s)
{
    static uint8_t junk[200 * SECTOR];
    uint64_t size;
    memset(junk, 0xee, sizeof(junk));
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_OK(rhea_storage_write(s, junk, sizeof(junk), size, &err), &err);
}

static struct rhea_storage *make(bool over, uint64_t seed)
{
    const struct hds_layout layout = {.size = SIZE,
                                      .cluster_size =
                                          seed % 4 < 2 ? 4096 : 63 * 512,
                                      .extended = seed % 3};
    struct rhea_storage *s;
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err) ||
        !CHECK_OK(hds_create(s, &layout, &err), &err))
        exit(99);
    if (seed % 3 < 2)
        leave_gaps(s);
    ops = *rhea_format_find("parallels");
    if (over)
        ops.open = open_over;
    return s;
}

static struct subject subject = {
    .ops = &ops, .make = make, .tells_unclean = true};

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

/* --- Changes of the whole image ------------------------------------------ */

struct change {
    struct rhea_storage *before, *recorder;
    struct record_log log;
};

static struct rhea_format *change_begin(struct change *c,
                                        struct rhea_storage *s, unsigned flags)
{
    *c = (struct change){0};
    CHECK_OK(memory_snapshot(&c->before, s, &err), &err);
    CHECK_OK(record_open(&c->recorder, s, &c->log, &err), &err);
    return subject_open_ok(&subject, c->recorder, flags);
}

typedef bool change_judge_fn(struct rhea_storage *state, void *opaque,
                             bool last);

static bool change_judge_state(struct crash *crash,
                               const struct crash_state *what, uint64_t seed,
                               change_judge_fn *judge, void *opaque, bool last)
{
    struct rhea_storage *state;
    char text[100];
    if (!CHECK_OK(crash_build(crash, what, &state, &err), &err))
        return false;
    bool good = judge(state, opaque, last);
    rhea_storage_close(state);
    crash_describe(what, text, sizeof(text));
    if (!good)
        printf("# seed %" PRIu64 ", state %s\n", seed, text);
    return good;
}

/* Every state that a crash of what was recorded can leave, and the last one. */
static void change_judge(struct change *c, uint64_t seed,
                         change_judge_fn *judge, void *opaque)
{
    struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 2, .orders = 4};
    struct crash_state end = {
        .kind = CRASH_PREFIX, .from = c->log.n_ops, .to = c->log.n_ops};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    bool good = true;
    CHECK_OK(crash_plan(&c->log, &limits, &plan, &err), &err);
    crash_plan_sample(&plan, 400, seed);
    CHECK_OK(crash_init(&crash, c->before, &c->log, &err), &err);
    for (size_t i = 0; good && i < plan.n_states; i++)
        good = change_judge_state(&crash, &plan.states[i], seed, judge, opaque,
                                  false);
    if (good)
        change_judge_state(&crash, &end, seed, judge, opaque, true);
    CHECK(plan.n_states > 4);
    crash_plan_finish(&plan);
    crash_finish(&crash);
    rhea_storage_close(c->recorder);
    rhea_storage_close(c->before);
    record_log_finish(&c->log);
}

static const char name[] = "e4f2eed0-37fe-4539-b50b-85d2e7fd235f";
static const char other_name[] = "00000000-0000-4000-8000-00000000000a";

enum { GRANULE = 1024, BITS = (int)(SIZE / GRANULE), BYTES = (BITS + 7) / 8 };

/* Which sectors a bitmap may not miss: what was written since it was made. */
struct bitmap_model {
    uint8_t guest[SIZE];
};

static bool bitmap_is_good(struct rhea_storage *state, void *opaque, bool last)
{
    const struct bitmap_model *m = opaque;
    static uint8_t guest[SIZE];
    uint8_t bits[BYTES];
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    uint8_t header[HDS_HEADER];
    CHECK_OK(rhea_storage_read(state, header, sizeof(header), 0, &err), &err);
    struct rhea_format *f = subject_open_ok(&subject, state, RHEA_FORMAT_CHECK);
    struct rhea_check check = image_checked(f, 0);
    /* QEMU reads bitmaps also while the image is in use. */
    bool good = CHECK(load_le32(header + HDS_H_IN_USE) != HDS_IN_USE ||
                      load_le64(header + HDS_H_EXT_OFF) == 0) &&
                CHECK(check.corruptions + check.errors <= 1) &&
                CHECK_OK(f->ops->bitmap_list(f, &list, &n, &err), &err) &&
                CHECK_OK(read_all(f, guest, false), &err);
    /* A bitmap that is there and not in use has a bit for all that differs from
     * what the image had when it was made. */
    if (good && n && !list[0].in_use) {
        good = CHECK_OK(f->ops->bitmap_load(f, name, bits, BYTES, &err), &err);
        for (uint64_t i = 0; good && i < SIZE; i++)
            if (guest[i] != m->guest[i])
                good = CHECK(bits[i / GRANULE / 8] >> (i / GRANULE % 8) & 1);
    }
    if (good && last)
        good = CHECK_EQ(n, 2) && CHECK(!list[0].in_use && !list[1].in_use);
    rhea_bitmaps_free(list, n);
    CHECK_OK(f->ops->close(f, &err), &err);
    return good;
}

static void random_writes(struct rhea_format *f, uint64_t *random, unsigned n)
{
    uint8_t bytes[8 * SECTOR];
    for (unsigned i = 0; i < n; i++) {
        uint64_t sector = test_random(random) % (SECTORS - 8);
        uint64_t count = 1 + test_random(random) % 8;
        memset(bytes, (int)test_random(random), sizeof(bytes));
        if (test_random(random) % 5 == 0)
            CHECK_OK(f->ops->write_zeroes(f, sector * SECTOR, count * SECTOR,
                                          true, &err),
                     &err);
        else
            CHECK_OK(f->ops->write(f, sector * SECTOR, bytes,
                                   (size_t)count * SECTOR, &err),
                     &err);
        if (test_random(random) % 6 == 0)
            CHECK_OK(f->ops->flush(f, &err), &err);
    }
}

/* A bitmap that is there after a crash misses nothing. */
static void a_bitmap_is_right_or_gone(void)
{
    static struct bitmap_model m;
    const struct rhea_bitmap what = {
        .name = (char *)name, .granularity = GRANULE, .enabled = true};
    const struct rhea_bitmap more = {
        .name = (char *)other_name, .granularity = 65536, .enabled = true};
    for (uint64_t seed = 1; seed <= 8; seed++) {
        uint64_t random = seed;
        struct change c;
        struct rhea_storage *s = make(false, seed);
        struct rhea_format *f = subject_open_ok(&subject, s, RHEA_FORMAT_WRITE);
        random_writes(f, &random, 6);
        CHECK_OK(f->ops->bitmap_add(f, &what, &err), &err);
        CHECK_OK(read_all(f, m.guest, false), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
        f = change_begin(&c, s, RHEA_FORMAT_WRITE);
        random_writes(f, &random, 8);
        CHECK_OK(f->ops->bitmap_add(f, &more, &err), &err);
        random_writes(f, &random, 8);
        CHECK_OK(f->ops->close(f, &err), &err);
        change_judge(&c, seed, bitmap_is_good, &m);
    }
}

/* --- Repairs and sizes --- */

struct whole_model {
    uint8_t guest[4 * SIZE];
    uint64_t sizes[2];
};

/* The guest's bytes are what they were, up to the smaller size; zeroes follow.
 */
static bool whole_is_good(struct rhea_storage *state, void *opaque, bool last)
{
    const struct whole_model *m = opaque;
    static uint8_t guest[4 * SIZE];
    struct rhea_format *f = subject_open_ok(&subject, state, RHEA_FORMAT_CHECK);
    bool good = CHECK(f->size == m->sizes[0] || f->size == m->sizes[1]) &&
                CHECK(!last || f->size == m->sizes[1]);
    for (uint64_t at = 0; good && at < f->size;) {
        struct rhea_extent x;
        good = CHECK_OK(f->ops->map(f, at, f->size - at, &x, &err), &err);
        memset(guest + at, 0, (size_t)x.length);
        if (good && x.kind == RHEA_EXTENT_DATA)
            good = CHECK_OK(rhea_storage_read_padded(x.storage, guest + at,
                                                     (size_t)x.length, x.host,
                                                     &err),
                            &err);
        at += x.length;
    }
    good = good && CHECK_MEM(guest, m->guest, (size_t)f->size);
    struct rhea_check check = image_checked(f, 0);
    if (good && last)
        good = CHECK_EQ(check.corruptions + check.errors + check.leaks, 0);
    CHECK_OK(f->ops->close(f, &err), &err);
    return good;
}

/* The disk becomes smaller by the header alone; the table keeps what lies
 * behind. */
static void hide_end(struct rhea_storage *s, uint64_t size)
{
    uint8_t sectors[8];
    store_le64(sectors, size / SECTOR);
    CHECK_OK(rhea_storage_write(s, sectors, 8, HDS_H_SECTORS, &err), &err);
}

/* Also where clusters have to make room for the table, and where the table has
 * entries that were never seen. */
static void a_crash_while_resizing_loses_nothing(void)
{
    static struct whole_model m;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        uint64_t random = seed;
        struct change c;
        const struct hds_layout layout = {
            .size = SIZE, .cluster_size = 512, .extended = seed % 2};
        struct rhea_storage *s;
        ops = *rhea_format_find("parallels");
        CHECK_OK(rhea_memory_open(&s, INT64_MAX, &err), &err);
        CHECK_OK(hds_create(s, &layout, &err), &err);
        struct rhea_format *f = subject_open_ok(&subject, s, RHEA_FORMAT_WRITE);
        random_writes(f, &random, 30);
        memset(&m, 0, sizeof(m));
        CHECK_OK(read_all(f, m.guest, false), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
        m.sizes[0] = SIZE;
        if (seed % 4 == 0) {
            m.sizes[0] = SIZE / 2 / 512 * 512;
            hide_end(s, m.sizes[0]);
            memset(m.guest + m.sizes[0], 0, (size_t)(SIZE - m.sizes[0]));
        }
        bool shrink = seed % 3 == 0;
        struct rhea_resize how = {.size = shrink ? SIZE / 3 / 512 * 512
                                                 : (1 + seed % 3) * SIZE + 512,
                                  .shrink = shrink};
        m.sizes[1] = how.size;
        f = change_begin(&c, s, RHEA_FORMAT_WRITE);
        CHECK_OK(f->ops->resize(f, &how, &err), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
        change_judge(&c, seed, whole_is_good, &m);
    }
}

static void a_crash_while_repairing_loses_nothing(void)
{
    static struct whole_model m;
    for (uint64_t seed = 1; seed <= 8; seed++) {
        uint64_t random = seed;
        struct change c;
        uint8_t entry[4], mark[4];
        struct rhea_storage *s = make(false, seed);
        struct rhea_format *f = subject_open_ok(&subject, s, RHEA_FORMAT_WRITE);
        uint8_t ones[64 * SECTOR];
        memset(ones, 1, sizeof(ones));
        CHECK_OK(f->ops->write(f, 0, ones, sizeof(ones), &err), &err);
        random_writes(f, &random, 20);
        CHECK_OK(f->ops->close(f, &err), &err);
        /* The second and the third cluster are the first, the image was not
         * closed, and there is more at the end. */
        CHECK_OK(rhea_storage_read(s, entry, 4, HDS_HEADER, &err), &err);
        CHECK_OK(rhea_storage_write(s, entry, 4, HDS_HEADER + 4, &err), &err);
        CHECK_OK(rhea_storage_write(s, entry, 4, HDS_HEADER + 8, &err), &err);
        store_le32(mark, HDS_IN_USE);
        CHECK_OK(rhea_storage_write(s, mark, 4, HDS_H_IN_USE, &err), &err);
        uint64_t size;
        CHECK_OK(rhea_storage_size(s, &size, &err), &err);
        CHECK_OK(rhea_storage_truncate(s, size + 100000, &err), &err);
        memset(&m, 0, sizeof(m));
        m.sizes[0] = m.sizes[1] = SIZE;
        f = subject_open_ok(&subject, s, RHEA_FORMAT_CHECK);
        CHECK_OK(read_all(f, m.guest, false), &err);
        CHECK_OK(f->ops->close(f, &err), &err);
        f = change_begin(&c, s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
        struct rhea_check check =
            image_checked(f, RHEA_FIX_ERRORS | RHEA_FIX_LEAKS);
        CHECK_EQ(check.corruptions_fixed, 3);
        CHECK_OK(f->ops->close(f, &err), &err);
        change_judge(&c, seed, whole_is_good, &m);
    }
}

/* --- Discarding --- */

/* What each sector was, and what it has been since. */
struct discard_model {
    uint8_t values[SECTORS][24];
    unsigned n[SECTORS];
};

static void discard_note(struct discard_model *m, uint64_t sector,
                         uint64_t count, uint8_t value)
{
    for (uint64_t i = sector; i < sector + count; i++)
        if (CHECK(m->n[i] < 24))
            m->values[i][m->n[i]++] = value;
}

static bool discard_is_good(struct rhea_storage *state, void *opaque, bool last)
{
    const struct discard_model *m = opaque;
    static uint8_t guest[SIZE];
    struct rhea_format *f = subject_open_ok(&subject, state, RHEA_FORMAT_CHECK);
    struct rhea_check check = image_checked(f, 0);
    bool good = CHECK(check.corruptions + check.errors <= 1) &&
                CHECK(!last || check.leaks == 0) &&
                CHECK_OK(read_all(f, guest, false), &err);
    for (uint64_t i = 0; good && i < SECTORS; i++) {
        const uint8_t *p = guest + i * SECTOR;
        const uint8_t *from = last ? m->values[i] + m->n[i] - 1 : m->values[i];
        good = CHECK(memcmp(p, p + 1, SECTOR - 1) == 0) &&
               CHECK(memchr(from, p[0], last ? 1 : m->n[i]) != NULL);
    }
    CHECK_OK(f->ops->close(f, &err), &err);
    return good;
}

/* Nor is a place used again, or cut off, while something may still lead to it.
 */
static void a_crash_while_discarding_leaves_what_was_or_zeroes(void)
{
    static struct discard_model m;
    uint8_t bytes[SECTOR];
    for (uint64_t seed = 1; seed <= 12; seed++) {
        uint64_t random = seed, cluster = seed % 4 < 2 ? 8 : 63; /* sectors */
        struct change c;
        struct rhea_storage *s = make(false, seed);
        struct rhea_format *f = subject_open_ok(&subject, s, RHEA_FORMAT_WRITE);
        memset(&m, 0, sizeof(m));
        for (uint64_t i = 0; i < SECTORS; i++) {
            memset(bytes, (int)(1 + i % 200), sizeof(bytes));
            CHECK_OK(f->ops->write(f, i * SECTOR, bytes, SECTOR, &err), &err);
            discard_note(&m, i, 1, bytes[0]);
        }
        CHECK_OK(f->ops->close(f, &err), &err);
        f = change_begin(&c, s, RHEA_FORMAT_WRITE);
        for (unsigned i = 0; i < 16; i++) {
            uint64_t sector =
                test_random(&random) % (SECTORS / cluster) * cluster;
            if (test_random(&random) % 2) {
                CHECK_OK(
                    f->ops->discard(f, sector * SECTOR, cluster * SECTOR, &err),
                    &err);
                discard_note(&m, sector, cluster, 0);
            } else {
                memset(bytes, (int)(210 + i), sizeof(bytes));
                CHECK_OK(f->ops->write(f, sector * SECTOR, bytes, SECTOR, &err),
                         &err);
                discard_note(&m, sector, 1, bytes[0]);
            }
            if (test_random(&random) % 4 == 0)
                CHECK_OK(f->ops->flush(f, &err), &err);
        }
        if (seed % 3) {
            uint64_t first = SECTORS / cluster / 2 * cluster;
            CHECK_OK(f->ops->discard(f, first * SECTOR,
                                     (SECTORS - first) * SECTOR, &err),
                     &err);
            discard_note(&m, first, SECTORS - first, 0);
        }
        CHECK_OK(f->ops->close(f, &err), &err);
        change_judge(&c, seed, discard_is_good, &m);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_while_discarding_leaves_what_was_or_zeroes);
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_clusters);
    TEST(a_bitmap_is_right_or_gone);
    TEST(a_crash_while_resizing_loses_nothing);
    TEST(a_crash_while_repairing_loses_nothing);
    return test_finish();
}
