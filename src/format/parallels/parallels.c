/* SPDX-License-Identifier: MIT */
/*
 * Parallels' disks: one growing file (hds.c).
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/option.h"
#include "format/parallels/hds.h"

static int parallels_probe(const uint8_t *head, size_t len)
{
    return len >= HDS_HEADER &&
                   (memcmp(head, HDS_MAGIC, 16) == 0 ||
                    memcmp(head, HDS_MAGIC_EXT, 16) == 0) &&
                   load_le32(head + HDS_H_VERSION) == HDS_VERSION
               ? 100
               : 0;
}

static int parallels_open(struct rhea_format **out,
                          const struct rhea_format_open *how,
                          struct rhea_error *err)
{
    return hds_open(out, how, false, err);
}

/* --- Creating --- */

static int create_parse(const struct rhea_create *how,
                        struct hds_layout *layout, struct rhea_error *err)
{
    *layout = (struct hds_layout){.size = how->size,
                                  .cluster_size = HDS_DEFAULT_CLUSTER,
                                  .extended = true};
    for (size_t i = 0; i < how->n_options; i++) {
        const struct rhea_option *o = &how->options[i];
        int ret;
        if (strcmp(o->name, "cluster_size") == 0)
            ret = option_size(o, &layout->cluster_size, err);
        else if (strcmp(o->name, "extended") == 0)
            ret = option_bool(o, &layout->extended, err);
        else
            ret = option_unknown(o, "parallels", err);
        if (ret)
            return ret;
    }
    return 0;
}

static int parallels_create(struct rhea_storage *storage,
                            const struct rhea_create *how,
                            struct rhea_error *err)
{
    struct hds_layout layout;
    int ret = create_parse(how, &layout, err);
    return ret ? ret : hds_create(storage, &layout, err);
}

/* Bytes of the clusters that hold any data. */
static int measure_data(const struct rhea_measure *what, uint64_t cluster,
                        uint64_t *bytes, struct rhea_error *err)
{
    uint64_t counted = 0;
    *bytes = 0;
    for (uint64_t at = 0; at < what->size;) {
        uint64_t length = 0;
        bool data = false;
        int ret = what->next(what->opaque, at, &data, &length, err);
        if (ret)
            return ret;
        uint64_t end = at + RHEA_MIN(length, what->size - at);
        if (data) {
            uint64_t from = RHEA_MAX(counted, at / cluster * cluster);
            counted = div_up(end, cluster) * cluster;
            *bytes += counted - from;
        }
        at = end;
    }
    return 0;
}

static int parallels_measure(const struct rhea_measure *what,
                             struct rhea_measured *out, struct rhea_error *err)
{
    const struct rhea_create how = {.size = what->size,
                                    .options = what->options,
                                    .n_options = what->n_options};
    struct hds_layout layout;
    uint8_t header[HDS_HEADER];
    uint64_t start, data = 0;
    int ret = create_parse(&how, &layout, err);
    if (!ret)
        ret = hds_lay_out(&layout, header, &start, err);
    if (!ret && what->next)
        ret = measure_data(what, layout.cluster_size, &data, err);
    if (ret)
        return ret;
    *out = (struct rhea_measured){
        .required = start + data,
        .fully_allocated = start + div_up(what->size, layout.cluster_size) *
                                       layout.cluster_size,
    };
    return 0;
}

static const struct rhea_option_help parallels_create_options[] = {
    {"cluster_size", "size", "Cluster size, any multiple of 512 (default: 1M)"},
    {"extended", "bool",
     "For files of 2 TiB and more: the table counts clusters, not sectors "
     "(default: on)"},
    {"size", "size", "Virtual disk size"},
    {0},
};

const struct rhea_format_ops rhea_format_parallels = {
    .name = "parallels",
    .create_options = parallels_create_options,
    .probe = parallels_probe,
    .open = parallels_open,
    .close = hds_close,
    .info = hds_info,
    .facts = hds_facts,
    .map = hds_map,
    .write = hds_write,
    .write_zeroes = hds_write_zeroes,
    .flush = hds_flush,
    .check = hds_check,
    .create = parallels_create,
    .measure = parallels_measure,
    .resize = hds_resize,
    .bitmap_list = hds_bitmap_list,
    .bitmap_add = hds_bitmap_add,
    .bitmap_remove = hds_bitmap_remove,
    .bitmap_load = hds_bitmap_load,
    .bitmap_store = hds_bitmap_store,
};
