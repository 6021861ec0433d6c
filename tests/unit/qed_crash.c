/* SPDX-License-Identifier: MIT */
/*
 * Guest writes to a QED image survive crashes and faults: whatever of the
 * unflushed writes reaches the disk, the image has no corruption, and each
 * sector holds what was flushed last or something written since.
 */
#include <errno.h>
#include <pthread.h>

#include "qed_lib.h"
#include "storage/crash.h"
#include "storage/fault.h"
#include "storage/record.h"

#define CLUSTER 4096
#define SECTORS ((uint64_t)600)
#define SECTOR 512
#define SIZE (SECTORS * SECTOR)

/* Each sector is filled with a number. ALLOWED: the values each sector may
 * have, the one that was flushed last first. */
struct model {
    uint8_t allowed[SECTORS][64];
    unsigned n_allowed[SECTORS];
    bool unknown[SECTORS]; /* the last write failed, perhaps half done */
};

static void model_write(struct model *m, uint64_t sector, uint64_t count,
                        uint8_t value)
{
    for (uint64_t i = sector; i < sector + count; i++)
        if (CHECK(m->n_allowed[i] < 64))
            m->allowed[i][m->n_allowed[i]++] = value;
}

static void model_result(struct model *m, uint64_t sector, uint64_t count,
                         bool failed)
{
    for (uint64_t i = sector; i < sector + count; i++)
        m->unknown[i] = failed;
}

static void model_flush(struct model *m)
{
    for (uint64_t i = 0; i < SECTORS; i++) {
        if (m->unknown[i])
            continue;
        m->allowed[i][0] = m->allowed[i][m->n_allowed[i] - 1];
        m->n_allowed[i] = 1;
    }
}

static bool model_holds(const struct model *m, const uint8_t *guest)
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

static int below_is_nines(void *opaque, uint64_t offset, void *buf, size_t len,
                          struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, 9, len);
    return 0;
}

/* One random change of guest and model. */
static int random_change(struct rhea_format *f, struct model *m,
                         uint64_t *random, bool *flushed)
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
    model_write(m, sector, count, what == 1 ? 0 : value);
    memset(bytes, value, sizeof(bytes));
    if (what == 1)
        ret = f->ops->write_zeroes(f, sector * SECTOR, count * SECTOR,
                                   count % 2, &err);
    else
        ret = f->ops->write(f, sector * SECTOR, bytes, (size_t)count * SECTOR,
                            &err);
    model_result(m, sector, count, ret < 0);
    return ret;
}

static void model_init(struct model *m, uint8_t value)
{
    memset(m, 0, sizeof(*m));
    for (uint64_t i = 0; i < SECTORS; i++) {
        m->allowed[i][0] = value;
        m->n_allowed[i] = 1;
    }
}

/* Read all of an image whose unallocated clusters are nines. */
static int read_all(struct rhea_format *f, uint8_t *guest, bool over)
{
    for (uint64_t at = 0; at < SIZE;) {
        struct rhea_extent x;
        int ret = f->ops->map(f, at, SIZE - at, &x, &err);
        if (ret)
            return ret;
        memset(guest + at, x.kind == RHEA_EXTENT_UNALLOCATED && over ? 9 : 0,
               x.length);
        if (x.kind == RHEA_EXTENT_DATA)
            ret = rhea_storage_read(x.storage, guest + at, x.length, x.host,
                                    &err);
        if (ret)
            return ret;
        at += x.length;
    }
    return 0;
}

/* The image in STATE is whole, by what M allows; also after it was opened for
 * writing and closed. */
static bool state_is_good(struct rhea_storage *state, const struct model *m,
                          bool over)
{
    static uint8_t guest[SIZE];
    for (unsigned pass = 0; pass < 2; pass++) {
        struct rhea_format *f =
            qed_open_ok(state, pass ? RHEA_FORMAT_WRITE : RHEA_FORMAT_CHECK);
        struct rhea_check check = qed_checked(f, 0);
        bool good = CHECK_EQ(check.corruptions + check.errors, 0) &&
                    CHECK_OK(read_all(f, guest, over), &err) &&
                    CHECK(model_holds(m, guest));
        qed_close_ok(f);
        if (!good)
            return false;
    }
    return true;
}

/* The model that held when op number OP was logged. */
struct moment {
    size_t op;
    struct model model;
};

