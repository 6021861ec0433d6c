/* SPDX-License-Identifier: MIT */
/*
 * Writes to a blkdebug storage that is said to be written in whole blocks
 * only: what is around the bytes is read first, and nobody else may write to
 * those blocks meanwhile.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/blkdebug_internal.h"

static bool flight_conflicts(const struct blkdebug *b,
                             const struct blkdebug_flight *f)
{
    for (const struct blkdebug_flight *o = b->flights; o; o = o->next)
        if ((o->alone || f->alone) && o->start < f->end && f->start < o->end)
            return true;
    return false;
}

static void flight_begin(struct blkdebug *b, struct blkdebug_flight *f)
{
    pthread_mutex_lock(&b->lock);
    while (flight_conflicts(b, f))
        pthread_cond_wait(&b->changed, &b->lock);
    f->next = b->flights;
    b->flights = f;
    pthread_mutex_unlock(&b->lock);
}

static void flight_end(struct blkdebug *b, struct blkdebug_flight *f)
{
    pthread_mutex_lock(&b->lock);
    struct blkdebug_flight **at = &b->flights;
    while (*at != f)
        at = &(*at)->next;
    *at = f->next;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

static int write_checked(struct blkdebug *b, const void *buf, size_t len,
                         uint64_t offset, struct rhea_error *err)
{
    blkdebug_event(&b->w.head, "pwritev");
    int ret = blkdebug_check(b, BLKDEBUG_WRITE, offset, len, err);
    if (!ret)
        ret = rhea_storage_write(b->w.inner, buf, len, offset, err);
    blkdebug_event(&b->w.head, "pwritev_done");
    return ret;
}

/* Read the block at OFFSET into BUF, between two events. */
static int write_read_block(struct blkdebug *b, uint8_t *buf, uint64_t offset,
                            const char *before, const char *after,
                            struct rhea_error *err)
{
    blkdebug_event(&b->w.head, before);
    int ret = blkdebug_check(b, BLKDEBUG_READ, offset, b->align, err);
    if (!ret)
        ret = rhea_storage_read_padded(b->w.inner, buf, b->align, offset, err);
    blkdebug_event(&b->w.head, after);
    return ret;
}

/* Whole blocks around bytes that begin or end within one. */
static int write_around(struct blkdebug *b, const void *buf, size_t len,
                        uint64_t offset, struct rhea_error *err)
{
    uint64_t start = align_down(offset, b->align);
    uint64_t end = align_up(offset + len, b->align);
    RHEA_AUTO_FREE uint8_t *whole = malloc(end - start);
    int ret = 0;
    if (!whole)
        return rhea_error_set(err, ENOMEM, "out of memory");
    bool head = start != offset, tail = end != offset + len;
    if (head)
        ret = write_read_block(b, whole, start, "pwritev_rmw_head",
                               "pwritev_rmw_after_head", err);
    /* One block may be both. */
    if (!ret && tail && !(head && end - start == b->align))
        ret = write_read_block(b, whole + (end - start - b->align),
                               end - b->align, "pwritev_rmw_tail",
                               "pwritev_rmw_after_tail", err);
    if (ret)
        return ret;
    if (tail && head && end - start == b->align) {
        blkdebug_event(&b->w.head, "pwritev_rmw_tail");
        blkdebug_event(&b->w.head, "pwritev_rmw_after_tail");
    }
    memcpy(whole + (offset - start), buf, len);
    return write_checked(b, whole, end - start, start, err);
}

static int write_piece(struct blkdebug *b, const void *buf, size_t len,
                       uint64_t offset, struct rhea_error *err)
{
    uint64_t unit = RHEA_MAX(b->align, 1);
    struct blkdebug_flight f = {
        .start = align_down(offset, unit),
        .end = align_up(offset + len, unit),
        .alone = !is_aligned(offset | len, unit),
    };
    flight_begin(b, &f);
    int ret = f.alone ? write_around(b, buf, len, offset, err)
                      : write_checked(b, buf, len, offset, err);
    flight_end(b, &f);
    return ret;
}

