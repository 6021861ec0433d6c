/* SPDX-License-Identifier: MIT */
/*
 * QCOW, version 1, QEMU's first format for sparse disks: docs/formats/qcow.md.
 *
 * A header, an L1 table, and L2 tables that lead to clusters, which are added
 * at the end of the file; no reference counts. A cluster may be compressed, and
 * all of them may be encrypted, by an old method that is weak. All of it is
 * supported. There are no zero clusters, and no place is given back.
 *
 * qcow1_table.c has the tables, qcow1_data.c what is compressed and encrypted,
 * qcow1_write.c the guest's writes.
 */
#include "format/qcow1.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"

static int qcow1_probe(const uint8_t *head, size_t len)
{
    return len >= QCOW1_HEADER &&
                   load_be32(head + QCOW1_H_MAGIC) == QCOW1_MAGIC &&
                   load_be32(head + QCOW1_H_VERSION) == 1
               ? 100
               : 0;
}

/* --- Opening --- */

static int open_geometry(struct qcow1 *q, const uint8_t *h,
                         struct rhea_error *err)
{
    q->cluster_bits = h[QCOW1_H_CLUSTER_BITS];
    q->l2_bits = h[QCOW1_H_L2_BITS];
    if (q->cluster_bits < QCOW1_MIN_CLUSTER_BITS ||
        q->cluster_bits > QCOW1_MAX_CLUSTER_BITS)
        return rhea_error_set(err, EINVAL,
                              "invalid qcow header: clusters of 2^%u bytes",
                              q->cluster_bits);
    if (q->l2_bits < QCOW1_MIN_L2_BITS || q->l2_bits > QCOW1_MAX_L2_BITS)
        return rhea_error_set(err, EINVAL,
                              "invalid qcow header: L2 tables of 2^%u entries",
                              q->l2_bits);
    q->cluster_size = 1u << q->cluster_bits;
    q->l2_bytes = (uint64_t)QCOW1_ENTRY << q->l2_bits;
    return 0;
}

static int open_layout(struct qcow1 *q, const uint8_t *h,
                       struct rhea_error *err)
{
    uint64_t size = load_be64(h + QCOW1_H_SIZE);
    if (size <= 1 || size > INT64_MAX)
        return rhea_error_set(
            err, EINVAL, "invalid qcow header: a disk of %" PRIu64 " bytes",
            size);
    q->base.size = align_down(size, QCOW1_SECTOR);
    q->l1_offset = load_be64(h + QCOW1_H_L1_OFFSET);
    q->l1_size = qcow1_l1_entries(q, size);
    if (!is_aligned(q->l1_offset, QCOW1_ENTRY) || q->l1_offset < QCOW1_HEADER ||
        !range_inside(q->l1_offset, q->l1_size * QCOW1_ENTRY, q->file_size))
        return rhea_error_set(err, EINVAL,
                              "invalid qcow header: an L1 table of %" PRIu64
                              " entries cannot be at offset %" PRIu64
                              " of a file of %" PRIu64 " bytes",
                              q->l1_size, q->l1_offset, q->file_size);
    return 0;
}

static int open_backing_name(struct qcow1 *q, const uint8_t *h,
                             struct rhea_error *err)
{
    uint64_t offset = load_be64(h + QCOW1_H_BACKING_OFFSET);
    uint32_t len = load_be32(h + QCOW1_H_BACKING_SIZE);
    if (!offset || !len)
        return 0;
    if (len > QCOW1_BACKING_NAME_MAX)
        return rhea_error_set(err, EINVAL,
                              "invalid qcow header: a backing file's name of "
                              "%" PRIu32 " bytes",
                              len);
    if (!range_inside(offset, len, q->file_size))
        return rhea_error_set(err, EINVAL,
                              "invalid qcow header: the backing file's name at "
                              "offset %" PRIu64
                              " reaches past the end of the file",
                              offset);
    RHEA_AUTO_FREE char *name = calloc(1, (size_t)len + 1);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read(q->base.storage, name, len, offset, err);
    if (ret)
        return ret;
    q->backing_offset = offset;
    q->backing_length = len;
    /* A name that begins with NUL is none, as for every reader in C. */
    if (*name)
        q->backing_file = rhea_steal(name);
    return 0;
}

static int open_header(struct qcow1 *q, struct rhea_error *err)
{
    uint8_t h[QCOW1_HEADER];
    int ret = rhea_storage_size(q->base.storage, &q->file_size, err);
    if (ret)
        return ret;
    if (q->file_size < sizeof(h))
        return rhea_error_set(err, EINVAL,
                              "not a qcow image: the file has only %" PRIu64
                              " bytes",
                              q->file_size);
    ret = rhea_storage_read(q->base.storage, h, sizeof(h), 0, err);
    if (ret)
        return ret;
    uint32_t version = load_be32(h + QCOW1_H_VERSION);
    if (load_be32(h + QCOW1_H_MAGIC) != QCOW1_MAGIC)
        return rhea_error_set(err, EINVAL, "not a qcow image");
    if (version != 1)
        return rhea_error_set(err, ENOTSUP,
                              "this is a qcow image of version %" PRIu32
                              ": open it as 'qcow2'",
                              version);
    q->crypt_method = load_be32(h + QCOW1_H_CRYPT);
    q->mtime = load_be32(h + QCOW1_H_MTIME);
    ret = open_geometry(q, h, err);
    if (!ret)
        ret = open_layout(q, h, err);
    if (!ret)
        ret = open_backing_name(q, h, err);
    return ret;
}

