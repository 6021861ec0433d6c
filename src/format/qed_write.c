/* SPDX-License-Identifier: MIT */
/*
 * The guest's writes: what blocks.c leaves to QED.
 *
 * The order is that of blocks.h, with NEED_CHECK around it: it is set in the
 * header before the first cluster is allocated, and flushed; on close, after
 * all else and a flush, it is cleared.
 *
 * The end of the file: what a file holds past its last whole cluster belongs to
 * nobody (spec, introduction) and is cut off before the first change, so that
 * new clusters begin as zeroes. Clusters whose write failed stay unused: later
 * ones may lie behind them.
 */
#include <errno.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/qed.h"

int qed_write_features(struct qed *q, struct rhea_error *err)
{
    uint8_t words[QED_H_L1_OFFSET - QED_H_FEATURES];
    store_le64(words, q->features);
    store_le64(words + (QED_H_COMPAT - QED_H_FEATURES), q->compat);
    store_le64(words + (QED_H_AUTOCLEAR - QED_H_FEATURES), q->autoclear);
    return rhea_storage_write(q->base.storage, words, sizeof(words),
                              QED_H_FEATURES, err);
}

/* Before the first change of a table. */
static int write_mark(struct qed *q, struct rhea_error *err)
{
    if ((q->features & QED_F_NEED_CHECK) && !q->autoclear)
        return 0;
    bool was_set = q->features & QED_F_NEED_CHECK;
    q->features |= QED_F_NEED_CHECK;
    q->autoclear = 0;
    int ret = qed_write_features(q, err);
    if (!ret)
        ret = rhea_storage_flush(q->base.storage, err);
    q->blocks.failed |= ret != 0;
    q->clear_flag |= !ret && !was_set;
    return ret;
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
    ret = blocks_extend(&q->blocks, q->table_bytes, &table, err);
    if (!ret)
        ret = blocks_grow(&q->blocks, err);
    return ret ? ret : qed_l1_set(q, cluster, table, err);
}

/* *COUNT clusters from CLUSTER on, as far as one table goes. */
static int write_prepare(struct qed *q, uint64_t cluster, uint64_t *count,
                         struct rhea_error *err)
{
    int ret = write_mark(q, err);
    *count = RHEA_MIN(*count, qed_table_left(q, cluster));
    return ret ? ret : write_need_table(q, cluster, err);
}

static int write_place(struct blocks *b, uint64_t block, uint64_t *count,
                       uint64_t *host, struct rhea_error *err)
{
    struct qed *q = (struct qed *)b->format;
    int ret = write_prepare(q, block, count, err);
    return ret ? ret : blocks_extend(b, *count << q->cluster_bits, host, err);
}

static int write_link(struct blocks *b, const struct blocks_piece *piece,
                      struct rhea_error *err)
{
    struct qed *q = (struct qed *)b->format;
    return qed_l2_set(q, piece->block, piece->count, piece->host,
                      q->cluster_size, err);
}

static int write_zero(struct blocks *b, uint64_t block, uint64_t *count,
                      struct rhea_error *err)
{
    struct qed *q = (struct qed *)b->format;
    int ret = write_prepare(q, block, count, err);
    return ret ? ret : qed_l2_set(q, block, *count, QED_ZERO, 0, err);
}

static int write_back(struct blocks *b, struct rhea_error *err)
{
    struct qed *q = (struct qed *)b->format;
    return table_write_back(&q->tables, err);
}

const struct blocks_ops qed_blocks_ops = {
    .map = qed_map,
    .place = write_place,
    .link = write_link,
    .zero = write_zero,
    .write_back = write_back,
};
