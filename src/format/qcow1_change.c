/* SPDX-License-Identifier: MIT */
/*
 * Changes of a whole image: its size, its backing file, emptying it.
 *
 * Order of writes. What does not fit where it is goes to the file's end: the
 * backing file's name, and behind it, so that QEMU's emptying of the image does
 * not cut the name off, the L1 table, longer where the disk becomes larger.
 * Flush; then the header's sector, which has all that changes; flush. A name
 * that ends in the first sector is written together with the header. Emptying
 * writes an L1 table of zeroes, each entry of which means by itself that the
 * backing file shows through; flush; then the file is cut off behind the table.
 * Shrinking writes the header first, after which nobody looks behind the new
 * end; flush; then entries of the last L2 table that lead there become 0;
 * flush; then what nobody uses is cut off or becomes a hole (qcow1_check.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/qcow1.h"

enum { COPY_BYTES = 64 << 10 };

/* What the header is to say. */
struct change {
    uint64_t size; /* 0: what it says */
    uint64_t l1_offset, l1_size;
    const char *name; /* NULL: no backing file */
    uint64_t name_offset;
};

static struct change change_from(const struct qcow1 *q)
{
    return (struct change){
        .l1_offset = q->l1_offset,
        .l1_size = q->l1_size,
        .name = q->backing_file,
        .name_offset = q->backing_offset,
    };
}

static bool change_is_zero(const uint8_t *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* The file has grown to hold it, by zeroes, which stay where there are any. */
static int change_copy_l1(struct qcow1 *q, uint64_t to, struct rhea_error *err)
{
    uint64_t len = q->l1_size * QCOW1_ENTRY;
    RHEA_AUTO_FREE uint8_t *buf = malloc(COPY_BYTES);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t at = 0; at < len;) {
        uint64_t hole = table_zero_run(&q->tables, q->l1_offset + at, len - at);
        if (hole) {
            at += hole;
            continue;
        }
        size_t n = (size_t)RHEA_MIN(len - at, COPY_BYTES);
        int ret =
            rhea_storage_read(q->base.storage, buf, n, q->l1_offset + at, err);
        if (!ret && !change_is_zero(buf, n))
            ret = rhea_storage_write(q->base.storage, buf, n, to + at, err);
        if (ret)
            return ret;
        at += n;
    }
    return 0;
}

/* Bring what C names, and that does not fit elsewhere, to the file's end. */
static int change_append(struct qcow1 *q, struct change *c, bool name,
                         struct rhea_error *err)
{
    struct blocks *b = &q->blocks;
    size_t len = name ? strlen(c->name) : 0;
    b->file_end = align_up(b->file_end, QCOW1_SECTOR);
    int ret =
        blocks_extend(b, align_up(len, QCOW1_SECTOR), &c->name_offset, err);
    if (!name)
        c->name_offset = q->backing_offset;
    if (!ret)
        ret = blocks_extend(b, align_up(c->l1_size * QCOW1_ENTRY, QCOW1_SECTOR),
                            &c->l1_offset, err);
    if (!ret)
        ret = blocks_grow(b, err);
    if (!ret && name)
        ret = rhea_storage_write(b->storage, c->name, len, c->name_offset, err);
    if (!ret)
        ret = change_copy_l1(q, c->l1_offset, err);
    return ret ? ret : rhea_storage_flush(b->storage, err);
}

/* Whether the name has room between the header and the L1 table. */
static bool change_name_fits(const struct qcow1 *q, const char *name)
{
    return QCOW1_HEADER + strlen(name) <= RHEA_MIN(q->l1_offset, QCOW1_SECTOR);
}

static int change_write_header(struct qcow1 *q, const struct change *c,
                               bool name_here, struct rhea_error *err)
{
    uint8_t h[QCOW1_SECTOR];
    size_t len = c->name ? strlen(c->name) : 0;
    int ret = rhea_storage_read_padded(q->base.storage, h, sizeof(h), 0, err);
    if (ret)
        return ret;
    if (name_here)
        memcpy(h + QCOW1_HEADER, c->name, len);
    store_be64(h + QCOW1_H_BACKING_OFFSET, len ? c->name_offset : 0);
    store_be32(h + QCOW1_H_BACKING_SIZE, (uint32_t)len);
    if (c->size)
        store_be64(h + QCOW1_H_SIZE, c->size);
    store_be64(h + QCOW1_H_L1_OFFSET, c->l1_offset);
    return rhea_storage_write(q->base.storage, h, sizeof(h), 0, err);
}

