/* SPDX-License-Identifier: MIT */
/*
 * Guest writes survive crashes and faults, in any format: whatever of the
 * unflushed writes reaches the disk, the image has no corruption, and each
 * sector holds what was flushed last or something written since. Threads that
 * share clusters lose nothing of each other's. A format's test says how its
 * images are made (struct subject), and calls crash_once, faults_everywhere and
 * threads_share.
 */
#ifndef FORMAT_CRASH_H
#define FORMAT_CRASH_H

#include <errno.h>
#include <pthread.h>
#include <rhea/format.h>
#include <unistd.h>

#include "base/checked.h"
#include "lib/test.h"
#include "storage/crash.h"
#include "storage/fault.h"
#include "storage/memory.h"
#include "storage/record.h"

#define SECTOR 512
#define SECTORS ((uint64_t)600)
#define SIZE (SECTORS * SECTOR)
enum { BELOW = 9 /* what a sector holds below */ };

static struct rhea_error err;

struct model;

struct subject {
    const struct rhea_format_ops *ops;
    /* A new image of SIZE bytes. OVER: it is to show what is below. */
    struct rhea_storage *(*make)(bool over, uint64_t seed);
    /* How to open it. */
    const struct rhea_option *options;
    size_t n_options;
    const struct rhea_files *files;
    size_t cluster;     /* bytes; write_compressed takes one */
    bool tells_unclean; /* a check counts as one error that the image was not
                           closed */
    /* Where blocks are large: what is at byte N of the SIZE is in the image at
     * N / SPREAD * PITCH + N % SPREAD. 0: at N. A multiple of 512. */
    uint64_t spread, pitch;
    /* Another judge of what a crash leaves, NULL: none. It is asked of every
     * JUDGED-th state. */
    bool (*judge)(struct rhea_storage *state, const struct model *m);
    size_t judged;
};

/* Where byte AT of the SIZE is; *LEN is shortened so that all of it follows. */
static inline uint64_t subject_place(const struct subject *t, uint64_t at,
                                     uint64_t *len)
{
    if (!t->spread)
        return at;
    *len = RHEA_MIN(*len, t->spread - at % t->spread);
    return at / t->spread * t->pitch + at % t->spread;
}

static inline struct rhea_format *
subject_open(const struct subject *t, struct rhea_storage *s, unsigned flags)
{
    const struct rhea_format_open how = {
        .storage = s,
        .flags = flags,
        .options = t->options,
        .n_options = t->n_options,
        .files = t->files,
    };
    struct rhea_format *f = NULL;
    if (t->ops->open(&f, &how, &err))
        return NULL;
    return f;
}

static inline struct rhea_format *
subject_open_ok(const struct subject *t, struct rhea_storage *s, unsigned flags)
{
    struct rhea_format *f = subject_open(t, s, flags);
    if (!CHECK_OK(f ? 0 : -1, &err))
        exit(99);
    return f;
}

/* --- What each sector may hold ------------------------------------------- */

/* Each sector is filled with a number. ALLOWED: the values each sector may
 * have, the one that was flushed last first. */
struct model {
    uint8_t allowed[SECTORS][64];
    unsigned n_allowed[SECTORS];
    bool unknown[SECTORS]; /* the last write failed, perhaps half done */
};

static inline void model_init(struct model *m, uint8_t value)
{
    memset(m, 0, sizeof(*m));
    for (uint64_t i = 0; i < SECTORS; i++) {
        m->allowed[i][0] = value;
        m->n_allowed[i] = 1;
    }
}

static inline void model_write(struct model *m, uint64_t sector, uint64_t count,
                               uint8_t value)
{
    for (uint64_t i = sector; i < sector + count; i++)
        if (CHECK(m->n_allowed[i] < 64))
            m->allowed[i][m->n_allowed[i]++] = value;
}

static inline void model_result(struct model *m, uint64_t sector,
                                uint64_t count, bool failed)
{
    for (uint64_t i = sector; i < sector + count; i++)
        m->unknown[i] = failed;
}

static inline void model_flush(struct model *m)
{
    for (uint64_t i = 0; i < SECTORS; i++) {
        if (m->unknown[i])
            continue;
        m->allowed[i][0] = m->allowed[i][m->n_allowed[i] - 1];
        m->n_allowed[i] = 1;
    }
}

