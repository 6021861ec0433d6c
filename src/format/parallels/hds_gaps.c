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
 */
#include <errno.h>

#include "base/checked.h"
#include "format/parallels/hds.h"

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
    struct hds_gaps *g = &hds_of(opaque)->gaps;
    uint64_t first, count;
    (void)err;
    hds_places(opaque, host, &first, &count);
    if (first < g->used.n_bits)
        bitmap_set(&g->used, first, RHEA_MIN(count, g->used.n_bits - first));
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
    if (h->ext.unknown || h->ext.kept_bytes || first >= end ||
        bitmap_init(&g->used, end, NULL))
        return 0;
    int ret = hds_each_entry(h, 0, gaps_use_entry, h, err);
    if (!ret)
        ret = hds_extension_each(h, gaps_use, h, err);
    /* The extension will be written to these. */
    for (size_t i = 0; !ret && i < h->ext.n_spare; i++)
        ret = gaps_use(h, h->ext.spare[i] & ~(uint64_t)1, err);
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
    int ret = g->known ? 0 : gaps_find(h, err);
    if (ret) {
        hds_gaps_forget(h);
        return ret;
    }
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
