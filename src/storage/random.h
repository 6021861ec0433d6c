/* SPDX-License-Identifier: MIT */
/* Repeatable random numbers (splitmix64); STATE may begin as any number. */
#ifndef RHEA_STORAGE_RANDOM_H
#define RHEA_STORAGE_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Below N, which is not 0. */
static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
    return random_next(state) % n;
}

/* True PARTS times out of WHOLE. */
static inline bool random_chance(uint64_t *state, unsigned parts,
                                 unsigned whole)
{
    return random_below(state, whole) < parts;
}

#endif
