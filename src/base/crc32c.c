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
/* An instruction takes three times as long as until the next one may begin. So
 * three parts of a piece are done side by side, each of N words, and put
 * together: a CRC is moved over the words behind it by a multiplication. */
enum { PARTS = 3, MAX_WORDS = 128, FEWEST = 4 };

/* By what, for N words: x^(64n - 33), since a product of two numbers of 32 bits
 * that is taken as a word is moved by 33. */
static uint32_t powers[MAX_WORDS + 1];
static pthread_once_t powers_once = PTHREAD_ONCE_INIT;

__attribute__((target("sse4.2"))) static void make_powers(void)
{
    powers[1] = 1;
    for (unsigned n = 2; n <= MAX_WORDS; n++)
        powers[n] = (uint32_t)__builtin_ia32_crc32di(powers[n - 1], 0);
}

typedef long long vector __attribute__((vector_size(16)));

__attribute__((target("sse4.2,pclmul"))) static uint64_t move(uint64_t crc,
                                                              size_t n)
{
    vector a = {(long long)(uint32_t)crc, 0}, b = {powers[n], 0};

    return __builtin_ia32_crc32di(
        0, (uint64_t)__builtin_ia32_pclmulqdq128(a, b, 0)[0]);
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t
update_by_parts(uint32_t crc, const uint8_t **at, size_t *len)
{
    const uint8_t *p = *at;
    size_t left = *len, n;

    while (n = left / (8 * PARTS), n >= FEWEST) {
        uint64_t a = crc, b = 0, c = 0;

        n = n < MAX_WORDS ? n : MAX_WORDS;
        for (size_t i = 0; i < n; i++, p += 8) {
            a = __builtin_ia32_crc32di(a, load_le64(p));
            b = __builtin_ia32_crc32di(b, load_le64(p + n * 8));
            c = __builtin_ia32_crc32di(c, load_le64(p + 2 * n * 8));
        }
        crc = (uint32_t)(move(move(a, n) ^ b, n) ^ c);
        p += 2 * n * 8;
        left -= PARTS * n * 8;
    }
    *at = p;
    *len = left;
    return crc;
}

__attribute__((target("sse4.2"))) static uint32_t
update_by_instruction(uint32_t c, const uint8_t *p, size_t len)
{
    uint64_t wide;

    if (len >= 8 * PARTS * FEWEST && __builtin_cpu_supports("pclmul")) {
        pthread_once(&powers_once, make_powers);
        c = update_by_parts(c, &p, &len);
    }
    wide = c;
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
