/* SPDX-License-Identifier: MIT */
/*
 * Check: the image was closed, its header says where data can be, each cluster
 * lies in the file and is used once, also by the extension (spec, "BAT",
 * "Format Extension"). What the file holds behind the last cluster is leaked;
 * unused clusters between others are not: they are used again (hds_gaps.c), as
 * QEMU does.
 *
 * Repair: an entry that leads to where no cluster can be is set to 0; a file
 * that ends inside its last cluster grows; of a cluster that is used more than
 * once, each further user gets a copy, up to a bound (copy.h); an extension
 * that does not hold is dropped; the end is cut off.
 *
 * Order of a repair's writes: copies, flush, entries, flush, then the header's
 * fields, flush, then the end is cut off, flush. At each moment an entry is
 * what it was or what it will be, and what that leads to is durable.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/bitmap.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/copy.h"
#include "format/finding.h"
#include "format/parallels/hds.h"

/* The most places of the file that are tracked, in 256 MiB: 2 PiB of clusters
 * of the usual size. A file says that it is longer for nothing. */
#define CHECK_PLACES (UINT64_C(1) << 31)

struct hds_checker {
    struct hds *h;
    struct rhea_check *out;
    unsigned fix; /* RHEA_FIX_* */
    uint64_t file_size;
    uint64_t old_size, limit; /* before repairs: of the file, in bytes and in
                                 whole clusters */
    struct bitmap used; /* a bit for a cluster's place, from 0 of the file on */
    struct copy_budget budget;
    uint64_t end;      /* of the last cluster in use */
    uint64_t lowest;   /* place of a cluster, of those before data_start, */
    uint64_t n_below;  /* and how many these are */
    uint64_t previous; /* host of the entry before; 0: none */
    uint64_t next;     /* the entry behind that */
};

static bool check_fixes(const struct hds_checker *c)
{
    return c->fix & RHEA_FIX_ERRORS;
}

static void check_count(struct hds_checker *c, bool fixed)
{
    if (fixed)
        c->out->corruptions_fixed++;
    else
        c->out->corruptions++;
}

/* --- Clusters --- */

/* Whether the cluster at HOST, which lies in the file, is free so far; then it
 * is not any more. */
static bool check_take(struct hds_checker *c, uint64_t host)
{
    uint64_t first, count;
    hds_places(c->h, host, &first, &count);
    if (first >= c->used.n_bits)
        return false;
    count = RHEA_MIN(count, c->used.n_bits - first);
    if (bitmap_any(&c->used, first, count))
        return false;
    bitmap_set(&c->used, first, count);
    c->end = RHEA_MAX(c->end, host + c->h->cluster_size);
    return true;
}

/* The cluster of entry INDEX, at HOST, belongs to another one, too. */
static int check_copy(struct hds_checker *c, uint64_t index, uint64_t host,
                      struct rhea_error *err)
{
    struct hds *h = c->h;
    uint64_t to;
    int ret = hds_place_at_end(h, 1, &to, err);
    if (!ret)
        ret = blocks_grow(&h->blocks, err);
    if (!ret)
        ret = copy_range(h->base.storage, host, to, h->cluster_size, true, err);
    if (!ret)
        ret = hds_entry_set(h, index, (uint32_t)(to / h->unit), err);
    c->end = RHEA_MAX(c->end, to + h->cluster_size);
    c->file_size = RHEA_MAX(c->file_size, h->blocks.file_end);
    return ret;
}

static int check_twice(struct hds_checker *c, uint64_t index, uint64_t host,
                       struct rhea_error *err)
{
    struct hds *h = c->h;
    bool fix = false;
    int ret = check_fixes(c)
                  ? copy_budget_take(&c->budget, h->base.storage, host,
                                     h->cluster_size, &fix, err)
                  : 0;
    if (ret)
        return ret;
    check_tell(c->out, true,
               "cluster %" PRIu64 " shares its place at offset %" PRIu64 "%s",
               index, host,
               fix              ? "; it was given its own"
               : check_fixes(c) ? COPY_REFUSED
                                : "");
    check_count(c, fix);
    return fix ? check_copy(c, index, host, err) : 0;
}

static int check_outside(struct hds_checker *c, uint64_t index, uint64_t host,
                         struct rhea_error *err)
{
    check_tell(c->out, true,
               "cluster %" PRIu64 " is at offset %" PRIu64
               ", where none can be%s",
               index, host, check_fixes(c) ? "; dropped" : "");
    check_count(c, check_fixes(c));
    c->out->lost++;
    c->previous = 0;
    return check_fixes(c) ? hds_entry_set(c->h, index, 0, err) : 0;
}

