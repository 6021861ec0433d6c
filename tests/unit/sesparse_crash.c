/* SPDX-License-Identifier: MIT */
/*
 * Repairs of SESparse extents, emptying them and making them larger survive
 * crashes: whatever of it reaches the disk, the guest sees what it saw, or what
 * is below, and the same repair again makes the extent sound. One that became
 * larger in part can be written to, and becomes as large as it was to be.
 */
#include "base/cleanup.h"
#include "storage/crash.h"
#include "storage/record.h"
#include "vmdk_lib.h"

enum { SECTOR = 512, STATES = 300, TABLES = 3, EACH = 120 /* sectors */ };
#define TABLE_SIZE ((uint64_t)16 << 20)
#define SIZE (TABLE_SIZE * TABLES - 8 * SECTOR)
#define ALL (RHEA_FIX_LEAKS | RHEA_FIX_ERRORS)

static struct rhea_error err;
static struct rhea_storage *descriptor, *new_descriptor;

/* --- The image ----------------------------------------------------------- */

static int files_open(void *opaque, const char *name, bool write,
                      struct rhea_storage **out, struct rhea_error *e)
{
    (void)name;
    (void)write;
    (void)e;
    *out = opaque;
    return 0;
}

static int files_replace(void *opaque, const char *name, const void *text,
                         size_t len, struct rhea_error *e)
{
    (void)opaque;
    (void)name;
    rhea_storage_close(new_descriptor);
    new_descriptor = vmdk_memory();
    return rhea_storage_write(new_descriptor, text, len, 0, e);
}

static struct rhea_files files = {.open = files_open, .replace = files_replace};

static struct rhea_format *open_ok(struct rhea_storage *s, unsigned flags)
{
    const struct rhea_format_open how = {
        .storage = descriptor, .flags = flags, .files = &files};
    struct rhea_format *f;
    files.opaque = s;
    if (!CHECK_OK(rhea_format_vmdk.open(&f, &how, &err), &err))
        exit(99);
    return f;
}

static void close_ok(struct rhea_format *f)
{
    CHECK_OK(f->ops->close(f, &err), &err);
    if (new_descriptor) {
        rhea_storage_close(descriptor);
        descriptor = new_descriptor;
        new_descriptor = NULL;
    }
}

/* Guest sector NUMBER of those that are written to. */
static uint64_t place(unsigned number)
{
    return number / EACH * TABLE_SIZE + (uint64_t)(number % EACH) * 3 * SECTOR;
}

static uint8_t value(unsigned number)
{
    return (uint8_t)(1 + number % 250);
}

static void put_text(uint64_t size)
{
    const struct vmdk_shape shape = {.kind = VMDK_SESPARSE};
    rhea_storage_close(descriptor);
    descriptor = vmdk_memory();
    vmdk_put_text(descriptor, 0, size, &shape);
}

static struct rhea_storage *make(enum vmdk_test_back back)
{
    uint8_t bytes[SECTOR];
    put_text(SIZE);
    struct rhea_storage *s = vmdk_make_sesparse(SIZE, back);
    struct rhea_format *f = open_ok(s, RHEA_FORMAT_WRITE);
    for (unsigned i = 0; i < TABLES * EACH; i++) {
        memset(bytes, value(i), sizeof(bytes));
        CHECK_OK(f->ops->write(f, place(i), bytes, SECTOR, &err), &err);
    }
    close_ok(f);
    return s;
}

/* Where PART is, OFFSET bytes into it. */
static uint64_t part(struct rhea_storage *s, enum sesparse_part number,
                     uint64_t offset)
{
    uint8_t p[8];
    CHECK_OK(rhea_storage_read(s, p, sizeof(p),
                               SESPARSE_H_PARTS + 16 * (uint64_t)number, &err),
             &err);
    return load_le64(p) * VMDK_SECTOR + offset;
}

/* --- What is done -------------------------------------------------------- */

static void damage_bits(struct rhea_storage *s)
{
    vmdk_put_number(s, 0, part(s, PART_BITMAP, 0));
}

static void damage_owners(struct rhea_storage *s)
{
    for (unsigned i = 3; i < 60; i += 7)
        vmdk_put_number(s, 77, part(s, PART_BACK_MAP, 8 * (uint64_t)i));
}

static void damage_free_table(struct rhea_storage *s)
{
    vmdk_put_number(s, 1, part(s, PART_VOLATILE, SESPARSE_V_FREE_TABLE));
    damage_bits(s);
}

/* Of guests that were not written to. */
static void damage_entries(struct rhea_storage *s)
{
    for (uint64_t i = 3000; i < 3010; i++)
        vmdk_put_number(s, UINT64_MAX, part(s, PART_TABLES, 8 * i));
    damage_owners(s);
}

