/* SPDX-License-Identifier: MIT */
/*
 * Another size.
 *
 * The table begins right behind the header. Where a longer one has no room
 * before the first cluster, the clusters that are in its way move to the end.
 *
 * The table may have more entries than the disk needs. What those lead to was
 * never seen, and must not become part of a larger disk.
 *
 * Order of writes:
 *   1. entries behind the disk's end become 0; flush;
 *   2. the clusters in the way are copied to the end of the file; flush;
 *   3. their entries; flush. Nothing leads to the old places any more;
 *   4. what the table grows into becomes zeroes, and what the last cluster
 *      holds behind the old end; flush;
 *   5. the header's sector: size, entries, where data can be; flush. Until then
 *      the new entries are no entries;
 *   6. if there were any in step 1, what nobody uses at the end of the file is
 *      cut off.
 * Shrinking is the header alone, and then step 6.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/checked.h"
#include "format/copy.h"
#include "format/parallels/hds.h"

struct hds_move {
    struct hds *h;
    uint64_t below;     /* clusters that begin before this are in the way */
    struct bitmap seen; /* a bit for each place that they may begin in */
    bool dropped;       /* there were entries behind the disk's end */
};

/* Before any of them moves: all can be where they are, and each has one user,
 * so that no more is copied than lies in the way. */
static int move_check(void *opaque, uint64_t index, uint32_t entry,
                      struct rhea_error *err)
{
    struct hds_move *m = opaque;
    struct hds *h = m->h;
    uint64_t host = hds_host(h, entry);
    (void)index;
    if (host >= m->below)
        return 0;
    if (!hds_host_valid(h, host))
        return rhea_error_set(err, EIO,
                              "the image is damaged: a cluster cannot be at "
                              "offset %" PRIu64 " of the file; see 'check'",
                              host);
    uint64_t place = (host - h->data_start) / h->cluster_size;
    if (bitmap_get(&m->seen, place))
        return rhea_error_set(err, EIO,
                              "the image is damaged: the cluster at offset "
                              "%" PRIu64 " of the file is used twice; see "
                              "'check'",
                              host);
    bitmap_set(&m->seen, place, 1);
    return 0;
}

static int move_entry(void *opaque, uint64_t index, uint32_t entry,
                      struct rhea_error *err)
{
    struct hds_move *m = opaque;
    struct hds *h = m->h;
    uint64_t host = hds_host(h, entry), to;
    if (host >= m->below)
        return 0;
    int ret = hds_place_at_end(h, 1, &to, err);
    if (!ret)
        ret = blocks_grow(&h->blocks, err);
    if (!ret)
        ret = copy_range(h->base.storage, host, to, h->cluster_size, true, err);
    return ret ? ret : hds_entry_set(h, index, (uint32_t)(to / h->unit), err);
}

/* All clusters that begin before BELOW go to the end of the file. */
static int move_all(struct hds *h, uint64_t below, struct rhea_error *err)
{
    struct hds_move m = {.h = h, .below = below};
    int ret = bitmap_init(&m.seen,
                          (below - h->data_start) / h->cluster_size + 1, err);
    if (!ret)
        ret = hds_each_entry(h, 0, move_check, &m, err);
    if (!ret)
        ret = hds_each_entry(h, 0, move_entry, &m, err);
    bitmap_finish(&m.seen);
    return ret ? ret : hds_write_back(h, err);
}

/* The header's fields, in one sector. */
static int resize_header(struct hds *h, uint64_t size, uint32_t entries,
                         uint64_t data_start, struct rhea_error *err)
{
    uint64_t sectors = size / HDS_SECTOR;
    int ret = hds_header_set(h, HDS_H_CYLINDERS,
                             (uint32_t)(sectors / HDS_HEADS / HDS_TRACK), err);
    if (!ret)
        ret = hds_header_set(h, HDS_H_HEADS, HDS_HEADS, err);
    if (!ret)
        ret = hds_header_set(h, HDS_H_ENTRIES, entries, err);
    if (!ret)
        ret = hds_header_set64(h, HDS_H_SECTORS, sectors, err);
    if (!ret)
        ret = hds_header_set(h, HDS_H_DATA_OFF,
                             (uint32_t)(data_start / HDS_SECTOR), err);
    return ret ? ret : hds_write_back(h, err);
}

/* The table's new end, in whole clusters from the grid on. */
static uint64_t resize_start(const struct hds *h, uint64_t table_end)
{
    return RHEA_MAX(h->data_start,
                    hds_grid_up(h, align_up(table_end, HDS_SECTOR)));
}

/* Entries [h->entries, ENTRIES) become ones that are 0. */
static int resize_room(struct hds *h, uint64_t table_end, uint64_t data_start,
                       struct rhea_error *err)
{
    /* The file ends, and clusters go, no sooner than data can begin. */
    h->blocks.file_end = RHEA_MAX(h->blocks.file_end, data_start);
    int ret = blocks_grow(&h->blocks, err);
    if (!ret && data_start > h->data_start)
        ret = move_all(h, data_start, err);
    /* Past the cache, which may have some of it. */
    table_drop(&h->table);
    if (!ret)
        ret = rhea_storage_zero(h->base.storage, h->table_end,
                                table_end - h->table_end, false, err);
    return ret ? ret : rhea_storage_flush(h->base.storage, err);
}