static inline bool model_holds(const struct model *m, const uint8_t *guest)
{
    for (uint64_t i = 0; i < SECTORS; i++) {
        const uint8_t *p = guest + i * SECTOR;
        bool ok = !memcmp(p, p + 1, SECTOR - 1) &&
                  memchr(m->allowed[i], p[0], m->n_allowed[i]);
        if (!ok) {
            printf("# sector %" PRIu64 " holds %u\n", i, p[0]);
            return false;
        }
    }
    return true;
}

static inline int below_is_full(void *opaque, uint64_t offset, void *buf,
                                size_t len, struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, BELOW, len);
    return 0;
}

/* --- Random changes ------------------------------------------------------ */

/* One whole cluster, where it can be compressed. *COUNT is 0 where it cannot,
 * for only one that is not there can. */
static inline int change_compressed(const struct subject *t,
                                    struct rhea_format *f, struct model *m,
                                    uint64_t sector, uint8_t value,
                                    uint64_t *count)
{
    static uint8_t bytes[64 << 10];
    uint64_t offset = align_down(sector * SECTOR, t->cluster);
    size_t len = (size_t)RHEA_MIN(t->cluster, SIZE - offset);
    struct rhea_extent x;
    int ret = f->ops->map(f, offset, len, &x, &err);
    *count = 0;
    if (ret || x.kind != RHEA_EXTENT_UNALLOCATED || x.length < len)
        return ret;
    *count = len / SECTOR;
    model_write(m, offset / SECTOR, *count, value);
    memset(bytes, value, len);
    ret = f->ops->write_compressed(f, offset, bytes, len, &err);
    model_result(m, offset / SECTOR, *count, ret < 0);
    return ret;
}

/* LEN bytes at OFFSET become those of BUF, which another storage has. */
static inline int change_clone(struct rhea_format *f, uint64_t offset,
                               const uint8_t *buf, uint64_t len)
{
    struct rhea_storage *from = NULL;
    CHECK_OK(rhea_memory_open(&from, INT64_MAX, &err), &err);
    CHECK_OK(rhea_storage_write(from, buf, (size_t)len, 4096, &err), &err);
    int ret = f->ops->clone(f, offset, from, 4096, len, &err);
    rhea_storage_close(from);
    return ret;
}

/* BUF NULL: zeroes. What can be shared is, where CLONE says so. */
static inline int change_guest(const struct subject *t, struct rhea_format *f,
                               uint64_t at, const uint8_t *buf, uint64_t len,
                               bool unmap, bool clone)
{
    int ret = 0;
    while (len && !ret) {
        uint64_t n = len;
        uint64_t offset = subject_place(t, at, &n);
        if (buf && clone && is_aligned(offset | n, 4096))
            ret = change_clone(f, offset, buf, n);
        else if (buf)
            ret = f->ops->write(f, offset, buf, (size_t)n, &err);
        else
            ret = f->ops->write_zeroes(f, offset, n, unmap, &err);
        at += n;
        buf += buf ? n : 0;
        len -= n;
    }
    return ret;
}

/* One random change of guest and model. */
static inline int random_change(const struct subject *t, struct rhea_format *f,
                                struct model *m, uint64_t *random,
                                bool *flushed)
{
    uint8_t bytes[32 * SECTOR];
    uint64_t count = 1 + test_random(random) % 32;
    uint64_t sector = test_random(random) % (SECTORS - count);
    uint64_t what = test_random(random) % 8;
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);
    *flushed = what == 0;
    if (*flushed)
        return f->ops->flush(f, &err);

    int ret;
    if (what == 7 && t->cluster) {
        ret = change_compressed(t, f, m, sector, value, &count);
        if (ret || count)
            return ret;
        count = 1;
    }
    bool zero = what == 1 && f->ops->write_zeroes;
    bool clone = what == 2 && f->ops->clone;
    if (clone) {
        sector = align_down(sector, 8);
        count = align_up(count, 8);
    }
    model_write(m, sector, count, zero ? 0 : value);
    memset(bytes, value, sizeof(bytes));
    ret = change_guest(t, f, sector * SECTOR, zero ? NULL : bytes,
                       count * SECTOR, count % 2, clone);
    model_result(m, sector, count, ret < 0);
    return ret;
}

