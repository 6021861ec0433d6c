/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole VMDK survive crashes and faults: at each moment the image
 * is what it was or what it is to be, has its guest's bytes, and shows nothing
 * behind its old end. Of images in two files it is the extent's that is
 * watched; the descriptor is replaced at one moment, before which the old one
 * has to do, and after which the new one.
 */
#include <errno.h>
#include <rhea/format.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "crash_states.h"
#include "lib/test.h"
#include "storage/fault.h"
#include "vmdk_lib.h"

#define SECTOR 512
#define SIZE (UINT64_C(600) * SECTOR)

enum { STATES = 250 };

static struct rhea_error err;

struct change_case {
    const char *name;
    struct vmdk_shape shape;
    int (*run)(struct rhea_format *f);
    uint64_t after;  /* size */
    bool stale;      /* tables have more than the disk */
    bool hide_below; /* what is below goes on behind the end */
};

/* --- Images -------------------------------------------------------------- */

/* The extent in a file of its own; NULL: it has the descriptor inside. */
static bool is_beside(const struct change_case *c)
{
    return c->shape.kind != VMDK_HOSTED;
}

static struct {
    char *old, *new; /* the descriptor, where it is beside; NEW NULL: it was not
                        replaced yet */
    const struct record_log *log; /* of the extent; NULL: none */
    size_t moment;                /* how long that was then */
} text;

static int files_open(void *opaque, const char *name, bool write,
                      struct rhea_storage **out, struct rhea_error *e)
{
    (void)name;
    (void)write;
    (void)e;
    *out = opaque;
    return 0;
}

static int files_find_parent(void *opaque, const char *const *names, size_t n,
                             char **out, struct rhea_error *e)
{
    (void)opaque;
    (void)n;
    *out = strdup(names[0]);
    return *out ? 0 : rhea_error_set(e, ENOMEM, "out of memory");
}

static int files_replace(void *opaque, const char *name, const void *data,
                         size_t len, struct rhea_error *e)
{
    (void)opaque;
    (void)name;
    (void)e;
    free(text.new);
    text.new = strndup(data, len);
    text.moment = text.log ? text.log->n_ops : 0;
    return CHECK(text.new) ? 0 : -1;
}

static struct rhea_files files = {.open = files_open,
                                  .find_parent = files_find_parent,
                                  .replace = files_replace};

/* What is open: a format, and the file that its descriptor is in. */
struct opened {
    struct rhea_format *f;
    struct rhea_storage *descriptor;
};

static int image_open(const struct change_case *c, struct rhea_storage *s,
                      const char *descriptor, unsigned flags,
                      struct opened *out)
{
    struct rhea_format_open how = {
        .storage = s, .flags = flags, .files = &files};
    *out = (struct opened){0};
    if (is_beside(c)) {
        out->descriptor = how.storage = vmdk_memory();
        vmdk_put(how.storage, descriptor, strlen(descriptor), 0);
    }
    files.opaque = s;
    int ret = rhea_format_vmdk.open(&out->f, &how, &err);
    if (ret)
        rhea_storage_close(out->descriptor);
    return ret;
}

static int image_close(struct opened *o)
{
    int ret = o->f->ops->close(o->f, &err);
    rhea_storage_close(o->descriptor);
    return ret;
}

static struct opened open_ok(const struct change_case *c,
                             struct rhea_storage *s, unsigned flags)
{
    struct opened o;
    if (!CHECK_OK(image_open(c, s, text.old, flags, &o), &err))
        exit(99);
    return o;
}

static uint8_t byte_at(uint64_t sector)
{
    return (uint8_t)(10 + sector % 200);
}

/* Every third of the first sectors is written to. */
static bool is_written(uint64_t sector)
{
    return sector < SIZE / SECTOR && sector / 5 % 3 == 0;
}

