/* SPDX-License-Identifier: MIT */
/*
 * Crashes of conversion in place. Records the conversion of one image on a
 * storage in memory, builds what a crash may leave (storage/crash.h says under
 * which model), and judges each such state
 *
 *   - by QEMU's own tools: it opens as one format or the other, a check finds
 *     no corruption, the guest bytes are the same (judge.h);
 *   - by a second run, to the end: the image is then finished, nothing leaks,
 *     the guest bytes are the same, and a third run finds nothing to do.
 *
 * Of some states the second run is recorded too, and crashed in its turn.
 *
 * With -m the log is changed into that of a faulty converter, and the
 * program succeeds only if some state is caught.
 *
 * usage: crash-inplace [-o OPTION=VALUE]... [-s STATE] [-m MUTATION] IMAGE
 *            SOURCE TARGET GUEST GUEST-FORMAT QEMU-OPENS(0|1) SEED STATES
 * SECOND
 *
 * At most STATES states of the first run are judged, and of SECOND of them the
 * second run is crashed, each in a few ways. -s judges only that state, as
 * messages name it, and prints the log. The last line says what was done, in
 * JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rhea/inplace.h>

#include "base/checked.h"
#include "storage/crash.h"
#include "storage/memory.h"
#include "storage/random.h"
#include "subject.h"

/* Of a second run's crash states, how many are looked at. */
#define SECOND_STATES 8

struct crasher {
    struct subject subject;
    uint64_t seed;
    unsigned second_runs, second_states;
    const char *mutation;
};

/* --- the first run ---------------------------------------------------------
 */

/* What the plan promised of the way there. */
static void crasher_check_costs(struct crasher *c, const struct record_log *log,
                                const struct rhea_inplace_plan *plan,
                                uint64_t final)
{
    uint64_t size = plan->file_size, peak = size, written = 0;
    char why[256];
    for (size_t i = 0; i < log->n_ops; i++) {
        const struct record_op *op = &log->ops[i];
        if (op->kind == RECORD_TRUNCATE)
            size = op->offset;
        else if (op->kind != RECORD_FLUSH)
            size = RHEA_MAX(size, op->offset + op->length);
        peak = RHEA_MAX(peak, size);
        /* Zeroes are holes, where there are any. */
        if (op->kind == RECORD_WRITE)
            written += op->length;
    }
    if (peak > plan->file_size + plan->extra) {
        snprintf(why, sizeof(why),
                 "the file grew by %" PRIu64 ", the plan said %" PRIu64,
                 peak - plan->file_size, plan->extra);
        subject_fail(&c->subject, "peak", why);
    }
    if (written > plan->written) {
        snprintf(why, sizeof(why),
                 "%" PRIu64 " bytes were written, the plan said %" PRIu64,
                 written, plan->written);
        subject_fail(&c->subject, "written", why);
    }
    if (final > plan->final_file_size) {
        snprintf(why, sizeof(why),
                 "the file has %" PRIu64 " bytes, the plan said %" PRIu64,
                 final, plan->final_file_size);
        subject_fail(&c->subject, "final size", why);
    }
}

/* Index of the commit: the write that makes the first sector the target's. */
static size_t crasher_find_commit(const struct record_log *log)
{
    for (size_t i = 0; i < log->n_ops; i++) {
        if (log->ops[i].kind == RECORD_WRITE && log->ops[i].offset == 0)
            return i;
    }
    return log->n_ops;
}

/* Before the commit, nothing may change that snapshots or bitmaps refer to,
 * which may be anything but the header. */
static void crasher_check_losses(struct crasher *c,
                                 const struct record_log *log,
                                 const struct rhea_inplace_plan *plan)
{
    if (!plan->snapshots && !plan->bitmaps)
        return;
    for (size_t i = 0; i < crasher_find_commit(log); i++) {
        const struct record_op *op = &log->ops[i];
        char name[100];
        if ((op->kind != RECORD_WRITE && op->kind != RECORD_ZERO) ||
            op->offset >= plan->file_size)
            continue;
        record_describe(log, i, name, sizeof(name));
        subject_fail(&c->subject, name, "writes into what is to be lost");
    }
}

