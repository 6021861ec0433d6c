/* SPDX-License-Identifier: MIT */
/*
 * An export of an NBD server. Every request waits for its reply; threads have
 * connections of their own where the server allows for several. A server that
 * wants whole blocks gets them: the rest of a block is read, and on writes
 * written back, by us.
 *
 * An export has a size for good. Requests that the server refuses, and replies
 * that are short or wrong, are errors. So is a lost connection, unless option
 * reconnect-delay gives the time for another: then the request is made again,
 * as in QEMU, whose word it is that the server has kept what was written.
 */
#include "storage/nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum {
    /* Of requests that carry no bytes: half of what 32 bits can tell. */
    NBD_SPAN = 1 << 30,
    NBD_ZEROES = 256 << 10,
};

static struct nbd *nbd_of(struct rhea_storage *s)
{
    return (struct nbd *)s;
}

static int nbd_fail_range(const struct nbd *n, const char *verb,
                          uint64_t offset, uint64_t len, struct rhea_error *err)
{
    char what[96];

    (void)snprintf(what, sizeof(what),
                   "could not %s %" PRIu64 " bytes at offset %" PRIu64, verb,
                   len, offset);
    return nbd_fail(n, what, err);
}

/* Whole blocks. */
static int nbd_read_blocks(struct nbd *n, void *buf, size_t len,
                           uint64_t offset, struct rhea_error *err)
{
    struct nbd_handle *h = nbd_take(n);
    int ret = 0;

    for (size_t at = 0; ret == 0 && at < len; at += n->largest) {
        size_t part = RHEA_MIN(len - at, n->largest);
        int64_t until = 0;

        while (ret == 0 &&
               n->lib->pread(h, (char *)buf + at, part, offset + at, 0) < 0)
            if (!nbd_renew(n, &h, &until))
                ret = nbd_fail_range(n, "read", offset + at, part, err);
    }
    nbd_put(n, h);
    return ret;
}

static int nbd_write_blocks(struct nbd *n, const void *buf, size_t len,
                            uint64_t offset, struct rhea_error *err)
{
    struct nbd_handle *h = nbd_take(n);
    int ret = 0;

    for (size_t at = 0; ret == 0 && at < len; at += n->largest) {
        size_t part = RHEA_MIN(len - at, n->largest);
        int64_t until = 0;

        while (ret == 0 && n->lib->pwrite(h, (const char *)buf + at, part,
                                          offset + at, 0) < 0)
            if (!nbd_renew(n, &h, &until))
                ret = nbd_fail_range(n, "write", offset + at, part, err);
    }
    nbd_put(n, h);
    return ret;
}

/* The block that holds OFFSET; the export's last may be a short one. */
static size_t nbd_block(const struct nbd *n, uint64_t offset, uint64_t *start)
{
    *start = align_down(offset, n->align);
    return (size_t)RHEA_MIN(n->align, n->size - *start);
}

static int nbd_read_edge(struct nbd *n, void *buf, size_t len, uint64_t offset,
                         struct rhea_error *err)
{
    uint64_t start;
    size_t size = nbd_block(n, offset, &start);
    RHEA_AUTO_FREE char *block = malloc(size);
    int ret;

    if (!block)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = nbd_read_blocks(n, block, size, start, err);
    if (ret == 0)
        memcpy(buf, block + (offset - start), len);
    return ret;
}

static int nbd_write_edge(struct nbd *n, const void *buf, size_t len,
                          uint64_t offset, struct rhea_error *err)
{
    uint64_t start;
    size_t size = nbd_block(n, offset, &start);
    RHEA_AUTO_FREE char *block = malloc(size);
    int ret;

    if (!block)
        return rhea_error_set(err, ENOMEM, "out of memory");
    RHEA_LOCKED(&n->edges);
    ret = nbd_read_blocks(n, block, size, start, err);
    if (ret < 0)
        return ret;
    memcpy(block + (offset - start), buf, len);
    return nbd_write_blocks(n, block, size, start, err);
}

/* How many bytes at OFFSET are one part of a block; 0: a block begins there,
 * and LEN has at least one. The export's last block ends with it. */
static size_t nbd_edge(const struct nbd *n, uint64_t offset, uint64_t len)
{
    uint64_t start;
    size_t size = nbd_block(n, offset, &start);

    if (offset == start && len >= size)
        return 0;
    return (size_t)RHEA_MIN(len, start + size - offset);
}

