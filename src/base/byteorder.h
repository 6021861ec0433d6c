/* SPDX-License-Identifier: MIT */
/* Integers in files: explicit width and byte order, any alignment. */
#ifndef RHEA_BASE_BYTEORDER_H
#define RHEA_BASE_BYTEORDER_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define RHEA_BYTEORDER(bits)                                                   \
    static inline uint##bits##_t load_be##bits(const void *p)                  \
    {                                                                          \
        uint##bits##_t v;                                                      \
        memcpy(&v, p, sizeof(v));                                              \
        return be##bits##toh(v);                                               \
    }                                                                          \
    static inline uint##bits##_t load_le##bits(const void *p)                  \
    {                                                                          \
        uint##bits##_t v;                                                      \
        memcpy(&v, p, sizeof(v));                                              \
        return le##bits##toh(v);                                               \
    }                                                                          \
    static inline void store_be##bits(void *p, uint##bits##_t v)               \
    {                                                                          \
        v = htobe##bits(v);                                                    \
        memcpy(p, &v, sizeof(v));                                              \
    }                                                                          \
    static inline void store_le##bits(void *p, uint##bits##_t v)               \
    {                                                                          \
        v = htole##bits(v);                                                    \
        memcpy(p, &v, sizeof(v));                                              \
    }

RHEA_BYTEORDER(16)
RHEA_BYTEORDER(32)
RHEA_BYTEORDER(64)

#undef RHEA_BYTEORDER

#endif
