/* SPDX-License-Identifier: MIT */
/*
 * Tracing as such: the experiment, its frames, and the breakpoints by which
 * hits are noticed. Knows the guest (machine.h) and no gdb.
 *
 * A hit is counted when a processor arrives at a tracepoint. It then stands
 * there, with the breakpoint under it, until it is made to depart; until then
 * the tracer remembers that it was counted (tracer_is_counted), so that nothing
 * counts twice, whatever is done with the processor meanwhile.
 */
#ifndef RHEA_GDB_TRACER_H
#define RHEA_GDB_TRACER_H

#include "gdb/breaks.h"
#include "gdb/hit.h"
#include "gdb/link.h"
#include "gdb/machine.h"
#include "gdb/probe.h"

struct tracer;

/* A way in which hits are noticed. */
struct way {
    const char *name; /* as users see it: "stub" */
    const char *text; /* a few words */
    /* A tracepoint becomes active; ERR says why it cannot. Called while the
     * guest is stopped, as all of these. */
    int (*insert)(struct tracer *t, const struct tracepoint *p,
                  struct rhea_error *err);
    void (*remove)(struct tracer *t, const struct tracepoint *p);
    /* The experiment that was published is to be traced, and no longer. May be
     * NULL. */
    int (*load)(struct tracer *t, struct rhea_error *err);
    void (*unload)(struct tracer *t);
    /* Whether a stop at a tracepoint's address is to be counted as a hit. */
    bool counts_stops;
};

extern const struct way way_stub;     /* breakpoints in the stub */
extern const struct way way_hardware; /* the processor's own, for KVM */
extern const struct way way_plugin;   /* inside QEMU, under TCG */

/* A thread that stands where it was counted. */
struct counted {
    char thread[MACHINE_THREAD];
    uint64_t pc;
};

/* A thread whose step over a tracepoint's instruction was taken up by an
 * interrupt's or a fault's handler: the instruction is still to come, and when
 * it comes it was counted already. */
struct returning {
    struct machine_place place;
    bool valid;
};

/* A thread that is being stepped for a tracepoint. */
struct stepping {
    char thread[MACHINE_THREAD];
    const struct tracepoint *point;
    uint64_t left;
};

enum { TRACER_MAX_THREADS = 1024, TRACER_MAX_RETURNING = 256 };

struct tracer {
    struct experiment *experiment;
    struct frames *frames;
    struct hit hit;
    struct breaks breaks;
    struct machine *machine;
    const struct way *way;
    struct probe probe; /* of breakpoints in memory, for way_hardware */
    struct link link;   /* of way_plugin */
    bool loaded;        /* see way.load */
    bool active;        /* tracepoints are inserted */
    uint8_t inserted[EXPERIMENT_MAX_POINTS / 8]; /* bit a slot */
    struct counted counted[TRACER_MAX_THREADS];
    size_t n_counted;
    struct stepping stepping[TRACER_MAX_THREADS];
    size_t n_stepping;
    struct returning
        returning[TRACER_MAX_RETURNING]; /* the oldest makes room */
    unsigned next_returning;
};

/* PATH: where the file of frames is made, of LIMIT bytes of frames. */
int tracer_init(struct tracer *t, struct machine *machine,
                const struct description *description, const char *path,
                uint64_t limit, struct rhea_error *err);
void tracer_finish(struct tracer *t);
/* From now on these are the registers; there are no frames. */
int tracer_describe(struct tracer *t, const struct description *d,
                    struct rhea_error *err);

bool tracer_is_running(const struct tracer *t);

/* QTinit: stop, and forget all tracepoints and frames. */
void tracer_clear(struct tracer *t);
/* QTStart. Nothing runs where one of the tracepoints cannot be inserted. */
int tracer_start(struct tracer *t, struct rhea_error *err);
/* Stop for a reason, if it runs. */
void tracer_stop(struct tracer *t, enum frames_stop reason);
/* A tracepoint was defined completely, perhaps while tracing runs. */
int tracer_install(struct tracer *t, struct tracepoint *p,
                   struct rhea_error *err);
int tracer_enable(struct tracer *t, struct tracepoint *p, bool on,
                  struct rhea_error *err);
/* Take all breakpoints out for a while, or put them back. */
void tracer_suspend(struct tracer *t, bool suspend);
/* Tracing may have stopped by a hit: take the breakpoints out. Called while the
 * guest is stopped. */
void tracer_settle(struct tracer *t);

/* The thread that the machine looks at has arrived at PC: count, collect, note
 * that it was counted. */
void tracer_arrive(struct tracer *t, uint64_t pc);
/* It has made an access that the stub watches for, and is at PC, behind it.
 * False where no tracepoint is about that. */
bool tracer_touch(struct tracer *t, enum break_type type, uint64_t address,
                  uint64_t pc);
/* It stands at PC, over a breakpoint that nobody else will take it past. */
void tracer_stand(struct tracer *t, uint64_t pc);
/* It stood at FROM, where it was counted, and a handler has interrupted it
 * there. */
void tracer_interrupted(struct tracer *t, const struct machine_place *from);
/* Whether it is back there, for the first time since. */
bool tracer_returns(struct tracer *t);
/* Whether it is being stepped; then it has made a step, to PC. */
bool tracer_is_stepping(const struct tracer *t, const char *thread);
void tracer_step(struct tracer *t, uint64_t pc);
/* Whether a thread stands where it was counted; *PC: where. */
bool tracer_is_counted(const struct tracer *t, const char *thread,
                       uint64_t *pc);
/* It has left, or somebody has moved it. NULL: all. */
void tracer_departed(struct tracer *t, const char *thread);

#endif
