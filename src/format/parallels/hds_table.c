/* SPDX-License-Identifier: MIT */
/* The table of a growing file, and what blocks.c leaves to the format. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/parallels/hds.h"

/* The most pages that one lookup joins: it holds the lock, and the next lookup
 * goes on where this one stopped. */
enum { MAP_PAGES = 64, COPY_ENTRIES = 1024, ZERO_PAGES = 16 };

static bool entries_zero(const uint8_t *entries, uint64_t n)
{
    return n == 0 || (load_le32(entries) == 0 &&
                      memcmp(entries, entries + 4, 4 * (size_t)(n - 1)) == 0);
}

int hds_entries(struct hds *h, uint64_t index, uint64_t want,
                const uint8_t **entries, uint64_t *n, struct rhea_error *err)
{
    uint32_t len = 0;
    want = RHEA_MIN(want, h->entries - index);
    int ret = table_get(&h->table, HDS_HEADER + 4 * index, entries, &len, err);
    *n = RHEA_MIN(len / 4, want);
    if (ret || !entries_zero(*entries, *n))
        return ret;
    *entries = NULL;
    if (*n < want)
        *n += table_zero_run(&h->table, HDS_HEADER + 4 * (index + *n),
                             4 * (want - *n)) /
              4;
    return 0;
}

int hds_entry_set(struct hds *h, uint64_t index, uint32_t entry,
                  struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&h->table, HDS_HEADER + 4 * index, 4, &bytes, err);
    if (!ret)
        store_le32(bytes, entry);
    return ret;
}

int hds_each_entry(struct hds *h, uint64_t from, hds_entry_fn *fn, void *opaque,
                   struct rhea_error *err)
{
    unsigned zero = 0;
    while (from < h->entries) {
        /* A copy, for FN may change the table. */
        uint8_t copy[4 * COPY_ENTRIES];
        const uint8_t *entries = NULL;
        uint64_t n = 0;
        int ret = hds_entries(h, from, h->entries - from, &entries, &n, err);
        if (entries) {
            n = RHEA_MIN(n, COPY_ENTRIES);
            memcpy(copy, entries, 4 * (size_t)n);
        }
        for (uint64_t i = 0; entries && !ret && i < n; i++)
            if (load_le32(copy + 4 * i))
                ret = fn(opaque, from + i, load_le32(copy + 4 * i), err);
        /* Holes of the file are not seen while anything is to be written. */
        zero = entries ? 0 : zero + 1;
        if (!ret && zero >= ZERO_PAGES && h->table.n_dirty)
            ret = table_write_back(&h->table, err);
        if (ret)
            return ret;
        from += n;
    }
    return 0;
}

int hds_write_back(struct hds *h, struct rhea_error *err)
{
    int ret = table_write_back(&h->table, err);
    return ret ? ret : rhea_storage_flush(h->base.storage, err);
}

/* --- Looking up --- */

/* How many of N entries go on a run whose next one is FIRST. */
static uint64_t map_count(const uint8_t *entries, uint64_t n, uint64_t first,
                          uint32_t step)
{
    uint64_t i = 0;
    while (i < n && load_le32(entries + 4 * i) == first) {
        first += step;
        i++;
    }
    return i;
}

/* The run of entries that begins with INDEX, at most WANT. */
static int map_run(struct hds *h, uint64_t index, uint64_t want,
                   uint32_t *entry, uint64_t *count, struct rhea_error *err)
{
    const uint8_t *entries;
    uint64_t n;
    int ret = hds_entries(h, index, want, &entries, &n, err);
    if (ret)
        return ret;
    *entry = entries ? load_le32(entries) : 0;
    uint32_t step = *entry ? h->cluster_size / h->unit : 0;
    if (*entry) {
        uint64_t host = hds_host(h, *entry);
        if (!hds_host_valid(h, host))
            return rhea_error_set(err, EIO,
                                  "the image is damaged: guest offset %" PRIu64
                                  " cannot be at offset %" PRIu64
                                  " of the file",
                                  index * h->cluster_size, host);
        /* What lies past the end of the file is an error of its own. */
        want = RHEA_MIN(want, (h->blocks.file_end - host) / h->cluster_size);
    }
    uint64_t found = 0;
    for (unsigned page = 0; page < MAP_PAGES; page++) {
        uint64_t limit = RHEA_MIN(n, want - found);
        uint64_t more =
            entries ? map_count(entries, limit, *entry + found * step, step)
                    : (*entry ? 0 : limit);
        found += more;
        if (more < n || found == want)
            break;
        /* A fault further on is the next lookup's. */
        if (hds_entries(h, index + found, want - found, &entries, &n, NULL))
            break;
    }
    *count = found;
    return 0;
}

