/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole qcow2 image survive crashes: whatever reaches the disk,
 * the image has no corruption, each sector holds what it held before the change
 * or what it holds after it, and size and backing file are the old or the new
 * ones. Once the change is complete, nothing is leaked.
 */
#include <errno.h>

#include "crash_states.h"
#include "qcow2_lib.h"
#include "storage/fault.h"

#define SECTOR 512
#define SIZE ((uint64_t)800 << 10)
#define MOST ((uint64_t)4 << 20)

static const char long_name[] =
    "a/very/long/name/that/does/not/end/in/the/sector/in/which/it/begins/"
    "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/"
    "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/"
    "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/"
    "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/"
    "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/"
    "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789";

static int empty(struct rhea_format *f)
{
    return f->ops->make_empty(f, &err);
}

static int other_backing(struct rhea_format *f)
{
    return f->ops->set_backing(f, "other", "qcow2", NULL, &err);
}

static int long_backing(struct rhea_format *f)
{
    return f->ops->set_backing(f, long_name, "qed", NULL, &err);
}

static int several_backings(struct rhea_format *f)
{
    int ret = f->ops->set_backing(f, long_name, "raw", NULL, &err);
    if (ret == 0)
        ret = f->ops->set_backing(f, long_name + 30, "qcow2", NULL, &err);
    return ret;
}

static int resize(struct rhea_format *f, uint64_t size, const char *mode,
                  bool hide)
{
    struct rhea_resize how = {.size = size,
                              .preallocation = mode,
                              .shrink = size < SIZE,
                              .hide_below = hide};
    return f->ops->resize(f, &how, &err);
}

static int grow(struct rhea_format *f)
{
    return resize(f, MOST, "off", false);
}

static int grow_over(struct rhea_format *f)
{
    return resize(f, MOST - 512, NULL, true);
}

static int grow_metadata(struct rhea_format *f)
{
    return resize(f, MOST - 1024, "metadata", false);
}

static int grow_full(struct rhea_format *f)
{
    return resize(f, SIZE * 2, "full", true);
}

static int shrink(struct rhea_format *f)
{
    return resize(f, 99 << 10, NULL, false);
}

static int amend(struct rhea_format *f, const char *name, const char *value)
{
    struct rhea_option option = {name, value};
    return f->ops->amend(f, &option, 1, false, NULL, &err);
}

static int downgrade(struct rhea_format *f)
{
    return amend(f, "compat", "0.10");
}

static int upgrade(struct rhea_format *f)
{
    return amend(f, "compat", "1.1");
}

static int narrow_refcounts(struct rhea_format *f)
{
    return amend(f, "refcount_bits", "4");
}

static int wide_refcounts(struct rhea_format *f)
{
    return amend(f, "refcount_bits", "64");
}

static int strict(struct rhea_format *f)
{
    return amend(f, "lazy_refcounts", "off");
}

static const struct change {
    const char *name, *options;
    int (*change)(struct rhea_format *f);
    bool any_name; /* more than one name on the way */
} changes[] = {
    {"empty", "cluster_size=4096", empty, false},
    {"empty", "cluster_size=512 refcount_bits=64", empty, false},
    {"empty", "cluster_size=16384 extended_l2=on", empty, false},
    {"empty", "cluster_size=4096 lazy_refcounts=on", empty, false},
    {"empty", "cluster_size=4096 compat=0.10", empty, false},
    {"other backing", "cluster_size=4096", other_backing, false},
    {"other backing", "cluster_size=65536", other_backing, false},
    {"long backing", "cluster_size=65536", long_backing, false},
    {"long backing", "cluster_size=4096 compat=0.10", long_backing, false},
    {"several backings", "cluster_size=65536", several_backings, true},
    {"several backings", "cluster_size=4096", several_backings, true},
    {"grow", "cluster_size=512", grow, false},
    {"grow", "cluster_size=4096", grow, false},
    {"grow", "cluster_size=512 compat=0.10", grow, false},
    {"grow over", "cluster_size=512", grow_over, false},
    {"grow over", "cluster_size=16384 extended_l2=on", grow_over, false},
    {"grow metadata", "cluster_size=4096", grow_metadata, false},
    {"grow metadata", "cluster_size=512 refcount_bits=64", grow_metadata,
     false},
    {"grow metadata", "cluster_size=16384 extended_l2=on", grow_metadata,
     false},
    {"grow full", "cluster_size=4096", grow_full, false},
    {"grow full", "cluster_size=512 lazy_refcounts=on", grow_full, false},
    {"grow full", "cluster_size=16384 extended_l2=on", grow_full, false},
    {"downgrade", "cluster_size=4096", downgrade, false},
    {"downgrade", "cluster_size=512 lazy_refcounts=on", downgrade, false},
    {"upgrade", "cluster_size=4096 compat=0.10", upgrade, false},
    {"upgrade", "cluster_size=65536 compat=0.10", upgrade, false},
    {"narrow refcounts", "cluster_size=4096 refcount_bits=64", narrow_refcounts,
     false},
    {"narrow refcounts", "cluster_size=512 lazy_refcounts=on refcount_bits=32",
     narrow_refcounts, false},
    {"wide refcounts", "cluster_size=512 refcount_bits=16", wide_refcounts,
     false},
    {"strict", "cluster_size=4096 lazy_refcounts=on", strict, false},
    {"shrink", "cluster_size=512", shrink, false},
    {"shrink", "cluster_size=4096", shrink, false},
    {"shrink", "cluster_size=4096 lazy_refcounts=on", shrink, false},
    {"shrink", "cluster_size=512 refcount_bits=64", shrink, false},
    {"shrink", "cluster_size=16384 extended_l2=on", shrink, false},
};

