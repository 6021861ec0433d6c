/* SPDX-License-Identifier: MIT */
/* Find zeroes at the speed of memory. */
#include <stdint.h>
#include <string.h>

#include "convert/zero.h"

/* The compiler maps it to whatever vectors the machine has. */
typedef uint64_t zero_vector __attribute__((vector_size(32)));

enum { ZERO_STEP = 4 * sizeof(zero_vector) };

static bool zero_step(const unsigned char *p)
{
    zero_vector v[4];

    memcpy(v, p, sizeof(v)); /* any alignment; becomes plain loads */
    v[0] |= v[1] | v[2] | v[3];
    return !(v[0][0] | v[0][1] | v[0][2] | v[0][3]);
}

bool zero_is(const void *buf, size_t len)
{
    const unsigned char *p = buf;

    while (len >= ZERO_STEP) {
        if (!zero_step(p))
            return false;
        p += ZERO_STEP;
        len -= ZERO_STEP;
    }
    for (; len; p++, len--) {
        if (*p)
            return false;
    }
    return true;
}
