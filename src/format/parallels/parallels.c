/* SPDX-License-Identifier: MIT */
/*
 * Parallels' disks: a growing file (hds.c), or a folder of files with a
 * description of them (bundle.c). An image that is open has the functions of
 * the one or of the other.
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/option.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

static int parallels_probe(const uint8_t *head, size_t len)
{
    if (len >= HDS_HEADER &&
        (memcmp(head, HDS_MAGIC, 16) == 0 ||
         memcmp(head, HDS_MAGIC_EXT, 16) == 0) &&
        load_le32(head + HDS_H_VERSION) == HDS_VERSION)
        return 100;
    return prl_probe(head, len);
}

/*
 * A file of a bundle that is not all of the disk shows wrong bytes, and if it
 * is written to, so do those that are over it. What only looks at the file
 * itself may.
 */
static int open_check_alone(const struct rhea_format_open *how,
                            struct rhea_error *err)
{
    const char *path = how->storage->path;
    struct rhea_storage *file;
    struct prl_disk d = {0};
    bool whole = true;
    if (!how->files || !path ||
        (how->flags & (RHEA_FORMAT_CHECK | RHEA_FORMAT_NO_IO)) ||
        how->files->open(how->files->opaque, PRL_FILE, false, &file, NULL))
        return 0;
    if (prl_read(&d, file, NULL) == 0)
        whole = bundle_is_whole(&d, prl_last_part(path));
    prl_finish(&d);
    return whole ? 0
                 : rhea_error_set(err, EINVAL,
                                  "this file is only a part of the disk that "
                                  "'%s' beside it describes; open that, or the "
                                  "folder they are in",
                                  PRL_FILE);
}

static int parallels_open(struct rhea_format **out,
                          const struct rhea_format_open *how,
                          struct rhea_error *err)
{
    uint8_t head[4096];
    uint64_t size;
    int ret = rhea_storage_size(how->storage, &size, err);
    size_t len = ret ? 0 : (size_t)RHEA_MIN(size, sizeof(head));
    if (!ret)
        ret = rhea_storage_read(how->storage, head, len, 0, err);
    if (ret)
        return ret;
    if (prl_probe(head, len))
        return bundle_open(out, how, err);
    ret = open_check_alone(how, err);
    return ret ? ret : hds_open(out, how, false, err);
}

/* --- Creating --- */

struct create_options {
    struct bundle_layout layout;
    bool bundle, has_extended;
};

static int create_type(const struct rhea_option *o, bool *plain,
                       struct rhea_error *err)
{
    *plain = strcmp(o->value, "plain") == 0;
    return *plain || strcmp(o->value, "expanding") == 0
               ? 0
               : rhea_error_set(err, EINVAL,
                                "option type is 'expanding' or 'plain', not "
                                "'%.100s'",
                                o->value);
}

static int create_option(const struct rhea_option *o, struct create_options *c,
                         struct rhea_error *err)
{
    if (strcmp(o->name, "cluster_size") == 0)
        return option_size(o, &c->layout.cluster_size, err);
    if (strcmp(o->name, "split") == 0)
        return option_size(o, &c->layout.split, err);
    if (strcmp(o->name, "bundle") == 0)
        return option_bool(o, &c->bundle, err);
    if (strcmp(o->name, "type") == 0)
        return create_type(o, &c->layout.plain, err);
    if (strcmp(o->name, "extended") == 0) {
        c->has_extended = true;
        return option_bool(o, &c->layout.extended, err);
    }
    return option_unknown(o, "parallels", err);
}

static int create_parse(uint64_t size, const struct rhea_option *options,
                        size_t n, struct create_options *c,
                        struct rhea_error *err)
{
    *c = (struct create_options){
        .layout = {.size = align_up(size, HDS_SECTOR),
                   .cluster_size = HDS_DEFAULT_CLUSTER}};
    for (size_t i = 0; i < n; i++) {
        int ret = create_option(&options[i], c, err);
        if (ret)
            return ret;
    }
    /* As QEMU does, and as Parallels Desktop does. */
    if (!c->has_extended)
        c->layout.extended = !c->bundle || size > UINT64_C(1) << 40;
    if (!c->bundle && (c->layout.plain || c->layout.split))
        return rhea_error_set(err, EINVAL,
                              "options type and split are for bundles: "
                              "bundle=on");
    return 0;
}