static inline int read_extent(struct rhea_format *f,
                              const struct rhea_extent *x, uint64_t at,
                              uint8_t *buf, bool over)
{
    switch (x->kind) {
    case RHEA_EXTENT_DATA:
        return rhea_storage_read(x->storage, buf, x->length, x->host, &err);
    case RHEA_EXTENT_COMPRESSED:
    case RHEA_EXTENT_ENCRYPTED:
        return f->ops->read(f, at, buf, (size_t)x->length, &err);
    default:
        memset(buf, x->kind == RHEA_EXTENT_UNALLOCATED && over ? BELOW : 0,
               x->length);
        return 0;
    }
}

static inline int subject_read(const struct subject *t, struct rhea_format *f,
                               uint8_t *guest, bool over)
{
    for (uint64_t at = 0; at < SIZE;) {
        struct rhea_extent x;
        uint64_t len = SIZE - at;
        uint64_t offset = subject_place(t, at, &len);
        int ret = f->ops->map(f, offset, len, &x, &err);
        if (!ret)
            ret = read_extent(f, &x, offset, guest + at, over);
        if (ret)
            return ret;
        at += x.length;
    }
    return 0;
}

/* Where it is not spread. */
static inline int read_all(struct rhea_format *f, uint8_t *guest, bool over)
{
    const struct subject plain = {0};
    return subject_read(&plain, f, guest, over);
}

static inline struct rhea_check subject_checked(struct rhea_format *f,
                                                unsigned fix)
{
    struct rhea_check check = {0};
    CHECK_OK(f->ops->check(f, fix, &check, &err), &err);
    return check;
}

/* --- Crashes ------------------------------------------------------------- */

/* The image in STATE is whole, by what M allows: as it is, once its leaks are
 * repaired, and opened for writing. */
static inline bool state_is_good(const struct subject *t,
                                 struct rhea_storage *state,
                                 const struct model *m, bool over)
{
    static const unsigned flags[] = {RHEA_FORMAT_CHECK, RHEA_FORMAT_WRITE,
                                     RHEA_FORMAT_CHECK | RHEA_FORMAT_WRITE,
                                     RHEA_FORMAT_WRITE};
    static uint8_t guest[SIZE];
    for (unsigned pass = 0; pass < RHEA_ARRAY_SIZE(flags); pass++) {
        struct rhea_format *f = subject_open_ok(t, state, flags[pass]);
        struct rhea_check check =
            subject_checked(f, pass == 2 ? RHEA_FIX_LEAKS : 0);
        unsigned unclean = pass == 0 && t->tells_unclean;
        bool good = CHECK(check.corruptions + check.errors <= unclean) &&
                    CHECK_OK(subject_read(t, f, guest, over), &err) &&
                    CHECK(model_holds(m, guest));
        CHECK_OK(f->ops->close(f, &err), &err);
        if (!good) {
            printf("# in pass %u\n", pass);
            return false;
        }
    }
    return true;
}

/* The model that held when op number OP was logged. */
struct moment {
    size_t op;
    struct model model;
};

static inline size_t crash_record(const struct subject *t,
                                  struct rhea_storage *recorder,
                                  struct record_log *log, bool over,
                                  uint64_t seed, struct moment *moments)
{
    size_t n = 0;
    uint64_t random = seed;
    struct model m;
    struct rhea_format *f = subject_open_ok(t, recorder, RHEA_FORMAT_WRITE);
    f->below = over ? below_is_full : NULL;
    model_init(&m, over ? BELOW : 0);
    for (unsigned i = 0; i < 40; i++) {
        bool flushed;
        CHECK_OK(random_change(t, f, &m, &random, &flushed), &err);
        /* What is allowed in the states up to here: all since the last flush
         * of the guest's that had returned by then. */
        moments[n].model = m;
        moments[n++].op = log->n_ops;
        if (flushed)
            model_flush(&m);
    }
    CHECK_OK(f->ops->close(f, &err), &err);
    moments[n].model = m;
    moments[n++].op = log->n_ops;
    return n;
}

