/* SPDX-License-Identifier: MIT */
/*
 * Data tracepoints, an extension: gdb's tracepoints are at places in code, and
 * its remote protocol has none for data. So a tracepoint is made with gdb,
 * wherever, with its actions, and the monitor is told to have it hit by
 * accesses to memory instead:
 *
 *     monitor rhea watch NUMBER ADDRESS LENGTH [w|r|rw]
 *     monitor rhea unwatch NUMBER
 *     monitor rhea watch
 *
 * It is the number that counts: gdb defines its tracepoints anew at each
 * `tstart`.
 */
#include <errno.h>
#include <inttypes.h>

#include "gdb/session.h"

static struct session_watch *find_watch(struct session *s, unsigned number)
{
    for (unsigned i = 0; i < s->n_watches; i++)
        if (s->watches[i].number == number)
            return &s->watches[i];
    return NULL;
}

/* --- the monitor --------------------------------------------------------- */

/* A number as C writes it, and what stands behind it and its spaces. */
static bool take_number(const char **at, uint64_t *n)
{
    char *end;

    errno = 0;
    *n = strtoull(*at, &end, 0);
    if (end == *at || errno || **at == '-' || (*end && *end != ' '))
        return false;
    *at = end + strspn(end, " ");
    return true;
}

static bool take_kind(const char *at, unsigned *kind)
{
    *kind = !*at || !strcmp(at, "w") ? BREAK_WRITE
            : !strcmp(at, "r")       ? BREAK_READ
                                     : BREAK_ACCESS;
    return *kind != BREAK_ACCESS || !strcmp(at, "rw");
}

static int set_watch(struct session *s, const char *at, struct rhea_error *err)
{
    struct session_watch w = {0}, *old;
    uint64_t number;

    if (!take_number(&at, &number) || !number || number > INT32_MAX ||
        !take_number(&at, &w.watch.address) ||
        !take_number(&at, &w.watch.len) || !take_kind(at, &w.watch.kind))
        return rhea_error_set(err, EINVAL,
                              "say monitor rhea watch NUMBER ADDRESS LENGTH "
                              "[w|r|rw], NUMBER being a tracepoint's");
    if (!w.watch.len || w.watch.len > EXPERIMENT_MAX_WATCH)
        return rhea_error_set(err, EINVAL, "a watched range has 1 to %d bytes",
                              EXPERIMENT_MAX_WATCH);
    w.number = (unsigned)number;
    old = find_watch(s, w.number);
    if (!old && s->n_watches == SESSION_MAX_WATCHES)
        return rhea_error_set(err, ENOSPC, "no more than %d ranges are watched",
                              SESSION_MAX_WATCHES);
    if (old)
        *old = w;
    else
        s->watches[s->n_watches++] = w;
    return 0;
}

static int remove_watch(struct session *s, const char *at,
                        struct rhea_error *err)
{
    struct session_watch *w;
    uint64_t number;

    if (!take_number(&at, &number) || *at)
        return rhea_error_set(err, EINVAL, "say monitor rhea unwatch NUMBER");
    w = find_watch(s, (unsigned)number);
    if (!w)
        return rhea_error_set(err, ENOENT,
                              "tracepoint %" PRIu64 " watches nothing", number);
    *w = s->watches[--s->n_watches];
    return 0;
}

static void list(const struct session *s, FILE *out)
{
    static const char *const names[] = {[BREAK_WRITE] = "writes",
                                        [BREAK_READ] = "reads",
                                        [BREAK_ACCESS] = "reads and writes"};

    for (unsigned i = 0; i < s->n_watches; i++) {
        const struct session_watch *w = &s->watches[i];

        fprintf(
            out, "tracepoint %u: %s of %" PRIu64 " bytes at 0x%" PRIx64 "\n",
            w->number, names[w->watch.kind], w->watch.len, w->watch.address);
    }
    if (!s->n_watches)
        fputs("nothing is watched\n", out);
}

void session_watch(struct session *s, const char *command, FILE *out)
{
    struct rhea_error err = {0};
    int ret = 0;

    if (!strcmp(command, "watch"))
        ret = 0;
    else if (tracer_is_running(&s->tracer))
        ret = rhea_error_set(&err, EBUSY, "tracing is running: tstop first");
    else if (!strncmp(command, "watch ", 6))
        ret = set_watch(s, command + 6, &err);
    else if (!strncmp(command, "unwatch ", 8))
        ret = remove_watch(s, command + 8, &err);
    else
        ret = rhea_error_set(&err, EINVAL,
                             "monitor rhea knows watch and unwatch, and tells "
                             "how things stand without either");
    if (ret < 0)
        fprintf(out, "%s\n", err.text);
    else
        list(s, out);
}

/* --- the experiment ------------------------------------------------------ */

int session_apply_watches(struct session *s, struct rhea_error *err)
{
    const struct experiment *e = s->tracer.experiment;

    for (size_t i = 0; i < e->n_points; i++) {
        struct tracepoint *t = e->points[i];
        const struct session_watch *w = find_watch(s, t->number);

        t->watch = w ? w->watch : (struct watch){0};
        for (size_t j = 0; w && j < i; j++)
            if (e->points[j]->number == t->number)
                return rhea_error_set(err, EINVAL,
                                      "tracepoint %u watches memory, and so "
                                      "must be at one place only",
                                      t->number);
    }
    return 0;
}