/* The file ends inside of the cluster. */
static int check_cut_off(struct hds_checker *c, uint64_t index, uint64_t host,
                         struct rhea_error *err)
{
    check_tell(c->out, true,
               "cluster %" PRIu64 " at offset %" PRIu64
               " is cut off by the end of the file%s",
               index, host, check_fixes(c) ? ", which was moved" : "");
    check_count(c, check_fixes(c));
    if (!check_fixes(c))
        return 0;
    int ret = blocks_grow(&c->h->blocks, err);
    if (!ret)
        c->file_size = RHEA_MAX(c->file_size, c->h->blocks.file_end);
    return ret;
}

static int check_entry(void *opaque, uint64_t index, uint32_t entry,
                       struct rhea_error *err)
{
    struct hds_checker *c = opaque;
    uint64_t host = hds_host(c->h, entry);
    int ret = 0;
    if ((index & 0xffff) == 0 && rhea_progress_cancelled(c->out->progress))
        return rhea_error_set(err, ECANCELED, "the check was stopped");
    if (host >= c->old_size || host + c->h->cluster_size > c->limit ||
        !hds_host_valid(c->h, host))
        return check_outside(c, index, host, err);
    if (host + c->h->cluster_size > c->old_size)
        ret = check_cut_off(c, index, host, err);
    c->out->allocated_clusters++;
    if (c->previous && index == c->next &&
        c->previous + c->h->cluster_size != host)
        c->out->fragmented_clusters++;
    c->previous = host;
    c->next = index + 1;
    if (!ret && !check_take(c, host))
        ret = check_twice(c, index, host, err);
    return ret;
}

/* --- The header and the extension --- */

/* After all else: what stays damaged stays marked. */
static void check_unclean(struct hds_checker *c)
{
    bool fix = check_fixes(c) && !c->out->corruptions;
    if (!c->h->unclean)
        return;
    check_tell(c->out, true, "the image was not closed%s",
               fix ? "; it is now" : "");
    check_count(c, fix);
}

static int check_length(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    if (!h->wrong_count)
        return 0;
    check_tell(c->out, true,
               "the header is wrong about the table's length: by that it "
               "would reach into the data%s",
               check_fixes(c) ? "; now it ends with the disk" : "");
    check_count(c, check_fixes(c));
    if (!check_fixes(c))
        return 0;
    h->wrong_count = false;
    return hds_header_set(h, HDS_H_ENTRIES, h->entries, err);
}

/* The first cluster behind the table that an entry leads to. */
static int check_find_lowest(void *opaque, uint64_t index, uint32_t entry,
                             struct rhea_error *err)
{
    struct hds_checker *c = opaque;
    uint64_t host = hds_host(c->h, entry);
    (void)index;
    (void)err;
    if (host < c->h->table_end || host >= c->h->data_start)
        return 0;
    c->n_below++;
    c->lowest = RHEA_MIN(c->lowest, host);
    return 0;
}

/* A header that has the data begin behind some of them is wrong, if there is
 * room for all: they are where everybody has read them. */
static int check_before_start(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    c->lowest = h->data_start;
    c->n_below = 0;
    int ret = hds_each_entry(h, 0, check_find_lowest, c, err);
    if (!ret && c->n_below &&
        c->n_below <= div_up(h->data_start - c->lowest, h->cluster_size)) {
        h->data_start = c->lowest;
        h->wrong_start = true;
        /* Clusters count now that did not. */
        hds_gaps_forget(h);
        if (!h->extended)
            ret = hds_find_grid(h, err);
    }
    return ret;
}

static int check_start(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    int ret = check_before_start(c, err);
    if (ret || !h->wrong_start)
        return ret;
    check_tell(c->out, true,
               "the header is wrong about where data can be: it is from "
               "offset %" PRIu64 " on%s",
               h->data_start, check_fixes(c) ? ", which it now says" : "");
    check_count(c, check_fixes(c));
    if (!check_fixes(c))
        return 0;
    h->wrong_start = false;
    /* A file that ends before that would make it wrong again. */
    ret = blocks_grow(&h->blocks, err);
    return ret ? ret
               : hds_header_set(h, HDS_H_DATA_OFF,
                                (uint32_t)(h->data_start / HDS_SECTOR), err);
}

/* "Empty" over data: Parallels' programs would not look at it. */
static int check_empty(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    if (!h->empty_flag || !c->out->allocated_clusters)
        return 0;
    check_tell(c->out, true, "the header says that the image is empty%s",
               check_fixes(c) ? "; not any more" : "");
    check_count(c, check_fixes(c));
    if (!check_fixes(c))
        return 0;
    h->empty_flag = false;
    return hds_header_set(h, HDS_H_FLAGS, 0, err);
}

static int check_extension_cluster(void *opaque, uint64_t host,
                                   struct rhea_error *err)
{
    struct hds_checker *c = opaque;
    (void)err;
    if (host + c->h->cluster_size <= c->file_size && check_take(c, host))
        return 0;
    /* The guest's data goes first. */
    c->h->ext.broken = true;
    snprintf(c->h->ext.why, sizeof(c->h->ext.why),
             "its cluster at offset %" PRIu64 " is not its own", host);
    return 0;
}

