/* SPDX-License-Identifier: MIT */
/*
 * A new, empty image: header, L1 table, nothing else.
 *
 * Order of writes: the file grows to hold the L1 table, flush, the header,
 * flush. Before the header the file is no image.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/option.h"
#include "format/qed.h"

struct qed_geometry {
    uint64_t cluster_size, table_size;
};

static int create_parse(const struct rhea_create *how, struct qed_geometry *g,
                        struct rhea_error *err)
{
    g->cluster_size = QED_DEFAULT_CLUSTER;
    g->table_size = QED_DEFAULT_TABLE;
    for (size_t i = 0; i < how->n_options; i++) {
        const struct rhea_option *o = &how->options[i];
        int ret;
        if (strcmp(o->name, "cluster_size") == 0)
            ret = option_size(o, &g->cluster_size, err);
        else if (strcmp(o->name, "table_size") == 0)
            ret = option_size(o, &g->table_size, err);
        else
            ret = option_unknown(o, "qed", err);
        if (ret)
            return ret;
    }
    if (!is_power_of_2(g->cluster_size) || g->cluster_size < QED_MIN_CLUSTER ||
        g->cluster_size > QED_MAX_CLUSTER)
        return rhea_error_set(err, EINVAL,
                              "cluster_size must be a power of 2 from %d to "
                              "%d bytes",
                              QED_MIN_CLUSTER, QED_MAX_CLUSTER);
    if (!is_power_of_2(g->table_size) || g->table_size > QED_MAX_TABLE)
        return rhea_error_set(err, EINVAL,
                              "table_size must be 1, 2, 4, 8 or 16 clusters");
    return 0;
}

static int create_check_size(const struct qed_geometry *g, uint64_t size,
                             struct rhea_error *err)
{
    uint64_t entries = g->cluster_size * g->table_size / sizeof(uint64_t);
    uint64_t max;
    if (!mul_u64(g->cluster_size * entries, entries, &max) ||
        max > (INT64_MAX & ~511))
        max = INT64_MAX & ~511;
    if (size > max)
        return rhea_error_set(
            err, EFBIG,
            "a QED image with %" PRIu64 "-byte clusters and tables of %" PRIu64
            " clusters holds at most %" PRIu64 " bytes, not %" PRIu64,
            g->cluster_size, g->table_size, max, size);
    return 0;
}

int qed_create(struct rhea_storage *storage, const struct rhea_create *how,
               struct rhea_error *err)
{
    struct qed_geometry g;
    int ret = create_parse(how, &g, err);
    if (!ret)
        ret = create_check_size(&g, how->size, err);
    if (ret)
        return ret;

    uint8_t h[QED_HEADER_LENGTH + QED_BACKING_NAME_MAX] = {0};
    size_t name_length = how->backing_file ? strlen(how->backing_file) : 0;
    if (name_length > QED_BACKING_NAME_MAX)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the backing file's name is longer than %d bytes",
                              QED_BACKING_NAME_MAX);
    uint64_t features = 0;
    if (name_length) {
        features |= QED_F_BACKING_FILE;
        if (how->backing_format && strcmp(how->backing_format, "raw") == 0)
            features |= QED_F_NO_PROBE;
        store_le32(h + QED_H_BACKING_OFFSET, QED_HEADER_LENGTH);
        store_le32(h + QED_H_BACKING_SIZE, (uint32_t)name_length);
        memcpy(h + QED_HEADER_LENGTH, how->backing_file, name_length);
    }
    store_le32(h + QED_H_MAGIC, QED_MAGIC);
    store_le32(h + QED_H_CLUSTER_SIZE, (uint32_t)g.cluster_size);
    store_le32(h + QED_H_TABLE_SIZE, (uint32_t)g.table_size);
    store_le32(h + QED_H_HEADER_SIZE, 1);
    store_le64(h + QED_H_FEATURES, features);
    store_le64(h + QED_H_L1_OFFSET, g.cluster_size);
    store_le64(h + QED_H_IMAGE_SIZE, align_up(how->size, 512));

    ret = rhea_storage_truncate(storage, g.cluster_size * (1 + g.table_size),
                                err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret = rhea_storage_write(storage, h, QED_HEADER_LENGTH + name_length, 0,
                                 err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    return ret;
}