static inline void crash_once(const struct subject *t, uint64_t seed, bool over)
{
    struct rhea_storage *s = t->make(over, seed);
    struct rhea_storage *before, *recorder;
    struct record_log log = {0};
    static struct moment moments[64];

    CHECK_OK(memory_snapshot(&before, s, &err), &err);
    CHECK_OK(record_open(&recorder, s, &log, &err), &err);
    crash_record(t, recorder, &log, over, seed, moments);

    struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    CHECK_OK(crash_plan(&log, &limits, &plan, &err), &err);
    crash_plan_sample(&plan, 400, seed);
    CHECK_OK(crash_init(&crash, before, &log, &err), &err);
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        size_t at = 0;
        while (moments[at].op < plan.states[i].to)
            at++;
        if (!CHECK_OK(crash_build(&crash, &plan.states[i], &state, &err), &err))
            break;
        bool good = !t->judge || i % t->judged ||
                    CHECK(t->judge(state, &moments[at].model));
        good = good && state_is_good(t, state, &moments[at].model, over);
        rhea_storage_close(state);
        if (!good) {
            char text[100];
            crash_describe(&plan.states[i], text, sizeof(text));
            printf("# seed %" PRIu64 ", state %s\n", seed, text);
            break;
        }
    }
    CHECK(plan.n_states > 100);
    crash_plan_finish(&plan);
    crash_finish(&crash);
    rhea_storage_close(recorder);
    rhea_storage_close(before);
    record_log_finish(&log);
}

/* --- Shrinking ----------------------------------------------------------- */

/* The image has the one size or the other, and guest bytes are as they were
 * BEFORE, all of them that it has. */
static inline bool shrunk_is_good(const struct subject *t,
                                  struct rhea_format *f, const uint8_t *before,
                                  uint64_t large, uint64_t small, bool over,
                                  bool grown)
{
    if (!CHECK(f->size == large || f->size == small))
        return false;
    for (uint64_t at = 0; at < SIZE; at += SECTOR) {
        uint8_t bytes[SECTOR];
        uint64_t len = SECTOR, offset = subject_place(t, at, &len);
        struct rhea_extent x = {0};
        if (offset >= f->size || (grown && offset >= small))
            break;
        int ret = f->ops->map(f, offset, len, &x, &err);
        if (!ret && CHECK_EQ(x.length, SECTOR))
            ret = read_extent(f, &x, offset, bytes, over);
        if (!CHECK_OK(ret, &err) || memcmp(bytes, before + at, SECTOR)) {
            printf("# sector %" PRIu64 " holds %u\n", at / SECTOR, bytes[0]);
            return CHECK(false);
        }
    }
    return true;
}

/* What it had lost does not come back when it grows again. */
static inline bool shrunk_is_empty(struct rhea_format *f, uint64_t from,
                                   bool over)
{
    bool good = true;
    while (from < f->size && good) {
        static uint8_t bytes[64 << 10];
        struct rhea_extent x = {0};
        size_t n = (size_t)RHEA_MIN(f->size - from, sizeof(bytes));
        good = CHECK_OK(f->ops->map(f, from, n, &x, &err), &err) &&
               CHECK_OK(read_extent(f, &x, from, bytes, over), &err) &&
               CHECK(bytes[0] == 0 &&
                     !memcmp(bytes, bytes + 1, (size_t)x.length - 1));
        from += x.length;
    }
    return good;
}

static inline bool shrunk_state_is_good(const struct subject *t,
                                        struct rhea_storage *state,
                                        const uint8_t *before, uint64_t large,
                                        uint64_t small, bool over)
{
    bool good = true;
    for (unsigned pass = 0; pass < 2 && good; pass++) {
        struct rhea_format *f = subject_open_ok(
            t, state, pass ? RHEA_FORMAT_WRITE : RHEA_FORMAT_CHECK);
        struct rhea_check check = subject_checked(f, 0);
        unsigned unclean = pass == 0 && t->tells_unclean;
        good = CHECK(check.corruptions + check.errors <= unclean) &&
               shrunk_is_good(t, f, before, large, small, over, false);
        CHECK_OK(f->ops->close(f, &err), &err);
    }
    struct rhea_format *f = subject_open_ok(t, state, RHEA_FORMAT_WRITE);
    const struct rhea_resize how = {.size = large, .hide_below = true};
    f->below = over ? below_is_full : NULL;
    if (f->size == small)
        good = good && CHECK_OK(f->ops->resize(f, &how, &err), &err) &&
               shrunk_is_good(t, f, before, large, small, over, true) &&
               shrunk_is_empty(f, small, over);
    CHECK_OK(f->ops->close(f, &err), &err);
    return good;
}

/* Nothing is lost but what lies behind the SMALL bytes that an image has left,
 * wherever a crash comes. */
