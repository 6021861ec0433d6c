/* SPDX-License-Identifier: MIT */
/*
 * Making, applying and deleting snapshots survives crashes and faults: whatever
 * of the writes reaches the disk, the image opens, has the snapshots from
 * before or after, each with its contents, and the guest sees the old bytes or
 * the new ones, after an apply all of the one or all of the other. Repairing
 * leaks makes the image clean; writing to it without a repair changes no
 * snapshot.
 */
#include <errno.h>

#include "crash_states.h"
#include "qcow2_lib.h"
#include "storage/fault.h"

#define SECTORS 192
#define SECTOR 512
#define SIZE ((uint64_t)SECTORS * SECTOR)
#define SNAPSHOTS_MAX 5
#define STEPS 9

static const char *const kinds[] = {
    "cluster_size=4096",
    "cluster_size=512 refcount_bits=64",
    "cluster_size=512 refcount_bits=8",
    "cluster_size=4096 compat=0.10",
    "cluster_size=16384 extended_l2=on",
    "cluster_size=4096 lazy_refcounts=on",
};

struct contents {
    uint8_t sectors[SECTORS]; /* each is filled with a number */
};

struct model {
    struct contents active;
    unsigned n;
    struct {
        char name[8];
        struct contents contents;
    } snapshots[SNAPSHOTS_MAX];
};

/* What was done between two ops of the log. */
struct step {
    size_t end; /* op */
    bool write; /* of guest bytes, which may overlap each other */
    bool apply;
    struct model after;
};

static bool read_all(struct rhea_format *f, struct contents *c)
{
    static uint8_t guest[SIZE];

    memset(guest, 0xff, sizeof(guest));
    if (!CHECK_EQ(f->size, SIZE) ||
        !CHECK_OK(image_read(f, guest, SIZE, 0, 0), &err))
        return false;
    for (unsigned i = 0; i < SECTORS; i++) {
        const uint8_t *p = guest + (size_t)i * SECTOR;

        if (!CHECK(!memcmp(p, p + 1, SECTOR - 1)))
            return false;
        c->sectors[i] = p[0];
    }
    return true;
}

static bool contents_equal(const struct contents *a, const struct contents *b)
{
    return !memcmp(a, b, sizeof(*a));
}

/* --- steps --- */

static int step_write(struct rhea_format *f, struct model *m, uint64_t *random)
{
    static uint8_t bytes[SIZE];
    int ret = 0;

    for (unsigned i = 0; i < 4 && !ret; i++) {
        unsigned at = (unsigned)(test_random(random) % SECTORS);
        unsigned n = 1 + (unsigned)(test_random(random) % 40);
        uint8_t value = (uint8_t)(1 + test_random(random) % 250);
        unsigned what = (unsigned)(test_random(random) % 8);

        n = RHEA_MIN(n, SECTORS - at);
        if (what < 2)
            value = 0;
        memset(bytes, value, sizeof(bytes));
        memset(m->active.sectors + at, value, n);
        if (what < 2)
            ret = f->ops->write_zeroes(f, (uint64_t)at * SECTOR,
                                       (uint64_t)n * SECTOR, what == 1, &err);
        else
            ret = f->ops->write(f, (uint64_t)at * SECTOR, bytes,
                                (size_t)n * SECTOR, &err);
    }
    if (!ret) {
        struct rhea_format_info info;
        uint64_t cluster, at;

        f->ops->info(f, &info);
        cluster = info.cluster_size;
        at = test_random(random) % (SIZE / cluster) * cluster;
        memset(bytes, 251, cluster);
        memset(m->active.sectors + at / SECTOR, 251, cluster / SECTOR);
        ret = f->ops->write_compressed(f, at, bytes, cluster, &err);
    }
    return ret ? ret : f->ops->flush(f, &err);
}

static int step_create(struct rhea_format *f, struct model *m, unsigned number)
{
    struct rhea_snapshot what = {0};
    unsigned n = m->n++;

    snprintf(m->snapshots[n].name, sizeof(m->snapshots[n].name), "s%u", number);
    m->snapshots[n].contents = m->active;
    what.name = m->snapshots[n].name;
    return f->ops->snapshot_create(f, &what, &err);
}

