/* SPDX-License-Identifier: MIT */
/*
 * Operations on persistent bitmaps. Each that changes something first stores
 * what was followed in memory, so that all there is to know is in the file,
 * and then changes that, by the order of bitmap_data.c.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/bitmap.h"

static bool bitmaps_in_use(const struct qcow2 *q,
                           const struct qcow2_bitmap_list *list, uint32_t i)
{
    return list->items[i].flags & QCOW2_BITMAP_IN_USE &&
           !qcow2_tracked_find(q, i);
}

static struct qcow2_bitmap *bitmaps_get(const struct qcow2_bitmap_list *list,
                                        const char *name,
                                        struct rhea_error *err)
{
    struct qcow2_bitmap *b = qcow2_bitmap_find(list, name);

    if (!b)
        rhea_error_set(err, ENOENT, "there is no bitmap '%s'", name);
    return b;
}

/* One whose bits mean something. */
static int bitmaps_check_usable(const struct qcow2_bitmap *b, bool in_use,
                                struct rhea_error *err)
{
    if (in_use)
        return rhea_error_set(err, EINVAL,
                              "bitmap '%s' is in use or was not saved, so that "
                              "its bits mean nothing; it can only be removed",
                              b->name);
    if (!qcow2_bitmap_usable(b))
        return rhea_error_set(err, ENOTSUP,
                              "bitmap '%s' holds data that this program does "
                              "not know",
                              b->name);
    return 0;
}

/* Without autoclear bits, nobody could know whether they are up to date. */
static int bitmaps_check_version(const struct qcow2 *q, struct rhea_error *err)
{
    if (q->version >= 3)
        return 0;
    return rhea_error_set(err, ENOTSUP,
                          "images of version 2 (compat=0.10) cannot hold "
                          "bitmaps");
}

int qcow2_bitmap_list(struct rhea_format *f, struct rhea_bitmap **out,
                      size_t *n, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_bitmap_list list;
    int r;

    *out = NULL;
    *n = 0;
    RHEA_LOCKED(&q->lock);
    r = bitmaps_check_version(q, err);
    if (r == 0)
        r = qcow2_bitmap_list_load(q, &list, err);
    if (r < 0)
        return r;
    *out = calloc(list.n + 1ULL, sizeof(**out));
    if (!*out) {
        qcow2_bitmap_list_free(&list);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    for (uint32_t i = 0; i < list.n; i++) {
        struct qcow2_bitmap *b = &list.items[i];

        (*out)[i] = (struct rhea_bitmap){
            .name = b->name,
            .granularity = 1ULL << b->granularity_bits,
            .enabled = b->flags & QCOW2_BITMAP_AUTO,
            .in_use = bitmaps_in_use(q, &list, i),
        };
        b->name = NULL;
    }
    *n = list.n;
    qcow2_bitmap_list_free(&list);
    return 0;
}

int qcow2_bitmaps_facts(struct qcow2 *q, struct rhea_facts *facts,
                        struct rhea_error *err)
{
    struct qcow2_bitmap_list list;
    int r = qcow2_bitmap_list_load(q, &list, err);

    if (r < 0 || !list.n)
        return r;
    rhea_facts_list(facts, "bitmaps", "bitmaps");
    for (uint32_t i = 0; i < list.n; i++) {
        const struct qcow2_bitmap *b = &list.items[i];

        rhea_facts_object(facts, NULL, NULL);
        rhea_facts_list(facts, "flags", "flags");
        if (b->flags & QCOW2_BITMAP_IN_USE)
            rhea_facts_string(facts, NULL, NULL, "in-use");
        if (b->flags & QCOW2_BITMAP_AUTO)
            rhea_facts_string(facts, NULL, NULL, "auto");
        rhea_facts_end(facts);
        rhea_facts_string(facts, "name", "name", b->name);
        rhea_facts_number(facts, "granularity", "granularity",
                          1ULL << b->granularity_bits);
        rhea_facts_end(facts);
    }
    rhea_facts_end(facts);
    qcow2_bitmap_list_free(&list);
    return 0;
}

static int bitmaps_check_new(const struct qcow2 *q,
                             const struct rhea_bitmap *what,
                             struct rhea_error *err)
{
    uint64_t bytes;
    int r = bitmaps_check_version(q, err);

    if (r < 0)
        return r;
    if (!what->name[0] || strlen(what->name) > QCOW2_BITMAP_NAME_MAX)
        return rhea_error_set(err, EINVAL, "a bitmap's name has 1 to %d bytes",
                              QCOW2_BITMAP_NAME_MAX);
    if (!is_power_of_2(what->granularity) ||
        what->granularity < 1ULL << QCOW2_BITMAP_MIN_BITS ||
        what->granularity > 1ULL << QCOW2_BITMAP_MAX_BITS)
        return rhea_error_set(err, EINVAL,
                              "a bitmap's granularity is a power of 2 from "
                              "%llu to %llu bytes",
                              1ULL << QCOW2_BITMAP_MIN_BITS,
                              1ULL << QCOW2_BITMAP_MAX_BITS);
    bytes = qcow2_bitmap_bytes(q->f.size, log2_u64(what->granularity));
    if (!bytes)
        return rhea_error_set(err, EINVAL,
                              "an image of 0 bytes cannot have bitmaps");
    /* Whole clusters of it count. */
    if (align_up(bytes, q->cluster_size) > RHEA_BITMAP_BYTES_MAX)
        return rhea_error_set(err, EFBIG,
                              "the bitmap would be larger than %u bytes; "
                              "choose a larger granularity",
                              RHEA_BITMAP_BYTES_MAX);
    return 0;
}

/* Everything is in the file, nothing in memory. */
static int bitmaps_begin(struct qcow2_bitmap_change *c, struct qcow2 *q,
                         struct rhea_error *err)
{
    int r = qcow2_write_begin(q, err);

    if (r == 0)
        r = qcow2_bitmaps_settle(q, err);
    return r == 0 ? qcow2_bitmap_change_begin(c, q, err) : r;
}

static int bitmaps_add(struct qcow2_bitmap_change *c,
                       const struct rhea_bitmap *what, struct rhea_error *err)
{
    struct qcow2_bitmap *b;
    uint64_t bytes;

    if (qcow2_bitmap_find(&c->list, what->name))
        return rhea_error_set(err, EEXIST, "there is a bitmap '%s' already",
                              what->name);
    b = qcow2_bitmap_append(&c->list, what->name, err);
    if (!b)
        return -ENOMEM;
    b->granularity_bits = log2_u64(what->granularity);
    b->flags = what->enabled ? QCOW2_BITMAP_AUTO : 0;
    bytes = qcow2_bitmap_bytes(c->q->f.size, b->granularity_bits);
    return qcow2_bitmap_change_store(c, b, NULL, bytes, err);
}

int qcow2_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                     struct rhea_error *err)
{
    struct qcow2_bitmap_change change = {0};
    struct qcow2 *q = qcow2_of(f);
    int r;

    RHEA_LOCKED(&q->lock);
    r = bitmaps_check_new(q, what, err);
    if (r == 0)
        r = bitmaps_begin(&change, q, err);
    if (r == 0)
        r = bitmaps_add(&change, what, err);
    if (r == 0)
        r = qcow2_bitmap_change_commit(&change, err);
    qcow2_bitmap_change_finish(&change);
    return r;
}

