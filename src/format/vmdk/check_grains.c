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
    return g.host >= RHEA_MAX(c->x->h.overhead, (uint64_t)VMDK_SECTOR) &&
                   g.host < c->x->file_size
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

/* A grain that an entry leads to. */
static void check_grain(struct vmdk_checker *c, uint64_t grain, uint64_t host)
{
    uint64_t size = c->x->h.grain_size, len = size;
    uint64_t first = host / c->unit, count = size / c->unit;
    c->out->allocated_clusters++;
    c->out->compressed_clusters += c->x->h.compressed;
    if (c->last && c->last != host && !c->x->h.compressed)
        c->out->fragmented_clusters++;
    c->last = host + size;
    if (c->x->h.compressed) {
        if (!check_packed(c, grain, host, &len)) {
            c->out->corruptions++;
            check_tell(c->out, true,
                       "guest offset %" PRIu64 " is at offset %" PRIu64
                       " of the file, where another grain or none is",
                       c->x->start + grain * size, host);
        }
        c->end = RHEA_MAX(c->end, host + len);
        return;
    }
    count = RHEA_MIN(count + (host % c->unit != 0),
                     c->used.n_bits - RHEA_MIN(first, c->used.n_bits));
    if (count && bitmap_any(&c->used, first, count)) {
        c->out->corruptions++;
        check_tell(c->out, true,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, which is used more than once",
                   c->x->start + grain * size, host);
    }
    check_use(c, host, size);
}

static void check_drop(struct vmdk_checker *c, uint64_t grain, uint64_t host,
                       bool from_copy)
{
    check_mendable(c,
                   "guest offset %" PRIu64 " is at offset %" PRIu64
                   " of the file, where it cannot be%s",
                   c->x->start + grain * c->x->h.grain_size, host,
                   from_copy ? "; the other table knows better" : "");
}

/* Entry A alone, or with B, its copy. True where one of them was changed. */
static bool check_entries(struct vmdk_checker *c, uint64_t grain, uint8_t *a,
                          uint8_t *b)
{
    size_t size = c->x->h.entry_size;
    uint64_t host, host_b;
    enum check_state s = check_state(c, a, &host);
    if (!b || memcmp(a, b, size) == 0) {
        if (s == CHECK_GRAIN)
            check_grain(c, grain, host);
        if (s != CHECK_BAD)
            return false;
        check_drop(c, grain, host, false);
        memset(a, 0, size);
        if (b)
            memset(b, 0, size);
        return true;
    }
    enum check_state s_b = check_state(c, b, &host_b);
    bool take_b = (s_b == CHECK_GRAIN || s_b == CHECK_ZERO) &&
                  (s == CHECK_BAD || s == CHECK_NONE);
    if (s == CHECK_BAD)
        check_drop(c, grain, host, take_b);
    else
        check_differ(c, "the tables do not agree about guest offset %" PRIu64,
                     c->x->start + grain * c->x->h.grain_size);
    if (take_b)
        memcpy(a, b, size);
    else if (s == CHECK_BAD)
        memset(a, 0, size);
    memcpy(b, a, size);
    if (take_b)
        s = s_b;
    if (s == CHECK_GRAIN)
        check_grain(c, grain, take_b ? host_b : host);
    return true;
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
    for (uint64_t i = 0; i < n; i++)
        changed |= check_entries(c, first + i, c->tables[0] + i * size,
                                 copy ? c->tables[1] + i * size : NULL);
    int ret = 0;
    for (unsigned i = 0; i < (copy ? 2 : 1) && changed && c->fix && !ret; i++)
        ret = rhea_storage_write(x->file, c->tables[i], bytes, at[i], err);
    return ret;
}