static bool parallels_create_is_bundle(const struct rhea_create *how)
{
    struct create_options c;
    return create_parse(how->size, how->options, how->n_options, &c, NULL) ==
               0 &&
           c.bundle;
}

static int parallels_create(struct rhea_storage *storage,
                            const struct rhea_create *how,
                            struct rhea_error *err)
{
    struct create_options c;
    int ret = create_parse(how->size, how->options, how->n_options, &c, err);
    if (ret)
        return ret;
    const struct hds_layout layout = {.size = c.layout.size,
                                      .cluster_size = c.layout.cluster_size,
                                      .extended = c.layout.extended};
    return c.bundle ? bundle_create(storage, how, &c.layout, err)
                    : hds_create(storage, &layout, err);
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

/* Headers and tables of all parts, and what a part's last cluster has too
 * many. */
static int measure_parts(const struct bundle_layout *layout, uint64_t *meta,
                         uint64_t *clusters, struct rhea_error *err)
{
    *meta = *clusters = 0;
    for (uint64_t n = 0;; n++) {
        uint64_t start, size;
        int ret = bundle_part_layout(layout, n, &start, &size, err);
        if (ret || !size)
            return ret;
        *meta += start;
        *clusters += div_up(size, layout->cluster_size);
    }
}

static int parallels_measure(const struct rhea_measure *what,
                             struct rhea_measured *out, struct rhea_error *err)
{
    struct create_options c;
    uint8_t header[HDS_HEADER];
    uint64_t start = 0, data = 0, clusters = 0;
    int ret = create_parse(what->size, what->options, what->n_options, &c, err);
    if (ret)
        return ret;
    const struct hds_layout layout = {.size = what->size,
                                      .cluster_size = c.layout.cluster_size,
                                      .extended = c.layout.extended};
    if (c.bundle) {
        ret = measure_parts(&c.layout, &start, &clusters, err);
    } else {
        ret = hds_lay_out(&layout, header, &start, err);
        clusters = ret ? 0 : div_up(what->size, layout.cluster_size);
    }
    if (!ret && what->next)
        ret = measure_data(what, c.layout.cluster_size, &data, err);
    if (ret)
        return ret;
    uint64_t all = c.layout.plain ? what->size : clusters * layout.cluster_size;
    *out = (struct rhea_measured){
        .required = c.layout.plain ? all : start + data,
        .fully_allocated = start + all,
    };
    return 0;
}

static const struct rhea_option_help parallels_create_options[] = {
    {"bundle", "bool",
     "A folder with DiskDescriptor.xml, as Parallels' own disks are (default: "
     "off)"},
    {"cluster_size", "size", "Cluster size, any multiple of 512 (default: 1M)"},
    {"extended", "bool",
     "The table counts clusters, not sectors, as files of 2 TiB and more need "
     "it (default: on; in bundles only where it is needed)"},
    {"size", "size", "Virtual disk size"},
    {"split", "size", "Bundles: several files of at most this size"},
    {"type", "str", "Bundles: expanding (default) or plain files"},
    {0},
};

const struct rhea_format_ops rhea_format_parallels = {
    .name = "parallels",
    .create_options = parallels_create_options,
    .probe = parallels_probe,
    .bundle_file = PRL_FILE,
    .open = parallels_open,
    .close = hds_close,
    .info = hds_info,
    .facts = hds_facts,
    .map = hds_map,
    .write = hds_write,
    .clone = hds_clone,
    .write_zeroes = hds_write_zeroes,
    .discard = hds_discard,
    .flush = hds_flush,
    .check = hds_check,
    .counts_lost = true,
    .create = parallels_create,
    .create_is_bundle = parallels_create_is_bundle,
    .measure = parallels_measure,
    .resize = hds_resize,
    .bitmap_list = hds_bitmap_list,
    .bitmap_add = hds_bitmap_add,
    .bitmap_remove = hds_bitmap_remove,
    .bitmap_load = hds_bitmap_load,
    .bitmap_store = hds_bitmap_store,
};
