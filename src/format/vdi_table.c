/* SPDX-License-Identifier: MIT */
/*
 * The table: for each guest block the number of the block of the file that has
 * it. A cache (table.h) keeps the pages in use; whoever needs all entries reads
 * them in pieces past it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vdi.h"

enum {
    ENTRY = sizeof(uint32_t),
    TABLE_CACHE = 4 << 20, /* for 1 TiB of blocks of 1 MiB */
    SCAN_ENTRIES = 256 << 10,
    /* Pages that one lookup goes through: it holds the lock, and the next one
     * goes on from there. */
    MAP_PAGES = 256,
};

uint64_t vdi_room(const struct vdi *v)
{
    uint64_t head = v->head.data;
    return v->file_size > head ? div_up(v->file_size - head, v->stride) : 0;
}

bool vdi_is_inside(const struct vdi *v, uint32_t index, uint32_t number)
{
    uint64_t offset = (uint64_t)index * v->head.block_size;
    uint64_t need = v->head.block_size;
    if (offset < v->base.size)
        need = RHEA_MIN(need, v->base.size - offset);
    uint64_t end = RHEA_MAX(v->file_size, v->blocks.file_end);
    return range_inside(vdi_host(v, number), need, end);
}

/* --- All entries --- */

int vdi_scan_init(struct vdi_scan *s, struct vdi *v, struct rhea_error *err)
{
    size_t n = RHEA_MAX(RHEA_MIN(v->head.blocks, SCAN_ENTRIES), 1);
    *s = (struct vdi_scan){.v = v, .entries = malloc(n * ENTRY)};
    return s->entries ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

void vdi_scan_finish(struct vdi_scan *s)
{
    free(s->entries);
    s->entries = NULL;
}

int vdi_scan_next(struct vdi_scan *s, struct rhea_error *err)
{
    const struct vdi *v = s->v;
    s->first += s->n;
    uint32_t left = v->head.blocks - s->first;
    uint64_t at = v->head.table + (uint64_t)s->first * ENTRY;
    uint64_t run = 0;
    s->n = RHEA_MIN(left, SCAN_ENTRIES);
    s->hole = false;
    if (!s->n)
        return 0;
    /* No writer leaves a part of a table out, but a hostile file may. */
    if (rhea_storage_extent(v->base.storage, at, (uint64_t)left * ENTRY,
                            &s->hole, &run, NULL))
        s->hole = false;
    s->hole = s->hole && run >= ENTRY;
    if (s->hole) {
        s->n = (uint32_t)(run / ENTRY);
        return 0;
    }
    return rhea_storage_read(v->base.storage, s->entries, s->n * ENTRY, at,
                             err);
}

/* --- The cache --- */

/* Before entries reach the file, the header says that their blocks are taken:
 * else another program would give the same places out again. */
static int table_write(void *opaque, struct table *t, struct rhea_error *err)
{
    struct vdi *v = opaque;
    int ret = 0;
    if (v->head.count != v->count) {
        v->head.count = v->count;
        ret = vdi_head_write(&v->head, v->base.storage, err);
    }
    return ret ? ret : table_write_plain(t, err);
}

int vdi_table_init(struct vdi *v, struct rhea_error *err)
{
    /* Where the table shares a sector with other things, its entries are
     * written without those. */
    uint64_t end = v->head.table + (uint64_t)v->head.blocks * ENTRY;
    bool apart = is_aligned(v->head.table, VDI_SECTOR) &&
                 align_up(end, VDI_SECTOR) <= v->head.data;
    uint32_t sector = apart ? VDI_SECTOR : ENTRY;
    const struct table_how how = {
        .page_bytes = sector * TABLE_PAGE_SECTORS,
        .sector = sector,
        .cache_bytes = TABLE_CACHE,
        .write = table_write,
        .opaque = v,
    };
    return table_init(&v->table, v->base.storage, &how, err);
}

int vdi_entry_get(struct vdi *v, uint32_t index, uint32_t *entry,
                  struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    int ret = table_get(&v->table, v->head.table + (uint64_t)index * ENTRY,
                        &bytes, &len, err);
    if (!ret)
        *entry = load_le32(bytes);
    return ret;
}

int vdi_entry_set(struct vdi *v, uint32_t index, uint32_t entry,
                  struct rhea_error *err)
{
    uint8_t *bytes;
    int ret = table_change(&v->table, v->head.table + (uint64_t)index * ENTRY,
                           ENTRY, &bytes, err);
    if (!ret)
        store_le32(bytes, entry);
    return ret;
}

/* --- Where guest bytes are --- */

/* How many of N entries go on as a run whose next entry is NEXT. */
static uint32_t map_count(const uint8_t *bytes, uint32_t n, uint32_t next,
                          uint32_t step)
{
    uint32_t i = 0;
    while (i < n && load_le32(bytes + i * ENTRY) == next) {
        next += step;
        i++;
    }
    return i;
}

/* The run of at most WANT entries that begins with INDEX. */
static int map_run(struct vdi *v, uint32_t index, uint64_t want,
                   uint32_t *first, uint64_t *count, struct rhea_error *err)
{
    const uint8_t *bytes;
    uint32_t len;
    int ret = vdi_entry_get(v, index, first, err);
    if (ret)
        return ret;
    uint32_t step = vdi_is_block(*first);
    *count = 0;
    /* Something stands before each block's data: no two follow each other. */
    if (step && v->head.extra)
        want = 1;
    if (step)
        want = RHEA_MIN(want, VDI_ZERO - *first);
    for (unsigned i = 0; i < MAP_PAGES && *count < want; i++) {
        uint64_t at = v->head.table + (index + *count) * ENTRY;
        /* A fault further on is the next lookup's. */
        if (table_get(&v->table, at, &bytes, &len, NULL))
            break;
        uint32_t n = (uint32_t)RHEA_MIN(len / ENTRY, want - *count);
        uint32_t more =
            map_count(bytes, n, *first + (uint32_t)*count * step, step);
        *count += more;
        if (more < n)
            break;
    }
    return 0;
}

static int map_damaged(const struct vdi *v, uint32_t index, uint32_t number,
                       struct rhea_error *err)
{
    return rhea_error_set(err, EIO,
                          "the image is damaged: guest offset %" PRIu64
                          " is said to be in block %" PRIu32
                          ", past the end of the file",
                          (uint64_t)index * v->head.block_size, number);
}

int vdi_map_locked(struct blocks *b, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)b->format;
    uint32_t size = v->head.block_size, entry = 0;
    uint32_t index = (uint32_t)(offset / size);
    uint64_t skip = offset % size, count = 0;
    int ret = map_run(v, index, (offset + len - 1) / size - index + 1, &entry,
                      &count, err);
    if (ret)
        return ret;
    *extent = (struct rhea_extent){.kind = RHEA_EXTENT_ZERO};
    if (vdi_is_block(entry)) {
        if (!vdi_is_inside(v, index, entry))
            return map_damaged(v, index, entry, err);
        /* What lies past the end of the file is an error of its own. */
        while (count > 1 && !vdi_is_inside(v, index + (uint32_t)count - 1,
                                           entry + (uint32_t)count - 1))
            count /= 2;
        extent->kind = RHEA_EXTENT_DATA;
        extent->has_host = true;
        extent->host = vdi_host(v, entry) + skip;
        extent->storage = v->base.storage;
    } else if (entry == VDI_FREE && v->blocks.child) {
        extent->kind = RHEA_EXTENT_UNALLOCATED;
    }
    extent->length = RHEA_MIN(len, count * size - skip);
    extent->stored_length = extent->has_host ? extent->length : 0;
    return 0;
}
