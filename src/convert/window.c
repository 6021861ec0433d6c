/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "convert/window.h"
#include "convert/zero.h"

enum { WINDOW_ALIGN = 4096 }; /* for direct I/O */

static int window_init_packed(struct window *w, struct rhea_error *err)
{
    struct rhea_format_info info;
    size_t units = WINDOW_SIZE / w->unit;

    rhea_image_info(w->target, &info);
    if (!w->options->compress || !info.packed_max)
        return 0;
    w->packed_max = info.packed_max;
    w->packed = malloc(units * w->packed_max);
    w->packed_size = calloc(units, sizeof(*w->packed_size));
    if (w->packed && w->packed_size)
        return 0;
    window_finish(w);
    return rhea_error_set(err, ENOMEM, "out of memory");
}

int window_init(struct window *w, struct convert_source *source,
                struct rhea_image *target, unsigned unit,
                const struct rhea_convert_options *options,
                struct rhea_error *err)
{
    memset(w, 0, sizeof(*w));
    w->source = source;
    w->target = target;
    w->unit = unit;
    w->options = options;
    w->buf = aligned_alloc(WINDOW_ALIGN, WINDOW_SIZE);
    int ret = window_init_packed(w, err);
    if (ret)
        return ret;
    if (source->backing)
        w->below = aligned_alloc(WINDOW_ALIGN, WINDOW_SIZE);
    if (!w->buf || (source->backing && !w->below)) {
        window_finish(w);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

void window_finish(struct window *w)
{
    free(w->buf);
    free(w->below);
    free(w->packed);
    free(w->packed_size);
    w->buf = w->below = w->packed = NULL;
    w->packed_size = NULL;
}

/* What a unit is of which one part is A and another B. */
static unsigned char window_mix(unsigned char a, unsigned char b)
{
    if (a == b)
        return a;
    /* Zeroes may be read like data; so may what is left to the backing image.
     * Only comparing can still find out that nothing need be written. */
    return a == CONVERT_COMPARE || b == CONVERT_COMPARE ? CONVERT_COMPARE
                                                        : CONVERT_DATA;
}

static void window_mark(struct window *w, size_t from, size_t to,
                        enum convert_kind kind)
{
    size_t unit = from / w->unit;

    /* The first unit may have begun with the extent before. */
    if (from % w->unit) {
        w->kind[unit] = window_mix(w->kind[unit], (unsigned char)kind);
        unit++;
    }
    for (; unit * w->unit < to; unit++)
        w->kind[unit] = (unsigned char)kind;
}

static int window_classify(struct window *w, struct rhea_error *err)
{
    struct convert_run run;
    size_t pos = 0;
    int ret;

    while (pos < w->length) {
        ret = convert_source_map(w->source, w->offset + pos, w->length - pos,
                                 &run, err);
        if (ret < 0 && w->options->salvaged) {
            /* Reading tells where exactly. */
            run.kind = CONVERT_DATA;
            run.length = RHEA_MIN(WINDOW_UNIT_MIN, w->length - pos);
            ret = 0;
        }
        if (ret < 0)
            return ret;
        if (run.kind == CONVERT_ZERO && !w->options->sparse)
            run.kind = CONVERT_DATA;
        if (run.kind == CONVERT_DATA || run.kind == CONVERT_COMPARE)
            w->n_data += run.length;
        window_mark(w, pos, pos + run.length, run.kind);
        pos += run.length;
    }
    return 0;
}

/* The end of the run of units like FROM; its bytes are [*start, *end). */
static unsigned window_run(const struct window *w, unsigned from, size_t *start,
                           size_t *end)
{
    unsigned to = from + 1;

    while (to < w->n_units && w->kind[to] == w->kind[from])
        to++;
    *start = (size_t)from * w->unit;
    *end = RHEA_MIN((size_t)to * w->unit, w->length);
    return to;
}

/* Read what can be read of a run where something cannot. */
static void window_salvage(struct window *w, size_t start, size_t end)
{
    struct rhea_error err;
    size_t n;

    for (; start < end; start += n) {
        n = RHEA_MIN(end - start, (size_t)WINDOW_UNIT_MIN);
        if (convert_source_read(w->source, w->buf + start, n, w->offset + start,
                                &err) == 0)
            continue;
        memset(w->buf + start, 0, n);
        w->options->salvaged(w->options->salvaged_opaque, w->offset + start,
                             &err);
    }
}

static int window_fetch(struct window *w, struct rhea_error *err)
{
    unsigned unit = 0, next;
    size_t start, end;
    int ret;

    for (; unit < w->n_units; unit = next) {
        next = window_run(w, unit, &start, &end);
        if (w->kind[unit] != CONVERT_DATA && w->kind[unit] != CONVERT_COMPARE)
            continue;
        ret = convert_source_read(w->source, w->buf + start, end - start,
                                  w->offset + start, err);
        if (ret < 0 && !w->options->salvaged)
            return ret;
        if (ret < 0)
            window_salvage(w, start, end);
        if (w->kind[unit] != CONVERT_COMPARE)
            continue;
        ret = convert_source_read_backing(w->source, w->below + start,
                                          end - start, w->offset + start, err);
        if (ret < 0)
            return convert_blame(ret, w->source->backing, err);
    }
    return 0;
}

static size_t window_unit_length(const struct window *w, unsigned unit)
{
    size_t start = (size_t)unit * w->unit;

    return RHEA_MIN((size_t)w->unit, w->length - start);
}

static void window_compare(struct window *w)
{
    unsigned unit;

    for (unit = 0; unit < w->n_units; unit++) {
        size_t at = (size_t)unit * w->unit;

        if (w->kind[unit] != CONVERT_COMPARE)
            continue;
        w->kind[unit] =
            memcmp(w->buf + at, w->below + at, window_unit_length(w, unit))
                ? CONVERT_DATA
                : CONVERT_BACKING;
    }
}

/* Turn runs of zero units in the data, where they are long enough, into
 * zeroes. Compressed, every cluster is written or not for itself. */
static void window_sparsify(struct window *w)
{
    uint64_t shortest = w->options->compress ? 1 : w->options->sparse;
    unsigned unit, first = 0;
    size_t zeroes = 0;

    for (unit = 0; unit <= w->n_units; unit++) {
        size_t at = (size_t)unit * w->unit;
        size_t len = unit < w->n_units ? window_unit_length(w, unit) : 0;

        if (len && w->kind[unit] == CONVERT_DATA && zero_is(w->buf + at, len)) {
            zeroes += len;
            continue;
        }
        /* A run that reaches the window's end may go on behind it, but what
         * is shorter than a unit there is all there is. */
        if (zeroes && zeroes >= RHEA_MIN(shortest, w->length))
            memset(w->kind + first, CONVERT_ZERO, unit - first);
        zeroes = 0;
        first = unit + 1;
    }
}

int window_read(struct window *w, uint64_t offset, size_t len,
                struct rhea_error *err)
{
    int ret;

    w->offset = offset;
    w->length = len;
    w->n_data = 0;
    w->n_units = (unsigned)div_up(len, w->unit);
    ret = window_classify(w, err);
    if (ret < 0)
        return ret;
    ret = window_fetch(w, err);
    if (ret < 0)
        return ret;
    window_compare(w);
    if (w->options->sparse)
        window_sparsify(w);
    return 0;
}

int window_pack(struct window *w, struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(w->target);
    int ret = 0;

    for (unsigned unit = 0; w->packed && ret == 0 && unit < w->n_units;
         unit++) {
        size_t at = (size_t)unit * w->unit;

        if (w->kind[unit] == CONVERT_DATA)
            ret = format->ops->pack(format, w->offset + at, w->buf + at,
                                    window_unit_length(w, unit),
                                    w->packed + unit * w->packed_max,
                                    &w->packed_size[unit], err);
    }
    return convert_blame(ret, w->target, err);
}

static int window_write_packed(struct window *w, size_t start, size_t end,
                               struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(w->target);
    int ret = 0;

    for (; start < end && ret == 0; start += w->unit) {
        size_t unit = start / w->unit;

        ret = format->ops->write_packed(format, w->offset + start,
                                        w->packed + unit * w->packed_max,
                                        w->packed_size[unit], err);
    }
    return ret;
}

static int window_write_compressed(struct window *w, size_t start, size_t end,
                                   struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(w->target);
    int ret;

    for (; start < end; start += w->unit) {
        ret = format->ops->write_compressed(
            format, w->offset + start, w->buf + start,
            RHEA_MIN(end - start, (size_t)w->unit), err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int window_write(struct window *w, struct rhea_error *err)
{
    unsigned unit = 0, next;
    size_t start, end;
    int ret = 0;

    for (; unit < w->n_units && ret == 0; unit = next) {
        next = window_run(w, unit, &start, &end);
        switch (w->kind[unit]) {
        case CONVERT_BACKING:
            w->result.backing += end - start;
            break;
        case CONVERT_ZERO:
            w->result.zeroes += end - start;
            if (!w->options->target_is_zero)
                ret = rhea_image_write_zeroes(w->target, w->offset + start,
                                              end - start, true, err);
            break;
        default:
            w->result.written += end - start;
            if (w->pace)
                w->pace(w->pace_opaque, end - start);
            if (w->packed)
                ret = window_write_packed(w, start, end, err);
            else if (w->options->compress)
                ret = window_write_compressed(w, start, end, err);
            else
                ret = rhea_image_write(w->target, w->buf + start, end - start,
                                       w->offset + start, err);
        }
    }
    return convert_blame(ret, w->target, err);
}
