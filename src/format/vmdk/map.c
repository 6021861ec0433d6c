/* SPDX-License-Identifier: MIT */
/*
 * Where the guest's bytes are. A grain directory's entry leads to a grain
 * table, whose entries lead to grains. Where an entry of the one or the other
 * cannot be right, and the hosted format has a second copy, that is asked.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/header.h"
#include "format/vmdk/sesparse.h"
#include "format/vmdk/stream.h"

/* The most spans one lookup joins: it holds the lock, and the next lookup goes
 * on where this one stopped. */
enum { MAP_SPANS = 1024 };

static int map_damaged(const struct vmdk_extent *x, uint64_t grain,
                       uint64_t where, struct rhea_error *err)
{
    return rhea_error_set(err, EIO,
                          "the image is damaged: guest offset %" PRIu64
                          " cannot be at offset %" PRIu64 " of '%s'",
                          x->start + grain * x->h.grain_size, where,
                          x->file->path ? x->file->path : "the file");
}

bool vmdk_table_fits(const struct vmdk_extent *x, uint64_t table)
{
    uint64_t bytes = (uint64_t)x->h.table_entries * x->h.entry_size;
    return table >= VMDK_SECTOR && range_inside(table, bytes, x->file_size);
}

/* An entry of SESparse's grain directory: the number of a table. */
static bool sesparse_table(const struct vmdk_extent *x, uint64_t entry,
                           uint64_t *table)
{
    uint64_t bytes = (uint64_t)x->h.table_entries * x->h.entry_size;
    *table = 0;
    if (!entry)
        return true;
    if (entry >> 32 != (uint64_t)SESPARSE_UNMAPPED << 28)
        return false;
    const struct vmdk_area *tables = &x->h.parts[PART_TABLES];
    *table = tables->at + (entry & UINT32_MAX) * bytes;
    return range_inside(*table - tables->at, bytes, tables->size) &&
           vmdk_table_fits(x, *table);
}

int vmdk_directory_entry(struct vmdk_extent *x, uint64_t directory,
                         uint64_t index, uint64_t *table, bool *good,
                         struct rhea_error *err)
{
    const uint8_t *p;
    uint32_t len;
    int ret = table_get(&x->table, directory + index * x->h.entry_size, &p,
                        &len, err);
    if (ret)
        return ret;
    if (x->kind == VMDK_SESPARSE) {
        *good = sesparse_table(x, load_le64(p), table);
        return 0;
    }
    *table = (uint64_t)load_le32(p) * VMDK_SECTOR;
    *good = !*table || vmdk_table_fits(x, *table);
    return 0;
}

/* Whether the table of that entry would be where a directory is. */
static int directory_has_table(struct vmdk_extent *x, uint64_t directory,
                               uint64_t index, bool *inside, uint64_t *table,
                               struct rhea_error *err)
{
    bool good;
    int ret = vmdk_directory_entry(x, directory, index, table, &good, err);
    *inside = !ret && good && *table &&
              (vmdk_header_in_directory(&x->h, x->h.directory, *table) ||
               vmdk_header_in_directory(&x->h, x->h.redundant, *table));
    return ret;
}

int vmdk_check_directory(struct vmdk_extent *x, struct rhea_error *err)
{
    const struct vmdk_header *h = &x->h;
    uint64_t n = RHEA_MIN(h->n_tables, (uint64_t)VMDK_SECTOR / h->entry_size);
    for (uint64_t i = 0; i < n; i++) {
        bool inside, inside_copy = true;
        uint64_t table, copy;
        int ret = directory_has_table(x, h->directory, i, &inside, &table, err);
        if (!ret && inside && h->redundant)
            ret = directory_has_table(x, h->redundant, i, &inside_copy, &copy,
                                      err);
        if (ret)
            return ret;
        if (inside && inside_copy)
            return rhea_error_set(
                err, EINVAL,
                "the extent's header is damaged: a grain directory of %" PRIu64
                " entries at offset %" PRIu64 " would reach into the grain "
                "table at %" PRIu64,
                h->n_tables, h->directory, table);
    }
    return 0;
}

int vmdk_table_find(struct vmdk_extent *x, uint64_t index, bool redundant,
                    uint64_t *table, struct rhea_error *err)
{
    uint64_t directory = redundant ? x->h.redundant : x->h.directory;
    bool good = false;
    int ret = vmdk_directory_entry(x, directory, index, table, &good, err);
    if (ret || good)
        return ret;
    return map_damaged(x, index * x->h.table_entries, *table, err);
}

