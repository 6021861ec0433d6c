/* SPDX-License-Identifier: MIT */
/*
 * Parallels' disks: one growing file (hds.c).
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "format/option.h"
#include "format/parallels/hds.h"

extern const struct rhea_format_ops rhea_format_parallels;

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
    .create = parallels_create,
};