/* With the lock held, nothing in flight or dirty. NAME_NEW: the name is not
 * where C says yet. */
static int change_run(struct qcow1 *q, struct change *c, bool name_new,
                      struct rhea_error *err)
{
    bool here = name_new && change_name_fits(q, c->name);
    bool append = c->l1_size > q->l1_size || (name_new && !here);
    int ret = blocks_begin(&q->blocks, err);
    if (!ret && append)
        ret = change_append(q, c, name_new && !here, err);
    if (here)
        c->name_offset = QCOW1_HEADER;
    table_drop(&q->tables);
    if (!ret)
        ret = change_write_header(q, c, here, err);
    ret = blocks_change_end(&q->blocks, ret, err);
    if (ret)
        return ret;
    q->l1_offset = c->l1_offset;
    q->l1_size = c->l1_size;
    q->backing_offset = c->name ? c->name_offset : 0;
    q->backing_length = c->name ? (uint32_t)strlen(c->name) : 0;
    return 0;
}

int qcow1_set_backing(struct rhea_format *f, const char *file,
                      const char *format, struct rhea_format *parent,
                      struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    (void)format;
    (void)parent;
    if (file && !*file)
        file = NULL;
    if (file && strlen(file) > QCOW1_BACKING_NAME_MAX)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the backing file's name is longer than %d bytes",
                              QCOW1_BACKING_NAME_MAX);
    /* What has to move to make room for a name leaves its old place unused. */
    if (file && q->backing_file && !strcmp(file, q->backing_file))
        return 0;
    RHEA_AUTO_FREE char *name = file ? strdup(file) : NULL;
    if (file && !name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    RHEA_LOCKED(&q->blocks.lock);
    int ret = blocks_change_begin(&q->blocks, err);
    if (ret)
        return ret;
    struct change c = change_from(q);
    c.name = name;
    ret = change_run(q, &c, name != NULL, err);
    if (ret)
        return ret;
    q->blocks.child = name;
    free(q->backing_file);
    q->backing_file = rhea_steal(name);
    return 0;
}

/* --- Emptying --- */

static int change_empty(struct qcow1 *q, struct rhea_error *err)
{
    struct rhea_storage *storage = q->base.storage;
    table_drop(&q->tables);
    int ret = rhea_storage_zero(storage, q->l1_offset, q->l1_size * QCOW1_ENTRY,
                                true, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    uint64_t end = qcow1_l1_end(q);
    end = RHEA_MAX(end, q->backing_offset + q->backing_length);
    end = align_up(end, QCOW1_SECTOR);
    if (ret || end >= q->blocks.file_end)
        return ret;
    q->blocks.file_end = q->blocks.grown = q->file_size = end;
    return rhea_storage_truncate(storage, end, err);
}

int qcow1_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    RHEA_LOCKED(&q->blocks.lock);
    int ret = blocks_change_begin(&q->blocks, err);
    if (!ret)
        ret = blocks_begin(&q->blocks, err);
    return ret ? ret : blocks_change_end(&q->blocks, change_empty(q, err), err);
}

/* --- Size --- */

