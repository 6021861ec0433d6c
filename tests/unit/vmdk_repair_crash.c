/* SPDX-License-Identifier: MIT */
/*
 * Repairs of VMDKs survive crashes: whatever of a repair reaches the disk, the
 * same repair again makes the image sound, and the guest sees what it saw
 * before, or in a stream that was cut off what was whole of it.
 */
#include "base/cleanup.h"
#include "crash_states.h"
#include "image_lib.h"
#include "vmdk_lib.h"

enum {
    SECTOR = 512,
    GRAIN = VMDK_TEST_GRAIN * SECTOR,
    GRAINS = 40,
    PACKED_GRAIN = 64 << 10,
    STATES = 300,
    ALL = RHEA_FIX_LEAKS | RHEA_FIX_ERRORS,
};

/* A damaged image, and what its grains hold, a byte each. */
struct damage {
    const char *name;
    struct rhea_storage *(*make)(void);
    uint64_t grain; /* bytes */
    uint8_t (*holds)(unsigned grain);
};

static struct rhea_format *open_ok(struct rhea_storage *s, unsigned flags)
{
    return image_open_ok(&rhea_format_vmdk, s, flags);
}

/* --- Grains that are used twice ------------------------------------------- */

/* Table 0 in both copies: of the test's own images, a sector behind each
 * directory. */
static void share(struct rhea_storage *s, unsigned grain, unsigned with)
{
    static const unsigned at[] = {HOSTED_H_DIRECTORY, HOSTED_H_REDUNDANT};
    for (unsigned i = 0; i < 2; i++) {
        uint8_t place[8], entry[4];
        CHECK_OK(rhea_storage_read(s, place, 8, at[i], &err), &err);
        uint64_t table = (load_le64(place) + 1) * SECTOR;
        CHECK_OK(rhea_storage_read(s, entry, 4, table + 4 * with, &err), &err);
        vmdk_put(s, entry, 4, table + (uint64_t)4 * grain);
    }
}

static struct rhea_storage *make_shared(void)
{
    const struct vmdk_shape shape = {.kind = VMDK_HOSTED, .tables = true};
    struct rhea_storage *s = vmdk_make_hosted((uint64_t)GRAINS * GRAIN, &shape);
    struct rhea_format *f = open_ok(s, RHEA_FORMAT_WRITE);
    uint8_t bytes[GRAIN];
    for (unsigned i = 0; i < GRAINS; i++) {
        memset(bytes, (int)i + 1, sizeof(bytes));
        CHECK_OK(f->ops->write(f, (uint64_t)i * GRAIN, bytes, GRAIN, &err),
                 &err);
    }
    image_close_ok(f);
    share(s, 3, 0);
    share(s, 4, 0);
    share(s, 9, 7);
    return s;
}

static uint8_t shared_holds(unsigned grain)
{
    return (uint8_t)(grain == 3 || grain == 4 ? 1 : grain == 9 ? 8 : grain + 1);
}

/* --- Streams that were cut off ---------------------------------------------
 */

enum { LOST = 30 /* the first grain that is not whole */ };

static struct rhea_storage *make_cut_off(void)
{
    static const struct rhea_option options[] = {
        {"subformat", "streamOptimized"}};
    const struct rhea_create how = {
        .size = (uint64_t)GRAINS * PACKED_GRAIN * 32,
        .options = options,
        .n_options = 1,
    };
    static uint8_t bytes[PACKED_GRAIN];
    struct rhea_storage *s = vmdk_memory();
    uint64_t cut = 0;
    CHECK_OK(rhea_format_vmdk.create(s, &how, &err), &err);
    struct rhea_format *f = open_ok(s, RHEA_FORMAT_WRITE);
    for (unsigned i = 0; i < GRAINS; i++) {
        memset(bytes, (int)i + 1, sizeof(bytes));
        if (i == LOST)
            CHECK_OK(rhea_storage_size(s, &cut, &err), &err);
        CHECK_OK(f->ops->write_compressed(f, (uint64_t)i * PACKED_GRAIN * 32,
                                          bytes, sizeof(bytes), &err),
                 &err);
    }
    image_close_ok(f);
    /* The next grain's marker, and no more. */
    CHECK_OK(rhea_storage_truncate(s, cut + 20, &err), &err);
    return s;
}

static uint8_t cut_off_holds(unsigned grain)
{
    return (uint8_t)(grain < LOST ? grain + 1 : 0);
}

/* --- Judging ------------------------------------------------------------- */

static bool grains_are_good(const struct damage *d, struct rhea_format *f)
{
    static uint8_t bytes[PACKED_GRAIN];
    uint64_t step = d->grain == PACKED_GRAIN ? 32 : 1;
    for (unsigned i = 0; i < GRAINS; i++) {
        struct rhea_extent x;
        uint64_t at = i * step * d->grain;
        if (!CHECK_OK(f->ops->map(f, at, d->grain, &x, &err), &err))
            return false;
        int ret = 0;
        memset(bytes, 0, sizeof(bytes));
        if (x.kind == RHEA_EXTENT_DATA)
            ret = rhea_storage_read(x.storage, bytes, d->grain, x.host, &err);
        else if (x.kind == RHEA_EXTENT_COMPRESSED)
            ret = f->ops->read(f, at, bytes, d->grain, &err);
        if (!CHECK_OK(ret, &err) || !CHECK_EQ(bytes[5], d->holds(i)) ||
            !CHECK(!memcmp(bytes, bytes + 1, d->grain - 1)))
            return false;
    }
    return true;
}

static bool state_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    const struct damage *d = opaque;
    (void)s;
    struct rhea_format *f = open_ok(state, RHEA_FORMAT_CHECK);
    bool good = d->grain == PACKED_GRAIN || grains_are_good(d, f);
    image_close_ok(f);
    f = open_ok(state, RHEA_FORMAT_CHECK | RHEA_FORMAT_WRITE);
    struct rhea_check check = image_checked(f, ALL);
    good = good && CHECK_EQ(check.corruptions + check.errors, 0);
    image_close_ok(f);
    f = open_ok(state, 0);
    check = image_checked(f, 0);
    good = good && CHECK_EQ(check.corruptions + check.errors, 0) &&
           grains_are_good(d, f);
    image_close_ok(f);
    return good;
}

static void crash_case(const struct damage *d)
{
    const struct crash_limits limits = {
        .seed = 1, .subsets = 8, .torn = 2, .orders = 4};
    struct recording r;
    recording_begin(&r, d->make());
    struct rhea_format *f =
        open_ok(r.storage, RHEA_FORMAT_CHECK | RHEA_FORMAT_WRITE);
    struct rhea_check check = image_checked(f, ALL);
    CHECK(check.corruptions_fixed > 0);
    CHECK_EQ(check.corruptions + check.errors, 0);
    CHECK(grains_are_good(d, f));
    image_close_ok(f);

    CHECK(crash_states(d->name, &r, &limits, STATES, state_is_good, d) > 10);
    recording_end(&r);
}

static void a_crash_of_a_repair_loses_nothing(void)
{
    static const struct damage cases[] = {
        {"grains used twice", make_shared, GRAIN, shared_holds},
        {"a stream cut off", make_cut_off, PACKED_GRAIN, cut_off_holds},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++)
        crash_case(&cases[i]);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_of_a_repair_loses_nothing);
    return test_finish();
}
