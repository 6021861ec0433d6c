/* SPDX-License-Identifier: MIT */
#include "changes.h"

#include <string.h>

#include "base/checked.h"

#define AMEND_UUID "12345678-9abc-def0-1234-56789abcdef0"
enum { STEPS = 10, SNAPSHOTS = 3, STATE = 5000, BITS_MOST = 1 << 16 };

struct changes {
    const struct rhea_format_ops *ops;
    struct rhea_format *f;
    struct guest *g; /* NULL: nothing is known */
    uint64_t state;
    uint64_t cluster;
    /* Snapshots that were made here, and what the guest saw then. */
    struct {
        char name[8];
        bool there;
        struct guest guest;
    } own[SNAPSHOTS];
    unsigned n_own;
};

static uint64_t changes_random(struct changes *c, uint64_t n)
{
    return (fuzz_random(&c->state) >> 16) % n;
}

/* Something happened to the whole disk that the model does not follow. */
static void changes_reload(struct changes *c)
{
    bool base;

    if (!c->g)
        return;
    base = c->g->base;
    guest_finish(c->g);
    guest_load(c->g, c->f, base);
}

/* --- snapshots ----------------------------------------------------------- */

static void changes_snapshot(struct changes *c)
{
    struct rhea_snapshot what = {.date = 1,
                                 .vm_state_size = changes_random(c, 2) * 1000,
                                 .icount = UINT64_MAX};
    unsigned i = c->n_own;

    if (!c->ops->snapshot_create || i == SNAPSHOTS)
        return;
    snprintf(c->own[i].name, sizeof(c->own[i].name), "fuzz%u", i);
    what.name = c->own[i].name;
    if (c->ops->snapshot_create(c->f, &what, NULL))
        return;
    c->own[i].there = true;
    if (c->g)
        guest_copy(&c->own[i].guest, c->g);
    c->n_own++;
}

/* The name or id of a snapshot, one of our own as often as not, in *OWN. */
static char *changes_pick(struct changes *c, unsigned *own)
{
    struct rhea_snapshot *list = NULL;
    char *which = NULL;
    size_t n = 0;

    *own = SNAPSHOTS;
    if (c->n_own && changes_random(c, 2)) {
        *own = (unsigned)changes_random(c, c->n_own);
        return strdup(c->own[*own].name);
    }
    if (c->ops->snapshot_list &&
        c->ops->snapshot_list(c->f, &list, &n, NULL) == 0 && n) {
        const struct rhea_snapshot *s = &list[changes_random(c, n)];

        which = strdup(s->id);
    }
    rhea_snapshots_free(list, n);
    return which;
}

static void changes_apply(struct changes *c)
{
    unsigned own;
    char *which = changes_pick(c, &own);
    int ret = -1;

    if (which && c->ops->snapshot_apply)
        ret = c->ops->snapshot_apply(c->f, which, NULL);
    if (ret == 0)
        changes_reload(c);
    if (ret == 0 && c->g && own < SNAPSHOTS && c->own[own].there)
        guest_compare(&c->own[own].guest, c->f, "a snapshot was applied");
    free(which);
}

/* Which of our own are still there. */
static void changes_look_for_own(struct changes *c)
{
    struct rhea_snapshot *list = NULL;
    size_t n = 0;

    FUZZ_REQUIRE(!c->ops->snapshot_list(c->f, &list, &n, NULL) || !c->g,
                 "snapshots cannot be listed");
    for (unsigned i = 0; i < c->n_own; i++) {
        c->own[i].there = false;
        for (size_t k = 0; k < n; k++)
            c->own[i].there |= !strcmp(list[k].name, c->own[i].name);
    }
    rhea_snapshots_free(list, n);
}

static void changes_delete(struct changes *c)
{
    unsigned own;
    char *which = changes_pick(c, &own);

    if (which && c->ops->snapshot_delete &&
        c->ops->snapshot_delete(c->f, which, NULL) == 0)
        changes_look_for_own(c);
    free(which);
}