static void crasher_record(struct crasher *c, struct record_log *log)
{
    struct rhea_storage *storage, *recorder;
    struct rhea_inplace_plan plan;
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;
    uint64_t size;

    if (memory_clone(&storage, c->subject.initial, &err) ||
        record_open(&recorder, storage, log, &err) ||
        subject_convert(&c->subject, recorder, &plan, &outcome, &err) ||
        rhea_storage_size(recorder, &size, &err))
        subject_die("the conversion failed", &err);
    crasher_check_costs(c, log, &plan, size);
    crasher_check_losses(c, log, &plan);
    rhea_storage_close(recorder);
}

/* --- a state ---------------------------------------------------------------
 */

static bool crasher_judge_state(struct crasher *c, const char *name,
                                struct rhea_storage *state,
                                struct record_log *log, bool *fresh)
{
    struct subject *s = &c->subject;
    if (!subject_judge(s, name, state, fresh))
        return false;
    /* A faulty converter's log says nothing about the converter we have. */
    return !*fresh || c->mutation || subject_complete(s, name, state, log);
}

/* --- crashes in the second run ----------------------------------------------
 */

static void crasher_second(struct crasher *c, const char *first,
                           struct rhea_storage *initial,
                           const struct record_log *log)
{
    const struct crash_limits limits = {
        .seed = random_next(&c->seed), .subsets = 3, .torn = 1, .orders = 2};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    struct rhea_error err;
    if (crash_init(&crash, initial, log, &err) ||
        crash_plan(log, &limits, &plan, &err))
        subject_die("cannot plan", &err);
    crash_plan_sample(&plan, SECOND_STATES, random_next(&c->seed));
    c->second_runs++;

    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        char name[256], text[100];
        bool fresh;
        crash_describe(&plan.states[i], text, sizeof(text));
        snprintf(name, sizeof(name), "%s, second run %s", first, text);
        if (crash_build(&crash, &plan.states[i], &state, &err))
            subject_die("cannot build", &err);
        crasher_judge_state(c, name, state, NULL, &fresh);
        c->second_states += fresh;
        rhea_storage_close(state);
    }
    crash_plan_finish(&plan);
    crash_finish(&crash);
}

/* --- all of it --------------------------------------------------------------
 */

static void crasher_one(struct crasher *c, struct crash *crash,
                        const struct crash_state *which, bool second)
{
    struct record_log log = {0};
    struct rhea_storage *state;
    struct rhea_error err;
    char name[100];
    bool fresh;

    crash_describe(which, name, sizeof(name));
    if (crash_build(crash, which, &state, &err))
        subject_die("cannot build", &err);
    bool good =
        crasher_judge_state(c, name, state, second ? &log : NULL, &fresh);
    if (good && fresh && second && log.n_ops)
        crasher_second(c, name, state, &log);
    record_log_finish(&log);
    rhea_storage_close(state);
}

/* The number of flushes before op AT. */
static size_t crasher_flushes_before(const struct record_log *log, size_t at)
{
    size_t n = 0;
    for (size_t i = 0; i < at; i++)
        n += log->ops[i].kind == RECORD_FLUSH;
    return n;
}

/* A converter that does not tidy up would end here. */
static void crasher_untidied(struct crasher *c, struct crash *crash,
                             const struct record_log *log)
{
    size_t commit = crasher_find_commit(log);
    const struct crash_state after = {
        .kind = CRASH_PREFIX, .from = commit, .to = commit + 1};
    struct rhea_storage *state;
    struct rhea_error err;
    if (crash_build(crash, &after, &state, &err))
        subject_die("cannot build", &err);
    if (!judge_state(&c->subject.judge, state))
        printf("it should only leak: %s\n", c->subject.judge.why);
    else if (!judge_finished(&c->subject.judge, state, c->subject.target))
        c->subject.failures++;
    rhea_storage_close(state);
}

