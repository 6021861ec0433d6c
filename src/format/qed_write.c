/* SPDX-License-Identifier: MIT */
/*
 * The guest's writes.
 *
 * An allocated cluster is written where it is. What is not allocated goes to
 * the end of the file, in this order:
 *   1. NEED_CHECK is set in the header; flush (once, see write_begin);
 *   2. the new clusters are written whole: the guest's bytes, and around them
 *      what lies below;
 *   3. their entries are put into the cache of tables, which flushes before it
 *      writes them (qed_table.c);
 *   4. on close, after all that and a flush, NEED_CHECK is cleared; flush.
 *
 * The end of the file: FILE_SIZE counts what was handed out. What a file holds
 * past its last whole cluster belongs to nobody (spec, introduction) and is cut
 * off before the first allocation, so that new clusters begin as zeroes.
 * Clusters whose write failed stay unused: later ones may lie behind them.
 *
 * Two writes must not both allocate the same cluster: a write in flight is on
 * a list, and who wants one of its clusters waits until it has landed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/qed.h"

enum { COPY_BYTES = 1 << 20 };

int qed_write_features(struct qed *q, struct rhea_error *err)
{
    uint8_t words[QED_H_L1_OFFSET - QED_H_FEATURES];
    store_le64(words, q->features);
    store_le64(words + (QED_H_COMPAT - QED_H_FEATURES), q->compat);
    store_le64(words + (QED_H_AUTOCLEAR - QED_H_FEATURES), q->autoclear);
    return rhea_storage_write(q->base.storage, words, sizeof(words),
                              QED_H_FEATURES, err);
}

/* Before the first change of a table. With the lock held. */
static int write_begin(struct qed *q, struct rhea_error *err)
{
    if (q->failed)
        return rhea_error_set(err, EIO,
                              "an earlier write to the image failed, and its "
                              "state is not known");
    if (q->grown)
        return 0;

    uint64_t size;
    int ret = rhea_storage_size(q->base.storage, &size, err);
    if (!ret && size != q->file_size)
        ret = rhea_storage_truncate(q->base.storage, q->file_size, err);
    if (ret)
        return ret;
    if (!(q->features & QED_F_NEED_CHECK) || q->autoclear) {
        bool was_set = q->features & QED_F_NEED_CHECK;
        q->features |= QED_F_NEED_CHECK;
        q->autoclear = 0;
        ret = qed_write_features(q, err);
        if (!ret)
            ret = rhea_storage_flush(q->base.storage, err);
        if (ret) {
            q->failed = true;
            return ret;
        }
        q->clear_flag |= !was_set;
    }
    q->grown = q->file_size;
    return 0;
}

/* Hand out BYTES, whole clusters, at the end of the file. */
static int write_allocate(struct qed *q, uint64_t bytes, uint64_t *host,
                          struct rhea_error *err)
{
    uint64_t end;
    if (!add_u64(q->file_size, bytes, &end) || end > INT64_MAX)
        return rhea_error_set(err, EFBIG, "the image file would be too large");
    *host = q->file_size;
    q->file_size = end;
    return 0;
}

/* See to it that a guest cluster has an L2 table. A new one is zeroes already:
 * it lies where the file had ended. */
static int write_need_table(struct qed *q, uint64_t cluster,
                            struct rhea_error *err)
{
    uint64_t table;
    int ret = qed_l1_get(q, cluster, &table, err);
    if (ret || table)
        return ret;
    ret = write_allocate(q, q->table_bytes, &table, err);
    if (!ret)
        ret = rhea_storage_truncate(q->base.storage, q->file_size, err);
    if (ret)
        return ret;
    q->grown = q->file_size;
    return qed_l1_set(q, cluster, table, err);
}

static bool flight_overlaps(const struct qed *q, uint64_t first, uint64_t last)
{
    for (const struct qed_flight *f = q->flights; f; f = f->next)
        if (first <= f->last && f->first <= last)
            return true;
    return false;
}

static void flight_land(struct qed *q, struct qed_flight *flight)
{
    struct qed_flight **at = &q->flights;
    while (*at != flight)
        at = &(*at)->next;
    *at = flight->next;
    pthread_cond_broadcast(&q->landed);
}

static bool write_is_zero(const uint8_t *p, size_t len)
{
    return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

/* Bring LEN guest bytes from below to HOST. Without the lock. Both sides of
 * what a write covers are less than a cluster; the new cluster is zeroes. */
static int write_copy_below(struct qed *q, uint64_t offset, uint64_t len,
                            uint64_t host, struct rhea_error *err)
{
    if (!q->base.below || offset >= q->base.size)
        return 0;
    len = RHEA_MIN(len, q->base.size - offset);
    if (len == 0)
        return 0;
    size_t piece = (size_t)RHEA_MIN(len, COPY_BYTES);
    RHEA_AUTO_FREE uint8_t *buf = malloc(piece);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, piece);
        int ret = q->base.below(q->base.below_opaque, offset, buf, n, err);
        rhea_storage_event(q->base.storage, "cow_write");
        if (!ret && !write_is_zero(buf, n))
            ret = rhea_storage_write(q->base.storage, buf, n, host, err);
        if (ret)
            return ret;
        offset += n;
        host += n;
        len -= n;
    }
    return 0;
}