/* After all of the guest's clusters. */
static int check_extension(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    uint64_t end = c->end;
    int ret = hds_extension_each(h, check_extension_cluster, c, err);
    /* A stale one is nobody's any more. */
    if (ret || !h->ext.broken || h->ext.stale)
        return ret;
    check_tell(c->out, true, "the format extension is damaged: %s%s",
               h->ext.why, check_fixes(c) ? "; dropped" : "");
    check_count(c, check_fixes(c));
    if (!check_fixes(c))
        return 0;
    hds_extension_finish(&h->ext);
    c->end = end; /* its clusters are nobody's now */
    return hds_header_set64(h, HDS_H_EXT_OFF, 0, err);
}

/* --- The end of the file --- */

static int check_end(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    bool fix = (c->fix & RHEA_FIX_LEAKS) && !c->out->corruptions;
    /* The first change of an image brings its file to the end of a place: up to
     * the next one there is no room for a cluster, and nothing that is lost.
     * After repairs the places may be others. */
    uint64_t end = fix ? c->end : hds_grid_up(h, c->end);
    c->out->image_end = c->end;
    /* An extension that is not known may have clusters anywhere. */
    if (c->file_size <= end ||
        ((h->ext.unknown || h->ext.broken) && !h->ext.stale))
        return 0;
    uint64_t count = div_up(c->file_size - end, h->cluster_size);
    check_tell(c->out, false,
               "%" PRIu64 " bytes at the end of the file are unused%s",
               c->file_size - c->end, fix ? "; cut off" : "");
    if (!fix) {
        c->out->leaks += count;
        return 0;
    }
    int ret = rhea_storage_truncate(h->base.storage, c->end, err);
    if (!ret)
        ret = rhea_storage_flush(h->base.storage, err);
    if (ret)
        return ret;
    h->blocks.file_end = hds_grid_up(h, c->end);
    h->blocks.grown = 0;
    c->out->leaks_fixed += count;
    return 0;
}

/* --- All of it --- */

static int check_begin(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    uint64_t places = h->blocks.file_end / h->cluster_size + 2;
    int ret = rhea_storage_size(h->base.storage, &c->file_size, err);
    if (!ret && places > CHECK_PLACES)
        ret = rhea_error_set(err, EFBIG,
                             "the file has room for %" PRIu64
                             " clusters, and no more than %" PRIu64
                             " can be checked",
                             places, CHECK_PLACES);
    if (!ret)
        ret = bitmap_init(&c->used, places, err);
    if (!ret)
        ret = copy_budget_init(&c->budget, h->base.storage, err);
    c->end = h->data_start;
    c->limit = h->blocks.file_end;
    return ret;
}

static int check_table(struct hds_checker *c, struct rhea_error *err)
{
    int ret = check_begin(c, err);
    if (!ret)
        ret = hds_each_entry(c->h, 0, check_entry, c, err);
    if (!ret)
        ret = check_empty(c, err);
    if (!ret)
        ret = check_extension(c, err);
    return ret;
}

/* What was repaired becomes durable, and the image closed, for nothing is left
 * to warn of. */
static int check_finish(struct hds_checker *c, struct rhea_error *err)
{
    struct hds *h = c->h;
    int ret = hds_write_back(h, err);
    if (!ret && check_fixes(c) && h->unclean && !c->out->corruptions) {
        ret = hds_header_set(h, HDS_H_IN_USE, h->closed, err);
        if (!ret)
            ret = hds_write_back(h, err);
        h->unclean = ret != 0;
    }
    return ret ? ret : check_end(c, err);
}

int hds_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    struct hds_checker c = {.h = h, .out = check, .fix = fix};
    if (fix && !h->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    check->total_clusters = h->entries;
    RHEA_LOCKED(&h->blocks.lock);
    int ret = fix ? blocks_change_begin(&h->blocks, err) : 0;
    if (fix)
        hds_gaps_forget(h);
    /* A repair makes the file longer, but what was not there is lost. */
    if (!ret)
        ret = rhea_storage_size(h->base.storage, &c.old_size, err);
    if (!ret)
        ret = check_length(&c, err);
    if (!ret)
        ret = check_start(&c, err);
    if (!ret)
        ret = check_table(&c, err);
    if (!ret)
        check_unclean(&c);
    if (!ret)
        ret = fix ? check_finish(&c, err) : check_end(&c, err);
    bitmap_finish(&c.used);
    /* What is left in the cache by a repair that has failed is not written. */
    h->blocks.failed |= ret && fix;
    return ret;
}

int hds_check_table(struct hds *h, uint64_t *faults, struct rhea_error *err)
{
    struct rhea_check check = {0};
    struct hds_checker c = {.h = h, .out = &check};
    int ret = rhea_storage_size(h->base.storage, &c.old_size, err);
    if (!ret)
        ret = check_table(&c, err);
    bitmap_finish(&c.used);
    *faults = check.corruptions;
    return ret;
}
