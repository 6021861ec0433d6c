/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole VHD survive crashes: at each moment the image is what it
 * was or what it is to be, and has its guest's bytes.
 */
#include <rhea/format.h>

#include "base/checked.h"
#include "crash_states.h"
#include "lib/test.h"
#include "vpc_lib.h"

#define SECTOR 512
#define SIZE (UINT64_C(600) * SECTOR)

enum { BELOW = 9, STATES = 300 };

/* What an image may be: as it was, or as it is to be. */
struct shape {
    uint64_t size;
    const char *backing; /* NULL: none */
};

struct change_case {
    const char *name;
    struct rhea_storage *(*make)(uint64_t size);
    int (*run)(struct rhea_format *f);
    struct shape before, after;
    bool empties; /* the guest's bytes go */
};

static uint8_t byte_at(uint64_t sector)
{
    return (uint8_t)(10 + sector % 200);
}

/* Every third of the first sectors is written to. */
static bool is_written(uint64_t sector)
{
    return sector < SIZE / SECTOR && sector / 5 % 3 == 0;
}

static struct rhea_format *open_ok(struct rhea_storage *s, unsigned flags)
{
    return image_open_ok(vpc_ops(), s, flags);
}

static struct rhea_storage *make_written(const struct change_case *c)
{
    struct rhea_storage *s = c->make(SIZE);
    struct rhea_format *f = open_ok(s, RHEA_FORMAT_WRITE);
    uint8_t bytes[SECTOR];
    for (uint64_t i = 0; i < SIZE / SECTOR; i++) {
        memset(bytes, byte_at(i), sizeof(bytes));
        if (is_written(i))
            CHECK_OK(f->ops->write(f, i * SECTOR, bytes, SECTOR, &err), &err);
    }
    image_close_ok(f);
    return s;
}

static int read_sector(struct rhea_format *f, uint64_t sector, uint8_t *buf,
                       bool over)
{
    struct rhea_extent x;
    int ret = f->ops->map(f, sector * SECTOR, SECTOR, &x, &err);
    if (ret)
        return ret;
    CHECK_EQ(x.length, SECTOR);
    if (x.kind == RHEA_EXTENT_DATA)
        return rhea_storage_read(x.storage, buf, SECTOR, x.host, &err);
    memset(buf, x.kind == RHEA_EXTENT_UNALLOCATED && over ? BELOW : 0, SECTOR);
    return 0;
}

/* Where the image had grown the sectors are zeroes, or below shows through. In
 * a fixed one a footer may have been left there, or have been put over what is
 * to be lost. */
static bool sector_is_good(const struct change_case *c, uint64_t sector,
                           const uint8_t *p, bool over)
{
    if (c->make == vpc_make_fixed && memcmp(p, "conectix", 8) == 0 &&
        sector == RHEA_MIN(c->before.size, c->after.size) / SECTOR)
        return true;
    bool written = is_written(sector) && (p[0] == byte_at(sector));
    bool gone = !is_written(sector) || c->empties;
    /* A dynamic image has all of a block. */
    bool zero = !over || c->make == vpc_make;
    return !memcmp(p, p + 1, SECTOR - 1) &&
           (written || (gone && over && p[0] == BELOW) ||
            (gone && zero && p[0] == 0));
}

static bool has_shape(const struct rhea_format_info *info,
                      const struct shape *shape)
{
    const char *name = info->backing_file;
    return info->virtual_size == shape->size && !name == !shape->backing &&
           (!name || strcmp(name, shape->backing) == 0);
}

static bool image_is_good(const struct change_case *c, struct rhea_format *f,
                          unsigned unclean)
{
    struct rhea_format_info info = {0};
    struct rhea_check check = {0};
    uint8_t bytes[SECTOR];
    f->ops->info(f, &info);
    if (!CHECK(has_shape(&info, &c->before) || has_shape(&info, &c->after)) ||
        !CHECK_OK(f->ops->check(f, 0, &check, &err), &err) ||
        !CHECK(check.corruptions + check.errors <= unclean))
        return false;
    /* A large image is looked at where something can be. */
    uint64_t sectors = RHEA_MIN(info.virtual_size / SECTOR, 2 * SIZE / SECTOR);
    for (uint64_t i = 0; i < sectors; i++)
        if (!CHECK_OK(read_sector(f, i, bytes, info.backing_file), &err) ||
            !CHECK(sector_is_good(c, i, bytes, info.backing_file))) {
            printf("# sector %" PRIu64 " holds %u\n", i, bytes[0]);
            return false;
        }
    return true;
}

/* As it is, and once it has been opened for writing. */
static bool state_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    const struct change_case *c = opaque;
    (void)s;
    struct rhea_format *f = open_ok(state, RHEA_FORMAT_CHECK);
    bool good = image_is_good(c, f, 1);
    image_close_ok(f);
    if (!good)
        return false;
    f = open_ok(state, RHEA_FORMAT_WRITE);
    good = image_is_good(c, f, 0);
    image_close_ok(f);
    return good;
}

static void check_end(const struct change_case *c, struct rhea_storage *s)
{
    struct rhea_format *f = open_ok(s, 0);
    struct rhea_format_info info = {0};
    struct rhea_check check = {0};
    f->ops->info(f, &info);
    CHECK(has_shape(&info, &c->after));
    CHECK_OK(f->ops->check(f, 0, &check, &err), &err);
    CHECK_EQ(check.corruptions + check.errors, 0);
    image_close_ok(f);
}

