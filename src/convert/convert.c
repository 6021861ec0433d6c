/* SPDX-License-Identifier: MIT */
/*
 * The pool. Workers take the next window in turn, look its mapping up and read
 * it side by side, and write it when every earlier one has been written: a
 * target that is written from start to end is laid out the same on every run
 * and needs no seeks. The thread that asked for the work reports progress.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <rhea/convert.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "convert/rate.h"
#include "convert/source.h"
#include "convert/step.h"
#include "convert/window.h"

enum {
    CONVERT_POLL_NS = 100000000, /* how often cancelling is noticed */
    CONVERT_NEWS = 128,          /* reports that may wait */
};

struct convert {
    struct convert_source source;
    struct rhea_image *target;
    struct rhea_convert_options options;
    struct rate rate;
    unsigned unit;
    bool in_order;

    pthread_mutex_t lock; /* for all that follows */
    pthread_cond_t turn;  /* a window was written, or the work ends */
    pthread_cond_t news;  /* a worker has ended */
    struct steps steps;
    uint64_t next; /* where the next step begins */
    uint64_t tickets, written;
    uint64_t done, total;           /* bytes, of the sources or their data */
    uint64_t reports[CONVERT_NEWS]; /* done after each step, not told yet */
    unsigned n_reports;
    unsigned running;
    int ret; /* the first failure */
    struct rhea_error err;
    struct rhea_convert_result result;
};

/* Take the next step. 0: there is none. Called with the lock held. */
static int convert_take(struct convert *c, struct step *step,
                        struct rhea_error *err)
{
    int ret;

    if (c->ret < 0 || c->next >= c->source.size)
        return 0;
    ret = steps_find(&c->steps, c->next, step, err);
    if (ret < 0)
        return ret;
    c->next += step->length;
    step->ticket = c->tickets++;
    return 1;
}

static bool convert_has_failed(void *opaque)
{
    struct convert *c = opaque;
    RHEA_LOCKED(&c->lock);

    return c->ret < 0;
}

static void convert_pace(void *opaque, uint64_t n)
{
    struct convert *c = opaque;

    rate_wait(&c->rate, n, convert_has_failed, c);
}

/* Wait until everything before STEP is written; false: give up. */
static bool convert_wait_turn(struct convert *c, const struct step *step)
{
    RHEA_LOCKED(&c->lock);

    while (c->in_order && c->written != step->ticket && c->ret == 0)
        pthread_cond_wait(&c->turn, &c->lock);
    return c->ret == 0;
}

static int convert_write_step(struct convert *c, struct window *w,
                              const struct step *step, struct rhea_error *err)
{
    int ret = 0;

    switch (step->kind) {
    case STEP_WINDOW:
        return window_write(w, err);
    case STEP_BACKING:
        w->result.backing += step->length;
        return 0;
    case STEP_CLONE:
        w->result.written += step->length;
        w->result.cloned += step->length;
        ret = rhea_image_clone(c->target, step->offset, step->storage,
                               step->host, step->length, err);
        break;
    case STEP_ZERO:
        w->result.zeroes += step->length;
        if (!c->options.target_is_zero)
            ret = rhea_image_write_zeroes(c->target, step->offset, step->length,
                                          true, err);
    }
    return convert_blame(ret, c->target, err);
}

static int convert_do_step(struct convert *c, struct window *w,
                           const struct step *step, struct rhea_error *err)
{
    int ret = 0;

    if (step->kind == STEP_WINDOW)
        ret = window_read(w, step->offset, step->length, err);
    if (ret == 0 && step->kind == STEP_WINDOW)
        ret = window_pack(w, err);
    if (ret < 0)
        return ret;
    /* Else another worker has failed, and said why. */
    return convert_wait_turn(c, step) ? convert_write_step(c, w, step, err) : 0;
}

static void convert_fail(struct convert *c, int ret,
                         const struct rhea_error *err)
{
    if (c->ret < 0)
        return;
    c->ret = ret;
    c->err = *err;
}

static void convert_add_result(struct convert *c, const struct window *w)
{
    c->result.written += w->result.written;
    c->result.cloned += w->result.cloned;
    c->result.zeroes += w->result.zeroes;
    c->result.backing += w->result.backing;
}

