/* SPDX-License-Identifier: MIT */
/*
 * Persistent bitmaps that follow guest writes (flag "auto").
 *
 * Before the first write they are read into memory and marked as in use in the
 * file, durably: from then on the file's bits are out of date, and a crash
 * leaves bitmaps that say so. Bits are set in memory before the guest's bytes
 * are written. When the image is closed all is stored, by the order of
 * bitmap_data.c, and the new directory has them as no longer in use.
 *
 * A bitmap that cannot be followed, being damaged or too large, makes the
 * write fail, and the message says what to do. One that was in use before
 * stays so: its bits mean nothing.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/bitmap.h"

const struct qcow2_tracked *qcow2_tracked_find(const struct qcow2 *q,
                                               uint32_t index)
{
    uint32_t from = 0, to = q->n_tracked;

    /* They are in the directory's order. */
    while (from < to) {
        uint32_t middle = from + (to - from) / 2;

        if (q->tracked[middle].index < index)
            from = middle + 1;
        else
            to = middle;
    }
    return from < q->n_tracked && q->tracked[from].index == index
               ? &q->tracked[from]
               : NULL;
}

void qcow2_bitmaps_finish(struct qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_tracked; i++)
        free(q->tracked[i].bits);
    free(q->tracked);
    q->tracked = NULL;
    q->n_tracked = 0;
    q->tracking = false;
}

static int track_load(struct qcow2 *q, const struct qcow2_bitmap *b,
                      uint32_t index, uint64_t *total, struct rhea_error *err)
{
    uint64_t n = qcow2_bitmap_bytes(q->f.size, b->granularity_bits);
    struct qcow2_tracked *t = &q->tracked[q->n_tracked];
    int r;

    *total += n;
    if (*total > QCOW2_BITMAPS_BYTES_MAX)
        return rhea_error_set(err, EFBIG,
                              "the image's bitmaps, which are to follow "
                              "writes, are larger than %llu bytes: disable or "
                              "remove some first",
                              QCOW2_BITMAPS_BYTES_MAX);
    *t = (struct qcow2_tracked){.index = index,
                                .granularity_bits = b->granularity_bits,
                                .enabled = b->flags & QCOW2_BITMAP_AUTO,
                                .n_bytes = n,
                                .size = q->f.size,
                                .bits = calloc(1, n + !n)};
    if (!t->bits)
        return rhea_error_set(err, ENOMEM, "out of memory for bitmap '%s'",
                              b->name);
    q->n_tracked++;
    r = qcow2_bitmap_read(q, b, t->bits, n, err);
    if (r < 0)
        rhea_error_prefix(err,
                          "bitmap '%s', which is to follow writes, cannot be "
                          "read and should be removed",
                          b->name);
    return r;
}

/* Mark in the file as in use what is now in memory, and what should follow
 * writes but holds data that this program does not know. */
static int track_mark(struct qcow2 *q, struct qcow2_bitmap_list *list,
                      struct rhea_error *err)
{
    bool changed = false;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < list->n; i++) {
        struct qcow2_bitmap *b = &list->items[i];

        if (b->flags & QCOW2_BITMAP_IN_USE ||
            !(b->flags & QCOW2_BITMAP_AUTO || qcow2_tracked_find(q, i)))
            continue;
        b->flags |= QCOW2_BITMAP_IN_USE;
        r = qcow2_bitmap_write_flags(q, b, err);
        changed = true;
    }
    if (r == 0 && changed)
        r = rhea_storage_flush(q->f.storage, err);
    return qcow2_fail(q, r);
}

/* From now on enabled bitmaps are followed; with ALL, the others are in memory
 * too. */
static int track_begin(struct qcow2 *q, bool all, struct rhea_error *err)
{
    struct qcow2_bitmap_list list;
    uint64_t total = 0;
    int r = qcow2_bitmap_list_load(q, &list, err);

    if (r == 0)
        q->tracked = calloc(list.n + 1ULL, sizeof(*q->tracked));
    if (r == 0 && !q->tracked)
        r = rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; r == 0 && i < list.n; i++) {
        const struct qcow2_bitmap *b = &list.items[i];

        if (!(b->flags & QCOW2_BITMAP_IN_USE) && qcow2_bitmap_usable(b) &&
            (all || b->flags & QCOW2_BITMAP_AUTO))
            r = track_load(q, b, i, &total, err);
    }
    if (r == 0)
        r = track_mark(q, &list, err);
    qcow2_bitmap_list_free(&list);
    if (r < 0)
        qcow2_bitmaps_finish(q);
    else
        q->tracking = true;
    return r;
}

/* Set bits FIRST to LAST. */
static void track_set(uint8_t *bits, uint64_t first, uint64_t last)
{
    uint8_t head = (uint8_t)(0xff << (first & 7));
    uint8_t tail = (uint8_t)(0xff >> (7 - (last & 7)));

    if (first / 8 == last / 8) {
        bits[first / 8] |= head & tail;
        return;
    }
    bits[first / 8] |= head;
    memset(bits + first / 8 + 1, 0xff, last / 8 - first / 8 - 1);
    bits[last / 8] |= tail;
}

