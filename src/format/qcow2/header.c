/* SPDX-License-Identifier: MIT */
/*
 * The header and its extensions (the spec, "Header", "Header extensions").
 * Everything is checked here against the limits that QEMU has too.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

#define FEATURE_BYTES 48
#define FEATURE_NAME 46

/* A table of N entries of ENTRY bytes: not more than MAX bytes, aligned, and
 * its end an offset that files can have. */
static int header_check_table(const struct qcow2 *q, const char *what,
                              uint64_t offset, uint64_t n, uint64_t entry,
                              uint64_t max, struct rhea_error *err)
{
    if (n > max / entry)
        return rhea_error_set(err, EFBIG,
                              "the %s has %" PRIu64
                              " entries, more than this program handles",
                              what, n);
    if (!is_aligned(offset, q->cluster_size) ||
        offset > (uint64_t)INT64_MAX - n * entry)
        return rhea_error_set(err, EINVAL,
                              "the offset of the %s, 0x%" PRIx64
                              ", is not one it can have",
                              what, offset);
    return 0;
}

/* Append the names that the image's own feature name table has for BITS. */
static int header_name_features(const uint8_t *table, size_t len, uint64_t bits,
                                struct rhea_error *err)
{
    char names[512] = "";
    size_t used = 0;

    for (unsigned bit = 0; bit < 64; bit++) {
        char name[FEATURE_NAME + 1];

        if (!(bits >> bit & 1))
            continue;
        snprintf(name, sizeof(name), "bit %u", bit);
        for (size_t at = 0; at + FEATURE_BYTES <= len; at += FEATURE_BYTES) {
            if (table[at] == 0 && table[at + 1] == bit && table[at + 2]) {
                memcpy(name, table + at + 2, FEATURE_NAME);
                name[FEATURE_NAME] = 0;
            }
        }
        for (char *c = name; *c; c++)
            if ((unsigned char)*c < ' ' || *c == 127)
                *c = '?';
        if (used + strlen(name) + 8 > sizeof(names))
            break;
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
                                 used ? ", " : "", name);
    }
    return rhea_error_set(err, ENOTSUP,
                          "the image needs features that this program does "
                          "not know: %s",
                          names);
}

static char *header_copy_string(const uint8_t *data, size_t len)
{
    return strndup((const char *)data, len);
}

