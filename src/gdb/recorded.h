/* SPDX-License-Identifier: MIT */
/*
 * A trace that was recorded, in whatever file: gdb's trace file (tfile_read.h),
 * or the file of trace frames (frames.h), which is there also when all that was
 * going on has died. For those who look at all frames from the first to the
 * last.
 *
 * Life: recorded_open, recorded_next in a loop (recorded_rewind begins again),
 * recorded_close.
 */
#ifndef RHEA_GDB_RECORDED_H
#define RHEA_GDB_RECORDED_H

#include "gdb/status.h"
#include "gdb/tfile_read.h"

/* Which frames are wanted. */
struct recorded_filter {
    uint64_t first, last; /* their numbers, from 0; LAST included */
    int64_t tracepoint;   /* -1: all */
};

struct recorded {
    const struct experiment *experiment;
    struct status status;
    bool is_ring;                  /* a file of frames */
    uint64_t n_lost;               /* of those: frames that were not whole */
    struct recorded_filter filter; /* all, at first */
    /* private */
    struct tfile tfile;
    struct frames *frames;
    struct experiment *own;
    uint64_t next;
    int timestamp, cpu; /* numbers of these variables; -1: there are none */
};

struct recorded_frame {
    uint64_t index;            /* from 0 */
    struct frames_frame frame; /* what is not known of it is 0 */
    /* NULL: the file does not have it */
    const struct tracepoint *point;
    bool has_pc, has_cpu, has_time;
    bool step; /* of while-stepping, as far as one can tell */
    unsigned cpu;
    uint64_t time; /* nanoseconds since the epoch */
};

int recorded_open(struct recorded *r, const char *path, struct rhea_error *err);
void recorded_close(struct recorded *r);
/* The next frame that is wanted: 1, or 0 at the end. Pointers in it are valid
 * until the next call. */
int recorded_next(struct recorded *r, struct recorded_frame *f,
                  struct rhea_error *err);
int recorded_rewind(struct recorded *r, struct rhea_error *err);

static inline const struct layout *recorded_layout(const struct recorded *r)
{
    return &r->experiment->layout;
}

/* Hits and bytes of frames of a tracepoint; false where they are not known. */
bool recorded_counters(const struct recorded *r, const struct tracepoint *p,
                       uint64_t *hits, uint64_t *usage);
/* What is not as it should be, for people, one after the other by N; false: no
 * more. Complete once all frames have been read. */
bool recorded_trouble(const struct recorded *r, unsigned n, char *buf,
                      size_t room);
/* Write all frames as gdb's trace file. Of a file of frames only. */
int recorded_save(struct recorded *r, const char *path, struct rhea_error *err);

/* What the user said where a tracepoint is to be; NULL: not known. */
const char *recorded_location(const struct tracepoint *p);

#endif