static void crash_once(uint64_t seed, bool over, const char *table)
{
    uint64_t random = seed;
    struct rhea_storage *s = qed_make(SIZE, "4k", table, over ? "base" : NULL);
    struct rhea_storage *before, *recorder;
    struct record_log log = {0};
    static struct moment moments[200];
    size_t n_moments = 0;
    struct model m;
    model_init(&m, over ? 9 : 0);

    CHECK_OK(memory_snapshot(&before, s, &err), &err);
    CHECK_OK(record_open(&recorder, s, &log, &err), &err);
    struct rhea_format *f = qed_open_ok(recorder, RHEA_FORMAT_WRITE);
    f->below = over ? below_is_nines : NULL;
    for (unsigned i = 0; i < 40; i++) {
        bool flushed;
        CHECK_OK(random_change(f, &m, &random, &flushed), &err);
        /* What is allowed in the states up to here: all since the last flush
         * of the guest's that had returned by then. */
        moments[n_moments].model = m;
        moments[n_moments++].op = log.n_ops;
        if (flushed)
            model_flush(&m);
    }
    qed_close_ok(f);
    moments[n_moments].model = m;
    moments[n_moments++].op = log.n_ops;

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
        bool good = state_is_good(state, &moments[at].model, over);
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

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (uint64_t seed = 1; seed <= 8; seed++)
        crash_once(seed, seed % 2, seed % 3 ? "1" : "2");
}

/* The Nth call of CLASSES fails; what was flushed is there afterwards. */
static bool fault_once(uint64_t seed, uint64_t at, unsigned classes, bool half)
{
    uint64_t random = seed;
    struct rhea_storage *s = qed_make(SIZE, "4k", "1", "base"), *keep, *faulty;
    struct fault_plan plan = {
        .classes = classes, .at = at, .code = EIO, .half_done = half};
    struct model m;
    model_init(&m, 9);
    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    struct rhea_format *f;
    bool flushed;
    if (!rhea_format_open_over(qed_ops(), &f, faulty, RHEA_FORMAT_WRITE,
                               &err)) {
        f->below = below_is_nines;
        for (unsigned i = 0; i < 30; i++) {
            int ret = random_change(f, &m, &random, &flushed);
            if (!ret && flushed)
                model_flush(&m);
        }
        if (f->ops->close(f, &err) == 0)
            model_flush(&m);
    }
    bool hit = fault_hits(faulty) > 0;
    CHECK_OK(memory_snapshot(&keep, s, &err), &err);
    rhea_storage_close(faulty);
    if (!state_is_good(keep, &m, true)) {
        printf("# fault at call %" PRIu64 " of 0x%x\n", at, classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

/* A write that failed leaves its sectors as they were or as they were to be;
 * nothing else changes. After a failed write the model keeps both. */
static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH,
                                       FAULT_TRUNCATE, FAULT_ZERO};
    for (size_t c = 0; c < RHEA_ARRAY_SIZE(classes); c++) {
        uint64_t at = 1;
        while (at < 500 && fault_once(3, at, classes[c], at % 2))
            at++;
        CHECK(at > 1);
    }
}

/* Called between the lookup of a cluster and its allocation's end: time for
 * another thread to do the same. */
static int below_is_slow(void *opaque, uint64_t offset, void *buf, size_t len,
                         struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, 0, len);
    usleep(100);
    return 0;
}

struct worker {
    pthread_t thread;
    struct rhea_format *f;
    unsigned number;
    int ret;
};

enum { THREADS = 6 };

/* Writes every sector whose number is its own modulo THREADS: all threads
 * meet in every cluster. */
static void *work(void *opaque)
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
            w->ret = w->f->ops->write(w->f, sector * SECTOR, bytes, SECTOR, &e);
    }
    for (uint64_t i = w->number; i < SECTORS && !w->ret; i += THREADS)
        w->ret = w->f->ops->write(w->f, i * SECTOR, bytes, SECTOR, &e);
    return NULL;
}

static void threads_share_clusters(void)
{
    static uint8_t guest[SIZE];
    for (unsigned turn = 0; turn < 20; turn++) {
        struct rhea_storage *s = qed_make(SIZE, "4k", "1", NULL);
        struct rhea_format *f = qed_open_ok(s, RHEA_FORMAT_WRITE);
        f->below = below_is_slow;
        struct worker workers[THREADS];
        for (unsigned i = 0; i < THREADS; i++) {
            workers[i] = (struct worker){.f = f, .number = i};
            CHECK_EQ(
                pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            pthread_join(workers[i].thread, NULL);
            CHECK_EQ(workers[i].ret, 0);
        }
        qed_close_ok(f);
        f = qed_open_ok(s, RHEA_FORMAT_CHECK);
        struct rhea_check check = qed_checked(f, 0);
        CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
        CHECK_EQ(check.allocated_clusters, SIZE / CLUSTER);
        CHECK_OK(read_all(f, guest, false), &err);
        for (uint64_t i = 0; i < SIZE; i++)
            if (!CHECK_EQ(guest[i], i / SECTOR % THREADS + 10))
                break;
        qed_close_ok(f);
        rhea_storage_close(s);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_clusters);
    return test_finish();
}
