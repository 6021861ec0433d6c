/* SPDX-License-Identifier: MIT */
/* Arithmetic on untrusted numbers, and small integer helpers. */
#ifndef RHEA_BASE_CHECKED_H
#define RHEA_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

#define RHEA_MIN(a, b) ((a) < (b) ? (a) : (b))
#define RHEA_MAX(a, b) ((a) > (b) ? (a) : (b))
#define RHEA_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* False, leaving *SUM alone, where it would overflow. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *sum = r;
    return true;
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *product = r;
    return true;
}

/* Whether [offset, offset + len) lies inside [0, end). */
static inline bool range_inside(uint64_t offset, uint64_t len, uint64_t end)
{
    return offset <= end && len <= end - offset;
}

static inline bool is_power_of_2(uint64_t n)
{
    return n && !(n & (n - 1));
}

/* UNIT is a power of 2; the caller knows that the result fits. */
static inline uint64_t align_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) & ~(unit - 1);
}

static inline uint64_t align_down(uint64_t n, uint64_t unit)
{
    return n & ~(unit - 1);
}

static inline bool is_aligned(uint64_t n, uint64_t unit)
{
    return !(n & (unit - 1));
}

static inline uint64_t div_up(uint64_t n, uint64_t unit)
{
    return n / unit + (n % unit != 0);
}

/* The exponent of a power of 2. */
static inline unsigned log2_u64(uint64_t n)
{
    return (unsigned)__builtin_ctzll(n);
}

#endif
