/* SPDX-License-Identifier: MIT */
#include "base/size.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"

/* The exponent of a suffix, -1 for none such. */
static int size_shift(char c)
{
    switch (c) {
    case 'b':
    case 'B':
        return 0;
    case 'k':
    case 'K':
        return 10;
    case 'm':
    case 'M':
        return 20;
    case 'g':
    case 'G':
        return 30;
    case 't':
    case 'T':
        return 40;
    case 'p':
    case 'P':
        return 50;
    case 'e':
    case 'E':
        return 60;
    default:
        return -1;
    }
}

/* The digits after the point, as a part of UNIT, rounded down. More than 18 of
 * them make no difference to any size. */
static uint64_t size_fraction(const char *digits, uint64_t unit)
{
    uint64_t numerator = 0, scale = 1;
    for (int i = 0; i < 18 && *digits >= '0' && *digits <= '9'; i++) {
        numerator = numerator * 10 + (uint64_t)(*digits++ - '0');
        scale *= 10;
    }
    return (uint64_t)((unsigned __int128)numerator * unit / scale);
}

static bool size_parse_whole(const char *text, uint64_t *value)
{
    if (*text < '0' || *text > '9')
        return false;
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char *end;
    errno = 0;
    unsigned long long whole = strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return false;

    const char *p = end;
    const char *fraction = NULL;
    if (*p == '.' && !hex) {
        fraction = ++p;
        p += strspn(p, "0123456789");
    }
    int shift = 0;
    if (*p) {
        shift = size_shift(*p);
        if (shift < 0 || p[1] || (hex && shift >= 0))
            return false;
    } else if (fraction && fraction[strspn(fraction, "0")]) {
        return false; /* a part of a byte */
    }
    uint64_t unit = (uint64_t)1 << shift;
    if (!mul_u64(whole, unit, value))
        return false;
    return !fraction || add_u64(*value, size_fraction(fraction, unit), value);
}

int size_parse(const char *text, uint64_t *value, struct rhea_error *err)
{
    if (size_parse_whole(text, value))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "'%s' is not a size: a number and one of k, M, G, T, "
                          "P, E",
                          text);
}
