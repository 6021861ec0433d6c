/* SPDX-License-Identifier: MIT */
/* Which crash states to look at, and what they are called. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "storage/crash.h"
#include "storage/random.h"

#define SECTOR 512

struct plan_context {
    const struct record_log *log;
    const struct crash_limits *limits;
    struct crash_plan *plan;
    uint64_t seed;
};

static bool plan_add(struct plan_context *c, struct crash_state state)
{
    struct crash_plan *plan = c->plan;
    if (plan->n_states == plan->states_size) {
        size_t size = plan->states_size ? plan->states_size * 2 : 256;
        struct crash_state *states =
            reallocarray(plan->states, size, sizeof(*states));
        if (!states)
            return false;
        plan->states = states;
        plan->states_size = size;
    }
    plan->states[plan->n_states++] = state;
    return true;
}

/* Whether it makes a difference which of two ops is applied last. */
static bool plan_overlap(const struct record_op *a, const struct record_op *b)
{
    /* An allocate only sets a least size. */
    if ((a->kind == RECORD_ALLOCATE && b->kind != RECORD_TRUNCATE) ||
        (b->kind == RECORD_ALLOCATE && a->kind != RECORD_TRUNCATE))
        return false;
    uint64_t a_end =
        a->kind == RECORD_TRUNCATE ? UINT64_MAX : a->offset + a->length;
    uint64_t b_end =
        b->kind == RECORD_TRUNCATE ? UINT64_MAX : b->offset + b->length;
    return a->offset < b_end && b->offset < a_end;
}

/* Whether an op of [i + 1, to) overlaps op I. */
static bool plan_overlaps_later(const struct record_log *log, size_t i,
                                size_t to)
{
    for (size_t j = i + 1; j < to; j++) {
        if (plan_overlap(&log->ops[i], &log->ops[j]))
            return true;
    }
    return false;
}

/* States of which there is one for each op. What equals a prefix is left out:
 * the last op dropped, the first op alone. */
static bool plan_single_ops(struct plan_context *c, size_t from, size_t to,
                            bool *ordered)
{
    *ordered = false;
    for (size_t i = from; i < to; i++) {
        struct crash_state state = {.from = from, .to = to, .op = i};
        state.kind = CRASH_DROP;
        if (i + 1 < to && !plan_add(c, state))
            return false;
        state.kind = CRASH_ALONE;
        if (i > from && !plan_add(c, state))
            return false;
        state.kind = CRASH_LATE;
        if (!plan_overlaps_later(c->log, i, to))
            continue;
        *ordered = true;
        if (!plan_add(c, state))
            return false;
    }
    return true;
}

static bool plan_random(struct plan_context *c, enum crash_kind kind,
                        size_t from, size_t to, size_t op, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        /* Short enough to be typed. */
        struct crash_state state = {.kind = kind,
                                    .from = from,
                                    .to = to,
                                    .op = op,
                                    .seed = random_next(&c->seed) >> 32};
        if (!plan_add(c, state))
            return false;
    }
    return true;
}

/* The size after an op. */
static uint64_t plan_size_after(const struct record_op *op, uint64_t size)
{
    if (op->kind == RECORD_FLUSH)
        return size;
    if (op->kind == RECORD_TRUNCATE)
        return op->offset;
    return RHEA_MAX(size, op->offset + op->length);
}

static bool plan_torn(struct plan_context *c, size_t from, size_t to,
                      uint64_t *size)
{
    for (size_t i = from; i < to; i++) {
        const struct record_op *op = &c->log->ops[i];
        uint64_t before = *size, end = op->offset + op->length;
        *size = plan_size_after(op, before);
        if (op->kind != RECORD_WRITE && op->kind != RECORD_ZERO)
            continue;
        bool one = op->offset / SECTOR == (end - 1) / SECTOR;
        /* Of a single sector only the growth can survive apart. */
        if (one && end <= before)
            continue;
        if (!plan_random(c, CRASH_TORN, from, to, i, c->limits->torn))
            return false;
    }
    return true;
}

/* All states of the interval of ops [from, to), which no flush divides. */
static bool plan_interval(struct plan_context *c, size_t from, size_t to,
                          uint64_t *size)
{
    for (size_t i = from + 1; i <= to; i++) {
        struct crash_state state = {
            .kind = CRASH_PREFIX, .from = from, .to = i};
        if (!plan_add(c, state))
            return false;
    }
    bool ordered;
    if (!plan_single_ops(c, from, to, &ordered))
        return false;
    if (to - from > 2 &&
        !plan_random(c, CRASH_SUBSET, from, to, 0, c->limits->subsets))
        return false;
    if (!plan_torn(c, from, to, size))
        return false;
    return !ordered ||
           plan_random(c, CRASH_ORDER, from, to, 0, c->limits->orders);
}

int crash_plan(const struct record_log *log, const struct crash_limits *limits,
               struct crash_plan *plan, struct rhea_error *err)
{
    *plan = (struct crash_plan){0};
    struct plan_context c = {log, limits, plan, limits->seed};
    bool ok = plan_add(&c, (struct crash_state){.kind = CRASH_PREFIX});
    /* What the size was at first is not known here. Taken as 0, it makes at
     * most a few more writes seem to grow it. */
    uint64_t size = 0;
    for (size_t from = 0; ok && from < log->n_ops;) {
        size_t to = from;
        while (to < log->n_ops && log->ops[to].kind != RECORD_FLUSH)
            to++;
        ok = plan_interval(&c, from, to, &size);
        from = to + 1;
    }
    if (!ok) {
        crash_plan_finish(plan);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

void crash_plan_sample(struct crash_plan *plan, size_t n, uint64_t seed)
{
    size_t kept = 0;
    for (size_t i = 0; i < plan->n_states && kept < n; i++) {
        /* As many of those to come as are still wanted. */
        if (random_below(&seed, plan->n_states - i) < n - kept)
            plan->states[kept++] = plan->states[i];
    }
    plan->n_states = RHEA_MIN(plan->n_states, kept);
}

void crash_plan_finish(struct crash_plan *plan)
{
    free(plan->states);
    *plan = (struct crash_plan){0};
}

static const char *const crash_names[] = {
    [CRASH_PREFIX] = "prefix", [CRASH_DROP] = "drop",
    [CRASH_ALONE] = "alone",   [CRASH_LATE] = "late",
    [CRASH_SUBSET] = "subset", [CRASH_TORN] = "torn",
    [CRASH_ORDER] = "order",
};

void crash_describe(const struct crash_state *state, char *text, size_t size)
{
    snprintf(text, size, "%s:%zu-%zu:%zu:%" PRIu64, crash_names[state->kind],
             state->from, state->to, state->op, state->seed);
}

bool crash_parse(const char *text, struct crash_state *state)
{
    char name[16];
    int end = 0;
    *state = (struct crash_state){0};
    if (sscanf(text, "%15[a-z]:%zu-%zu:%zu:%" SCNu64 "%n", name, &state->from,
               &state->to, &state->op, &state->seed, &end) != 5 ||
        text[end])
        return false;
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(crash_names); i++) {
        if (!strcmp(name, crash_names[i])) {
            state->kind = (enum crash_kind)i;
            return true;
        }
    }
    return false;
}
