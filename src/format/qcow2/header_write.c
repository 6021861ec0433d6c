/* SPDX-License-Identifier: MIT */
/*
 * Writing the header (the spec, "Header", "Header extensions"). Its fields lie
 * in the file's first sector, and that is written in one piece, so they change
 * all or not at all. Extensions and the backing file's name may lie behind it.
 *
 * Order of a change of the whole header, as far as the first sector leads to
 * what is behind it: a part of the header cluster that the header on disk
 * makes use of is never overwritten with something else. Where the old and the
 * new layout are in each other's way, the header takes three steps:
 *   1. the new backing name at a place that neither layout uses; flush;
 *   2. a first sector with that name and with all extensions but the table of
 *      feature names, which is there for people only; flush. From here on the
 *      new header is in force;
 *   3. the rest of the new layout; flush; its first sector; flush.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/qcow2/qcow2.h"

#define FEATURE_BYTES 48
#define SECTOR 512U

int qcow2_header_write_features(struct qcow2 *q, struct rhea_error *err)
{
    uint8_t words[24];
    int r;

    store_be64(words, q->incompatible);
    store_be64(words + 8, q->compatible);
    store_be64(words + 16, q->autoclear);
    /* One sector, hence all or nothing. */
    r = rhea_storage_write(q->f.storage, words, sizeof(words),
                           QCOW2_AT_INCOMPATIBLE, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    return qcow2_fail(q, r);
}

struct header_writer {
    uint8_t *buf;
    size_t at, size;
};

static bool header_put_extension(struct header_writer *w, uint32_t type,
                                 const void *data, size_t len)
{
    size_t total = 8 + align_up(len, 8);

    if (total > w->size - w->at)
        return false;
    store_be32(w->buf + w->at, type);
    store_be32(w->buf + w->at + 4, (uint32_t)len);
    if (len)
        memcpy(w->buf + w->at + 8, data, len);
    w->at += total;
    return true;
}

static bool header_put_feature_names(struct header_writer *w)
{
    static const struct {
        uint8_t type, bit;
        const char *name;
    } features[] = {
        {0, 0, "dirty bit"},
        {0, 1, "corrupt bit"},
        {0, 2, "external data file"},
        {0, 3, "compression type"},
        {0, 4, "extended L2 entries"},
        {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},
        {2, 1, "raw external data"},
    };
    uint8_t table[RHEA_ARRAY_SIZE(features) * FEATURE_BYTES] = {0};

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(features); i++) {
        uint8_t *at = table + i * FEATURE_BYTES;

        at[0] = features[i].type;
        at[1] = features[i].bit;
        memcpy(at + 2, features[i].name, strlen(features[i].name));
    }
    return header_put_extension(w, QCOW2_EXT_FEATURE_NAMES, table,
                                sizeof(table));
}

/* Bytes of the fields, those included that this program does not know. */
static uint32_t header_fields_length(const struct qcow2 *q)
{
    if (q->version == 2)
        return QCOW2_V2_HEADER;
    return q->unknown_fields ? q->header_length : QCOW2_FULL_HEADER;
}

static void header_put_fields(const struct qcow2 *q, uint8_t *h)
{
    store_be32(h, QCOW2_MAGIC);
    store_be32(h + QCOW2_AT_VERSION, q->version);
    store_be32(h + QCOW2_AT_CLUSTER_BITS, q->cluster_bits);
    store_be64(h + QCOW2_AT_SIZE, q->f.size);
    store_be32(h + QCOW2_AT_CRYPT, q->crypt_method);
    store_be32(h + QCOW2_AT_L1_SIZE, q->l1_size);
    store_be64(h + QCOW2_AT_L1_OFFSET, q->l1_offset);
    store_be64(h + QCOW2_AT_REFTABLE_OFFSET, q->reftable_offset);
    store_be32(h + QCOW2_AT_REFTABLE_CLUSTERS, q->reftable_clusters);
    store_be32(h + QCOW2_AT_SNAPSHOTS, q->n_snapshots);
    store_be64(h + QCOW2_AT_SNAPSHOTS_OFFSET, q->snapshots_offset);
    if (q->version == 2)
        return;
    store_be64(h + QCOW2_AT_INCOMPATIBLE, q->incompatible);
    store_be64(h + QCOW2_AT_COMPATIBLE, q->compatible);
    store_be64(h + QCOW2_AT_AUTOCLEAR, q->autoclear);
    store_be32(h + QCOW2_AT_REFCOUNT_ORDER, q->refcount_order);
    store_be32(h + QCOW2_AT_HEADER_LENGTH, header_fields_length(q));
    h[QCOW2_AT_COMPRESSION] = q->compression;
    if (q->unknown_fields)
        memcpy(h + QCOW2_FULL_HEADER, q->unknown_fields,
               q->header_length - QCOW2_FULL_HEADER);
}