int blkdebug_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                    uint64_t offset, struct rhea_error *err)
{
    struct blkdebug *b = (struct blkdebug *)s;
    const uint8_t *at = buf;
    while (len) {
        size_t n = len;
        if (b->max_transfer)
            n = (size_t)RHEA_MIN(n, b->max_transfer);
        int ret = write_piece(b, at, n, offset, err);
        if (ret)
            return ret;
        at += n;
        offset += n;
        len -= n;
    }
    return 0;
}

/* Zeroes that are too short for the storage to know. */
static int zero_write(struct blkdebug *b, uint64_t offset, uint64_t len,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *zeroes = calloc(1, len);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return blkdebug_pwrite(&b->w.head, zeroes, len, offset, err);
}

static int zero_piece(struct blkdebug *b, uint64_t offset, uint64_t len,
                      bool punch, struct rhea_error *err)
{
    struct blkdebug_flight f = {.start = offset, .end = offset + len};
    flight_begin(b, &f);
    blkdebug_event(&b->w.head, "pwritev_zero");
    int ret = blkdebug_check(
        b, BLKDEBUG_WRITE_ZEROES | (punch ? BLKDEBUG_DISCARD : 0), offset, len,
        err);
    if (!ret)
        ret = rhea_storage_zero(b->w.inner, offset, len, punch, err);
    blkdebug_event(&b->w.head, "pwritev_done");
    flight_end(b, &f);
    return ret;
}

/* The ends that are no whole block are written. */
int blkdebug_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                  bool punch, struct rhea_error *err)
{
    struct blkdebug *b = (struct blkdebug *)s;
    uint64_t unit = RHEA_MAX(b->align, punch ? b->opt_discard : 0);
    unit = RHEA_MAX(RHEA_MAX(unit, b->opt_write_zero), 1);
    uint64_t most = b->max_write_zero ? b->max_write_zero : UINT64_MAX;
    if (punch && b->max_discard)
        most = RHEA_MIN(most, b->max_discard);
    uint64_t end = offset + len;
    /* No power of 2, perhaps. */
    uint64_t from = div_up(offset, unit) * unit, to = end / unit * unit;
    int ret = 0;
    if (from >= to)
        return zero_write(b, offset, len, err);
    if (from > offset)
        ret = zero_write(b, offset, from - offset, err);
    while (!ret && from < to) {
        uint64_t n = RHEA_MIN(to - from, most);
        ret = zero_piece(b, from, n, punch, err);
        from += n;
    }
    if (!ret && to < end)
        ret = zero_write(b, to, end - to, err);
    return ret;
}

/* In pieces that end at multiples of what is best, so that storages below that
 * give back whole clusters only can. Blocks that are not whole are kept. */
int blkdebug_discard(struct rhea_storage *s, uint64_t offset, uint64_t len,
                     struct rhea_error *err)
{
    struct blkdebug *b = (struct blkdebug *)s;
    uint64_t align = RHEA_MAX(b->align, 1);
    uint64_t unit = RHEA_MAX(align, b->opt_discard);
    uint64_t most = b->max_discard ? b->max_discard : UINT64_MAX;
    uint64_t end = align_down(offset + len, align);
    int ret = 0;
    offset = align_up(offset, align);
    while (!ret && offset < end) {
        uint64_t n = RHEA_MIN(end - offset, most);
        if (offset % unit)
            n = RHEA_MIN(n, unit - offset % unit);
        else if (n > unit)
            n -= n % unit;
        struct blkdebug_flight f = {.start = offset, .end = offset + n};
        flight_begin(b, &f);
        ret = blkdebug_check(b, BLKDEBUG_DISCARD, offset, n, err);
        if (!ret)
            ret = rhea_storage_discard(b->w.inner, offset, n, err);
        flight_end(b, &f);
        offset += n;
    }
    return ret;
}
