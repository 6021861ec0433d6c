/* SPDX-License-Identifier: MIT */
/*
 * Faults of the storage while an image is converted in place: an error from
 * each I/O in turn, once or from then on, done by half or not at all; a full
 * disk at every amount of room; a file that becomes shorter; reads that return
 * less than was asked for. Whatever happens
 *
 *   - the image is whole, of the format that the outcome says, with the same
 *     guest bytes (by QEMU's tools), and there is a message;
 *   - also after a crash right then, in which what was not flushed is lost;
 *   - the same conversion finishes once the fault is gone.
 *
 * usage: crash-faults [-o OPTION=VALUE]... IMAGE SOURCE TARGET GUEST
 *            GUEST-FORMAT QEMU-OPENS(0|1) SEED
 *
 * The last line says how many faults there were, in JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "storage/crash.h"
#include "storage/fault.h"
#include "storage/memory.h"
#include "subject.h"

/* States that a crash after the fault may leave, for each fault. */
#define CRASHES 3

struct faulter {
    struct subject subject;
    uint64_t seed;
    unsigned runs, failed, crashes;
    struct rhea_inplace_plan plan; /* of the run without a fault */
    uint64_t finished;             /* digest of what that made */
};

/* One run of the conversion. */
struct attempt {
    char name[128];
    struct record_log log;
    struct rhea_storage *bottom; /* what is there afterwards */
    struct rhea_storage *top;
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;
    uint64_t calls, hits;
    int ret;
};

static void faulter_run(struct faulter *f, struct attempt *a,
                        const struct fault_plan *plan)
{
    struct rhea_storage *recorder;
    struct rhea_error err;
    a->log = (struct record_log){0};
    a->err = (struct rhea_error){.text = ""};
    if (memory_clone(&a->bottom, f->subject.initial, &err) ||
        record_open(&recorder, a->bottom, &a->log, &err) ||
        fault_open(&a->top, recorder, plan, &err))
        subject_die("cannot begin", &err);
    a->ret = subject_convert(&f->subject, a->top, NULL, &a->outcome, &a->err);
    a->calls = fault_calls(a->top, plan->classes);
    a->hits = fault_hits(a->top);
    f->runs++;
    f->failed += a->ret != 0;
}

static void attempt_finish(struct attempt *a)
{
    record_log_finish(&a->log);
    rhea_storage_close(a->top);
}

static bool attempt_is(const struct attempt *a, const char *format)
{
    uint8_t head[4] = {0};
    struct rhea_error err;
    if (rhea_storage_read_padded(a->bottom, head, 4, 0, &err))
        return false;
    return !memcmp(head, !strcmp(format, "qed") ? "QED" : "QFI\xfb", 4);
}

/* Whether the outcome that was reported is the truth. */
static bool faulter_check_outcome(struct faulter *f, const struct attempt *a)
{
    struct subject *s = &f->subject;
    const char *source = s->judge.source;
    uint64_t digest = memory_digest(a->bottom);
    if (a->ret && !a->err.text[0])
        return subject_fail(s, a->name, "there is no message");
    switch (a->outcome) {
    case RHEA_INPLACE_UNTOUCHED:
        if (a->ret && digest == memory_digest(s->initial))
            return true;
        break;
    case RHEA_INPLACE_SOURCE:
        if (a->ret && attempt_is(a, source))
            return true;
        break;
    case RHEA_INPLACE_EITHER:
        if (a->ret)
            return true;
        break;
    case RHEA_INPLACE_TARGET:
        if (a->ret && attempt_is(a, s->target))
            return true;
        break;
    case RHEA_INPLACE_DONE:
        if (!a->ret && attempt_is(a, s->target))
            return true;
        break;
    }
    char why[sizeof(a->err.text) + 64];
    snprintf(why, sizeof(why), "returned %d with outcome %d: %s", a->ret,
             a->outcome, a->err.text);
    return subject_fail(s, a->name, why);
}

