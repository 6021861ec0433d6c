/* SPDX-License-Identifier: MIT */
/*
 * Parallels' expanding image file: docs/interop/parallels.txt in QEMU ("spec").
 *
 * A header of 64 bytes, right behind it a table (BAT) with 32 bits for each
 * guest cluster, then clusters, of any multiple of a sector. An entry is 0 (not
 * allocated) or where the cluster is: in sectors ("WithoutFreeSpace", up to
 * 2 TiB of file) or in clusters ("WithouFreSpacExt"). There are no reference
 * counts and no zero clusters: over another image, zeroes are written as data.
 *
 * All of it is supported, the format extension with its dirty bitmaps too
 * (hds_extension.c).
 *
 * The table is never loaded whole; its first page has the header, too, so that
 * the header is changed through the same cache.
 *
 * Order of writes, around that of blocks.h (new clusters go into gaps of the
 * file first, see hds_gaps.c):
 *   1. before the first change the header's sector is written: in use, no
 *      extension, not empty; flush;
 *   2. on close, after all that was cached and a flush, what nobody uses at the
 *      end of the file is cut off where anything was discarded;
 *   3. the extension with its bitmaps is written to clusters of its own; flush;
 *   4. the header's sector: the extension, closed; flush.
 * So a crash loses the bitmaps, never leaves any that are out of date.
 */
#include "format/parallels/hds.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"

bool hds_host_valid(const struct hds *h, uint64_t host)
{
    return host >= h->data_start &&
           range_inside(host, h->cluster_size, h->blocks.file_end);
}

uint64_t hds_grid_up(const struct hds *h, uint64_t offset)
{
    if (offset <= h->grid)
        return h->grid;
    return div_up(offset - h->grid, h->cluster_size) * h->cluster_size +
           h->grid;
}

int hds_header_set(struct hds *h, unsigned at, uint32_t value,
                   struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&h->table, at, sizeof(value), &bytes, err);
    if (!ret)
        store_le32(bytes, value);
    return ret;
}

int hds_header_set64(struct hds *h, unsigned at, uint64_t value,
                     struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&h->table, at, sizeof(value), &bytes, err);
    if (!ret)
        store_le64(bytes, value);
    return ret;
}

/* --- Opening --- */

static int open_magic(struct hds *h, const uint8_t *header,
                      struct rhea_error *err)
{
    bool is_old = memcmp(header, HDS_MAGIC, 16) == 0;
    h->extended = memcmp(header, HDS_MAGIC_EXT, 16) == 0;
    if (!is_old && !h->extended)
        return rhea_error_set(err, EINVAL, "not a Parallels image");
    if (load_le32(header + HDS_H_VERSION) != HDS_VERSION)
        return rhea_error_set(err, ENOTSUP,
                              "version %" PRIu32 " of Parallels' format is not "
                              "known",
                              load_le32(header + HDS_H_VERSION));
    return 0;
}

static int open_sizes(struct hds *h, const uint8_t *header,
                      struct rhea_error *err)
{
    uint32_t tracks = load_le32(header + HDS_H_TRACKS);
    uint64_t sectors = h->extended ? load_le64(header + HDS_H_SECTORS)
                                   : load_le32(header + HDS_H_SECTORS);
    h->entries = load_le32(header + HDS_H_ENTRIES);
    if (tracks == 0 || tracks > HDS_MAX_TRACKS)
        return rhea_error_set(err, EINVAL,
                              "invalid Parallels header: clusters of %" PRIu32
                              " sectors",
                              tracks);
    if (h->entries > HDS_MAX_ENTRIES)
        return rhea_error_set(err, EFBIG,
                              "invalid Parallels header: a table of %" PRIu32
                              " clusters",
                              h->entries);
    if (sectors > INT64_MAX / HDS_SECTOR ||
        sectors > (uint64_t)h->entries * tracks)
        return rhea_error_set(err, EINVAL,
                              "invalid Parallels header: a disk of %" PRIu64
                              " sectors, but a table of %" PRIu32
                              " clusters of %" PRIu32,
                              sectors, h->entries, tracks);
    h->base.size = sectors * HDS_SECTOR;
    h->cluster_size = tracks * HDS_SECTOR;
    h->unit = h->extended ? h->cluster_size : HDS_SECTOR;
    h->table_end = HDS_HEADER + 4 * (uint64_t)h->entries;
    return 0;
}

