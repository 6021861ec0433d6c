/* SPDX-License-Identifier: MIT */
/* The formats of dynamic printf. They come from gdb, so they are parsed here
 * piece by piece: none of them ever gets to the C library as it is. */
#include "base/checked.h"
#include "gdb/ax.h"

struct formatter {
    char *buf;
    size_t room, len; /* ROOM without the zero */
    size_t (*string)(void *opaque, uint64_t address, char *buf, size_t room);
    void *opaque;
};

/* One directive, from the % to the letter. */
struct directive {
    bool left, plus, space, alternate, zero;
    int width, precision; /* PRECISION -1: none */
    unsigned bits;        /* of the argument */
    char letter;
    size_t len; /* characters; 0: none that we understand */
};

static void put(struct formatter *f, const char *text, size_t len)
{
    len = RHEA_MIN(len, f->room - f->len);
    memcpy(f->buf + f->len, text, len);
    f->len += len;
}

static void pad(struct formatter *f, char c, int count)
{
    for (; count > 0 && f->len < f->room; count--)
        put(f, &c, 1);
}

/* Flags, in any order. */
static const char *parse_flags(struct directive *d, const char *p)
{
    for (;; p++) {
        if (*p == '-')
            d->left = true;
        else if (*p == '+')
            d->plus = true;
        else if (*p == ' ')
            d->space = true;
        else if (*p == '#')
            d->alternate = true;
        else if (*p == '0')
            d->zero = true;
        else
            return p;
    }
}

static const char *parse_count(int *count, const char *p)
{
    const int max = 4096;

    *count = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        *count = RHEA_MIN(*count * 10 + (*p - '0'), max);
    return p;
}

static const char *parse_size(struct directive *d, const char *p)
{
    d->bits = 32;
    if (p[0] == 'h') {
        d->bits = p[1] == 'h' ? 8 : 16;
        return p + (p[1] == 'h' ? 2 : 1);
    }
    if (p[0] == 'l' || p[0] == 'z' || p[0] == 't' || p[0] == 'j') {
        d->bits = 64;
        return p + (p[0] == 'l' && p[1] == 'l' ? 2 : 1);
    }
    return p;
}

static struct directive parse(const char *start)
{
    struct directive d = {.precision = -1};
    const char *p = parse_count(&d.width, parse_flags(&d, start + 1));

    if (*p == '.')
        p = parse_count(&d.precision, p + 1);
    p = parse_size(&d, p);
    d.letter = *p;
    if (*p && strchr("diuxXocps%", *p))
        d.len = (size_t)(p + 1 - start);
    return d;
}

/* Digits of V, from the end of a buffer backwards; returns their start. */
static char *digits_of(uint64_t v, unsigned base, bool upper, char *end)
{
    const char *set = upper ? "0123456789ABCDEF" : "0123456789abcdef";

    do {
        *--end = set[v % base];
        v /= base;
    } while (v);
    return end;
}

static void put_number(struct formatter *f, const struct directive *d,
                       uint64_t v)
{
    char buf[24], *end = buf + sizeof(buf), *start;
    bool is_signed = d->letter == 'd' || d->letter == 'i';
    bool hex = d->letter == 'x' || d->letter == 'X' || d->letter == 'p';
    unsigned base = hex ? 16 : d->letter == 'o' ? 8 : 10;
    unsigned bits = d->letter == 'p' ? 64 : d->bits;
    const char *prefix = "";
    int zeroes, blanks;

    v = is_signed ? (uint64_t)((int64_t)(v << (64 - bits)) >> (64 - bits))
                  : v << (64 - bits) >> (64 - bits);
    if (is_signed && (int64_t)v < 0) {
        prefix = "-";
        v = -v;
    } else if (is_signed) {
        prefix = d->plus ? "+" : d->space ? " " : "";
    } else if (d->letter == 'p' || (hex && d->alternate && v)) {
        prefix = d->letter == 'X' ? "0X" : "0x";
    }
    start = digits_of(v, base, d->letter == 'X', end);
    if (v == 0 && d->precision == 0)
        start = end;
    zeroes = d->precision - (int)(end - start);
    if (d->letter == 'o' && d->alternate && zeroes <= 0 &&
        (start == end || *start != '0'))
        zeroes = 1;
    zeroes = RHEA_MAX(zeroes, 0);
    blanks = d->width - (int)strlen(prefix) - zeroes - (int)(end - start);
    if (d->zero && !d->left && d->precision < 0 && blanks > 0) {
        zeroes += blanks;
        blanks = 0;
    }
    if (!d->left)
        pad(f, ' ', blanks);
    put(f, prefix, strlen(prefix));
    pad(f, '0', zeroes);
    put(f, start, (size_t)(end - start));
    if (d->left)
        pad(f, ' ', blanks);
}

static void put_text(struct formatter *f, const struct directive *d,
                     const char *text, size_t len)
{
    int blanks = d->width - (int)RHEA_MIN(len, (size_t)d->width);

    if (!d->left)
        pad(f, ' ', blanks);
    put(f, text, len);
    if (d->left)
        pad(f, ' ', blanks);
}

static void put_string(struct formatter *f, const struct directive *d,
                       uint64_t address)
{
    char text[512];
    size_t len = sizeof(text);

    if (address == 0) {
        put_text(f, d, "(null)", 6);
        return;
    }
    if (d->precision >= 0)
        len = RHEA_MIN(len, (size_t)d->precision);
    put_text(f, d, text, f->string(f->opaque, address, text, len));
}

static void put_directive(struct formatter *f, const struct directive *d,
                          uint64_t argument)
{
    char c = (char)argument;

    if (d->letter == 's')
        put_string(f, d, argument);
    else if (d->letter == 'c')
        put_text(f, d, &c, 1);
    else
        put_number(f, d, argument);
}

/* A backslash and what follows it; how many characters. gdb leaves escapes as
 * they were typed. */
static size_t put_escape(struct formatter *f, const char *p)
{
    static const char letters[] = "abefnrtv\\\"'";
    static const char meant[] = "\a\b\033\f\n\r\t\v\\\"'";
    const char *found = p[1] ? strchr(letters, p[1]) : NULL;

    if (!found) {
        put(f, p, 1);
        return 1;
    }
    put(f, &meant[found - letters], 1);
    return 2;
}

size_t ax_format(char *buf, size_t room, const char *format,
                 unsigned n_arguments, const uint64_t *arguments,
                 size_t (*string)(void *opaque, uint64_t address, char *buf,
                                  size_t room),
                 void *opaque)
{
    struct formatter f = {buf, room ? room - 1 : 0, 0, string, opaque};
    unsigned used = 0;

    while (*format) {
        size_t len = strcspn(format, "%\\");
        struct directive d;

        put(&f, format, len);
        format += len;
        if (!*format)
            break;
        if (*format == '\\') {
            format += put_escape(&f, format);
            continue;
        }
        d = parse(format);
        if (d.letter == '%' && d.len) {
            put(&f, "%", 1);
        } else if (d.len && used < n_arguments) {
            put_directive(&f, &d, arguments[used++]);
        } else {
            d.len = RHEA_MAX(d.len, (size_t)1);
            put(&f, format, d.len);
        }
        format += d.len;
    }
    if (room)
        buf[f.len] = 0;
    return f.len;
}
