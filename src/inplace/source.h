/* SPDX-License-Identifier: MIT */
/* The image that is to be converted, as the converter reads it. */
#ifndef RHEA_INPLACE_SOURCE_H
#define RHEA_INPLACE_SOURCE_H

#include <rhea/image.h>
#include <stdatomic.h>

#include "inplace/layout.h"

struct source {
    struct rhea_storage *storage; /* the caller's */
    const char *filename;         /* the caller's */
    struct rhea_format *format;
    struct rhea_format_info info;
    uint64_t file_size;
    bool has_backing;
    struct rhea_image *backing; /* opened when first needed */
    atomic_bool stop_sweep;     /* nobody waits for what it finds */
};

/* Open STORAGE as FORMAT. Safe to finish after failure. */
int source_init(struct source *src, struct rhea_storage *storage,
                const char *filename, const struct rhea_format_ops *format,
                struct rhea_error *err);
void source_finish(struct source *src);

/* Guest bytes through the backing chain; zeroes past the end of the disk. */
int source_read(struct source *src, uint64_t guest, void *buf, size_t len,
                struct rhea_error *err);

/* Whether a backing file is sure to be probed as the format that the image
 * names, so that nothing is lost where only "raw" or nothing can be recorded.
 */
enum source_backing {
    SOURCE_BACKING_SAME,    /* it exists and probes as that format */
    SOURCE_BACKING_UNKNOWN, /* it could not be read, but the format is one
                               that probing recognises */
    SOURCE_BACKING_DIFFERS, /* it does not probe as that format */
};
enum source_backing source_probe_backing(const struct source *src);

/* What sweep found for a run of COUNT target clusters from guest cluster
 * CLUSTER on. Unallocated ones are not reported. */
struct sweep_run {
    enum {
        SWEEP_KEEP,    /* stays, at HOST and on */
        SWEEP_FILL,    /* stays at HOST, parts of it must be written there */
        SWEEP_REWRITE, /* must be written anew elsewhere */
        SWEEP_ZERO,
        SWEEP_BLANK, /* zeroes that need a cluster of their own */
    } kind;
    uint64_t cluster, count, host;
};
typedef int sweep_fn(void *opaque, const struct sweep_run *run,
                     struct rhea_error *err);

/* Call FN for all of the source's guest clusters, in order, as TARGET can take
 * them over. */
int sweep(struct source *src, const struct layout *target, sweep_fn *fn,
          void *opaque, struct rhea_error *err);

#endif