/* Every snapshot that was made holds what it held. */
static void changes_check_snapshots(struct changes *c, struct rhea_storage *s)
{
    for (unsigned i = 0; i < c->n_own; i++) {
        struct rhea_format *f;
        struct rhea_error err;

        if (!c->own[i].there || !c->g)
            continue;
        FUZZ_REQUIRE(!rhea_format_open_over(c->ops, &f, s, 0, &err),
                     "does not open: %s", err.text);
        FUZZ_REQUIRE(!c->ops->snapshot_load(f, c->own[i].name, &err),
                     "a snapshot cannot be read: %s", err.text);
        guest_compare(&c->own[i].guest, f, "a snapshot");
        c->ops->close(f, NULL);
    }
}

static void changes_state(struct changes *c)
{
    static uint8_t bytes[STATE], again[STATE];
    uint64_t at = changes_random(c, 3 * c->cluster);
    size_t len = 1 + (size_t)changes_random(c, STATE - 1);

    if (!c->ops->vm_state_write || c->cluster > 65536)
        return;
    fuzz_fill(bytes, len, c->state);
    if (c->ops->vm_state_write(c->f, at, bytes, len, NULL) == 0 && c->g) {
        FUZZ_REQUIRE(!c->ops->vm_state_read(c->f, at, again, len, NULL),
                     "VM state cannot be read");
        FUZZ_REQUIRE(!memcmp(bytes, again, len), "other VM state");
    }
}

/* --- bitmaps ------------------------------------------------------------- */

static void changes_add_bitmap(struct changes *c)
{
    char name[2] = {(char)('a' + changes_random(c, 3)), 0};
    struct rhea_bitmap what = {.name = name,
                               .granularity = UINT64_C(512)
                                              << changes_random(c, 12),
                               .enabled = changes_random(c, 2)};

    if (c->ops->bitmap_add)
        c->ops->bitmap_add(c->f, &what, NULL);
}

static void changes_copy_bits(struct changes *c, const struct rhea_bitmap *b)
{
    static uint8_t bits[BITS_MOST], again[BITS_MOST];
    uint64_t n = div_up(div_up(c->f->size, b->granularity), (uint64_t)8);

    if (!n || n > BITS_MOST ||
        c->ops->bitmap_load(c->f, b->name, bits, (size_t)n, NULL))
        return;
    bits[0] ^= 1;
    if (c->ops->bitmap_store(c->f, b->name, bits, (size_t)n, NULL) == 0) {
        FUZZ_REQUIRE(
            !c->ops->bitmap_load(c->f, b->name, again, (size_t)n, NULL) &&
                !memcmp(bits, again, (size_t)n),
            "other bits");
    }
}

static void changes_bitmap(struct changes *c)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;

    if (c->ops->bitmap_list &&
        c->ops->bitmap_list(c->f, &list, &n, NULL) == 0 && n) {
        const struct rhea_bitmap *b = &list[changes_random(c, n)];

        switch (changes_random(c, 4)) {
        case 0:
            c->ops->bitmap_remove(c->f, b->name, NULL);
            break;
        case 1:
            c->ops->bitmap_enable(c->f, b->name, !b->enabled, NULL);
            break;
        default:
            changes_copy_bits(c, b);
        }
    }
    rhea_bitmaps_free(list, n);
}

/* --- the disk ------------------------------------------------------------ */

static void changes_resize(struct changes *c)
{
    static const char *const modes[] = {NULL, "metadata", "falloc", "full"};
    uint64_t by = changes_random(c, 5 * c->cluster) & ~UINT64_C(511);
    struct rhea_resize how = {
        .shrink = true,
        .preallocation = modes[changes_random(c, 4)],
        .hide_below = c->g && c->g->base && c->f->size < FUZZ_BASE_SIZE,
    };

    if (!c->ops->resize || c->cluster > 1 << 20)
        return;
    if (changes_random(c, 3))
        how.size = c->f->size + by;
    else
        how.size = c->f->size - RHEA_MIN(by, c->f->size);
    if (how.size < c->f->size)
        how.preallocation = NULL;
    if (how.size > INT64_MAX)
        return;
    struct rhea_error err = {0};
    bool done = c->ops->resize(c->f, &how, &err) == 0;
    FUZZ_TRACE("resize to %" PRIu64 ": %s", how.size, err.text);
    if (done && c->g)
        guest_resize(c->g, how.size);
}