/* All extensions in QEMU's order; without FEATURES, the table of names is left
 * out. False where they do not fit. */
static bool header_put_extensions(const struct qcow2 *q,
                                  struct header_writer *w, bool features)
{
    uint8_t data[24] = {0};
    bool fits = true;

    if (q->backing_format)
        fits =
            header_put_extension(w, QCOW2_EXT_BACKING_FORMAT, q->backing_format,
                                 strlen(q->backing_format));
    if (fits && qcow2_external(q) && q->data_file)
        fits = header_put_extension(w, QCOW2_EXT_DATA_FILE, q->data_file,
                                    strlen(q->data_file));
    if (fits && q->crypto_offset) {
        store_be64(data, q->crypto_offset);
        store_be64(data + 8, q->crypto_length);
        fits = header_put_extension(w, QCOW2_EXT_CRYPTO, data, 16);
    }
    /* In small clusters the table would leave no room for a backing name; QEMU
     * leaves it out there too. */
    if (fits && features && q->version >= 3 && q->cluster_size > 4096)
        fits = header_put_feature_names(w);
    /* Where nobody keeps the bitmaps the fields mean nothing. */
    if (fits && q->n_bitmaps && q->autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
        store_be32(data, q->n_bitmaps);
        store_be32(data + 4, 0);
        store_be64(data + 8, q->bitmap_dir_size);
        store_be64(data + 16, q->bitmap_dir_offset);
        fits = header_put_extension(w, QCOW2_EXT_BITMAPS, data, 24);
    }
    if (fits && q->unknown_length) {
        fits = q->unknown_length <= w->size - w->at;
        if (fits)
            memcpy(w->buf + w->at, q->unknown, q->unknown_length);
        w->at += fits ? q->unknown_length : 0;
    }
    return fits && header_put_extension(w, QCOW2_EXT_END, NULL, 0);
}

/* Lay out a header cluster. EXT_END: where extensions must end. NAME_AT: where
 * the backing name goes, 0: right behind them. */
static bool header_lay_out(const struct qcow2 *q, uint8_t *buf, bool features,
                           size_t ext_end, size_t name_at)
{
    struct header_writer w = {buf, header_fields_length(q), ext_end};
    size_t len = q->backing_file ? strlen(q->backing_file) : 0;

    memset(buf, 0, q->cluster_size);
    header_put_fields(q, buf);
    if (!header_put_extensions(q, &w, features))
        return false;
    if (!len)
        return true;
    name_at = name_at ? name_at : w.at;
    if (len > QCOW2_MAX_BACKING_NAME || name_at + len > q->cluster_size)
        return false;
    memcpy(buf + name_at, q->backing_file, len);
    store_be64(buf + QCOW2_AT_BACKING_OFFSET, name_at);
    store_be32(buf + QCOW2_AT_BACKING_LENGTH, (uint32_t)len);
    return true;
}

int qcow2_header_build(struct qcow2 *q, uint8_t *buf, struct rhea_error *err)
{
    return header_lay_out(q, buf, true, q->cluster_size, 0)
               ? 0
               : rhea_error_set(err, ENOSPC,
                                "the names of other files are too long for a "
                                "header of one cluster (%" PRIu32 " bytes)",
                                q->cluster_size);
}

/* What the fields of a header cluster lead to, as offsets in it. */
struct header_use {
    uint64_t ext_end, name, name_end;
};

static struct header_use header_used(const struct qcow2 *q, const uint8_t *h)
{
    struct header_use u = {QCOW2_V2_HEADER, 0, 0};
    uint64_t limit = load_be64(h + QCOW2_AT_BACKING_OFFSET);

