/* SPDX-License-Identifier: MIT */
/*
 * From guest offsets to extents (the spec, "Cluster mapping"). An entry that
 * makes no sense is an error and never silent garbage: QEMU ignores reserved
 * bits and reads clusters past the end of the file as zeroes, this driver does
 * neither. A last cluster cut short by the end of the file is fine; what lies
 * past the end reads as zeroes there.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

/* Slices that one call goes through to make a run longer. */
#define MAP_SLICES 128

bool qcow2_in_file(struct qcow2 *q, uint64_t host)
{
    uint64_t size;

    if (host < q->file_size)
        return true;
    /* Somebody may have made the file longer since it was asked. */
    if (rhea_storage_size(q->f.storage, &size, NULL) == 0)
        q->file_size = RHEA_MAX(q->file_size, size);
    return host < q->file_size;
}

bool qcow2_table_in_file(struct qcow2 *q, uint64_t host, uint64_t length)
{
    return !length ||
           qcow2_in_file(q, host + align_down(length - 1, q->cluster_size));
}

int qcow2_data_refuse(const struct qcow2 *q, struct rhea_error *err)
{
    if (!q->guest)
        return rhea_error_set(err, ENOTSUP,
                              "the image keeps its data in another file%s%s, "
                              "which is not open",
                              q->data_file ? ", " : "",
                              q->data_file ? q->data_file : "");
    return 0;
}

int qcow2_l1_entry_check(struct qcow2 *q, uint32_t index, uint64_t entry,
                         struct rhea_error *err)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_L1_RESERVED || !is_aligned(host, q->cluster_size))
        return rhea_error_set(
            err, EIO, "L1 entry %" PRIu32 ", 0x%" PRIx64 ", is damaged: %s",
            index, entry,
            entry & QCOW2_L1_RESERVED ? "reserved bits are set"
                                      : "its offset is not a cluster's");
    if (host && !qcow2_in_file(q, host))
        return rhea_error_set(err, EIO,
                              "the L2 table of L1 entry %" PRIu32
                              ", at 0x%" PRIx64
                              ", lies past the end of the file",
                              index, host);
    return 0;
}

void qcow2_compressed_place(const struct qcow2 *q, uint64_t entry,
                            uint64_t *host, uint64_t *length)
{
    uint64_t sectors =
        (entry >> q->z_shift & ((1U << (q->cluster_bits - 8)) - 1)) + 1;

    *host = entry & ((1ULL << q->z_shift) - 1);
    *length = sectors * 512 - (*host & 511);
}

static int map_entry_error(uint64_t guest, struct qcow2_entry e,
                           const char *what, struct rhea_error *err)
{
    return rhea_error_set(err, EIO,
                          "the L2 entry for guest offset 0x%" PRIx64
                          ", 0x%" PRIx64 ", is damaged: %s",
                          guest, e.entry, what);
}

int qcow2_entry_check(struct qcow2 *q, uint64_t guest, struct qcow2_entry e,
                      struct rhea_error *err)
{
    uint64_t host = e.entry & QCOW2_OFFSET_MASK, length;
    bool has_host = qcow2_entry_has_host(q, e.entry);

    if (e.entry & QCOW2_COMPRESSED) {
        if (qcow2_external(q))
            return map_entry_error(
                guest, e, "a data file holds no compressed clusters", err);
        qcow2_compressed_place(q, e.entry, &host, &length);
        if (e.bitmap)
            return map_entry_error(guest, e,
                                   "a compressed cluster has subclusters", err);
        if (host >= QCOW2_MAX_HOST || !qcow2_in_file(q, host))
            return map_entry_error(
                guest, e, "its compressed data lies past the end of the file",
                err);
        return 0;
    }
    if (e.entry & QCOW2_L2_RESERVED)
        return map_entry_error(guest, e, "reserved bits are set", err);
    if (e.entry & QCOW2_ZERO && (q->version < 3 || qcow2_extended(q)))
        return map_entry_error(guest, e,
                               "it has a zero flag, which this kind of image "
                               "does not know",
                               err);
    if (!is_aligned(host, q->cluster_size))
        return map_entry_error(guest, e, "its offset is not a cluster's", err);
    if (e.bitmap & e.bitmap >> 32 & QCOW2_ALL_ALLOCATED ||
        (!has_host && e.bitmap & QCOW2_ALL_ALLOCATED))
        return map_entry_error(guest, e,
                               "its subclusters contradict each other", err);
    /* A data file reads as zeroes past its end. */
    if (qcow2_external(q))
        return has_host && host != align_down(guest, q->cluster_size)
                   ? map_entry_error(guest, e,
                                     "in a data file clusters stand at their "
                                     "guest offsets",
                                     err)
                   : 0;
    if (host &&
        (qcow2_extended(q) ? e.bitmap & QCOW2_ALL_ALLOCATED
                           : !(e.entry & QCOW2_ZERO)) &&
        !qcow2_in_file(q, host))
        return map_entry_error(guest, e,
                               "its data lies past the end of the file", err);
    return 0;
}