/* The whole blocks that [OFFSET, OFFSET + LEN), which has one, begins with. */
static uint64_t nbd_whole(const struct nbd *n, uint64_t offset, uint64_t len)
{
    return offset + len == n->size ? len : align_down(len, n->align);
}

static int64_t nbd_read(struct rhea_storage *s, void *buf, size_t len,
                        uint64_t offset, struct rhea_error *err)
{
    struct nbd *n = nbd_of(s);
    size_t done = 0;

    if (offset >= n->size)
        return 0;
    len = (size_t)RHEA_MIN(len, n->size - offset);
    while (done < len) {
        char *to = (char *)buf + done;
        size_t part = nbd_edge(n, offset + done, len - done);
        int ret;

        if (part) {
            ret = nbd_read_edge(n, to, part, offset + done, err);
        } else {
            part = (size_t)nbd_whole(n, offset + done, len - done);
            ret = nbd_read_blocks(n, to, part, offset + done, err);
        }
        if (ret < 0)
            return ret;
        done += part;
    }
    return (int64_t)len;
}

static int nbd_check_inside(const struct nbd *n, const char *verb,
                            uint64_t offset, uint64_t len,
                            struct rhea_error *err)
{
    if (range_inside(offset, len, n->size))
        return 0;
    return rhea_error_set(err, ENOSPC,
                          "cannot %s %" PRIu64 " bytes at offset %" PRIu64
                          " of '%s': the export has %" PRIu64
                          " bytes and cannot grow",
                          verb, len, offset, storage_name(&n->head), n->size);
}

static int nbd_write(struct rhea_storage *s, const void *buf, size_t len,
                     uint64_t offset, struct rhea_error *err)
{
    struct nbd *n = nbd_of(s);
    int ret = nbd_check_inside(n, "write", offset, len, err);

    for (size_t done = 0; ret == 0 && done < len;) {
        const char *from = (const char *)buf + done;
        size_t part = nbd_edge(n, offset + done, len - done);

        if (part) {
            ret = nbd_write_edge(n, from, part, offset + done, err);
        } else {
            part = (size_t)nbd_whole(n, offset + done, len - done);
            ret = nbd_write_blocks(n, from, part, offset + done, err);
        }
        done += part;
    }
    return ret;
}

static int nbd_sync(struct rhea_storage *s, struct rhea_error *err)
{
    struct nbd *n = nbd_of(s);
    struct nbd_handle *h;
    int64_t until = 0;
    int ret = 0;

    if (n->no_flush || !n->can_flush)
        return 0;
    h = nbd_take(n);
    while (ret == 0 && n->lib->flush(h, 0) < 0)
        if (!nbd_renew(n, &h, &until))
            ret = nbd_fail(n, "could not flush what was written", err);
    nbd_put(n, h);
    return ret;
}

static int nbd_size(struct rhea_storage *s, uint64_t *size,
                    struct rhea_error *err)
{
    (void)err;
    *size = nbd_of(s)->size;
    return 0;
}

static int nbd_truncate(struct rhea_storage *s, uint64_t size,
                        struct rhea_error *err)
{
    struct nbd *n = nbd_of(s);

    if (size == n->size)
        return 0;
    return rhea_error_set(err, EOPNOTSUPP,
                          "'%s' is an export of %" PRIu64
                          " bytes and cannot be resized",
                          storage_name(s), n->size);
}

static int nbd_zero_write(struct nbd *n, uint64_t offset, uint64_t len,
                          struct rhea_error *err)
{
    RHEA_AUTO_FREE void *zeroes = calloc(1, NBD_ZEROES);
    int ret = 0;

    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (ret == 0 && len) {
        size_t part = (size_t)RHEA_MIN(len, (uint64_t)NBD_ZEROES);

        ret = nbd_write(&n->head, zeroes, part, offset, err);
        offset += part;
        len -= part;
    }
    return ret;
}

static int nbd_zero_blocks(struct nbd *n, uint64_t offset, uint64_t len,
                           bool punch, struct rhea_error *err)
{
    struct nbd_handle *h = nbd_take(n);
    uint32_t flags = punch ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
    int ret = 0;

    while (ret == 0 && len) {
        uint64_t part = RHEA_MIN(len, (uint64_t)NBD_SPAN);
        int64_t until = 0;

        while (ret == 0 && n->lib->zero(h, part, offset, flags) < 0)
            if (!nbd_renew(n, &h, &until))
                ret = nbd_fail_range(n, "zero", offset, part, err);
        offset += part;
        len -= part;
    }
    nbd_put(n, h);
    return ret;
}