/* And then the power fails, too. */
static void faulter_crash(struct faulter *f, const struct attempt *a)
{
    const struct crash_limits limits = {
        .seed = f->seed++, .subsets = 4, .torn = 1, .orders = 2};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    struct rhea_error err;
    if (crash_init(&crash, f->subject.initial, &a->log, &err) ||
        crash_plan(&a->log, &limits, &plan, &err))
        subject_die("cannot plan", &err);
    /* Crashes at earlier points are those of a run without a fault. */
    size_t last = record_log_find_flush(&a->log, record_log_flushes(&a->log));
    size_t n = 0;
    for (size_t i = 0; i < plan.n_states; i++) {
        if (plan.states[i].to == last)
            plan.states[n++] = plan.states[i];
    }
    plan.n_states = n;
    crash_plan_sample(&plan, CRASHES, f->seed++);
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        char name[256], text[100];
        bool fresh;
        crash_describe(&plan.states[i], text, sizeof(text));
        snprintf(name, sizeof(name), "%s, then %s", a->name, text);
        if (crash_build(&crash, &plan.states[i], &state, &err))
            subject_die("cannot build", &err);
        if (subject_judge(&f->subject, name, state, &fresh) && fresh)
            subject_complete(&f->subject, name, state, NULL);
        f->crashes++;
        rhea_storage_close(state);
    }
    crash_plan_finish(&plan);
    crash_finish(&crash);
}

static void faulter_judge(struct faulter *f, const struct attempt *a)
{
    bool fresh;
    if (!faulter_check_outcome(f, a) ||
        !subject_judge(&f->subject, a->name, a->bottom, &fresh))
        return;
    if (fresh)
        subject_complete(&f->subject, a->name, a->bottom, NULL);
    if (a->log.n_ops)
        faulter_crash(f, a);
}

/* --- an error from each call in turn -------------------------------------- */

enum { any_change = FAULT_ANY & ~FAULT_READ };

static const struct {
    const char *name;
    unsigned classes;
} kinds[] = {
    {"read", FAULT_READ},       {"write", FAULT_WRITE},
    {"flush", FAULT_FLUSH},     {"truncate", FAULT_TRUNCATE},
    {"zero", FAULT_ZERO},       {"allocate", FAULT_ALLOCATE},
    {"any change", any_change},
};

static void faulter_error(struct faulter *f, size_t kind, uint64_t at, int code,
                          bool forever, bool half)
{
    const struct fault_plan plan = {.classes = kinds[kind].classes,
                                    .at = at,
                                    .code = code,
                                    .forever = forever,
                                    .half_done = half};
    struct attempt a;
    snprintf(a.name, sizeof(a.name), "%s at %s %" PRIu64 "%s%s",
             code == EIO ? "EIO" : "ENOSPC", kinds[kind].name, at,
             forever ? " and on" : "", half ? ", half done" : "");
    faulter_run(f, &a, &plan);
    if (!a.hits)
        subject_fail(&f->subject, a.name, "the fault did not happen");
    /* Of what is only a hint the converter may do without. */
    bool vital = kinds[kind].classes & (FAULT_READ | FAULT_WRITE | FAULT_FLUSH);
    /* Reading ahead is one, and what is then read in earnest is not. */
    bool noticed = a.ret != 0 || !vital || kinds[kind].classes == any_change ||
                   (kinds[kind].classes == FAULT_READ && !forever);
    if (!noticed)
        subject_fail(&f->subject, a.name, "the error was not noticed");
    if (!a.ret && memory_digest(a.bottom) != f->finished)
        subject_fail(&f->subject, a.name, "another image was made");
    faulter_judge(f, &a);
    attempt_finish(&a);
}

static void faulter_each_call(struct faulter *f, size_t kind)
{
    struct fault_plan none = {.classes = kinds[kind].classes};
    struct attempt a = {.name = "no fault"};
    faulter_run(f, &a, &none);
    uint64_t calls = a.calls;
    attempt_finish(&a);

    /* Of hundreds of reads, those at the beginning and every so many. */
    uint64_t step = 1 + calls / 100;
    for (uint64_t at = 1; at <= calls; at += at < 20 ? 1 : step) {
        faulter_error(f, kind, at, EIO, false, false);
        faulter_error(f, kind, at, EIO, true, false);
        if (kinds[kind].classes & (FAULT_WRITE | FAULT_ZERO))
            faulter_error(f, kind, at, EIO, false, true);
        if (kinds[kind].classes & (FAULT_WRITE | FAULT_ZERO | FAULT_ALLOCATE))
            faulter_error(f, kind, at, ENOSPC, true, false);
    }
}

/* --- a full disk ------------------------------------------------------------
 */

