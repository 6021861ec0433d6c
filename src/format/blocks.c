/* SPDX-License-Identifier: MIT */
#include "format/blocks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum { COPY_BYTES = 1 << 20 };

void blocks_init(struct blocks *b, const struct blocks_ops *ops,
                 struct rhea_format *format)
{
    *b = (struct blocks){
        .ops = ops,
        .format = format,
        .storage = format->storage,
    };
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->landed, NULL);
}

void blocks_finish(struct blocks *b)
{
    pthread_cond_destroy(&b->landed);
    pthread_mutex_destroy(&b->lock);
}

static int blocks_check_failed(const struct blocks *b, struct rhea_error *err)
{
    return b->failed ? rhea_error_set(err, EIO,
                                      "an earlier write to the image failed, "
                                      "and its state is not known")
                     : 0;
}

/* --- Room --- */

int blocks_extend(struct blocks *b, uint64_t bytes, uint64_t *host,
                  struct rhea_error *err)
{
    uint64_t end;
    if (!add_u64(b->file_end, bytes, &end) || end > INT64_MAX)
        return rhea_error_set(err, EFBIG, "the image file would be too large");
    *host = b->file_end;
    b->file_end = end;
    return 0;
}

int blocks_grow(struct blocks *b, struct rhea_error *err)
{
    if (b->grown >= b->file_end)
        return 0;
    int ret = rhea_storage_truncate(b->storage, b->file_end, err);
    if (!ret)
        b->grown = b->file_end;
    return ret;
}

int blocks_begin(struct blocks *b, struct rhea_error *err)
{
    int ret = blocks_check_failed(b, err);
    if (ret || b->grown)
        return ret;
    uint64_t size;
    ret = rhea_storage_size(b->storage, &size, err);
    if (!ret && size != b->file_end)
        ret = rhea_storage_truncate(b->storage, b->file_end, err);
    if (ret)
        return ret;
    if (b->ops->begin) {
        ret = b->ops->begin(b, err);
        b->failed = ret;
    }
    if (!ret)
        b->grown = b->file_end;
    return ret;
}

/* With the lock held: all that was written becomes durable. */
static int blocks_write_back(struct blocks *b, struct rhea_error *err)
{
    int ret = blocks_check_failed(b, err);
    if (ret)
        return ret;
    ret = b->ops->write_back(b, err);
    if (!ret)
        ret = rhea_storage_flush(b->storage, err);
    b->failed = ret;
    return ret;
}

