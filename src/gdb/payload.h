/* SPDX-License-Identifier: MIT */
/* The payload of a trace frame, written and read. Its layout is in frames.h. */
#ifndef RHEA_GDB_PAYLOAD_H
#define RHEA_GDB_PAYLOAD_H

#include "gdb/frames.h"

enum {
    PAYLOAD_MASK = EXPERIMENT_MAX_REGISTERS / 8,
    PAYLOAD_BLOCK = 65535, /* bytes of memory in a block, at most */
    PAYLOAD_MEMORY_HEAD = 1 + 8 + 2,
    PAYLOAD_VARIABLE = 1 + 4 + 8,
};

/* --- reading ------------------------------------------------------------- */

struct payload_block {
    char kind; /* R, M or V */
    /* R */
    const uint8_t *mask;
    unsigned mask_bytes;
    /* M */
    uint64_t address;
    /* V */
    unsigned number;
    int64_t value;
    /* R and M */
    const uint8_t *bytes;
    size_t len;
};

struct payload {
    const struct layout *layout;
    const uint8_t *at, *end;
};

struct payload payload_of(const struct frames_frame *frame,
                          const struct layout *layout);
/* The next block; false at the end, which is also where what follows is none
 * that can be read. */
bool payload_next(struct payload *p, struct payload_block *b);
/* Register N of an R block; NULL where it was not collected. */
const uint8_t *payload_register(const struct payload_block *b,
                                const struct layout *layout, unsigned n);

#endif
