/* SPDX-License-Identifier: MIT */
/*
 * Breakpoints and watchpoints: gdb's own, with the conditions and commands that
 * gdb leaves to us, and those of tracepoints. Where both want the same one the
 * stub has it once.
 *
 * The table says what is wanted; breaks_sync makes the stub have it. It may be
 * called only while the guest is stopped.
 */
#ifndef RHEA_GDB_BREAKS_H
#define RHEA_GDB_BREAKS_H

#include "gdb/experiment.h"
#include "gdb/stub.h"

enum {
    BREAKS_MAX = 65536,      /* in the table */
    BREAKS_MAX_EXTRAS = 256, /* conditions or commands of one */
};

enum break_type { /* as in Z packets */
                  BREAK_SOFTWARE,
                  BREAK_HARDWARE,
                  BREAK_WRITE,
                  BREAK_READ,
                  BREAK_ACCESS,
                  BREAK_N_TYPES,
};

struct breakpoint {
    enum break_type type;
    uint64_t address, kind;
    unsigned traced; /* tracepoints that want it */
    bool by_gdb;
    bool inserted; /* the stub has it */
    /* of gdb's; true means that the conditions' values are or-ed */
    struct expression *conditions, *commands;
    unsigned n_conditions, n_commands;
    bool persist; /* the commands go on without gdb */
};

struct breaks {
    struct breakpoint *list;
    size_t n, room;
    bool dirty; /* something is not in the stub as it is wanted */
};

void breaks_finish(struct breaks *b);

/* `Z` and `z` packets of gdb's, behind that letter. -ENOTSUP: of a type that
 * nobody knows. */
int breaks_insert(struct breaks *b, struct packet_cursor packet,
                  struct rhea_error *err);
int breaks_remove(struct breaks *b, struct packet_cursor packet,
                  struct rhea_error *err);
/* gdb is gone: so are its breakpoints, but for those that persist. */
void breaks_remove_gdb(struct breaks *b);
/* A tracepoint wants one, or no longer does. KIND: 1, and of watchpoints how
 * many bytes. */
int breaks_trace(struct breaks *b, enum break_type type, uint64_t address,
                 uint64_t kind, struct rhea_error *err);
void breaks_untrace(struct breaks *b, enum break_type type, uint64_t address);

struct breakpoint *breaks_find(const struct breaks *b, enum break_type type,
                               uint64_t address);
/* One that stops the processor at ADDRESS, of either type; wanted by gdb
 * (BY_GDB) or by a tracepoint. */
struct breakpoint *breaks_at(const struct breaks *b, uint64_t address,
                             bool by_gdb);

/* How many debug registers those that are wanted take, at least: watchpoints
 * need one or more. */
unsigned breaks_count_hardware(const struct breaks *b);

/* Insert what is wanted and remove what is not. Where the stub refuses one, the
 * rest is done and the first refusal reported; REFUSED (may be NULL) is where
 * it was. */
int breaks_sync(struct breaks *b, struct stub *s, struct breakpoint *refused,
                struct rhea_error *err);
/* Queue the packet that takes one out of the stub, or puts it back. */
void breaks_queue(struct stub *s, const struct breakpoint *p, bool insert);

#endif
