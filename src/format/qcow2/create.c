/* SPDX-License-Identifier: MIT */
/*
 * New images. Everything in the file is used and stands in this order, so that
 * all sizes follow from each other at once: header, refcount table, refcount
 * blocks, L1 table, encryption header, and with preallocation L2 tables and
 * data clusters. The header is written last, after a flush: until then it is no
 * image.
 */
#include <errno.h>
#include <inttypes.h>

#include "format/measure.h"
#include "format/option.h"
#include "format/prealloc.h"
#include "format/qcow2/qcow2.h"

const struct rhea_option_help qcow2_create_options[] = {
    {"size", "size", "bytes that the guest sees"},
    {"backing_file", "str", "file that shows through what is not written"},
    {"backing_fmt", "str", "format of the backing file"},
    {"cluster_size", "size", "bytes in a cluster, 512 to 2M (default: 64K)"},
    {"compat", "str", "version: 0.10 (v2) or 1.1 (v3, the default)"},
    {"refcount_bits", "num", "width of a refcount, 1 to 64 (default: 16)"},
    {"lazy_refcounts", "bool (on/off)", "update refcounts late (default: off)"},
    {"preallocation", "str",
     "what is allocated: off (the default), metadata, falloc or full"},
    {"compression_type", "str", "zlib (the default) or zstd"},
    {"encryption", "bool (on/off)", "old form of encrypt.format=aes"},
    {"encrypt.format", "str", "encrypt the image: luks or, of old, aes"},
    {"encrypt.key-secret", "str", "ID of the secret with the passphrase"},
    {"encrypt.cipher-alg", "str", "such as aes-256 (the default)"},
    {"encrypt.cipher-mode", "str", "xts (the default), cbc, ctr or ecb"},
    {"encrypt.ivgen-alg", "str", "plain64 (the default), plain or essiv"},
    {"encrypt.ivgen-hash-alg", "str", "hash for essiv"},
    {"encrypt.hash-alg", "str",
     "hash that keys are derived by (default: sha256)"},
    {"encrypt.iter-time", "num",
     "milliseconds that trying a passphrase takes (default: 2000)"},
    {"extended_l2", "bool (on/off)",
     "subclusters, for clusters of 16K and more (default: off)"},
    {"data_file", "str", "another file that holds the data"},
    {"data_file_raw", "bool (on/off)",
     "the data file is a raw image by itself (default: off)"},
    {NULL, NULL, NULL},
};

/* Zeroes written at a time. */
#define CREATE_PIECE (4U << 20)

enum create_preallocation {
    CREATE_OFF,
    CREATE_METADATA,
    CREATE_FALLOC,
    CREATE_FULL,
};

struct create {
    struct qcow2 q; /* only what the header is made of */
    enum create_preallocation preallocation;
    struct qcow2_crypt_create crypt;
    bool measure;                   /* nothing will be written */
    struct rhea_storage *data_file; /* NULL: none */
    bool data_used;                 /* it held something before */
    const struct rhea_progress *progress;
    /* Clusters; MAPPED are those of the guest that L2 tables are made for. */
    uint64_t table, blocks, l1, crypto, l2, data, mapped;
    uint64_t table_at, blocks_at, l1_at, crypto_at, l2_at, data_at, end;
};

static int create_bad(const struct rhea_option *o, const char *what,
                      struct rhea_error *err)
{
    return rhea_error_set(err, EINVAL, "%s is not a value of '%s': it takes %s",
                          o->value, o->name, what);
}

static int create_parse_word(const struct rhea_option *o,
                             const char *const *words, unsigned *value,
                             const char *what, struct rhea_error *err)
{
    for (unsigned i = 0; words[i]; i++) {
        if (!strcmp(o->value, words[i])) {
            *value = i;
            return 0;
        }
    }
    return create_bad(o, what, err);
}

static int create_parse_cluster_size(struct create *c,
                                     const struct rhea_option *o,
                                     struct rhea_error *err)
{
    uint64_t n;

    if (option_size(o, &n, NULL) < 0 || !is_power_of_2(n) ||
        n < 1U << QCOW2_MIN_CLUSTER_BITS || n > 1U << QCOW2_MAX_CLUSTER_BITS)
        return create_bad(o, "a power of two from 512 to 2M", err);
    c->q.cluster_bits = log2_u64(n);
    return 0;
}

static int create_parse_refcount_bits(struct create *c,
                                      const struct rhea_option *o,
                                      struct rhea_error *err)
{
    uint64_t n;

