/* SPDX-License-Identifier: MIT */
#include "storage/crash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/memory.h"
#include "storage/random.h"

#define SECTOR 512
/* Pieces into which a range is torn at random; longer ones are torn into
 * pieces of several sectors. */
#define PIECES_MAX 4096

static int crash_apply(struct rhea_storage *s, const struct record_op *op,
                       struct rhea_error *err)
{
    switch (op->kind) {
    case RECORD_WRITE:
        return rhea_storage_write(s, op->data, (size_t)op->length, op->offset,
                                  err);
    case RECORD_ZERO:
        return rhea_storage_zero(s, op->offset, op->length, false, err);
    case RECORD_TRUNCATE:
        return rhea_storage_truncate(s, op->offset, err);
    case RECORD_ALLOCATE:
        return rhea_storage_allocate(s, op->offset, op->length, err);
    case RECORD_FLUSH:
        break;
    }
    return 0;
}

/* Apply the part [from, to) of a write or zero, as far as it has one. */
static int crash_apply_part(struct rhea_storage *s, const struct record_op *op,
                            uint64_t from, uint64_t to, struct rhea_error *err)
{
    from = RHEA_MAX(from, op->offset);
    to = RHEA_MIN(to, op->offset + op->length);
    if (from >= to)
        return 0;
    struct record_op part = *op;
    part.offset = from;
    part.length = to - from;
    if (part.data)
        part.data += from - op->offset;
    return crash_apply(s, &part, err);
}

/* Each piece survives or not, but not all, and not none. FIRST and END are
 * sectors, at least two. */
static int crash_scatter(struct rhea_storage *s, const struct record_op *op,
                         uint64_t first, uint64_t end, uint64_t *seed,
                         struct rhea_error *err)
{
    uint64_t unit = div_up(end - first, PIECES_MAX);
    uint64_t n = div_up(end - first, unit);
    uint64_t lost = random_below(seed, n);
    uint64_t kept = (lost + 1 + random_below(seed, n - 1)) % n;
    for (uint64_t i = 0; i < n; i++) {
        bool keep = random_next(seed) & 1;
        if (i != kept && (i == lost || !keep))
            continue;
        uint64_t from = first + i * unit;
        int ret = crash_apply_part(s, op, from * SECTOR,
                                   RHEA_MIN(from + unit, end) * SECTOR, err);
        if (ret)
            return ret;
    }
    return 0;
}

static bool crash_can_tear(const struct record_op *op)
{
    return op->kind == RECORD_WRITE || op->kind == RECORD_ZERO;
}

/* Apply some of the sectors of a write or zero, and its growth, or not. */
static int crash_tear(struct rhea_storage *s, const struct record_op *op,
                      uint64_t *seed, struct rhea_error *err)
{
    uint64_t end = op->offset + op->length, size;
    uint64_t first_sector = op->offset / SECTOR;
    uint64_t end_sector = div_up(end, SECTOR);
    uint64_t n = end_sector - first_sector;
    int ret = rhea_storage_size(s, &size, err);
    if (ret)
        return ret;

    bool grows = end > size && random_chance(seed, 2, 3);
    if (grows)
        ret = rhea_storage_truncate(s, end, err);
    /* Blocks that were never written read as zeroes after some crashes. */
    if (ret || (grows && random_chance(seed, 1, 4)) || n < 2)
        return ret;

    uint64_t cut = (first_sector + 1 + random_below(seed, n - 1)) * SECTOR;
    switch (random_below(seed, 4)) {
    case 0:
        return crash_apply_part(s, op, op->offset, cut, err);
    case 1:
        return crash_apply_part(s, op, cut, end, err);
    default:
        return crash_scatter(s, op, first_sector, end_sector, seed, err);
    }
}

/* Bring BASE to the state after the first AT ops. */
static int crash_advance(struct crash *crash, struct crash_base *base,
                         size_t at, struct rhea_error *err)
{
    if (!base->storage || base->at > at) {
        rhea_storage_close(base->storage);
        *base = (struct crash_base){0};
        int ret = memory_clone(&base->storage, crash->initial, err);
        if (ret)
            return ret;
    }
    for (; base->at < at; base->at++) {
        int ret = crash_apply(base->storage, &crash->log->ops[base->at], err);
        if (ret)
            return ret;
    }
    return 0;
}

/* An even or uneven coin for each op; at least one is lost. */
static int crash_subset(const struct crash *crash,
                        const struct crash_state *state, struct rhea_storage *s,
                        struct rhea_error *err)
{
    uint64_t seed = state->seed;
    unsigned chance = 1 + (unsigned)random_below(&seed, 7);
    size_t n = state->to - state->from;
    size_t lost = state->from + (size_t)random_below(&seed, n);
    size_t kept = state->from + (size_t)random_below(&seed, n);
    for (size_t i = state->from; i < state->to; i++) {
        bool keep = random_chance(&seed, chance, 8);
        if (i == lost || (i != kept && !keep))
            continue;
        int ret = crash_apply(s, &crash->log->ops[i], err);
        if (ret)
            return ret;
    }
    return 0;
}

