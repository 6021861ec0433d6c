/* SPDX-License-Identifier: MIT */
/*
 * The file of trace frames: what was recorded at each hit, and all that
 * belongs to it. Processes share it by mapping it: rhea-trace, which makes it,
 * and the plugin inside QEMU. Many threads of both store frames at a time.
 *
 * Layout, in pages of 4096 bytes:
 *
 *     control   a struct frames_control
 *     points    a struct frames_point for each tracepoint, by slot
 *     variables a struct frames_variable for each number
 *     text      two slots for the experiment as text (experiment.h), used in
 *               turn; the plugin loads it, and so does who opens the file later
 *     index     a ring of struct frames_entry, frame N at N modulo its size
 *     data      a ring of bytes: for each frame a struct frames_head and its
 *               payload, from a multiple of 8 on; mapped twice in a row, so
 *               that none is ever in two pieces
 *
 * A payload is a row of blocks, integers little-endian:
 *
 *     'R' n, mask (n bytes), registers   those of the mask, in ascending order,
 *                                        sizes by the layout
 *     'M' address (8), length (2), bytes memory
 *     'V' number (4), value (8)          a trace state variable
 *
 * Frames are numbered from 0 on; the frames [first, next) are there. In a
 * circular file the oldest ones make room for new ones.
 *
 * Order of stores. A frame is stored under the file's lock (frames_append):
 * first room is made (`first` moves), then the bytes, then the index entry,
 * then `next`. So a process may be killed at any instruction, and what is in
 * [first, next) is whole; the lock passes on to another one by itself. When the
 * system dies, pages get to the disk in any order. Each frame has a checksum
 * over its bytes, its number and the experiment's, so that frames_open finds
 * the ones that are whole and drops what is not.
 *
 * All space is allocated in advance: a full disk is an error at the start and
 * never a signal in the middle of a guest.
 */
#ifndef RHEA_GDB_FRAMES_H
#define RHEA_GDB_FRAMES_H

#include <pthread.h>

#include "gdb/experiment.h"

#define FRAMES_MAGIC UINT64_C(0x3145434152544852) /* "RHTRACE1" */

enum {
    FRAMES_PAGE = 4096,
    FRAMES_MAX_PAYLOAD = 1 << 20,
    FRAMES_TEXT = 4 << 20, /* bytes of a slot */
    FRAMES_REASON = 200,
    FRAMES_AGAIN = 10, /* ms */
};

/* Why tracing is not going on (gdb's manual, `qTStatus`). */
enum frames_stop {
    FRAMES_NEVER_RUN,    /* tnotrun */
    FRAMES_STOPPED,      /* tstop: somebody asked for it */
    FRAMES_FULL,         /* tfull */
    FRAMES_DISCONNECTED, /* tdisconnected */
    FRAMES_PASS_COUNT,   /* tpasscount */
    FRAMES_ERROR,        /* terror */
    FRAMES_CRASHED,      /* it was going on when everything ended */
};

/* What hits count. Shared: use the atomic built-ins. */
struct frames_point {
    uint64_t hits;   /* conditions that were true */
    uint64_t usage;  /* bytes of its frames, those gone included; changes
                        under the lock */
    uint64_t tests;  /* times that the place was passed while enabled */
    uint64_t faults; /* expressions given up for memory that is not there */
    uint32_t enabled;
    uint32_t reserved;
};

struct frames_variable {
    int64_t value;
};

struct frames_entry {
    uint64_t pc;
    uint64_t position; /* of the head, in bytes since the start of tracing */
    uint32_t number;   /* gdb's number of the tracepoint */
    uint16_t cpu;      /* the virtual processor, from 0 */
    uint16_t flags;    /* FRAMES_STEP */
};

enum { FRAMES_STEP = 1 }; /* recorded while stepping, not at the tracepoint */

struct frames_head {
    uint64_t time; /* nanoseconds of CLOCK_MONOTONIC */
    uint64_t frame;
    uint32_t size;  /* bytes of the payload */
    uint32_t check; /* see frames.c */
};

/* What a frame takes of the buffer besides its payload, rounded up to 8. */
enum {
    FRAMES_OVERHEAD = sizeof(struct frames_entry) + sizeof(struct frames_head)
};

struct frames_control {
    uint64_t magic;
    uint32_t bytes; /* of this struct, as its version */
    uint32_t n_points, n_variables;
    uint32_t clean;                         /* closed, not left behind */
    uint64_t points, variables, text, ring; /* where in the file */

    /* Change under the lock, and are read without (atomic). */
    uint32_t running;
    uint32_t stop;       /* enum frames_stop */
    uint32_t stop_point; /* gdb's number, for FRAMES_PASS_COUNT and _ERROR */
    uint32_t circular;
    uint32_t disconnected;      /* tracing goes on without gdb */
    uint32_t paused;            /* nothing counts: the guest goes backwards */
    char reason[FRAMES_REASON]; /* for FRAMES_ERROR */

    /* The experiment: grows with each new text. A plugin compares it with what
     * it has loaded. */
    uint64_t generation;
    struct {
        uint64_t len;
        uint32_t check;
        uint32_t reserved;
    } slots[2]; /* by generation modulo 2 */

    uint64_t run;             /* a random number for each time tracing starts */
    uint64_t start, end;      /* microseconds of CLOCK_REALTIME */
    uint64_t start_monotonic; /* nanoseconds, at `start` */

