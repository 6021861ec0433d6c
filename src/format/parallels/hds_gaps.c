/* SPDX-License-Identifier: MIT */
/*
 * Clusters of the file that nobody uses: what QEMU has discarded, what a crash
 * has left, what a program has taken in advance. The guest's new clusters go
 * there before the file grows.
 *
 * Nothing in the file says which they are, so that the whole table is looked
 * through, once, when the first new cluster is asked for. Free is what no entry
 * leads to, those behind the disk's end included, and what no extension has, be
 * it out of date. Where an extension has what is not known, none is.
 *
 * Order of writes: table_begin has made the table durable in which nobody uses
 * them. A place is emptied, then written to; the entry follows behind a flush.
 *
 * A cluster that is discarded loses its entry, and the file's blocks with it.
 * Its place is not used again before the image is next opened: the entry may
 * not be durable, and a write that has begun may still go there. After a crash
 * it holds what it did or zeroes, as a discard may leave it. On closing, behind
 * the flush of the table, what is left of such places at the end of the file is
 * cut off; see hds.c.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/hds.h"

/* The most places that are tracked: 32 MiB of memory, and 256 TiB of clusters
 * of the usual size. */
enum { GAPS_MAX = 1 << 28 };

void hds_places(const struct hds *h, uint64_t host, uint64_t *first,
                uint64_t *count)
{
    /* The grid is below a cluster's size. */
    uint64_t shifted = host + h->cluster_size - h->grid;
    *first = shifted / h->cluster_size;
    *count = shifted % h->cluster_size ? 2 : 1;
}

static uint64_t gap_host(const struct hds *h, uint64_t place)
{
    return place * h->cluster_size - (h->cluster_size - h->grid);
}

static int gaps_use(void *opaque, uint64_t host, struct rhea_error *err)
{
    struct hds *h = opaque;
    struct hds_gaps *g = &h->gaps;
    uint64_t first, count;
    (void)err;
    if (host < h->blocks.file_end)
        g->end = RHEA_MAX(g->end, host + h->cluster_size);
    hds_places(opaque, host, &first, &count);
    if (first >= g->used.n_bits)
        return 0;
    count = RHEA_MIN(count, g->used.n_bits - first);
    g->shared |= bitmap_any(&g->used, first, count);
    bitmap_set(&g->used, first, count);
    return 0;
}

static int gaps_use_entry(void *opaque, uint64_t index, uint32_t entry,
                          struct rhea_error *err)
{
    (void)index;
    return gaps_use(opaque, hds_host(opaque, entry), err);
}

static int gaps_find(struct hds *h, struct rhea_error *err)
{
    struct hds_gaps *g = &h->gaps;
    uint64_t first, end, ignored;
    hds_places(h, hds_grid_up(h, h->data_start), &first, &ignored);
    hds_places(h, h->blocks.file_end, &end, &ignored);
    g->next = first;
    g->known = true;
    /* A file of more clusters than can be tracked just grows. */
    if (h->ext.unknown || h->ext.kept_bytes || first >= end || end > GAPS_MAX ||
        bitmap_init(&g->used, end, NULL))
        return 0;
    int ret = hds_each_entry(h, 0, gaps_use_entry, h, err);
    if (!ret)
        ret = hds_extension_each(h, gaps_use, h, err);
    /* The extension will be written to these, of which it may have some. */
    bool shared = g->shared;
    for (size_t i = 0; !ret && i < h->ext.n_spare; i++)
        ret = gaps_use(h, h->ext.spare[i] & ~(uint64_t)1, err);
    g->shared = shared;
    /* The file has cut off a cluster that is not on the grid: the next one goes
     * behind it. */
    if (!ret && g->end > h->blocks.file_end)
        h->blocks.file_end = hds_grid_up(h, g->end);
    return ret;
}

static int gaps_know(struct hds *h, struct rhea_error *err)
{
    int ret = h->gaps.known ? 0 : gaps_find(h, err);
    if (ret)
        hds_gaps_forget(h);
    return ret;
}

void hds_gaps_forget(struct hds *h)
{
    bitmap_finish(&h->gaps.used);
    h->gaps = (struct hds_gaps){0};
}

int hds_gap_take(struct hds *h, uint64_t *count, uint64_t *host,
                 struct rhea_error *err)
{
    struct hds_gaps *g = &h->gaps;
    int ret = gaps_know(h, err);
    if (ret)
        return ret;
    uint64_t end = g->used.n_bits;
    uint64_t place =
        g->next < end ? bitmap_find(&g->used, g->next, false) : end;
    if (place >= end) {
        g->next = end;
        *count = 0;
        return 0;
    }
    uint64_t run = bitmap_find(&g->used, place, true) - place;
    *count = RHEA_MIN(*count, run);
    *host = gap_host(h, place);
    ret = rhea_storage_zero(h->base.storage, *host, *count * h->cluster_size,
                            true, err);
    if (ret)
        return ret;
    bitmap_set(&g->used, place, *count);
    g->next = place + *count;
    return 0;
}

