/* SPDX-License-Identifier: MIT */
/* One grain table, entry by entry, in both copies. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vmdk/check.h"
#include "format/vmdk/header.h"

void check_use(struct vmdk_checker *c, uint64_t offset, uint64_t len)
{
    c->end = RHEA_MAX(c->end, offset + len);
    if (!c->used.words)
        return;
    uint64_t first = offset / c->unit;
    uint64_t last = RHEA_MIN(div_up(offset + len, c->unit), c->used.n_bits);
    if (first < last)
        bitmap_set(&c->used, first, last - first);
}

enum check_state {
    CHECK_NONE,
    CHECK_ZERO,
    CHECK_GRAIN,
    CHECK_BAD,
};

/* What an entry says by itself. */
static enum check_state check_state(const struct vmdk_checker *c,
                                    const uint8_t *entry, uint64_t *host)
{
    struct vmdk_grain g;
    bool good = vmdk_grain_decode(c->x, entry, &g);
    *host = g.host;
    if (!good)
        return CHECK_BAD;
    if (g.kind == RHEA_EXTENT_UNALLOCATED)
        return CHECK_NONE;
    if (g.kind == RHEA_EXTENT_ZERO)
        return CHECK_ZERO;
    uint64_t sector = g.host / VMDK_SECTOR;
    return g.host >= RHEA_MAX(c->front, (uint64_t)VMDK_SECTOR) &&
                   g.host < c->x->file_size &&
                   !(c->places.words && sector < c->places.n_bits &&
                     bitmap_get(&c->places, sector))
               ? CHECK_GRAIN
               : CHECK_BAD;
}

/* A grain of a stream says which it is. */
static bool check_packed(const struct vmdk_checker *c, uint64_t grain,
                         uint64_t host, uint64_t *len)
{
    uint8_t marker[MARKER_GRAIN_BYTES];
    uint64_t sector = grain * c->x->h.grain_size / VMDK_SECTOR;
    *len = VMDK_SECTOR;
    if (!c->x->h.markers)
        return true;
    if (rhea_storage_read(c->x->file, marker, sizeof(marker), host, NULL))
        return false;
    uint64_t own = load_le64(marker + MARKER_SECTORS);
    *len = MARKER_GRAIN_BYTES + (uint64_t)load_le32(marker + MARKER_SIZE);
    return (own == sector || own == sector + c->x->start / VMDK_SECTOR) &&
           *len <= 2 * c->x->h.grain_size &&
           range_inside(host, *len, c->x->file_size);
}

/* Whether others are where this grain is. */
static bool check_is_taken(const struct vmdk_checker *c, uint64_t host)
{
    uint64_t first = host / c->unit;
    uint64_t count = c->x->h.grain_size / c->unit + (host % c->unit != 0);
    count = RHEA_MIN(count, c->used.n_bits - RHEA_MIN(first, c->used.n_bits));
    return count && bitmap_any(&c->used, first, count);
}

/* A place at the end of the file with what is at *HOST, which becomes that. */
static int check_copy(struct vmdk_checker *c, uint64_t *host,
                      struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    uint64_t size = x->h.grain_size;
    uint64_t to = div_up(x->file_size, size) * size;
    int ret = vmdk_sparse_limit(x, to + size, err);
    if (!ret)
        ret = rhea_storage_truncate(x->file, to + size, err);
    if (!ret)
        ret = copy_range(x->file, *host, to, size, true, err);
    if (ret)
        return ret;
    *host = to;
    x->file_size = x->blocks.file_end = to + size;
    if (x->blocks.grown)
        x->blocks.grown = x->blocks.file_end;
    c->copied = true;
    return 0;
}

/* A grain whose place others are in, too. */
static int check_shared(struct vmdk_checker *c, uint64_t grain, uint64_t *host,
                        struct rhea_error *err)
{
    uint64_t size = c->x->h.grain_size;
    bool may = false;
    int ret =
        c->fix && !c->shared_tables
            ? copy_budget_take(&c->budget, c->x->file, *host, size, &may, err)
            : 0;
    check_tell(c->out, true,
               "guest offset %" PRIu64 " is at offset %" PRIu64
               " of the file, which is used more than once%s",
               c->x->start + grain * size, *host,
               may                           ? "; copied"
               : c->fix && !c->shared_tables ? COPY_REFUSED
                                             : "");
    c->out->corruptions += !may;
    c->out->corruptions_fixed += may;
    return !ret && may ? check_copy(c, host, err) : ret;
}

static void check_packed_grain(struct vmdk_checker *c, uint64_t grain,
                               uint64_t host)
{
    uint64_t size = c->x->h.grain_size, len = size;
    c->out->compressed_clusters++;
    if (!check_packed(c, grain, host, &len)) {
        c->out->corruptions++;
        check_tell(c->out, true,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, where another grain or none is",
                   c->x->start + grain * size, host);
    }
    c->end = RHEA_MAX(c->end, host + len);
}

