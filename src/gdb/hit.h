/* SPDX-License-Identifier: MIT */
/*
 * What happens when a tracepoint is passed: its condition, its counters, its
 * actions, the frame. The same for every way in which hits are noticed; the
 * machine as it stands at that moment is behind a small table.
 *
 * Life: hit_init for each thread that has hits, then hit_run as often as it
 * takes, which allocates nothing; hit_finish (safe on all zero bytes).
 */
#ifndef RHEA_GDB_HIT_H
#define RHEA_GDB_HIT_H

#include "gdb/frames.h"

enum { HIT_REGISTER_SLACK = 16 };

/* The virtual processor that passes a tracepoint. Functions get `opaque`. */
struct hit_machine {
    /* The bytes of register N, as many as the layout says, in the guest's
     * order; false where it is not at hand. */
    bool (*get_register)(void *opaque, unsigned n, void *bytes);
    /* Those of SET that are at hand, in ascending order, at OUT, which has room
     * for all and HIT_REGISTER_SLACK bytes more; their bits in MASK, which is
     * zero. Returns their bytes. NULL: they are asked for one at a time. */
    size_t (*get_registers)(void *opaque, const struct register_set *set,
                            uint8_t *out, uint8_t *mask);
    /* Guest memory from a virtual address on. Returns how many of the LEN bytes
     * could be read, from the first on. Callers ask for nothing that goes over
     * the end of a 4 KiB page. */
    size_t (*read)(void *opaque, uint64_t address, void *buf, size_t len);
    void *opaque;
    uint64_t pc;
    unsigned cpu; /* from 0 */
};

enum hit_result {
    HIT_IGNORED, /* not running, disabled, or the condition is false */
    HIT_STORED,  /* and tracing goes on, or it stops by this very frame */
    HIT_STOPPED, /* no frame was stored, and tracing has stopped */
};

struct hit {
    struct frames *frames;
    const struct experiment *experiment;
    uint8_t *payload;
    size_t len;
    /* while one runs */
    const struct hit_machine *machine;
    char *text; /* of hit_print: what is left of it */
    size_t text_room;
};

int hit_init(struct hit *h, struct frames *frames,
             const struct experiment *experiment, struct rhea_error *err);
void hit_finish(struct hit *h);

/* T was passed. Where the answer is HIT_STORED and T has a step count, the
 * caller goes on with hit_step after each of as many instructions. */
enum hit_result hit_run(struct hit *h, const struct tracepoint *t,
                        const struct hit_machine *machine);
/* An instruction later. LAST: no more will follow. */
enum hit_result hit_step(struct hit *h, const struct tracepoint *t, bool last,
                         const struct hit_machine *machine);

/* Run an expression that is no tracepoint's (a breakpoint's condition, say) and
 * neither records nor prints: the value, or why there is none. */
enum ax_status hit_evaluate(struct hit *h, const struct expression *x,
                            const struct hit_machine *machine, uint64_t *value);
/* The same with an expression that prints: its text in BUF; ROOM > 0. */
enum ax_status hit_print(struct hit *h, const struct expression *x,
                         const struct hit_machine *machine, char *buf,
                         size_t room);

/* The value that variable N, which is there, has now. */
int64_t hit_variable(struct hit *h, unsigned n);

#endif
