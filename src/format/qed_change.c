/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole image: its size, its backing file, emptying it.
 *
 * Order of writes. A size is one field of the first sector, and so are a
 * backing file's features, place and length. What the tables have behind the
 * old end, which nobody could see, is zeroed before the size; flush. A backing
 * name that does not end in the first sector goes to a place that the old one
 * does not use, and is durable before the fields that lead to it. Emptying
 * writes an L1 table of zeroes, each entry of which means by itself that the
 * backing file shows through; flush; then the file is cut off behind the table.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/qed.h"

enum { SECTOR = 512 };

/* Where a name of LEN bytes goes; 0: nowhere. */
static uint64_t change_name_place(const struct qed *q, size_t len)
{
    uint64_t end = q->backing_file ? q->backing_offset + strlen(q->backing_file)
                                   : QED_HEADER_LENGTH;
    if (QED_HEADER_LENGTH + len <= SECTOR)
        return QED_HEADER_LENGTH;
    if (!q->backing_file || QED_HEADER_LENGTH + len <= q->backing_offset)
        return QED_HEADER_LENGTH;
    end = RHEA_MAX(end, SECTOR);
    return end + len <= q->header_bytes ? end : 0;
}

static int change_write_backing(struct qed *q, const char *file, uint64_t at,
                                uint64_t features, struct rhea_error *err)
{
    uint8_t sector[SECTOR];
    size_t len = file ? strlen(file) : 0;
    int ret = rhea_storage_read_padded(q->base.storage, sector, SECTOR, 0, err);
    if (!ret && at + len > SECTOR) {
        ret = rhea_storage_write(q->base.storage, file, len, at, err);
        if (!ret)
            ret = rhea_storage_flush(q->base.storage, err);
    }
    if (ret)
        return ret;
    if (at < SECTOR)
        memcpy(sector + at, file ? file : "", RHEA_MIN(len, SECTOR - at));
    store_le64(sector + QED_H_FEATURES, features);
    store_le32(sector + QED_H_BACKING_OFFSET, len ? (uint32_t)at : 0);
    store_le32(sector + QED_H_BACKING_SIZE, (uint32_t)len);
    return rhea_storage_write(q->base.storage, sector, SECTOR, 0, err);
}

int qed_set_backing(struct rhea_format *f, const char *file, const char *format,
                    struct rhea_format *parent, struct rhea_error *err)
{
    (void)parent;
    struct qed *q = (struct qed *)f;
    if (file && !*file)
        file = NULL;
    size_t len = file ? strlen(file) : 0;
    if (len > QED_BACKING_NAME_MAX)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the backing file's name is longer than %d bytes",
                              QED_BACKING_NAME_MAX);
    RHEA_AUTO_FREE char *name = file ? strdup(file) : NULL;
    if (file && !name)
        return rhea_error_set(err, ENOMEM, "out of memory");

    RHEA_LOCKED(&q->blocks.lock);
    uint64_t at = change_name_place(q, len);
    if (!at)
        return rhea_error_set(err, ENOSPC,
                              "the header has no room for the backing file's "
                              "name next to the present one");
    uint64_t features = q->features;
    features &= ~(uint64_t)(QED_F_BACKING_FILE | QED_F_NO_PROBE);
    if (file)
        features |= QED_F_BACKING_FILE;
    if (file && format && strcmp(format, "raw") == 0)
        features |= QED_F_NO_PROBE;
    int ret = blocks_change_begin(&q->blocks, err);
    if (ret)
        return ret;
    ret = blocks_change_end(
        &q->blocks, change_write_backing(q, file, at, features, err), err);
    if (ret)
        return ret;
    q->features = features;
    q->blocks.child = file;
    free(q->backing_file);
    q->backing_file = rhea_steal(name);
    q->backing_offset = file ? at : 0;
    return 0;
}

int qed_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    RHEA_LOCKED(&q->blocks.lock);
    int ret = blocks_change_begin(&q->blocks, err);
    if (ret)
        return ret;
    table_drop(&q->tables);
    ret = blocks_change_end(
        &q->blocks,
        rhea_storage_zero(f->storage, q->l1_offset, q->table_bytes, true, err),
        err);
    if (ret)
        return ret;
    /* Where the file cannot be cut off, its end is a leak. */
    uint64_t end = q->l1_offset + q->table_bytes;
    if (end < q->blocks.file_end &&
        rhea_storage_truncate(f->storage, end, NULL) == 0) {
        q->blocks.file_end = end;
        q->blocks.grown = 0;
        ret = blocks_change_end(&q->blocks, 0, err);
    }
    return ret;
}

static int change_check_size(const struct qed *q, const struct rhea_resize *how,
                             struct rhea_error *err)
{
    unsigned shift = q->cluster_bits + q->entry_bits;
    if (how->preallocation && strcmp(how->preallocation, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "QED knows no preallocation, such as '%s'",
                              how->preallocation);
    if (how->size < q->base.size)
        return rhea_error_set(err, ENOTSUP, "a QED image cannot shrink");
    if (how->size % SECTOR)
        return rhea_error_set(err, EINVAL,
                              "the size must be a multiple of 512 bytes");
    if (how->size > INT64_MAX ||
        (how->size && (how->size - 1) >> shift >> q->entry_bits))
        return rhea_error_set(err, EFBIG,
                              "%" PRIu64 " bytes are more than a QED image "
                              "with these clusters and tables can hold",
                              how->size);
    return 0;
}

int qed_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    uint64_t old = f->size;
    uint8_t field[8];
    int ret = change_check_size(q, how, err);
    if (ret)
        return ret;
    pthread_mutex_lock(&q->blocks.lock);
    ret = blocks_change_begin(&q->blocks, err);
    pthread_mutex_unlock(&q->blocks.lock);
    if (ret || how->size == old)
        return ret;
    f->size = q->blocks.size = how->size;
    /* The tables may have something behind the old end. */
    ret = blocks_hide(&q->blocks, old, how->size, how->hide_below, err);
    if (!ret) {
        RHEA_LOCKED(&q->blocks.lock);
        store_le64(field, how->size);
        ret = blocks_change_end(
            &q->blocks,
            rhea_storage_write(f->storage, field, 8, QED_H_IMAGE_SIZE, err),
            err);
    }
    if (ret)
        f->size = q->blocks.size = old;
    return ret;
}
