/* SPDX-License-Identifier: MIT */
/*
 * QCOW2 as a target. Facts: QEMU docs/interop/qcow2.txt, "Header", "Header
 * extensions", "Host cluster management", "Cluster mapping". What we write has
 * no snapshots, bitmaps, compression or subclusters: every reference count in
 * it is 0 or 1.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "inplace/layout.h"

#define QCOW2_MAGIC UINT32_C(0x514649fb)
#define QCOW2_V2_LENGTH 72
#define QCOW2_V3_LENGTH 112
#define QCOW2_MIN_CLUSTER 512
#define QCOW2_MAX_CLUSTER (UINT64_C(2) << 20)
#define QCOW2_MAX_L1_BYTES (UINT64_C(32) << 20)      /* QEMU's limit */
#define QCOW2_MAX_REFTABLE_BYTES (UINT64_C(8) << 20) /* QEMU's limit */
#define QCOW2_EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define QCOW2_EXT_FEATURE_NAMES UINT32_C(0x6803f857)
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_RESERVED UINT64_C(0x3f000000000001fe)

static void qcow2_set_geometry(struct layout *l, uint64_t cluster_size)
{
    l->cluster_size = cluster_size;
    l->cluster_bits = log2_u64(cluster_size);
    l->l2_clusters = 1;
    l->l2_entries = cluster_size / sizeof(uint64_t);
    l->has_refcounts = true;
    l->big_endian = true;
    l->has_zero = l->version >= 3;
    l->names_format = true;
    l->offset_mask = UINT64_C(0x00fffffffffffe00);
    l->entry_flags = QCOW2_COPIED;
    l->foreign_flags = QCOW2_COMPRESSED | QCOW2_RESERVED;
    /* A disk of no bytes needs no entry, but a table of none would leave its
     * cluster to nobody. */
    l->l1_entries = RHEA_MAX(layout_l1_needed(l), 1);
    l->l1_clusters = div_up(l->l1_entries * sizeof(uint64_t), cluster_size);
}

static int qcow2_parse_switch(const char *name, const char *text, bool *value,
                              struct rhea_error *err)
{
    if (!strcmp(text, "on") || !strcmp(text, "yes") || !strcmp(text, "true"))
        *value = true;
    else if (!strcmp(text, "off") || !strcmp(text, "no") ||
             !strcmp(text, "false"))
        *value = false;
    else
        return rhea_error_set(err, EINVAL, "option '%s' is on or off", name);
    return 0;
}

static int qcow2_parse_options(struct layout *l, const struct layout_request *r,
                               uint64_t *cluster, struct rhea_error *err)
{
    static const char *const known[] = {
        "cluster_size", "compat", "refcount_bits", "lazy_refcounts", NULL};
    uint64_t bits = 16;
    int ret = layout_check_options(r, "qcow2", known, err);
    const char *text = layout_option(r, "cluster_size");
    *cluster = RHEA_MIN(r->cluster_size, QCOW2_MAX_CLUSTER);
    if (!ret && text)
        ret = layout_parse_size("cluster_size", text, cluster, err);
    if (!ret && (text = layout_option(r, "refcount_bits")))
        ret = layout_parse_size("refcount_bits", text, &bits, err);
    if (!ret && (text = layout_option(r, "lazy_refcounts")))
        ret =
            qcow2_parse_switch("lazy_refcounts", text, &l->lazy_refcounts, err);
    if (ret)
        return ret;

    l->version = 3;
    text = layout_option(r, "compat");
    if (text && (!strcmp(text, "0.10") || !strcmp(text, "v2")))
        l->version = 2;
    else if (text && strcmp(text, "1.1") && strcmp(text, "v3"))
        return rhea_error_set(err, EINVAL, "option 'compat' is 0.10 or 1.1");

    if (!is_power_of_2(*cluster) || *cluster < QCOW2_MIN_CLUSTER ||
        *cluster > QCOW2_MAX_CLUSTER)
        return rhea_error_set(err, EINVAL,
                              "a QCOW2 cluster_size is a power of 2 from 512 "
                              "to 2M");
    if (!is_power_of_2(bits) || bits > 64)
        return rhea_error_set(err, EINVAL,
                              "refcount_bits is 1, 2, 4, 8, 16, 32 or 64");
    if (l->version == 2 && (bits != 16 || l->lazy_refcounts))
        return rhea_error_set(err, EINVAL,
                              "refcount_bits other than 16 and lazy_refcounts "
                              "need compat=1.1");
    l->refcount_order = log2_u64(bits);
    return 0;
}

