/* SPDX-License-Identifier: MIT */
/* All that a storage may hold after a crash while something was done to it. */
#ifndef CRASH_STATES_H
#define CRASH_STATES_H

#include "lib/test.h"
#include "storage/crash.h"
#include "storage/memory.h"
#include "storage/record.h"

/* Whether STATE, which S describes, is good; it may be changed. */
typedef bool crash_judge(const void *opaque, struct rhea_storage *state,
                         const struct crash_state *s);

/* Judge at most MOST states of what LOG says was done to BEFORE; NAME tells
 * which case it is. Returns how many there are. */
static inline size_t crash_states(const char *name, struct rhea_storage *before,
                                  const struct record_log *log, size_t most,
                                  crash_judge *judge, const void *opaque)
{
    const struct crash_limits limits = {
        .seed = 1, .subsets = 8, .torn = 2, .orders = 4};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    struct rhea_error e;
    CHECK_OK(crash_plan(log, &limits, &plan, &e), &e);
    crash_plan_sample(&plan, most, 1);
    CHECK_OK(crash_init(&crash, before, log, &e), &e);
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        if (!CHECK_OK(crash_build(&crash, &plan.states[i], &state, &e), &e))
            break;
        bool good = judge(opaque, state, &plan.states[i]);
        rhea_storage_close(state);
        if (!good) {
            char text[100];
            crash_describe(&plan.states[i], text, sizeof(text));
            printf("# %s, state %s\n", name, text);
            break;
        }
    }
    size_t n = plan.n_states;
    crash_plan_finish(&plan);
    crash_finish(&crash);
    return n;
}

#endif