static void faulter_room(struct faulter *f, uint64_t budget)
{
    const struct fault_plan plan = {.limit_growth = true, .budget = budget};
    struct subject *s = &f->subject;
    struct attempt a;
    snprintf(a.name, sizeof(a.name), "room for %" PRIu64 " of %" PRIu64, budget,
             f->plan.extra);
    faulter_run(f, &a, &plan);
    if (budget >= f->plan.extra) {
        if (a.ret || a.hits)
            subject_fail(s, a.name, a.ret ? a.err.text : "it asked for more");
    } else if (a.ret != -ENOSPC && (a.ret || a.hits)) {
        subject_fail(s, a.name, a.ret ? a.err.text : "it did not notice");
    } else if (a.ret &&
               (a.outcome != RHEA_INPLACE_UNTOUCHED ||
                memory_digest(a.bottom) != memory_digest(s->initial))) {
        char why[sizeof(a.err.text) + 128];
        snprintf(why, sizeof(why),
                 "it did not leave the image as it was, with outcome %d: %s",
                 a.outcome, a.err.text);
        subject_fail(s, a.name, why);
    }
    faulter_judge(f, &a);
    attempt_finish(&a);
}

static void faulter_rooms(struct faulter *f)
{
    uint64_t extra = f->plan.extra;
    uint64_t step = RHEA_MAX(align_down(extra / 40, 512), 512);
    for (uint64_t budget = 0; budget < extra; budget += step)
        faulter_room(f, budget);
    if (extra)
        faulter_room(f, extra - 1);
    faulter_room(f, extra);
}

/* --- short files and short reads -------------------------------------------
 */

static void faulter_shrink(struct faulter *f, uint64_t at, uint64_t to)
{
    const struct fault_plan plan = {.shrink_at = at, .shrink_to = to};
    struct attempt a;
    snprintf(a.name, sizeof(a.name),
             "the file has %" PRIu64 " bytes from read %" PRIu64 " on", to, at);
    faulter_run(f, &a, &plan);
    /* What was in the rest is lost, by whoever cut it off; but nobody is told
     * that all is well. */
    if (a.ret && !a.err.text[0])
        subject_fail(&f->subject, a.name, "there is no message");
    if (!a.ret)
        faulter_judge(f, &a);
    attempt_finish(&a);
}

static void faulter_short(struct faulter *f, uint64_t reads)
{
    uint64_t size = f->plan.file_size;
    for (unsigned i = 0; i < 24; i++) {
        uint64_t at = 1 + f->seed * 7 % RHEA_MAX(reads, 1);
        uint64_t to = i % 2 ? size - size / (i + 2) : size / (i + 1);
        faulter_shrink(f, at, align_down(to, 512));
        f->seed++;
    }

    const struct fault_plan plan = {.short_reads = true};
    struct attempt a = {.name = "short reads"};
    faulter_run(f, &a, &plan);
    if (a.ret)
        subject_fail(&f->subject, a.name, a.err.text);
    else if (memory_digest(a.bottom) != f->finished)
        subject_fail(&f->subject, a.name, "another image was made");
    faulter_judge(f, &a);
    attempt_finish(&a);
}

/* --- all of it ---------------------------------------------------------------
 */

static uint64_t faulter_learn(struct faulter *f)
{
    const struct fault_plan none = {.classes = FAULT_READ};
    struct rhea_storage *storage;
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;
    if (memory_clone(&storage, f->subject.initial, &err) ||
        subject_convert(&f->subject, storage, &f->plan, &outcome, &err))
        subject_die("the conversion failed", &err);
    f->finished = memory_digest(storage);
    rhea_storage_close(storage);

    struct attempt a = {.name = "no fault"};
    faulter_run(f, &a, &none);
    uint64_t reads = a.calls;
    faulter_judge(f, &a);
    attempt_finish(&a);
    return reads;
}

int main(int argc, char **argv)
{
    struct faulter f = {0};
    int letter;
    while ((letter = getopt(argc, argv, "o:")) != -1) {
        if (letter != 'o')
            return 2;
        subject_add_option(&f.subject, optarg);
    }
    argv += optind;
    if (argc - optind != SUBJECT_ARGS + 1)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!subject_init(&f.subject, argv))
        return 2;
    f.seed = strtoull(argv[SUBJECT_ARGS], NULL, 10);

    uint64_t reads = faulter_learn(&f);
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++)
        faulter_each_call(&f, i);
    faulter_rooms(&f);
    faulter_short(&f, reads);
    printf("{\"runs\": %u, \"failed-runs\": %u, \"crashes\": %u, "
           "\"states\": %zu, \"finished\": %zu, \"failures\": %u}\n",
           f.runs, f.failed, f.crashes, f.subject.states.n,
           f.subject.finished.n, f.subject.failures);
    subject_finish(&f.subject);
    return f.subject.failures != 0;
}
