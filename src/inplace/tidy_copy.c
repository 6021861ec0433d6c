/* SPDX-License-Identifier: MIT */
/*
 * L2 tables that move and do not change: plain copies, no order between them,
 * all before the flush that tidy_apply makes. Where there are many, two threads
 * share them.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/checked.h"
#include "inplace/tidy.h"

#define COPY_APART_MIN (UINT64_C(8) << 20) /* bytes */

struct copier {
    struct tidy *t;
    const struct move *moves;
    size_t n;
    bool prompt; /* tells of progress, listens to the user */
    atomic_size_t *next;
    atomic_bool *stop;
    uint8_t *buffer;
    int ret;
    struct rhea_error err;
};

static int copy_table(struct copier *c, const struct move *m,
                      struct rhea_error *err)
{
    unsigned bits = c->t->layout.cluster_bits;
    uint64_t from = m->from << bits, to = m->to << bits;
    uint64_t len = (uint64_t)m->count << bits;
    int ret = 0;

    for (uint64_t at = 0; !ret && at < len; at += TIDY_BUFFER) {
        size_t n = (size_t)RHEA_MIN(len - at, TIDY_BUFFER);

        ret = tidy_read(c->t, c->buffer, n, from + at, err);
        /* Not tidy_write: the file does not get longer, and that is what two
         * threads would both note. */
        if (!ret)
            ret = rhea_storage_write(c->t->storage, c->buffer, n, to + at, err);
    }
    /* The disk may begin with it, long before the flush. */
    if (!ret)
        rhea_storage_writeback(c->t->storage, to, len);
    return ret;
}

static void *copy_tables(void *opaque)
{
    struct copier *c = opaque;
    const struct rhea_progress *progress = c->t->progress;

    while (!c->ret && !atomic_load(c->stop)) {
        size_t i = atomic_fetch_add(c->next, 1);

        if (i >= c->n)
            break;
        c->ret = copy_table(c, &c->moves[i], &c->err);
        if (!c->prompt)
            continue;
        rhea_progress_report(progress, "tidy", i, c->n);
        if (!c->ret && rhea_progress_cancelled(progress))
            c->ret = rhea_error_set(&c->err, ECANCELED, "stopped as asked");
    }
    if (c->ret)
        atomic_store(c->stop, true);
    return NULL;
}

bool tidy_copy_pays(const struct tidy *t, const struct move *moves, size_t n)
{
    uint64_t clusters = 0;

    for (size_t i = 0; i < n; i++) {
        clusters += moves[i].count;
        if ((moves[i].to + moves[i].count) << t->layout.cluster_bits >
            t->file_size)
            return false;
    }
    return clusters << t->layout.cluster_bits >= COPY_APART_MIN;
}

int tidy_copy(struct tidy *t, const struct move *moves, size_t n,
              struct rhea_error *err)
{
    atomic_size_t next = 0;
    atomic_bool stop = false;
    struct copier own = {.t = t,
                         .moves = moves,
                         .n = n,
                         .prompt = true,
                         .next = &next,
                         .stop = &stop,
                         .buffer = t->buffer};
    struct copier other = own;
    pthread_t thread;

    other.prompt = false;
    other.buffer = malloc(TIDY_BUFFER);
    bool apart =
        other.buffer && pthread_create(&thread, NULL, copy_tables, &other) == 0;
    copy_tables(&own);
    if (apart)
        pthread_join(thread, NULL);
    free(other.buffer);

    const struct copier *failed = own.ret ? &own : &other;
    if (failed->ret && err)
        *err = failed->err;
    return failed->ret;
}
