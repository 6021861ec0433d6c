/* SPDX-License-Identifier: MIT */
#include "format/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum { TABLE_SECTOR = 512 };

int table_init(struct table *t, struct rhea_storage *storage,
               const struct table_how *how, struct rhea_error *err)
{
    size_t sets = how->cache_bytes / TABLE_WAYS / how->page_bytes;
    *t = (struct table){
        .storage = storage,
        .page_bytes = how->page_bytes,
        .sector = how->sector ? how->sector : TABLE_SECTOR,
        .n_sets = RHEA_MAX(sets, (size_t)1),
        .write = how->write,
        .opaque = how->opaque,
    };
    size_t n = t->n_sets * TABLE_WAYS;
    t->pages = calloc(n, sizeof(*t->pages));
    if (!t->pages)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++)
        t->pages[i].offset = TABLE_NO_PAGE;
    return 0;
}

void table_finish(struct table *t)
{
    for (size_t i = 0; t->pages && i < t->n_sets * TABLE_WAYS; i++)
        free(t->pages[i].bytes);
    free(t->pages);
    t->pages = NULL;
}

void table_drop(struct table *t)
{
    for (size_t i = 0; i < t->n_sets * TABLE_WAYS; i++)
        t->pages[i].offset = TABLE_NO_PAGE;
}

static bool page_sector_dirty(const struct table_page *page, unsigned sector)
{
    return page->dirty[sector / 64] >> sector % 64 & 1;
}

/* CURSOR counts sectors, TABLE_PAGE_SECTORS a page. */
bool table_next_dirty(const struct table *t, size_t *cursor, uint64_t *offset,
                      const uint8_t **bytes, uint32_t *len)
{
    unsigned sectors = t->page_bytes / t->sector;
    size_t i = *cursor / TABLE_PAGE_SECTORS;
    unsigned from = (unsigned)(*cursor % TABLE_PAGE_SECTORS);
    for (; i < t->n_sets * TABLE_WAYS; i++, from = 0) {
        const struct table_page *page = &t->pages[i];
        while (page->is_dirty && from < sectors &&
               !page_sector_dirty(page, from))
            from++;
        if (!page->is_dirty || from == sectors)
            continue;
        unsigned to = from;
        while (to < sectors && page_sector_dirty(page, to))
            to++;
        *offset = page->offset + (uint64_t)from * t->sector;
        *bytes = page->bytes + (size_t)from * t->sector;
        *len = (to - from) * t->sector;
        *cursor = to < TABLE_PAGE_SECTORS ? i * TABLE_PAGE_SECTORS + to
                                          : (i + 1) * TABLE_PAGE_SECTORS;
        return true;
    }
    return false;
}

int table_write_plain(struct table *t, struct rhea_error *err)
{
    size_t cursor = 0;
    uint64_t offset;
    const uint8_t *bytes;
    uint32_t len;
    int ret = rhea_storage_flush(t->storage, err);
    while (!ret && table_next_dirty(t, &cursor, &offset, &bytes, &len)) {
        rhea_storage_event(t->storage, "l2_update");
        ret = rhea_storage_write(t->storage, bytes, len, offset, err);
    }
    return ret;
}

static void page_clean(struct table_page *page)
{
    page->is_dirty = false;
    memset(page->dirty, 0, sizeof(page->dirty));
}

int table_write_back(struct table *t, struct rhea_error *err)
{
    if (!t->n_dirty)
        return 0;
    if (t->failed)
        return rhea_error_set(err, EIO,
                              "an earlier write to the image's tables failed");
    int ret =
        t->write ? t->write(t->opaque, t, err) : table_write_plain(t, err);
    t->failed = ret;
    for (size_t i = 0; !ret && i < t->n_sets * TABLE_WAYS; i++)
        page_clean(&t->pages[i]);
    t->n_dirty = ret ? t->n_dirty : 0;
    return ret;
}

/* A place for a new page of this set: the empty or least recently used one,
 * clean ones first. NULL with *RET set on failure. */
