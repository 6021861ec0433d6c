/* SPDX-License-Identifier: MIT */
/*
 * VM state: what the L1 table maps past the guest's end, from the first L1
 * entry on that maps no guest byte. It takes part in snapshots as everything
 * the active table leads to does.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

static uint64_t vm_first(const struct qcow2 *q)
{
    return div_up(q->f.size, 1ULL << qcow2_l1_shift(q));
}

static uint64_t vm_start(const struct qcow2 *q)
{
    return vm_first(q) << qcow2_l1_shift(q);
}

/* The next piece of VM state at AT; the data lock is held where it is data. */
static int vm_map(struct qcow2 *q, uint64_t at, uint64_t len,
                  struct rhea_extent *x, struct rhea_error *err)
{
    RHEA_LOCKED(&q->lock);
    uint64_t end = (uint64_t)q->l1_size << qcow2_l1_shift(q);
    int r;

    if (at >= end || len > end - at)
        return rhea_error_set(err, EINVAL,
                              "%" PRIu64 " bytes at 0x%" PRIx64
                              " lie past the end of the VM state",
                              len, at - vm_start(q));
    r = qcow2_map_area(q, at, at + len, x, err);
    if (r == 0 && x->kind == RHEA_EXTENT_DATA)
        pthread_rwlock_rdlock(&q->data);
    return r;
}

static int vm_read(struct qcow2 *q, uint64_t at, uint8_t *buf, size_t len,
                   struct rhea_error *err)
{
    while (len) {
        struct rhea_extent x;
        size_t n;
        int r = vm_map(q, at, len, &x, err);

        if (r < 0)
            return r;
        n = (size_t)RHEA_MIN(len, x.length);
        if (x.kind == RHEA_EXTENT_DATA) {
            r = qcow2_data_read(q, x.storage, x.host, at, buf, n, err);
            pthread_rwlock_unlock(&q->data);
        } else if (x.kind == RHEA_EXTENT_ZERO ||
                   x.kind == RHEA_EXTENT_UNALLOCATED) {
            memset(buf, 0, n);
        } else {
            r = rhea_error_set(err, ENOTSUP,
                               "VM state that is compressed is not supported");
        }
        if (r < 0)
            return r;
        at += n;
        buf += n;
        len -= n;
    }
    return 0;
}

int qcow2_vm_state_read(struct rhea_format *f, uint64_t offset, void *buf,
                        size_t len, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    uint64_t start = vm_start(q);

    if (offset > (uint64_t)INT64_MAX - start)
        return rhea_error_set(err, EINVAL, "no VM state is as long as that");
    rhea_storage_event(f->storage, "vmstate_load");
    return vm_read(q, start + offset, buf, len, err);
}

/* Make the L1 table reach to END. */
static int vm_grow(struct qcow2 *q, uint64_t end, struct rhea_error *err)
{
    uint64_t n = div_up(end, 1ULL << qcow2_l1_shift(q));
    RHEA_AUTO_FREE uint64_t *l1 = NULL;
    int r;

    RHEA_LOCKED(&q->lock);
    r = qcow2_write_begin(q, err);
    if (r < 0 || n <= q->l1_size)
        return r;
    if (n > QCOW2_MAX_L1_BYTES / 8)
        return rhea_error_set(err, EFBIG,
                              "the L1 table cannot be as large as that much VM "
                              "state needs");
    /* More than needed: it has to move each time. */
    n = RHEA_MIN(QCOW2_MAX_L1_BYTES / 8, RHEA_MAX(n, n + n / 2));
    qcow2_flight_wait(q, 0, UINT64_MAX);
    r = qcow2_sync(q, err);
    if (r < 0)
        return r;
    l1 = calloc(n, 8);
    if (!l1)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(l1, q->l1, (size_t)q->l1_size * 8);
    r = qcow2_l1_replace(q, l1, (uint32_t)n, q->f.size, err);
    if (r == 0)
        r = qcow2_sync(q, err);
    return r == 0 ? qcow2_note_tables(q, err) : r;
}

/* Whole clusters only: what surrounds a part of one is not read as guest bytes
 * are. */
static int vm_write_part(struct qcow2 *q, uint64_t at, const uint8_t *buf,
                         size_t len, struct rhea_error *err)
{
    uint64_t cluster = align_down(at, q->cluster_size);
    RHEA_AUTO_FREE uint8_t *whole = malloc(q->cluster_size);
    int r;

    if (!whole)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = vm_read(q, cluster, whole, q->cluster_size, err);
    if (r < 0)
        return r;
    memcpy(whole + (at - cluster), buf, len);
    return qcow2_write_area(q, cluster, whole, q->cluster_size, err);
}

int qcow2_vm_state_write(struct rhea_format *f, uint64_t offset,
                         const void *buf, size_t len, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    uint64_t start = vm_start(q), at = start + offset;
    const uint8_t *from = buf;
    int r = 0;

    if (qcow2_external(q))
        return rhea_error_set(err, ENOTSUP,
                              "an image with an external data file holds no VM "
                              "state");
    if (offset > (uint64_t)INT64_MAX - start ||
        len > (uint64_t)INT64_MAX - at - q->cluster_size)
        return rhea_error_set(err, EFBIG, "no VM state is as long as that");
    rhea_storage_event(f->storage, "vmstate_save");
    if (len)
        r = vm_grow(q, align_up(at + len, q->cluster_size), err);
    while (r == 0 && len) {
        size_t in = at & (q->cluster_size - 1);
        size_t n = in || len < q->cluster_size
                       ? RHEA_MIN(len, q->cluster_size - in)
                       : align_down(len, q->cluster_size);

        if (n % q->cluster_size)
            r = vm_write_part(q, at, from, n, err);
        else
            r = qcow2_write_area(q, at, from, n, err);
        at += n;
        from += n;
        len -= n;
    }
    return r;
}

int qcow2_vm_state_drop(struct qcow2 *q, uint64_t len, struct rhea_error *err)
{
    uint64_t first = vm_first(q), end, n = q->l1_size;
    RHEA_AUTO_FREE uint64_t *l1 = calloc(n + 1, 8);
    struct qcow2_tree tree = {0};
    int r;

    if (!l1)
        return rhea_error_set(err, ENOMEM, "out of memory");
    end = first + RHEA_MIN(n, div_up(len, 1ULL << qcow2_l1_shift(q)));
    end = RHEA_MIN(end, n);
    for (uint64_t i = first; i < end; i++)
        l1[i] = q->l1[i];
    r = qcow2_tree_count(q, &tree, l1, (uint32_t)n, -1, err);
    if (r == 0)
        for (uint64_t i = first; i < end; i++)
            if (q->l1[i])
                qcow2_l1_set(q, (uint32_t)i, 0);
    if (r == 0)
        r = qcow2_tree_release(q, &tree, err);
    qcow2_tree_free(&tree);
    return r;
}
