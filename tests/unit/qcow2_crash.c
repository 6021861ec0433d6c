/* SPDX-License-Identifier: MIT */
/*
 * Guest writes to a qcow2 image survive crashes and faults: whatever of the
 * unflushed writes reaches the disk, the image has no corruption (an image with
 * lazy refcounts repairs itself), and each sector holds what was flushed last
 * or something written since.
 */
#include <errno.h>
#include <pthread.h>

#include "qcow2_lib.h"
#include "storage/crash.h"
#include "storage/fault.h"
#include "storage/record.h"

#define SECTORS ((uint64_t)1000)
#define SECTOR 512
#define SIZE (SECTORS * SECTOR)

static const struct kind {
    const char *options;
    bool over;     /* over a backing file of nines */
    bool snapshot; /* with a snapshot that shares everything */
    uint64_t past; /* data past the virtual size, so that the refcount table
                      soon has to grow */
} kinds[] = {
    {"cluster_size=4096", false, false, 0},
    {"cluster_size=4096", true, false, 0},
    {"cluster_size=4096", true, true, 0},
    {"cluster_size=512 refcount_bits=64", true, false, 0},
    {"cluster_size=512 refcount_bits=64", false, false, 1700 << 10},
    {"cluster_size=512 refcount_bits=16", false, true, 0},
    {"cluster_size=4096 lazy_refcounts=on", true, false, 0},
    {"cluster_size=16384 extended_l2=on", true, false, 0},
    {"cluster_size=16384 extended_l2=on", true, true, 0},
    {"cluster_size=4096 compat=0.10", true, false, 0},
    {"cluster_size=4096 compression_type=zstd", false, false, 0},
    {"cluster_size=16384 preallocation=metadata", false, false, 0},
};

/* Each sector is filled with a number. ALLOWED: the values each sector may
 * have, the one that was flushed last first. */
struct model {
    uint8_t allowed[SECTORS][64];
    unsigned n_allowed[SECTORS];
    bool unknown[SECTORS]; /* the last write failed, perhaps half done */
};

static void model_init(struct model *m, uint8_t value)
{
    memset(m, 0, sizeof(*m));
    for (uint64_t i = 0; i < SECTORS; i++) {
        m->allowed[i][0] = value;
        m->n_allowed[i] = 1;
    }
}

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

/* A compressed cluster of random place and value, or nothing where the image
 * cannot take one there. */
static int random_compress(struct rhea_format *f, struct model *m,
                           uint64_t *random)
{
    static uint8_t bytes[16384];
    struct rhea_format_info info;
    f->ops->info(f, &info);
    uint64_t cluster = info.cluster_size;
    uint64_t at = test_random(random) % (SIZE / cluster) * cluster;
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);
    memset(bytes, value, sizeof(bytes));
    model_write(m, at / SECTOR, cluster / SECTOR, value);
    int ret = f->ops->write_compressed(f, at, bytes, cluster, &err);
    model_result(m, at / SECTOR, cluster / SECTOR, ret < 0);
    return ret;
}

/* One random change of guest and model. */
/* Whole clusters, with the bytes of another storage. */
static int random_clone(struct rhea_format *f, struct model *m,
                        uint64_t *random)
{
    static uint8_t bytes[64 * SECTOR];
    struct rhea_storage *from = NULL;
    uint64_t count = 32 + 32 * (test_random(random) % 2);
    uint64_t sector =
        align_down(test_random(random) % (SECTORS - 2 * count), 32);
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);

    memset(bytes, value, sizeof(bytes));
    CHECK_OK(rhea_memory_open(&from, INT64_MAX, &err), &err);
    CHECK_OK(rhea_storage_write(from, bytes, sizeof(bytes), 4096, &err), &err);
    model_write(m, sector, count, value);
    int ret =
        f->ops->clone(f, sector * SECTOR, from, 4096, count * SECTOR, &err);
    model_result(m, sector, count, ret < 0);
    rhea_storage_close(from);
    return ret;
}