static int step_delete(struct rhea_format *f, struct model *m, unsigned which)
{
    char name[8];

    snprintf(name, sizeof(name), "%s", m->snapshots[which].name);
    m->n--;
    for (unsigned i = which; i < m->n; i++)
        m->snapshots[i] = m->snapshots[i + 1];
    return f->ops->snapshot_delete(f, name, &err);
}

static int step_any(struct rhea_format *f, struct step *s, unsigned number,
                    uint64_t *random)
{
    struct model *m = &s->after;
    unsigned what = (unsigned)(test_random(random) % 10);
    unsigned which = m->n ? (unsigned)(test_random(random) % m->n) : 0;

    s->apply = false;
    s->write = number % 2 == 0;
    if (s->write)
        return step_write(f, m, random);
    if (!m->n || (what < 4 && m->n < SNAPSHOTS_MAX))
        return step_create(f, m, number);
    if (what < 7)
        return step_delete(f, m, which);
    s->apply = true;
    m->active = m->snapshots[which].contents;
    return f->ops->snapshot_apply(f, m->snapshots[which].name, &err);
}

/* --- judging --- */

/* The list of snapshots in STATE is M's. */
static bool list_is(const struct rhea_snapshot *list, size_t n,
                    const struct model *m)
{
    if (n != m->n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].name, m->snapshots[i].name))
            return false;
    return true;
}

/* The snapshots of STATE are A's or B's, each as it was; *M is whose. */
static bool snapshots_good(struct rhea_storage *state, const struct model *a,
                           const struct model *b, const struct model **m)
{
    struct rhea_format *f = qcow2_open_ok(state, 0);
    struct rhea_snapshot *list = NULL;
    size_t n = 0;
    bool good = CHECK_OK(f->ops->snapshot_list(f, &list, &n, &err), &err);

    *m = good && list_is(list, n, a) ? a : b;
    good = good && CHECK(list_is(list, n, *m));
    rhea_snapshots_free(list, n);
    image_close_ok(f);
    for (unsigned i = 0; good && i < (*m)->n; i++) {
        struct contents c;

        f = qcow2_open_ok(state, 0);
        good = CHECK_OK(f->ops->snapshot_load(f, (*m)->snapshots[i].name, &err),
                        &err) &&
               read_all(f, &c) &&
               CHECK(contents_equal(&c, &(*m)->snapshots[i].contents));
        image_close_ok(f);
    }
    return good;
}

static bool active_good(struct rhea_storage *state, const struct model *a,
                        const struct step *s)
{
    const struct model *b = &s->after;
    struct rhea_format *f = qcow2_open_ok(state, 0);
    struct contents c;
    bool good = read_all(f, &c);

    image_close_ok(f);
    if (!good || s->write)
        return good;
    if (s->apply)
        return CHECK(contents_equal(&c, &a->active) ||
                     contents_equal(&c, &b->active));
    for (unsigned i = 0; good && i < SECTORS; i++)
        good = CHECK(c.sectors[i] == a->active.sectors[i] ||
                     c.sectors[i] == b->active.sectors[i]);
    return good;
}

/* Repairing leaks is all it takes; an image with lazy refcounts that was not
 * closed needs its refcounts built anew. */
