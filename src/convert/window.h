/* SPDX-License-Identifier: MIT */
/*
 * One worker's piece of the target: a window of a few MiB, classed and written
 * unit by unit. A unit is a cluster of the target, so that no cluster is
 * written in two pieces and none has to be filled up from below.
 *
 * Life: window_init, then window_read and window_write in turn, window_finish.
 */
#ifndef RHEA_CONVERT_WINDOW_H
#define RHEA_CONVERT_WINDOW_H

#include <rhea/convert.h>

#include "convert/source.h"

enum {
    WINDOW_SIZE = 2 << 20, /* also the largest unit */
    WINDOW_UNIT_MIN = 512,
    WINDOW_UNITS_MAX = WINDOW_SIZE / WINDOW_UNIT_MIN,
};

struct window {
    struct convert_source *source;
    struct rhea_image *target;
    const struct rhea_convert_options *options;
    unsigned unit; /* bytes */
    /* Called before N bytes of data are written; may wait. */
    void (*pace)(void *opaque, uint64_t n);
    void *pace_opaque;

    uint64_t offset;
    size_t length; /* at most WINDOW_SIZE; the image's last may be odd */
    unsigned n_units;
    size_t n_data; /* bytes of it that the sources have as data */
    unsigned char kind[WINDOW_UNITS_MAX]; /* enum convert_kind */
    unsigned char *buf;   /* the guest's bytes, valid for DATA */
    unsigned char *below; /* what the target's backing image has, or NULL */
    /* Where compressed clusters must be written in order: their stored form, a
     * unit's at each multiple of packed_max, and how long it is. Else NULL. */
    unsigned char *packed;
    size_t packed_max;
    size_t *packed_size;

    struct rhea_convert_result result; /* adds up over all windows */
};

int window_init(struct window *w, struct convert_source *source,
                struct rhea_image *target, unsigned unit,
                const struct rhea_convert_options *options,
                struct rhea_error *err);
void window_finish(struct window *w);

/* Look at and read [offset, offset + len), OFFSET a multiple of the unit. */
int window_read(struct window *w, uint64_t offset, size_t len,
                struct rhea_error *err);
/* Compress what there is to be compressed before its turn to be written comes.
 */
int window_pack(struct window *w, struct rhea_error *err);
/* Write it into the target. */
int window_write(struct window *w, struct rhea_error *err);

#endif