/* A table that would reach into the data, and that the disk needs less of, is
 * not so long. */
static void open_count(struct hds *h, const uint8_t *header)
{
    uint64_t start = (uint64_t)load_le32(header + HDS_H_DATA_OFF) * HDS_SECTOR;
    uint64_t needed = div_up(h->base.size, h->cluster_size);
    uint64_t end = HDS_HEADER + 4 * needed;
    h->wrong_count = start && start < h->table_end && start >= end;
    if (!h->wrong_count)
        return;
    h->entries = (uint32_t)needed;
    h->table_end = end;
}

/* Where the clusters begin. Only for new ones this has to be right: what is
 * wrong here is the check's to mend. */
static void open_start(struct hds *h, const uint8_t *header, uint64_t file_size)
{
    uint64_t start = (uint64_t)load_le32(header + HDS_H_DATA_OFF) * HDS_SECTOR;
    uint64_t least = align_up(h->table_end, HDS_SECTOR);
    if (h->extended)
        least = div_up(h->table_end, h->cluster_size) * h->cluster_size;
    h->wrong_start = start < least || start > align_up(file_size, HDS_SECTOR);
    if (!h->extended && start == 0)
        h->wrong_start = false;
    if (h->wrong_start || start == 0)
        start = least;
    h->data_start = start;
    h->grid = h->extended ? 0 : start % h->cluster_size;
}

static int open_header(struct hds *h, uint8_t header[HDS_HEADER],
                       struct rhea_error *err)
{
    uint64_t file_size;
    int ret = rhea_storage_size(h->base.storage, &file_size, err);
    if (!ret && file_size < HDS_HEADER)
        ret = rhea_error_set(err, EINVAL,
                             "not a Parallels image: the file has only %" PRIu64
                             " bytes",
                             file_size);
    if (!ret)
        ret = rhea_storage_read(h->base.storage, header, HDS_HEADER, 0, err);
    if (!ret)
        ret = open_magic(h, header, err);
    if (!ret)
        ret = open_sizes(h, header, err);
    if (ret)
        return ret;
    uint32_t in_use = load_le32(header + HDS_H_IN_USE);
    h->unclean = in_use == HDS_IN_USE;
    h->closed = in_use == HDS_CLOSED ? HDS_CLOSED : HDS_CLOSED_OLD;
    h->empty_flag = load_le32(header + HDS_H_FLAGS) & HDS_FLAG_EMPTY;
    open_count(h, header);
    open_start(h, header, file_size);
    h->blocks.file_end = hds_grid_up(h, RHEA_MAX(file_size, h->data_start));
    return 0;
}

/* Clusters count that begin before END; the first one tells. */
struct open_grid {
    struct hds *h;
    uint64_t end;
};

static int open_find_grid(void *opaque, uint64_t index, uint32_t entry,
                          struct rhea_error *err)
{
    struct open_grid *g = opaque;
    uint64_t host = hds_host(g->h, entry);
    (void)index;
    (void)err;
    if (host < g->h->data_start || host >= g->end)
        return 0;
    g->h->grid = host % g->h->cluster_size;
    return 1;
}

/* What begins in the file, a check takes for a cluster that it has cut off, and
 * lets the file grow to its end. */
int hds_find_grid(struct hds *h, struct rhea_error *err)
{
    struct open_grid g = {.h = h};
    int ret = rhea_storage_size(h->base.storage, &g.end, err);
    if (!ret)
        ret = hds_each_entry(h, 0, open_find_grid, &g, err);
    if (ret > 0)
        h->blocks.file_end = hds_grid_up(h, h->blocks.file_end);
    return RHEA_MIN(ret, 0);
}

/* An old image whose clusters do not lie where its header says goes on where
 * they do. Where nothing is checked only whole clusters count, and its file
 * grows no further than to the end of the last place. */
static int open_grid(struct hds *h, unsigned flags, struct rhea_error *err)
{
    uint64_t end;
    if (flags & RHEA_FORMAT_CHECK)
        return hds_find_grid(h, err);
    struct open_grid g = {.h = h};
    if (h->blocks.file_end >= h->cluster_size)
        g.end = h->blocks.file_end - h->cluster_size + 1;
    int ret = hds_each_entry(h, 0, open_find_grid, &g, err);
    if (ret <= 0)
        return ret;
    ret = rhea_storage_size(h->base.storage, &end, err);
    if (ret < 0)
        return ret;
    h->blocks.file_end = hds_grid_up(h, RHEA_MAX(end, h->data_start));
    return 0;
}