static void damage_leaks(struct rhea_storage *s)
{
    uint64_t end;
    CHECK_OK(rhea_storage_size(s, &end, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, end + (20 << 12), &err), &err);
    vmdk_put_number(s, UINT64_MAX, part(s, PART_BITMAP, 160));
    vmdk_put_number(s, UINT64_MAX, part(s, PART_BITMAP, 1024));
}

static int run_repair(struct rhea_format *f)
{
    struct rhea_check check = {0};
    return f->ops->check(f, ALL, &check, &err);
}

static int run_empty(struct rhea_format *f)
{
    return f->ops->make_empty(f, &err);
}

#define GROWN ((uint64_t)200 << 20)
#define GROWN_A_BIT ((uint64_t)300 << 20)
#define GROWN_FAR ((uint64_t)600 << 20)

static int grow(struct rhea_format *f, uint64_t size)
{
    const struct rhea_resize how = {.size = size};
    return f->ops->resize(f, &how, &err);
}

static int run_grow(struct rhea_format *f)
{
    return grow(f, GROWN);
}

static int run_grow_a_bit(struct rhea_format *f)
{
    return grow(f, GROWN_A_BIT);
}

static int run_grow_far(struct rhea_format *f)
{
    return grow(f, GROWN_FAR);
}

/* As ESXi lays it out, and with other grains in front of those that are
 * looked at: some of these get in the way, some get other numbers. */
static void damage_grown(struct rhea_storage *s)
{
    static uint8_t others[300 << 12], bytes[SECTOR];
    struct rhea_format *f = open_ok(s, RHEA_FORMAT_WRITE);
    CHECK_OK(f->ops->make_empty(f, &err), &err);
    memset(others, 99, sizeof(others));
    CHECK_OK(f->ops->write(f, 2 * TABLE_SIZE + (4 << 20), others,
                           sizeof(others), &err),
             &err);
    for (unsigned i = 0; i < TABLES * EACH; i++) {
        memset(bytes, value(i), sizeof(bytes));
        CHECK_OK(f->ops->write(f, place(i), bytes, SECTOR, &err), &err);
    }
    CHECK_OK(grow(f, GROWN), &err);
    close_ok(f);
}

static const struct act {
    const char *name;
    void (*damage)(struct rhea_storage *s);
    int (*run)(struct rhea_format *f);
} acts[] = {
    {"bits", damage_bits, run_repair},
    {"owners", damage_owners, run_repair},
    {"free table", damage_free_table, run_repair},
    {"entries", damage_entries, run_repair},
    {"leaks", damage_leaks, run_repair},
    {"empty", NULL, run_empty},
    {"grow", NULL, run_grow},
    {"grow in place", damage_grown, run_grow_a_bit},
    {"grow and move", damage_grown, run_grow_far},
};

static bool act_grows(const struct act *act)
{
    return act->run == run_grow || act->run == run_grow_a_bit ||
           act->run == run_grow_far;
}

/* --- Judging ------------------------------------------------------------- */

static bool guest_is_good(struct rhea_format *f, bool may_be_empty)
{
    uint8_t bytes[SECTOR];
    for (unsigned i = 0; i < TABLES * EACH; i++) {
        struct rhea_extent x;
        if (!CHECK_OK(f->ops->map(f, place(i), SECTOR, &x, &err), &err))
            return false;
        if (x.kind == RHEA_EXTENT_UNALLOCATED && may_be_empty)
            continue;
        if (!CHECK_EQ(x.kind, RHEA_EXTENT_DATA) ||
            !CHECK_OK(rhea_storage_read(x.storage, bytes, SECTOR, x.host, &err),
                      &err) ||
            !CHECK_EQ(bytes[0], value(i)) ||
            !CHECK(memcmp(bytes, bytes + 1, SECTOR - 1) == 0))
            return false;
    }
    return true;
}

/* SIZE bytes, with a sector in what is new, and zeroes around it. */
static bool grown_is_good(struct rhea_format *f, uint64_t size)
{
    static const uint8_t mark[SECTOR] = {42};
    struct rhea_check check = {0};
    uint8_t bytes[SECTOR];
    uint64_t from = size - (9 << 20);
    struct rhea_extent x = {0};
    bool good =
        CHECK_EQ(f->size, size) && guest_is_good(f, false) &&
        CHECK_OK(f->ops->write(f, from, mark, SECTOR, &err), &err) &&
        CHECK_OK(f->ops->map(f, from, SECTOR, &x, &err), &err) &&
        CHECK_EQ(x.kind, RHEA_EXTENT_DATA) &&
        CHECK_OK(rhea_storage_read(x.storage, bytes, SECTOR, x.host, &err),
                 &err) &&
        CHECK_MEM(bytes, mark, SECTOR);
    for (uint64_t at = SIZE; good && at < from; at += x.length)
        good = CHECK_OK(f->ops->map(f, at, from - at, &x, &err), &err) &&
               CHECK(x.kind != RHEA_EXTENT_DATA ||
                     (at < SIZE + (8 << 10) && x.length <= 8 << 10));
    return good && CHECK_OK(f->ops->flush(f, &err), &err) &&
           CHECK_OK(f->ops->check(f, 0, &check, &err), &err) &&
           CHECK_EQ(check.corruptions + check.errors + check.leaks, 0);
}