static int table_map(struct blocks *b, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err)
{
    struct hds *h = hds_of(b->format);
    uint64_t index = offset / h->cluster_size;
    uint64_t skip = offset % h->cluster_size;
    uint64_t want = (offset + len - 1) / h->cluster_size - index + 1;
    uint64_t count = 0;
    uint32_t entry = 0;
    int ret = map_run(h, index, want, &entry, &count, err);
    if (ret)
        return ret;
    *extent = (struct rhea_extent){
        .kind = entry ? RHEA_EXTENT_DATA : RHEA_EXTENT_UNALLOCATED,
        .length = RHEA_MIN(len, count * h->cluster_size - skip),
    };
    if (entry) {
        extent->has_host = true;
        extent->host = hds_host(h, entry) + skip;
        extent->stored_length = extent->length;
        extent->storage = h->base.storage;
    }
    return 0;
}

/* --- Changing --- */

/* See hds.c for the order. */
static int table_begin(struct blocks *b, struct rhea_error *err)
{
    struct hds *h = hds_of(b->format);
    int ret = hds_extension_begin(h, err);
    if (!ret)
        ret = hds_header_set(h, HDS_H_IN_USE, HDS_IN_USE, err);
    if (!ret && h->empty_flag)
        ret = hds_header_set(h, HDS_H_FLAGS, 0, err);
    if (!ret)
        ret = hds_write_back(h, err);
    if (!ret) {
        h->marked = true;
        h->empty_flag = false;
    }
    return ret;
}

/* Entries have 32 bits. */
int hds_place_at_end(struct hds *h, uint64_t count, uint64_t *host,
                     struct rhea_error *err)
{
    uint64_t bytes, end;
    if (!mul_u64(count, h->cluster_size, &bytes) ||
        !add_u64(h->blocks.file_end, bytes, &end) || end / h->unit > UINT32_MAX)
        return rhea_error_set(err, EFBIG,
                              "the image file would be larger than its table "
                              "can tell");
    return blocks_extend(&h->blocks, bytes, host, err);
}

static int table_place(struct blocks *b, uint64_t block, uint64_t *count,
                       uint64_t *host, struct rhea_error *err)
{
    struct hds *h = hds_of(b->format);
    uint64_t gap = *count;
    (void)block;
    int ret = hds_gap_take(h, &gap, host, err);
    if (ret || gap) {
        *count = gap;
        return ret;
    }
    return hds_place_at_end(h, *count, host, err);
}

static int table_link(struct blocks *b, const struct blocks_piece *piece,
                      struct rhea_error *err)
{
    struct hds *h = hds_of(b->format);
    int ret = 0;
    for (uint64_t i = 0; !ret && i < piece->count; i++) {
        uint64_t host = piece->host + i * h->cluster_size;
        ret =
            hds_entry_set(h, piece->block + i, (uint32_t)(host / h->unit), err);
    }
    return ret;
}

static int table_write_back_op(struct blocks *b, struct rhea_error *err)
{
    return table_write_back(&hds_of(b->format)->table, err);
}

const struct blocks_ops hds_blocks_ops = {
    .map = table_map,
    .begin = table_begin,
    .place = table_place,
    .link = table_link,
    .write_back = table_write_back_op,
};