static void convert_count(struct convert *c, const struct window *w,
                          const struct step *step)
{
    uint64_t n = step->length;

    if (c->options.count_data)
        n = step->kind == STEP_WINDOW  ? w->n_data
            : step->kind == STEP_CLONE ? step->length
                                       : 0;
    c->done += n;
    if (n && c->n_reports < CONVERT_NEWS)
        c->reports[c->n_reports++] = c->done;
    else if (n)
        c->reports[CONVERT_NEWS - 1] = c->done;
}

/* All of a worker's life, with the lock held wherever it may be. */
static void convert_work(struct convert *c, struct window *w)
{
    struct rhea_error err;
    struct step step;
    int ret;

    for (;;) {
        ret = convert_take(c, &step, &err);
        if (ret <= 0)
            break;
        pthread_mutex_unlock(&c->lock);
        ret = convert_do_step(c, w, &step, &err);
        pthread_mutex_lock(&c->lock);
        if (ret < 0)
            break;
        c->written++;
        convert_count(c, w, &step);
        if (c->in_order)
            pthread_cond_broadcast(&c->turn);
    }
    if (ret < 0)
        convert_fail(c, ret, &err);
}

static void *convert_worker(void *opaque)
{
    struct convert *c = opaque;
    struct rhea_error err;
    struct window *w = malloc(sizeof(*w));
    int ret;

    if (w)
        ret = window_init(w, &c->source, c->target, c->unit, &c->options, &err);
    else
        ret = rhea_error_set(&err, ENOMEM, "out of memory");

    pthread_mutex_lock(&c->lock);
    if (!w || ret < 0) {
        convert_fail(c, ret, &err);
    } else {
        w->pace = c->options.rate ? convert_pace : NULL;
        w->pace_opaque = c;
        convert_work(c, w);
        convert_add_result(c, w);
        window_finish(w);
    }
    c->running--;
    pthread_cond_broadcast(&c->turn);
    pthread_cond_signal(&c->news);
    pthread_mutex_unlock(&c->lock);
    free(w);
    return NULL;
}

/* Tell of all steps since the last time, without the lock. */
static void convert_report(struct convert *c)
{
    uint64_t reports[CONVERT_NEWS + 1];
    unsigned n = c->n_reports, i;

    memcpy(reports, c->reports, n * sizeof(reports[0]));
    c->n_reports = 0;
    /* One at least, for who asks how far it is. */
    if (!n)
        reports[n++] = c->done;
    pthread_mutex_unlock(&c->lock);
    for (i = 0; i < n; i++)
        rhea_progress_report(c->options.progress, "copying", reports[i],
                             c->total);
    pthread_mutex_lock(&c->lock);
}

static void convert_wait(struct convert *c)
{
    struct timespec when;

    clock_gettime(CLOCK_REALTIME, &when);
    when.tv_nsec += CONVERT_POLL_NS;
    if (when.tv_nsec >= 1000000000) {
        when.tv_nsec -= 1000000000;
        when.tv_sec++;
    }
    pthread_cond_timedwait(&c->news, &c->lock, &when);
}

/* Report and watch for cancelling until all workers have ended. */
static void convert_watch(struct convert *c)
{
    pthread_mutex_lock(&c->lock);
    while (c->running) {
        convert_wait(c);
        convert_report(c);
        if (c->ret == 0 && rhea_progress_cancelled(c->options.progress)) {
            struct rhea_error err;

            convert_fail(c, rhea_error_set(&err, ECANCELED, "stopped"), &err);
            pthread_cond_broadcast(&c->turn);
        }
    }
    pthread_mutex_unlock(&c->lock);
}

/* How much there is to do, as progress counts it. */
static int convert_count_all(struct convert *c, struct rhea_error *err)
{
    struct convert_run run;
    uint64_t offset;
    int ret;

    c->total = c->source.size;
    if (!c->options.count_data)
        return 0;
    c->total = 0;
    for (offset = 0; offset < c->source.size; offset += run.length) {
        ret = convert_source_map(&c->source, offset, c->source.size - offset,
                                 &run, err);
        if (ret < 0 && c->options.salvaged) {
            c->options.count_data = false;
            c->total = c->source.size;
            return 0;
        }
        if (ret < 0)
            return ret;
        if (run.kind == CONVERT_DATA || run.kind == CONVERT_COMPARE ||
            (run.kind == CONVERT_ZERO && !c->options.sparse))
            c->total += run.length;
    }
    return 0;
}

static int convert_run(struct convert *c, unsigned n_workers,
                       struct rhea_error *err)
{
    pthread_t threads[RHEA_CONVERT_WORKERS_MAX];
    unsigned i, started = 0;
    int code = 0;

