/* SPDX-License-Identifier: MIT */
/*
 * QED, the "QEMU enhanced disk" format: docs/interop/qed_spec.txt in QEMU.
 *
 * A header, one L1 table and L2 tables of the same size, 1 to 16 clusters of
 * 4 KiB to 64 MiB each; no reference counts, so an allocation is the growth of
 * the file. An L2 entry is an offset, 0 (the backing file shows through) or 1
 * (zeroes). All of it is supported. What the program does not do: give single
 * clusters back, which the format cannot express.
 *
 * Tables are never loaded whole: one can be 1 GiB. qed_table.c has the order of
 * their writes, qed_write.c the guest's.
 */
#include "format/qed.h"
#include "format/option.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"

static int qed_probe(const uint8_t *head, size_t len)
{
    return len >= QED_HEADER_LENGTH && load_le32(head) == QED_MAGIC ? 100 : 0;
}

bool qed_range_valid(const struct qed *q, uint64_t offset, uint64_t length)
{
    return is_aligned(offset, q->cluster_size) && offset >= q->header_bytes &&
           range_inside(offset, length, q->blocks.file_end);
}

uint64_t qed_clusters(const struct qed *q)
{
    return div_up(q->base.size, q->cluster_size);
}

/* What the header says of sizes, validated; the file's size is known. */
static int qed_parse_geometry(struct qed *q, const uint8_t *h,
                              struct rhea_error *err)
{
    uint32_t cluster = load_le32(h + QED_H_CLUSTER_SIZE);
    uint32_t table = load_le32(h + QED_H_TABLE_SIZE);
    uint32_t header = load_le32(h + QED_H_HEADER_SIZE);

    if (!is_power_of_2(cluster) || cluster < QED_MIN_CLUSTER ||
        cluster > QED_MAX_CLUSTER)
        return rhea_error_set(
            err, EINVAL, "invalid QED header: cluster size %" PRIu32, cluster);
    if (!is_power_of_2(table) || table > QED_MAX_TABLE)
        return rhea_error_set(
            err, EINVAL, "invalid QED header: table size %" PRIu32 " clusters",
            table);
    if (header == 0)
        return rhea_error_set(err, EINVAL, "invalid QED header: header size 0");

    q->cluster_size = cluster;
    q->cluster_bits = log2_u64(cluster);
    q->table_bytes = (uint64_t)table * cluster;
    q->entry_bits = log2_u64(q->table_bytes / sizeof(uint64_t));
    q->header_bytes = (uint64_t)header * cluster;
    /* QED has no use for a part of a cluster at the end of the file. */
    q->blocks.file_end = align_down(q->blocks.file_end, cluster);
    return 0;
}

static int qed_parse_layout(struct qed *q, const uint8_t *h,
                            struct rhea_error *err)
{
    q->base.size = load_le64(h + QED_H_IMAGE_SIZE);
    unsigned table_shift = q->cluster_bits + q->entry_bits;
    if (q->base.size % 512 || q->base.size > INT64_MAX ||
        (q->base.size && (q->base.size - 1) >> table_shift >> q->entry_bits))
        return rhea_error_set(err, EINVAL,
                              "invalid QED header: image size %" PRIu64,
                              q->base.size);

    q->l1_offset = load_le64(h + QED_H_L1_OFFSET);
    if (!qed_range_valid(q, q->l1_offset, q->table_bytes))
        return rhea_error_set(err, EINVAL,
                              "invalid QED header: an L1 table of %" PRIu64
                              " bytes at offset %" PRIu64
                              " does not lie between the header (%" PRIu64
                              " bytes) and the end of the file",
                              q->table_bytes, q->l1_offset, q->header_bytes);
    return 0;
}

static int qed_read_backing_name(struct qed *q, const uint8_t *h,
                                 struct rhea_error *err)
{
    if (!(q->features & QED_F_BACKING_FILE))
        return 0;
    uint32_t offset = load_le32(h + QED_H_BACKING_OFFSET);
    uint32_t len = load_le32(h + QED_H_BACKING_SIZE);
    if (!range_inside(offset, len, q->header_bytes))
        return rhea_error_set(err, EINVAL,
                              "invalid QED header: the backing file's name at "
                              "offset %" PRIu32 " lies outside of it",
                              offset);
    if (len > RHEA_BACKING_NAME_MAX)
        return rhea_error_set(err, EINVAL,
                              "invalid QED header: a backing file's name of "
                              "%" PRIu32 " bytes",
                              len);
    if (len == 0)
        return 0;

