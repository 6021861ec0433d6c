/* SPDX-License-Identifier: MIT */
/*
 * What a storage may hold after a crash, built from what it held at first and
 * the log of what was done to it (record.h).
 *
 * The model: a flush that completed makes all before it durable. Of the ops
 * after it any subset survives, applied in any order. A surviving write or
 * zero may be torn: any subset of its 512-byte sectors survives, and the
 * growth of the storage that it caused survives or not on its own. A truncate
 * or allocate survives whole or not at all. Where nothing survives, the old
 * bytes stand, or zeroes where there were none.
 *
 *     memory_snapshot(&before, storage, &err);
 *     record_open(&recorder, storage, &log, &err);
 *     ... work on recorder ...
 *     crash_init(&crash, before, &log, &err);
 *     crash_plan(&log, &limits, &plan, &err);
 *     for (size_t i = 0; i < plan.n_states; i++) {
 *         crash_build(&crash, &plan.states[i], &state, &err);
 *         memory_dump(state, path, &err);
 *         ... judge path ...
 *         rhea_storage_close(state);
 *     }
 *
 * A state is a small description from which always the same storage is built;
 * it can be printed and read back, to build a single one again. Building is
 * cheapest in the plan's order.
 */
#ifndef RHEA_STORAGE_CRASH_H
#define RHEA_STORAGE_CRASH_H

#include <rhea/storage.h>

#include "storage/record.h"

enum crash_kind {
    CRASH_PREFIX, /* all survive */
    CRASH_DROP,   /* all but OP survive */
    CRASH_ALONE,  /* only OP survives */
    CRASH_LATE,   /* all survive, but OP comes last */
    CRASH_SUBSET, /* a random subset survives */
    CRASH_TORN,   /* OP is torn, and others perhaps lost or torn */
    CRASH_ORDER,  /* most survive, in random order, some torn */
};

struct crash_state {
    enum crash_kind kind;
    size_t from, to; /* ops before FROM are durable, of [FROM, TO) some may
                        survive, what follows had not been done */
    size_t op;
    uint64_t seed;
};

/* How many states of the random kinds to plan; 0: none of them. */
struct crash_limits {
    uint64_t seed;
    unsigned subsets; /* for each interval between flushes */
    unsigned torn;    /* for each op that can be torn */
    unsigned orders;  /* for each interval in which order matters */
};

struct crash_plan {
    struct crash_state *states;
    size_t n_states, states_size;
};

/* Which states to look at: every prefix, in each interval each op dropped,
 * each op alone, each that overlaps a later one coming last, and random ones.
 * No two descriptions are equal, but some states may be; see memory_digest. */
int crash_plan(const struct record_log *log, const struct crash_limits *limits,
               struct crash_plan *plan, struct rhea_error *err);
/* Keep at most N states, chosen at random by SEED, in their order. */
void crash_plan_sample(struct crash_plan *plan, size_t n, uint64_t seed);
void crash_plan_finish(struct crash_plan *plan);

/* "torn:10-20:13:77", read back by crash_parse. */
void crash_describe(const struct crash_state *state, char *text, size_t size);
bool crash_parse(const char *text, struct crash_state *state);

/* Life: crash_init, crash_build any number of times, crash_finish (safe on a
 * zeroed struct). Not for many threads at once. */
struct crash {
    const struct record_log *log;
    struct rhea_storage *initial;
    /* INITIAL with the first AT ops applied: for an interval's beginning, and
     * for the last prefix. */
    struct crash_base {
        struct rhea_storage *storage;
        size_t at;
    } durable, prefix;
};

/* INITIAL is copied and stays the caller's; LOG must outlive CRASH and not
 * change. */
int crash_init(struct crash *crash, struct rhea_storage *initial,
               const struct record_log *log, struct rhea_error *err);
void crash_finish(struct crash *crash);

/* The storage as STATE leaves it: a new memory storage, the caller's. */
int crash_build(struct crash *crash, const struct crash_state *state,
                struct rhea_storage **out, struct rhea_error *err);

#endif