static struct table_page *table_evict(struct table *t, struct table_page *set,
                                      int *ret, struct rhea_error *err)
{
    struct table_page *victim = NULL;
    for (unsigned i = 0; i < TABLE_WAYS; i++) {
        if (set[i].is_dirty)
            continue;
        if (!victim || set[i].offset == TABLE_NO_PAGE ||
            set[i].used < victim->used)
            victim = &set[i];
        if (victim->offset == TABLE_NO_PAGE)
            break;
    }
    if (!victim) {
        *ret = table_write_back(t, err);
        if (*ret)
            return NULL;
        victim = set;
    }
    victim->offset = TABLE_NO_PAGE;
    if (!victim->bytes)
        victim->bytes = malloc(t->page_bytes);
    if (!victim->bytes) {
        *ret = rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    return victim;
}

/* The page that begins at OFFSET; with UNREAD, what it holds in the file is of
 * no interest. */
static int table_page(struct table *t, uint64_t offset, bool unread,
                      struct table_page **out, struct rhea_error *err)
{
    /* Multiplied, since tables tend to stand at regular distances. */
    uint64_t hash = offset / t->page_bytes * 0x9e3779b97f4a7c15u >> 32;
    struct table_page *set = t->pages + hash % t->n_sets * TABLE_WAYS;
    t->clock++;
    for (unsigned i = 0; i < TABLE_WAYS; i++) {
        if (set[i].offset == offset) {
            set[i].used = t->clock;
            *out = &set[i];
            return 0;
        }
    }

    int ret = 0;
    struct table_page *page = table_evict(t, set, &ret, err);
    if (!page)
        return ret;
    if (!unread) {
        rhea_storage_event(t->storage, "l2_load");
        ret = rhea_storage_read_padded(t->storage, page->bytes, t->page_bytes,
                                       offset, err);
        if (ret)
            return ret;
    }
    page->offset = offset;
    page->used = t->clock;
    *out = page;
    return 0;
}

int table_get(struct table *t, uint64_t offset, const uint8_t **bytes,
              uint32_t *len, struct rhea_error *err)
{
    uint32_t at = (uint32_t)(offset & (t->page_bytes - 1));
    struct table_page *page;
    int ret = table_page(t, offset - at, false, &page, err);
    if (ret)
        return ret;
    *bytes = page->bytes + at;
    *len = t->page_bytes - at;
    return 0;
}

static void page_soil(struct table *t, struct table_page *page, uint32_t at,
                      uint32_t len)
{
    t->n_dirty += !page->is_dirty;
    page->is_dirty = true;
    for (uint32_t i = at / t->sector; i <= (at + len - 1) / t->sector; i++)
        page->dirty[i / 64] |= (uint64_t)1 << i % 64;
}

int table_change(struct table *t, uint64_t offset, uint32_t len,
                 uint8_t **bytes, struct rhea_error *err)
{
    uint32_t at = (uint32_t)(offset & (t->page_bytes - 1));
    struct table_page *page;
    int ret = table_page(t, offset - at, false, &page, err);
    if (ret)
        return ret;
    page_soil(t, page, at, len);
    *bytes = page->bytes + at;
    return 0;
}

int table_overwrite(struct table *t, uint64_t offset, uint64_t len,
                    uint8_t **bytes, uint32_t *n, struct rhea_error *err)
{
    uint32_t at = (uint32_t)(offset & (t->page_bytes - 1));
    struct table_page *page;
    *n = (uint32_t)RHEA_MIN(len, t->page_bytes - at);
    int ret = table_page(t, offset - at, *n == t->page_bytes, &page, err);
    if (ret)
        return ret;
    page_soil(t, page, at, *n);
    *bytes = page->bytes + at;
    return 0;
}

/* How many of LEN bytes there are before the next dirty page. What one has is
 * not yet in the file. */
static uint64_t table_clean_run(struct table *t, uint64_t offset, uint64_t len)
{
    for (size_t i = 0; t->n_dirty && i < t->n_sets * TABLE_WAYS; i++) {
        const struct table_page *page = &t->pages[i];
        if (!page->is_dirty || page->offset + t->page_bytes <= offset)
            continue;
        if (page->offset <= offset) {
            t->data_from = page->offset;
            t->data_to = page->offset + t->page_bytes;
            return 0;
        }
        len = RHEA_MIN(len, page->offset - offset);
    }
    return len;
}

uint64_t table_zero_run(struct table *t, uint64_t offset, uint64_t len)
{
    bool hole;
    uint64_t run, size;
    struct rhea_error ignored;
    /* Where this cannot be told, the pages are read. */
    if ((offset >= t->data_from && offset < t->data_to) ||
        rhea_storage_size(t->storage, &size, &ignored))
        return 0;
    len = table_clean_run(t, offset, len);
    if (!len || offset >= size)
        return len;
    if (rhea_storage_extent(t->storage, offset, len, &hole, &run, &ignored))
        return 0;
    if (hole)
        return run;
    t->data_from = offset;
    t->data_to = offset + run;
    return 0;
}