/* Whatever of it is done, it can be written to, and the rest be done. */
static bool grows_on(const struct act *act, struct rhea_storage *state)
{
    static const uint8_t mark[SECTOR] = {7};
    struct rhea_format *f = open_ok(state, RHEA_FORMAT_WRITE);
    uint64_t size = f->size;
    bool good = guest_is_good(f, false) &&
                CHECK_OK(f->ops->write(f, 9 << 20, mark, SECTOR, &err), &err);
    close_ok(f);
    f = open_ok(state, RHEA_FORMAT_WRITE);
    good = good && CHECK_OK(act->run(f), &err) &&
           grown_is_good(f, act->run == run_grow         ? GROWN
                            : act->run == run_grow_a_bit ? GROWN_A_BIT
                                                         : GROWN_FAR);
    close_ok(f);
    put_text(size);
    return good;
}

static bool state_is_good(const struct act *act, struct rhea_storage *state)
{
    struct rhea_check check = {0};
    if (act_grows(act) && !grows_on(act, state))
        return false;
    bool empty = act->run == run_empty;
    struct rhea_format *f =
        open_ok(state, RHEA_FORMAT_CHECK | RHEA_FORMAT_WRITE);
    bool good = guest_is_good(f, empty);
    if (empty)
        good = good && CHECK_OK(f->ops->check(f, 0, &check, &err), &err) &&
               CHECK_EQ(check.corruptions + check.errors, 0);
    good = good && CHECK_OK(run_repair(f), &err);
    close_ok(f);
    check = (struct rhea_check){0};
    f = open_ok(state, RHEA_FORMAT_CHECK);
    good = good && guest_is_good(f, empty) &&
           CHECK_OK(f->ops->check(f, 0, &check, &err), &err) &&
           CHECK_EQ(check.corruptions + check.errors + check.leaks, 0);
    close_ok(f);
    return good;
}

static size_t n_states;

static void crash_once(const struct act *act, enum vmdk_test_back back)
{
    struct rhea_storage *s = make(back), *before, *recorder;
    struct record_log log = {0};
    if (act->damage)
        act->damage(s);
    vmdk_put_number(s, 0xc0ffee, part(s, PART_JOURNAL, 0));
    CHECK_OK(memory_snapshot(&before, s, &err), &err);
    CHECK_OK(record_open(&recorder, s, &log, &err), &err);
    struct rhea_format *f =
        open_ok(recorder, RHEA_FORMAT_CHECK | RHEA_FORMAT_WRITE);
    uint64_t size = f->size;
    CHECK_OK(act->run(f), &err);
    close_ok(f);
    put_text(size);
    const struct crash_limits limits = {
        .seed = back, .subsets = 6, .torn = 1, .orders = 4};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    CHECK_OK(crash_plan(&log, &limits, &plan, &err), &err);
    crash_plan_sample(&plan, STATES, 1);
    CHECK_OK(crash_init(&crash, before, &log, &err), &err);
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        if (!CHECK_OK(crash_build(&crash, &plan.states[i], &state, &err), &err))
            break;
        bool good = state_is_good(act, state);
        rhea_storage_close(state);
        if (!good) {
            char text[100];
            crash_describe(&plan.states[i], text, sizeof(text));
            printf("# %s, back map %d, state %s\n", act->name, (int)back, text);
            break;
        }
    }
    n_states += plan.n_states;
    crash_plan_finish(&plan);
    crash_finish(&crash);
    rhea_storage_close(recorder);
    rhea_storage_close(before);
    record_log_finish(&log);
}

static void a_crash_anywhere_leaves_what_the_guest_saw(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(acts); i++)
        for (unsigned back = 0; back < 3; back++)
            crash_once(&acts[i], (enum vmdk_test_back)back);
    CHECK(n_states > 150);
    printf("# %zu states\n", n_states);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_anywhere_leaves_what_the_guest_saw);
    rhea_storage_close(descriptor);
    return test_finish();
}
