/* SPDX-License-Identifier: MIT */
#include "storage/memory_pages.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define REGION_BYTES ((uint64_t)PER_REGION * MEMORY_PAGE)

static void page_put(struct page *page)
{
    if (page && atomic_fetch_sub(&page->refs, 1) == 1)
        free(page);
}

static void region_put(struct region *region)
{
    if (atomic_fetch_sub(&region->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < PER_REGION; i++)
        page_put(region->pages[i]);
    free(region);
}

/* The first slot whose index is at least INDEX; n_slots when there is none.
 * Most accesses go to the last region or the one before. */
static size_t slot_search(const struct memory *m, uint64_t index)
{
    size_t low = 0, high = m->n_slots;
    if (high && m->slots[high - 1].index < index)
        return high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->slots[middle].index < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct region *region_find(const struct memory *m, uint64_t index)
{
    size_t i = slot_search(m, index);
    return i < m->n_slots && m->slots[i].index == index ? m->slots[i].region
                                                        : NULL;
}

struct page *memory_find_page(const struct memory *m, uint64_t offset)
{
    struct region *region = region_find(m, offset / REGION_BYTES);
    return region ? region->pages[offset / MEMORY_PAGE % PER_REGION] : NULL;
}

static struct region *region_insert(struct memory *m, size_t at, uint64_t index)
{
    if (m->n_slots == m->slots_size) {
        size_t size = m->slots_size ? m->slots_size * 2 : 16;
        struct region_slot *slots =
            reallocarray(m->slots, size, sizeof(*slots));
        if (!slots)
            return NULL;
        m->slots = slots;
        m->slots_size = size;
    }
    struct region *region = calloc(1, sizeof(*region));
    if (!region)
        return NULL;
    atomic_init(&region->refs, 1);
    memmove(m->slots + at + 1, m->slots + at,
            (m->n_slots - at) * sizeof(*m->slots));
    m->slots[at] = (struct region_slot){.index = index, .region = region};
    m->n_slots++;
    return region;
}

/* Replace a shared region by a copy of this storage's own. */
static struct region *region_own(struct region_slot *slot)
{
    struct region *old = slot->region;
    if (atomic_load(&old->refs) == 1)
        return old;
    struct region *region = malloc(sizeof(*region));
    if (!region)
        return NULL;
    atomic_init(&region->refs, 1);
    for (unsigned i = 0; i < PER_REGION; i++) {
        region->pages[i] = old->pages[i];
        if (region->pages[i])
            atomic_fetch_add(&region->pages[i]->refs, 1);
    }
    region_put(old);
    slot->region = region;
    return region;
}

struct page *memory_own_page(struct memory *m, uint64_t offset)
{
    uint64_t index = offset / REGION_BYTES;
    size_t i = slot_search(m, index);
    struct region *region;
    if (i < m->n_slots && m->slots[i].index == index)
        region = region_own(&m->slots[i]);
    else
        region = region_insert(m, i, index);
    if (!region)
        return NULL;

    struct page **slot = &region->pages[offset / MEMORY_PAGE % PER_REGION];
    struct page *page = *slot;
    if (!page || atomic_load(&page->refs) != 1) {
        page = page ? malloc(sizeof(*page)) : calloc(1, sizeof(*page));
        if (!page)
            return NULL;
        atomic_init(&page->refs, 1);
        if (*slot)
            memcpy(page->data, (*slot)->data, MEMORY_PAGE);
        page_put(*slot);
        *slot = page;
    }
    atomic_store(&page->digest, 0);
    return page;
}

static void region_drop(struct memory *m, size_t at)
{
    region_put(m->slots[at].region);
    m->n_slots--;
    memmove(m->slots + at, m->slots + at + 1,
            (m->n_slots - at) * sizeof(*m->slots));
}

bool memory_drop_pages(struct memory *m, uint64_t from, uint64_t to)
{
    size_t i = slot_search(m, from / REGION_BYTES);
    while (i < m->n_slots && m->slots[i].index * REGION_BYTES < to) {
        uint64_t begin = m->slots[i].index * REGION_BYTES;
        if (from <= begin && to - begin >= REGION_BYTES) {
            region_drop(m, i);
            continue;
        }
        struct region *region = region_own(&m->slots[i]);
        if (!region)
            return false;
        uint64_t first = from > begin ? (from - begin) / MEMORY_PAGE : 0;
        uint64_t last =
            RHEA_MIN((to - begin) / MEMORY_PAGE, (uint64_t)PER_REGION);
        for (uint64_t p = first; p < last; p++) {
            page_put(region->pages[p]);
            region->pages[p] = NULL;
        }
        i++;
    }
    return true;
}

uint64_t memory_next_page(const struct memory *m, uint64_t offset)
{
    for (size_t i = slot_search(m, offset / REGION_BYTES); i < m->n_slots;
         i++) {
        uint64_t begin = m->slots[i].index * REGION_BYTES;
        uint64_t p = offset > begin ? (offset - begin) / MEMORY_PAGE : 0;
        for (; p < PER_REGION; p++) {
            if (m->slots[i].region->pages[p])
                return RHEA_MAX(begin + p * MEMORY_PAGE, offset);
        }
    }
    return UINT64_MAX;
}

uint64_t memory_next_gap(const struct memory *m, uint64_t offset, uint64_t end)
{
    while (offset < end && memory_find_page(m, offset))
        offset = align_down(offset, MEMORY_PAGE) + MEMORY_PAGE;
    return RHEA_MIN(offset, end);
}

bool memory_share_regions(struct memory *to, const struct memory *from)
{
    if (from->n_slots == 0)
        return true;
    to->slots = reallocarray(NULL, from->n_slots, sizeof(*to->slots));
    if (!to->slots)
        return false;
    to->n_slots = to->slots_size = from->n_slots;
    memcpy(to->slots, from->slots, from->n_slots * sizeof(*to->slots));
    for (size_t i = 0; i < to->n_slots; i++)
        atomic_fetch_add(&to->slots[i].region->refs, 1);
    return true;
}

void memory_free_regions(struct memory *m)
{
    for (size_t i = 0; i < m->n_slots; i++)
        region_put(m->slots[i].region);
    free(m->slots);
    m->slots = NULL;
    m->n_slots = m->slots_size = 0;
}

uint64_t memory_page_digest(struct page *page)
{
    uint64_t digest = atomic_load(&page->digest);
    if (digest)
        return digest;
    uint64_t any = 0, h = UINT64_C(0x9e3779b97f4a7c15);
    for (unsigned i = 0; i < MEMORY_PAGE; i += 8) {
        uint64_t word;
        memcpy(&word, page->data + i, sizeof(word));
        any |= word;
        h = (h ^ word) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }
    digest = any == 0 ? 1 : h < 2 ? h + 2 : h;
    atomic_store(&page->digest, digest);
    return digest;
}
