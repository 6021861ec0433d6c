/* SPDX-License-Identifier: MIT */
/*
 * QED as a target. Facts: QEMU docs/interop/qed_spec.txt, "Header", "Tables".
 *
 * The header we write is one cluster. QEMU refuses to open an image whose
 * tables are one cluster long, so the smallest table is two; the smallest that
 * can hold the disk is chosen, since larger ones only cost space.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "inplace/layout.h"

#define QED_MAGIC UINT32_C(0x00444551) /* "QED\0", little-endian */
#define QED_HEADER_LENGTH 64
#define QED_MIN_CLUSTER 4096
#define QED_MAX_CLUSTER (UINT64_C(64) << 20)
#define QED_MAX_TABLE 16

enum {
    QED_F_BACKING_FILE = 1,
    QED_F_NEED_CHECK = 2,
    QED_F_NO_PROBE = 4,
};

static void qed_set_geometry(struct layout *l, uint64_t cluster_size,
                             uint64_t table_size)
{
    l->cluster_size = cluster_size;
    l->cluster_bits = log2_u64(cluster_size);
    l->l1_clusters = l->l2_clusters = table_size;
    l->l2_entries = cluster_size * table_size / sizeof(uint64_t);
    l->big_endian = false;
    l->has_zero = true;
    l->offset_mask = ~(cluster_size - 1);
    l->entry_flags = 0;
    /* An entry is an offset or 1, nothing in between. */
    l->foreign_flags = (cluster_size - 1) & ~(uint64_t)LAYOUT_ZERO_ENTRY;
    l->l1_entries = layout_l1_needed(l);
}

/* QEMU computes the largest disk of a geometry in 64 bits, and opens nothing
 * whose result does not fit: 8 MiB clusters are already too much. */
static bool qed_opens_in_qemu(uint64_t cluster_size, uint64_t table_size)
{
    uint64_t entries = cluster_size * table_size / sizeof(uint64_t);
    return table_size > 1 &&
           2 * log2_u64(entries) + log2_u64(cluster_size) < 64;
}

/* Whether the disk fits: L1 entries times L2 entries times clusters. */
static bool qed_holds(uint64_t cluster_size, uint64_t table_size,
                      uint64_t virtual_size)
{
    uint64_t entries = cluster_size * table_size / sizeof(uint64_t);
    uint64_t clusters = div_up(virtual_size, cluster_size);
    return div_up(clusters, entries) <= entries;
}

static int qed_parse_options(const struct layout_request *r, uint64_t *cluster,
                             uint64_t *table, struct rhea_error *err)
{
    static const char *const known[] = {"cluster_size", "table_size", NULL};
    int ret = layout_check_options(r, "qed", known, err);
    const char *text;

    *cluster = *table = 0;
    if (!ret && (text = layout_option(r, "cluster_size")))
        ret = layout_parse_size("cluster_size", text, cluster, err);
    if (!ret && (text = layout_option(r, "table_size")))
        ret = layout_parse_size("table_size", text, table, err);
    if (ret)
        return ret;

    if (layout_option(r, "cluster_size") &&
        (!is_power_of_2(*cluster) || *cluster < QED_MIN_CLUSTER ||
         *cluster > QED_MAX_CLUSTER))
        return rhea_error_set(err, EINVAL,
                              "a QED cluster_size is a power of 2 from 4K to "
                              "64M");
    if (layout_option(r, "table_size") &&
        (!is_power_of_2(*table) || *table > QED_MAX_TABLE))
        return rhea_error_set(err, EINVAL,
                              "a QED table_size is 1, 2, 4, 8 or 16");
    if (*table == 1)
        return rhea_error_set(err, EINVAL,
                              "QEMU cannot open QED images with table_size=1; "
                              "take 2 or more");
    return 0;
}

static int qed_choose(struct layout *l, const struct layout_request *r,
                      struct rhea_error *err)
{
    uint64_t cluster, table;
    int ret = qed_parse_options(r, &cluster, &table, err);
    if (ret)
        return ret;
    if (r->virtual_size % SECTOR)
        return rhea_error_set(err, ENOTSUP,
                              "QED cannot hold a disk of %" PRIu64
                              " bytes, which is no multiple of 512",
                              r->virtual_size);

