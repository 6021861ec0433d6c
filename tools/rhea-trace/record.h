/* SPDX-License-Identifier: MIT */
/* What the parts of `rhea-trace record` share. */
#ifndef RHEA_TRACE_RECORD_H
#define RHEA_TRACE_RECORD_H

#include "trace.h"

enum { RECORD_MAX = 256 /* places, and expressions of one */ };

/* Where to record, and what. */
struct record_place {
    const char *at, *condition; /* NULL: always */
    const char *collect[RECORD_MAX];
    size_t n;
};

struct record_wish {
    struct record_place places[RECORD_MAX];
    size_t n;
    uint64_t count;                   /* hits of a place; 0: no matter */
    const char *gdb, *symbols;        /* NULL: not said */
    const char *commands[RECORD_MAX]; /* of gdb, before all else */
    size_t n_commands;
};

/* record_own.c: addresses and simple expressions need no gdb. */

/* Whether gdb is needed, or asked for. */
bool record_needs_gdb(const struct record_wish *w);
/* Define the tracepoints. */
int record_define(const struct record_wish *w, struct experiment *e,
                  struct rhea_error *err);

/* record_gdb.c: gdb as the one who knows symbols and compiles expressions. It
 * connects to us, defines the tracepoints, starts tracing and leaves. */
struct record_gdb {
    pid_t pid; /* 0: not running */
    char script[300], log[300];
};

/* SOCKET: where we listen. FOLDER: for its files. */
int record_gdb_start(struct record_gdb *g, const struct record_wish *w,
                     const char *folder, const char *socket,
                     struct rhea_error *err);
/* Why it has failed, as it says itself. */
int record_gdb_explain(const struct record_gdb *g, const struct record_wish *w,
                       struct rhea_error *err);
/* End it, if need be, and remove its files. */
void record_gdb_finish(struct record_gdb *g);

#endif