static void crash_case(const struct change_case *c)
{
    const struct crash_limits limits = {
        .seed = 1, .subsets = 8, .torn = 2, .orders = 4};
    struct recording r;
    recording_begin(&r, make_written(c));
    struct rhea_format *f = open_ok(r.storage, RHEA_FORMAT_WRITE);
    CHECK_OK(c->run(f), &err);
    image_close_ok(f);
    check_end(c, r.storage);
    CHECK(crash_states(c->name, &r, &limits, STATES, state_is_good, c) > 3);
    recording_end(&r);
}

/* --- Changes --- */

#define LONG_NAME                                                              \
    "a-folder-with-a-long-name/and-another-one-in-it-that-is-no-shorter/"      \
    "and-one-more-to-fill-what-room-is-left-for-the-name-of-a-parent-by-now/"  \
    "and-one-more-to-fill-what-room-is-left-for-the-name-of-a-parent-by-now/"  \
    "and-one-more-to-fill-what-room-is-left-for-the-name-of-a-parent-by-now/"  \
    "and-one-more-to-fill-what-room-is-left-for-the-name-of-a-parent-by-now/"  \
    "and-one-more-to-fill-what-room-is-left-for-the-name-of-a-parent-by-now/"  \
    "base.vhd"

static int set_backing(struct rhea_format *f, const char *name)
{
    struct rhea_storage *base = vpc_make(SIZE);
    struct rhea_format *parent = open_ok(base, 0);
    int ret = f->ops->set_backing(f, name, name ? "vpc" : NULL,
                                  name ? parent : NULL, &err);
    image_close_ok(parent);
    rhea_storage_close(base);
    return ret;
}

static int set_short(struct rhea_format *f)
{
    return set_backing(f, "other.vhd");
}

static int set_long(struct rhea_format *f)
{
    return set_backing(f, LONG_NAME);
}

static int set_none(struct rhea_format *f)
{
    return set_backing(f, NULL);
}

static int set_same(struct rhea_format *f)
{
    return set_backing(f, ".\\base.vhd");
}

static int grow_by_some(struct rhea_format *f)
{
    const struct rhea_resize how = {.size = SIZE + (40 << 10)};
    return f->ops->resize(f, &how, &err);
}

static int grow_much(struct rhea_format *f)
{
    const struct rhea_resize how = {.size = 4 << 20};
    return f->ops->resize(f, &how, &err);
}

static int shrink(struct rhea_format *f)
{
    const struct rhea_resize how = {.size = 100 * SECTOR, .shrink = true};
    return f->ops->resize(f, &how, &err);
}

static int make_empty(struct rhea_format *f)
{
    return f->ops->make_empty(f, &err);
}

static int renew(struct rhea_format *f)
{
    return f->ops->renew_identity(f, &err);
}

#define CHILD ".\\base.vhd"

static void a_crash_of_a_change_leaves_the_old_or_the_new(void)
{
    static const struct change_case cases[] = {
        {"another parent",
         vpc_make_child,
         set_short,
         {SIZE, CHILD},
         {SIZE, ".\\other.vhd"},
         false},
        {"a parent with a long name",
         vpc_make_child,
         set_long,
         {SIZE, CHILD},
         {SIZE, NULL},
         false},
        {"no parent",
         vpc_make_child,
         set_none,
         {SIZE, CHILD},
         {SIZE, NULL},
         false},
        {"a first parent",
         vpc_make,
         set_short,
         {SIZE, NULL},
         {SIZE, ".\\other.vhd"},
         false},
        {"the same parent again",
         vpc_make_child,
         set_same,
         {SIZE, CHILD},
         {SIZE, CHILD},
         false},
        {"grow",
         vpc_make,
         grow_by_some,
         {SIZE, NULL},
         {SIZE + (40 << 10), NULL},
         false},
        {"grow, so that the table moves",
         vpc_make,
         grow_much,
         {SIZE, NULL},
         {4 << 20, NULL},
         false},
        {"grow a child",
         vpc_make_child,
         grow_much,
         {SIZE, CHILD},
         {4 << 20, CHILD},
         false},
        {"shrink", vpc_make, shrink, {SIZE, NULL}, {100 * SECTOR, NULL}, false},
        {"empty",
         vpc_make_child,
         make_empty,
         {SIZE, CHILD},
         {SIZE, CHILD},
         true},
        {"renew", vpc_make, renew, {SIZE, NULL}, {SIZE, NULL}, false},
        {"grow a fixed one",
         vpc_make_fixed,
         grow_much,
         {SIZE, NULL},
         {4 << 20, NULL},
         false},
        {"shrink a fixed one",
         vpc_make_fixed,
         shrink,
         {SIZE, NULL},
         {100 * SECTOR, NULL},
         false},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++) {
        struct change_case c = cases[i];
        char name[sizeof(LONG_NAME) + 2] = ".\\" LONG_NAME;
        for (char *p = name; *p; p++)
            *p = *p == '/' ? '\\' : *p;
        if (c.run == set_long)
            c.after.backing = name;
        crash_case(&c);
        if (test_state.checks_failed) {
            printf("# in '%s'\n", c.name);
            return;
        }
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_of_a_change_leaves_the_old_or_the_new);
    return test_finish();
}
