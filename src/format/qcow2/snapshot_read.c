/* SPDX-License-Identifier: MIT */
/* Which snapshots there are, and looking at one of them. */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

const struct qcow2_snapshot *qcow2_snapshot_find(const struct qcow2 *q,
                                                 const char *which,
                                                 struct rhea_error *err)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (!strcmp(q->snapshots[i].s.id, which))
            return &q->snapshots[i];
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        if (!strcmp(q->snapshots[i].s.name, which))
            return &q->snapshots[i];
    rhea_error_set(err, ENOENT, "there is no snapshot '%s'", which);
    return NULL;
}

int qcow2_snapshot_l1(struct qcow2 *q, const struct qcow2_snapshot *s,
                      uint32_t min, uint64_t **l1, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint64_t *table = NULL;
    uint64_t *all;
    int r;

    if (s->l1_size > QCOW2_MAX_L1_BYTES / 8 ||
        !is_aligned(s->l1_offset, q->cluster_size) ||
        s->l1_offset >= QCOW2_MAX_HOST ||
        !qcow2_table_in_file(q, s->l1_offset, (uint64_t)s->l1_size * 8))
        return rhea_error_set(
            err, EIO, "the L1 table of snapshot '%s' is damaged", s->s.id);
    r = qcow2_table_load(q, s->l1_offset, s->l1_size, &table, err);
    if (r < 0)
        return r;
    all = calloc((size_t)RHEA_MAX(min, s->l1_size) + 1, 8);
    if (!all)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < s->l1_size; i++)
        all[i] = table[i] & ~QCOW2_COPIED;
    *l1 = all;
    return 0;
}

/* Snapshots are not read along with an image that is to be checked. */
static int snapshot_ready(struct qcow2 *q, struct rhea_error *err)
{
    if (qcow2_external(q) && q->n_snapshots)
        return rhea_error_set(err, ENOTSUP,
                              "an image with an external data file cannot have "
                              "snapshots");
    if (!q->n_snapshots || q->snapshots)
        return 0;
    if (q->n_snapshots > QCOW2_MAX_SNAPSHOTS ||
        !is_aligned(q->snapshots_offset, q->cluster_size) ||
        q->snapshots_offset >= QCOW2_MAX_HOST)
        return rhea_error_set(err, EINVAL,
                              "the snapshot table's place or size is "
                              "impossible");
    return qcow2_snapshots_read(q, err);
}

int qcow2_snapshot_list(struct rhea_format *f, struct rhea_snapshot **list,
                        size_t *n, struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    struct rhea_snapshot *copy;
    int r;

    RHEA_LOCKED(&q->lock);
    r = snapshot_ready(q, err);
    if (r < 0)
        return r;
    copy = calloc(q->n_snapshots + 1, sizeof(*copy));
    if (!copy)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        copy[i] = q->snapshots[i].s;
        copy[i].id = strdup(copy[i].id);
        copy[i].name = strdup(copy[i].name);
        if (!copy[i].id || !copy[i].name) {
            rhea_snapshots_free(copy, i + 1);
            return rhea_error_set(err, ENOMEM, "out of memory");
        }
    }
    *list = copy;
    *n = q->n_snapshots;
    return 0;
}

int qcow2_snapshot_load(struct rhea_format *f, const char *which,
                        struct rhea_error *err)
{
    struct qcow2 *q = qcow2_of(f);
    const struct qcow2_snapshot *s;
    uint64_t *l1 = NULL, needed;
    int r;

    RHEA_LOCKED(&q->lock);
    if (q->flags & RHEA_FORMAT_WRITE)
        return rhea_error_set(err, EACCES,
                              "a snapshot can only be looked at in an image "
                              "that is open read-only");
    r = snapshot_ready(q, err);
    if (r < 0)
        return r;
    s = qcow2_snapshot_find(q, which, err);
    if (!s)
        return -ENOENT;
    needed = div_up(s->s.disk_size, 1ULL << qcow2_l1_shift(q));
    if (s->s.disk_size > INT64_MAX || needed > QCOW2_MAX_L1_BYTES / 8)
        return rhea_error_set(err, EFBIG,
                              "the size of snapshot '%s', %" PRIu64
                              " bytes, is too large",
                              s->s.id, s->s.disk_size);
    r = qcow2_snapshot_l1(q, s, (uint32_t)needed, &l1, err);
    if (r < 0)
        return r;
    qcow2_cache_clear(&q->l2);
    qcow2_z_forget(q);
    free(q->l1);
    q->l1 = l1;
    q->l1_offset = s->l1_offset;
    q->l1_size = RHEA_MAX((uint32_t)needed, s->l1_size);
    q->l1_needed = (uint32_t)needed;
    q->f.size = s->s.disk_size;
    return 0;
}
