/* SPDX-License-Identifier: MIT */
/*
 * Repairs survive crashes: whatever of a repair reaches the disk, the image
 * opens, its guest and its snapshots see what they saw before, and the same
 * repair again makes it sound.
 */
#include <errno.h>

#include "crash_states.h"
#include "qcow2_lib.h"
#include "storage/fault.h"

#define SIZE ((uint64_t)600 << 10)
#define CLUSTER 4096
#define ALL (RHEA_FIX_LEAKS | RHEA_FIX_ERRORS)

/* --- what is damaged ------------------------------------------------------ */

enum { AT_L1 = 40, AT_REFTABLE = 48, AT_TABLE = 64 };

/* Where the refcount of cluster N is; they are of 16 bits, in one block. */
static uint64_t refcount_at(struct rhea_storage *s, uint64_t n)
{
    return get_be64(s, get_be64(s, AT_REFTABLE)) + n * 2;
}

static void set_refcount(struct rhea_storage *s, uint64_t n, uint16_t count)
{
    uint8_t bytes[2];

    store_be16(bytes, count);
    CHECK_OK(rhea_storage_write(s, bytes, 2, refcount_at(s, n), &err), &err);
}

static uint64_t clusters(struct rhea_storage *s)
{
    uint64_t size = 0;

    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    return div_up(size, (uint64_t)CLUSTER);
}

static void leaks(struct rhea_storage *s)
{
    uint64_t n = clusters(s);

    CHECK_OK(rhea_storage_truncate(s, (n + 20) * CLUSTER, &err), &err);
    for (uint64_t i = 0; i < 20; i++)
        set_refcount(s, n + i, (uint16_t)(1 + i % 3));
}

static void low_counts(struct rhea_storage *s)
{
    for (uint64_t i = 5; i < clusters(s); i += 3)
        set_refcount(s, i, 0);
}

static void high_counts(struct rhea_storage *s)
{
    for (uint64_t i = 5; i < clusters(s); i += 4)
        set_refcount(s, i, 7);
}

static void high_and_low_counts(struct rhea_storage *s)
{
    low_counts(s);
    high_counts(s);
    leaks(s);
}

static void wrong_flags(struct rhea_storage *s)
{
    uint64_t l1 = get_be64(s, AT_L1), l2 = get_be64(s, l1) & ~(1ULL << 63);

    put_be64(s, l1, l2);
    for (unsigned i = 0; i < 40; i += 2) {
        uint64_t entry = get_be64(s, l2 + i * 8);

        if (entry && !(entry & 1ULL << 62))
            put_be64(s, l2 + i * 8, entry ^ 1ULL << 63);
    }
}

static void lost_block(struct rhea_storage *s)
{
    put_be64(s, get_be64(s, AT_REFTABLE), 0);
}

/* The block is where guest data is. */
static void block_elsewhere(struct rhea_storage *s)
{
    uint64_t l1 = get_be64(s, AT_L1), l2 = get_be64(s, l1) & ~(1ULL << 63);

    for (unsigned i = 0; i < 512; i++) {
        uint64_t entry = get_be64(s, l2 + i * 8);

        if (entry >> 62 != 2)
            continue;
        put_be64(s, get_be64(s, AT_REFTABLE), entry & ~(1ULL << 63));
        return;
    }
    CHECK(false);
}

/* A snapshot table as version 2 has it, in an image of version 3. */
static void old_snapshot_table(struct rhea_storage *s)
{
    uint64_t at = get_be64(s, AT_TABLE);
    uint8_t entry[200];

    CHECK_OK(rhea_storage_read(s, entry, sizeof(entry), at, &err), &err);
    if (!CHECK(load_be32(entry + 36) == 24))
        return;
    memmove(entry + 40, entry + 64, sizeof(entry) - 64);
    store_be32(entry + 36, 0);
    CHECK_OK(rhea_storage_write(s, entry, sizeof(entry), at, &err), &err);
}

static void old_snapshot_table_and_more(struct rhea_storage *s)
{
    old_snapshot_table(s);
    high_counts(s);
    wrong_flags(s);
}

static void unclean(struct rhea_storage *s)
{
    low_counts(s);
    put_be64(s, 72, get_be64(s, 72) | 1);
}

static void qed_leaks(struct rhea_storage *s)
{
    CHECK_OK(rhea_storage_truncate(s, (clusters(s) + 9) * CLUSTER, &err), &err);
}