static int qcow2_choose(struct layout *l, const struct layout_request *r,
                        struct rhea_error *err)
{
    uint64_t cluster;
    int ret = qcow2_parse_options(l, r, &cluster, err);
    if (ret)
        return ret;

    l->virtual_size = r->virtual_size;
    qcow2_set_geometry(l, cluster);
    /* Small clusters cannot hold a large disk: take larger ones, unless the
     * user named a size. */
    while (l->l1_entries > QCOW2_MAX_L1_BYTES / sizeof(uint64_t) &&
           cluster < QCOW2_MAX_CLUSTER && !layout_option(r, "cluster_size")) {
        cluster *= 2;
        qcow2_set_geometry(l, cluster);
    }
    if (l->l1_entries > QCOW2_MAX_L1_BYTES / sizeof(uint64_t))
        return rhea_error_set(err, EFBIG,
                              "a QCOW2 image with clusters of %" PRIu64
                              " bytes cannot hold a disk of %" PRIu64 " bytes",
                              cluster, r->virtual_size);

    if (r->backing_format)
        snprintf(l->backing_format, sizeof(l->backing_format), "%s",
                 r->backing_format);
    return 0;
}

/* Whether the header extensions are only such as we write, or QEMU writes
 * into any image. */
static bool qcow2_extensions_known(const uint8_t *h, uint64_t from,
                                   uint64_t end)
{
    while (end - from >= 8) {
        uint32_t magic = load_be32(h + from), length = load_be32(h + from + 4);
        if (magic == 0)
            return true;
        if (magic != QCOW2_EXT_BACKING_FORMAT &&
            magic != QCOW2_EXT_FEATURE_NAMES)
            return false;
        from += 8;
        if (align_up(length, 8) > end - from)
            return false;
        from += align_up(length, 8);
    }
    return true;
}

static int qcow2_load_v3(struct layout *l, const uint8_t *h,
                         struct rhea_error *err)
{
    uint64_t incompatible = load_be64(h + 72);
    if (incompatible & 1)
        return rhea_error_set(err, EINVAL,
                              "the image was not closed cleanly; repair it "
                              "first, with 'check -r all'");
    if (incompatible & 2)
        return rhea_error_set(err, EINVAL,
                              "the image is marked corrupt; repair it first, "
                              "with 'check -r all'");
    if (incompatible || load_be64(h + 88))
        return rhea_error_set(err, ENOTSUP,
                              "QCOW2 features beyond plain clusters");
    l->refcount_order = load_be32(h + 96);
    if (l->refcount_order > 6)
        return rhea_error_set(err, EINVAL, "the QCOW2 header is damaged");
    return 0;
}

static int qcow2_load(struct layout *l, struct rhea_storage *storage,
                      struct rhea_error *err)
{
    uint8_t h[4096];
    int ret = rhea_storage_read_padded(storage, h, sizeof(h), 0, err);
    if (ret)
        return ret;

    uint32_t bits = load_be32(h + 20);
    uint32_t version = load_be32(h + 4);
    if (load_be32(h) != QCOW2_MAGIC || bits < 9 || bits > 21 || version < 2 ||
        version > 3)
        return rhea_error_set(err, EINVAL, "the QCOW2 header is damaged");
    *l = (struct layout){.ops = &layout_qcow2,
                         .version = version,
                         .virtual_size = load_be64(h + 24),
                         .refcount_order = 4};
    uint64_t cluster = UINT64_C(1) << bits;
    if (load_be32(h + 32) || load_be32(h + 60))
        return rhea_error_set(err, ENOTSUP, "encryption or snapshots");
    if (version == 3 && (ret = qcow2_load_v3(l, h, err)))
        return ret;

