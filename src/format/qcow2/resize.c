/* SPDX-License-Identifier: MIT */
/*
 * Another virtual size. The header's field for it lies in the first sector: it
 * is the moment at which the image has its new size.
 *
 * Order when growing:
 *   1. what is mapped past the old end, which nobody could see, is given back;
 *   2. a longer L1 table at a new place; flush; the header's pointer to it and
 *      its length (one sector); flush; then the old one is free;
 *   3. what must not show in the new part is zeroed, clusters are reserved; all
 *      that in the order of sync.c;
 *   4. the size; flush.
 * Order when shrinking:
 *   1. the size; flush;
 *   2. what is mapped past the end is given back, as in sync.c;
 *   3. refcount blocks at the end that count nothing but themselves: the table
 *      without them, flush; then the file's end is cut off.
 * Bitmaps are marked as in use before all that, and stored for the new size
 * after it, see bitmap_track.c.
 * A crash in between leaves clusters that are mapped past the end, at worst.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/prealloc.h"
#include "format/qcow2/qcow2.h"

/* Zeroes written as data at a time. */

static const char *const resize_modes[] = {"off", "metadata", "falloc", "full",
                                           NULL};

static int resize_mode(const char *text, enum qcow2_preallocation *mode,
                       struct rhea_error *err)
{
    for (unsigned i = 0; resize_modes[i]; i++) {
        if (!text || !strcmp(text, resize_modes[i])) {
            *mode = (enum qcow2_preallocation)i;
            return 0;
        }
    }
    return rhea_error_set(err, EINVAL,
                          "preallocation is off, metadata, falloc or full, not "
                          "%s",
                          text);
}

static int resize_check(struct qcow2 *q, const struct rhea_resize *how,
                        enum qcow2_preallocation mode, struct rhea_error *err)
{
    uint64_t entries = div_up(how->size, 1ULL << qcow2_l1_shift(q));
    int r = qcow2_data_refuse(q, err);

    if (r < 0)
        return r;
    if (how->size % 512)
        return rhea_error_set(err, EINVAL,
                              "the size must be a multiple of 512 bytes");
    if (entries > QCOW2_MAX_L1_BYTES / 8 || how->size > (uint64_t)INT64_MAX)
        return rhea_error_set(err, EFBIG,
                              "%" PRIu64
                              " bytes are too large for a qcow2 image with "
                              "clusters of %" PRIu32,
                              how->size, q->cluster_size);
    /* Their own sizes are not recorded there. */
    if (q->n_snapshots && q->version < 3)
        return rhea_error_set(err, ENOTSUP,
                              "an image of version 2 (compat=0.10) with "
                              "snapshots cannot be resized");
    if (how->size < q->f.size && mode != QCOW2_PREALLOCATE_OFF)
        return rhea_error_set(err, EINVAL,
                              "preallocation makes no sense when shrinking");
    if (q->crypt_method && q->version < 3 && mode != QCOW2_PREALLOCATE_OFF)
        return rhea_error_set(err, ENOTSUP,
                              "clusters of an encrypted image of version 2 "
                              "(compat=0.10) cannot be preallocated");
    if (how->size < q->f.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "the image would lose what lies behind its new "
                              "end");
    return 0;
}

static int resize_begin(struct qcow2 *q, const struct rhea_resize *how,
                        enum qcow2_preallocation mode, struct rhea_error *err)
{
    int r;

    RHEA_LOCKED(&q->lock);
    qcow2_flight_wait(q, 0, UINT64_MAX);
    r = resize_check(q, how, mode, err);
    if (r == 0)
        r = qcow2_write_begin(q, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    if (r == 0 && how->size != q->f.size)
        r = qcow2_bitmaps_resize(q, how->size, err);
    return r;
}

/* Store the bitmaps for the size that the image has now. */
static int resize_end(struct qcow2 *q, int result, struct rhea_error *err)
{
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_bitmaps_resized(q, result, err);
    return r < 0 ? r : qcow2_sync(q, err);
}

/* Everything durable that SIZE relies on; then the size. */
static int resize_write_size(struct qcow2 *q, uint64_t size,
                             struct rhea_error *err)
{
    uint8_t field[8];
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_sync(q, err);
    if (r < 0)
        return r;
    store_be64(field, size);
    r = rhea_storage_write(q->f.storage, field, 8, QCOW2_AT_SIZE, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0)
        return qcow2_fail(q, r);
    q->f.size = size;
    q->l1_needed = (uint32_t)div_up(size, 1ULL << qcow2_l1_shift(q));
    return 0;
}

/* Unmap the clusters of one L2 table from GUEST on. */
static int resize_clear_table(struct qcow2 *q, uint64_t guest,
                              struct rhea_error *err)
{
    uint64_t end = align_up(guest, 1ULL << qcow2_l1_shift(q));