    if (option_size(o, &n, NULL) < 0 || !is_power_of_2(n) || n > 64)
        return create_bad(o, "a power of two from 1 to 64", err);
    c->q.refcount_order = log2_u64(n);
    return 0;
}

static int create_parse_option(struct create *c, const struct rhea_option *o,
                               struct rhea_error *err)
{
    static const char *const compat[] = {"0.10", "1.1", "v2", "v3", NULL};
    static const char *const types[] = {"zlib", "zstd", NULL};
    static const char *const modes[] = {"off", "metadata", "falloc", "full",
                                        NULL};
    unsigned word = 0;
    bool on = false;
    int r;

    if (!strcmp(o->name, "cluster_size"))
        return create_parse_cluster_size(c, o, err);
    if (!strcmp(o->name, "refcount_bits"))
        return create_parse_refcount_bits(c, o, err);
    if (!strcmp(o->name, "compat")) {
        r = create_parse_word(o, compat, &word, "0.10 or 1.1", err);
        c->q.version = 2 + (word & 1);
        return r;
    }
    if (!strcmp(o->name, "compression_type")) {
        r = create_parse_word(o, types, &word, "zlib or zstd", err);
        c->q.compression = (uint8_t)word;
        return r;
    }
    if (!strcmp(o->name, "preallocation")) {
        r = create_parse_word(o, modes, &word, "off, metadata, falloc or full",
                              err);
        c->preallocation = (enum create_preallocation)word;
        return r;
    }
    if (!strcmp(o->name, "lazy_refcounts")) {
        r = option_bool(o, &on, err);
        c->q.compatible = on ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
        return r;
    }
    if (!strcmp(o->name, "extended_l2")) {
        r = option_bool(o, &on, err);
        c->q.incompatible |= on ? QCOW2_INCOMPAT_EXTENDED_L2 : 0;
        return r;
    }
    if (!strcmp(o->name, "data_file")) {
        /* The header only reads it. */
        c->q.data_file = (char *)(uintptr_t)(*o->value ? o->value : NULL);
        return 0;
    }
    if (!strcmp(o->name, "data_file_raw")) {
        r = option_bool(o, &on, err);
        c->q.autoclear = on ? QCOW2_AUTOCLEAR_RAW_DATA : 0;
        return r;
    }
    if (qcow2_crypt_create_option(&c->crypt, o, &r, err))
        return r;
    return option_unknown(o, "qcow2", err);
}

static int create_check_data_file(struct create *c,
                                  const struct rhea_create *how,
                                  struct rhea_error *err)
{
    struct qcow2 *q = &c->q;

    if (!q->data_file)
        return q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA
                   ? rhea_error_set(err, EINVAL,
                                    "data_file_raw needs a data_file")
                   : 0;
    if (q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA && how->backing_file)
        return rhea_error_set(err, EINVAL,
                              "an image whose data file is raw cannot have a "
                              "backing file");
    if (strlen(q->data_file) > QCOW2_MAX_BACKING_NAME)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the data file's name is longer than %d bytes",
                              QCOW2_MAX_BACKING_NAME);
    q->incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    c->data_file = how->data_file;
    /* Tables for all of it, so that whatever the data file holds shows. */
    if (q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA &&
        c->preallocation == CREATE_OFF)
        c->preallocation = CREATE_METADATA;
    return 0;
}

static int create_check_options(struct create *c, const struct rhea_create *how,
                                struct rhea_error *err)
{
    struct qcow2 *q = &c->q;
    int r = create_check_data_file(c, how, err);

    if (r < 0)
        return r;
    if (q->version < 3 && (q->compatible || q->incompatible || q->compression ||
                           q->refcount_order != 4))
        return rhea_error_set(err, EINVAL,
                              "lazy_refcounts, extended_l2, data_file, "
                              "compression_type other than zlib and "
                              "refcount_bits other than 16 need compat=1.1");
    if (qcow2_extended(q) && q->cluster_bits < 14)
        return rhea_error_set(err, EINVAL,
                              "extended_l2 needs clusters of at least 16K");
    if (how->backing_format && !how->backing_file)
        return rhea_error_set(err, EINVAL,
                              "a backing format without a backing file makes "
                              "no sense");
    if (how->backing_format &&
        strlen(how->backing_format) > QCOW2_MAX_BACKING_FORMAT)
        return rhea_error_set(err, EINVAL,
                              "the backing format's name is too long");
    if (how->backing_file && c->preallocation != CREATE_OFF &&
        !qcow2_extended(q))
        return rhea_error_set(err, EINVAL,
                              "preallocation would hide the backing file, "
                              "except with extended_l2=on");
    if (q->compression)
        q->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    return 0;
}

