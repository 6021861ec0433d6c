/* SPDX-License-Identifier: MIT */
#include "base/bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"

/* 2^38 clusters: 16 PiB of 64 KiB clusters, 32 GiB of (lazy) memory. Only an
 * absurd or hostile file is larger. */
#define BITS_MAX (UINT64_C(1) << 38)

int bitmap_init(struct bitmap *b, uint64_t n_bits, struct rhea_error *err)
{
    b->n_bits = n_bits;
    b->words = NULL;
    if (n_bits <= BITS_MAX)
        b->words = calloc(n_bits / 64 + 1, sizeof(uint64_t));
    if (!b->words) {
        b->n_bits = 0;
        return rhea_error_set(err, ENOMEM,
                              "not enough memory to track %" PRIu64 " clusters",
                              n_bits);
    }
    return 0;
}

void bitmap_finish(struct bitmap *b)
{
    free(b->words);
    *b = (struct bitmap){0};
}

/* The bits [from, from + count) of one word; count is 1 to 64 - from. */
static uint64_t word_mask(unsigned from, unsigned count)
{
    uint64_t ones = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
    return ones << from;
}

/* Split [bit, bit + count) into words: the first piece's word, mask, size. */
static uint64_t first_piece(uint64_t bit, uint64_t count, uint64_t *size)
{
    unsigned from = (unsigned)(bit % 64);
    *size = RHEA_MIN(count, (uint64_t)(64 - from));
    return word_mask(from, (unsigned)*size);
}

void bitmap_set(struct bitmap *b, uint64_t bit, uint64_t count)
{
    for (uint64_t size; count; bit += size, count -= size) {
        uint64_t mask = first_piece(bit, count, &size);
        b->words[bit / 64] |= mask;
    }
}

void bitmap_clear(struct bitmap *b, uint64_t bit, uint64_t count)
{
    for (uint64_t size; count; bit += size, count -= size) {
        uint64_t mask = first_piece(bit, count, &size);
        if (b->words[bit / 64] & mask)
            b->words[bit / 64] &= ~mask;
    }
}

bool bitmap_any(const struct bitmap *b, uint64_t bit, uint64_t count)
{
    for (uint64_t size; count; bit += size, count -= size) {
        uint64_t mask = first_piece(bit, count, &size);
        if (b->words[bit / 64] & mask)
            return true;
    }
    return false;
}

uint64_t bitmap_count(const struct bitmap *b, uint64_t bit, uint64_t count)
{
    uint64_t n = 0;
    for (uint64_t size; count; bit += size, count -= size) {
        uint64_t mask = first_piece(bit, count, &size);
        n += (unsigned)__builtin_popcountll(b->words[bit / 64] & mask);
    }
    return n;
}

uint64_t bitmap_find(const struct bitmap *b, uint64_t bit, bool value)
{
    uint64_t flip = value ? 0 : UINT64_MAX;
    while (bit < b->n_bits) {
        uint64_t word = (b->words[bit / 64] ^ flip) >> (bit % 64);
        if (word) {
            bit += (unsigned)__builtin_ctzll(word);
            return RHEA_MIN(bit, b->n_bits);
        }
        bit += 64 - bit % 64;
    }
    return b->n_bits;
}

uint64_t bitmap_end(const struct bitmap *b)
{
    for (uint64_t i = b->n_bits / 64 + 1; b->words && i-- > 0;) {
        if (b->words[i])
            return i * 64 + 64 - (unsigned)__builtin_clzll(b->words[i]);
    }
    return 0;
}