/* --- Discarding --- */

enum { DISCARD_CLUSTERS = 256 /* in one go */ };

/* Clusters [FIRST, FIRST + COUNT), none of which is being written to, have no
 * entries any more; HOSTS is where they were, 0: nowhere. */
static int discard_entries(struct hds *h, uint64_t first, size_t count,
                           uint64_t *hosts, struct rhea_error *err)
{
    int ret = blocks_begin(&h->blocks, err);
    if (!ret)
        ret = gaps_know(h, err);
    for (size_t i = 0; !ret && i < count; i++) {
        const uint8_t *entry;
        uint64_t n;
        hosts[i] = 0;
        ret = hds_entries(h, first + i, 1, &entry, &n, err);
        if (ret || !entry)
            continue;
        uint64_t host = hds_host(h, load_le32(entry));
        ret = hds_entry_set(h, first + i, 0, err);
        h->dropped = true;
        /* What is damaged is left alone. */
        if (!ret && h->gaps.used.words && !h->gaps.shared &&
            hds_host_valid(h, host))
            hosts[i] = host;
    }
    return ret;
}

static int discard_some(struct hds *h, uint64_t first, size_t count,
                        struct rhea_error *err)
{
    uint64_t hosts[DISCARD_CLUSTERS] = {0};
    struct blocks_flight flight;
    RHEA_LOCKED(&h->blocks.lock);
    while (!blocks_flight_begin(&h->blocks, &flight, first, first + count - 1))
        continue;
    int ret = discard_entries(h, first, count, hosts, err);
    pthread_mutex_unlock(&h->blocks.lock);
    for (size_t i = 0; !ret && i < count; i++)
        if (hosts[i])
            ret = rhea_storage_discard(h->base.storage, hosts[i],
                                       h->cluster_size, err);
    pthread_mutex_lock(&h->blocks.lock);
    blocks_flight_end(&h->blocks, &flight);
    return ret;
}

/* What would show through instead must not: zeroes, and holes in the file. */
static int discard_over(struct hds *h, uint64_t offset, uint64_t len,
                        struct rhea_error *err)
{
    int ret = 0;
    while (!ret && len) {
        struct rhea_extent x;
        ret = blocks_map(&h->blocks, offset, len, &x, err);
        if (!ret && x.kind == RHEA_EXTENT_DATA)
            ret = blocks_write_zeroes(&h->blocks, offset, x.length, true, err);
        if (ret)
            break;
        offset += x.length;
        len -= x.length;
    }
    return ret;
}

int hds_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    if (!h->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (!range_inside(offset, len, f->size))
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    hds_bitmaps_mark(h, offset, len);
    if (h->blocks.child)
        return discard_over(h, offset, len, err);
    /* Whole clusters; the last one may be a part of one. */
    uint64_t first = div_up(offset, h->cluster_size);
    uint64_t end = offset + len == f->size ? div_up(f->size, h->cluster_size)
                                           : (offset + len) / h->cluster_size;
    int ret = 0;
    while (!ret && first < end) {
        size_t count = (size_t)RHEA_MIN(end - first, DISCARD_CLUSTERS);
        ret = discard_some(h, first, count, err);
        first += count;
    }
    return ret;
}

/* --- The end of the file --- */

struct gaps_end {
    struct hds *h;
    uint64_t end; /* of the last cluster so far */
};

static int end_find(void *opaque, uint64_t host, struct rhea_error *err)
{
    struct gaps_end *e = opaque;
    (void)err;
    e->end = RHEA_MAX(e->end, host + e->h->cluster_size);
    return 0;
}

static int end_find_entry(void *opaque, uint64_t index, uint32_t entry,
                          struct rhea_error *err)
{
    struct gaps_end *e = opaque;
    (void)index;
    return end_find(opaque, hds_host(e->h, entry), err);
}

int hds_cut_end(struct hds *h, struct rhea_error *err)
{
    struct hds_extension *ext = &h->ext;
    struct gaps_end e = {.h = h, .end = h->data_start};
    /* What is not known may have clusters anywhere. */
    if ((ext->unknown || ext->broken) && !ext->stale)
        return 0;
    int ret = hds_each_entry(h, 0, end_find_entry, &e, err);
    /* One that is yet to be written needs none of its old places. */
    if (!ret && !ext->changed)
        ret = hds_extension_each(h, end_find, &e, err);
    if (ret || e.end >= h->blocks.file_end)
        return ret;
    ret = rhea_storage_truncate(h->base.storage, e.end, err);
    h->blocks.file_end = h->blocks.grown = hds_grid_up(h, e.end);
    while (ext->n_spare && ext->spare[ext->n_spare - 1] >= e.end)
        ext->n_spare--;
    hds_gaps_forget(h);
    return ret;
}