static int nbd_zero_range(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          bool punch, struct rhea_error *err)
{
    struct nbd *n = nbd_of(s);
    int ret = nbd_check_inside(n, "zero", offset, len, err);

    if (ret < 0)
        return ret;
    if (!n->can_zero)
        return nbd_zero_write(n, offset, len, err);
    while (ret == 0 && len) {
        uint64_t part = nbd_edge(n, offset, len);

        if (part) {
            ret = nbd_zero_write(n, offset, part, err);
        } else {
            part = nbd_whole(n, offset, len);
            ret = nbd_zero_blocks(n, offset, part, punch, err);
        }
        offset += part;
        len -= part;
    }
    return ret;
}

/* The server has no such request: writing must be tried. */
static int nbd_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                        struct rhea_error *err)
{
    return nbd_check_inside(nbd_of(s), "reserve", offset, len, err);
}

/* The one bit of QEMU's contexts "qemu:dirty-bitmap:NAME". */
enum { NBD_STATE_DIRTY = 1 };

/* What the server's reply says of the beginning of the range. */
struct nbd_status {
    const struct nbd *n;
    uint64_t offset, run;
    bool hole, ended;
};

static int nbd_see_extents(void *opaque, const char *context, uint64_t offset,
                           uint32_t *entries, size_t n_entries, int *error)
{
    struct nbd_status *status = opaque;
    const char *bitmap = status->n->bitmap;

    if (strcmp(context, bitmap ? bitmap : LIBNBD_CONTEXT_BASE_ALLOCATION) ||
        offset != status->offset || *error)
        return 0;
    for (size_t i = 0; i + 1 < n_entries && !status->ended; i += 2) {
        /* Only what reads as zeroes is of use: a hole need not. */
        bool hole =
            entries[i + 1] & (bitmap ? NBD_STATE_DIRTY : LIBNBD_STATE_ZERO);

        if (!status->run)
            status->hole = hole;
        if (hole == status->hole)
            status->run += entries[i];
        else
            status->ended = true;
    }
    return 0;
}

static int nbd_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                      bool *hole, uint64_t *run, struct rhea_error *err)
{
    struct nbd *n = nbd_of(s);
    uint64_t start = align_down(offset, n->align);
    uint64_t span = align_up(RHEA_MIN(len, (uint64_t)NBD_SPAN), n->align);
    struct nbd_status status = {.n = n, .offset = start};
    nbd_extent_callback see = {.callback = nbd_see_extents,
                               .user_data = &status};
    struct nbd_handle *h;
    int64_t until = 0;
    int ret = 0;

    *hole = false;
    *run = len;
    if (!n->has_status || offset >= n->size)
        return 0;
    span = RHEA_MIN(span + (offset - start), n->size - start);
    h = nbd_take(n);
    while (ret == 0 && n->lib->block_status(h, span, start, see, 0) < 0) {
        status = (struct nbd_status){.offset = start};
        if (!nbd_renew(n, &h, &until))
            ret = nbd_fail_range(n, "look at", offset, len, err);
    }
    nbd_put(n, h);
    if (ret < 0 || status.run <= offset - start)
        return ret; /* a reply that says nothing: it is data */
    *hole = status.hole;
    *run = RHEA_MIN(len, status.run - (offset - start));
    return 0;
}

static void nbd_finish(struct rhea_storage *s)
{
    struct nbd *n = nbd_of(s);

    nbd_disconnect(n);
    pthread_mutex_destroy(&n->lock);
    pthread_mutex_destroy(&n->edges);
    pthread_cond_destroy(&n->idle);
    free(n->path);
    free(n->host);
    free(n->port);
    free(n->export);
    free(n->bitmap);
    free(s->path);
    free(n);
}

const struct rhea_storage_ops nbd_storage_ops = {
    .name = "nbd",
    .pread = nbd_read,
    .pwrite = nbd_write,
    .flush = nbd_sync,
    .size = nbd_size,
    .truncate = nbd_truncate,
    .zero = nbd_zero_range,
    .allocate = nbd_allocate,
    .extent = nbd_extent,
    .close = nbd_finish,
};