int vmdk_map_table(struct vmdk_extent *x, uint64_t index, uint64_t *table,
                   struct rhea_error *err)
{
    uint64_t copy = 0;
    bool good = false, good_copy = false;
    if (x->stream)
        return 0;
    int ret = vmdk_directory_entry(x, x->h.directory, index, table, &good, err);
    if (ret || (good && *table))
        return ret;
    if (x->h.redundant)
        ret = vmdk_directory_entry(x, x->h.redundant, index, &copy, &good_copy,
                                   err);
    if (ret)
        return ret;
    if (good_copy && copy)
        *table = copy;
    else if (!good)
        return map_damaged(x, index * x->h.table_entries, *table, err);
    return 0;
}

/* Holes are asked for now and then only. */
enum { NO_TABLES_STEP = 1024 };

uint64_t vmdk_no_tables(struct vmdk_extent *x, uint64_t index)
{
    uint64_t size = x->h.entry_size, bytes;
    if (index % NO_TABLES_STEP || index >= x->h.n_tables)
        return 0;
    bytes = (x->h.n_tables - index) * size;
    bytes = table_zero_run(&x->table, x->h.directory + index * size, bytes);
    if (bytes && x->h.redundant)
        bytes = table_zero_run(&x->table, x->h.redundant + index * size, bytes);
    return bytes / size;
}

uint64_t vmdk_skip_tables(struct vmdk_extent *x, uint64_t at)
{
    uint64_t span = x->h.table_entries * x->h.grain_size;
    return at % span ? at : at + vmdk_no_tables(x, at / span) * span;
}

/* What the tables say of grains from one on. */
struct span {
    const uint8_t *entries; /* NULL: there is no table, or nothing in it; valid
                               until the next call */
    uint64_t count;         /* never 0 */
    uint64_t table;         /* 0: none */
};

void vmdk_forget_holes(struct vmdk_extent *x)
{
    memset(x->holes, 0, sizeof(x->holes));
}

bool vmdk_is_hole(struct vmdk_extent *x, uint64_t at, uint64_t bytes)
{
    if (x->table.n_dirty)
        return false;
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(x->holes); i++)
        if (at >= x->holes[i].from && at + bytes <= x->holes[i].to)
            return true;
    uint64_t run = table_zero_run(&x->table, at, x->file_size - at);
    if (run < bytes)
        return false;
    unsigned i = x->next_hole++ % RHEA_ARRAY_SIZE(x->holes);
    x->holes[i].from = at;
    x->holes[i].to = at + run;
    return true;
}

/* Grains from GRAIN on, at most WANT. */
static int span_get(struct vmdk_extent *x, uint64_t grain, uint64_t want,
                    struct span *span, struct rhea_error *err)
{
    uint64_t index = grain / x->h.table_entries;
    uint64_t at = grain % x->h.table_entries;
    uint32_t len;
    if (x->h.cut_off)
        return rhea_error_set(err, EIO,
                              "the extent is cut off, and nobody knows where "
                              "its grains are");
    span->entries = NULL;
    span->count = RHEA_MIN(x->h.table_entries - at, want);
    if (x->stream &&
        vmdk_stream_table(x, index, &span->entries, &span->table)) {
        span->entries += at * x->h.entry_size;
        return 0;
    }
    int ret = vmdk_map_table(x, index, &span->table, err);
    if (ret)
        return ret;
    uint64_t where = span->table + at * x->h.entry_size;
    if (!span->table ||
        (at == 0 && vmdk_is_hole(x, where, span->count * x->h.entry_size)))
        return 0;
    ret = table_get(&x->table, where, &span->entries, &len, err);
    span->count = RHEA_MIN(span->count, (uint64_t)len / x->h.entry_size);
    return ret;
}

static bool grain_decode_sesparse(const struct vmdk_extent *x, uint64_t entry,
                                  struct vmdk_grain *g)
{
    const struct vmdk_header *h = &x->h;
    *g = (struct vmdk_grain){.kind = RHEA_EXTENT_ZERO};
    switch (entry >> 60) {
    case SESPARSE_NONE:
        g->kind = RHEA_EXTENT_UNALLOCATED;
        return entry == 0;
    case SESPARSE_UNMAPPED:
    case SESPARSE_ZERO:
        return true;
    case SESPARSE_GRAIN:
        g->kind = RHEA_EXTENT_DATA;
        g->has_host = true;
        return mul_u64(sesparse_number(entry), h->grain_size, &g->host) &&
               add_u64(g->host, h->parts[PART_GRAINS].at, &g->host);
    default:
        return false;
    }
}