static int header_read_bitmaps(struct qcow2 *q, const uint8_t *data,
                               uint32_t len, struct rhea_error *err)
{
    if (len != 24)
        return rhea_error_set(err, EINVAL,
                              "the bitmaps extension is %" PRIu32
                              " bytes long instead of 24",
                              len);
    q->n_bitmaps = load_be32(data);
    q->bitmap_dir_size = load_be64(data + 8);
    q->bitmap_dir_offset = load_be64(data + 16);
    /* Not kept up to date by whoever wrote last: the fields mean nothing. */
    if (!(q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (load_be32(data + 4))
        return rhea_error_set(err, EINVAL,
                              "reserved bytes of the bitmaps extension are "
                              "not zero");
    if (!q->n_bitmaps || q->n_bitmaps > QCOW2_MAX_BITMAPS)
        return rhea_error_set(err, EINVAL,
                              "the bitmaps extension counts %" PRIu32
                              " bitmaps; 1 to %d are possible",
                              q->n_bitmaps, QCOW2_MAX_BITMAPS);
    return header_check_table(q, "bitmap directory", q->bitmap_dir_offset,
                              q->bitmap_dir_size, 1, QCOW2_MAX_BITMAP_DIRECTORY,
                              err);
}

static int header_read_crypto(struct qcow2 *q, const uint8_t *data,
                              uint32_t len, struct rhea_error *err)
{
    if (q->crypt_method != 2 || len != 16)
        return rhea_error_set(err, EINVAL,
                              "the encryption header extension does not fit "
                              "the encryption method %" PRIu32,
                              q->crypt_method);
    q->crypto_offset = load_be64(data);
    q->crypto_length = load_be64(data + 8);
    return header_check_table(q, "encryption header", q->crypto_offset,
                              q->crypto_length, 1, 1ULL << 32, err);
}

/* One that means nothing to this program stays in the header. */
static int header_keep_extension(struct qcow2 *q, uint32_t type,
                                 const uint8_t *data, uint32_t len,
                                 struct rhea_error *err)
{
    size_t size = 8 + align_up((uint64_t)len, 8);
    uint8_t *more = realloc(q->unknown, q->unknown_length + size);

    if (!more)
        return rhea_error_set(err, ENOMEM, "out of memory");
    q->unknown = more;
    more += q->unknown_length;
    memset(more, 0, size);
    store_be32(more, type);
    store_be32(more + 4, len);
    if (len)
        memcpy(more + 8, data, len);
    q->unknown_length += size;
    q->unknown_parts = true;
    return 0;
}

static int header_read_extension(struct qcow2 *q, uint32_t type,
                                 const uint8_t *data, uint32_t len,
                                 struct rhea_error *err)
{
    char **string;

    switch (type) {
    case QCOW2_EXT_BACKING_FORMAT:
        if (len > QCOW2_MAX_BACKING_FORMAT)
            return rhea_error_set(err, EINVAL,
                                  "the backing format's name is %" PRIu32
                                  " bytes long, more than %d",
                                  len, QCOW2_MAX_BACKING_FORMAT);
        string = &q->backing_format;
        break;
    case QCOW2_EXT_DATA_FILE:
        string = &q->data_file;
        break;
    case QCOW2_EXT_BITMAPS:
        return header_read_bitmaps(q, data, len, err);
    case QCOW2_EXT_CRYPTO:
        return header_read_crypto(q, data, len, err);
    case QCOW2_EXT_FEATURE_NAMES:
        return 0;
    default:
        return header_keep_extension(q, type, data, len, err);
    }
    free(*string);
    *string = header_copy_string(data, len);
    return *string ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* Go through the extensions between the header and END. With BITS, only look
 * for the names of these unknown incompatible features. */
static int header_read_extensions(struct qcow2 *q, uint64_t end, uint64_t bits,
                                  struct rhea_error *err)
{
    uint64_t at = q->header_length;
    RHEA_AUTO_FREE uint8_t *area = NULL;
    int r;

    if (at >= end)
        return bits ? header_name_features(NULL, 0, bits, err) : 0;
    area = malloc(end - at);
    if (!area)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = rhea_storage_read_padded(q->f.storage, area, end - at, at, err);
    if (r < 0)
        return r;

    uint64_t len = end - at, pos = 0;
    while (pos + 8 <= len) {
        uint32_t type = load_be32(area + pos);
        uint32_t size = load_be32(area + pos + 4);

        pos += 8;
        if (type == QCOW2_EXT_END)
            break;
        if (size > len - pos) {
            if (bits)
                break;
            return rhea_error_set(err, EINVAL,
                                  "header extension 0x%08" PRIx32
                                  " runs past the end of the header",
                                  type);
        }
        if (bits) {
            if (type == QCOW2_EXT_FEATURE_NAMES)
                return header_name_features(area + pos, size, bits, err);
        } else {
            r = header_read_extension(q, type, area + pos, size, err);
            if (r < 0)
                return r;
        }
        pos += align_up(size, 8);
    }
    return bits ? header_name_features(NULL, 0, bits, err) : 0;
}

static int header_read_backing(struct qcow2 *q, uint32_t len,
                               struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *name = NULL;
    int r;

    if (!q->backing_offset)
        return 0;
    if (len > QCOW2_MAX_BACKING_NAME ||
        len > q->cluster_size - q->backing_offset)
        return rhea_error_set(err, EINVAL,
                              "the backing file's name, %" PRIu32
                              " bytes at 0x%" PRIx64 ", is too long",
                              len, q->backing_offset);
    if (!len)
        return 0;
    name = malloc(len);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = rhea_storage_read_padded(q->f.storage, name, len, q->backing_offset,
                                 err);
    if (r < 0)
        return r;
    q->backing_file = header_copy_string(name, len);
    if (!q->backing_file)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!q->backing_file[0]) {
        free(q->backing_file);
        q->backing_file = NULL;
    }
    return 0;
}

/* Fields that version 2 has as well. */
static int header_parse_basic(struct qcow2 *q, const uint8_t *h,
                              struct rhea_error *err)
{
    if (load_be32(h) != QCOW2_MAGIC)
        return rhea_error_set(err, EINVAL, "this is not a qcow2 image");
    q->version = load_be32(h + QCOW2_AT_VERSION);
    if (q->version != 2 && q->version != 3)
        return rhea_error_set(err, ENOTSUP,
                              "qcow2 version %" PRIu32
                              " is not known to this program",
                              q->version);
    q->cluster_bits = load_be32(h + QCOW2_AT_CLUSTER_BITS);
    if (q->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        q->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return rhea_error_set(err, EINVAL,
                              "clusters of 2^%u bytes are not supported",
                              q->cluster_bits);
    q->cluster_size = 1U << q->cluster_bits;
    q->f.size = load_be64(h + QCOW2_AT_SIZE);
    q->crypt_method = load_be32(h + QCOW2_AT_CRYPT);
    q->l1_size = load_be32(h + QCOW2_AT_L1_SIZE);
    q->l1_offset = load_be64(h + QCOW2_AT_L1_OFFSET);
    q->reftable_offset = load_be64(h + QCOW2_AT_REFTABLE_OFFSET);
    q->reftable_clusters = load_be32(h + QCOW2_AT_REFTABLE_CLUSTERS);
    q->n_snapshots = load_be32(h + QCOW2_AT_SNAPSHOTS);
    q->snapshots_offset = load_be64(h + QCOW2_AT_SNAPSHOTS_OFFSET);
    q->backing_offset = load_be64(h + QCOW2_AT_BACKING_OFFSET);
    if (q->backing_offset > q->cluster_size)
        return rhea_error_set(err, EINVAL,
                              "the backing file's name stands outside of the "
                              "header, at 0x%" PRIx64,
                              q->backing_offset);
    return 0;
}

static int header_parse_features(struct qcow2 *q, const uint8_t *h,
                                 struct rhea_error *err)
{
    q->refcount_order = 4;
    q->header_length = QCOW2_V2_HEADER;
    if (q->version == 2)
        return 0;
    q->incompatible = load_be64(h + QCOW2_AT_INCOMPATIBLE);
    q->compatible = load_be64(h + QCOW2_AT_COMPATIBLE);
    q->autoclear = load_be64(h + QCOW2_AT_AUTOCLEAR);
    q->refcount_order = load_be32(h + QCOW2_AT_REFCOUNT_ORDER);
    q->header_length = load_be32(h + QCOW2_AT_HEADER_LENGTH);
    if (q->header_length < QCOW2_V3_HEADER ||
        q->header_length > q->cluster_size)
        return rhea_error_set(
            err, EINVAL, "a header of %" PRIu32 " bytes is not possible here",
            q->header_length);
    if (q->header_length > QCOW2_AT_COMPRESSION)
        q->compression = h[QCOW2_AT_COMPRESSION];
    if (q->header_length > QCOW2_FULL_HEADER ||
        q->compatible & ~QCOW2_COMPAT_KNOWN ||
        q->autoclear & ~QCOW2_AUTOCLEAR_KNOWN)
        q->unknown_parts = true;
    if (q->refcount_order > 6)
        return rhea_error_set(err, EINVAL,
                              "refcounts of 2^%u bits are not supported",
                              q->refcount_order);
    return 0;
}

static int header_check_compression(const struct qcow2 *q,
                                    struct rhea_error *err)
{
    if (q->compression > 1)
        return rhea_error_set(err, ENOTSUP,
                              "compression type %u is not known to this "
                              "program",
                              q->compression);
    if (!q->compression != !(q->incompatible & QCOW2_INCOMPAT_COMPRESSION))
        return rhea_error_set(err, EINVAL,
                              "the compression type, %u, and the bit that "
                              "tells of it contradict each other",
                              q->compression);
    return 0;
}

static int header_derive(struct qcow2 *q, struct rhea_error *err)
{
    q->entry_bits = qcow2_extended(q) ? 4 : 3;
    q->subclusters = qcow2_extended(q) ? QCOW2_SUBCLUSTERS : 1;
    q->subcluster_bits = q->cluster_bits - (qcow2_extended(q) ? 5 : 0);
    if (q->subcluster_bits < QCOW2_MIN_CLUSTER_BITS)
        return rhea_error_set(err, EINVAL,
                              "clusters of %" PRIu32
                              " bytes are too small for extended L2 entries",
                              q->cluster_size);
    q->l2_bits = q->cluster_bits - q->entry_bits;
    q->block_bits = q->cluster_bits + 3 - q->refcount_order;
    q->refcount_max = q->refcount_order == 6
                          ? UINT64_MAX
                          : (1ULL << (1U << q->refcount_order)) - 1;
    q->z_shift = 62 - (q->cluster_bits - 8);
    return 0;
}

static int header_check_tables(struct qcow2 *q, struct rhea_error *err)
{
    uint64_t span = 1ULL << qcow2_l1_shift(q), needed;
    int r;

    if (!q->reftable_clusters && !(q->flags & RHEA_FORMAT_CHECK))
        return rhea_error_set(err, EINVAL, "the image has no refcount table");
    r = header_check_table(q, "refcount table", q->reftable_offset,
                           q->reftable_clusters, q->cluster_size,
                           QCOW2_MAX_REFTABLE_BYTES, err);
    if (r < 0)
        return r;
    if (!(q->flags & RHEA_FORMAT_CHECK)) {
        r = header_check_table(q, "snapshot table", q->snapshots_offset,
                               q->n_snapshots, 40, 40 * QCOW2_MAX_SNAPSHOTS,
                               err);
        if (r < 0)
            return r;
    }
    r = header_check_table(q, "active L1 table", q->l1_offset, q->l1_size, 8,
                           QCOW2_MAX_L1_BYTES, err);
    if (r < 0)
        return r;
    needed = div_up(q->f.size, span);
    if (needed > INT32_MAX || q->f.size > (uint64_t)INT64_MAX)
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    if (q->l1_size < needed)
        return rhea_error_set(err, EINVAL,
                              "the L1 table has %" PRIu32
                              " entries, too few for the image's size",
                              q->l1_size);
    q->l1_needed = (uint32_t)needed;
    if (!(q->flags & RHEA_FORMAT_CHECK) &&
        !qcow2_table_in_file(q, q->l1_offset, (uint64_t)q->l1_size * 8))
        return rhea_error_set(err, EIO,
                              "the L1 table, at 0x%" PRIx64
                              ", lies past the end of the file",
                              q->l1_offset);
    return 0;
}

/* Fields that later versions of the format may have. */
static int header_keep_fields(struct qcow2 *q, struct rhea_error *err)
{
    size_t len = q->header_length - QCOW2_FULL_HEADER;

    q->unknown_fields = malloc(len);
    if (!q->unknown_fields)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return rhea_storage_read_padded(q->f.storage, q->unknown_fields, len,
                                    QCOW2_FULL_HEADER, err);
}

int qcow2_header_read(struct qcow2 *q, struct rhea_error *err)
{
    uint8_t h[512];
    uint64_t unknown, ext_end;
    int r;

    r = rhea_storage_size(q->f.storage, &q->file_size, err);
    if (r < 0)
        return r;
    if (q->file_size < QCOW2_V2_HEADER)
        return rhea_error_set(err, EINVAL,
                              "the file is too short for a qcow2 header");
    r = rhea_storage_read_padded(q->f.storage, h, sizeof(h), 0, err);
    if (r < 0)
        return r;
    r = header_parse_basic(q, h, err);
    if (r == 0)
        r = header_parse_features(q, h, err);
    if (r < 0)
        return r;
    if (q->header_length > QCOW2_FULL_HEADER) {
        r = header_keep_fields(q, err);
        if (r < 0)
            return r;
    }
    ext_end = q->backing_offset ? q->backing_offset : q->cluster_size;
    unknown = q->incompatible & ~QCOW2_INCOMPAT_KNOWN;
    if (unknown)
        return header_read_extensions(q, ext_end, unknown, err);
    r = header_check_compression(q, err);
    if (r == 0 && q->incompatible & QCOW2_INCOMPAT_CORRUPT &&
        q->flags & RHEA_FORMAT_WRITE && !(q->flags & RHEA_FORMAT_CHECK))
        r = rhea_error_set(err, EACCES,
                           "the image is marked corrupt and must be repaired "
                           "before it can be written to");
    if (r == 0)
        r = header_derive(q, err);
    if (r == 0)
        r = header_check_tables(q, err);
    if (r == 0)
        r = header_read_extensions(q, ext_end, 0, err);
    if (r == 0)
        r = header_read_backing(q, load_be32(h + QCOW2_AT_BACKING_LENGTH), err);
    if (r == 0 && !qcow2_external(q) && q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
        r = rhea_error_set(err, EINVAL,
                           "the image claims a raw external data file, but has "
                           "none");
    return r;
}

void qcow2_header_finish(struct qcow2 *q)
{
    free(q->backing_file);
    free(q->backing_format);
    free(q->data_file);
    free(q->unknown);
    free(q->unknown_fields);
    q->unknown_fields = NULL;
    q->backing_file = q->backing_format = q->data_file = NULL;
    q->unknown = NULL;
    q->unknown_length = 0;
}
