/* SPDX-License-Identifier: MIT */
/*
 * A bitmap of fixed size, one bit a cluster. Invariant: bits past n_bits are
 * zero. Its memory is reserved in one piece and becomes resident only where
 * bits are set, so a sparse terabyte costs little.
 *
 * Life: bitmap_init, use, bitmap_finish (safe on a zeroed struct).
 */
#ifndef RHEA_BASE_BITMAP_H
#define RHEA_BASE_BITMAP_H

#include <rhea/base.h>

struct bitmap {
    uint64_t *words;
    uint64_t n_bits;
};

/* -ENOMEM where N_BITS is more than this program is willing to track. */
int bitmap_init(struct bitmap *b, uint64_t n_bits, struct rhea_error *err);
void bitmap_finish(struct bitmap *b);

static inline bool bitmap_get(const struct bitmap *b, uint64_t bit)
{
    return b->words[bit / 64] >> (bit % 64) & 1;
}

/* All take ranges that lie inside the bitmap. */
void bitmap_set(struct bitmap *b, uint64_t bit, uint64_t count);
void bitmap_clear(struct bitmap *b, uint64_t bit, uint64_t count);
/* Whether any bit of the range is set. */
bool bitmap_any(const struct bitmap *b, uint64_t bit, uint64_t count);
uint64_t bitmap_count(const struct bitmap *b, uint64_t bit, uint64_t count);
/* The first bit at or after BIT that is VALUE; n_bits when there is none. */
uint64_t bitmap_find(const struct bitmap *b, uint64_t bit, bool value);
/* The end (last set bit + 1) of what is set; 0 when nothing is. */
uint64_t bitmap_end(const struct bitmap *b);

#endif