static int crash_torn(const struct crash *crash,
                      const struct crash_state *state, struct rhea_storage *s,
                      struct rhea_error *err)
{
    enum { BEFORE_ONLY, SOME, SOME_TORN };
    uint64_t seed = state->seed;
    uint64_t others = random_below(&seed, 3);
    size_t end = others == BEFORE_ONLY ? state->op + 1 : state->to;
    for (size_t i = state->from; i < end; i++) {
        const struct record_op *op = &crash->log->ops[i];
        unsigned fate = (unsigned)random_below(&seed, 3);
        bool whole = others == BEFORE_ONLY || fate == 0;
        bool torn = others == SOME_TORN && fate == 1 && crash_can_tear(op);
        int ret = 0;
        if (i == state->op || (torn && !whole))
            ret = crash_tear(s, op, &seed, err);
        else if (whole)
            ret = crash_apply(s, op, err);
        if (ret)
            return ret;
    }
    return 0;
}

/* A random order of all; half of the time a few are lost or torn as well. */
static int crash_order(const struct crash *crash,
                       const struct crash_state *state, struct rhea_storage *s,
                       struct rhea_error *err)
{
    size_t n = state->to - state->from;
    uint64_t seed = state->seed;
    RHEA_AUTO_FREE size_t *order = calloc(n + 1, sizeof(*order));
    if (!order)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) {
        size_t j = (size_t)random_below(&seed, i + 1);
        order[i] = order[j];
        order[j] = state->from + i;
    }
    bool whole = random_chance(&seed, 1, 2);
    for (size_t i = 0; i < n; i++) {
        const struct record_op *op = &crash->log->ops[order[i]];
        unsigned fate = (unsigned)random_below(&seed, 8);
        int ret = 0;
        if (whole || fate > 1)
            ret = crash_apply(s, op, err);
        else if (fate == 1 && crash_can_tear(op))
            ret = crash_tear(s, op, &seed, err);
        if (ret)
            return ret;
    }
    return 0;
}

/* Apply [from, to) but for SKIP. */
static int crash_apply_range(const struct crash *crash, size_t from, size_t to,
                             size_t skip, struct rhea_storage *s,
                             struct rhea_error *err)
{
    for (size_t i = from; i < to; i++) {
        int ret = i == skip ? 0 : crash_apply(s, &crash->log->ops[i], err);
        if (ret)
            return ret;
    }
    return 0;
}

static int crash_survive(const struct crash *crash,
                         const struct crash_state *state,
                         struct rhea_storage *s, struct rhea_error *err)
{
    int ret;
    switch (state->kind) {
    case CRASH_PREFIX: /* the base already is */
        return 0;
    case CRASH_DROP:
        return crash_apply_range(crash, state->from, state->to, state->op, s,
                                 err);
    case CRASH_ALONE:
        return crash_apply(s, &crash->log->ops[state->op], err);
    case CRASH_LATE:
        ret =
            crash_apply_range(crash, state->from, state->to, state->op, s, err);
        return ret ? ret : crash_apply(s, &crash->log->ops[state->op], err);
    case CRASH_SUBSET:
        return crash_subset(crash, state, s, err);
    case CRASH_TORN:
        return crash_torn(crash, state, s, err);
    case CRASH_ORDER:
        return crash_order(crash, state, s, err);
    }
    return 0;
}

/* A state may have been read from text, for another log. */
static bool crash_state_fits(const struct crash *crash,
                             const struct crash_state *state)
{
    const struct record_log *log = crash->log;
    if (state->from > state->to || state->to > log->n_ops)
        return false;
    if (state->kind == CRASH_PREFIX || state->kind == CRASH_ORDER)
        return true;
    if (state->kind == CRASH_SUBSET)
        return state->from < state->to;
    return state->op >= state->from && state->op < state->to &&
           (state->kind != CRASH_TORN || crash_can_tear(&log->ops[state->op]));
}

int crash_build(struct crash *crash, const struct crash_state *state,
                struct rhea_storage **out, struct rhea_error *err)
{
    if (!crash_state_fits(crash, state))
        return rhea_error_set(err, EINVAL,
                              "this log of %zu ops has no such state",
                              crash->log->n_ops);
    bool whole = state->kind == CRASH_PREFIX;
    struct crash_base *base = whole ? &crash->prefix : &crash->durable;
    struct rhea_storage *s;
    int ret = crash_advance(crash, base, whole ? state->to : state->from, err);
    if (!ret)
        ret = memory_clone(&s, base->storage, err);
    if (ret)
        return ret;
    ret = crash_survive(crash, state, s, err);
    if (ret)
        rhea_storage_close(s);
    else
        *out = s;
    return ret;
}

int crash_init(struct crash *crash, struct rhea_storage *initial,
               const struct record_log *log, struct rhea_error *err)
{
    *crash = (struct crash){.log = log};
    return memory_snapshot(&crash->initial, initial, err);
}

void crash_finish(struct crash *crash)
{
    rhea_storage_close(crash->initial);
    rhea_storage_close(crash->durable.storage);
    rhea_storage_close(crash->prefix.storage);
    *crash = (struct crash){0};
}