/* A grain that an entry leads to; *HOST may become another place. */
static int check_grain(struct vmdk_checker *c, uint64_t grain, uint64_t *host,
                       struct rhea_error *err)
{
    uint64_t size = c->x->h.grain_size;
    int ret = 0;
    c->out->allocated_clusters++;
    if (c->last && c->last != *host && !c->x->h.compressed)
        c->out->fragmented_clusters++;
    c->last = *host + size;
    c->lowest = RHEA_MIN(c->lowest, *host);
    if (c->x->h.compressed) {
        check_packed_grain(c, grain, *host);
        return 0;
    }
    if (check_is_taken(c, *host))
        ret = check_shared(c, grain, host, err);
    check_use(c, *host, size);
    return ret;
}

static void check_drop(struct vmdk_checker *c, uint64_t grain, uint64_t host,
                       bool from_copy)
{
    check_mendable(c,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, where it cannot be%s",
                   c->x->start + grain * c->x->h.grain_size, host,
                   from_copy ? "; the other table knows better" : "");
    c->out->lost += !from_copy;
}

/* Entry A alone, or with B, its copy: A becomes what is right. */
static enum check_state check_choose(struct vmdk_checker *c, uint64_t grain,
                                     uint8_t *a, const uint8_t *b,
                                     uint64_t *host)
{
    size_t size = c->x->h.entry_size;
    uint64_t host_b = 0;
    enum check_state s = check_state(c, a, host), s_b = CHECK_NONE;
    bool differ = b && memcmp(a, b, size) != 0;
    if (differ)
        s_b = check_state(c, b, &host_b);
    /* What a crash has kept out of the first table was not flushed, and is not
     * what the guest has read since. */
    bool lost = s == CHECK_NONE && !c->x->h.unclean;
    bool take_b =
        (s_b == CHECK_GRAIN || s_b == CHECK_ZERO) && (s == CHECK_BAD || lost);
    if (s == CHECK_BAD)
        check_drop(c, grain, *host, take_b);
    else if (differ)
        check_differ(c, "the tables do not agree about guest offset %" PRIu64,
                     c->x->start + grain * c->x->h.grain_size);
    if (take_b) {
        memcpy(a, b, size);
        *host = host_b;
        return s_b;
    }
    if (s == CHECK_BAD)
        memset(a, 0, size);
    return s;
}

/* The same of what they lead to; both are to be the same. *CHANGED: one of them
 * was not what it is now. */
static int check_entries(struct vmdk_checker *c, uint64_t grain, uint8_t *a,
                         uint8_t *b, bool *changed, struct rhea_error *err)
{
    size_t size = c->x->h.entry_size;
    uint8_t old[sizeof(uint64_t)];
    uint64_t host;
    int ret = 0;
    memcpy(old, a, size);
    if (check_choose(c, grain, a, b, &host) == CHECK_GRAIN) {
        uint64_t there = host;
        ret = check_grain(c, grain, &there, err);
        if (there != host)
            store_le32(a, (uint32_t)(there / VMDK_SECTOR));
    }
    *changed |= memcmp(a, old, size) != 0 || (b && memcmp(a, b, size) != 0);
    if (b)
        memcpy(b, a, size);
    return ret;
}

/* Copies are there before entries lead to them. */
static int check_store(struct vmdk_checker *c, const uint64_t at[2],
                       unsigned copies, struct rhea_error *err)
{
    size_t bytes = (size_t)c->x->h.table_entries * c->x->h.entry_size;
    int ret = c->copied ? rhea_storage_flush(c->x->file, err) : 0;
    c->copied = false;
    for (unsigned i = 0; i < copies && !ret; i++)
        ret = rhea_storage_write(c->x->file, c->tables[i], bytes, at[i], err);
    return ret;
}

int check_table(struct vmdk_checker *c, uint64_t index, const uint64_t at[2],
                struct rhea_error *err)
{
    struct vmdk_extent *x = c->x;
    size_t size = x->h.entry_size, bytes = (size_t)x->h.table_entries * size;
    uint64_t first = index * x->h.table_entries;
    uint64_t n =
        RHEA_MIN((uint64_t)x->h.table_entries,
                 div_up(x->size, x->h.grain_size) -
                     RHEA_MIN(first, div_up(x->size, x->h.grain_size)));
    bool changed = false, copy = at[1] && at[1] != at[0];
    if (vmdk_is_hole(x, at[0], bytes) &&
        (!copy || vmdk_is_hole(x, at[1], bytes)))
        return 0;
    for (unsigned i = 0; i < (copy ? 2 : 1); i++) {
        struct rhea_error why;
        if (rhea_storage_read_padded(x->file, c->tables[i], bytes, at[i],
                                     &why)) {
            c->out->errors++;
            check_tell(c->out, true, "grain table %" PRIu64 ": %.160s", index,
                       why.text);
            return 0;
        }
    }
    int ret = 0;
    for (uint64_t i = 0; i < n && !ret; i++)
        ret =
            check_entries(c, first + i, c->tables[0] + i * size,
                          copy ? c->tables[1] + i * size : NULL, &changed, err);
    return ret || !changed || !c->fix ? ret
                                      : check_store(c, at, copy ? 2 : 1, err);
}
