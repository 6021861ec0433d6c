/* SPDX-License-Identifier: MIT */
/*
 * Guest writes survive crashes and faults, in any format: whatever of the
 * unflushed writes reaches the disk, the image has no corruption, and each
 * sector holds what was flushed last or something written since. A format's
 * test says how its images are made (struct subject), and calls crash_once and
 * faults_everywhere.
 */
#ifndef FORMAT_CRASH_H
#define FORMAT_CRASH_H

#include <errno.h>

#include "crash_states.h"
#include "format_subject.h"
#include "storage/fault.h"

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
        buf = buf ? buf + n : NULL;
        len -= n;
    }
    return ret;
}

/* One random change of guest and model. */
static inline int random_change(const struct subject *t, struct rhea_format *f,
                                struct model *m, uint64_t *random,
                                bool *flushed)
{
    if (t->change)
        return t->change(f, m, random, flushed);
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

/* --- Crashes ------------------------------------------------------------- */

/* What S, which nothing was done to yet, holds. */
static inline void subject_note(const struct subject *t, struct rhea_storage *s,
                                bool over, struct model *m)
{
    static uint8_t guest[SIZE];
    struct rhea_format *f = subject_open_ok(t, s, 0);
    CHECK_OK(subject_read(t, f, guest, over), &err);
    model_init(m, guest);
    image_close_ok(f);
}

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
    if (t->is_good)
        return t->is_good(state, m);
    for (unsigned pass = 0; pass < RHEA_ARRAY_SIZE(flags); pass++) {
        struct rhea_format *f = subject_open_ok(t, state, flags[pass]);
        struct rhea_check check =
            image_checked(f, pass == 2 ? RHEA_FIX_LEAKS : 0);
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

enum { CHANGES = 40 };

static inline void crash_record(const struct subject *t, struct recording *r,
                                bool over, uint64_t seed,
                                struct moment *moments)
{
    static struct model m;
    uint64_t random = seed;
    subject_note(t, r->before, over, &m);
    struct rhea_format *f = subject_open_ok(t, r->storage, RHEA_FORMAT_WRITE);
    f->below = over ? below_is_full : NULL;
    for (unsigned i = 0; i < CHANGES; i++) {
        bool flushed;
        CHECK_OK(random_change(t, f, &m, &random, &flushed), &err);
        /* What is allowed in the states up to here: all since the last flush
         * of the guest's that had returned by then. */
        moments[i].model = m;
        moments[i].op = r->log.n_ops;
        if (flushed)
            model_flush(&m);
    }
    image_close_ok(f);
    moments[CHANGES].model = m;
    moments[CHANGES].op = r->log.n_ops;
}

struct crash_look {
    const struct subject *t;
    const struct moment *moments;
    bool over;
    size_t *looks;
};

static inline bool crash_is_good(const void *opaque, struct rhea_storage *state,
                                 const struct crash_state *s)
{
    const struct crash_look *look = opaque;
    const struct subject *t = look->t;
    const struct moment *now = look->moments;
    while (now->op < s->to)
        now++;
    bool judged = t->judge && (*look->looks)++ % t->judged == 0;
    return (!judged || CHECK(t->judge(state, &now->model))) &&
           state_is_good(t, state, &now->model, look->over);
}

static inline void crash_once(const struct subject *t, uint64_t seed, bool over)
{
    static struct moment moments[CHANGES + 1];
    const struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    size_t looks = 0;
    const struct crash_look look = {t, moments, over, &looks};
    struct recording r;
    recording_begin(&r, t->make(over, seed));
    crash_record(t, &r, over, seed, moments);
    CHECK(crash_states(t->name ? t->name : "writes", &r, &limits,
                       t->states ? t->states : 400, crash_is_good,
                       &look) > 100);
    recording_end(&r);
}

/* --- Shrinking ----------------------------------------------------------- */

struct shrunk {
    const struct subject *t;
    uint8_t guest[SIZE]; /* before */
    uint64_t large, small;
    bool over;
};

/* The image has the one size or the other, and guest bytes are as they were
 * before, all of them that it has. */
static inline bool shrunk_is_good(const struct shrunk *s, struct rhea_format *f,
                                  bool grown)
{
    if (!CHECK(f->size == s->large || f->size == s->small))
        return false;
    for (uint64_t at = 0; at < SIZE; at += SECTOR) {
        uint8_t bytes[SECTOR];
        uint64_t len = SECTOR, offset = subject_place(s->t, at, &len);
        struct rhea_extent x = {0};
        if (offset >= f->size || (grown && offset >= s->small))
            break;
        int ret = f->ops->map(f, offset, len, &x, &err);
        if (!ret && CHECK_EQ(x.length, SECTOR))
            ret = read_extent(f, &x, offset, bytes, s->over);
        if (!CHECK_OK(ret, &err) || memcmp(bytes, s->guest + at, SECTOR)) {
            printf("# sector %" PRIu64 " holds %u\n", at / SECTOR, bytes[0]);
            return CHECK(false);
        }
    }
    return true;
}

/* What it had lost does not come back when it grows again. */
static inline bool shrunk_is_empty(const struct shrunk *s,
                                   struct rhea_format *f)
{
    uint64_t from = s->small;
    bool good = true;
    while (from < f->size && good) {
        static uint8_t bytes[64 << 10];
        struct rhea_extent x = {0};
        size_t n = (size_t)RHEA_MIN(f->size - from, sizeof(bytes));
        good = CHECK_OK(f->ops->map(f, from, n, &x, &err), &err) &&
               CHECK_OK(read_extent(f, &x, from, bytes, s->over), &err) &&
               CHECK(bytes[0] == 0 &&
                     !memcmp(bytes, bytes + 1, (size_t)x.length - 1));
        from += x.length;
    }
    return good;
}

static inline bool shrunk_state_is_good(const void *opaque,
                                        struct rhea_storage *state,
                                        const struct crash_state *which)
{
    const struct shrunk *s = opaque;
    bool good = true;
    (void)which;
    for (unsigned pass = 0; pass < 2 && good; pass++) {
        struct rhea_format *f = subject_open_ok(
            s->t, state, pass ? RHEA_FORMAT_WRITE : RHEA_FORMAT_CHECK);
        struct rhea_check check = image_checked(f, 0);
        unsigned unclean = pass == 0 && s->t->tells_unclean;
        good = CHECK(check.corruptions + check.errors <= unclean) &&
               shrunk_is_good(s, f, false);
        image_close_ok(f);
    }
    struct rhea_format *f = subject_open_ok(s->t, state, RHEA_FORMAT_WRITE);
    const struct rhea_resize how = {.size = s->large, .hide_below = true};
    f->below = s->over ? below_is_full : NULL;
    if (f->size == s->small)
        good = good && CHECK_OK(f->ops->resize(f, &how, &err), &err) &&
               shrunk_is_good(s, f, true) && shrunk_is_empty(s, f);
    image_close_ok(f);
    return good;
}

/* Nothing is lost but what lies behind the SMALL bytes that an image has left,
 * wherever a crash comes. */
static inline void shrink_survives(const struct subject *t, uint64_t seed,
                                   bool over, uint64_t small)
{
    static struct shrunk shrunk;
    static struct moment moments[CHANGES + 1];
    const struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    const struct rhea_resize how = {.size = small, .shrink = true};
    struct recording r;
    recording_begin(&r, t->make(over, seed));
    crash_record(t, &r, over, seed, moments);
    recording_again(&r);
    struct rhea_format *f = subject_open_ok(t, r.storage, RHEA_FORMAT_WRITE);
    shrunk.t = t;
    shrunk.large = f->size;
    shrunk.small = small;
    shrunk.over = over;
    CHECK_OK(subject_read(t, f, shrunk.guest, over), &err);
    CHECK_OK(f->ops->resize(f, &how, &err), &err);
    CHECK_EQ(f->size, small);
    struct rhea_check check = image_checked(f, 0);
    CHECK_EQ(check.corruptions + check.errors + check.leaks, 0);
    image_close_ok(f);
    CHECK(crash_states("shrinking", &r, &limits, 200, shrunk_state_is_good,
                       &shrunk) > 5);
    recording_end(&r);
}

/* --- Faults -------------------------------------------------------------- */

/* The call number AT of CLASSES fails; what was flushed is there afterwards.
 * Whether there was such a call. */
static inline bool fault_once(const struct subject *t, bool over, uint64_t seed,
                              uint64_t at, unsigned classes, bool half)
{
    static struct model m;
    uint64_t random = seed;
    struct rhea_storage *s = t->make(over, seed), *keep, *faulty;
    struct fault_plan plan = {
        .classes = classes, .at = at, .code = EIO, .half_done = half};
    subject_note(t, s, over, &m);
    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    struct rhea_format *f = subject_open(t, faulty, RHEA_FORMAT_WRITE);
    if (f) {
        f->below = over ? below_is_full : NULL;
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
    if (!state_is_good(t, keep, &m, over)) {
        printf("# %s: fault at call %" PRIu64 " of 0x%x\n",
               t->name ? t->name : "writes", at, classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

/* A write that failed leaves its sectors as they were or as they were to be;
 * nothing else changes. After a failed write the model keeps both. Of each
 * class OF calls there have to be some. */
static inline void faults_of(const struct subject *t, bool over, unsigned of)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH,
                                       FAULT_TRUNCATE, FAULT_ZERO};
    for (size_t c = 0; c < RHEA_ARRAY_SIZE(classes); c++) {
        uint64_t at = 1;
        if (!(of & classes[c]))
            continue;
        while (at < 500 && fault_once(t, over, 3, at, classes[c], at % 2))
            at++;
        CHECK(at > 1 || classes[c] == FAULT_ZERO);
    }
}

static inline void faults_everywhere(const struct subject *t)
{
    faults_of(t, true,
              FAULT_READ | FAULT_WRITE | FAULT_FLUSH | FAULT_TRUNCATE |
                  FAULT_ZERO);
}

#endif
