/* SPDX-License-Identifier: MIT */
/* The memory storage's pages; see memory.h for how they are arranged. The
 * caller holds the lock: for writing where a function changes M. */
#ifndef RHEA_STORAGE_MEMORY_PAGES_H
#define RHEA_STORAGE_MEMORY_PAGES_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/internal.h"
#include "storage/memory.h"

#define PER_REGION 512

struct page {
    atomic_uint refs;
    _Atomic uint64_t digest; /* of data; 0: not known, 1: all zeroes */
    uint8_t data[MEMORY_PAGE];
};

struct region {
    atomic_uint refs;
    struct page *pages[PER_REGION]; /* NULL: zeroes */
};

struct region_slot {
    uint64_t index; /* offset / (PER_REGION * MEMORY_PAGE) */
    struct region *region;
};

struct memory {
    struct rhea_storage head;
    pthread_rwlock_t lock;
    uint64_t size, limit;
    struct region_slot *slots; /* sorted by index */
    size_t n_slots, slots_size;
};

/* The page that holds OFFSET, NULL where there is none. */
struct page *memory_find_page(const struct memory *m, uint64_t offset);
/* The same, made where there is none, copied where it is shared, for a change;
 * NULL without memory. */
struct page *memory_own_page(struct memory *m, uint64_t offset);
/* Forget whole pages; false without memory, with nothing changed but perhaps
 * some pages gone. FROM and TO are multiples of the page. */
bool memory_drop_pages(struct memory *m, uint64_t from, uint64_t to);
/* Where the first page at or after OFFSET begins, but not before OFFSET;
 * UINT64_MAX when there is none. */
uint64_t memory_next_page(const struct memory *m, uint64_t offset);
/* The first offset from OFFSET on, at most END, that has no page. */
uint64_t memory_next_gap(const struct memory *m, uint64_t offset, uint64_t end);
/* Give TO, which has no pages, those of FROM; false without memory. */
bool memory_share_regions(struct memory *to, const struct memory *from);
void memory_free_regions(struct memory *m);
/* Whether a page is all zeroes; its digest is kept. */
uint64_t memory_page_digest(struct page *page);

#endif