static void changes_amend(struct changes *c)
{
    static const struct rhea_option all[] = {
        {"compat", "0.10"},      {"compat", "1.1"},
        {"refcount_bits", "64"}, {"refcount_bits", "1"},
        {"refcount_bits", "16"}, {"lazy_refcounts", "on"},
        {"comment", "a text"},   {"physical_sector_size", "4096"},
        {"disk_id", AMEND_UUID}, {"uuid", AMEND_UUID},
    };
    const struct rhea_option *o = &all[changes_random(c, RHEA_ARRAY_SIZE(all))];

    if (c->ops->amend)
        c->ops->amend(c->f, o, 1, false, NULL, NULL);
}

static void changes_discard(struct changes *c)
{
    uint64_t at, len = changes_random(c, 4 * c->cluster) + 1;

    if (!c->ops->discard || !c->f->size)
        return;
    at = changes_random(c, c->f->size);
    len = RHEA_MIN(len, c->f->size - at);
    c->ops->discard(c->f, at, len, NULL);
    if (c->g)
        guest_spoil(c->g, at, len);
}

static void changes_write(struct changes *c)
{
    static uint8_t bytes[STATE];
    uint64_t at;
    size_t len = 1 + (size_t)changes_random(c, STATE - 1);
    int ret;

    if (!c->ops->write || !c->f->size)
        return;
    at = changes_random(c, 2) ? changes_random(c, c->f->size)
                              : changes_random(c, 4 * c->cluster);
    if (!range_inside(at, len, c->f->size))
        return;
    fuzz_fill(bytes, len, c->state);
    ret = c->ops->write(c->f, at, bytes, len, NULL);
    if (c->g && ret)
        guest_spoil(c->g, at, len);
    else if (c->g)
        guest_write(c->g, at, bytes, len);
}

static void changes_backing(struct changes *c)
{
    struct rhea_format_info info = {0};
    char *name;

    c->ops->info(c->f, &info);
    if (!c->ops->set_backing || !info.backing_file)
        return;
    name = strdup(info.backing_file);
    FUZZ_REQUIRE(name, "memory");
    c->ops->set_backing(c->f, name, changes_random(c, 2) ? "raw" : NULL, NULL,
                        NULL);
    free(name);
}

static void changes_empty(struct changes *c)
{
    if (c->ops->make_empty && c->ops->make_empty(c->f, NULL) == 0)
        changes_reload(c);
}

/* --- all together -------------------------------------------------------- */

static void changes_step(struct changes *c)
{
    static void (*const steps[])(struct changes *) = {
        changes_snapshot, changes_snapshot, changes_apply,   changes_delete,
        changes_state,    changes_bitmap,   changes_bitmap,  changes_add_bitmap,
        changes_resize,   changes_resize,   changes_discard, changes_write,
        changes_write,    changes_amend,    changes_backing, changes_empty,
    };
    uint64_t i = changes_random(c, RHEA_ARRAY_SIZE(steps));

    FUZZ_TRACE("change %u of the image", (unsigned)i);
    steps[i](c);
    if (changes_random(c, 4) == 0)
        c->ops->flush(c->f, NULL);
}

bool changes_run(const struct rhea_format_ops *format, struct rhea_storage *s,
                 struct guest *g, uint64_t seed)
{
    struct changes c = {.ops = format, .g = g, .state = seed};
    struct rhea_format_info info = {0};
    struct rhea_error err;
    uint64_t n;
    int ret;

    if (rhea_format_open_over(format, &c.f, s, RHEA_FORMAT_WRITE, NULL))
        return false;
    format->info(c.f, &info);
    c.f->below = info.backing_file ? fuzz_base_below : NULL;
    c.cluster = fuzz_cluster(&info);
    n = changes_random(&c, STEPS);
    for (uint64_t i = 0; i < n; i++)
        changes_step(&c);
    if (g)
        guest_compare(g, c.f, "changed, before closing");
    ret = format->close(c.f, &err);
    FUZZ_REQUIRE(!g || !ret, "closing: %s", err.text);
    changes_check_snapshots(&c, s);
    for (unsigned i = 0; i < c.n_own; i++)
        guest_finish(&c.own[i].guest);
    return true;
}