static int grow_check(const struct qcow1 *q, const struct rhea_resize *how,
                      struct rhea_error *err)
{
    if (how->preallocation && strcmp(how->preallocation, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "qcow knows no preallocation, such as '%s'",
                              how->preallocation);
    if (how->size < q->base.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "the image would lose what lies behind its new "
                              "end");
    if (how->size % QCOW1_SECTOR || !how->size)
        return rhea_error_set(err, EINVAL,
                              "the size must be a multiple of %d bytes",
                              QCOW1_SECTOR);
    return how->size > INT64_MAX
               ? rhea_error_set(err, EFBIG, "no image can be that large")
               : 0;
}

static void grow_set_size(struct qcow1 *q, uint64_t size)
{
    RHEA_LOCKED(&q->blocks.lock);
    q->base.size = q->blocks.size = size;
}

/* The header says the old size until all that the new one needs is there. */
static int grow_table(struct qcow1 *q, uint64_t size, struct rhea_error *err)
{
    if (qcow1_l1_entries(q, size) <= q->l1_size)
        return 0;
    RHEA_LOCKED(&q->blocks.lock);
    int ret = blocks_change_begin(&q->blocks, err);
    if (ret)
        return ret;
    struct change c = change_from(q);
    c.l1_size = qcow1_l1_entries(q, size);
    return change_run(q, &c, false, err);
}

static int grow_header(struct qcow1 *q, uint64_t size, struct rhea_error *err)
{
    RHEA_LOCKED(&q->blocks.lock);
    int ret = blocks_change_begin(&q->blocks, err);
    if (ret)
        return ret;
    struct change c = change_from(q);
    c.size = size;
    return change_run(q, &c, false, err);
}

/* What must not show between the old end and the new one: what the tables have
 * there already, and what is below. */
static int grow_zero(struct qcow1 *q, uint64_t old, uint64_t tables,
                     bool hide_below, struct rhea_error *err)
{
    uint64_t end = hide_below ? q->base.size : RHEA_MIN(tables, q->base.size);
    return blocks_hide(&q->blocks, old, end, hide_below, err);
}

/* With the lock held. The L1 table is shorter already, if only in what the
 * header's size says of it. */
static int shrink_entries(struct qcow1 *q, struct rhea_error *err)
{
    uint64_t first = div_up(q->base.size, q->cluster_size), table, entry;
    uint64_t n = qcow1_table_left(q, first);
    if (n == UINT64_C(1) << q->l2_bits)
        return 0;
    int ret = qcow1_l1_get(q, first, &table, err);
    for (uint64_t i = first; i < first + n && table && !ret; i++) {
        ret = qcow1_entry_get(q, i, &entry, err);
        if (!ret && entry)
            ret = qcow1_l2_set(q, i, 1, 0, 0, err);
    }
    return ret ? ret : table_write_back(&q->tables, err);
}

static int qcow1_shrink(struct qcow1 *q, uint64_t size, struct rhea_error *err)
{
    RHEA_LOCKED(&q->blocks.lock);
    int ret = blocks_change_begin(&q->blocks, err);
    if (ret)
        return ret;
    struct change c = change_from(q);
    c.size = size;
    c.l1_size = qcow1_l1_entries(q, size);
    ret = change_run(q, &c, false, err);
    if (ret)
        return ret;
    q->base.size = q->blocks.size = size;
    ret = blocks_change_end(&q->blocks, shrink_entries(q, err), err);
    return ret ? ret
               : blocks_change_end(&q->blocks, qcow1_give_back(q, err), err);
}

int qcow1_resize(struct rhea_format *f, const struct rhea_resize *how,
                 struct rhea_error *err)
{
    struct qcow1 *q = qcow1_of(f);
    uint64_t old = f->size;
    uint64_t tables = q->l1_size << (q->cluster_bits + q->l2_bits);
    int ret = grow_check(q, how, err);
    if (!ret && !q->blocks.writable)
        ret = rhea_error_set(err, EACCES, "the image is open for reading only");
    if (!ret && q->crypt_method && !q->aes)
        ret = rhea_error_set(err, EACCES,
                             "the image is encrypted, and was opened without "
                             "its passphrase");
    if (ret || how->size == old)
        return ret;
    if (how->size < old)
        return qcow1_shrink(q, how->size, err);
    ret = grow_table(q, how->size, err);
    if (ret)
        return ret;
    grow_set_size(q, how->size);
    ret = grow_zero(q, old, tables, how->hide_below, err);
    if (!ret)
        ret = grow_header(q, how->size, err);
    if (ret)
        grow_set_size(q, old);
    return ret;
}