    /* The ring, which may change its size between runs. */
    uint64_t ring_generation;
    uint64_t limit;      /* bytes of frames with their overhead */
    uint64_t n_entries;  /* of the index */
    uint64_t data;       /* where in the file */
    uint64_t data_bytes; /* of the ring, pages */

    uint64_t first, next; /* frames */
    uint64_t used;        /* bytes, of `limit` */
    uint64_t position;    /* where the next head goes, see frames_entry */

    pthread_mutex_t lock; /* robust, shared by processes */
};

struct frames; /* one process's mapping of a file */

struct frames_frame {
    struct frames_entry entry;
    struct frames_head head;
    const uint8_t *payload; /* head.size bytes */
};

/* --- life ---------------------------------------------------------------- */

/* Make a file, which must not be there yet, for LIMIT bytes of frames. */
int frames_create(struct frames **f, const char *path, uint64_t limit,
                  struct rhea_error *err);
/* Map the file of a process that is alive, to store frames. What the file
 * says about itself is checked. */
int frames_attach(struct frames **f, const char *path, struct rhea_error *err);
/* The same with a descriptor, which is taken over (also on failure). */
int frames_attach_fd(struct frames **f, int fd, struct rhea_error *err);
/* Map all there is now, so that the first frame need not. */
int frames_prepare(struct frames *f, struct rhea_error *err);
/* Have the memory at hand that the next frames will be stored to. To be called
 * every FRAMES_AGAIN milliseconds by the process that stores them. */
void frames_go_ahead(struct frames *f);
/* Look at a file that may have been left behind: nothing in it is changed, and
 * only whole frames are found. N_LOST: those that were not; may be NULL. While
 * tracing goes on it can be looked at too, but not where it is circular
 * (-EBUSY, after some seconds). */
int frames_open(struct frames **f, const char *path, uint64_t *n_lost,
                struct rhea_error *err);
/* Unmap; what frames_create made is marked as closed. */
void frames_close(struct frames *f);

struct frames_control *frames_control(struct frames *f);
struct frames_point *frames_point(struct frames *f, unsigned slot);
struct frames_variable *frames_variable(struct frames *f, unsigned number);
const char *frames_path(const struct frames *f);
int frames_fd(const struct frames *f);

/* --- who makes the file -------------------------------------------------- */

/* Publish an experiment: counters of new tracepoints are set, those of old ones
 * stay. */
int frames_publish(struct frames *f, const struct experiment *e,
                   struct rhea_error *err);
/* Another size of the buffer; drops all frames. Not while running. */
int frames_resize(struct frames *f, uint64_t limit, struct rhea_error *err);
/* Drop all frames, set counters and variables of E as they are at first, go.
 * E has been published. */
int frames_start(struct frames *f, const struct experiment *e,
                 struct rhea_error *err);
/* QTinit: drop all frames and counters; nothing was ever run. */
void frames_clear(struct frames *f);
void frames_set_circular(struct frames *f, bool circular);

/* --- any process --------------------------------------------------------- */

/* The experiment that was published last, new at *TEXT, *GENERATION its
 * number. -EAGAIN where it changed meanwhile. */
int frames_text(struct frames *f, char **text, size_t *len,
                uint64_t *generation, struct rhea_error *err);

static inline bool frames_is_running(const struct frames_control *c)
{
    return __atomic_load_n(&c->running, __ATOMIC_ACQUIRE) != 0;
}

static inline bool frames_is_paused(const struct frames_control *c)
{
    return __atomic_load_n(&c->paused, __ATOMIC_ACQUIRE) != 0;
}

/* Stop tracing, if it is going on; the first reason stays. */
void frames_stop(struct frames *f, enum frames_stop stop, unsigned number,
                 const char *reason);

/* What is known about a hit before it is stored. */
struct frames_hit {
    uint64_t pc;
    uint64_t run; /* frames_control.run when the hit began: a hit does not get
                     into the next run */
    uint32_t number;
    uint16_t cpu, flags;
    uint32_t slot; /* of the tracepoint */
};

/* Store a frame; takes no memory, and waits only for other threads that do
 * the same. False where it was not stored: tracing has stopped, which it does
 * when the buffer is full. */
bool frames_append(struct frames *f, const struct frames_hit *hit,
                   const void *payload, size_t len);

/* --- looking at frames --------------------------------------------------- */

/* Frames are numbered from 0, the oldest that is there. Pointers are valid
 * until frames are dropped, so only while nothing runs in a circular file. */
uint64_t frames_count(struct frames *f);
/* Of this run, those that are gone included. */
uint64_t frames_created(struct frames *f);
/* False where there is no such frame. */
bool frames_get(struct frames *f, uint64_t n, struct frames_frame *frame);

struct frames_search {
    enum {
        FRAMES_BY_PC,      /* pc is LOW */
        FRAMES_BY_NUMBER,  /* the tracepoint is LOW */
        FRAMES_BY_RANGE,   /* pc is in [LOW, HIGH] */
        FRAMES_BY_OUTSIDE, /* pc is not in [LOW, HIGH] */
    } kind;
    uint64_t low, high;
};

/* The first frame from N on that is searched for; -1 where there is none. */
int64_t frames_find(struct frames *f, uint64_t n,
                    const struct frames_search *search);

#endif