    if (limit && limit <= q->cluster_size) {
        u.name = limit;
        u.name_end = RHEA_MIN(limit + load_be32(h + QCOW2_AT_BACKING_LENGTH),
                              q->cluster_size);
    } else {
        limit = q->cluster_size;
    }
    if (load_be32(h + QCOW2_AT_VERSION) > 2)
        u.ext_end = load_be32(h + QCOW2_AT_HEADER_LENGTH);
    while (u.ext_end + 8 <= limit) {
        uint32_t type = load_be32(h + u.ext_end);

        u.ext_end += 8 + align_up((uint64_t)load_be32(h + u.ext_end + 4), 8);
        if (type == QCOW2_EXT_END)
            break;
    }
    u.ext_end = RHEA_MIN(u.ext_end, limit);
    return u;
}

/* Whether [FROM, TO), as far as it lies behind the first sector, is the same in
 * both. */
static bool header_same(const uint8_t *a, const uint8_t *b, uint64_t from,
                        uint64_t to)
{
    from = RHEA_MAX(from, SECTOR);
    return from >= to || !memcmp(a + from, b + from, to - from);
}

/* Whether what is behind the first sector of NEW can be written without
 * changing anything that OLD makes use of. */
static bool header_apart(const struct qcow2 *q, const uint8_t *old,
                         const uint8_t *new)
{
    struct header_use u = header_used(q, old);

    return header_same(old, new, 0, u.ext_end) &&
           header_same(old, new, u.name, u.name_end);
}

static int header_write_part(struct qcow2 *q, const uint8_t *buf, uint64_t from,
                             uint64_t to, struct rhea_error *err)
{
    int r = 0;

    to = RHEA_MIN(to, q->cluster_size);
    if (from < to)
        r = rhea_storage_write(q->f.storage, buf + from, to - from, from, err);
    if (r == 0 && from < to)
        r = rhea_storage_flush(q->f.storage, err);
    return qcow2_fail(q, r);
}

/* Steps 1 and 2; *DONE: they were possible, and OLD is now what is on disk. */
static int header_step_aside(struct qcow2 *q, uint8_t *old, const uint8_t *new,
                             bool *done, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *mid = malloc(q->cluster_size);
    struct header_use a = header_used(q, old), b = header_used(q, new);
    uint64_t at = RHEA_MAX(SECTOR, RHEA_MAX(RHEA_MAX(a.ext_end, a.name_end),
                                            RHEA_MAX(b.ext_end, b.name_end)));
    uint64_t end = at + (q->backing_file ? strlen(q->backing_file) : 0);
    int r;

    *done = false;
    if (!mid)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (!header_lay_out(q, mid, false, SECTOR, at))
        return 0;
    *done = true;
    r = header_write_part(q, mid, at, end, err);
    if (r == 0)
        r = header_write_part(q, mid, 0, SECTOR, err);
    memcpy(old, mid, SECTOR);
    if (at < end)
        memcpy(old + at, mid + at, end - at);
    return r;
}

int qcow2_header_update(struct qcow2 *q, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *old = malloc(q->cluster_size);
    RHEA_AUTO_FREE uint8_t *new = malloc(q->cluster_size);
    struct header_use used;
    uint64_t end;
    bool apart = true;
    int r;

    if (!old || !new)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = rhea_storage_read_padded(q->f.storage, old, q->cluster_size, 0, err);
    if (r == 0)
        r = qcow2_header_build(q, new, err);
    if (r == 0 && !header_apart(q, old, new))
        r = header_step_aside(q, old, new, &apart, err);
    if (r < 0)
        return r;
    used = header_used(q, new);
    end = RHEA_MAX(used.ext_end, used.name_end);
    /* Extensions so long that they cannot step aside are written in one piece
     * with the fields, and a crash could tear them. */
    if (apart && !header_same(old, new, 0, end))
        r = header_write_part(q, new, SECTOR, end, err);
    if (r == 0)
        r = header_write_part(q, new, 0, apart ? SECTOR : end, err);
    /* What was used before is of no use now. */
    end = RHEA_MAX(end, SECTOR);
    if (r == 0 && !header_same(old, new, end, q->cluster_size))
        r = header_write_part(q, new, end, q->cluster_size, err);
    return r;
}