/* What a guest can see. */
struct view {
    uint64_t size;
    char backing[1024];
    uint8_t guest[MOST];
};

static bool look(struct rhea_format *f, struct view *v)
{
    struct rhea_format_info info;
    f->ops->info(f, &info);
    v->size = f->size;
    snprintf(v->backing, sizeof(v->backing), "%s",
             info.backing_file ? info.backing_file : "");
    return CHECK(v->size <= MOST) &&
           CHECK_OK(image_read(f, v->guest, v->size, 0, 9), &err);
}

static int below_is_nines(void *opaque, uint64_t offset, void *buf, size_t len,
                          struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, 9, len);
    return 0;
}

/* Some of everything. */
static struct rhea_storage *make(const struct change *c)
{
    static uint8_t bytes[64 << 10];
    struct rhea_storage *s = qcow2_make(SIZE, c->options, "base");
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    struct rhea_format_info info;
    uint64_t random = 5;

    f->below = below_is_nines;
    f->ops->info(f, &info);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t cluster = info.cluster_size;
        uint64_t at = test_random(&random) % (SIZE / cluster) * cluster;
        uint64_t len = RHEA_MIN(SIZE - at, i < 4 ? sizeof(bytes) : cluster);

        memset(bytes, (int)(10 + i), sizeof(bytes));
        if (i % 5 == 3)
            CHECK_OK(f->ops->write_compressed(f, at, bytes, cluster, &err),
                     &err);
        else if (i % 5 == 4)
            CHECK_OK(f->ops->write_zeroes(f, at, len, i % 2, &err), &err);
        else
            CHECK_OK(f->ops->write(f, at, bytes, len, &err), &err);
    }
    image_close_ok(f);
    return s;
}

static bool view_is_good(const struct change *c, const struct view *now,
                         const struct view *before, const struct view *after)
{
    const struct view *sized = now->size == before->size ? before : after;
    bool good = CHECK_EQ(now->size, sized->size) &&
                CHECK(c->any_name || !strcmp(now->backing, before->backing) ||
                      !strcmp(now->backing, after->backing));
    for (uint64_t i = 0; good && i < now->size; i += SECTOR) {
        good = (i < before->size &&
                !memcmp(now->guest + i, before->guest + i, SECTOR)) ||
               (i < after->size &&
                !memcmp(now->guest + i, after->guest + i, SECTOR));
        if (!CHECK(good))
            printf("# the sector at %" PRIu64 " holds %u\n", i, now->guest[i]);
    }
    return good;
}

/* Also after it was opened for writing, which repairs what is marked so. */
static bool state_is_good(const struct change *c, struct rhea_storage *state,
                          const struct view *before, const struct view *after)
{
    static struct view now;
    bool good = true;
    for (unsigned pass = 0; pass < 2 && good; pass++) {
        struct rhea_format *f =
            qcow2_open_ok(state, pass ? RHEA_FORMAT_WRITE : 0);
        struct rhea_format_info info;
        f->below = below_is_nines;
        f->ops->info(f, &info);
        good = look(f, &now) && view_is_good(c, &now, before, after);
        if (good && pass)
            good = CHECK_OK(f->ops->write(f, 0, now.guest, SECTOR, &err), &err);
        if (good && (pass || !info.dirty)) {
            struct rhea_check check = image_checked(f, 0);
            good = CHECK_EQ(check.corruptions + check.errors, 0);
        }
        image_close_ok(f);
    }
    return good;
}

static void note_all(struct rhea_storage *s, struct view *v, bool leaks)
{
    struct rhea_format *f = qcow2_open_ok(s, 0);
    f->below = below_is_nines;
    look(f, v);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.errors, 0);
    CHECK(leaks || check.leaks == 0);
    image_close_ok(f);
}

struct crash_look {
    const struct change *c;
    const struct view *before, *after;
};

