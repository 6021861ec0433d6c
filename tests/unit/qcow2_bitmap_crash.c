/* SPDX-License-Identifier: MIT */
/*
 * Persistent bitmaps survive crashes and faults. Whatever of the unflushed
 * writes reaches the disk, the image has no corruption, its bitmaps are those
 * before or after the change that was under way, and one that follows writes
 * either has a bit for all that the guest wrote or is in use.
 */
#include <errno.h>

#include "crash_states.h"
#include "qcow2_lib.h"
#include "storage/fault.h"

#define SECTOR 512
#define SIZE (UINT64_C(8) << 20)
/* The guest writes to the first sectors of each of these. */
#define ZONE (UINT64_C(1) << 20)
#define ZONE_SECTORS 48

static const struct kind {
    const char *options, *backing;
} kinds[] = {
    {"cluster_size=4096", NULL},
    {"cluster_size=65536", "a backing file with a name so long that it is "
                           "soon in the way of something else"},
    {"cluster_size=512 refcount_bits=64", "base"},
    {"cluster_size=4096 lazy_refcounts=on", NULL},
    {"cluster_size=16384 extended_l2=on", NULL},
};

/* All the time there, and enabled: each has a bit for what is not zero. */
static const struct rhea_bitmap fixed[] = {
    {.name = (char *)"fine", .granularity = 512, .enabled = true},
    {.name = (char *)"coarse", .granularity = 65536, .enabled = true},
};

enum { EXTRAS = 4, OPS = 24 };

/* What must be in the image: other bitmaps, disabled save for the first; all
 * their bytes are VALUE. */
struct model {
    struct extra {
        bool there, enabled;
        uint8_t value;
    } extras[EXTRAS];
};

static uint64_t extra_granularity(unsigned i)
{
    return UINT64_C(512) << i;
}

static size_t bytes_of(uint64_t granularity)
{
    return (size_t)div_up(div_up(SIZE, granularity), 8);
}

static char *extra_name(unsigned i)
{
    static char names[EXTRAS][4];

    snprintf(names[i], sizeof(names[i]), "x%u", i);
    return names[i];
}

static struct rhea_storage *make(const struct kind *k)
{
    struct rhea_storage *s = qcow2_make(SIZE, k->options, k->backing);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(fixed); i++)
        CHECK_OK(f->ops->bitmap_add(f, &fixed[i], &err), &err);
    image_close_ok(f);
    return s;
}

static int change_extra(struct rhea_format *f, struct model *m, unsigned i,
                        uint64_t *random)
{
    static uint8_t bits[SIZE / 512 / 8];
    struct extra *x = &m->extras[i];
    struct rhea_bitmap new = {.name = extra_name(i),
                              .granularity = extra_granularity(i)};

    if (!x->there) {
        *x = (struct extra){.there = true};
        return f->ops->bitmap_add(f, &new, &err);
    }
    switch (test_random(random) % 4) {
    case 0:
        x->there = false;
        return f->ops->bitmap_remove(f, new.name, &err);
    case 1:
        /* Twice is nothing. */
        return f->ops->bitmap_enable(f, new.name, x->enabled, &err);
    default:
        x->value = (uint8_t)test_random(random);
        memset(bits, x->value, sizeof(bits));
        return f->ops->bitmap_store(f, new.name, bits,
                                    bytes_of(new.granularity), &err);
    }
}

static int change_guest(struct rhea_format *f, uint64_t *random)
{
    static uint8_t bytes[ZONE_SECTORS * SECTOR];
    uint64_t count = 1 + test_random(random) % 16;
    uint64_t sector = test_random(random) % (ZONE_SECTORS - count);
    uint64_t at = test_random(random) % (SIZE / ZONE) * ZONE + sector * SECTOR;

    memset(bytes, 1, sizeof(bytes));
    if (test_random(random) % 4 == 0)
        return f->ops->write_zeroes(f, at, count * SECTOR, true, &err);
    return f->ops->write(f, at, bytes, (size_t)count * SECTOR, &err);
}

/* One random change; *F may be opened anew, and is NULL if that failed. */
static int random_change(struct rhea_format **f, struct rhea_storage *s,
                         struct model *m, uint64_t *random)
{
    uint64_t what = test_random(random) % 10;
    int ret;

    if (what < 4)
        return change_guest(*f, random);
    if (what == 4)
        return (*f)->ops->flush(*f, &err);
    if (what < 8)
        return change_extra(*f, m, (unsigned)test_random(random) % EXTRAS,
                            random);
    ret = (*f)->ops->close(*f, &err);
    *f = NULL;
    return ret < 0 ? ret
                   : rhea_format_open_over(qcow2_ops(), f, s, RHEA_FORMAT_WRITE,
                                           &err);
}

static const struct rhea_bitmap *find(const struct rhea_bitmap *list, size_t n,
                                      const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(list[i].name, name))
            return &list[i];
    return NULL;
}

/* Whether bitmap B has a bit for each sector that is not zero. */
static bool covers_guest(struct rhea_format *f, const struct rhea_bitmap *b)
{
    static uint8_t bits[SIZE / 512 / 8], guest[ZONE_SECTORS * SECTOR];

    if (!CHECK_OK(f->ops->bitmap_load(f, b->name, bits,
                                      bytes_of(b->granularity), &err),
                  &err))
        return false;
    for (uint64_t zone = 0; zone < SIZE; zone += ZONE) {
        if (!CHECK_OK(image_read(f, guest, sizeof(guest), zone, 0), &err))
            return false;
        for (uint64_t i = 0; i < ZONE_SECTORS; i++) {
            uint64_t bit = (zone + i * SECTOR) / b->granularity;

            if (guest[i * SECTOR] && !CHECK(bits[bit / 8] >> bit % 8 & 1))
                return false;
        }
    }
    return true;
}

