/* SPDX-License-Identifier: MIT */
/*
 * The sweep over the source, remembered as runs. It reads the same tables that
 * the walk over all references reads, and neither needs the other: where there
 * is much to read they go on at once.
 */
#include "inplace/survey.h"

#include <stdlib.h>

#define RUNS_MAX ((size_t)1 << 18) /* 8 MiB of memory */

/* Keep RUN for counting and staging. Doing without costs time, but is no
 * failure. */
static int survey_remember(void *opaque, const struct sweep_run *run,
                           struct rhea_error *err)
{
    struct plan *p = opaque;
    (void)err;
    if (p->n_runs == p->max_runs) {
        size_t max = p->max_runs ? p->max_runs * 2 : 1024;
        struct sweep_run *runs =
            max > RUNS_MAX ? NULL : realloc(p->runs, max * sizeof(*runs));
        if (!runs) {
            p->runs_complete = false;
            return 1; /* no use in going on */
        }
        p->runs = runs;
        p->max_runs = max;
    }
    p->runs[p->n_runs++] = *run;
    return 0;
}

static void survey_sweep(struct survey *s)
{
    struct plan *p = s->p;
    int ret = sweep(s->src, &p->layout, survey_remember, p, &s->err);

    s->ret = ret < 0 ? ret : 0;
}

static void *survey_run(void *opaque)
{
    survey_sweep(opaque);
    return NULL;
}

void survey_begin(struct survey *s, struct plan *p, struct source *src)
{
    uint64_t clusters = src->info.virtual_size / src->info.cluster_size;

    *s = (struct survey){.p = p, .src = src};
    s->apart = clusters >= SURVEY_APART_MIN &&
               pthread_create(&s->thread, NULL, survey_run, s) == 0;
}

int survey_end(struct survey *s, int ret, struct rhea_error *err)
{
    /* A damaged image could keep it busy for long. */
    if (s->apart && ret)
        atomic_store(&s->src->stop_sweep, true);
    if (s->apart)
        pthread_join(s->thread, NULL);
    else if (!ret)
        survey_sweep(s);
    if (ret || !s->ret)
        return ret;
    if (err)
        *err = s->err;
    return s->ret;
}

int plan_each_run(const struct plan *p, struct source *src, sweep_fn *fn,
                  void *opaque, struct rhea_error *err)
{
    if (!p->runs_complete)
        return sweep(src, &p->layout, fn, opaque, err);
    int ret = 0;
    for (size_t i = 0; !ret && i < p->n_runs; i++)
        ret = fn(opaque, &p->runs[i], err);
    return ret;
}
