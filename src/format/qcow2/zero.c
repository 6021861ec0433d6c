/* SPDX-License-Identifier: MIT */
/*
 * Zeroes and discards. Whole clusters (subclusters) become so by their entries
 * alone; the ends of the range are written as data where they are not zero
 * already. Version 2 knows no zero clusters: without a backing file they are
 * unmapped, with one zeroes are written.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

/* Zeroes written as data at a time. */
#define ZERO_PIECE (1U << 20)

/* Make [offset, end) zero by writing, unless it is. */
static int zero_write(struct qcow2 *q, uint64_t offset, uint64_t end,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *buf = NULL;

    while (offset < end) {
        uint64_t n = RHEA_MIN(end - offset, ZERO_PIECE);
        bool zero;
        int r = qcow2_guest_zero(q, offset, n, &zero, err);

        if (r == 0 && !zero) {
            if (!buf)
                buf = calloc(1, ZERO_PIECE);
            if (!buf)
                return rhea_error_set(err, ENOMEM, "out of memory");
            r = qcow2_write(&q->f, offset, buf, n, err);
        }
        if (r < 0)
            return r;
        offset += n;
    }
    return 0;
}

/* What an entry becomes when all of its cluster is zero. */
static struct qcow2_entry zero_whole(const struct qcow2 *q,
                                     struct qcow2_entry old, bool unmap)
{
    bool keep = !unmap && !(old.entry & QCOW2_COMPRESSED) &&
                old.entry & QCOW2_COPIED && qcow2_entry_has_host(q, old.entry);

    if (!q->backing_file && !old.entry && !old.bitmap)
        return old;
    if (q->version < 3)
        return (struct qcow2_entry){0, 0};
    if (qcow2_extended(q))
        return (struct qcow2_entry){keep ? old.entry : 0, QCOW2_ALL_ZERO};
    return (struct qcow2_entry){(keep ? old.entry : 0) | QCOW2_ZERO, 0};
}

/* What it becomes when the subclusters of BITS (allocation bits) are zero. */
static struct qcow2_entry zero_part(struct qcow2_entry old, uint64_t bits)
{
    old.bitmap = (old.bitmap & ~bits) | bits << 32;
    return old;
}

static uint64_t zero_bits(const struct qcow2 *q, uint64_t cluster,
                          uint64_t offset, uint64_t end)
{
    uint64_t first = offset > cluster ? offset - cluster : 0;
    uint64_t last = RHEA_MIN(end - cluster, q->cluster_size);

    first >>= q->subcluster_bits;
    last >>= q->subcluster_bits;
    return ((1ULL << last) - 1) & ~((1ULL << first) - 1);
}

/* One entry; *AS_DATA where it cannot say what it should. */
static int zero_entry(struct qcow2 *q, struct qcow2_slice *slice,
                      unsigned index, uint64_t offset, uint64_t end, bool unmap,
                      bool *as_data, struct rhea_error *err)
{
    uint64_t cluster = align_down(offset, q->cluster_size);
    struct qcow2_entry old = qcow2_entry_get(q, slice, index), new;
    int r = qcow2_entry_check(q, offset, old, err);

    if (r < 0)
        return r;
    if (offset == cluster && end - cluster >= q->cluster_size) {
        new = zero_whole(q, old, unmap);
    } else if (old.entry & QCOW2_COMPRESSED) {
        *as_data = true;
        return 0;
    } else {
        new = zero_part(old, zero_bits(q, cluster, offset, end));
    }
    if (new.entry == old.entry &&new.bitmap == old.bitmap)
        return 0;
    qcow2_entry_set(q, slice, index, new);
    if ((new.entry &QCOW2_OFFSET_MASK) == (old.entry & QCOW2_OFFSET_MASK) &&
        !(old.entry & QCOW2_COMPRESSED))
        return 0;
    return qcow2_entry_release(q, old, unmap, err);
}