static int random_change(struct rhea_format *f, struct model *m,
                         uint64_t *random, bool *flushed)
{
    static uint8_t bytes[64 * SECTOR];
    uint64_t count = 1 + test_random(random) % 64;
    uint64_t sector = test_random(random) % (SECTORS - count);
    uint64_t what = test_random(random) % 10;
    uint8_t value = (uint8_t)(10 + test_random(random) % 240);
    *flushed = what == 0;
    if (*flushed)
        return f->ops->flush(f, &err);
    if (what == 1)
        return random_compress(f, m, random);
    if (what == 4)
        return random_clone(f, m, random);

    int ret;
    bool zero = what < 4;
    model_write(m, sector, count, zero ? 0 : value);
    memset(bytes, value, sizeof(bytes));
    if (zero)
        ret = f->ops->write_zeroes(f, sector * SECTOR, count * SECTOR,
                                   what == 2, &err);
    else
        ret = f->ops->write(f, sector * SECTOR, bytes, (size_t)count * SECTOR,
                            &err);
    model_result(m, sector, count, ret < 0);
    return ret;
}

/* Add a snapshot to a new image by hand, after some data: a copy of the L1
 * table, one reference more to all that it leads to. */
static void add_snapshot(struct rhea_storage *s, bool over)
{
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    struct rhea_format_info info;
    uint8_t bytes[8 * SECTOR], entry[64] = {0};
    f->below = over ? below_is_nines : NULL;
    f->ops->info(f, &info);
    uint64_t cluster = info.cluster_size, l1_size, l1, end, table;
    bool extended = get_be64(s, 72) & (1 << 4);
    memset(bytes, 9, sizeof(bytes));
    for (uint64_t at = 0; at + sizeof(bytes) <= SIZE; at += SIZE / 8)
        CHECK_OK(f->ops->write(f, at, bytes, sizeof(bytes), &err), &err);
    qcow2_close_ok(f);

    CHECK_OK(rhea_storage_size(s, &end, &err), &err);
    end = align_up(end, cluster);
    l1_size = get_be64(s, 32) & UINT32_MAX;
    l1 = get_be64(s, 40);
    table = end + align_up(l1_size * 8, cluster);
    put_be64(s, table, end);
    put_be32(s, table + 8, (uint32_t)l1_size);
    entry[13] = 1;
    entry[15] = 1;
    entry[39] = 16;
    entry[48 + 6] = (uint8_t)(SIZE >> 8);
    entry[48 + 5] = (uint8_t)(SIZE >> 16);
    entry[56] = '1';
    entry[57] = 's';
    CHECK_OK(rhea_storage_write(s, entry + 12, 52, table + 12, &err), &err);
    CHECK_OK(rhea_storage_truncate(s, table + cluster, &err), &err);
    for (uint64_t i = 0; i < l1_size; i++) {
        uint64_t l2 = get_be64(s, l1 + i * 8) & ~(UINT64_C(1) << 63);
        put_be64(s, l1 + i * 8, l2);
        put_be64(s, end + i * 8, l2);
        for (uint64_t k = 0; l2 && k < cluster; k += extended ? 16 : 8)
            put_be64(s, l2 + k, get_be64(s, l2 + k) & ~(UINT64_C(1) << 63));
    }
    put_be32(s, 60, 1);
    put_be64(s, 64, table);
    /* The refcounts are made by the repair. */
    f = qcow2_open_ok(s, RHEA_FORMAT_WRITE | RHEA_FORMAT_CHECK);
    qcow2_checked(f, RHEA_FIX_ERRORS | RHEA_FIX_LEAKS);
    struct rhea_check check = qcow2_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    qcow2_close_ok(f);
}

static struct rhea_storage *make(const struct kind *k)
{
    struct rhea_storage *s =
        qcow2_make(SIZE + k->past, k->options, k->over ? "base" : NULL);
    if (k->past) {
        struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
        for (uint64_t at = SIZE; at < SIZE + k->past; at += SECTOR)
            CHECK_OK(f->ops->write(f, at, "past", 4, &err), &err);
        qcow2_close_ok(f);
        put_be64(s, 24, SIZE);
    }
    if (k->snapshot)
        add_snapshot(s, k->over);
    return s;
}

/* What MAKE's image holds. */
static void make_model(const struct kind *k, struct model *m)
{
    model_init(m, k->over ? 9 : 0);
    for (uint64_t at = 0; k->snapshot && at + 8 * SECTOR <= SIZE;
         at += SIZE / 8)
        for (uint64_t i = 0; i < 8; i++)
            m->allowed[at / SECTOR + i][0] = 9;
}