static bool extra_is(struct rhea_format *f, unsigned i,
                     const struct rhea_bitmap *b, const struct extra *x)
{
    static uint8_t bits[SIZE / 512 / 8];
    size_t n = bytes_of(extra_granularity(i));

    if (!b || !x->there)
        return !b == !x->there;
    if (b->in_use || f->ops->bitmap_load(f, b->name, bits, n, &err) < 0)
        return false;
    return bits[0] == x->value && !memcmp(bits, bits + 1, n - 1);
}

/* BEFORE or AFTER; NULL: whatever they are. */
static bool bitmaps_are_good(struct rhea_format *f, const struct model *before,
                             const struct model *after)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    bool good = CHECK_OK(f->ops->bitmap_list(f, &list, &n, &err), &err);

    for (size_t i = 0; good && i < RHEA_ARRAY_SIZE(fixed); i++) {
        const struct rhea_bitmap *b = find(list, n, fixed[i].name);

        good =
            CHECK(b) && CHECK(b->enabled) && (b->in_use || covers_guest(f, b));
    }
    for (unsigned i = 0; good && before && i < EXTRAS; i++) {
        const struct rhea_bitmap *b = find(list, n, extra_name(i));

        good = CHECK(extra_is(f, i, b, &before->extras[i]) ||
                     extra_is(f, i, b, &after->extras[i]));
    }
    rhea_bitmaps_free(list, n);
    return good;
}

/* Also after it was opened for writing, written to and closed. */
static bool state_is_good(struct rhea_storage *state,
                          const struct model *before, const struct model *after)
{
    for (unsigned pass = 0; pass < 2; pass++) {
        struct rhea_format *f =
            qcow2_open_ok(state, pass ? RHEA_FORMAT_WRITE : 0);
        struct rhea_format_info info;
        bool good = bitmaps_are_good(f, before, after);

        f->ops->info(f, &info);
        if (good && pass)
            good = CHECK_OK(f->ops->write(f, 0, "x", 1, &err), &err);
        if (good && (pass || !info.dirty)) {
            struct rhea_check check = image_checked(f, 0);

            good = CHECK_EQ(check.corruptions + check.errors, 0);
        }
        if (good && pass)
            good = bitmaps_are_good(f, before, after);
        image_close_ok(f);
        if (!good)
            return false;
    }
    return true;
}

static struct moment {
    size_t op; /* the log was so long once the change had returned */
    struct model model;
} moments[OPS + 2];

static void record_changes(uint64_t seed, struct recording *r)
{
    struct rhea_format *f = qcow2_open_ok(r->storage, RHEA_FORMAT_WRITE);
    struct model m = {0};
    uint64_t random = seed;

    for (size_t i = 0; i < OPS; i++) {
        CHECK_OK(random_change(&f, r->storage, &m, &random), &err);
        moments[i] = (struct moment){r->log.n_ops, m};
    }
    image_close_ok(f);
    moments[OPS] = (struct moment){r->log.n_ops, m};
}

static bool crash_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    static const struct model nothing;
    size_t at = 0;

    (void)opaque;
    while (moments[at].op < s->to)
        at++;
    return state_is_good(state, at ? &moments[at - 1].model : &nothing,
                         &moments[at].model);
}

static void crash_once(const struct kind *k, uint64_t seed)
{
    const struct crash_limits limits = {
        .seed = seed, .subsets = 5, .torn = 2, .orders = 3};
    struct recording r;

    recording_begin(&r, make(k));
    record_changes(seed, &r);
    CHECK(crash_states(k->options, &r, &limits, 200, crash_is_good, NULL) >
          100);
    recording_end(&r);
}

static void a_crash_leaves_the_old_bitmaps_or_the_new(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++)
        for (uint64_t seed = 1; seed <= 8; seed++)
            crash_once(&kinds[i], seed * 100 + i);
}

static bool fault_once(const struct kind *k, uint64_t at, unsigned classes,
                       int code)
{
    struct rhea_storage *s = make(k), *keep, *faulty;
    struct fault_plan plan = {
        .classes = classes, .at = at, .code = code, .half_done = at % 2};
    struct rhea_format *f = NULL;
    struct model m = {0};
    uint64_t random = 5 + at / 8;
    bool hit;

    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    if (rhea_format_open_over(qcow2_ops(), &f, faulty, RHEA_FORMAT_WRITE, &err))
        f = NULL;
    for (unsigned i = 0; f && i < OPS; i++)
        (void)random_change(&f, faulty, &m, &random);
    if (f)
        (void)f->ops->close(f, &err);
    hit = fault_hits(faulty) > 0;
    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(keep, NULL, NULL)) {
        printf("# %s: fault at call %" PRIu64 " of 0x%x\n", k->options, at,
               classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

static void a_fault_leaves_bitmaps_that_are_right_or_in_use(void)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH};

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        for (size_t c = 0; c < RHEA_ARRAY_SIZE(classes); c++) {
            uint64_t at = 1;

            while (at < 150 &&
                   fault_once(&kinds[i], at, classes[c], at % 3 ? EIO : ENOSPC))
                at++;
            CHECK(at > 1);
        }
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_leaves_the_old_bitmaps_or_the_new);
    TEST(a_fault_leaves_bitmaps_that_are_right_or_in_use);
    return test_finish();
}
