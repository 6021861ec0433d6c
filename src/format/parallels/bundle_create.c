/* SPDX-License-Identifier: MIT */
/*
 * A new bundle: a file for each storage, then the descriptor. Its files are
 * durable before it names them.
 *
 * Beside them lies an empty file that is called like the folder, as in those
 * that Parallels Desktop makes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

struct bundle_maker {
    const struct bundle_layout *layout;
    char name[256]; /* of the folder */
};

/* "NAME.hdd" of ".../NAME.hdd/DiskDescriptor.xml"; one that any program can
 * read, where it is odd. */
static void maker_name(struct bundle_maker *m, const char *path)
{
    const char *end = path ? strrchr(path, '/') : NULL;
    const char *start = end;
    bool plain = end && end > path;
    while (plain && start > path && start[-1] != '/')
        start--;
    size_t len = plain ? (size_t)(end - start) : 0;
    plain = len && len < sizeof(m->name) - 64 && *start != '.';
    for (size_t i = 0; plain && i < len; i++)
        plain = start[i] > ' ' && start[i] <= '~' &&
                !strchr("<>&'\"\\:{}", start[i]);
    if (plain)
        snprintf(m->name, sizeof(m->name), "%.*s", (int)len, start);
    else
        snprintf(m->name, sizeof(m->name), "harddisk.hdd");
}

static char *maker_file(void *opaque, uint64_t n)
{
    const struct bundle_maker *m = opaque;
    char *name = NULL;
    return asprintf(&name, "%s.%" PRIu64 ".{" PRL_TOP "}.hds", m->name, n) < 0
               ? NULL
               : name;
}

/* The most that one storage holds: a multiple of a cluster. */
static uint64_t layout_split(const struct bundle_layout *l)
{
    return l->split ? l->split / l->cluster_size * l->cluster_size : l->size;
}

static int layout_check(const struct bundle_layout *l, struct rhea_error *err)
{
    if (l->size == 0)
        return rhea_error_set(err, EINVAL, "a bundle cannot be of no size");
    if (!l->cluster_size || l->cluster_size % HDS_SECTOR ||
        l->cluster_size / HDS_SECTOR > HDS_MAX_TRACKS)
        return rhea_error_set(err, EINVAL,
                              "cluster_size must be a multiple of %d bytes, "
                              "and at most %" PRIu64,
                              HDS_SECTOR,
                              (uint64_t)HDS_MAX_TRACKS * HDS_SECTOR);
    if (l->split && !layout_split(l))
        return rhea_error_set(err, EINVAL,
                              "split must be at least a cluster, of %" PRIu64
                              " bytes",
                              l->cluster_size);
    if (div_up(l->size, layout_split(l)) > PRL_STORAGES_MAX)
        return rhea_error_set(err, EINVAL,
                              "split is too small: there would be %" PRIu64
                              " files, and there can be %d",
                              div_up(l->size, layout_split(l)),
                              PRL_STORAGES_MAX);
    return 0;
}

static struct hds_layout layout_part(const struct bundle_layout *l, uint64_t n)
{
    uint64_t split = layout_split(l);
    uint64_t at = n * split;
    return (struct hds_layout){
        .size = at < l->size ? RHEA_MIN(split, l->size - at) : 0,
        .cluster_size = l->cluster_size,
        .extended = l->extended,
    };
}

int bundle_part_layout(const struct bundle_layout *layout, uint64_t n,
                       uint64_t *start, uint64_t *size, struct rhea_error *err)
{
    uint8_t header[HDS_HEADER];
    int ret = layout_check(layout, err);
    if (ret)
        return ret;
    struct hds_layout part = layout_part(layout, n);
    *start = 0;
    *size = part.size;
    return part.size && !layout->plain ? hds_lay_out(&part, header, start, err)
                                       : 0;
}

static int create_file(const struct rhea_files *files, struct bundle_maker *m,
                       uint64_t n, struct rhea_error *err)
{
    struct hds_layout part = layout_part(m->layout, n);
    struct rhea_storage *storage;
    RHEA_AUTO_FREE char *name = maker_file(m, n);
    if (!name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = files->create(files->opaque, name, &storage, err);
    if (ret)
        return ret;
    if (!m->layout->plain)
        return hds_create(storage, &part, err);
    ret = rhea_storage_truncate(storage, part.size, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

int bundle_create(struct rhea_storage *storage, const struct rhea_create *how,
                  const struct bundle_layout *layout, struct rhea_error *err)
{
    struct bundle_maker m = {.layout = layout};
    struct rhea_storage *mark;
    RHEA_AUTO_FREE char *text = NULL;
    size_t len = 0;
    int ret = layout_check(layout, err);
    if (!ret && !how->files)
        ret = rhea_error_set(err, ENOTSUP, "a bundle has to be in a folder");
    if (ret)
        return ret;
    maker_name(&m, storage->path);
    for (uint64_t n = 0; !ret && layout_part(layout, n).size; n++)
        ret = create_file(how->files, &m, n, err);
    if (!ret)
        ret = how->files->create(how->files->opaque, m.name, &mark, err);
    const struct prl_new what = {
        .size = layout->size / HDS_SECTOR,
        .block = layout->cluster_size / HDS_SECTOR,
        .part = layout_split(layout) / HDS_SECTOR,
        .plain = layout->plain,
        .file = maker_file,
        .opaque = &m,
        .name = m.name,
    };
    if (!ret)
        ret = prl_write_new(&what, &text, &len, err);
    if (!ret)
        ret = rhea_storage_write(storage, text, len, 0, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}
