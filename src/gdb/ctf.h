/* SPDX-License-Identifier: MIT */
/*
 * Traces in the Common Trace Format, version 1.8, which babeltrace2 and Trace
 * Compass read: a folder with `metadata`, text that describes how events are
 * laid out, and `frames`, a stream of packets of events.
 *
 * An event is a frame. What is in frames differs, so there is an event class
 * for each tracepoint and what its frames have: registers, variables and blocks
 * of memory (a shape). As a rule that is one a tracepoint, and one for its
 * steps.
 *
 * Where not all frames have a time, the numbers of frames take its place, as
 * nanoseconds.
 */
#ifndef RHEA_GDB_CTF_H
#define RHEA_GDB_CTF_H

#include "gdb/recorded.h"

enum {
    CTF_MAX_SHAPES = 1024,
    CTF_MAX_VARIABLES = 64, /* of a frame, the same one twice included */
    CTF_MAX_BLOCKS = 1024,  /* of a frame's memory */
};

struct ctf_facts {
    uint64_t frames;
    bool has_time; /* all frames have one */
    bool has_cpu;
};

/* Write all frames that R gives to a new folder. */
int ctf_write(struct recorded *r, const char *folder, struct ctf_facts *facts,
              struct rhea_error *err);

/* --- between the parts --------------------------------------------------- */

struct ctf_shape {
    uint32_t number;
    uint16_t step, has_pc; /* 0 or 1: without padding it compares as bytes */
    uint8_t mask[PAYLOAD_MASK]; /* registers */
    uint16_t n_variables, n_blocks;
    uint16_t variables[CTF_MAX_VARIABLES]; /* in the order of the frame */
};

/* The text of `metadata`; the class of SHAPES[i] has the id i. */
int ctf_put_metadata(const struct recorded *r, const struct ctf_facts *facts,
                     const struct ctf_shape *shapes, size_t n, FILE *out,
                     struct rhea_error *err);

#endif