static struct rhea_storage *make_empty_image(const struct change_case *c,
                                             uint64_t size)
{
    char line[2000] = {0};
    struct rhea_storage *s, *beside = vmdk_memory();
    vmdk_put_text(beside, 0, SIZE, &c->shape);
    CHECK_OK(rhea_storage_read_padded(beside, line, sizeof(line) - 1, 0, &err),
             &err);
    rhea_storage_close(beside);
    free(text.old);
    free(text.new);
    text.new = NULL;
    text.log = NULL;
    text.old = strdup(line);
    if (c->shape.kind == VMDK_HOSTED)
        return vmdk_make_hosted(size, &c->shape);
    if (c->shape.kind == VMDK_COWD)
        return vmdk_make_cowd(size);
    s = vmdk_memory();
    CHECK_OK(rhea_storage_truncate(s, size, &err), &err);
    return s;
}

/* With STALE, of a disk that was larger and had bytes there. */
static struct rhea_storage *make(const struct change_case *c)
{
    uint64_t size = c->stale ? 2 * SIZE : SIZE;
    struct rhea_storage *s = make_empty_image(c, size);
    static const uint8_t no_text[VMDK_TEST_TEXT * SECTOR];
    uint8_t bytes[SECTOR], capacity[8];
    struct opened o = open_ok(c, s, RHEA_FORMAT_WRITE);
    for (uint64_t i = 0; i < o.f->size / SECTOR; i++) {
        memset(bytes, byte_at(i), sizeof(bytes));
        if (is_written(i) || i >= SIZE / SECTOR)
            CHECK_OK(o.f->ops->write(o.f, i * SECTOR, bytes, SECTOR, &err),
                     &err);
    }
    CHECK_OK(image_close(&o), &err);
    if (c->stale && c->shape.kind == VMDK_HOSTED) {
        store_le64(capacity, SIZE / SECTOR);
        vmdk_put(s, capacity, sizeof(capacity), HOSTED_H_CAPACITY);
        if (!is_beside(c)) {
            vmdk_put(s, no_text, sizeof(no_text), SECTOR);
            vmdk_put_text(s, SECTOR, SIZE, &c->shape);
        }
    } else if (c->stale && c->shape.kind == VMDK_FLAT) {
        memset(bytes, 77, sizeof(bytes));
        vmdk_put(s, bytes, sizeof(bytes), SIZE + 5 * SECTOR);
    }
    return s;
}

/* --- Judging ------------------------------------------------------------- */

/* What the guest sees: 0, what was written, or -1 for what is below; -2: no
 * one value, or it cannot be read. */
static int sector_value(struct rhea_format *f, uint64_t sector)
{
    struct rhea_extent x;
    uint8_t bytes[SECTOR];
    if (!CHECK_OK(f->ops->map(f, sector * SECTOR, SECTOR, &x, &err), &err))
        return -2;
    if (x.kind == RHEA_EXTENT_ZERO)
        return 0;
    if (x.kind == RHEA_EXTENT_UNALLOCATED)
        return vmdk_of(f)->parent ? -1 : 0;
    if (!CHECK_EQ(x.length, SECTOR) ||
        !CHECK_OK(
            rhea_storage_read_padded(x.storage, bytes, SECTOR, x.host, &err),
            &err))
        return -2;
    return memcmp(bytes, bytes + 1, SECTOR - 1) == 0 ? bytes[0] : -2;
}

static bool sector_is_good(const struct change_case *c, struct rhea_format *f,
                           uint64_t sector)
{
    int value = sector_value(f, sector);
    if (is_written(sector))
        return value == byte_at(sector);
    if (sector < SIZE / SECTOR)
        return value == 0 || (value == -1 && c->shape.parent);
    return value == 0 || (value == -1 && !c->hide_below);
}

