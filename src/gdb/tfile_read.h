/* SPDX-License-Identifier: MIT */
/*
 * Reading of gdb's trace files (tfile.h), whoever wrote them: rhea-trace, gdb's
 * `tsave`, gdbserver. They are not trusted: lines and frames are bounded, and
 * what of the head cannot be understood is left out and counted.
 *
 * Frames come out as the file of frames (frames.h) has them: payloads of blocks
 * with masks of registers. A trace file does not say which registers of a frame
 * were collected, but the actions of its tracepoint do.
 *
 * Life: tfile_open, tfile_next in a loop (tfile_rewind begins again),
 * tfile_close.
 */
#ifndef RHEA_GDB_TFILE_READ_H
#define RHEA_GDB_TFILE_READ_H

#include <sys/types.h>

#include "gdb/payload.h"

enum {
    TFILE_MAX_LINE = 1 << 20,
    TFILE_MAX_HEAD = 16 << 20,
    TFILE_MAX_FRAME = 64 << 20,
};

/* What the file says of a tracepoint. */
struct tfile_counter {
    unsigned number;
    uint64_t address, hits, usage;
};

struct tfile {
    struct experiment *experiment; /* its layout is always there */
    char *status;                  /* a line's text; NULL: none */
    struct tfile_counter *counters;
    size_t n_counters;
    /* Lines of the head that were left out, and what is wrong with the first.
     */
    unsigned n_bad;
    char bad[300];
    bool named; /* registers have names; else they are pieces without */
    /* What was wrong with the frames, as far as they have been read. */
    bool cut;       /* the file ends in the middle of one */
    uint64_t n_odd; /* frames with data that cannot be understood */
    /* private */
    FILE *file;
    off_t start; /* of the frames */
    uint8_t *in, *out;
    size_t in_room, out_room;
};

/* FILE is closed by tfile_close, and by a failure too. -EINVAL: it is no trace
 * file. */
int tfile_open(struct tfile *t, FILE *file, struct rhea_error *err);
void tfile_close(struct tfile *t);
int tfile_rewind(struct tfile *t, struct rhea_error *err);

/* The next frame: 1, or 0 at the end. Of FRAME, the tracepoint's number, the
 * program counter (0 and *HAS_PC false where it is not known) and the payload
 * are set, the latter until the next call. */
int tfile_next(struct tfile *t, struct frames_frame *frame, bool *has_pc,
               struct rhea_error *err);
/* Pass over a frame: 1, or 0 at the end. */
int tfile_skip(struct tfile *t, struct rhea_error *err);

#endif
