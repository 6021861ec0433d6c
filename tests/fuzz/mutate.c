/* SPDX-License-Identifier: MIT */
/*
 * Damages an image where it hurts: in the fields of its header, and in the
 * entries of its tables, with values that mean something there.
 */
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "fuzz.h"

enum { RANGES = 64, USED = 256, LOOKS = 4096, SMALLEST = 512 };

struct mutator {
    struct rhea_storage *s;
    bool big_endian;
    uint64_t cluster, size;
    struct {
        uint64_t host, length;
    } ranges[RANGES]; /* header and tables */
    unsigned n_ranges;
};

static int mutate_note(void *opaque, enum rhea_use use, uint64_t host,
                       uint64_t length, struct rhea_error *err)
{
    struct mutator *m = opaque;
    (void)err;
    if (use == RHEA_USE_DATA || use == RHEA_USE_COMPRESSED)
        return 0;
    m->ranges[m->n_ranges].host = host;
    m->ranges[m->n_ranges].length = length;
    return ++m->n_ranges == RANGES ? -1 : 0;
}

struct mutate_used {
    uint64_t host, end;
};

static int mutate_order(const void *a, const void *b)
{
    const struct mutate_used *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}

/* What is no hole of [FROM, TO), which holds no guest data. */
static void mutate_gap(struct mutator *m, uint64_t from, uint64_t to)
{
    while (from < to && m->n_ranges < RANGES) {
        bool hole = false;
        uint64_t run = to - from;
        rhea_storage_extent(m->s, from, run, &hole, &run, NULL);
        if (!hole)
            mutate_note(m, RHEA_USE_TABLE, from, run, NULL);
        from += run;
    }
}

/* Of a format that cannot tell where its tables are: all that holds no data. */
static void mutate_guess(struct mutator *m, struct rhea_format *f)
{
    struct mutate_used used[USED];
    size_t n = 0;
    uint64_t at = 0;
    /* A damaged image's runs may be short, and it long. */
    for (unsigned i = 0; at < f->size && n < USED && i < LOOKS; i++) {
        struct rhea_extent x = {0};
        if (f->ops->map(f, at, f->size - at, &x, NULL))
            x = (struct rhea_extent){.length = m->cluster};
        if (x.has_host && x.stored_length)
            used[n++] = (struct mutate_used){x.host, x.host + x.stored_length};
        at += RHEA_MAX(x.length, (uint64_t)SMALLEST);
    }
    qsort(used, n, sizeof(used[0]), mutate_order);
    at = 0;
    for (size_t i = 0; i < n; i++) {
        mutate_gap(m, at, RHEA_MIN(used[i].host, m->size));
        at = RHEA_MAX(at, used[i].end);
    }
    mutate_gap(m, at, m->size);
}

static void mutate_look(struct mutator *m, const struct rhea_format_ops *format)
{
    struct rhea_format *f;
    struct rhea_format_info info = {0};
    m->size = fuzz_size(m->s);
    m->cluster = SMALLEST;
    if (rhea_format_open_over(format, &f, m->s, RHEA_FORMAT_CHECK, NULL) == 0) {
        format->info(f, &info);
        m->cluster = fuzz_cluster(&info);
        if (format->walk)
            format->walk(f, mutate_note, m, NULL);
        else
            mutate_guess(m, f);
        format->close(f, NULL);
    }
    if (!m->n_ranges) {
        m->ranges[0].host = 0;
        m->ranges[0].length = SMALLEST;
        m->n_ranges = 1;
    }
}

static uint64_t mutate_get(const struct mutator *m, uint64_t at)
{
    uint8_t word[8];
    if (rhea_storage_read_padded(m->s, word, sizeof(word), at, NULL))
        return 0;
    return m->big_endian ? load_be64(word) : load_le64(word);
}

static void mutate_put(const struct mutator *m, uint64_t at, uint64_t value,
                       size_t width)
{
    uint8_t word[8];
    if (m->big_endian)
        store_be64(word, value << (64 - 8 * width));
    else
        store_le64(word, value);
    if (at < m->size)
        rhea_storage_write(m->s, word, RHEA_MIN(width, m->size - at), at, NULL);
}