    uint64_t size = RHEA_MIN(cluster, sizeof(h));
    uint64_t from = version == 2 ? QCOW2_V2_LENGTH : load_be32(h + 100);
    uint64_t end = load_be64(h + 8) ? load_be64(h + 8) : size;
    if (from < QCOW2_V2_LENGTH || from > end || end > cluster)
        return rhea_error_set(err, EINVAL, "the QCOW2 header is damaged");
    end = RHEA_MIN(end, size);
    if (from > end || !qcow2_extensions_known(h, from, end))
        return rhea_error_set(err, ENOTSUP, "QCOW2 header extensions");

    qcow2_set_geometry(l, cluster);
    uint64_t l1_size = load_be32(h + 36);
    if (!l1_size && !l->virtual_size)
        return rhea_error_set(err, ENOTSUP, "no L1 table");
    if (l1_size < l->l1_entries ||
        l1_size > QCOW2_MAX_L1_BYTES / sizeof(uint64_t))
        return rhea_error_set(err, EINVAL, "the QCOW2 header is damaged");
    l->l1_entries = l1_size;
    l->l1_clusters = div_up(l1_size * sizeof(uint64_t), cluster);
    l->l1_offset = load_be64(h + 40);
    l->reftable_offset = load_be64(h + 48);
    l->reftable_clusters = load_be32(h + 56);
    /* No backing name, no zero clusters: decided by the entries themselves. */
    if (!l->reftable_clusters ||
        l->reftable_clusters > QCOW2_MAX_REFTABLE_BYTES / cluster)
        return rhea_error_set(err, EINVAL, "the QCOW2 header is damaged");
    return 0;
}

static uint64_t qcow2_header_length(const struct layout *l)
{
    uint64_t length = l->version == 2 ? QCOW2_V2_LENGTH : QCOW2_V3_LENGTH;
    if (l->name_length && l->backing_format[0])
        length += 8 + align_up(strlen(l->backing_format), 8);
    return length + 8; /* the end marker */
}

static void qcow2_repoint(const struct layout *l, uint8_t h[SECTOR])
{
    store_be64(h + 40, l->l1_offset);
    store_be64(h + 48, l->reftable_offset);
    store_be32(h + 56, (uint32_t)l->reftable_clusters);
}

static void qcow2_header(const struct layout *l, uint8_t h[SECTOR])
{
    store_be32(h, QCOW2_MAGIC);
    store_be32(h + 4, l->version);
    if (l->name_length) {
        store_be64(h + 8, l->name_offset);
        store_be32(h + 16, l->name_length);
    }
    store_be32(h + 20, l->cluster_bits);
    store_be64(h + 24, l->virtual_size);
    store_be32(h + 36, (uint32_t)l->l1_entries);
    qcow2_repoint(l, h);

    uint8_t *ext = h + QCOW2_V2_LENGTH;
    if (l->version >= 3) {
        store_be64(h + 80, l->lazy_refcounts);
        store_be32(h + 96, l->refcount_order);
        store_be32(h + 100, QCOW2_V3_LENGTH);
        ext = h + QCOW2_V3_LENGTH;
    }
    if (l->name_length && l->backing_format[0]) {
        size_t length = strlen(l->backing_format);
        store_be32(ext, QCOW2_EXT_BACKING_FORMAT);
        store_be32(ext + 4, (uint32_t)length);
        memcpy(ext + 8, l->backing_format, length);
    }
    /* The end marker is zero, as the rest of the sector is. */
}

const struct layout_ops layout_qcow2 = {
    .name = "qcow2",
    .choose = qcow2_choose,
    .load = qcow2_load,
    .header_length = qcow2_header_length,
    .header = qcow2_header,
    .repoint = qcow2_repoint,
};