static void qed_unclean(struct rhea_storage *s)
{
    uint8_t features[8];

    qed_leaks(s);
    store_le64(features, 2); /* need check */
    CHECK_OK(rhea_storage_write(s, features, 8, 16, &err), &err);
}

static const struct damage {
    const char *name, *format, *options;
    bool snapshot;
    unsigned fix;
    void (*damage)(struct rhea_storage *s);
} damages[] = {
    {"leaks", "qcow2", "", false, RHEA_FIX_LEAKS, leaks},
    {"leaks and a snapshot", "qcow2", "", true, ALL, leaks},
    {"low counts", "qcow2", "", false, ALL, low_counts},
    {"low counts and a snapshot", "qcow2", "", true, ALL, low_counts},
    {"high counts", "qcow2", "", true, RHEA_FIX_LEAKS, high_counts},
    {"high and low", "qcow2", "compat=0.10", true, ALL, high_and_low_counts},
    {"wrong flags", "qcow2", "", false, ALL, wrong_flags},
    {"wrong flags and a snapshot", "qcow2", "", true, ALL, wrong_flags},
    {"a lost block", "qcow2", "", false, ALL, lost_block},
    {"a lost block and a snapshot", "qcow2", "", true, ALL, lost_block},
    {"a block elsewhere", "qcow2", "", true, ALL, block_elsewhere},
    {"an old snapshot table", "qcow2", "", true, ALL, old_snapshot_table},
    {"an old snapshot table and more", "qcow2", "", true, ALL,
     old_snapshot_table_and_more},
    {"an unclean image", "qcow2", "lazy_refcounts=on", false, ALL, unclean},
    {"leaks", "qed", "", false, RHEA_FIX_LEAKS, qed_leaks},
    {"an unclean image", "qed", "", false, ALL, qed_unclean},
};

/* --- the image ------------------------------------------------------------ */

static const struct rhea_format_ops *ops_of(const struct damage *d)
{
    return rhea_format_find(d->format);
}

static struct rhea_format *open_ok(const struct damage *d,
                                   struct rhea_storage *s, unsigned flags)
{
    return image_open_ok(ops_of(d), s, flags);
}

static void write_some(struct rhea_format *f, unsigned n, uint64_t random)
{
    static uint8_t bytes[3 * CLUSTER];

    for (unsigned i = 0; i < n; i++) {
        uint64_t at = test_random(&random) % (SIZE / CLUSTER) * CLUSTER;
        uint64_t len = RHEA_MIN(SIZE - at, sizeof(bytes));

        memset(bytes, (int)(i + n), sizeof(bytes));
        CHECK_OK(f->ops->write(f, at, bytes, len, &err), &err);
    }
}

/* With a snapshot that shares most of it. */
static struct rhea_storage *make(const struct damage *d)
{
    const struct rhea_create how = {.size = SIZE};
    char options[100], name[] = "s";
    struct rhea_snapshot what = {.name = name, .date = 1, .icount = UINT64_MAX};

    snprintf(options, sizeof(options), "cluster_size=4096 %s", d->options);
    struct rhea_storage *s = image_make(ops_of(d), how, options);
    struct rhea_format *f = open_ok(d, s, RHEA_FORMAT_WRITE);
    write_some(f, 30, 1);
    if (d->snapshot) {
        CHECK_OK(f->ops->snapshot_create(f, &what, &err), &err);
        write_some(f, 8, 2);
    }
    CHECK_OK(f->ops->close(f, &err), &err);
    return s;
}

struct view {
    uint8_t guest[SIZE], snapshot[SIZE];
    uint64_t corruptions; /* that the damage made */
};

static bool look_at(const struct damage *d, struct rhea_storage *s,
                    const char *snapshot, uint8_t *bytes)
{
    struct rhea_format *f = open_ok(d, s, 0);
    bool good = true;

    if (snapshot)
        good = CHECK_OK(f->ops->snapshot_load(f, snapshot, &err), &err);
    if (good)
        good = CHECK_OK(image_read(f, bytes, SIZE, 0, 9), &err);
    f->ops->close(f, NULL);
    return good;
}

static bool look(const struct damage *d, struct rhea_storage *s, struct view *v)
{
    return look_at(d, s, NULL, v->guest) &&
           (!d->snapshot || look_at(d, s, "s", v->snapshot));
}

static int repair(const struct damage *d, struct rhea_storage *s, unsigned fix,
                  struct rhea_check *found)
{
    struct rhea_format *f;
    int ret = rhea_format_open_over(
        ops_of(d), &f, s, RHEA_FORMAT_CHECK | (fix ? RHEA_FORMAT_WRITE : 0),
        &err);