/* An aligned word of the header (WHERE 0) or of a table. */
static uint64_t mutate_place(const struct mutator *m, struct fuzz_input *in,
                             bool header)
{
    unsigned i = header ? 0 : (unsigned)fuzz_below(in, m->n_ranges);
    uint64_t length = header ? 112 : m->ranges[i].length;
    uint64_t words = RHEA_MAX(length / 8, 1);
    /* Mostly where tables are in use: at their beginning. */
    uint64_t word = fuzz_u8(in) < 200 ? fuzz_u8(in) % 24 : fuzz_u16(in);
    return m->ranges[i].host + word % words * 8;
}

static uint64_t mutate_value(const struct mutator *m, struct fuzz_input *in)
{
    static const uint64_t some[] = {
        0,
        1,
        2,
        3,
        7,
        511,
        512,
        UINT32_MAX,
        INT32_MAX,
        UINT64_MAX,
        INT64_MAX,
        UINT64_C(1) << 63,
        UINT64_C(1) << 62,
        UINT64_C(1) << 61,
        UINT64_C(1) << 56,
        (UINT64_C(1) << 63) | 1,
        (UINT64_C(1) << 62) | 0x3fff,
        UINT64_C(0x00fffffffffffe00),
        UINT64_C(0x5555555555555555),
    };
    switch (fuzz_u8(in) % 4) {
    case 0:
        return some[fuzz_below(in, RHEA_ARRAY_SIZE(some))];
    case 1: /* a cluster of the file, or just behind it */
        return fuzz_below(in, m->size / m->cluster + 2) * m->cluster;
    case 2:
        return (fuzz_below(in, m->size / m->cluster + 2) * m->cluster) |
               UINT64_C(1) << 63;
    default:
        return (uint64_t)fuzz_u8(in) << fuzz_u8(in) % 64;
    }
}

static void mutate_bytes(struct mutator *m, struct fuzz_input *in)
{
    uint8_t byte;
    uint64_t at = mutate_place(m, in, fuzz_u8(in) & 1) + fuzz_u8(in) % 8;
    if (at >= m->size || rhea_storage_read(m->s, &byte, 1, at, NULL))
        return;
    byte ^= fuzz_u8(in);
    rhea_storage_write(m->s, &byte, 1, at, NULL);
}

static void mutate_swap(struct mutator *m, struct fuzz_input *in)
{
    uint64_t a = mutate_place(m, in, false), b = mutate_place(m, in, false);
    uint64_t value = mutate_get(m, a);
    mutate_put(m, a, mutate_get(m, b), 8);
    mutate_put(m, b, value, 8);
}

static void mutate_resize(struct mutator *m, struct fuzz_input *in)
{
    uint64_t by = fuzz_u8(in) % 4 * m->cluster + fuzz_u8(in) * SMALLEST;
    if (fuzz_u8(in) & 1)
        m->size += by;
    else
        m->size -= RHEA_MIN(by, m->size);
    rhea_storage_truncate(m->s, m->size, NULL);
}

static void mutate_once(struct mutator *m, struct fuzz_input *in)
{
    switch (fuzz_u8(in) % 8) {
    case 0:
        mutate_put(m, mutate_place(m, in, true), mutate_value(m, in), 8);
        break;
    case 1:
        mutate_put(m, mutate_place(m, in, true) + fuzz_u8(in) % 2 * 4,
                   mutate_value(m, in), 4);
        break;
    case 2:
    case 3:
        mutate_put(m, mutate_place(m, in, false), mutate_value(m, in), 8);
        break;
    case 4:
        mutate_put(m, mutate_place(m, in, false),
                   mutate_get(m, mutate_place(m, in, false)), 8);
        break;
    case 5:
        mutate_swap(m, in);
        break;
    case 6:
        mutate_bytes(m, in);
        break;
    default:
        mutate_resize(m, in);
    }
}

static bool mutate_is_big(const struct rhea_format_ops *format)
{
    static const char *const big[] = {"qcow", "qcow2", "vpc"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(big); i++)
        if (strcmp(format->name, big[i]) == 0)
            return true;
    return false;
}

void mutate_image(struct rhea_storage *s, const struct rhea_format_ops *format,
                  unsigned n, struct fuzz_input *in)
{
    struct mutator m = {.s = s, .big_endian = mutate_is_big(format)};
    if (!n)
        return;
    mutate_look(&m, format);
    for (unsigned i = 0; i < n; i++)
        mutate_once(&m, in);
}
