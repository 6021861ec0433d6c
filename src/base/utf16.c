/* SPDX-License-Identifier: MIT */
#include "base/utf16.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"

enum { REPLACEMENT = 0xfffd, PLANES_BEGIN = 0x10000, LAST = 0x10ffff };

static bool is_surrogate(uint32_t c)
{
    return c >= 0xd800 && c < 0xe000;
}

static bool is_high_surrogate(uint32_t c)
{
    return c >= 0xd800 && c < 0xdc00;
}

static uint16_t unit_get(const uint8_t *p, enum utf16_order order)
{
    return order == UTF16_BIG_ENDIAN ? load_be16(p) : load_le16(p);
}

static void unit_put(uint8_t *p, enum utf16_order order, uint32_t unit)
{
    if (order == UTF16_BIG_ENDIAN)
        store_be16(p, (uint16_t)unit);
    else
        store_le16(p, (uint16_t)unit);
}

/* The character at P, of which there are LEN bytes, at least 2; *USED is how
 * many it takes. */
static uint32_t char_of_utf16(const uint8_t *p, size_t len,
                              enum utf16_order order, size_t *used)
{
    uint32_t c = unit_get(p, order);
    *used = 2;
    if (!is_surrogate(c))
        return c;
    uint32_t low = len >= 4 ? unit_get(p + 2, order) : 0;
    if (!is_high_surrogate(c) || !is_surrogate(low) || is_high_surrogate(low))
        return REPLACEMENT;
    *used = 4;
    return PLANES_BEGIN + ((c & 0x3ff) << 10) + (low & 0x3ff);
}

/* Returns how many bytes that takes, at most 4. */
static size_t char_to_utf8(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < PLANES_BEGIN ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(0xf00 >> n | c);
    return n;
}

char *utf16_to_utf8(const void *bytes, size_t len, enum utf16_order order)
{
    const uint8_t *p = bytes;
    /* Two bytes never become more than three. */
    char *text = malloc(len / 2 * 3 + 1);
    size_t n = 0, used;
    for (; text && len >= 2; p += used, len -= used) {
        uint32_t c = char_of_utf16(p, len, order, &used);
        if (c == 0)
            break;
        n += char_to_utf8(c, text + n);
    }
    if (text)
        text[n] = 0;
    return text;
}

/* The character at *TEXT, which moves past it; -1: it is none. */
static int32_t char_of_utf8(const char **text)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, PLANES_BEGIN};
    const uint8_t *p = (const uint8_t *)*text;
    size_t n = *p < 0x80   ? 1
               : *p < 0xc0 ? 0
               : *p < 0xe0 ? 2
               : *p < 0xf0 ? 3
                           : 4;
    if (n == 0 || *p >= 0xf8)
        return -1;
    uint32_t c = n == 1 ? *p : *p & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return -1;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < least[n] || c > LAST || is_surrogate(c))
        return -1;
    *text += n;
    return (int32_t)c;
}

int utf16_from_utf8(const char *text, enum utf16_order order, uint8_t **out,
                    size_t *len, struct rhea_error *err)
{
    /* A byte never becomes more than two. */
    RHEA_AUTO_FREE uint8_t *bytes = malloc(strlen(text) * 2 + 1);
    size_t n = 0;
    if (!bytes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (const char *p = text; *p;) {
        int32_t c = char_of_utf8(&p);
        if (c < 0)
            return rhea_error_set(err, EILSEQ, "'%.300s' is not UTF-8", text);
        if (c >= PLANES_BEGIN) {
            unit_put(bytes + n, order, 0xd7c0 + ((uint32_t)c >> 10));
            n += 2;
            c = 0xdc00 | (c & 0x3ff);
        }
        unit_put(bytes + n, order, (uint32_t)c);
        n += 2;
    }
    *out = rhea_steal(bytes);
    *len = n;
    return 0;
}