    while (guest < end) {
        struct qcow2_slice *slice;
        unsigned index;
        int r = qcow2_l2_get(q, guest, &slice, &index, err);

        if (r < 0 || !slice)
            return r;
        for (; index < qcow2_slice_entries(q); guest += q->cluster_size) {
            struct qcow2_entry e = qcow2_entry_get(q, slice, index);

            if (e.entry || e.bitmap) {
                r = qcow2_entry_check(q, guest, e, err);
                if (r == 0)
                    r = qcow2_l2_get_writable(q, guest, &slice, &index, err);
                if (r < 0)
                    return r;
                qcow2_entry_set(q, slice, index, (struct qcow2_entry){0, 0});
                r = qcow2_entry_release(q, e, true, err);
                if (r < 0)
                    return r;
            }
            index++;
        }
    }
    return 0;
}

/* Unmap all past SIZE, which also drops a VM state: it lies behind the end,
 * wherever that is. */
static int resize_clear(struct qcow2 *q, uint64_t size, struct rhea_error *err)
{
    uint64_t from = align_up(size, q->cluster_size);
    uint64_t index = div_up(from, 1ULL << qcow2_l1_shift(q));
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_tables_drop(q, (uint32_t)RHEA_MIN(index, q->l1_size), err);
    if (r == 0)
        r = resize_clear_table(q, from, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    return r == 0 ? qcow2_note_tables(q, err) : r;
}

/* --- shrinking --- */

/* Whether block I counts nothing, or only itself. */
static int resize_block_idle(struct qcow2 *q, uint32_t i, bool *idle,
                             struct rhea_error *err)
{
    uint64_t first = (uint64_t)i << q->block_bits, refcount = 0;
    uint64_t own = q->reftable[i] >> q->cluster_bits;

    *idle = false;
    for (uint64_t k = first; k < first + (1ULL << q->block_bits); k++) {
        int r = qcow2_refcount_get(q, k, &refcount, err);

        if (r < 0)
            return r;
        if (refcount && (k != own || refcount != 1))
            return 0;
    }
    *idle = true;
    return 0;
}

/* Give back the blocks at the end that are of no use any more. */
static int resize_drop_blocks(struct qcow2 *q, struct rhea_error *err)
{
    int r = qcow2_refs_write(q, err);

    for (uint32_t i = q->reftable_size; r == 0 && i-- > 1;) {
        uint64_t host = q->reftable[i], cluster = host >> q->cluster_bits;
        bool idle = true;

        if (!host)
            continue;
        r = resize_block_idle(q, i, &idle, err);
        if (r < 0 || !idle)
            break;
        q->reftable[i] = 0;
        q->reftable_dirty = true;
        qcow2_cache_forget(&q->refs, host, q->cluster_size);
        r = qcow2_refs_write(q, err);
        /* One that counted itself is not counted any more. */
        if (r == 0 && cluster >> q->block_bits != i)
            r = qcow2_refcount_add(q, cluster, 1, -1, err);
    }
    return qcow2_fail(q, r);
}

static int resize_cut_data_file(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t size;
    int r;

    if (!qcow2_external(q))
        return 0;
    r = rhea_storage_size(q->guest, &size, err);
    if (r == 0 && size > q->f.size)
        r = rhea_storage_truncate(q->guest, q->f.size, err);
    return r == 0 ? rhea_storage_flush(q->guest, err) : r;
}

static int resize_shrink(struct qcow2 *q, uint64_t size, struct rhea_error *err)
{
    int r = resize_write_size(q, size, err);

    if (r == 0)
        r = resize_clear(q, size, err);
    if (r == 0)
        r = resize_cut_data_file(q, err);
    if (r < 0)
        return r;
    RHEA_LOCKED(&q->lock);
    r = resize_drop_blocks(q, err);
    return r == 0 ? qcow2_cut_end(q, err) : r;
}

/* --- growing --- */

/* Step 2 of growing: the table is in the file, and counted. */
static int resize_switch_l1(struct qcow2 *q, uint64_t *l1, uint32_t n,
                            uint64_t host, struct rhea_error *err)
{
    uint64_t old = q->l1_offset >> q->cluster_bits;
    uint64_t count = div_up((uint64_t)q->l1_size * 8, q->cluster_size);
    uint8_t pointer[12];
    int r;

    store_be32(pointer, n);
    store_be64(pointer + 4, host);
    r = rhea_storage_write(q->f.storage, pointer, sizeof(pointer),
                           QCOW2_AT_L1_SIZE, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r < 0)
        return qcow2_fail(q, r);
    free(q->l1);
    q->l1 = l1;
    q->l1_size = n;
    q->l1_offset = host;
    bitmap_finish(&q->l1_dirty);
    r = qcow2_fail(q, bitmap_init(&q->l1_dirty, div_up(n, 64) + 1, err));
    if (r == 0 && count)
        r = qcow2_release(q, old, count, true, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    return r == 0 ? qcow2_note_tables(q, err) : r;
}

static int resize_grow_l1(struct qcow2 *q, uint32_t n, struct rhea_error *err)
{
    uint64_t clusters = div_up((uint64_t)n * 8, q->cluster_size), at = 0;
    RHEA_AUTO_FREE uint64_t *disk = NULL, *l1 = NULL;
    int r;

    RHEA_LOCKED(&q->lock);
    if (n <= q->l1_size)
        return 0;
    disk = calloc(clusters, q->cluster_size);
    l1 = calloc(n, 8);
    if (!disk || !l1)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < q->l1_size; i++) {
        l1[i] = q->l1[i];
        disk[i] = htobe64(l1[i]);
    }
    r = qcow2_alloc_table(q, clusters, &at, err);
    if (r < 0)
        return r;
    r = rhea_storage_write(q->f.storage, disk, clusters << q->cluster_bits,
                           at << q->cluster_bits, err);
    if (r < 0) {
        (void)qcow2_refcount_add(q, at, clusters, -1, NULL);
        return r;
    }
    r = qcow2_sync(q, err);
    if (r == 0)
        r = resize_switch_l1(q, l1, n, at << q->cluster_bits, err);
    /* It belongs to Q from the switch on. */
    if (q->l1 == l1)
        l1 = NULL;
    return r;
}

/* Bytes between the old end and the end of its cluster: a cluster holds there
 * what was written before the image was shrunk, a backing file something that
 * could not be seen. */
static int resize_zero_tail(struct qcow2 *q, uint64_t from, uint64_t to,
                            bool write, struct rhea_error *err)
{
    size_t len = to - from;
    RHEA_AUTO_FREE uint8_t *buf = calloc(1, len + 1);
    int r;

    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (from == to)
        return 0;
    r = qcow2_read_guest(q, from, buf, len, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < len; i++)
        write |= buf[i] != 0;
    if (!write)
        return 0;
    memset(buf, 0, len);
    return qcow2_write(&q->f, from, buf, len, err);
}

/* Make reserved host clusters read as zeroes, as MODE says. */
static int resize_fill(struct qcow2 *q, enum qcow2_preallocation mode,
                       uint64_t host, uint64_t len, bool fresh,
                       struct rhea_error *err)
{
    uint64_t size;
    int r = rhea_storage_size(q->f.storage, &size, err);

    if (r == 0 && mode != QCOW2_PREALLOCATE_FULL && !fresh && host < size)
        r = rhea_storage_zero(q->f.storage, host, len,
                              mode == QCOW2_PREALLOCATE_METADATA, err);
    if (r == 0 && mode == QCOW2_PREALLOCATE_FALLOC)
        r = rhea_storage_allocate(q->f.storage, host, len, err);
    if (r == 0 && mode == QCOW2_PREALLOCATE_METADATA && size < host + len)
        r = rhea_storage_truncate(q->f.storage, host + len, err);
    if (r == 0 && mode == QCOW2_PREALLOCATE_FULL)
        r = prealloc_fill(q->f.storage, host, host + len, err);
    return r;
}

static struct qcow2_entry resize_entry(const struct qcow2 *q,
                                       enum qcow2_preallocation mode,
                                       uint64_t host, bool hide)
{
    bool zero =
        (hide && mode == QCOW2_PREALLOCATE_METADATA && !qcow2_raw_data(q)) ||
        q->crypt_method; /* zeroes would not decrypt to zeroes */
    struct qcow2_entry e = {host | QCOW2_COPIED, 0};

    /* Subclusters stay unallocated, unless something would show, or the data
     * file is to. */
    if (qcow2_extended(q) && (hide || zero || qcow2_raw_data(q)))
        e.bitmap = zero ? QCOW2_ALL_ZERO : QCOW2_ALL_ALLOCATED;
    else if (zero && q->version >= 3)
        e.entry |= QCOW2_ZERO;
    return e;
}

static void resize_map(struct qcow2 *q, struct qcow2_slice *slice,
                       unsigned index, enum qcow2_preallocation mode,
                       uint64_t host, uint64_t count, bool hide)
{
    for (uint64_t i = 0; i < count; i++)
        qcow2_entry_set(
            q, slice, index + (unsigned)i,
            resize_entry(q, mode, host + (i << q->cluster_bits), hide));
}

/* Reserve clusters for the first guest clusters of [*from, to), which are not
 * mapped. */
static int resize_reserve(struct qcow2 *q, enum qcow2_preallocation mode,
                          uint64_t *from, uint64_t to, bool hide,
                          struct rhea_error *err)
{
    struct qcow2_slice *slice;
    uint64_t cluster, got, count;
    unsigned index;
    bool fresh;
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_l2_get_writable(q, *from, &slice, &index, err);
    if (r < 0)
        return r;
    count = RHEA_MIN(qcow2_slice_entries(q) - index,
                     (to - *from) >> q->cluster_bits);
    if (qcow2_external(q)) {
        resize_map(q, slice, index, mode, *from, count, hide);
        *from += count << q->cluster_bits;
        return 0;
    }
    r = qcow2_alloc(q, count, &cluster, &got, &fresh, err);
    if (r < 0)
        return r;
    r = resize_fill(q, mode, cluster << q->cluster_bits, got << q->cluster_bits,
                    fresh, err);
    if (r < 0) {
        (void)qcow2_refcount_add(q, cluster, got, -1, NULL);
        return r;
    }
    resize_map(q, slice, index, mode, cluster << q->cluster_bits, got, hide);
    *from += got << q->cluster_bits;
    return 0;
}

/* The part between the old and the new end; the size is the new one already,
 * in memory. */
static int resize_new_part(struct qcow2 *q, const struct rhea_resize *how,
                           enum qcow2_preallocation mode, uint64_t old,
                           struct rhea_error *err)
{
    uint64_t from = RHEA_MIN(align_up(old, q->cluster_size), how->size);
    uint64_t to = align_up(how->size, q->cluster_size), start = from;
    int r = 0;

    if (!qcow2_raw_data(q))
        r = resize_zero_tail(q, old, from, mode != QCOW2_PREALLOCATE_OFF, err);

    if (r == 0 && mode == QCOW2_PREALLOCATE_OFF && how->hide_below)
        return qcow2_write_zeroes(&q->f, from, how->size - from, false, err);
    if (mode == QCOW2_PREALLOCATE_OFF || !is_aligned(from, q->cluster_size))
        return r;
    while (r == 0 && from < to) {
        rhea_progress_report(how->progress, "preallocate", from - start,
                             to - start);
        if (rhea_progress_cancelled(how->progress))
            return rhea_error_set(err, ECANCELED, "stopped as asked");
        r = resize_reserve(q, mode, &from, to, how->hide_below, err);
    }
    return r;
}

/* The data file reaches to the new end. Where it did before, its bytes are the
 * guest's if it is raw, and else of no meaning. */
static int resize_grow_data_file(struct qcow2 *q, enum qcow2_preallocation mode,
                                 uint64_t old, struct rhea_error *err)
{
    uint64_t size;
    int r;

    if (!qcow2_external(q))
        return 0;
    r = rhea_storage_size(q->guest, &size, err);
    if (r == 0 && size > old && !qcow2_raw_data(q))
        r = rhea_storage_zero(q->guest, old, size - old, false, err);
    if (r < 0 || size >= q->f.size)
        return r;
    if (mode == QCOW2_PREALLOCATE_FALLOC)
        return rhea_storage_allocate(q->guest, size, q->f.size - size, err);
    if (mode == QCOW2_PREALLOCATE_FULL)
        return prealloc_fill(q->guest, size, q->f.size, err);
    return rhea_storage_truncate(q->guest, q->f.size, err);
}

static int resize_grow(struct qcow2 *q, const struct rhea_resize *how,
                       enum qcow2_preallocation mode, struct rhea_error *err)
{
    uint64_t old = q->f.size;
    int r = resize_clear(q, old, err);

    if (r == 0)
        r = resize_grow_l1(
            q, (uint32_t)div_up(how->size, 1ULL << qcow2_l1_shift(q)), err);
    if (r < 0)
        return r;
    q->f.size = how->size;
    r = resize_grow_data_file(q, mode, old, err);
    /* Tables for all of it, so that whatever the data file holds shows. */
    if (qcow2_raw_data(q) && mode == QCOW2_PREALLOCATE_OFF)
        mode = QCOW2_PREALLOCATE_METADATA;
    if (r == 0)
        r = resize_new_part(q, how, mode, old, err);
    if (r == 0)
        r = resize_write_size(q, how->size, err);
    if (r < 0)
        q->f.size = old;
    return r;
}

int qcow2_resize(struct rhea_format *f, const struct rhea_resize *how,
                 struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    enum qcow2_preallocation mode = QCOW2_PREALLOCATE_OFF;
    int r = resize_mode(how->preallocation, &mode, err);

    if (r == 0)
        r = resize_begin(q, how, mode, err);
    if (r < 0 || how->size == f->size)
        return r;
    r = how->size < f->size ? resize_shrink(q, how->size, err)
                            : resize_grow(q, how, mode, err);
    return resize_end(q, r, err);
}