static bool repair_good(struct rhea_storage *state)
{
    struct rhea_format *f =
        qcow2_open_ok(state, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    struct rhea_format_info info;
    struct rhea_check check;
    bool good;

    f->ops->info(f, &info);
    image_checked(f, RHEA_FIX_LEAKS | (info.dirty ? RHEA_FIX_ERRORS : 0));
    check = image_checked(f, 0);
    good = CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    image_close_ok(f);
    return good;
}

static bool write_over(struct rhea_storage *state)
{
    static uint8_t bytes[SIZE];
    struct rhea_format *f = qcow2_open_ok(state, RHEA_FORMAT_WRITE);
    struct rhea_check check;
    bool good;

    memset(bytes, 253, sizeof(bytes));
    good = CHECK_OK(f->ops->write(f, 0, bytes, SIZE, &err), &err) &&
           CHECK_OK(f->ops->flush(f, &err), &err);
    check = image_checked(f, 0);
    /* Flags of leaked clusters may be wrong still; refcounts are never too
     * low. */
    good = good && CHECK_EQ(check.errors, 0);
    image_close_ok(f);
    return good;
}

/* STATE, which is changed, lies between A and what S leaves. */
static bool state_is_good(struct rhea_storage *state, const struct model *a,
                          const struct step *s)
{
    const struct model *m, *b = &s->after;
    struct rhea_storage *copy;
    bool good = snapshots_good(state, a, b, &m) && active_good(state, a, s) &&
                CHECK_OK(memory_snapshot(&copy, state, &err), &err);

    if (!good)
        return false;
    good = repair_good(copy) && snapshots_good(copy, m, m, &m) &&
           active_good(copy, a, s);
    rhea_storage_close(copy);
    return good && write_over(state) && snapshots_good(state, m, m, &m) &&
           repair_good(state) && snapshots_good(state, m, m, &m);
}

static struct step steps[STEPS + 2];

static void record_steps(struct recording *r, uint64_t seed)
{
    struct rhea_format *f = qcow2_open_ok(r->storage, RHEA_FORMAT_WRITE);
    uint64_t random = seed;

    memset(steps, 0, sizeof(steps));
    for (unsigned i = 0; i < STEPS; i++) {
        steps[i + 1].after = steps[i].after;
        CHECK_OK(step_any(f, &steps[i + 1], i, &random), &err);
        steps[i + 1].end = r->log.n_ops;
    }
    image_close_ok(f);
    steps[STEPS + 1] = steps[STEPS];
    steps[STEPS + 1].end = r->log.n_ops;
}

static bool crash_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    size_t at = 1;

    (void)opaque;
    while (steps[at].end < s->to)
        at++;
    if (state_is_good(state, &steps[at - 1].after, &steps[at]))
        return true;
    printf("# step %zu\n", at);
    return false;
}

static void crash_once(const char *options, uint64_t seed)
{
    const struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    struct recording r;

    recording_begin(&r, qcow2_make(SIZE, options, NULL));
    record_steps(&r, seed);
    CHECK(crash_states(options, &r, &limits, 220, crash_is_good, NULL) > 100);
    recording_end(&r);
}

static void a_crash_anywhere_leaves_the_old_or_the_new_snapshots(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++)
        for (uint64_t seed = 1; seed <= 3; seed++)
            crash_once(kinds[i], seed * 100 + i);
}

/* The Nth call of a class fails; everything before the step is there. */
static bool fault_once(const char *options, uint64_t at, unsigned classes)
{
    struct rhea_storage *s = qcow2_make(SIZE, options, NULL), *keep, *faulty;
    struct fault_plan plan = {
        .classes = classes, .at = at, .code = EIO, .half_done = at % 2};
    uint64_t random = 5;
    struct rhea_format *f;
    bool hit;
    int ret = 0;
    unsigned i;

    memset(steps, 0, sizeof(steps));
    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    if (rhea_format_open_over(qcow2_ops(), &f, faulty, RHEA_FORMAT_WRITE,
                              &err) == 0) {
        for (i = 0; i < STEPS && !ret; i++) {
            steps[1].apply = false;
            steps[0].after = steps[1].after;
            ret = step_any(f, &steps[1], i, &random);
        }
        if (!ret)
            steps[0].after = steps[1].after;
        (void)f->ops->close(f, &err);
    }
    hit = fault_hits(faulty) > 0;
    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(keep, &steps[0].after, &steps[1])) {
        printf("# %s: fault at call %" PRIu64 " of 0x%x\n", options, at,
               classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

static void a_fault_anywhere_leaves_the_old_or_the_new_snapshots(void)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH};

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i += 2) {
        for (size_t c = 0; c < RHEA_ARRAY_SIZE(classes); c++) {
            uint64_t at = 1;

            while (at < 150 && fault_once(kinds[i], at, classes[c]))
                at++;
            CHECK(at > 1);
        }
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_anywhere_leaves_the_old_or_the_new_snapshots);
    TEST(a_fault_anywhere_leaves_the_old_or_the_new_snapshots);
    return test_finish();
}