int qcow2_bitmaps_follow(struct qcow2 *q, uint64_t offset, uint64_t end,
                         struct rhea_error *err)
{
    int r = 0;

    end = RHEA_MIN(end, q->f.size);
    if (!qcow2_bitmaps_any(q) || offset >= end)
        return 0;
    if (!q->tracking)
        r = track_begin(q, false, err);
    for (uint32_t i = 0; r == 0 && i < q->n_tracked; i++) {
        struct qcow2_tracked *t = &q->tracked[i];

        if (t->enabled)
            track_set(t->bits, offset >> t->granularity_bits,
                      (end - 1) >> t->granularity_bits);
    }
    return r;
}

/* Make room for a disk of SIZE bytes; new bits are zero. */
static int track_resize(struct qcow2_tracked *t, uint64_t size,
                        struct rhea_error *err)
{
    uint64_t bits = div_up(size, 1ULL << t->granularity_bits);
    uint64_t n = div_up(bits, 8);
    uint8_t *more;

    if (n > RHEA_BITMAP_BYTES_MAX)
        return rhea_error_set(err, EFBIG,
                              "a bitmap would be larger than %u bytes",
                              RHEA_BITMAP_BYTES_MAX);
    more = realloc(t->bits, n + !n);
    if (!more)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (n > t->n_bytes)
        memset(more + t->n_bytes, 0, n - t->n_bytes);
    else if (bits % 8)
        more[n - 1] &= (uint8_t)((1U << bits % 8) - 1);
    t->bits = more;
    t->n_bytes = n;
    t->size = size;
    return 0;
}

static int track_store(struct qcow2_bitmap_change *c, struct rhea_error *err)
{
    struct qcow2 *q = c->q;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < q->n_tracked; i++) {
        struct qcow2_tracked *t = &q->tracked[i];
        struct qcow2_bitmap *b = &c->list.items[t->index];

        /* Was the size to become larger, but did not, nothing is lost. Was it
         * to become smaller, bits are, and the bitmap stays in use. */
        if (t->size > q->f.size)
            r = track_resize(t, q->f.size, err);
        if (r < 0 || t->size != q->f.size)
            continue;
        r = qcow2_bitmap_change_store(c, b, t->bits, t->n_bytes, err);
        b->flags &= ~(uint32_t)QCOW2_BITMAP_IN_USE;
    }
    return r;
}

int qcow2_bitmaps_settle(struct qcow2 *q, struct rhea_error *err)
{
    struct qcow2_bitmap_change change = {0};
    int r = 0;

    if (q->n_tracked) {
        r = qcow2_bitmap_change_begin(&change, q, err);
        if (r == 0)
            r = track_store(&change, err);
        if (r == 0)
            r = qcow2_bitmap_change_commit(&change, err);
        qcow2_bitmap_change_finish(&change);
        if (r < 0) {
            rhea_error_prefix(err, "bitmaps cannot be stored");
            return r;
        }
    }
    qcow2_bitmaps_finish(q);
    return 0;
}

static int track_check_all(struct qcow2 *q, struct rhea_error *err)
{
    struct qcow2_bitmap_list list;
    int r = qcow2_bitmap_list_load(q, &list, err);

    for (uint32_t i = 0; r == 0 && i < list.n; i++) {
        const struct qcow2_bitmap *b = &list.items[i];

        if (b->flags & QCOW2_BITMAP_IN_USE || !qcow2_bitmap_usable(b))
            r = rhea_error_set(err, ENOTSUP,
                               "bitmap '%s' %s: the size cannot change unless "
                               "it is removed",
                               b->name,
                               qcow2_bitmap_usable(b)
                                   ? "is in use or was not saved"
                                   : "holds data of unknown meaning");
    }
    qcow2_bitmap_list_free(&list);
    return r;
}

int qcow2_bitmaps_resize(struct qcow2 *q, uint64_t size, struct rhea_error *err)
{
    int r;

    if (!qcow2_bitmaps_any(q))
        return 0;
    if (!size)
        return rhea_error_set(err, ENOTSUP,
                              "an image of 0 bytes cannot have bitmaps; remove "
                              "them before it is made that small");
    r = qcow2_bitmaps_settle(q, err);
    if (r == 0)
        r = track_check_all(q, err);
    if (r == 0)
        r = track_begin(q, true, err);
    for (uint32_t i = 0; r == 0 && i < q->n_tracked; i++) {
        r = track_resize(&q->tracked[i], size, err);
        /* What the driver writes in doing so is no change of the guest's. */
        q->tracked[i].enabled = false;
    }
    return r < 0 ? qcow2_bitmaps_resized(q, r, err) : 0;
}

int qcow2_bitmaps_resized(struct qcow2 *q, int result, struct rhea_error *err)
{
    int r = 0;

    if (!q->failed)
        r = qcow2_bitmaps_settle(q, result < 0 ? NULL : err);
    /* They do not follow writes as they are: rather they stay in use. */
    if (r < 0)
        qcow2_bitmaps_finish(q);
    return result < 0 ? result : r;
}
