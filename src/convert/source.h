/* SPDX-License-Identifier: MIT */
/*
 * What there is to copy: the sources, one after the other, each guest byte
 * classed by what has to be done for it.
 *
 * Life: convert_source_init, use from many threads, convert_source_finish.
 */
#ifndef RHEA_CONVERT_SOURCE_H
#define RHEA_CONVERT_SOURCE_H

#include <rhea/image.h>

enum convert_kind {
    CONVERT_ZERO,    /* reads as zeroes */
    CONVERT_DATA,    /* must be read and written */
    CONVERT_BACKING, /* the target's backing image holds the same */
    CONVERT_COMPARE, /* it may: to be read from both and compared */
};

struct convert_part {
    struct rhea_image *image;
    uint64_t start, end; /* in the target; END is a multiple of 512 */
    bool *sparse_file;   /* for each image of the chain: see find_hole */
};

struct convert_source {
    struct convert_part *parts;
    size_t n_parts;
    uint64_t size;

    /* Where the target has a backing image: */
    struct rhea_image *backing;
    unsigned shared_depth; /* images this deep in the source's chain lie in the
                              target's chain too; 0: none does */
    uint64_t shared_limit; /* past it, an image above them ends the chain */
};

/* BACKING: the target's, or NULL. */
int convert_source_init(struct convert_source *s,
                        struct rhea_image *const *images, size_t n_images,
                        struct rhea_image *backing, struct rhea_error *err);
void convert_source_finish(struct convert_source *s);

struct convert_run {
    enum convert_kind kind;
    uint64_t length;
    struct rhea_storage *storage; /* has these bytes, DATA or ZERO, as they are
                                     at HOST; NULL: none does */
    uint64_t host;
};

/* What is at OFFSET, for at most LEN bytes. */
int convert_source_map(struct convert_source *s, uint64_t offset, uint64_t len,
                       struct convert_run *run, struct rhea_error *err);

/* Whether the file system knows the bytes of E to be a hole, from its beginning
 * for *RUN bytes, which may be made shorter, also where they are none. Not
 * asked of short runs, nor of what is no plain data. */
int convert_find_hole(const struct rhea_extent *e, bool *hole, uint64_t *run,
                      struct rhea_error *err);

/* Name IMAGE in ERR, where that does not do so yet. Returns RET. */
int convert_blame(int ret, struct rhea_image *image, struct rhea_error *err);

/* Make [offset, offset + len) read as zeroes whatever backing image IMAGE gets:
 * nothing of it stays unallocated. */
int convert_write_zeroes(struct rhea_image *image, uint64_t offset,
                         uint64_t len, struct rhea_error *err);

/* Whether both are the same file, read the same way. */
bool convert_same_file(struct rhea_image *a, struct rhea_image *b);

/* Read; what pads an image to a multiple of 512 bytes reads as zeroes. */
int convert_source_read(struct convert_source *s, void *buf, size_t len,
                        uint64_t offset, struct rhea_error *err);

/* The same from the target's backing image, zeroes past its end. */
int convert_source_read_backing(struct convert_source *s, void *buf, size_t len,
                                uint64_t offset, struct rhea_error *err);

#endif