/* One allocating write: LEN bytes at OFFSET, whose clusters have no place yet
 * and lie in one slice of one table. */
struct qed_alloc {
    uint64_t offset;
    const uint8_t *buf;
    size_t len;
    bool below; /* else zeroes surround it */
    uint64_t cluster, count, host;
};

static int write_new_clusters(struct qed *q, const struct qed_alloc *a,
                              struct rhea_error *err)
{
    uint64_t start = a->cluster << q->cluster_bits;
    uint64_t skip = a->offset - start;
    uint64_t end = a->offset + a->len;
    uint64_t bytes = a->count << q->cluster_bits;
    int ret = 0;
    if (a->below) {
        ret = write_copy_below(q, start, skip, a->host, err);
        if (!ret)
            ret = write_copy_below(q, end, start + bytes - end,
                                   a->host + skip + a->len, err);
    }
    rhea_storage_event(q->base.storage, "write_aio");
    if (!ret)
        ret = rhea_storage_write(q->base.storage, a->buf, a->len,
                                 a->host + skip, err);
    return ret;
}

/* The data is in the file: let the tables know. With the lock held. */
static int write_link(struct qed *q, const struct qed_alloc *a,
                      struct rhea_error *err)
{
    uint64_t end = a->host + (a->count << q->cluster_bits);
    bool whole = a->host + (a->offset & (q->cluster_size - 1)) + a->len == end;
    int ret = 0;
    if (whole) {
        q->grown = RHEA_MAX(q->grown, end);
    } else if (q->grown < end) {
        ret = rhea_storage_truncate(q->base.storage, q->file_size, err);
        if (!ret)
            q->grown = q->file_size;
    }
    if (!ret)
        ret =
            qed_l2_set(q, a->cluster, a->count, a->host, q->cluster_size, err);
    return ret;
}

/* Enters and leaves with the lock held. */
static int write_allocating(struct qed *q, struct qed_alloc *a,
                            struct rhea_error *err)
{
    int ret = write_begin(q, err);
    if (!ret)
        ret = write_need_table(q, a->cluster, err);
    if (!ret)
        ret = write_allocate(q, a->count << q->cluster_bits, &a->host, err);
    if (ret)
        return ret;

    struct qed_flight flight = {.first = a->cluster,
                                .last = a->cluster + a->count - 1,
                                .next = q->flights};
    /* It is off the list before this returns. */
    // cppcheck-suppress autoVariables
    q->flights = &flight;
    pthread_mutex_unlock(&q->lock);
    ret = write_new_clusters(q, a, err);
    pthread_mutex_lock(&q->lock);
    if (!ret)
        ret = write_link(q, a, err);
    flight_land(q, &flight);
    return ret;
}

/* Where the clusters from CLUSTER on stop to be in one slice. */
static uint64_t write_slice_left(const struct qed *q, uint64_t cluster)
{
    return q->slice_entries - cluster % q->slice_entries;
}

/* Write what can be written in one go; *DONE is how much that was. */
static int write_some(struct qed *q, uint64_t offset, const uint8_t *buf,
                      size_t len, size_t *done, struct rhea_error *err)
{
    struct rhea_extent x = {0};
    *done = 0;
    pthread_mutex_lock(&q->lock);
    int ret = qed_map_locked(q, offset, len, &x, err);
    if (ret || x.kind == RHEA_EXTENT_DATA) {
        pthread_mutex_unlock(&q->lock);
        rhea_storage_event(q->base.storage, "write_aio");
        if (!ret)
            ret = rhea_storage_write(q->base.storage, buf, (size_t)x.length,
                                     x.host, err);
        *done = (size_t)x.length;
        return ret;
    }

    uint64_t first = offset >> q->cluster_bits;
    uint64_t last = (offset + x.length - 1) >> q->cluster_bits;
    last = RHEA_MIN(last, first + write_slice_left(q, first) - 1);
    if (flight_overlaps(q, first, last)) {
        pthread_cond_wait(&q->landed, &q->lock);
    } else {
        uint64_t end =
            RHEA_MIN(offset + x.length, (last + 1) << q->cluster_bits);
        struct qed_alloc a = {
            .offset = offset,
            .buf = buf,
            .len = (size_t)(end - offset),
            .below = x.kind == RHEA_EXTENT_UNALLOCATED,
            .cluster = first,
            .count = last - first + 1,
        };
        ret = write_allocating(q, &a, err);
        *done = a.len;
    }
    pthread_mutex_unlock(&q->lock);
    return ret;
}