static bool crash_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    const struct crash_look *look = opaque;
    (void)s;
    return state_is_good(look->c, state, look->before, look->after);
}

static void crash_once(const struct change *c)
{
    static struct view before, after;
    const struct crash_look look = {c, &before, &after};
    const struct crash_limits limits = {
        .seed = 7, .subsets = 6, .torn = 2, .orders = 4};
    struct rhea_storage *s = make(c);
    struct recording r;
    char name[100];

    note_all(s, &before, false);
    recording_begin(&r, s);
    struct rhea_format *f = qcow2_open_ok(r.storage, RHEA_FORMAT_WRITE);
    f->below = below_is_nines;
    CHECK_OK(c->change(f), &err);
    image_close_ok(f);
    note_all(s, &after, false);
    snprintf(name, sizeof(name), "%s, %s", c->name, c->options);
    CHECK(crash_states(name, &r, &limits, 400, crash_is_good, &look) > 1);
    recording_end(&r);
}

static void a_crash_leaves_the_old_or_the_new(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(changes); i++)
        crash_once(&changes[i]);
}

/* The Nth call of CLASSES fails. Returns whether there was one. */
static bool fault_once(const struct change *c, uint64_t at, unsigned classes)
{
    static struct view before, after;
    struct rhea_storage *s = make(c), *keep, *done, *faulty;
    struct fault_plan plan = {.classes = classes, .at = at, .code = EIO};
    struct rhea_format *f;

    note_all(s, &before, false);
    CHECK_OK(memory_snapshot(&done, s, &err), &err);
    f = qcow2_open_ok(done, RHEA_FORMAT_WRITE);
    f->below = below_is_nines;
    CHECK_OK(c->change(f), &err);
    image_close_ok(f);
    note_all(done, &after, false);
    rhea_storage_close(done);

    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    if (!rhea_format_open_over(qcow2_ops(), &f, faulty, RHEA_FORMAT_WRITE,
                               &err)) {
        f->below = below_is_nines;
        (void)c->change(f);
        (void)f->ops->close(f, &err);
    }
    bool hit = fault_hits(faulty) > 0;
    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(c, keep, &before, &after)) {
        printf("# %s, %s: fault at call %" PRIu64 " of 0x%x\n", c->name,
               c->options, at, classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

static void a_fault_leaves_the_old_or_the_new(void)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(changes); i++) {
        for (size_t k = 0; k < RHEA_ARRAY_SIZE(classes); k++) {
            uint64_t at = 1;
            while (at < 40 && fault_once(&changes[i], at, classes[k]))
                at++;
        }
    }
}

static void what_was_cut_off_never_shows(void)
{
    static struct view before, after;
    const struct change c = {"", "cluster_size=4096", NULL, false};
    struct rhea_storage *s = make(&c);
    uint64_t cut = (99 << 10) + 512;

    note_all(s, &before, false);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    f->below = below_is_nines;
    CHECK_OK(resize(f, cut, NULL, false), &err);
    CHECK_OK(resize(f, SIZE, NULL, true), &err);
    image_close_ok(f);
    note_all(s, &after, false);
    CHECK(!memcmp(before.guest, after.guest, cut));
    for (uint64_t i = cut; i < SIZE; i++)
        if (!CHECK_EQ(after.guest[i], 0))
            break;
    rhea_storage_close(s);
}

static void parts_of_the_header_that_nobody_knows_stay(void)
{
    struct rhea_storage *s = qcow2_make(SIZE, "cluster_size=65536", "base");
    struct rhea_format_info info;
    uint8_t area[600], ext[] = {0x12, 0x34, 0x56, 0x78, 0,   0, 0, 5,
                                'h',  'e',  'l',  'l',  'o', 0, 0, 0};

    /* The name moves, the new extension goes between the others and the end. */
    CHECK_OK(rhea_storage_write(s, "base", 4, 600, &err), &err);
    put_be64(s, 8, 600);
    CHECK_OK(rhea_storage_write(s, ext, 16, 112 + 392, &err), &err);
    CHECK_OK(rhea_storage_write(s, "\0\0\0\0\0\0\0\0", 8, 112 + 408, &err),
             &err);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    f->ops->info(f, &info);
    CHECK(info.extensions);
    CHECK_OK(f->ops->set_backing(f, "other", "raw", NULL, &err), &err);
    image_close_ok(f);
    CHECK_OK(rhea_storage_read(s, area, sizeof(area), 0, &err), &err);
    CHECK(memmem(area, sizeof(area), ext, sizeof(ext)) != NULL);
    rhea_storage_close(s);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_leaves_the_old_or_the_new);
    TEST(a_fault_leaves_the_old_or_the_new);
    TEST(what_was_cut_off_never_shows);
    TEST(parts_of_the_header_that_nobody_knows_stay);
    return test_finish();
}