/*
 * An image that was not closed cleanly is looked through before it is written
 * to. Leaks do no harm. Anything else must be looked at by a person: repairing
 * drops guest data.
 */
static int open_check_unclean(struct hds *h, struct rhea_error *err)
{
    uint64_t faults = 0;
    int ret = hds_check_table(h, &faults, err);
    h->marked = !ret && !faults; /* now it is ours, and to be closed */
    h->unclean = !h->marked;
    if (!ret && faults)
        ret = rhea_error_set(err, EIO,
                             "this Parallels image was not closed cleanly and "
                             "is damaged (%" PRIu64
                             " errors); repair it with 'check -r all'",
                             faults);
    return ret;
}

static int open_write(struct hds *h, unsigned flags, struct rhea_error *err)
{
    int ret = 0;
    h->blocks.writable = true;
    if (flags & RHEA_FORMAT_CHECK)
        return 0;
    if (h->wrong_start || h->wrong_count)
        return rhea_error_set(err, EIO,
                              "this Parallels image is damaged: its header "
                              "does not say where data can be; repair it with "
                              "'check -r all'");
    ret = hds_extension_check_write(h, err);
    if (!ret && h->unclean)
        ret = open_check_unclean(h, err);
    return ret;
}

static void hds_destroy(struct hds *h)
{
    hds_gaps_forget(h);
    hds_extension_finish(&h->ext);
    table_finish(&h->table);
    blocks_finish(&h->blocks);
    free(h);
}

/* How QEMU lets files grow, which this program does not heed. */
int hds_take_options(const struct rhea_format_open *how, struct rhea_error *err)
{
    for (size_t i = 0; i < how->n_options; i++) {
        const struct rhea_option *o = &how->options[i];
        uint64_t size;
        int ret = 0;
        if (strcmp(o->name, "prealloc-size") == 0)
            ret = option_size(o, &size, err);
        else if (strcmp(o->name, "prealloc-mode") != 0)
            ret = option_unknown(o, "parallels", err);
        else if (strcmp(o->value, "falloc") && strcmp(o->value, "truncate"))
            ret = rhea_error_set(err, EINVAL,
                                 "option prealloc-mode is 'falloc' or "
                                 "'truncate', not '%.100s'",
                                 o->value);
        if (ret)
            return ret;
    }
    return 0;
}

static int open_all(struct hds *h, const struct rhea_format_open *how,
                    struct rhea_error *err)
{
    const struct table_how tables = {.page_bytes = HDS_PAGE,
                                     .cache_bytes = HDS_CACHE_BYTES};
    uint8_t header[HDS_HEADER];
    int ret = hds_take_options(how, err);
    if (!ret)
        ret = open_header(h, header, err);
    if (!ret)
        ret = table_init(&h->table, h->base.storage, &tables, err);
    if (ret)
        return ret;
    h->blocks.size = h->base.size;
    h->blocks.block_size = h->blocks.unit = h->cluster_size;
    ret = hds_extension_read(h, header, err);
    if (!ret && !h->extended &&
        (how->flags & (RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK)))
        ret = open_grid(h, how->flags, err);
    if (!ret && (how->flags & RHEA_FORMAT_WRITE))
        ret = open_write(h, how->flags, err);
    return ret;
}

int hds_open(struct rhea_format **out, const struct rhea_format_open *how,
             bool child, struct rhea_error *err)
{
    struct hds *h = calloc(1, sizeof(*h));
    if (!h)
        return rhea_error_set(err, ENOMEM, "out of memory");
    h->base.ops = &rhea_format_parallels;
    h->base.storage = how->storage;
    blocks_init(&h->blocks, &hds_blocks_ops, &h->base);
    h->blocks.child = child;
    int ret = open_all(h, how, err);
    if (ret) {
        hds_destroy(h);
        return ret;
    }
    *out = &h->base;
    return 0;
}

/* --- Closing --- */