static int write_check_range(struct qed *q, uint64_t offset, uint64_t len,
                             struct rhea_error *err)
{
    if (!q->writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (!range_inside(offset, len, q->base.size))
        return rhea_error_set(err, EINVAL,
                              "cannot write %" PRIu64
                              " bytes at guest offset %" PRIu64
                              ": past the end of the image",
                              len, offset);
    return 0;
}

int qed_write(struct rhea_format *f, uint64_t offset, const void *buf,
              size_t len, struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    const uint8_t *p = buf;
    int ret = write_check_range(q, offset, len, err);
    while (!ret && len) {
        size_t done;
        ret = write_some(q, offset, p, len, &done, err);
        p += done;
        offset += done;
        len -= done;
    }
    return ret;
}

/* Zeroes over a part of a cluster that has no place and something below. */
static int zero_by_writing(struct qed *q, uint64_t offset, uint64_t len,
                           struct rhea_error *err)
{
    size_t piece = (size_t)RHEA_MIN(len, COPY_BYTES);
    RHEA_AUTO_FREE void *zeroes = calloc(1, piece);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, piece);
        int ret = qed_write(&q->base, offset, zeroes, n, err);
        if (ret)
            return ret;
        offset += n;
        len -= n;
    }
    return 0;
}

/* Whole clusters from FIRST on, not allocated, become zero clusters. *COUNT is
 * how many, 0 after having waited. With the lock held. */
static int zero_mark(struct qed *q, uint64_t first, uint64_t *count,
                     struct rhea_error *err)
{
    *count = RHEA_MIN(*count, write_slice_left(q, first));
    if (flight_overlaps(q, first, first + *count - 1)) {
        pthread_cond_wait(&q->landed, &q->lock);
        *count = 0;
        return 0;
    }
    int ret = write_begin(q, err);
    if (!ret)
        ret = write_need_table(q, first, err);
    if (!ret)
        ret = qed_l2_set(q, first, *count, QED_ZERO, 0, err);
    return ret;
}

/* LEN unallocated guest bytes from OFFSET on; *DONE is how many were seen to.
 * Enters with the lock held, leaves without. */
static int zero_unallocated(struct qed *q, uint64_t offset, uint64_t len,
                            uint64_t *done, struct rhea_error *err)
{
    uint64_t skip = offset & (q->cluster_size - 1);
    uint64_t count = len >> q->cluster_bits;
    /* The last cluster of the image may be a part of one. */
    if (offset + len == q->base.size)
        count = div_up(len, q->cluster_size);

    int ret = 0;
    if (skip == 0 && count) {
        ret = zero_mark(q, offset >> q->cluster_bits, &count, err);
        pthread_mutex_unlock(&q->lock);
        *done = RHEA_MIN(len, count << q->cluster_bits);
        return ret;
    }
    pthread_mutex_unlock(&q->lock);
    *done = RHEA_MIN(len, q->cluster_size - skip);
    return zero_by_writing(q, offset, *done, err);
}

static int zero_some(struct qed *q, uint64_t offset, uint64_t len, bool unmap,
                     uint64_t *done, struct rhea_error *err)
{
    struct rhea_extent x = {0};
    pthread_mutex_lock(&q->lock);
    int ret = qed_map_locked(q, offset, len, &x, err);
    /* A write in flight may have found the cluster empty, too. */
    bool wait = false;
    if (!ret && x.kind != RHEA_EXTENT_DATA) {
        uint64_t first = offset >> q->cluster_bits;
        uint64_t last = (offset + x.length - 1) >> q->cluster_bits;
        wait = flight_overlaps(q, first, last);
    }
    if (wait) {
        pthread_cond_wait(&q->landed, &q->lock);
        pthread_mutex_unlock(&q->lock);
        *done = 0;
        return 0;
    }
    if (!ret && x.kind == RHEA_EXTENT_UNALLOCATED &&
        (q->features & QED_F_BACKING_FILE))
        return zero_unallocated(q, offset, x.length, done, err);
    pthread_mutex_unlock(&q->lock);
    *done = x.length;
    /* An allocated cluster keeps its place: QED could not use it again. */
    if (!ret && x.kind == RHEA_EXTENT_DATA)
        ret = rhea_storage_zero(q->base.storage, x.host, x.length, unmap, err);
    return ret;
}

int qed_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                     bool unmap, struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    int ret = write_check_range(q, offset, len, err);
    while (!ret && len) {
        uint64_t done = 0;
        ret = zero_some(q, offset, len, unmap, &done, err);
        offset += done;
        len -= done;
    }
    return ret;
}

int qed_flush(struct rhea_format *f, struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    RHEA_LOCKED(&q->lock);
    if (q->failed)
        return rhea_error_set(err, EIO,
                              "an earlier write to the image failed, and its "
                              "state is not known");
    int ret = qed_write_back(q, err);
    if (!ret) {
        ret = rhea_storage_flush(f->storage, err);
        if (ret)
            q->failed = true;
    }
    return ret;
}