/* A converter with this fault would have written this log. */
static void crasher_mutate(const char *mutation, struct record_log *log)
{
    size_t commit = crasher_find_commit(log);
    size_t before = crasher_flushes_before(log, commit);
    bool done = false;
    unsigned n;
    if (!strcmp(mutation, "no-flush-before-commit"))
        done = record_log_remove_flush(log, before - 1);
    else if (!strcmp(mutation, "no-flush-after-commit"))
        done = record_log_remove_flush(log, before);
    else if (!strcmp(mutation, "no-flush-after-copy"))
        done = record_log_remove_flush(log, before + 1);
    else if (!strcmp(mutation, "no-flush-after-switch"))
        done = record_log_remove_flush(log, before + 2);
    else if (sscanf(mutation, "no-flush-%u", &n) == 1)
        done = record_log_remove_flush(log, n);
    else if (!strcmp(mutation, "swap-commit"))
        done = record_log_swap_across_flush(log, before - 1);
    else if (!strcmp(mutation, "swap-switch"))
        done = record_log_swap_across_flush(log, before + 1);
    else if (sscanf(mutation, "swap-%u", &n) == 1)
        done = record_log_swap_across_flush(log, n);
    if (!done) {
        printf("the log has no place for '%s'\n", mutation);
        exit(3);
    }
}

/* Rounds of ever more random states, until there are enough different ones. */
#define ROUNDS 8

static void crasher_round(struct crasher *c, struct crash *crash,
                          unsigned round, size_t n_states, size_t n_second)
{
    struct crash_limits limits = {.seed = c->seed + round,
                                  .subsets = 6u << round,
                                  .torn = 2u << round,
                                  .orders = 3u << round};
    struct crash_plan plan = {0};
    struct rhea_error err;
    if (crash_plan(crash->log, &limits, &plan, &err))
        subject_die("cannot plan", &err);
    crash_plan_sample(&plan, n_states, c->seed + round);
    for (size_t i = 0; i < plan.n_states && c->subject.states.n < n_states;
         i++) {
        if (c->mutation && c->subject.failures)
            break;
        crasher_one(c, crash, &plan.states[i],
                    random_below(&c->seed, n_states) < n_second);
    }
    crash_plan_finish(&plan);
}

static void crasher_run(struct crasher *c, size_t n_states, size_t n_second,
                        const char *only)
{
    struct record_log log = {0};
    struct crash crash = {0};
    struct rhea_error err;
    struct crash_state one;

    crasher_record(c, &log);
    bool untidied = c->mutation && !strcmp(c->mutation, "untidied");
    if (c->mutation && !untidied)
        crasher_mutate(c->mutation, &log);
    for (size_t i = 0; only && i < log.n_ops; i++) {
        char text[128];
        record_describe(&log, i, text, sizeof(text));
        puts(text);
    }
    if (crash_init(&crash, c->subject.initial, &log, &err))
        subject_die("out of memory", &err);
    if (only && crash_parse(only, &one))
        crasher_one(c, &crash, &one, false);
    else if (untidied)
        crasher_untidied(c, &crash, &log);
    for (unsigned i = 0;
         !only && !untidied && i < ROUNDS && c->subject.states.n < n_states;
         i++)
        crasher_round(c, &crash, i, n_states, n_second);
    printf("{\"ops\": %zu, \"flushes\": %zu, \"states\": %zu, "
           "\"second-runs\": %u, \"second-states\": %u, \"finished\": %zu, "
           "\"failures\": %u}\n",
           log.n_ops, record_log_flushes(&log), c->subject.states.n,
           c->second_runs, c->second_states, c->subject.finished.n,
           c->subject.failures);
    crash_finish(&crash);
    record_log_finish(&log);
}

int main(int argc, char **argv)
{
    struct crasher c = {0};
    struct subject *s = &c.subject;
    const char *only = NULL;
    int letter;
    while ((letter = getopt(argc, argv, "o:s:m:")) != -1) {
        if (letter == 'o')
            subject_add_option(s, optarg);
        else if (letter == 's')
            only = optarg;
        else if (letter == 'm')
            c.mutation = optarg;
        else
            return 2;
    }
    argv += optind;
    if (argc - optind != SUBJECT_ARGS + 3)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);

    s->silent = c.mutation != NULL;
    if (!subject_init(s, argv))
        return 2;
    argv += SUBJECT_ARGS;
    c.seed = strtoull(argv[0], NULL, 10);
    crasher_run(&c, strtoul(argv[1], NULL, 10), strtoul(argv[2], NULL, 10),
                only);
    subject_finish(s);
    return c.mutation ? !s->failures : s->failures != 0;
}
