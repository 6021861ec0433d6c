/* SPDX-License-Identifier: MIT */
/* Threads that share clusters lose nothing of each other's writes, in any
 * format. */
#ifndef FORMAT_THREADS_H
#define FORMAT_THREADS_H

#include <pthread.h>
#include <unistd.h>

#include "format_subject.h"

/* Called between the lookup of a cluster and its allocation's end: time for
 * another thread to do the same. */
static inline int below_is_slow(void *opaque, uint64_t offset, void *buf,
                                size_t len, struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, 0, len);
    usleep(100);
    return 0;
}

struct worker {
    const struct subject *t;
    pthread_t thread;
    struct rhea_format *f;
    unsigned number;
    int ret;
};

enum { THREADS = 6 };

static inline int work_write(struct worker *w, uint64_t sector,
                             const uint8_t *bytes)
{
    struct rhea_error e;
    uint64_t len = SECTOR;
    uint64_t offset = subject_place(w->t, sector * SECTOR, &len);
    return w->f->ops->write(w->f, offset, bytes, SECTOR, &e);
}

static inline int work_zero(struct worker *w, uint64_t sector, bool unmap)
{
    struct rhea_error e;
    uint64_t len = SECTOR;
    uint64_t offset = subject_place(w->t, sector * SECTOR, &len);
    if (!w->f->ops->write_zeroes)
        return 0;
    return w->f->ops->write_zeroes(w->f, offset, SECTOR, unmap, &e);
}

/* Writes every sector whose number is its own modulo THREADS: all threads
 * meet in every cluster. */
static inline void *work(void *opaque)
{
    struct worker *w = opaque;
    struct rhea_error e;
    uint8_t bytes[SECTOR];
    memset(bytes, (int)w->number + 10, sizeof(bytes));
    for (uint64_t i = w->number; i < SECTORS && !w->ret; i += THREADS) {
        uint64_t sector = i * 7 % SECTORS / THREADS * THREADS + w->number;
        if (sector >= SECTORS)
            continue;
        if (i % 50 == 0)
            w->ret = w->f->ops->flush(w->f, &e);
        if (!w->ret && i % 3 == 0)
            w->ret = work_zero(w, sector, i % 2);
        if (!w->ret)
            w->ret = work_write(w, sector, bytes);
    }
    for (uint64_t i = w->number; i < SECTORS && !w->ret; i += THREADS)
        w->ret = work_write(w, i, bytes);
    return NULL;
}

static inline void threads_once(const struct subject *t, bool over,
                                uint64_t turn)
{
    static uint8_t guest[SIZE];
    struct rhea_storage *s = t->make(over, turn);
    struct rhea_format *f = subject_open_ok(t, s, RHEA_FORMAT_WRITE);
    f->below = below_is_slow;
    struct worker workers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.t = t, .f = f, .number = i};
        CHECK_EQ(pthread_create(&workers[i].thread, NULL, work, &workers[i]),
                 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK_EQ(workers[i].ret, 0);
    }
    CHECK_OK(f->ops->close(f, &err), &err);
    f = subject_open_ok(t, s, RHEA_FORMAT_CHECK);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    CHECK_OK(subject_read(t, f, guest, false), &err);
    for (uint64_t i = 0; i < SIZE; i++)
        if (!CHECK_EQ(guest[i], i / SECTOR % THREADS + 10))
            break;
    CHECK_OK(f->ops->close(f, &err), &err);
    rhea_storage_close(s);
}

static inline void threads_share(const struct subject *t)
{
    for (uint64_t turn = 0; turn < 20; turn++)
        threads_once(t, false, turn);
}

#endif
