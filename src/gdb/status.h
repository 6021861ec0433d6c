/* SPDX-License-Identifier: MIT */
/* How a trace went, as the answer to qTStatus and the `status` line of gdb's
 * trace files say it (gdb's manual, "Tracepoint Packets"). */
#ifndef RHEA_GDB_STATUS_H
#define RHEA_GDB_STATUS_H

#include <rhea/base.h>

struct status {
    bool running;
    char stop[20];  /* the protocol's word: "tstop", "tfull"; "": not said */
    uint64_t point; /* which tracepoint stopped it, for "tpasscount" */
    char text[400]; /* the error, or what who stopped it said */
    char user[400], notes[400];
    uint64_t frames, created; /* in the buffer, and all */
    bool has_frames, has_created;
    uint64_t size, free; /* bytes of the buffer; 0: not said */
    uint64_t start, end; /* microseconds since the epoch; 0: not said */
    bool circular, disconnected;
};

/* What is not understood is left out. */
void status_parse(struct status *s, const char *text, size_t len);
/* Words for people: "stopped by tstop". */
void status_describe(const struct status *s, char *buf, size_t room);

#endif