    RHEA_AUTO_FREE char *name = calloc(1, (size_t)len + 1);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read(q->base.storage, name, len, offset, err);
    if (ret)
        return ret;
    q->backing_offset = offset;
    /* A name that begins with NUL is none, as for every reader in C. */
    if (*name)
        q->backing_file = rhea_steal(name);
    return 0;
}

static int qed_read_header(struct qed *q, struct rhea_error *err)
{
    uint8_t h[QED_HEADER_LENGTH];
    int ret = rhea_storage_size(q->base.storage, &q->blocks.file_end, err);
    if (ret)
        return ret;
    if (q->blocks.file_end < sizeof(h))
        return rhea_error_set(
            err, EINVAL, "not a QED image: the file has only %" PRIu64 " bytes",
            q->blocks.file_end);
    ret = rhea_storage_read(q->base.storage, h, sizeof(h), 0, err);
    if (ret)
        return ret;
    if (load_le32(h) != QED_MAGIC)
        return rhea_error_set(err, EINVAL, "not a QED image");

    q->features = load_le64(h + QED_H_FEATURES);
    q->compat = load_le64(h + QED_H_COMPAT);
    q->autoclear = load_le64(h + QED_H_AUTOCLEAR);
    if (q->features & ~(uint64_t)QED_F_KNOWN)
        return rhea_error_set(err, ENOTSUP,
                              "this QED image uses features that this program "
                              "does not know: 0x%" PRIx64,
                              q->features & ~(uint64_t)QED_F_KNOWN);
    ret = qed_parse_geometry(q, h, err);
    if (!ret)
        ret = qed_parse_layout(q, h, err);
    if (!ret)
        ret = qed_read_backing_name(q, h, err);
    return ret;
}

/*
 * An image that was not closed cleanly is checked before it is written to
 * (spec, "Consistency checking"). Leaks do no harm. Anything else must be
 * looked at by a person: repairing drops guest data. The flag stays set until
 * the image is closed.
 */
static int qed_check_unclean(struct qed *q, struct rhea_error *err)
{
    struct rhea_check check = {0};
    int ret = qed_check(&q->base, 0, &check, err);
    if (ret)
        return ret;
    if (check.corruptions || check.errors)
        return rhea_error_set(
            err, EIO,
            "this QED image was not closed cleanly and is damaged "
            "(%" PRIu64 " errors); repair it with 'check -r all'",
            check.corruptions + check.errors);
    return 0;
}

static int qed_open_write(struct qed *q, unsigned flags, struct rhea_error *err)
{
    int ret = 0;
    q->blocks.writable = true;
    if (flags & RHEA_FORMAT_CHECK)
        return 0;
    if (q->features & QED_F_NEED_CHECK) {
        ret = qed_check_unclean(q, err);
        q->clear_flag = !ret;
    }
    /* Extensions that a writer who does not know them makes stale. */
    if (!ret && q->autoclear) {
        q->autoclear = 0;
        ret = qed_write_features(q, err);
        if (!ret)
            ret = rhea_storage_flush(q->base.storage, err);
    }
    return ret;
}

static void qed_destroy(struct qed *q)
{
    table_finish(&q->tables);
    blocks_finish(&q->blocks);
    free(q->backing_file);
    free(q);
}

static int qed_init_tables(struct qed *q, struct rhea_error *err)
{
    const struct table_how how = {
        .page_bytes = RHEA_MIN(q->cluster_size, (uint32_t)QED_PAGE_MAX),
        .cache_bytes = QED_CACHE_BYTES,
    };
    q->blocks.size = q->base.size;
    q->blocks.block_size = q->blocks.unit = q->cluster_size;
    q->blocks.child = q->features & QED_F_BACKING_FILE;
    return table_init(&q->tables, q->base.storage, &how, err);
}