static bool image_is_good(const struct change_case *c, struct rhea_format *f)
{
    struct rhea_check check = {0};
    if (!CHECK(f->size == SIZE || f->size == c->after) ||
        !CHECK_OK(f->ops->check(f, 0, &check, &err), &err) ||
        !CHECK_EQ(check.corruptions + check.errors, 0))
        return false;
    for (uint64_t i = 0; i < f->size / SECTOR; i++)
        if (!CHECK(sector_is_good(c, f, i))) {
            printf("# sector %" PRIu64 " holds %d\n", i, sector_value(f, i));
            return false;
        }
    return true;
}

/* The descriptor inside is whole: its last line is there, and it has no mark of
 * two of them. */
static bool text_is_whole(const struct rhea_format *f)
{
    const struct descriptor *d = &((const struct vmdk *)f)->descriptor;
    const char *adapter =
        strstr(d->text ? d->text : "", "ddb.adapterType = \"");
    return CHECK(adapter) && CHECK(!strstr(adapter + 1, "ddb.adapterType")) &&
           CHECK(strcmp(adapter, "ddb.adapterType = \"ide\"\n") == 0 ||
                 strcmp(adapter, "ddb.adapterType = \"lsilogic\"\n") == 0 ||
                 strcmp(adapter, "ddb.adapterType = \"lsilogic\"\n"
                                 "ddb.toolsVersion = \"1234567\"\n") == 0);
}

/* As it is, and when it is written to; a copy. */
static bool state_is_good(const struct change_case *c,
                          struct rhea_storage *state, const char *descriptor)
{
    static const unsigned flags[] = {RHEA_FORMAT_CHECK, RHEA_FORMAT_WRITE};
    struct rhea_storage *s;
    struct opened o;
    bool good = CHECK_OK(memory_snapshot(&s, state, &err), &err);
    for (unsigned i = 0; good && i < RHEA_ARRAY_SIZE(flags); i++) {
        good = CHECK_OK(image_open(c, s, descriptor, flags[i], &o), &err);
        if (!good)
            break;
        good = image_is_good(c, o.f) && text_is_whole(o.f);
        CHECK_OK(image_close(&o), &err);
    }
    rhea_storage_close(s);
    return good;
}

/* --- Crashes ------------------------------------------------------------- */

static bool crash_is_good(const void *opaque, struct rhea_storage *state,
                          const struct crash_state *s)
{
    const struct change_case *c = opaque;
    bool good = true;
    if (!text.new || s->to <= text.moment)
        good = state_is_good(c, state, text.old);
    if (good && text.new && s->to >= text.moment)
        good = state_is_good(c, state, text.new);
    return good;
}

static void crash_case(const struct change_case *c)
{
    const struct crash_limits limits = {
        .seed = 1, .subsets = 8, .torn = 2, .orders = 4};
    struct recording r;
    recording_begin(&r, make(c));
    text.log = &r.log;
    struct opened o = open_ok(c, r.storage, RHEA_FORMAT_WRITE);
    CHECK_OK(c->run(o.f), &err);
    CHECK_EQ(o.f->size, c->after);
    CHECK(image_is_good(c, o.f));
    CHECK_OK(image_close(&o), &err);
    text.log = NULL;

    size_t n = crash_states(c->name, &r, &limits, STATES, crash_is_good, c);
    CHECK(n > 3 || is_beside(c));
    recording_end(&r);
}

/* --- Faults -------------------------------------------------------------- */

/* The call number AT of CLASSES fails. Whether there was such a call. */
static bool fault_once(const struct change_case *c, uint64_t at,
                       unsigned classes)
{
    struct rhea_storage *s = make(c), *keep, *faulty;
    const struct fault_plan plan = {
        .classes = classes, .at = at, .code = EIO, .half_done = at % 2};
    struct opened o;
    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    if (image_open(c, faulty, text.old, RHEA_FORMAT_WRITE, &o) == 0) {
        c->run(o.f);
        image_close(&o);
    }
    bool hit = fault_hits(faulty) > 0;
    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(c, keep, text.new ? text.new : text.old)) {
        printf("# %s, fault at call %" PRIu64 " of 0x%x\n", c->name, at,
               classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

static void fault_case(const struct change_case *c)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH,
                                       FAULT_TRUNCATE, FAULT_ZERO};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(classes); i++)
        for (uint64_t at = 1; at < 300; at++)
            if (!fault_once(c, at, classes[i]))
                break;
}

