/* SPDX-License-Identifier: MIT */
/* All that a storage may hold after a crash while something was done to it:
 *
 *     recording_begin(&r, s);
 *     ... work on r.storage ...
 *     CHECK(crash_states(name, &r, &limits, 400, judge, opaque) > 100);
 *     recording_end(&r);
 */
#ifndef CRASH_STATES_H
#define CRASH_STATES_H

#include "lib/test.h"
#include "storage/crash.h"
#include "storage/memory.h"
#include "storage/record.h"

struct recording {
    struct rhea_storage *before, *storage;
    struct record_log log;
};

/* S belongs to the recording from now on. */
static inline void recording_begin(struct recording *r, struct rhea_storage *s)
{
    struct rhea_error e;
    *r = (struct recording){0};
    CHECK_OK(memory_snapshot(&r->before, s, &e), &e);
    CHECK_OK(record_open(&r->storage, s, &r->log, &e), &e);
}

/* From here on, as if nothing had been done to it before. */
static inline void recording_again(struct recording *r)
{
    struct rhea_error e;
    rhea_storage_close(r->before);
    record_log_finish(&r->log);
    r->log = (struct record_log){0};
    CHECK_OK(memory_snapshot(&r->before, r->storage, &e), &e);
}

static inline void recording_end(struct recording *r)
{
    rhea_storage_close(r->storage);
    rhea_storage_close(r->before);
    record_log_finish(&r->log);
}

/* Whether STATE, which S describes, is good; it may be changed. */
typedef bool crash_judge(const void *opaque, struct rhea_storage *state,
                         const struct crash_state *s);

/* Judge at most MOST of the states that LIMITS has of what was recorded, up to
 * the first that is not good; NAME tells which case it is. Returns how many
 * there are. */
static inline size_t crash_states(const char *name, const struct recording *r,
                                  const struct crash_limits *limits,
                                  size_t most, crash_judge *judge,
                                  const void *opaque)
{
    struct crash_plan plan = {0};
    struct crash crash = {0};
    struct rhea_error e;
    CHECK_OK(crash_plan(&r->log, limits, &plan, &e), &e);
    crash_plan_sample(&plan, most, limits->seed);
    CHECK_OK(crash_init(&crash, r->before, &r->log, &e), &e);
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        if (!CHECK_OK(crash_build(&crash, &plan.states[i], &state, &e), &e))
            break;
        bool good = judge(opaque, state, &plan.states[i]);
        rhea_storage_close(state);
        if (!good) {
            char text[100];
            crash_describe(&plan.states[i], text, sizeof(text));
            printf("# %s, seed %" PRIu64 ", state %s\n", name, limits->seed,
                   text);
            break;
        }
    }
    size_t n = plan.n_states;
    crash_plan_finish(&plan);
    crash_finish(&crash);
    return n;
}

#endif
