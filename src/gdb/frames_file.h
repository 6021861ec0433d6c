/* SPDX-License-Identifier: MIT */
/* What the parts of frames share: a process's mapping of a file. */
#ifndef RHEA_GDB_FRAMES_FILE_H
#define RHEA_GDB_FRAMES_FILE_H

#include "gdb/frames.h"

struct frames {
    char *path;
    int fd;
    bool owner;         /* made it */
    bool private;       /* frames_open: CONTROL is a copy, nothing is shared */
    size_t n_published; /* owner: tracepoints whose counters are set */

    struct frames_control *control;
    struct frames_point *points;
    struct frames_variable *variables;
    uint8_t *fixed; /* the mapping of all before the ring */
    size_t fixed_bytes;

    /* The ring as it is mapped here, see map_ring. */
    uint64_t ring_generation;
    struct frames_entry *entries;
    uint64_t n_entries;
    uint8_t *data; /* twice in a row */
    uint64_t data_bytes;
    /* See frames.c: of the frames' numbers, and of their places. */
    uint64_t lap_first, lap_next, lap_data;
    /* Up to where pages are at hand, see frames_go_ahead; bytes since the start
     * of tracing. */
    uint64_t data_ahead, entries_ahead;
};

void frames_lock(struct frames *f);
void frames_unlock(struct frames *f);
/* The ring as the control page describes it now; under the lock. */
int frames_map_ring(struct frames *f, struct rhea_error *err);
/* The checksum of frame N. PAYLOAD_CHECK: CRC-32C of its payload. */
uint32_t frames_check(uint64_t run, uint64_t n, const struct frames_entry *e,
                      const struct frames_head *h, uint32_t payload_check);
/* Frame N, absolute, with its bounds checked. */
bool frames_look(const struct frames *f, uint64_t n,
                 struct frames_frame *frame);

#endif