/* --- Changes ------------------------------------------------------------- */

static int resize(struct rhea_format *f, uint64_t size, bool hide_below)
{
    const struct rhea_resize how = {
        .size = size, .shrink = true, .hide_below = hide_below};
    return f->ops->resize(f, &how, &err);
}

enum {
    SOME = 40 << 10, /* more, in the same table */
    MUCH = 4 << 20,
    LITTLE =
        99 * SECTOR, /* in two digits, so that the descriptor is replaced */
};

static int grow_by_some(struct rhea_format *f)
{
    return resize(f, SIZE + SOME, false);
}

static int grow_by_some_over(struct rhea_format *f)
{
    return resize(f, SIZE + SOME, true);
}

static int grow_much(struct rhea_format *f)
{
    return resize(f, MUCH, false);
}

static int shrink(struct rhea_format *f)
{
    return resize(f, LITTLE, false);
}

static int amend(struct rhea_format *f)
{
    static const struct rhea_option options[] = {{"adapter_type", "lsilogic"},
                                                 {"toolsversion", "1234567"}};
    return f->ops->amend(f, options, 2, false, NULL, &err);
}

static const struct change_case cases[] = {
    {"amend", {.kind = VMDK_HOSTED, .long_text = true}, amend, SIZE, 0, 0},
    {"amend, descriptor beside", {.kind = VMDK_FLAT}, amend, SIZE, 0, 0},
    {"grow",
     {.kind = VMDK_HOSTED, .tables = true, .long_text = true},
     grow_by_some,
     SIZE + SOME,
     false,
     false},
    {"grow, so that grains move",
     {.kind = VMDK_HOSTED, .tables = true},
     grow_much,
     MUCH,
     false,
     false},
    {"grow, with tables anywhere",
     {.kind = VMDK_HOSTED},
     grow_much,
     MUCH,
     false,
     false},
    {"grow where something was",
     {.kind = VMDK_HOSTED, .tables = true},
     grow_much,
     MUCH,
     true,
     false},
    {"grow a child",
     {.kind = VMDK_HOSTED, .tables = true, .parent = true},
     grow_by_some_over,
     SIZE + SOME,
     true,
     true},
    {"grow a child that notes zeroes",
     {.kind = VMDK_HOSTED, .parent = true, .zero_grains = true},
     grow_by_some_over,
     SIZE + SOME,
     false,
     true},
    {"grow a flat extent",
     {.kind = VMDK_FLAT},
     grow_by_some,
     SIZE + SOME,
     true,
     false},
    {"grow a delta",
     {.kind = VMDK_COWD, .parent = true},
     grow_by_some_over,
     SIZE + SOME,
     false,
     true},
    {"grow a delta much", {.kind = VMDK_COWD}, grow_much, MUCH, 0, 0},
    {"shrink",
     {.kind = VMDK_HOSTED, .tables = true, .long_text = true},
     shrink,
     LITTLE,
     false,
     false},
    {"shrink, with tables anywhere",
     {.kind = VMDK_HOSTED},
     shrink,
     LITTLE,
     false,
     false},
    {"shrink a flat extent", {.kind = VMDK_FLAT}, shrink, LITTLE, 0, 0},
    {"shrink a delta", {.kind = VMDK_COWD}, shrink, LITTLE, 0, 0},
};

static void a_crash_of_a_change_leaves_the_old_or_the_new(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++)
        crash_case(&cases[i]);
}

static void a_fault_in_a_change_leaves_the_old_or_the_new(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(cases); i++)
        fault_case(&cases[i]);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_of_a_change_leaves_the_old_or_the_new);
    TEST(a_fault_in_a_change_leaves_the_old_or_the_new);
    free(text.old);
    free(text.new);
    return test_finish();
}
