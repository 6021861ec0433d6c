/* SPDX-License-Identifier: MIT */
/*
 * What is traced at the moment, and the virtual processors' callbacks that do
 * it.
 *
 * A tracepoint is found by its place in a page: QEMU translates code once for
 * all the addresses at which a page of it is mapped, so a callback is put on
 * every instruction at such a place, and asks where it is when it is called.
 * Where a tracepoint steps, every instruction has one.
 *
 * What is traced changes only while no virtual processor runs, together with a
 * flush of all translated code. So callbacks need no lock, and what they are
 * given lives as long as the code that calls them.
 */
#ifndef RHEA_GDB_PLUGIN_TRACING_H
#define RHEA_GDB_PLUGIN_TRACING_H

#include "gdb/plugin/guest.h"

struct tracing;

/* The experiment that was published last. F is the caller's and has to live
 * longer. */
int tracing_load(struct tracing **t, struct frames *f, struct rhea_error *err);
void tracing_free(struct tracing *t);

/* Trace by T (NULL: nothing) from now on; the former one is returned, and no
 * callback has it any more. Not from a virtual processor's thread. */
int tracing_replace(struct tracing *t, struct tracing **old,
                    struct rhea_error *err);

/* QEMU's callbacks. */
void tracing_vcpu(unsigned index);
void tracing_block(struct qemu_block *block);
/* Why this QEMU cannot be traced; NULL: it can, once a processor is there. */
const char *tracing_fault(void);
void tracing_set_fault(const char *text);

#endif