bool vmdk_grain_decode(const struct vmdk_extent *x, const uint8_t *p,
                       struct vmdk_grain *g)
{
    if (x->kind == VMDK_SESPARSE)
        return grain_decode_sesparse(x, load_le64(p), g);
    uint32_t entry = load_le32(p);
    *g = (struct vmdk_grain){.kind = RHEA_EXTENT_UNALLOCATED};
    if (entry == VMDK_GTE_NONE)
        return true;
    if (entry == VMDK_GTE_ZERO && x->h.zero_grains) {
        g->kind = RHEA_EXTENT_ZERO;
        return true;
    }
    g->kind = x->h.compressed ? RHEA_EXTENT_COMPRESSED : RHEA_EXTENT_DATA;
    g->host = (uint64_t)entry * VMDK_SECTOR;
    g->has_host = true;
    return true;
}

/* Whether the file has a grain there. The guest's writes must not reach the
 * tables, whatever an entry says. */
static bool grain_fits(const struct vmdk_extent *x, const struct vmdk_grain *g)
{
    uint64_t least = x->writable ? x->h.overhead : VMDK_SECTOR;
    return !g->has_host || (g->host >= RHEA_MAX(least, (uint64_t)VMDK_SECTOR) &&
                            g->host < x->file_size);
}

/* The entry of GRAIN in the other copy of its table. */
static bool grain_in_copy(struct vmdk_extent *x, uint64_t grain,
                          struct vmdk_grain *g)
{
    uint64_t index = grain / x->h.table_entries, table;
    const uint8_t *p;
    uint32_t len;
    bool good;
    if (!x->h.redundant ||
        vmdk_directory_entry(x, x->h.redundant, index, &table, &good, NULL) ||
        !good || !table)
        return false;
    table += grain % x->h.table_entries * x->h.entry_size;
    return table_get(&x->table, table, &p, &len, NULL) == 0 &&
           vmdk_grain_decode(x, p, g) && grain_fits(x, g);
}

/* How many of LEN bytes are zero, in words of 8. */
static uint64_t grain_count_none(const uint8_t *entries, uint64_t len)
{
    uint64_t at = 0, word;
    for (; at + sizeof(word) <= len; at += sizeof(word)) {
        memcpy(&word, entries + at, sizeof(word));
        if (word)
            break;
    }
    return at;
}

/* How many of N entries go on with a run whose next grain is G. */
static uint64_t grain_count(const struct vmdk_extent *x, const uint8_t *entries,
                            uint64_t n, struct vmdk_grain g)
{
    uint64_t i = 0;
    /* Most of a table that is not full. */
    if (g.kind == RHEA_EXTENT_UNALLOCATED)
        i = grain_count_none(entries, n * x->h.entry_size) / x->h.entry_size;
    for (; i < n; i++, g.host += x->h.grain_size) {
        struct vmdk_grain other;
        if (!vmdk_grain_decode(x, entries + i * x->h.entry_size, &other) ||
            other.kind != g.kind || !grain_fits(x, &other) ||
            (g.has_host && other.host != g.host))
            break;
    }
    return i;
}

/* Where the stored form of the compressed grain at HOST may end: at the next
 * grain that its table has, or where the longest would. */
static uint64_t grain_stored_end(const struct vmdk_extent *x, uint64_t host,
                                 const uint8_t *entries, uint64_t n)
{
    uint64_t end = host + 2 * x->h.grain_size;
    for (uint64_t i = 1; i < n; i++) {
        struct vmdk_grain next;
        if (!vmdk_grain_decode(x, entries + i * x->h.entry_size, &next) ||
            !next.has_host)
            continue;
        return next.host > host ? RHEA_MIN(end, next.host) : end;
    }
    return end;
}

/* The run that begins with GRAIN, at most WANT grains. */
static int map_run(struct vmdk_extent *x, uint64_t grain, uint64_t want,
                   struct vmdk_grain *g, uint64_t *count, uint64_t *stored,
                   struct rhea_error *err)
{
    struct span span;
    int ret = span_get(x, grain, want, &span, err);
    if (ret)
        return ret;
    *g = (struct vmdk_grain){.kind = RHEA_EXTENT_UNALLOCATED};
    *count = 1;
    *stored = 0;
    if (span.entries &&
        (!vmdk_grain_decode(x, span.entries, g) || !grain_fits(x, g))) {
        uint64_t where = g->host;
        return grain_in_copy(x, grain, g) ? 0
                                          : map_damaged(x, grain, where, err);
    }
    if (g->kind == RHEA_EXTENT_COMPRESSED) {
        *stored =
            grain_stored_end(x, g->host, span.entries, span.count) - g->host;
        return 0;
    }
    uint64_t n = 0;
    for (unsigned i = 0; i < MAP_SPANS; i++) {
        struct vmdk_grain next = *g;
        next.host += n * x->h.grain_size;
        uint64_t limit = RHEA_MIN(span.count, want - n);
        uint64_t more = span.entries
                            ? grain_count(x, span.entries, limit, next)
                            : (g->kind == RHEA_EXTENT_UNALLOCATED ? limit : 0);
        n += more;
        if (more < span.count || n == want)
            break;
        /* A fault further on is the next lookup's. */
        if (span_get(x, grain + n, want - n, &span, NULL))
            break;
    }
    *count = n;
    return 0;
}

