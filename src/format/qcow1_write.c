/* SPDX-License-Identifier: MIT */
/*
 * The guest's writes: what blocks.c leaves to QCOW. The order is that of
 * blocks.h; the file's end is where all that is new goes, and there is no note
 * of it anywhere. Clusters whose write failed stay unused.
 *
 * Clusters and tables begin at multiples of a cluster. Compressed data goes
 * right behind what is there, so that the file may end anywhere; but never into
 * a sector in which it ended when the image was opened, for that may be one of
 * the L1 table, and in the cache.
 */
#include <errno.h>

#include "base/checked.h"
#include "format/qcow1.h"

static struct qcow1 *write_of(struct blocks *b)
{
    return qcow1_of(b->format);
}

/* BYTES at the file's end, from a multiple of a cluster on. */
static int write_extend(struct qcow1 *q, uint64_t bytes, uint64_t *host,
                        struct rhea_error *err)
{
    struct blocks *b = &q->blocks;
    if (b->file_end > (uint64_t)INT64_MAX - q->cluster_size)
        return rhea_error_set(err, EFBIG, "the image file would be too large");
    b->file_end = align_up(b->file_end, q->cluster_size);
    return blocks_extend(b, bytes, host, err);
}

int qcow1_need_table(struct qcow1 *q, uint64_t cluster, struct rhea_error *err)
{
    uint64_t table;
    int ret = qcow1_l1_get(q, cluster, &table, err);
    if (ret || table)
        return ret;
    ret = write_extend(q, q->l2_bytes, &table, err);
    if (!ret)
        ret = blocks_grow(&q->blocks, err);
    return ret ? ret : qcow1_l1_set(q, cluster, table, err);
}

static int write_place(struct blocks *b, uint64_t block, uint64_t *count,
                       uint64_t *host, struct rhea_error *err)
{
    struct qcow1 *q = write_of(b);
    *count = RHEA_MIN(*count, qcow1_table_left(q, block));
    int ret = qcow1_need_table(q, block, err);
    return ret ? ret : write_extend(q, *count << q->cluster_bits, host, err);
}

static int write_link(struct blocks *b, const struct blocks_piece *piece,
                      struct rhea_error *err)
{
    struct qcow1 *q = write_of(b);
    return qcow1_l2_set(q, piece->block, piece->count, piece->host,
                        q->cluster_size, err);
}

static int write_back(struct blocks *b, struct rhea_error *err)
{
    return table_write_back(&write_of(b)->tables, err);
}

static int write_put(struct blocks *b, uint64_t offset, uint64_t host,
                     const void *buf, size_t len, struct rhea_error *err)
{
    struct qcow1 *q = write_of(b);
    struct sector_place place = {b->storage, host, offset};
    if (!q->aes)
        return rhea_error_set(err, EACCES,
                              "the image is encrypted, and was opened without "
                              "its passphrase");
    return sector_crypt_write(&q->crypt, place, buf, len, err);
}

const struct blocks_ops qcow1_blocks_ops = {
    .map = qcow1_map_locked,
    .place = write_place,
    .link = write_link,
    .write_back = write_back,
};

const struct blocks_ops qcow1_crypt_blocks_ops = {
    .map = qcow1_map_locked,
    .place = write_place,
    .link = write_link,
    .write_back = write_back,
    .put = write_put,
};