static int qed_open(struct rhea_format **out,
                    const struct rhea_format_open *how, struct rhea_error *err)
{
    int ret = option_none(how, "qed", err);
    if (ret)
        return ret;
    struct qed *q = calloc(1, sizeof(*q));
    if (!q)
        return rhea_error_set(err, ENOMEM, "out of memory");
    q->base.ops = &rhea_format_qed;
    q->base.storage = how->storage;
    blocks_init(&q->blocks, &qed_blocks_ops, &q->base);

    ret = qed_read_header(q, err);
    if (!ret)
        ret = qed_init_tables(q, err);
    if (!ret && (how->flags & RHEA_FORMAT_WRITE))
        ret = qed_open_write(q, how->flags, err);
    if (ret) {
        qed_destroy(q);
        return ret;
    }
    *out = &q->base;
    return 0;
}

/* The flag is cleared only once all it warned of is durable. */
static int qed_close(struct rhea_format *f, struct rhea_error *err)
{
    struct qed *q = (struct qed *)f;
    int ret = 0;
    if (q->blocks.writable)
        ret = blocks_flush(&q->blocks, err);
    if (!ret && q->blocks.writable && q->clear_flag) {
        q->features &= ~(uint64_t)QED_F_NEED_CHECK;
        ret = qed_write_features(q, err);
        if (!ret)
            ret = rhea_storage_flush(f->storage, err);
    }
    qed_destroy(q);
    return ret;
}

static int qed_map_guest(struct rhea_format *f, uint64_t offset, uint64_t len,
                         struct rhea_extent *extent, struct rhea_error *err)
{
    return blocks_map(&((struct qed *)f)->blocks, offset, len, extent, err);
}

static int qed_write(struct rhea_format *f, uint64_t offset, const void *buf,
                     size_t len, struct rhea_error *err)
{
    return blocks_write(&((struct qed *)f)->blocks, offset, buf, len, err);
}

static int qed_clone(struct rhea_format *f, uint64_t offset,
                     struct rhea_storage *from, uint64_t from_offset,
                     uint64_t len, struct rhea_error *err)
{
    return blocks_clone(&((struct qed *)f)->blocks, offset, from, from_offset,
                        len, err);
}

static int qed_write_zeroes(struct rhea_format *f, uint64_t offset,
                            uint64_t len, bool unmap, struct rhea_error *err)
{
    return blocks_write_zeroes(&((struct qed *)f)->blocks, offset, len, unmap,
                               err);
}

static int qed_flush(struct rhea_format *f, struct rhea_error *err)
{
    return blocks_flush(&((struct qed *)f)->blocks, err);
}

static void qed_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct qed *q = (struct qed *)f;
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = q->cluster_size,
        .backing_file = q->backing_file,
        .backing_file_offset = q->backing_offset,
        .extensions = q->compat || q->autoclear,
    };
    if (q->backing_file && (q->features & QED_F_NO_PROBE))
        info->backing_format = "raw";
    RHEA_LOCKED(&q->blocks.lock);
    info->dirty = q->features & QED_F_NEED_CHECK;
}

static const struct rhea_option_help qed_options[] = {
    {"size", "size", "Virtual disk size"},
    {"backing_file", "str", "File that shows through where nothing is written"},
    {"backing_fmt", "str", "Format of the backing file"},
    {"cluster_size", "size", "Cluster size, 4k to 64M (default: 65536)"},
    {"table_size", "num",
     "Size of L1 and L2 tables in clusters, 1 to 16 (default: 4)"},
    {0},
};

const struct rhea_format_ops rhea_format_qed = {
    .name = "qed",
    .create_options = qed_options,
    .probe = qed_probe,
    .open = qed_open,
    .close = qed_close,
    .info = qed_info,
    .map = qed_map_guest,
    .write = qed_write,
    .clone = qed_clone,
    .write_zeroes = qed_write_zeroes,
    .flush = qed_flush,
    .check = qed_check,
    .walk = qed_walk,
    .create = qed_create,
    .resize = qed_resize,
    .set_backing = qed_set_backing,
    .make_empty = qed_make_empty,
};