int blocks_change_begin(struct blocks *b, struct rhea_error *err)
{
    if (!b->writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    while (b->flights)
        pthread_cond_wait(&b->landed, &b->lock);
    return blocks_write_back(b, err);
}

int blocks_change_end(struct blocks *b, int ret, struct rhea_error *err)
{
    if (!ret)
        ret = rhea_storage_flush(b->storage, err);
    b->failed |= ret != 0;
    return ret;
}

/* --- Writes in flight --- */

static bool flight_overlaps(const struct blocks *b, uint64_t first,
                            uint64_t last)
{
    for (const struct blocks_flight *f = b->flights; f; f = f->next)
        if (first <= f->last && f->first <= last)
            return true;
    return false;
}

void blocks_flight_end(struct blocks *b, struct blocks_flight *flight)
{
    struct blocks_flight **at = &b->flights;
    while (*at != flight)
        at = &(*at)->next;
    *at = flight->next;
    pthread_cond_broadcast(&b->landed);
}

bool blocks_flight_begin(struct blocks *b, struct blocks_flight *flight,
                         uint64_t first, uint64_t last)
{
    if (flight_overlaps(b, first, last)) {
        pthread_cond_wait(&b->landed, &b->lock);
        return false;
    }
    *flight = (struct blocks_flight){first, last, b->flights};
    b->flights = flight;
    return true;
}

/* --- Writing --- */

static bool write_is_zero(const uint8_t *p, size_t len)
{
    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

/* What the guest writes. */
struct blocks_bytes {
    const uint8_t *buf;        /* NULL: */
    struct rhea_storage *from; /* what it has at from_offset; NULL: zeroes */
    uint64_t from_offset;
};

/* Guest bytes that have to be where they are not yet. */
struct blocks_write {
    struct blocks_piece piece;
    uint64_t offset; /* where the guest writes them */
    struct blocks_bytes bytes;
    uint64_t len;
    enum rhea_extent_kind kind; /* what was there, and so is around it:
                                   UNALLOCATED, ZERO or COMPRESSED */
};

static uint64_t write_host(const struct blocks *b, const struct blocks_write *w,
                           uint64_t offset)
{
    return w->piece.host + (offset - w->piece.block * b->block_size);
}

static int write_put(struct blocks *b, uint64_t offset, uint64_t host,
                     const void *buf, size_t len, struct rhea_error *err)
{
    return b->ops->put ? b->ops->put(b, offset, host, buf, len, err)
                       : rhea_storage_write(b->storage, buf, len, host, err);
}

static int write_put_bytes(struct blocks *b, uint64_t offset, uint64_t host,
                           const struct blocks_bytes *bytes, uint64_t len,
                           struct rhea_error *err)
{
    rhea_storage_event(b->storage, "write_aio");
    if (bytes->buf)
        return write_put(b, offset, host, bytes->buf, (size_t)len, err);
    return rhea_storage_clone(b->storage, host, bytes->from, bytes->from_offset,
                              len, err);
}

static bool bytes_are_zero(const struct blocks_bytes *bytes)
{
    return !bytes->buf && !bytes->from;
}

/* A place that was handed out just now holds zeroes. */
static bool write_is_blank(const struct blocks *b, const struct blocks_write *w)
{
    return w->piece.fresh && !b->ops->put;
}

/* What the guest saw before. */
static int write_read_old(const struct blocks *b, const struct blocks_write *w,
                          uint64_t offset, uint8_t *buf, size_t len,
                          struct rhea_error *err)
{
    struct rhea_format *f = b->format;
    size_t inside =
        offset < b->size ? (size_t)RHEA_MIN(len, b->size - offset) : 0;
    bool below = w->kind == RHEA_EXTENT_UNALLOCATED && f->below;
    if (!below && w->kind != RHEA_EXTENT_COMPRESSED)
        inside = 0;
    memset(buf + inside, 0, len - inside);
    if (!inside)
        return 0;
    return below
               ? f->below(f->below_opaque, b->start + offset, buf, inside, err)
               : f->ops->read(f, b->start + offset, buf, inside, err);
}

/* Guest bytes [OFFSET, END), which the guest does not write, next to those it
 * does. Without the lock. */
static int write_around(struct blocks *b, const struct blocks_write *w,
                        uint64_t offset, uint64_t end, struct rhea_error *err)
{
    bool blank = write_is_blank(b, w);
    bool old = w->kind == RHEA_EXTENT_COMPRESSED ||
               (w->kind == RHEA_EXTENT_UNALLOCATED && b->format->below);
    if (offset >= end || (blank && !old))
        return 0;
    size_t piece = (size_t)RHEA_MIN(end - offset, COPY_BYTES);
    RHEA_AUTO_FREE uint8_t *buf = malloc(piece);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (offset < end) {
        size_t n = (size_t)RHEA_MIN(end - offset, piece);
        int ret = write_read_old(b, w, offset, buf, n, err);
        rhea_storage_event(b->storage, "cow_write");
        if (!ret && !(blank && write_is_zero(buf, n)))
            ret = write_put(b, offset, write_host(b, w, offset), buf, n, err);
        if (ret)
            return ret;
        offset += n;
    }
    return 0;
}

/* LEN zeroes of the guest's at OFFSET, at HOST. */
static int write_put_zeroes(struct blocks *b, uint64_t offset, uint64_t host,
                            uint64_t len, bool punch, struct rhea_error *err)
{
    if (!b->ops->put)
        return rhea_storage_zero(b->storage, host, len, punch, err);
    size_t piece = (size_t)RHEA_MIN(len, COPY_BYTES);
    RHEA_AUTO_FREE void *zeroes = calloc(1, piece);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t at = 0; at < len && !ret; at += piece) {
        size_t n = (size_t)RHEA_MIN(len - at, piece);
        ret = write_put(b, offset + at, host + at, zeroes, n, err);
    }
    return ret;
}

/* Whole units, up to the end of the blocks they are in. */
static void write_choose_units(const struct blocks *b, struct blocks_write *w)
{
    uint64_t end = w->offset + w->len;
    uint64_t last = (w->piece.block + w->piece.count) * b->block_size;
    w->piece.offset = w->offset - w->offset % b->unit;
    w->piece.len =
        RHEA_MIN(div_up(end, b->unit) * b->unit, last) - w->piece.offset;
}

static int write_bytes(struct blocks *b, const struct blocks_write *w,
                       struct rhea_error *err)
{
    uint64_t end = w->offset + w->len;
    uint64_t host = write_host(b, w, w->offset);
    int ret = write_around(b, w, w->piece.offset, w->offset, err);
    if (!ret)
        ret = write_around(b, w, end, w->piece.offset + w->piece.len, err);
    if (!ret && !bytes_are_zero(&w->bytes))
        ret = write_put_bytes(b, w->offset, host, &w->bytes, w->len, err);
    else if (!ret && !write_is_blank(b, w))
        ret = write_put_zeroes(b, w->offset, host, w->len, false, err);
    return ret;
}

/* The bytes are in the file: let the tables know. With the lock held. */
static int write_link(struct blocks *b, struct blocks_write *w,
                      struct rhea_error *err)
{
    uint64_t end = w->piece.host + w->piece.count * b->block_size;
    int ret = 0;
    if (!bytes_are_zero(&w->bytes) &&
        write_host(b, w, w->offset + w->len) == end)
        b->grown = RHEA_MAX(b->grown, end);
    else if (b->grown < end)
        ret = blocks_grow(b, err);
    /* What the units hold past the image's end is nobody's. */
    w->piece.len = RHEA_MIN(w->piece.len, b->size - w->piece.offset);
    return ret ? ret : b->ops->link(b, &w->piece, err);
}

/* Enters and leaves with the lock held. */
static int write_new(struct blocks *b, struct blocks_write *w,
                     struct rhea_error *err)
{
    struct blocks_piece *p = &w->piece;
    int ret = blocks_begin(b, err);
    if (!ret && p->fresh)
        ret = b->ops->place
                  ? b->ops->place(b, p->block, &p->count, &p->host, err)
                  : blocks_extend(b, p->count * b->block_size, &p->host, err);
    if (ret)
        return ret;
    uint64_t end = (p->block + p->count) * b->block_size;
    w->len = RHEA_MIN(w->len, end - w->offset);
    write_choose_units(b, w);

    struct blocks_flight flight = {
        .first = p->block, .last = p->block + p->count - 1, .next = b->flights};
    /* It is off the list before this returns. */
    // cppcheck-suppress autoVariables
    b->flights = &flight;
    pthread_mutex_unlock(&b->lock);
    ret = write_bytes(b, w, err);
    pthread_mutex_lock(&b->lock);
    if (!ret)
        ret = write_link(b, w, err);
    blocks_flight_end(b, &flight);
    return ret;
}

/* What is not there yet, at OFFSET, X of the map. *DONE is how many bytes were
 * written, 0 after having waited. With the lock held. */
static int write_absent(struct blocks *b, uint64_t offset,
                        struct blocks_bytes bytes, const struct rhea_extent *x,
                        uint64_t *done, struct rhea_error *err)
{
    bool has_place = x->has_host && x->kind != RHEA_EXTENT_COMPRESSED;
    uint64_t first = offset / b->block_size;
    uint64_t last = (offset + x->length - 1) / b->block_size;
    *done = 0;
    if (has_place || x->kind == RHEA_EXTENT_COMPRESSED)
        last = first;
    if (flight_overlaps(b, first, last)) {
        pthread_cond_wait(&b->landed, &b->lock);
        return 0;
    }
    uint64_t end = RHEA_MIN(offset + x->length, (last + 1) * b->block_size);
    struct blocks_write w = {
        .piece = {.block = first,
                  .count = last - first + 1,
                  .host = has_place ? x->host - (offset - first * b->block_size)
                                    : 0,
                  .fresh = !has_place},
        .offset = offset,
        .bytes = bytes,
        .len = end - offset,
        .kind = x->kind,
    };
    int ret = write_new(b, &w, err);
    *done = w.len;
    return ret;
}

static bool blocks_is_there(const struct rhea_extent *x)
{
    return x->kind == RHEA_EXTENT_DATA || x->kind == RHEA_EXTENT_ENCRYPTED;
}

static int write_some(struct blocks *b, uint64_t offset,
                      struct blocks_bytes bytes, uint64_t len, uint64_t *done,
                      struct rhea_error *err)
{
    struct rhea_extent x = {0};
    *done = 0;
    pthread_mutex_lock(&b->lock);
    int ret = b->ops->map(b, offset, len, &x, err);
    if (!ret && blocks_is_there(&x)) {
        ret = blocks_begin(b, err);
        pthread_mutex_unlock(&b->lock);
        if (!ret)
            ret = write_put_bytes(b, offset, x.host, &bytes, x.length, err);
        *done = x.length;
        return ret;
    }
    if (!ret)
        ret = write_absent(b, offset, bytes, &x, done, err);
    pthread_mutex_unlock(&b->lock);
    return ret;
}

static int blocks_check_range(const struct blocks *b, uint64_t offset,
                              uint64_t len, struct rhea_error *err)
{
    if (!b->writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (!range_inside(offset, len, b->size))
        return rhea_error_set(err, EINVAL,
                              "cannot write %" PRIu64
                              " bytes at guest offset %" PRIu64
                              ": past the end of the image",
                              len, b->start + offset);
    return 0;
}

static int write_all(struct blocks *b, uint64_t offset,
                     struct blocks_bytes bytes, uint64_t len,
                     struct rhea_error *err)
{
    int ret = blocks_check_range(b, offset, len, err);
    while (!ret && len) {
        uint64_t done;
        ret = write_some(b, offset, bytes, len, &done, err);
        bytes.buf = bytes.buf ? bytes.buf + done : NULL;
        bytes.from_offset += done;
        offset += done;
        len -= done;
    }
    return ret;
}

int blocks_write(struct blocks *b, uint64_t offset, const void *buf, size_t len,
                 struct rhea_error *err)
{
    return write_all(b, offset, (struct blocks_bytes){.buf = buf}, len, err);
}

int blocks_clone(struct blocks *b, uint64_t offset, struct rhea_storage *from,
                 uint64_t from_offset, uint64_t len, struct rhea_error *err)
{
    struct blocks_bytes bytes = {.from = from, .from_offset = from_offset};
    if (b->ops->put)
        return rhea_error_set(err, ENOTSUP,
                              "an encrypted image shares no blocks");
    /* Asked first: what has got a place is filled then. */
    int ret = rhea_storage_clone(b->storage, 0, from, from_offset, 0, err);
    return ret ? ret : write_all(b, offset, bytes, len, err);
}

/* --- Zeroes --- */

/* What has no place, at OFFSET, X of the map, and would show something; nothing
 * of it is in flight. Whole blocks are marked where the format can; the last
 * one of the image may be a part of one. *DONE as for write_absent. */
static int zero_absent(struct blocks *b, uint64_t offset, struct rhea_extent *x,
                       uint64_t *done, struct rhea_error *err)
{
    uint64_t skip = offset % b->block_size;
    uint64_t count = x->length / b->block_size;
    if (offset + x->length == b->size)
        count = div_up(x->length, b->block_size);
    if (!b->ops->zero || x->has_host)
        return write_absent(b, offset, (struct blocks_bytes){0}, x, done, err);
    if (skip || !count) {
        x->length = RHEA_MIN(x->length, b->block_size - skip);
        return write_absent(b, offset, (struct blocks_bytes){0}, x, done, err);
    }
    int ret = blocks_begin(b, err);
    if (!ret)
        ret = b->ops->zero(b, offset / b->block_size, &count, err);
    *done = RHEA_MIN(x->length, count * b->block_size);
    return ret;
}

/* *DONE is how many bytes were seen to, 0 after having waited: a write in
 * flight may have found its block empty, too. Leaves without the lock. */
static int zero_some(struct blocks *b, uint64_t offset, uint64_t len,
                     bool unmap, uint64_t *done, struct rhea_error *err)
{
    struct rhea_extent x = {0};
    *done = 0;
    pthread_mutex_lock(&b->lock);
    int ret = b->ops->map(b, offset, len, &x, err);
    if (!ret && blocks_is_there(&x)) {
        ret = blocks_begin(b, err);
        pthread_mutex_unlock(&b->lock);
        /* A block keeps its place: it could not be used again. */
        if (!ret)
            ret = write_put_zeroes(b, offset, x.host, x.length, unmap, err);
        *done = x.length;
        return ret;
    }
    uint64_t last = (offset + x.length - 1) / b->block_size;
    if (!ret && flight_overlaps(b, offset / b->block_size, last))
        pthread_cond_wait(&b->landed, &b->lock);
    else if (x.kind == RHEA_EXTENT_ZERO ||
             (x.kind == RHEA_EXTENT_UNALLOCATED && !b->child))
        *done = x.length;
    else if (!ret)
        ret = zero_absent(b, offset, &x, done, err);
    pthread_mutex_unlock(&b->lock);
    return ret;
}

int blocks_write_zeroes(struct blocks *b, uint64_t offset, uint64_t len,
                        bool unmap, struct rhea_error *err)
{
    int ret = blocks_check_range(b, offset, len, err);
    while (!ret && len) {
        uint64_t done;
        ret = zero_some(b, offset, len, unmap, &done, err);
        offset += done;
        len -= done;
    }
    return ret;
}

int blocks_map(struct blocks *b, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err)
{
    if (offset >= b->size || len == 0)
        return rhea_error_set(err, EINVAL,
                              "guest offset %" PRIu64
                              " lies past the end of the image",
                              b->start + offset);
    RHEA_LOCKED(&b->lock);
    return b->ops->map(b, offset, RHEA_MIN(len, b->size - offset), extent, err);
}

int blocks_hide(struct blocks *b, uint64_t from, uint64_t end, bool hide_below,
                struct rhea_error *err)
{
    while (from < end) {
        struct rhea_extent x = {0};
        int ret = blocks_map(b, from, end - from, &x, err);
        bool shows = x.kind == RHEA_EXTENT_UNALLOCATED
                         ? hide_below
                         : x.kind != RHEA_EXTENT_ZERO;
        if (!ret && shows)
            ret = blocks_write_zeroes(b, from, x.length, false, err);
        if (ret)
            return ret;
        from += x.length;
    }
    return blocks_flush(b, err);
}

int blocks_flush(struct blocks *b, struct rhea_error *err)
{
    RHEA_LOCKED(&b->lock);
    return blocks_write_back(b, err);
}
