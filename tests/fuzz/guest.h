/* SPDX-License-Identifier: MIT */
/*
 * The shadow model: what the guest of an image must see, kept outside of the
 * image, as a flat and sparse disk. Where the backing file is not known, it
 * also knows which parts the image leaves to it.
 *
 * Only as much is taken over as GUEST_RUNS and GUEST_BYTES allow; `known` is
 * where that ends, and nothing behind it is compared.
 */
#ifndef RHEA_FUZZ_GUEST_H
#define RHEA_FUZZ_GUEST_H

#include "fuzz.h"

enum { GUEST_RUNS = 4096, GUEST_BYTES = 4 << 20 };

struct guest_run {
    uint64_t offset, length;
    enum { GUEST_BELOW, GUEST_BROKEN } kind;
};

struct guest {
    struct rhea_storage *bytes; /* holes are zeroes */
    uint64_t size, known;
    bool base;              /* what is unallocated shows the base file */
    bool backing;           /* what is unallocated shows something unknown */
    struct guest_run *runs; /* sorted by offset, apart from each other */
    size_t n_runs;
    bool broken; /* some part could not be read */
};

/* Where an image's extents may be, besides its own storage. */
extern struct rhea_storage *guest_other;

/* Take over what F holds. BASE: its backing file is the base file. */
void guest_load(struct guest *g, struct rhea_format *f, bool base);
void guest_finish(struct guest *g);

/* The guest has written, or something unknown is there since a write failed. */
void guest_write(struct guest *g, uint64_t offset, const void *buf, size_t len);
void guest_zero(struct guest *g, uint64_t offset, uint64_t len);
void guest_spoil(struct guest *g, uint64_t offset, uint64_t len);
/* What is new reads as zeroes. */
void guest_resize(struct guest *g, uint64_t size);
/* *TO need not be anything before. */
void guest_copy(struct guest *to, const struct guest *from);

/* F must hold just this; WHEN is for the message. */
void guest_compare(const struct guest *g, struct rhea_format *f,
                   const char *when);

#endif