    uint64_t first = RHEA_MAX(r->cluster_size, QED_MIN_CLUSTER);
    uint64_t last = QED_MAX_CLUSTER;
    if (cluster)
        first = last = cluster;
    l->virtual_size = r->virtual_size;
    if (r->backing_format && !strcmp(r->backing_format, "raw"))
        snprintf(l->backing_format, sizeof(l->backing_format), "raw");
    for (uint64_t c = first; c <= last; c *= 2) {
        for (uint64_t t = table ? table : 2;
             t <= (table ? table : QED_MAX_TABLE); t *= 2) {
            if (!qed_holds(c, t, r->virtual_size) || !qed_opens_in_qemu(c, t))
                continue;
            qed_set_geometry(l, c, t);
            return 0;
        }
    }
    if (cluster && !qed_opens_in_qemu(cluster, table ? table : 2))
        return rhea_error_set(err, EINVAL,
                              "QEMU cannot open QED images with tables and "
                              "clusters this large");
    return rhea_error_set(err, EFBIG,
                          "a QED image with these options cannot hold a disk "
                          "of %" PRIu64 " bytes",
                          r->virtual_size);
}

/*
 * How many L1 entries count: entries past the end of the disk lead nowhere,
 * but they do keep clusters in use. A table has up to 2^27, so only those up
 * to the last one that is set are to be held in memory.
 */
static int qed_count_entries(struct layout *l, struct rhea_storage *storage,
                             struct rhea_error *err)
{
    uint8_t piece[8192];
    uint64_t needed = l->l1_entries * sizeof(uint64_t);
    uint64_t end = l->l2_entries * sizeof(uint64_t), size;
    int ret = rhea_storage_size(storage, &size, err);
    if (!ret && !range_inside(l->l1_offset, end, size))
        ret = rhea_error_set(err, EINVAL, "the QED header is damaged");
    while (!ret && end > needed) {
        uint64_t at = end - RHEA_MIN(end, sizeof(piece)), run;
        bool hole;
        ret = rhea_storage_extent(storage, l->l1_offset + at, end - at, &hole,
                                  &run, err);
        memset(piece, 0, end - at);
        if (!ret && !(hole && run == end - at))
            ret = rhea_storage_read(storage, piece, end - at, l->l1_offset + at,
                                    err);
        while (end > RHEA_MAX(at, needed) && !load_le64(piece + (end - at - 8)))
            end -= 8;
        if (end > at)
            break;
    }
    l->l1_entries = RHEA_MAX(end, needed) / sizeof(uint64_t);
    return ret;
}

static int qed_load(struct layout *l, struct rhea_storage *storage,
                    struct rhea_error *err)
{
    uint8_t h[SECTOR];
    int ret = rhea_storage_read_padded(storage, h, sizeof(h), 0, err);
    if (ret)
        return ret;

    uint64_t cluster = load_le32(h + 4), table = load_le32(h + 8);
    if (load_le32(h) != QED_MAGIC || !is_power_of_2(cluster) ||
        cluster < QED_MIN_CLUSTER || cluster > QED_MAX_CLUSTER ||
        !is_power_of_2(table) || table > QED_MAX_TABLE)
        return rhea_error_set(err, EINVAL, "the QED header is damaged");
    if (load_le64(h + 16) &
        ~(uint64_t)(QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_NO_PROBE))
        return rhea_error_set(err, ENOTSUP, "unknown QED features");
    if (load_le32(h + 12) != 1)
        return rhea_error_set(err, ENOTSUP, "a QED header of several clusters");

    *l = (struct layout){.ops = &layout_qed,
                         .virtual_size = load_le64(h + 48),
                         .l1_offset = load_le64(h + 40)};
    if (!qed_holds(cluster, table, l->virtual_size))
        return rhea_error_set(err, EINVAL, "the QED header is damaged");
    qed_set_geometry(l, cluster, table);
    return qed_count_entries(l, storage, err);
}

static uint64_t qed_header_length(const struct layout *l)
{
    (void)l;
    return QED_HEADER_LENGTH;
}

static void qed_header(const struct layout *l, uint8_t h[SECTOR])
{
    uint64_t features = 0;
    if (l->name_length) {
        features |= QED_F_BACKING_FILE;
        if (!strcmp(l->backing_format, "raw"))
            features |= QED_F_NO_PROBE;
        store_le32(h + 56, (uint32_t)l->name_offset);
        store_le32(h + 60, l->name_length);
    }
    store_le32(h, QED_MAGIC);
    store_le32(h + 4, (uint32_t)l->cluster_size);
    store_le32(h + 8, (uint32_t)l->l2_clusters);
    store_le32(h + 12, 1);
    store_le64(h + 16, features);
    store_le64(h + 40, l->l1_offset);
    store_le64(h + 48, l->virtual_size);
}

static void qed_repoint(const struct layout *l, uint8_t h[SECTOR])
{
    store_le64(h + 40, l->l1_offset);
}

const struct layout_ops layout_qed = {
    .name = "qed",
    .choose = qed_choose,
    .load = qed_load,
    .header_length = qed_header_length,
    .header = qed_header,
    .repoint = qed_repoint,
};