static inline void shrink_survives(const struct subject *t, uint64_t seed,
                                   bool over, uint64_t small)
{
    static uint8_t guest[SIZE];
    static struct moment moments[64];
    const struct rhea_resize how = {.size = small, .shrink = true};
    struct rhea_storage *s = t->make(over, seed), *before, *recorder;
    struct record_log log = {0};
    CHECK_OK(record_open(&recorder, s, &log, &err), &err);
    crash_record(t, recorder, &log, over, seed, moments);
    record_log_finish(&log);
    log = (struct record_log){0};
    CHECK_OK(memory_snapshot(&before, s, &err), &err);
    struct rhea_format *f = subject_open_ok(t, recorder, RHEA_FORMAT_WRITE);
    uint64_t large = f->size;
    CHECK_OK(subject_read(t, f, guest, over), &err);
    CHECK_OK(f->ops->resize(f, &how, &err), &err);
    CHECK_EQ(f->size, small);
    struct rhea_check check = subject_checked(f, 0);
    CHECK_EQ(check.corruptions + check.errors + check.leaks, 0);
    CHECK_OK(f->ops->close(f, &err), &err);

    struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    struct crash_plan plan = {0};
    struct crash crash = {0};
    CHECK_OK(crash_plan(&log, &limits, &plan, &err), &err);
    crash_plan_sample(&plan, 200, seed);
    CHECK_OK(crash_init(&crash, before, &log, &err), &err);
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *state;
        char text[100];
        if (!CHECK_OK(crash_build(&crash, &plan.states[i], &state, &err), &err))
            break;
        bool good = shrunk_state_is_good(t, state, guest, large, small, over);
        rhea_storage_close(state);
        crash_describe(&plan.states[i], text, sizeof(text));
        if (!good) {
            printf("# shrinking, seed %" PRIu64 ", state %s\n", seed, text);
            break;
        }
    }
    CHECK(plan.n_states > 5);
    crash_plan_finish(&plan);
    crash_finish(&crash);
    rhea_storage_close(recorder);
    rhea_storage_close(before);
    record_log_finish(&log);
}

/* --- Faults -------------------------------------------------------------- */

/* The call number AT of CLASSES fails; what was flushed is there afterwards.
 * Whether there was such a call. */
static inline bool fault_once(const struct subject *t, uint64_t seed,
                              uint64_t at, unsigned classes, bool half)
{
    uint64_t random = seed;
    struct rhea_storage *s = t->make(true, seed), *keep, *faulty;
    struct fault_plan plan = {
        .classes = classes, .at = at, .code = EIO, .half_done = half};
    struct model m;
    model_init(&m, BELOW);
    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    struct rhea_format *f = subject_open(t, faulty, RHEA_FORMAT_WRITE);
    if (f) {
        f->below = below_is_full;
        for (unsigned i = 0; i < 30; i++) {
            bool flushed;
            int ret = random_change(t, f, &m, &random, &flushed);
            if (!ret && flushed)
                model_flush(&m);
        }
        if (f->ops->close(f, &err) == 0)
            model_flush(&m);
    }
    bool hit = fault_hits(faulty) > 0;
    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(t, keep, &m, true)) {
        printf("# fault at call %" PRIu64 " of 0x%x\n", at, classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

/* A write that failed leaves its sectors as they were or as they were to be;
 * nothing else changes. After a failed write the model keeps both. */
static inline void faults_everywhere(const struct subject *t)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH,
                                       FAULT_TRUNCATE, FAULT_ZERO};
    for (size_t c = 0; c < RHEA_ARRAY_SIZE(classes); c++) {
        uint64_t at = 1;
        while (at < 500 && fault_once(t, 3, at, classes[c], at % 2))
            at++;
        CHECK(at > 1 || classes[c] == FAULT_ZERO);
    }
}

/* --- Threads ------------------------------------------------------------- */

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
        if (!w->ret)
            w->ret = work_write(w, sector, bytes);
    }
    for (uint64_t i = w->number; i < SECTORS && !w->ret; i += THREADS)
        w->ret = work_write(w, i, bytes);
    return NULL;
}

static inline void threads_once(const struct subject *t, uint64_t turn)
{
    static uint8_t guest[SIZE];
    struct rhea_storage *s = t->make(false, turn);
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
    struct rhea_check check = subject_checked(f, 0);
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
        threads_once(t, turn);
}

#endif