int hds_settle(struct hds *h, struct rhea_error *err)
{
    bool has_extension;
    if (!h->marked)
        return 0;
    int ret = hds_write_back(h, err);
    if (!ret)
        ret = hds_extension_write(h, err);
    has_extension = h->ext.offset && !h->ext.stale;
    if (!ret)
        ret = hds_header_set(h, HDS_H_IN_USE,
                             has_extension ? HDS_CLOSED : h->closed, err);
    if (!ret)
        ret = hds_write_back(h, err);
    if (!ret)
        ret = hds_extension_trim(h, err);
    h->blocks.failed |= ret != 0;
    if (ret)
        return ret;
    h->marked = h->unclean = false;
    h->blocks.grown = 0;
    return 0;
}

int hds_close(struct rhea_format *f, struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    int ret = 0;
    if (h->blocks.writable) {
        ret = blocks_flush(&h->blocks, err);
        RHEA_LOCKED(&h->blocks.lock);
        if (!ret && h->dropped)
            ret = hds_cut_end(h, err);
        if (!ret)
            ret = hds_settle(h, err);
    }
    hds_destroy(h);
    return ret;
}

/* --- The rest of the interface --- */

void hds_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct hds *h = hds_of(f);
    RHEA_LOCKED(&h->blocks.lock);
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = h->cluster_size,
        .part_size = RHEA_MIN(h->cluster_size, BLOCKS_PART),
        .bitmaps = (uint32_t)h->ext.n_bitmaps,
        .dirty = h->unclean,
        .extensions = h->ext.unknown,
        .corrupt = h->ext.broken,
    };
}

static void facts_bitmap(struct rhea_facts *facts, const struct rhea_bitmap *b)
{
    rhea_facts_object(facts, NULL, NULL);
    rhea_facts_list(facts, "flags", "flags");
    if (b->in_use)
        rhea_facts_string(facts, NULL, NULL, "in-use");
    rhea_facts_string(facts, NULL, NULL, "auto");
    rhea_facts_end(facts);
    rhea_facts_string(facts, "name", "name", b->name);
    rhea_facts_number(facts, "granularity", "granularity", b->granularity);
    rhea_facts_end(facts);
}

int hds_facts_bitmaps(struct rhea_facts *facts, struct rhea_format *f,
                      struct rhea_error *err)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    int ret = f->ops->bitmap_list(f, &list, &n, err);
    if (n)
        rhea_facts_list(facts, "bitmaps", "bitmaps");
    for (size_t i = 0; i < n; i++)
        facts_bitmap(facts, &list[i]);
    if (n)
        rhea_facts_end(facts);
    rhea_bitmaps_free(list, n);
    return ret;
}

int hds_facts(struct rhea_format *f, struct rhea_facts *facts,
              struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    rhea_facts_bool(facts, "extended", "extended", h->extended);
    if (h->unclean)
        rhea_facts_bool(facts, "in use", "in-use", true);
    int ret = hds_facts_bitmaps(facts, f, err);
    RHEA_LOCKED(&h->blocks.lock);
    if (h->ext.broken)
        rhea_facts_string(facts, "damaged extension", "damaged-extension",
                          h->ext.why);
    return ret;
}

int hds_map(struct rhea_format *f, uint64_t offset, uint64_t len,
            struct rhea_extent *extent, struct rhea_error *err)
{
    return blocks_map(&hds_of(f)->blocks, offset, len, extent, err);
}

int hds_write(struct rhea_format *f, uint64_t offset, const void *buf,
              size_t len, struct rhea_error *err)
{
    hds_bitmaps_mark(hds_of(f), offset, len);
    return blocks_write(&hds_of(f)->blocks, offset, buf, len, err);
}

int hds_clone(struct rhea_format *f, uint64_t offset, struct rhea_storage *from,
              uint64_t from_offset, uint64_t len, struct rhea_error *err)
{
    hds_bitmaps_mark(hds_of(f), offset, len);
    return blocks_clone(&hds_of(f)->blocks, offset, from, from_offset, len,
                        err);
}

int hds_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                     bool unmap, struct rhea_error *err)
{
    hds_bitmaps_mark(hds_of(f), offset, len);
    return blocks_write_zeroes(&hds_of(f)->blocks, offset, len, unmap, err);
}

int hds_flush(struct rhea_format *f, struct rhea_error *err)
{
    return blocks_flush(&hds_of(f)->blocks, err);
}