int vmdk_sparse_map(struct blocks *b, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_extent_of(b);
    uint64_t size = x->h.grain_size, grain = offset / size;
    uint64_t skip = offset % size;
    uint64_t want = (offset + len - 1) / size - grain + 1;
    uint64_t count, stored;
    struct vmdk_grain g;
    int ret = map_run(x, grain, want, &g, &count, &stored, err);
    if (ret)
        return ret;
    *extent = (struct rhea_extent){
        .kind = g.kind,
        .length = RHEA_MIN(len, count * size - skip),
        .has_host = g.has_host,
    };
    if (!g.has_host)
        return 0;
    extent->storage = x->file;
    extent->host = g.kind == RHEA_EXTENT_DATA ? g.host + skip : g.host;
    extent->stored_length =
        g.kind == RHEA_EXTENT_DATA ? extent->length : stored;
    return 0;
}

struct vmdk_extent *vmdk_find_extent(const struct vmdk *v, uint64_t offset)
{
    size_t low = 0, high = v->n_extents - 1;
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        if (v->extents[middle].start <= offset)
            low = middle;
        else
            high = middle - 1;
    }
    return &v->extents[low];
}

/* The run of data or hole around OFFSET of a flat extent, from its file. */
static int flat_ask(const struct vmdk_extent *x, uint64_t offset, uint64_t len,
                    bool *hole, uint64_t *run, struct rhea_error *err)
{
    uint64_t size, host = x->flat_offset + offset;
    int ret = rhea_storage_size(x->file, &size, err);
    if (ret)
        return ret;
    *hole = true;
    *run = len;
    /* Only of an image that is checked, or that nobody reads. */
    if (host >= size)
        return 0;
    return rhea_storage_extent(x->file, host, RHEA_MIN(len, size - host), hole,
                               run, err);
}

/* The same with the last answer, where nobody writes: some file systems look at
 * every page of a run to find its end. */
static int flat_find_run(struct vmdk_extent *x, uint64_t offset, uint64_t len,
                         bool *hole, uint64_t *run, struct rhea_error *err)
{
    if (x->file->writable)
        return flat_ask(x, offset, len, hole, run, err);
    RHEA_LOCKED(&x->image->lock);
    if (offset < x->run_from || offset >= x->run_to) {
        x->run_to = 0;
        int ret =
            flat_ask(x, offset, x->size - offset, &x->run_is_hole, run, err);
        if (ret)
            return ret;
        x->run_from = offset;
        x->run_to = offset + *run;
    }
    *hole = x->run_is_hole;
    *run = x->run_to - offset;
    return 0;
}

static int flat_map(struct vmdk_extent *x, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err)
{
    bool hole;
    uint64_t run;
    int ret = flat_find_run(x, offset, len, &hole, &run, err);
    if (ret)
        return ret;
    *extent = (struct rhea_extent){
        .kind = hole ? RHEA_EXTENT_ZERO : RHEA_EXTENT_DATA,
        .length = RHEA_MIN(len, run),
        .has_host = true,
        .host = x->flat_offset + offset,
        .stored_length = RHEA_MIN(len, run),
        .storage = x->file,
    };
    return 0;
}

int vmdk_map(struct rhea_format *f, uint64_t offset, uint64_t len,
             struct rhea_extent *extent, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    if (offset >= f->size || len == 0)
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    struct vmdk_extent *x = vmdk_find_extent(v, offset);
    uint64_t at = offset - x->start;
    len = RHEA_MIN(len, x->size - at);
    if (x->has_blocks)
        return blocks_map(&x->blocks, at, len, extent, err);
    if (x->kind == VMDK_FLAT)
        return flat_map(x, at, len, extent, err);
    *extent = (struct rhea_extent){.kind = RHEA_EXTENT_ZERO, .length = len};
    return 0;
}