/* The part of [*offset, end) in one L2 slice; moves *OFFSET on. */
static int zero_slice(struct qcow2 *q, uint64_t *offset, uint64_t end,
                      bool unmap, struct rhea_error *err)
{
    uint64_t span = 1ULL << qcow2_l1_shift(q), at = *offset, limit;
    struct qcow2_slice *slice;
    bool as_data = false;
    unsigned index;
    int r = 0;

    pthread_mutex_lock(&q->lock);
    limit = (uint64_t)qcow2_slice_entries(q) << q->cluster_bits;
    limit = RHEA_MIN(end, align_down(at, limit) + limit);
    qcow2_flight_wait(q, align_down(at, q->cluster_size), limit);
    if (!q->backing_file &&
        !(q->l1[at >> qcow2_l1_shift(q)] & QCOW2_OFFSET_MASK)) {
        at = RHEA_MIN(end, align_down(at, span) + span);
        goto out;
    }
    r = qcow2_l2_get_writable(q, at, &slice, &index, err);
    while (r == 0 && at < limit) {
        r = zero_entry(q, slice, index++, at, limit, unmap, &as_data, err);
        if (as_data)
            break;
        at = RHEA_MIN(limit, align_down(at, q->cluster_size) + q->cluster_size);
    }
out:
    pthread_mutex_unlock(&q->lock);
    *offset = at;
    if (r == 0 && as_data) {
        *offset =
            RHEA_MIN(limit, align_down(at, q->cluster_size) + q->cluster_size);
        r = zero_write(q, at, RHEA_MIN(*offset, q->f.size), err);
    }
    return r;
}

static int zero_begin(struct qcow2 *q, uint64_t offset, uint64_t end,
                      struct rhea_error *err)
{
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_write_begin(q, err);
    return r == 0 ? qcow2_bitmaps_touch(q, offset, end, err) : r;
}

int qcow2_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                       bool unmap, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    uint64_t unit = 1ULL << q->subcluster_bits, end = offset + len, from, to;
    uint64_t start;
    int r;

    if (!range_inside(offset, len, f->size))
        return rhea_error_set(err, EINVAL,
                              "%" PRIu64 " bytes at guest offset 0x%" PRIx64
                              " are not inside the image",
                              len, offset);
    if (!len)
        return 0;
    r = zero_begin(q, offset, end, err);
    if (r < 0)
        return r;
    /* Its data file is to be what the guest sees. */
    if (qcow2_raw_data(q))
        return rhea_storage_zero(q->guest, offset, len, unmap, err);
    if (q->version < 3 && q->backing_file)
        return zero_write(q, offset, end, err);
    from = align_up(offset, unit);
    to = end == f->size ? align_up(end, unit) : align_down(end, unit);
    if (from >= to)
        return zero_write(q, offset, end, err);
    r = zero_write(q, offset, from, err);
    /* The image's last cluster is whole to its entry. */
    if (r == 0 && end == f->size)
        to = align_up(end, q->cluster_size);
    start = from;
    while (r == 0 && from < to)
        r = zero_slice(q, &from, to, unmap, err);
    /* What the tables do not lead to any more, or after a crash lead to again:
     * zeroes by right in both cases. What cannot be punched stays. */
    if (r == 0 && unmap && qcow2_external(q))
        (void)rhea_storage_zero(q->guest, start, RHEA_MIN(to, end) - start,
                                true, NULL);
    if (r == 0 && to < end)
        r = zero_write(q, to, end, err);
    return r;
}

/* Only whole clusters can be given back. Version 2 could not keep the backing
 * file from showing through. */
int qcow2_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                  struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    uint64_t end = offset + len, from = align_up(offset, q->cluster_size);

    if (q->version < 3 && q->backing_file)
        return 0;
    if (end < f->size)
        end = align_down(end, q->cluster_size);
    return from < end ? qcow2_write_zeroes(f, from, end - from, true, err) : 0;
}