/* How one subcluster (or cluster) is mapped, by itself; has no length. */
static void qcow2_entry_classify(const struct qcow2 *q, struct qcow2_entry e,
                                 unsigned subcluster, struct rhea_extent *x)
{
    bool zero, data;

    *x = (struct rhea_extent){.storage = q->guest};
    if (e.entry & QCOW2_COMPRESSED) {
        x->kind = RHEA_EXTENT_COMPRESSED;
        x->has_host = true;
        qcow2_compressed_place(q, e.entry, &x->host, &x->stored_length);
        return;
    }
    x->host = e.entry & QCOW2_OFFSET_MASK;
    x->has_host = qcow2_entry_has_host(q, e.entry);
    if (qcow2_extended(q)) {
        zero = e.bitmap >> (32 + subcluster) & 1;
        data = e.bitmap >> subcluster & 1;
        if (x->has_host)
            x->host += (uint64_t)subcluster << q->subcluster_bits;
    } else {
        zero = e.entry & QCOW2_ZERO;
        data = x->has_host;
    }
    x->kind = zero   ? RHEA_EXTENT_ZERO
              : data ? RHEA_EXTENT_DATA
                     : RHEA_EXTENT_UNALLOCATED;
}

int qcow2_l2_get(struct qcow2 *q, uint64_t offset, struct qcow2_slice **slice,
                 unsigned *index, struct rhea_error *err)
{
    uint32_t l1_index = (uint32_t)(offset >> qcow2_l1_shift(q));
    uint64_t entry = q->l1[l1_index], byte;
    int r;

    *slice = NULL;
    *index = 0;
    r = qcow2_l1_entry_check(q, l1_index, entry, err);
    if (r < 0)
        return r;
    if (!(entry & QCOW2_OFFSET_MASK))
        return 0;
    byte = (offset >> q->cluster_bits & ((1ULL << q->l2_bits) - 1))
           << q->entry_bits;
    *index = (unsigned)((byte & (q->l2.unit - 1)) >> q->entry_bits);
    return qcow2_cache_get(
        &q->l2, (entry & QCOW2_OFFSET_MASK) + align_down(byte, q->l2.unit),
        slice, err);
}

struct qcow2_entry qcow2_entry_load(const struct qcow2 *q, const uint8_t *table,
                                    size_t index)
{
    const uint8_t *at = table + (index << q->entry_bits);

    return (struct qcow2_entry){load_be64(at),
                                q->entry_bits == 4 ? load_be64(at + 8) : 0};
}

struct qcow2_entry qcow2_entry_get(const struct qcow2 *q,
                                   const struct qcow2_slice *slice,
                                   unsigned index)
{
    return qcow2_entry_load(q, slice->data, index);
}

/* How many of the N entries from FIRST on go on as FIRST begins; all of a
 * cluster must be mapped alike. */
static unsigned map_count_entries(const struct qcow2 *q,
                                  const struct qcow2_slice *slice,
                                  unsigned first, unsigned n)
{
    struct qcow2_entry e = qcow2_entry_get(q, slice, first);
    uint64_t expect = e.entry & ~QCOW2_COPIED, step = q->cluster_size;
    const uint8_t *at = slice->data + ((size_t)first << q->entry_bits);
    unsigned i;

    if (expect & QCOW2_COMPRESSED ||
        (e.bitmap && e.bitmap != QCOW2_ALL_ALLOCATED &&
         e.bitmap != QCOW2_ALL_ZERO))
        return 1;
    if (!qcow2_entry_has_host(q, e.entry))
        step = 0;
    for (i = 1; i < n; i++) {
        at += 1U << q->entry_bits;
        expect += step;
        if ((load_be64(at) & ~QCOW2_COPIED) != expect ||
            (q->entry_bits == 4 && load_be64(at + 8) != e.bitmap))
            break;
    }
    return i;
}

/* How many subclusters from SUB on are mapped as it is. */
static unsigned map_count_subclusters(const struct qcow2 *q, uint64_t bitmap,
                                      unsigned sub, enum rhea_extent_kind kind)
{
    uint64_t zero = bitmap >> 32, data = bitmap & QCOW2_ALL_ALLOCATED, other;

    if (!qcow2_extended(q))
        return 1;
    other = kind == RHEA_EXTENT_DATA   ? ~data
            : kind == RHEA_EXTENT_ZERO ? ~zero
                                       : data | zero;
    /* The bit past the last subcluster ends the run. */
    other = (other & QCOW2_ALL_ALLOCATED) | 1ULL << QCOW2_SUBCLUSTERS;
    return (unsigned)__builtin_ctzll(other >> sub);
}

/* The run that begins at OFFSET and stays in its cluster. */
static int map_cluster(struct qcow2 *q, uint64_t offset, struct qcow2_entry e,
                       struct rhea_extent *x, struct rhea_error *err)
{
    uint64_t in = offset & (q->cluster_size - 1);
    unsigned sub = (unsigned)(in >> q->subcluster_bits), end;
    int r = qcow2_entry_check(q, offset, e, err);