static int drop_entry(void *opaque, uint64_t index, uint32_t entry,
                      struct rhea_error *err)
{
    struct hds_move *m = opaque;
    (void)entry;
    m->dropped = true;
    return hds_entry_set(m->h, index, 0, err);
}

/* Entries behind the disk's end, whatever they are, become 0. */
static int resize_drop(struct hds_move *m, struct rhea_error *err)
{
    uint64_t used = div_up(m->h->base.size, m->h->cluster_size);
    int ret = hds_each_entry(m->h, used, drop_entry, m, err);
    return ret || !m->dropped ? ret : hds_write_back(m->h, err);
}

/* What the last cluster holds behind the old end must not show. */
static int resize_clear(struct hds *h, struct rhea_error *err)
{
    uint64_t skip = h->base.size % h->cluster_size;
    struct rhea_extent x;
    if (!skip)
        return 0;
    int ret = h->blocks.ops->map(&h->blocks, h->base.size - 1, 1, &x, err);
    if (!ret && x.kind == RHEA_EXTENT_DATA)
        ret = rhea_storage_zero(h->base.storage, x.host + 1,
                                h->cluster_size - skip, false, err);
    return ret;
}

static int resize_grow(struct hds *h, uint64_t size, uint32_t entries,
                       struct rhea_error *err)
{
    uint64_t table_end = HDS_HEADER + 4 * (uint64_t)entries;
    uint64_t data_start = resize_start(h, table_end);
    struct hds_move m = {.h = h};
    int ret = resize_drop(&m, err);
    if (!ret && entries > h->entries)
        ret = resize_room(h, table_end, data_start, err);
    if (!ret)
        ret = resize_clear(h, err);
    if (!ret)
        ret = resize_header(h, size, entries, data_start, err);
    if (ret)
        return ret;
    h->entries = entries;
    h->table_end = table_end;
    h->data_start = data_start;
    return m.dropped ? hds_cut_end(h, err) : 0;
}

static int resize_shrink(struct hds *h, uint64_t size, uint32_t entries,
                         struct rhea_error *err)
{
    int ret = resize_header(h, size, entries, h->data_start, err);
    if (ret)
        return ret;
    h->entries = entries;
    h->table_end = HDS_HEADER + 4 * (uint64_t)entries;
    return hds_cut_end(h, err);
}

static int resize_check(const struct hds *h, const struct rhea_resize *how,
                        struct rhea_error *err)
{
    const char *preallocation = how->preallocation;
    if (preallocation && strcmp(preallocation, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "Parallels images know no preallocation, such as "
                              "'%s'",
                              preallocation);
    if (how->size % HDS_SECTOR)
        return rhea_error_set(
            err, EINVAL, "the size must be a multiple of %d bytes", HDS_SECTOR);
    if (how->size < h->base.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "what lies behind the new end would be lost");
    if (div_up(how->size, h->cluster_size) > HDS_MAX_ENTRIES ||
        (!h->extended && how->size / HDS_SECTOR > UINT32_MAX))
        return rhea_error_set(err, EFBIG,
                              "%" PRIu64 " bytes are more than this image's "
                              "header and table can tell",
                              how->size);
    if (h->ext.n_bitmaps || h->ext.unknown || h->ext.broken)
        return rhea_error_set(err, ENOTSUP,
                              "the image has bitmaps, or other parts of a "
                              "format extension, which are for its present "
                              "size; remove them first");
    return 0;
}

/* With the lock held: nothing is in flight, all is in the file. */
static int resize_locked(struct hds *h, uint64_t size, struct rhea_error *err)
{
    uint32_t entries = (uint32_t)div_up(size, h->cluster_size);
    int ret = blocks_change_begin(&h->blocks, err);
    if (!ret)
        ret = blocks_begin(&h->blocks, err);
    if (ret)
        return ret;
    hds_gaps_forget(h);
    ret = size > h->base.size ? resize_grow(h, size, entries, err)
                              : resize_shrink(h, size, entries, err);
    ret = blocks_change_end(&h->blocks, ret, err);
    if (!ret)
        h->base.size = h->blocks.size = size;
    return ret;
}

int hds_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    uint64_t old = f->size;
    int ret = resize_check(h, how, err);
    if (ret || how->size == old)
        return ret;
    pthread_mutex_lock(&h->blocks.lock);
    ret = resize_locked(h, how->size, err);
    pthread_mutex_unlock(&h->blocks.lock);
    if (!ret && how->size > old && how->hide_below && h->blocks.child)
        ret = blocks_write_zeroes(&h->blocks, old, how->size - old, false, err);
    return ret ? ret : blocks_flush(&h->blocks, err);
}