static int open_crypt(struct qcow1 *q, const struct rhea_format_open *how,
                      struct rhea_error *err)
{
    static const char *const methods[] = {NULL, "aes"};
    const struct sector_crypt_options own = {
        "qcow", methods, RHEA_ARRAY_SIZE(methods), q->crypt_method};
    const char *secret;
    int ret =
        sector_crypt_options(&own, how->options, how->n_options, &secret, err);
    if (ret || !q->crypt_method)
        return ret;
    if ((how->flags & RHEA_FORMAT_NO_IO) ||
        (!secret && (how->flags & RHEA_FORMAT_CHECK)))
        return 0;
    ret = sector_crypt_aes(&q->aes, secret, err);
    q->crypt.cipher = q->aes;
    return ret;
}

static void qcow1_destroy(struct qcow1 *q)
{
    table_finish(&q->tables);
    blocks_finish(&q->blocks);
    sector_crypt_finish(&q->crypt);
    crypto_cipher_free(q->aes);
    deflate_pool_finish(&q->deflate);
    free(q->backing_file);
    free(q);
}

static void open_blocks(struct qcow1 *q, unsigned flags)
{
    struct blocks *b = &q->blocks;
    if (q->crypt_method)
        b->ops = &qcow1_crypt_blocks_ops;
    b->size = q->base.size;
    b->block_size = b->unit = q->cluster_size;
    b->child = q->backing_file;
    q->repairable = flags & RHEA_FORMAT_WRITE;
    b->writable = q->repairable && !(flags & RHEA_FORMAT_CHECK);
    /* See qcow1_write.c. */
    if (b->writable)
        b->file_end = align_up(q->file_size, QCOW1_SECTOR);
}

static int qcow1_open(struct rhea_format **out,
                      const struct rhea_format_open *how,
                      struct rhea_error *err)
{
    struct qcow1 *q = calloc(1, sizeof(*q));
    if (!q)
        return rhea_error_set(err, ENOMEM, "out of memory");
    q->base.ops = &rhea_format_qcow;
    q->base.storage = how->storage;
    blocks_init(&q->blocks, &qcow1_blocks_ops, &q->base);
    sector_crypt_init(&q->crypt);
    deflate_pool_init(&q->deflate);

    int ret = open_header(q, err);
    if (!ret)
        ret = open_crypt(q, how, err);
    if (!ret) {
        open_blocks(q, how->flags);
        ret = qcow1_table_init(q, err);
    }
    if (ret) {
        qcow1_destroy(q);
        return ret;
    }
    *out = &q->base;
    return 0;
}

static int qcow1_flush(struct rhea_format *f, struct rhea_error *err)
{
    return blocks_flush(&qcow1_of(f)->blocks, err);
}

static int qcow1_close(struct rhea_format *f, struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    int ret = q->blocks.writable ? qcow1_flush(f, err) : 0;
    qcow1_destroy(q);
    return ret;
}

/* --- What it is --- */

static void qcow1_info(struct rhea_format *f, struct rhea_format_info *info)
{
    const struct qcow1 *q = qcow1_of(f);
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = q->cluster_size,
        .backing_file = q->backing_file,
        .backing_file_offset = q->backing_offset,
        .encrypted = q->crypt_method,
    };
}

static int qcow1_facts(struct rhea_format *f, struct rhea_facts *facts,
                       struct rhea_error *err)
{
    const struct qcow1 *q = qcow1_of(f);
    (void)err;
    rhea_facts_number(facts, "L2 table entries", "l2-entries",
                      UINT64_C(1) << q->l2_bits);
    rhea_facts_number(facts, "L1 table entries", "l1-entries", q->l1_size);
    if (q->mtime)
        rhea_facts_number(facts, "modified", "modified", q->mtime);
    if (!q->crypt_method)
        return 0;
    rhea_facts_object(facts, "encrypt", "encrypt");
    rhea_facts_string(facts, "format", "format", "aes");
    rhea_facts_string(facts, "warning", "warning",
                      "this encryption is weak; convert the image to qcow2 "
                      "with encrypt.format=luks");
    rhea_facts_end(facts);
    return 0;
}

/* --- Guest bytes --- */

static int qcow1_map(struct rhea_format *f, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err)
{
    return blocks_map(&qcow1_of(f)->blocks, offset, len, extent, err);
}

static int qcow1_write(struct rhea_format *f, uint64_t offset, const void *buf,
                       size_t len, struct rhea_error *err)
{
    return blocks_write(&qcow1_of(f)->blocks, offset, buf, len, err);
}

static int qcow1_write_zeroes(struct rhea_format *f, uint64_t offset,
                              uint64_t len, bool unmap, struct rhea_error *err)
{
    return blocks_write_zeroes(&qcow1_of(f)->blocks, offset, len, unmap, err);
}

static const char *const qcow1_strong_options[] = {"encrypt.key-secret", NULL};

const struct rhea_format_ops rhea_format_qcow = {
    .name = "qcow",
    .create_options = qcow1_create_options,
    .strong_options = qcow1_strong_options,
    .probe = qcow1_probe,
    .open = qcow1_open,
    .close = qcow1_close,
    .info = qcow1_info,
    .facts = qcow1_facts,
    .map = qcow1_map,
    .read = qcow1_read,
    .write = qcow1_write,
    .write_zeroes = qcow1_write_zeroes,
    .write_compressed = qcow1_write_compressed,
    .flush = qcow1_flush,
    .check = qcow1_check,
    .counts_lost = true,
    .create = qcow1_create,
    .measure = qcow1_measure,
    .resize = qcow1_resize,
    .set_backing = qcow1_set_backing,
    .make_empty = qcow1_make_empty,
};