static int create_parse(struct create *c, const struct rhea_create *how,
                        struct rhea_error *err)
{
    struct qcow2 *q = &c->q;
    int r;

    q->version = 3;
    q->cluster_bits = 16;
    q->refcount_order = 4;
    c->progress = how->progress;
    for (size_t i = 0; i < how->n_options; i++) {
        r = create_parse_option(c, &how->options[i], err);
        if (r < 0)
            return r;
    }
    q->cluster_size = 1U << q->cluster_bits;
    if (how->size > (uint64_t)INT64_MAX - 512)
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    q->f.size = align_up(how->size, 512);
    /* The header only reads them. */
    q->backing_file = (char *)(uintptr_t)how->backing_file;
    q->backing_format = (char *)(uintptr_t)how->backing_format;
    r = qcow2_crypt_prepare(&c->crypt, c->measure, err);
    return r < 0 ? r : create_check_options(c, how, err);
}

/* Where everything goes. */
static int create_lay_out(struct create *c, struct rhea_error *err)
{
    struct qcow2 *q = &c->q;
    uint64_t cs = q->cluster_size, clusters = div_up(q->f.size, cs), fixed;
    uint64_t per_block, entries;

    q->entry_bits = qcow2_extended(q) ? 4 : 3;
    q->l2_bits = q->cluster_bits - q->entry_bits;
    entries = div_up(clusters, 1ULL << q->l2_bits);
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return rhea_error_set(err, EFBIG,
                              "%" PRIu64
                              " bytes are too large for a qcow2 image with "
                              "clusters of %" PRIu64 "; use larger ones",
                              q->f.size, cs);
    q->l1_size = (uint32_t)entries;
    c->l1 = div_up(entries * 8, cs);
    c->crypto = div_up(c->crypt.luks.payload, cs);
    if (c->preallocation != CREATE_OFF) {
        c->l2 = entries;
        c->mapped = clusters;
        c->data = qcow2_external(q) ? 0 : clusters;
    }
    per_block = cs * 8 >> q->refcount_order;
    fixed = 1 + c->l1 + c->crypto + c->l2 + c->data;
    c->table = c->blocks = 1;
    for (;;) {
        uint64_t blocks = div_up(fixed + c->table + c->blocks, per_block);
        uint64_t table = div_up(blocks * 8, cs);

        if (blocks <= c->blocks && table <= c->table)
            break;
        c->blocks = RHEA_MAX(blocks, c->blocks);
        c->table = RHEA_MAX(table, c->table);
    }
    if (c->table > QCOW2_MAX_REFTABLE_BYTES >> q->cluster_bits && c->table > 1)
        return rhea_error_set(err, EFBIG,
                              "the refcount table would be too large; use "
                              "larger clusters or fewer refcount_bits");
    c->table_at = 1;
    c->blocks_at = c->table_at + c->table;
    c->l1_at = c->blocks_at + c->blocks;
    c->crypto_at = c->l1_at + c->l1;
    c->l2_at = c->crypto_at + c->crypto;
    c->data_at = c->l2_at + c->l2;
    c->end = c->data_at + c->data;
    if (c->end > QCOW2_MAX_HOST >> q->cluster_bits)
        return rhea_error_set(err, EFBIG, "the image's size is too large");
    q->l1_offset = c->l1_at << q->cluster_bits;
    q->crypt_method = c->crypt.method;
    if (c->crypto) {
        q->crypto_offset = c->crypto_at << q->cluster_bits;
        q->crypto_length = c->crypt.luks.payload;
    }
    q->reftable_offset = c->table_at << q->cluster_bits;
    q->reftable_clusters = (uint32_t)c->table;
    return 0;
}

/* Where the file ends: as with QEMU, right behind the L1 table where that is
 * all there is, so that its last cluster is not whole. */
static uint64_t create_file_end(const struct create *c)
{
    if (c->end == c->l1_at + c->l1 && c->l1)
        return c->q.l1_offset + c->q.l1_size * 8ULL;
    return c->end << c->q.cluster_bits;
}

/* A table of N words, FIRST, FIRST + STEP, ..., over SIZE bytes. */
static int create_write_words(struct create *c, struct rhea_storage *s,
                              uint64_t at, size_t size, uint64_t n,
                              uint64_t first, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *table = calloc(1, size + !size);

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < n; i++)
        store_be64(table + i * 8, first + (i << c->q.cluster_bits));
    return size ? rhea_storage_write(s, table, size, at << c->q.cluster_bits,
                                     err)
                : 0;
}