/* The image in STATE is whole, by what M allows; also after it was opened for
 * writing, written to and closed. */
static bool state_is_good(struct rhea_storage *state, const struct model *m,
                          const struct kind *k)
{
    static uint8_t guest[SIZE], byte[SECTOR];
    for (unsigned pass = 0; pass < 2; pass++) {
        struct rhea_format *f =
            qcow2_open_ok(state, pass ? RHEA_FORMAT_WRITE : 0);
        struct rhea_format_info info;
        f->below = k->over ? below_is_nines : NULL;
        f->ops->info(f, &info);
        bool good =
            CHECK_OK(qcow2_read_over(f, guest, SIZE, 0, k->over ? 9 : 0),
                     &err) &&
            CHECK(model_holds(m, guest));
        /* The first change repairs what is marked as not closed. */
        memcpy(byte, guest, SECTOR);
        if (good && pass)
            good = CHECK_OK(f->ops->write(f, 0, byte, SECTOR, &err), &err);
        if (good && (pass || !info.dirty)) {
            struct rhea_check check = qcow2_checked(f, 0);
            good = CHECK_EQ(check.corruptions + check.errors, 0);
        }
        qcow2_close_ok(f);
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

static struct moment moments[100];

/* Change an image at random, with a log of what its storage is told. */
static void record_changes(const struct kind *k, uint64_t seed,
                           struct rhea_storage *recorder,
                           const struct record_log *log)
{
    struct rhea_format *f = qcow2_open_ok(recorder, RHEA_FORMAT_WRITE);
    static struct model m;
    uint64_t random = seed;
    size_t n = 0;

    make_model(k, &m);
    f->below = k->over ? below_is_nines : NULL;
    for (; n < 40; n++) {
        bool flushed;
        CHECK_OK(random_change(f, &m, &random, &flushed), &err);
        /* What is allowed in the states up to here: all since the last flush
         * of the guest's that had returned by then. */
        moments[n].model = m;
        moments[n].op = log->n_ops;
        if (flushed)
            model_flush(&m);
    }
    qcow2_close_ok(f);
    moments[n].model = m;
    moments[n].op = log->n_ops;
}

/* The first state that is not good, or NULL. */
static const struct crash_state *judge_all(const struct kind *k,
                                           struct rhea_storage *before,
                                           const struct record_log *log,
                                           const struct crash_plan *plan)
{
    struct crash crash = {0};
    const struct crash_state *bad = NULL;
    CHECK_OK(crash_init(&crash, before, log, &err), &err);
    for (size_t i = 0; i < plan->n_states && !bad; i++) {
        struct rhea_storage *state;
        size_t at = 0;
        while (moments[at].op < plan->states[i].to)
            at++;
        if (!CHECK_OK(crash_build(&crash, &plan->states[i], &state, &err),
                      &err))
            break;
        if (!state_is_good(state, &moments[at].model, k))
            bad = &plan->states[i];
        rhea_storage_close(state);
    }
    crash_finish(&crash);
    return bad;
}

static void crash_once(const struct kind *k, uint64_t seed)
{
    struct rhea_storage *s = make(k), *before, *recorder;
    struct record_log log = {0};
    struct crash_limits limits = {
        .seed = seed, .subsets = 6, .torn = 1, .orders = 4};
    struct crash_plan plan = {0};
    CHECK_OK(memory_snapshot(&before, s, &err), &err);
    CHECK_OK(record_open(&recorder, s, &log, &err), &err);
    record_changes(k, seed, recorder, &log);

    CHECK_OK(crash_plan(&log, &limits, &plan, &err), &err);
    CHECK(plan.n_states > 100);
    crash_plan_sample(&plan, 250, seed);
    const struct crash_state *bad = judge_all(k, before, &log, &plan);
    if (bad) {
        char text[100];
        crash_describe(bad, text, sizeof(text));
        printf("# %s, seed %" PRIu64 ", state %s\n", k->options, seed, text);
    }
    crash_plan_finish(&plan);
    rhea_storage_close(recorder);
    rhea_storage_close(before);
    record_log_finish(&log);
}

static void a_crash_anywhere_leaves_a_whole_image(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++)
        for (uint64_t seed = 1; seed <= 4; seed++)
            crash_once(&kinds[i], seed * 100 + i);
}

/* The Nth call of CLASSES fails; what was flushed is there afterwards. */
static bool fault_once(const struct kind *k, uint64_t at, unsigned classes,
                       bool half)
{
    uint64_t random = 3;
    struct rhea_storage *s = make(k), *keep, *faulty;
    struct fault_plan plan = {
        .classes = classes, .at = at, .code = EIO, .half_done = half};
    static struct model m;
    make_model(k, &m);
    CHECK_OK(fault_open(&faulty, s, &plan, &err), &err);
    struct rhea_format *f;
    bool flushed;
    if (!rhea_format_open_over(qcow2_ops(), &f, faulty, RHEA_FORMAT_WRITE,
                               &err)) {
        f->below = k->over ? below_is_nines : NULL;
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
    if (!state_is_good(keep, &m, k)) {
        printf("# %s: fault at call %" PRIu64 " of 0x%x\n", k->options, at,
               classes);
        hit = false;
    }
    rhea_storage_close(keep);
    return hit;
}

static void a_fault_anywhere_loses_nothing_that_was_flushed(void)
{
    static const unsigned classes[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH,
                                       FAULT_ZERO};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++) {
        for (size_t c = 0; c < RHEA_ARRAY_SIZE(classes); c++) {
            uint64_t at = 1;
            while (at < 200 && fault_once(&kinds[i], at, classes[c], at % 2))
                at++;
            CHECK(at > 1 || classes[c] == FAULT_ZERO);
        }
    }
}

/* Time for another thread between a cluster's lookup and its mapping. */
static int below_is_slow(void *opaque, uint64_t offset, void *buf, size_t len,
                         struct rhea_error *e)
{
    (void)opaque;
    (void)offset;
    (void)e;
    memset(buf, 0, len);
    usleep(50);
    return 0;
}

struct worker {
    pthread_t thread;
    struct rhea_format *f;
    unsigned number;
    int ret;
};

enum { THREADS = 5 };

/* Writes every sector whose number is its own modulo THREADS: all threads
 * meet in every cluster. */
static void *work(void *opaque)
{
    struct worker *w = opaque;
    struct rhea_error e;
    uint8_t bytes[SECTOR];
    memset(bytes, (int)w->number + 10, sizeof(bytes));
    for (uint64_t i = w->number; i < SECTORS && !w->ret; i += THREADS) {
        if (i % 50 == 0)
            w->ret = w->f->ops->flush(w->f, &e);
        if (!w->ret && i % 3 == 0)
            w->ret =
                w->f->ops->write_zeroes(w->f, i * SECTOR, SECTOR, i % 2, &e);
        if (!w->ret)
            w->ret = w->f->ops->write(w->f, i * SECTOR, bytes, SECTOR, &e);
    }
    return NULL;
}

static void threads_meet_once(const struct kind *k)
{
    static uint8_t guest[SIZE];
    struct rhea_storage *s = make(k);
    struct rhea_format *f = qcow2_open_ok(s, RHEA_FORMAT_WRITE);
    struct worker workers[THREADS];
    f->below = below_is_slow;
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.f = f, .number = i};
        CHECK_EQ(pthread_create(&workers[i].thread, NULL, work, &workers[i]),
                 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK_EQ(workers[i].ret, 0);
    }
    qcow2_close_ok(f);
    f = qcow2_open_ok(s, RHEA_FORMAT_CHECK);
    struct rhea_check check = qcow2_checked(f, 0);
    CHECK_EQ(check.corruptions + check.leaks + check.errors, 0);
    CHECK_OK(qcow2_read_over(f, guest, SIZE, 0, 0), &err);
    for (uint64_t i = 0; i < SIZE; i++)
        if (!CHECK_EQ(guest[i], i / SECTOR % THREADS + 10))
            break;
    qcow2_close_ok(f);
    rhea_storage_close(s);
}

static void threads_share_clusters(void)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(kinds); i++)
        for (unsigned turn = 0; turn < 3; turn++)
            threads_meet_once(&kinds[i]);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_crash_anywhere_leaves_a_whole_image);
    TEST(a_fault_anywhere_loses_nothing_that_was_flushed);
    TEST(threads_share_clusters);
    return test_finish();
}