    pthread_mutex_lock(&c->lock);
    while (started < n_workers) {
        code = pthread_create(&threads[started], NULL, convert_worker, c);
        if (code)
            break;
        started++;
    }
    c->running = started;
    pthread_mutex_unlock(&c->lock);
    if (!started)
        return rhea_error_errno(err, code, "cannot start a thread");

    convert_watch(c);
    for (i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (c->ret < 0 && err)
        *err = c->err;
    return c->ret;
}

/* What is written in one piece: see window.h. */
static int convert_choose_unit(struct convert *c, struct rhea_error *err)
{
    struct rhea_format *format = rhea_image_format(c->target);
    struct rhea_format_info info;
    uint64_t unit;

    rhea_image_info(c->target, &info);
    unit = info.cluster_size;
    if (info.part_size && !c->options.compress)
        unit = info.part_size;
    if (c->options.compress &&
        (!format->ops->write_compressed || !unit || unit > WINDOW_SIZE))
        return rhea_error_set(err, ENOTSUP,
                              "%s images cannot hold compressed data",
                              format->ops->name);
    if (!unit) {
        /* Raw: as fine as the user wants to find zeroes, but no finer than
         * the file system gives blocks, if that is not asked for. */
        unit = c->options.sparse ? c->options.sparse : 4096;
        unit = RHEA_MIN(unit & -unit, 4096);
    }
    c->unit = (unsigned)RHEA_MIN(RHEA_MAX(unit, (uint64_t)WINDOW_UNIT_MIN),
                                 (uint64_t)WINDOW_SIZE);
    return 0;
}

static unsigned convert_choose_workers(const struct convert *c)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = c->options.workers;

    if (!n) {
        n = processors > 0 ? (unsigned)RHEA_MIN(processors, 16) : 2;
        /* Compressing keeps processors busy. Else a few are enough to have
         * reads and writes under way at the same time. */
        if (!c->options.compress)
            n = RHEA_MAX(2u, RHEA_MIN(n, 4u));
    }
    return RHEA_MIN(n, RHEA_CONVERT_WORKERS_MAX);
}

int rhea_convert_copy(struct rhea_image *const *sources, size_t n_sources,
                      struct rhea_image *target,
                      const struct rhea_convert_options *options,
                      struct rhea_convert_result *result,
                      struct rhea_error *err)
{
    struct convert c = {
        .target = target,
        .options = *options,
        .in_order = !options->any_order && !options->compress,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .turn = PTHREAD_COND_INITIALIZER,
        .news = PTHREAD_COND_INITIALIZER,
    };
    struct rhea_format_info info;
    int ret;

    if (options->sparse % 512 || options->sparse > RHEA_CONVERT_SPARSE_MAX)
        return rhea_error_set(err, EINVAL,
                              "the shortest run of zeroes to leave out must be "
                              "a multiple of 512 bytes, at most %u",
                              RHEA_CONVERT_SPARSE_MAX);
    rhea_image_info(target, &info);
    /* Bytes of a file that are zero are noise, decrypted. */
    if (info.encrypted)
        c.options.target_is_zero = false;
    /* Some images hold nothing else. */
    if (info.packed_max)
        c.options.compress = c.in_order = true;
    ret = convert_choose_unit(&c, err);
    if (ret < 0)
        return ret;
    ret = convert_source_init(&c.source, sources, n_sources,
                              rhea_image_backing(target), err);
    if (ret < 0)
        return ret;
    if (c.source.size > align_up(rhea_image_size(target), 512))
        ret = rhea_error_set(err, ENOSPC,
                             "%s holds fewer bytes (%ju) than there are to "
                             "copy (%ju)",
                             rhea_image_filename(target),
                             (uintmax_t)rhea_image_size(target),
                             (uintmax_t)c.source.size);
    /* Padding that the target has no room for need not be written. */
    c.source.size = RHEA_MIN(c.source.size, rhea_image_size(target));
    steps_init(&c.steps, &c.source, target, c.unit, &c.options);
    rate_init(&c.rate, options->rate);
    if (ret == 0)
        ret = convert_count_all(&c, err);
    if (ret == 0)
        ret = convert_run(&c, convert_choose_workers(&c), err);
    convert_source_finish(&c.source);
    if (result)
        *result = c.result;
    return ret;
}