int qcow2_bitmap_remove(struct rhea_format *f, const char *name,
                        struct rhea_error *err)
{
    struct qcow2_bitmap_change change = {0};
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_bitmap *b = NULL;
    int r;

    RHEA_LOCKED(&q->lock);
    r = bitmaps_begin(&change, q, err);
    if (r == 0) {
        b = bitmaps_get(&change.list, name, err);
        r = b ? 0 : -ENOENT;
    }
    if (b) {
        qcow2_bitmap_change_drop(&change, b);
        qcow2_bitmap_delete(&change.list, b);
        r = qcow2_bitmap_change_commit(&change, err);
    }
    qcow2_bitmap_change_finish(&change);
    return r;
}

/* Begin a change of one bitmap, which can be used. */
static int bitmaps_begin_one(struct qcow2_bitmap_change *c, struct qcow2 *q,
                             const char *name, struct qcow2_bitmap **b,
                             struct rhea_error *err)
{
    int r = bitmaps_begin(c, q, err);

    if (r < 0)
        return r;
    *b = bitmaps_get(&c->list, name, err);
    if (!*b)
        return -ENOENT;
    return bitmaps_check_usable(*b, (*b)->flags & QCOW2_BITMAP_IN_USE, err);
}

int qcow2_bitmap_enable(struct rhea_format *f, const char *name, bool enabled,
                        struct rhea_error *err)
{
    struct qcow2_bitmap_change change = {0};
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_bitmap *b;
    int r;

    RHEA_LOCKED(&q->lock);
    r = bitmaps_begin_one(&change, q, name, &b, err);
    if (r == 0 && !(b->flags & QCOW2_BITMAP_AUTO) == enabled) {
        b->flags ^= QCOW2_BITMAP_AUTO;
        r = qcow2_bitmap_change_commit(&change, err);
    }
    qcow2_bitmap_change_finish(&change);
    return r;
}

static int bitmaps_check_length(const struct qcow2 *q,
                                const struct qcow2_bitmap *b, size_t n,
                                struct rhea_error *err)
{
    uint64_t bytes = qcow2_bitmap_bytes(q->f.size, b->granularity_bits);

    if (n == bytes)
        return 0;
    return rhea_error_set(err, EINVAL,
                          "bitmap '%s' has %" PRIu64 " bytes, not %zu", b->name,
                          bytes, n);
}

int qcow2_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                      size_t n, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    const struct qcow2_tracked *t = NULL;
    struct qcow2_bitmap_list list;
    struct qcow2_bitmap *b;
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_bitmap_list_load(q, &list, err);
    if (r < 0)
        return r;
    b = bitmaps_get(&list, name, err);
    r = b ? bitmaps_check_length(q, b, n, err) : -ENOENT;
    if (r == 0) {
        uint32_t index = (uint32_t)(b - list.items);

        t = qcow2_tracked_find(q, index);
        r = bitmaps_check_usable(b, bitmaps_in_use(q, &list, index), err);
    }
    if (r == 0 && t) {
        memcpy(bits, t->bits, n);
    } else if (r == 0) {
        memset(bits, 0, n);
        r = qcow2_bitmap_read(q, b, bits, n, err);
    }
    qcow2_bitmap_list_free(&list);
    return r;
}

int qcow2_bitmap_store(struct rhea_format *f, const char *name,
                       const uint8_t *bits, size_t n, struct rhea_error *err)
{
    struct qcow2_bitmap_change change = {0};
    struct qcow2 *q = qcow2_of(f);
    struct qcow2_bitmap *b;
    int r;

    RHEA_LOCKED(&q->lock);
    r = bitmaps_begin_one(&change, q, name, &b, err);
    if (r == 0)
        r = bitmaps_check_length(q, b, n, err);
    if (r == 0)
        r = qcow2_bitmap_change_store(&change, b, bits, n, err);
    if (r == 0)
        r = qcow2_bitmap_change_commit(&change, err);
    qcow2_bitmap_change_finish(&change);
    return r;
}