    if (r < 0)
        return r;
    qcow2_entry_classify(q, e, sub, x);
    if (x->kind == RHEA_EXTENT_COMPRESSED) {
        x->length = q->cluster_size - in;
        return 0;
    }
    end = sub + map_count_subclusters(q, e.bitmap, sub, x->kind);
    x->length = ((uint64_t)end << q->subcluster_bits) - in;
    if (x->has_host)
        x->host += in & ((1ULL << q->subcluster_bits) - 1);
    return 0;
}

/* Make the run X, which ends with entry INDEX, longer by entries that go on
 * alike. */
static void map_extend(struct qcow2 *q, const struct qcow2_slice *slice,
                       unsigned index, struct rhea_extent *x)
{
    unsigned n =
        map_count_entries(q, slice, index, qcow2_slice_entries(q) - index);
    uint64_t more = (uint64_t)(n - 1) << q->cluster_bits;

    if (x->has_host) {
        uint64_t end = x->host + x->length, limit = QCOW2_MAX_HOST;

        if (x->kind == RHEA_EXTENT_DATA && !qcow2_external(q) &&
            !qcow2_in_file(q, end + more - 1))
            limit = align_up(q->file_size, q->cluster_size);
        more = end >= limit ? 0 : RHEA_MIN(more, limit - end);
    }
    x->length += more;
}

/* The run that begins at OFFSET and stays in its slice, or in what one L1
 * entry maps where there is no L2 table. */
static int map_slice(struct qcow2 *q, uint64_t offset, struct rhea_extent *x,
                     bool *table, struct rhea_error *err)
{
    struct qcow2_slice *slice;
    unsigned index;
    int r = qcow2_l2_get(q, offset, &slice, &index, err);

    if (r < 0)
        return r;
    *table = slice != NULL;
    if (!slice) {
        uint64_t span = 1ULL << qcow2_l1_shift(q);

        *x = (struct rhea_extent){.kind = RHEA_EXTENT_UNALLOCATED,
                                  .length = span - (offset & (span - 1)),
                                  .storage = q->guest};
        return 0;
    }
    r = map_cluster(q, offset, qcow2_entry_get(q, slice, index), x, err);
    if (r == 0 && x->kind != RHEA_EXTENT_COMPRESSED &&
        is_aligned(offset + x->length, q->cluster_size))
        map_extend(q, slice, index, x);
    return r;
}

static bool map_goes_on(const struct rhea_extent *a,
                        const struct rhea_extent *b)
{
    return a->kind == b->kind && a->has_host == b->has_host &&
           a->kind != RHEA_EXTENT_COMPRESSED &&
           (!a->has_host || a->host + a->length == b->host);
}

int qcow2_map_area(struct qcow2 *q, uint64_t offset, uint64_t end,
                   struct rhea_extent *extent, struct rhea_error *err)
{
    unsigned budget = MAP_SLICES;
    bool table;
    int r;

    r = qcow2_data_refuse(q, err);
    if (r < 0)
        return r;
    r = map_slice(q, offset, extent, &table, err);
    if (r < 0)
        return r;
    /* An error further on is reported when the caller gets there. */
    while (end - offset > extent->length && budget) {
        struct rhea_extent next;

        r = map_slice(q, offset + extent->length, &next, &table, NULL);
        if (r < 0 || !map_goes_on(extent, &next))
            break;
        extent->length += next.length;
        budget -= table;
    }
    extent->length = RHEA_MIN(extent->length, end - offset);
    return 0;
}

int qcow2_map_locked(struct qcow2 *q, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err)
{
    if (offset >= q->f.size || !len)
        return rhea_error_set(
            err, EINVAL,
            "guest offset 0x%" PRIx64 " is past the end of the image", offset);
    return qcow2_map_area(q, offset, offset + RHEA_MIN(len, q->f.size - offset),
                          extent, err);
}

int qcow2_map(struct rhea_format *f, uint64_t offset, uint64_t len,
              struct rhea_extent *extent, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_map_locked(q, offset, len, extent, err);
    /* Inside of the driver it is data like any other. */
    if (r == 0 && q->crypt_method && extent->kind == RHEA_EXTENT_DATA)
        extent->kind = RHEA_EXTENT_ENCRYPTED;
    return r;
}

/* The data lock is taken while LOCK is held, so that nothing can become free
 * between the look at the tables and the holding. */
int qcow2_map_hold(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_map_locked(q, offset, len, extent, err);
    if (r < 0 || extent->kind != RHEA_EXTENT_DATA)
        return r;
    if (q->crypt_method)
        extent->kind = RHEA_EXTENT_ENCRYPTED;
    else
        pthread_rwlock_rdlock(&q->data);
    return 0;
}

void qcow2_map_release(struct rhea_format *f)
{
    pthread_rwlock_unlock(&qcow2_of(f)->data);
}
