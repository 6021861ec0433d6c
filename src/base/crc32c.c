/* SPDX-License-Identifier: MIT */
/*
 * By the processor's instruction where it has one, else eight bytes at a time
 * by tables.
 */
#include "base/crc32c.h"

#include <pthread.h>

#include "base/byteorder.h"

enum { POLYNOMIAL = 0x82f63b78 }; /* bits reversed */

static uint32_t tables[8][256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static uint32_t update_by_table(uint32_t c, const uint8_t *p, size_t len)
{
    for (; len >= 8; p += 8, len -= 8) {
        uint32_t low = load_le32(p) ^ c, high = load_le32(p + 4);
        c = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^
            tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
            tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^
            tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
    }
    for (; len; p++, len--)
        c = tables[0][(c ^ *p) & 255] ^ c >> 8;
    return c;
}

static void make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (unsigned bit = 0; bit < 8; bit++)
            c = c >> 1 ^ (c & 1 ? POLYNOMIAL : 0);
        tables[0][i] = c;
    }
    for (unsigned k = 1; k < 8; k++)
        for (uint32_t i = 0; i < 256; i++)
            tables[k][i] =
                tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 255];
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t
update_by_instruction(uint32_t c, const uint8_t *p, size_t len)
{
    uint64_t wide = c;
    for (; len >= 8; p += 8, len -= 8)
        wide = __builtin_ia32_crc32di(wide, load_le64(p));
    c = (uint32_t)wide;
    for (; len; p++, len--)
        c = __builtin_ia32_crc32qi(c, *p);
    return c;
}
#endif

uint32_t crc32c_by_table(uint32_t crc, const void *buf, size_t len)
{
    pthread_once(&tables_once, make_tables);
    return ~update_by_table(~crc, buf, len);
}

uint32_t crc32c(uint32_t crc, const void *buf, size_t len)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2"))
        return ~update_by_instruction(~crc, buf, len);
#endif
    return crc32c_by_table(crc, buf, len);
}