static int create_write_blocks(struct create *c, struct rhea_storage *s,
                               struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *block = calloc(1, c->q.cluster_size);
    uint64_t per_block = c->q.cluster_size * 8ULL >> c->q.refcount_order;
    uint64_t left = c->end;
    int r = 0;

    if (!block)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < per_block && i < left; i++)
        qcow2_refcount_store(c->q.refcount_order, block, i, 1);
    for (uint64_t i = 0; r == 0 && i < c->blocks; i++) {
        if (left < per_block && i)
            for (uint64_t k = left; k < per_block; k++)
                qcow2_refcount_store(c->q.refcount_order, block, k, 0);
        r = rhea_storage_write(s, block, c->q.cluster_size,
                               (c->blocks_at + i) << c->q.cluster_bits, err);
        left -= RHEA_MIN(left, per_block);
    }
    return r;
}

static int create_write_l2(struct create *c, struct rhea_storage *s,
                           struct rhea_error *err)
{
    struct qcow2 *q = &c->q;
    RHEA_AUTO_FREE uint8_t *table = malloc(q->cluster_size);
    uint64_t n = 1ULL << q->l2_bits, mapped = 0, flags = QCOW2_COPIED;
    uint64_t first = qcow2_external(q) ? 0 : c->data_at;
    bool zero = c->data_used && !(q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
    int r = 0;

    if (!table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    /* What a data file held before is neither to show nor to be lost. */
    if (zero && !qcow2_extended(q))
        flags |= QCOW2_ZERO;
    for (uint64_t i = 0; r == 0 && i < c->l2; i++) {
        memset(table, 0, q->cluster_size);
        /* Subclusters stay unallocated, so that a backing file shows, unless
         * the data file is to show. */
        for (uint64_t k = 0; k < n && mapped < c->mapped; k++, mapped++) {
            uint8_t *at = table + (k << q->entry_bits);

            store_be64(at, ((first + mapped) << q->cluster_bits) | flags);
            if (qcow2_extended(q) && q->autoclear & QCOW2_AUTOCLEAR_RAW_DATA)
                store_be64(at + 8, QCOW2_ALL_ALLOCATED);
        }
        r = rhea_storage_write(s, table, q->cluster_size,
                               (c->l2_at + i) << q->cluster_bits, err);
    }
    return r;
}

/* Zeroes up to END. A device or an export has its size, and old contents. */
static int create_set_end(struct rhea_storage *s, uint64_t end,
                          struct rhea_error *err)
{
    uint64_t size;

    if (!rhea_file_is_regular(s) && rhea_storage_size(s, &size, NULL) == 0 &&
        size >= end)
        return rhea_storage_zero(s, 0, end, false, err);
    return rhea_storage_truncate(s, end, err);
}

/* Zeroes are written to the data file up to END, where nothing is. */
static int create_fill_data_file(struct create *c, uint64_t size, uint64_t end,
                                 struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *zero = calloc(1, CREATE_PIECE);
    uint64_t at = 0, run;
    int r = 0;

    if (!zero)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (; r == 0 && at < end; at += run) {
        bool hole = true;

        run = RHEA_MIN(CREATE_PIECE, end - at);
        if (at < size)
            r = rhea_storage_extent(c->data_file, at, RHEA_MIN(run, size - at),
                                    &hole, &run, err);
        if (r == 0 && hole)
            r = rhea_storage_write(c->data_file, zero, run, at, err);
    }
    return r;
}

/* The data file as long as the guest's disk; what it holds stays. */
static int create_grow_data_file(struct create *c, struct rhea_error *err)
{
    uint64_t size, end = c->q.f.size;
    int r;

    if (!c->data_file)
        return qcow2_external(&c->q)
                   ? rhea_error_set(err, EINVAL, "the data file is not open")
                   : 0;
    r = rhea_storage_size(c->data_file, &size, err);
    c->data_used = size > 0;
    if (r < 0 || end == 0)
        return r;
    if (c->preallocation == CREATE_FALLOC)
        r = rhea_storage_allocate(c->data_file, 0, end, err);
    else if (c->preallocation == CREATE_FULL)
        r = create_fill_data_file(c, size, end, err);
    else if (size < end)
        r = rhea_storage_truncate(c->data_file, end, err);
    return r < 0 ? r : rhea_storage_flush(c->data_file, err);
}

static int create_write_data(struct create *c, struct rhea_storage *s,
                             struct rhea_error *err)
{
    uint64_t at = c->data_at << c->q.cluster_bits;
    uint64_t end = create_file_end(c);

    if (c->preallocation == CREATE_FALLOC)
        return rhea_storage_allocate(s, 0, end, err);
    if (c->preallocation != CREATE_FULL)
        return create_set_end(s, end, err);
    return prealloc_fill_told(s, at, end, c->progress, err);
}

static int create_write(struct create *c, struct rhea_storage *s,
                        struct rhea_error *err)
{
    struct qcow2 *q = &c->q;
    RHEA_AUTO_FREE uint8_t *header = malloc(q->cluster_size);
    int r;

    if (!header)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = qcow2_header_build(q, header, err);
    if (r == 0)
        r = create_grow_data_file(c, err);
    if (r == 0)
        r = create_write_data(c, s, err);
    if (r == 0)
        r = create_write_words(c, s, c->table_at, c->table << q->cluster_bits,
                               c->blocks, c->blocks_at << q->cluster_bits, err);
    if (r == 0)
        r = create_write_blocks(c, s, err);
    if (r == 0)
        r = create_write_words(
            c, s, c->l1_at,
            RHEA_MIN(c->l1 << q->cluster_bits,
                     create_file_end(c) - q->l1_offset),
            c->l2, (c->l2_at << q->cluster_bits) | QCOW2_COPIED, err);
    if (r == 0)
        r = create_write_l2(c, s, err);
    if (r == 0 && c->crypto)
        r = luks_create(s, q->crypto_offset, &c->crypt.luks, err);
    if (r == 0)
        r = rhea_storage_flush(s, err);
    if (r == 0)
        r = rhea_storage_write(s, header, q->cluster_size, 0, err);
    return r < 0 ? r : rhea_storage_flush(s, err);
}

int qcow2_create(struct rhea_storage *storage, const struct rhea_create *how,
                 struct rhea_error *err)
{
    struct create c = {.preallocation = CREATE_OFF};
    int r = create_parse(&c, how, err);

    if (r == 0)
        r = create_lay_out(&c, err);
    return r < 0 ? r : create_write(&c, storage, err);
}

/* Clusters of a refcount table and its blocks that count CLUSTERS and
 * themselves. */
static uint64_t measure_refcounts(const struct qcow2 *q, uint64_t clusters)
{
    uint64_t per_block = q->cluster_size * 8ULL >> q->refcount_order;
    uint64_t blocks = 0, table = 0, all = clusters, last;

    do {
        last = all;
        blocks = div_up(all, per_block);
        table = div_up(blocks * 8, q->cluster_size);
        all = clusters + blocks + table;
    } while (all != last);
    return blocks + table;
}

/* A directory, and for each bitmap its table and all of its bits. */
static uint64_t measure_bitmaps(const struct rhea_measure *what,
                                uint32_t cluster_size)
{
    uint64_t bytes = 0, directory = 0;

    for (size_t i = 0; i < what->n_bitmaps; i++) {
        const struct rhea_bitmap *b = &what->bitmaps[i];
        uint64_t bits = div_up(what->size, b->granularity);
        uint64_t clusters = div_up(div_up(bits, 8), cluster_size);

        bytes += clusters * cluster_size + align_up(clusters * 8, cluster_size);
        directory += align_up(24 + strlen(b->name), 8);
    }
    return bytes + align_up(directory, cluster_size);
}

/* QEMU's numbers: all metadata counts, also for what holds no data. */
int qcow2_measure(const struct rhea_measure *what, struct rhea_measured *out,
                  struct rhea_error *err)
{
    const struct rhea_create how = {.size = what->size,
                                    .options = what->options,
                                    .n_options = what->n_options};
    struct create c = {.preallocation = CREATE_OFF, .measure = true};
    uint64_t cs, data, l2, l1, meta, required = 0;
    int r = create_parse(&c, &how, err);

    if (r == 0)
        r = create_lay_out(&c, err);
    if (r < 0)
        return r;
    cs = c.q.cluster_size;
    data = align_up(what->size, cs);
    l2 = div_up(data / cs, 1ULL << c.q.l2_bits);
    l1 = div_up(l2 * 8, cs);
    meta = 1 + l2 + l1;
    meta += measure_refcounts(&c.q, meta + data / cs);
    meta += c.crypto; /* after what is counted, as in QEMU */
    r = measure_blocks(what, cs, &required, err);
    required *= cs;
    if (c.preallocation == CREATE_FALLOC || c.preallocation == CREATE_FULL)
        required = data;
    *out = (struct rhea_measured){
        .required = meta * cs + required,
        .fully_allocated = meta * cs + data,
        .has_bitmaps = c.q.version >= 3 && what->bitmaps,
    };
    if (out->has_bitmaps)
        out->bitmaps = measure_bitmaps(what, c.q.cluster_size);
    return r;
}
