/* SPDX-License-Identifier: MIT */
/*
 * What a tracepoint's places, conditions and actions are called, as gdb 13
 * takes it back from a trace file: it gives a file up at a line of 1000
 * characters, and an action with `collect/s` too, which it has living targets
 * do only.
 *
 * A list that is too long becomes several actions. What cannot be parted is
 * left out; gdb has the compiled form and says so.
 */
#ifndef RHEA_GDB_SOURCE_H
#define RHEA_GDB_SOURCE_H

#include "gdb/experiment.h"

struct source_piece {
    const char *verb; /* stands in front of the text */
    const char *text;
    size_t len;
    /* private */
    const char *rest;
    size_t most;
    bool is_list;
};

/* Pieces of a source: one that is the whole, but IN_TRACE_FILE. */
struct source_piece source_begin(const struct source *s, bool in_trace_file);
bool source_next(struct source_piece *p);

#endif