    *found = (struct rhea_check){0};
    if (ret < 0)
        return ret;
    ret = f->ops->check(f, fix, found, &err);
    int closed = f->ops->close(f, ret < 0 ? NULL : &err);
    return ret < 0 ? ret : closed;
}

/* Once more: no corruption is left. What counts as used past the end of the
 * file shows as a leak only once the file is so long. */
static bool repair_again(const struct damage *d, struct rhea_storage *state)
{
    struct rhea_check found;

    return CHECK_OK(repair(d, state, ALL, &found), &err) &&
           CHECK_OK(repair(d, state, 0, &found), &err) &&
           CHECK_EQ(found.corruptions + found.errors, 0) &&
           CHECK_OK(repair(d, state, ALL, &found), &err) &&
           CHECK_OK(repair(d, state, 0, &found), &err) &&
           CHECK_EQ(found.corruptions + found.errors + found.leaks, 0);
}

/* Where there was nothing but leaks there is nothing else now. */
static bool is_no_worse(const struct damage *d, struct rhea_storage *state,
                        const struct view *before)
{
    struct rhea_check found;

    return before->corruptions ||
           (CHECK_OK(repair(d, state, 0, &found), &err) &&
            CHECK_EQ(found.corruptions + found.errors, 0));
}

/* After a crash, and after the repair was done once more. */
static bool state_is_good(const struct damage *d, struct rhea_storage *state,
                          const struct view *before)
{
    static struct view now;
    bool good = is_no_worse(d, state, before);

    for (unsigned pass = 0; pass < 2 && good; pass++) {
        good =
            look(d, state, &now) && CHECK_MEM(now.guest, before->guest, SIZE) &&
            (!d->snapshot || CHECK_MEM(now.snapshot, before->snapshot, SIZE));
        if (good && !pass)
            good = repair_again(d, state);
    }
    return good;
}

/* What it held BEFORE the damage. */
static struct rhea_storage *make_damaged(const struct damage *d,
                                         struct view *before)
{
    struct rhea_storage *s = make(d);
    struct rhea_check found;

    look(d, s, before);
    d->damage(s);
    CHECK_OK(repair(d, s, 0, &found), &err);
    CHECK(found.corruptions + found.leaks > 0 || ops_of(d) != qcow2_ops());
    before->corruptions = found.corruptions;
    return s;
}

/* --- the tests ------------------------------------------------------------ */

struct crash_look {
    const struct damage *d;
    const struct view *before;
};

static bool crash_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    const struct crash_look *look = opaque;
    (void)s;
    return state_is_good(look->d, state, look->before);
}

static void crash_once(const struct damage *d)
{
    static struct view before;
    const struct crash_look look = {d, &before};
    const struct crash_limits limits = {
        .seed = 7, .subsets = 8, .torn = 2, .orders = 6};
    struct rhea_storage *s = make_damaged(d, &before);
    struct rhea_check found;
    struct recording r;
    char name[100];

    recording_begin(&r, s);
    CHECK_OK(repair(d, r.storage, d->fix, &found), &err);
    snprintf(name, sizeof(name), "%s, %s", d->format, d->name);
    CHECK(crash_states(name, &r, &limits, 400, crash_is_good, &look) > 1);
    recording_end(&r);
}

static void a_crash_during_a_repair_loses_nothing(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(damages); i++)
        crash_once(&damages[i]);
}

/* The Nth call of CLASSES fails. Returns whether there was one. */
static bool fault_once(const struct damage *d, uint64_t at, unsigned classes)
{
    static struct view before;
    struct rhea_storage *s = make_damaged(d, &before), *keep, *faulty;
    struct fault_plan plan = {.classes = classes, .at = at, .code = EIO};
    struct rhea_check found;

    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    (void)repair(d, faulty, d->fix, &found);
    bool hit = fault_hits(faulty) > 0;

    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(d, keep, &before)) {
        printf("# %s, %s: fault at call %" PRIu64 " of 0x%x\n", d->format,
               d->name, at, classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

static void a_fault_during_a_repair_loses_nothing(void)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH};

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(damages); i++) {
        for (size_t k = 0; k < RHEA_ARRAY_SIZE(classes); k++) {
            uint64_t at = 1;

            while (at < 30 && fault_once(&damages[i], at, classes[k]))
                at++;
        }
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_during_a_repair_loses_nothing);
    TEST(a_fault_during_a_repair_loses_nothing);
    return test_finish();
}
