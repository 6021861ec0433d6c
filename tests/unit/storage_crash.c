/* SPDX-License-Identifier: MIT */
/* The crash states are those the model allows, and enough of them to find a
 * program out that flushes too little. */
#include <errno.h>
#include <rhea/storage.h>

#include "base/checked.h"
#include "lib/test.h"
#include "storage/crash.h"
#include "storage/memory.h"

#define SECTOR 512

static struct rhea_error err;

/* A recorder over memory whose first contents are kept. */
struct scene {
    struct rhea_storage *s, *before;
    struct record_log log;
    struct crash crash;
    struct crash_plan plan;
};

static bool scene_begin(struct scene *c, const void *bytes, size_t len)
{
    *c = (struct scene){0};
    return CHECK_OK(rhea_memory_open(&c->s, INT64_MAX, &err), &err) &&
           CHECK_OK(rhea_storage_write(c->s, bytes, len, 0, &err), &err) &&
           CHECK_OK(memory_snapshot(&c->before, c->s, &err), &err) &&
           CHECK_OK(record_open(&c->s, c->s, &c->log, &err), &err);
}

static bool scene_plan(struct scene *c, unsigned n)
{
    struct crash_limits limits = {
        .seed = 7, .subsets = n, .torn = n, .orders = n};
    return CHECK_OK(crash_plan(&c->log, &limits, &c->plan, &err), &err) &&
           CHECK_OK(crash_init(&c->crash, c->before, &c->log, &err), &err);
}

static void scene_end(struct scene *c)
{
    crash_plan_finish(&c->plan);
    crash_finish(&c->crash);
    rhea_storage_close(c->s);
    rhea_storage_close(c->before);
    record_log_finish(&c->log);
}

/* The state that TEXT describes, as a string of its first bytes. */
static const char *build(struct scene *c, const char *text)
{
    static char bytes[8][4096];
    static unsigned next;
    char *to = bytes[next++ % 8];
    struct crash_state state;
    struct rhea_storage *s;
    uint64_t size = 0;
    memset(to, 0, 4096);
    if (!CHECK(crash_parse(text, &state)) ||
        !CHECK_OK(crash_build(&c->crash, &state, &s, &err), &err))
        return "failed";
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    size = RHEA_MIN(size, (uint64_t)4095);
    CHECK_OK(rhea_storage_read(s, to, (size_t)size, 0, &err), &err);
    rhea_storage_close(s);
    for (size_t i = 0; i < size; i++)
        to[i] = to[i] ? to[i] : '.';
    return to;
}

static void put(struct scene *c, const char *text, uint64_t offset)
{
    CHECK_OK(rhea_storage_write(c->s, text, strlen(text), offset, &err), &err);
}

static void flush(struct scene *c)
{
    CHECK_OK(rhea_storage_flush(c->s, &err), &err);
}

static void states_are_what_their_names_say(void)
{
    struct scene c;
    if (!scene_begin(&c, "----------", 10))
        return;
    put(&c, "aaa", 0);                                        /* 0 */
    flush(&c);                                                /* 1 */
    put(&c, "bbb", 2);                                        /* 2 */
    put(&c, "ccc", 4);                                        /* 3 */
    CHECK_OK(rhea_storage_truncate(c.s, 12, &err), &err);     /* 4 */
    CHECK_OK(rhea_storage_zero(c.s, 0, 1, true, &err), &err); /* 5 */
    CHECK_OK(rhea_storage_allocate(c.s, 0, 14, &err), &err);  /* 6 */
    CHECK_OK(rhea_storage_truncate(c.s, 5, &err), &err);      /* 7 */
    if (!scene_plan(&c, 0))
        return;
    CHECK_STR(build(&c, "prefix:0-0:0:0"), "----------");
    CHECK_STR(build(&c, "prefix:0-1:0:0"), "aaa-------");
    CHECK_STR(build(&c, "prefix:2-4:0:0"), "aabbccc---");
    CHECK_STR(build(&c, "prefix:2-5:0:0"), "aabbccc---..");
    CHECK_STR(build(&c, "prefix:2-7:0:0"), ".abbccc---....");
    CHECK_STR(build(&c, "prefix:2-8:0:0"), ".abbc");
    CHECK_STR(build(&c, "drop:2-8:3:0"), ".abbb");
    CHECK_STR(build(&c, "drop:2-8:7:0"), ".abbccc---....");
    CHECK_STR(build(&c, "alone:2-8:2:0"), "aabbb-----");
    CHECK_STR(build(&c, "alone:2-8:6:0"), "aaa-------....");
    CHECK_STR(build(&c, "alone:2-8:7:0"), "aaa--");
    CHECK_STR(build(&c, "late:2-4:2:0"), "aabbbcc---");
    CHECK_STR(build(&c, "late:2-8:3:0"), ".abbccc");
    CHECK_STR(build(&c, "late:2-8:6:0"), ".abbc.........");
    /* Back again. */
    CHECK_STR(build(&c, "prefix:0-1:0:0"), "aaa-------");
    CHECK_STR(build(&c, "alone:0-1:0:0"), "aaa-------");
    scene_end(&c);
}

static void the_plan_has_every_state_once(void)
{
    struct scene c;
    if (!scene_begin(&c, "----------", 10))
        return;
    put(&c, "aaa", 0);  /* 0 */
    flush(&c);          /* 1 */
    put(&c, "bbb", 2);  /* 2 */
    put(&c, "ccc", 4);  /* 3 */
    put(&c, "ddd", 20); /* 4 */
    flush(&c);          /* 5 */
    flush(&c);          /* 6 */
    put(&c, "e", 2);    /* 7 */
    if (!scene_plan(&c, 0))
        return;
    static const char *const want[] = {
        "prefix:0-0:0:0", "prefix:0-1:0:0", "prefix:2-3:0:0", "prefix:2-4:0:0",
        "prefix:2-5:0:0", "drop:2-5:2:0",   "late:2-5:2:0",   "drop:2-5:3:0",
        "alone:2-5:3:0",  "alone:2-5:4:0",  "prefix:7-8:0:0"};
    CHECK_EQ(c.plan.n_states, RHEA_ARRAY_SIZE(want));
    for (size_t i = 0; i < c.plan.n_states && i < RHEA_ARRAY_SIZE(want); i++) {
        char text[64];
        crash_describe(&c.plan.states[i], text, sizeof(text));
        CHECK_STR(text, want[i]);
    }
    scene_end(&c);
}

static void impossible_states_are_refused(void)
{
    struct scene c;
    struct crash_state state;
    struct rhea_storage *s;
    if (!scene_begin(&c, "-", 1))
        return;
    put(&c, "a", 0);
    flush(&c);
    if (!scene_plan(&c, 0))
        return;
    static const char *const bad[] = {
        "prefix:0-3:0:0", "drop:1-0:0:0",   "alone:0-1:1:0", "torn:0-2:1:0",
        "torn:1-2:0:5",   "subset:1-1:0:5", "late:0-1:9:0"};
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(bad); i++) {
        CHECK(crash_parse(bad[i], &state));
        CHECK_EQ(crash_build(&c.crash, &state, &s, &err), -EINVAL);
    }
    CHECK(!crash_parse("", &state));
    CHECK(!crash_parse("prefix:0-1:0", &state));
    CHECK(!crash_parse("prefix:0-1:0:0x", &state));
    CHECK(!crash_parse("whole:0-1:0:0", &state));
    scene_end(&c);
}

/* Make changes of all kinds to a few sectors' worth of bytes. */
static void make_trouble(struct scene *c, uint64_t seed, unsigned n)
{
    uint8_t buf[4096];
    for (unsigned i = 0; i < n; i++) {
        uint64_t offset = test_random(&seed) % 12000;
        uint64_t len = 1 + test_random(&seed) % 4000;
        /* Each op writes a value of its own, so that survivors are known. */
        memset(buf, (int)(i + 1), sizeof(buf));
        switch (test_random(&seed) % 10) {
        case 0:
            CHECK_OK(rhea_storage_truncate(c->s, offset, &err), &err);
            break;
        case 1:
            CHECK_OK(rhea_storage_zero(c->s, offset, len, false, &err), &err);
            break;
        case 2:
            CHECK_OK(rhea_storage_allocate(c->s, offset, len, &err), &err);
            break;
        case 3:
            flush(c);
            break;
        default:
            CHECK_OK(rhea_storage_write(c->s, buf, (size_t)len, offset, &err),
                     &err);
            break;
        }
    }
}

/* What the model allows each byte, and the size, to be. */
struct allowed {
    bool value[16384][256];
    bool size[16384 + 1];
};

static struct allowed allowed;

static void allow_op(const struct record_op *op)
{
    uint64_t end = op->offset + op->length;
    switch (op->kind) {
    case RECORD_WRITE:
    case RECORD_ZERO:
        for (uint64_t i = op->offset; i < end; i++)
            allowed.value[i][op->data ? op->data[0] : 0] = true;
        /* Torn, it may end at any sector. */
        for (uint64_t i = align_up(op->offset + 1, SECTOR); i < end;
             i += SECTOR)
            allowed.size[i] = true;
        break;
    case RECORD_TRUNCATE:
        /* What it cut off comes back as zeroes, if at all. */
        for (uint64_t i = op->offset; i < 16384; i++)
            allowed.value[i][0] = true;
        end = op->offset;
        break;
    case RECORD_ALLOCATE:
    case RECORD_FLUSH:
        break;
    }
    if (op->kind != RECORD_FLUSH)
        allowed.size[end] = true;
}

/* Fill in ALLOWED for a crash in the interval [from, to). */
static void allow(struct scene *c, size_t from, size_t to)
{
    static uint8_t bytes[16384];
    uint64_t size = 0;
    char text[64];
    struct crash_state durable = {.kind = CRASH_PREFIX, .to = from};
    struct rhea_storage *s;
    memset(&allowed, 0, sizeof(allowed));
    crash_describe(&durable, text, sizeof(text));
    if (!CHECK_OK(crash_build(&c->crash, &durable, &s, &err), &err))
        return;
    CHECK_OK(rhea_storage_size(s, &size, &err), &err);
    CHECK_OK(rhea_storage_read_padded(s, bytes, sizeof(bytes), 0, &err), &err);
    rhea_storage_close(s);
    allowed.size[size] = true;
    for (unsigned i = 0; i < sizeof(bytes); i++)
        allowed.value[i][bytes[i]] = true;
    for (size_t i = from; i < to; i++)
        allow_op(&c->log.ops[i]);
}

/* Each byte is an old one or that of an op in doubt, as is the size. */
static bool check_allowed(struct rhea_storage *s)
{
    static uint8_t bytes[16384];
    uint64_t size = 0;
    if (!CHECK_OK(rhea_storage_size(s, &size, &err), &err) ||
        !CHECK(size <= sizeof(bytes)) || !CHECK(allowed.size[size]) ||
        !CHECK_OK(rhea_storage_read(s, bytes, (size_t)size, 0, &err), &err))
        return false;
    for (uint64_t i = 0; i < size; i++) {
        if (!allowed.value[i][bytes[i]])
            return test_report(false, __FILE__, __LINE__,
                               "byte %" PRIu64 " must not be %u", i, bytes[i]);
    }
    return true;
}

/* The last flush before op AT. */
static size_t interval_begin(const struct record_log *log, size_t at)
{
    while (at > 0 && log->ops[at - 1].kind != RECORD_FLUSH)
        at--;
    return at;
}

static void every_state_is_one_the_model_allows(void)
{
    size_t states = 0;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct scene c;
        static uint8_t old[9000];
        memset(old, 0xff, sizeof(old));
        if (!scene_begin(&c, old, sizeof(old)))
            return;
        make_trouble(&c, seed, 40);
        if (!scene_plan(&c, 4))
            return;
        for (size_t i = 0; i < c.plan.n_states; i++) {
            const struct crash_state *state = &c.plan.states[i];
            struct rhea_storage *s;
            char text[64];
            CHECK_EQ(state->from, interval_begin(&c.log, state->to));
            allow(&c, state->from, state->to);
            if (!CHECK_OK(crash_build(&c.crash, state, &s, &err), &err))
                break;
            bool ok = check_allowed(s);
            rhea_storage_close(s);
            crash_describe(state, text, sizeof(text));
            if (!ok) {
                printf("# in state %s of seed %" PRIu64 "\n", text, seed);
                break;
            }
            states++;
        }
        scene_end(&c);
    }
    printf("# %zu states\n", states);
    CHECK(states > 1000);
}

/* The same description builds the same state, whatever was built before. */
static void building_does_not_depend_on_the_order(void)
{
    struct scene c;
    static uint8_t old[9000];
    static uint64_t digests[4000];
    uint64_t seed = 5;
    if (!scene_begin(&c, old, sizeof(old)))
        return;
    make_trouble(&c, 99, 60);
    if (!scene_plan(&c, 5) || !CHECK(c.plan.n_states <= 4000))
        return;
    struct rhea_storage *s;
    size_t distinct = 0;
    for (size_t i = 0; i < c.plan.n_states; i++) {
        if (!CHECK_OK(crash_build(&c.crash, &c.plan.states[i], &s, &err), &err))
            return;
        digests[i] = memory_digest(s);
        rhea_storage_close(s);
        bool seen = false;
        for (size_t j = 0; j < i && !seen; j++)
            seen = digests[i] == digests[j];
        distinct += !seen;
    }
    printf("# %zu states, %zu distinct\n", c.plan.n_states, distinct);
    CHECK(distinct > c.plan.n_states / 2);
    for (unsigned n = 0; n < 500; n++) {
        size_t i = test_random(&seed) % c.plan.n_states;
        char text[64];
        struct crash_state state;
        crash_describe(&c.plan.states[i], text, sizeof(text));
        if (!CHECK(crash_parse(text, &state)) ||
            !CHECK_OK(crash_build(&c.crash, &state, &s, &err), &err))
            break;
        if (!CHECK(memory_digest(s) == digests[i]))
            printf("# state %s\n", text);
        rhea_storage_close(s);
    }
    scene_end(&c);
}

static void a_sample_keeps_the_order(void)
{
    struct scene c;
    if (!scene_begin(&c, "-", 1))
        return;
    make_trouble(&c, 3, 60);
    if (!scene_plan(&c, 5))
        return;
    size_t all = c.plan.n_states;
    struct crash_plan plan = c.plan;
    plan.states = malloc(all * sizeof(*plan.states));
    if (!plan.states)
        exit(99);
    memcpy(plan.states, c.plan.states, all * sizeof(*plan.states));
    crash_plan_sample(&plan, 50, 1);
    CHECK_EQ(plan.n_states, 50);
    size_t at = 0;
    for (size_t i = 0; i < plan.n_states; i++) {
        while (at < all && memcmp(&plan.states[i], &c.plan.states[at],
                                  sizeof(*plan.states)))
            at++;
    }
    CHECK(at < all);
    crash_plan_sample(&plan, 1000, 1);
    CHECK_EQ(plan.n_states, 50);
    crash_plan_finish(&plan);
    scene_end(&c);
}

/* Of a write of eight sectors over old ones. */
static void torn_writes_end_at_sectors(void)
{
    struct scene c;
    static uint8_t old[8192], new[4096], got[8192];
    unsigned partial = 0, first = 0, last = 0, holes = 0;
    memset(old, 'o', sizeof(old));
    memset(new, 'n', sizeof(new));
    if (!scene_begin(&c, old, sizeof(old)))
        return;
    CHECK_OK(rhea_storage_write(c.s, new, 4096, 1024 + 100, &err), &err);
    if (!scene_plan(&c, 200))
        return;
    for (size_t i = 0; i < c.plan.n_states; i++) {
        struct rhea_storage *s;
        unsigned kept = 0, changes = 0;
        if (c.plan.states[i].kind != CRASH_TORN ||
            !CHECK_OK(crash_build(&c.crash, &c.plan.states[i], &s, &err), &err))
            continue;
        CHECK_OK(rhea_storage_read(s, got, 8192, 0, &err), &err);
        rhea_storage_close(s);
        CHECK_MEM(got, old, 1124);
        CHECK_MEM(got + 5220, old, 8192 - 5220);
        for (unsigned sector = 2; sector < 11; sector++) {
            unsigned from = RHEA_MAX(sector * SECTOR, 1124u);
            unsigned to = RHEA_MIN((sector + 1) * SECTOR, 5220u);
            for (unsigned b = from; b < to; b++)
                CHECK_EQ(got[b], got[from]);
            kept += got[from] == 'n';
            changes += sector > 2 && got[from] != got[from - 1];
        }
        CHECK(kept < 9);
        partial += kept > 0;
        holes += changes > 1;
        first += got[1124] == 'n';
        last += got[5219] == 'n';
    }
    CHECK_EQ(partial, 200);
    CHECK(first > 50 && last > 50 && holes > 50);
    scene_end(&c);
}

/*
 * A program in small: it writes a record to a free place, flushes, points to
 * it, flushes. In every state the pointer must lead to a whole record.
 */
static void commit(struct scene *c, uint8_t number)
{
    uint8_t record[1536], pointer[1] = {number};
    memset(record, number, sizeof(record));
    CHECK_OK(rhea_storage_write(c->s, record, sizeof(record),
                                512 + (number % 2) * 1536u, &err),
             &err);
    flush(c);
    CHECK_OK(rhea_storage_write(c->s, pointer, 1, 0, &err), &err);
    flush(c);
}

/* How many states of LOG, from what BEFORE holds, have a broken record. */
static unsigned count_broken(struct rhea_storage *before,
                             const struct record_log *log, unsigned *total)
{
    struct crash_limits limits = {
        .seed = 1, .subsets = 10, .torn = 10, .orders = 10};
    struct crash_plan plan;
    struct crash crash;
    unsigned broken = 0;
    if (!CHECK_OK(crash_plan(log, &limits, &plan, &err), &err) ||
        !CHECK_OK(crash_init(&crash, before, log, &err), &err))
        return 0;
    for (size_t i = 0; i < plan.n_states; i++) {
        struct rhea_storage *s;
        uint8_t record[1536], number;
        bool whole = true;
        if (!CHECK_OK(crash_build(&crash, &plan.states[i], &s, &err), &err))
            break;
        CHECK_OK(rhea_storage_read_padded(s, &number, 1, 0, &err), &err);
        CHECK_OK(rhea_storage_read_padded(s, record, sizeof(record),
                                          512 + (number % 2) * 1536u, &err),
                 &err);
        for (unsigned b = 0; b < sizeof(record); b++)
            whole &= record[b] == number;
        broken += !whole;
        rhea_storage_close(s);
    }
    *total = (unsigned)plan.n_states;
    crash_plan_finish(&plan);
    crash_finish(&crash);
    return broken;
}

static void a_missing_flush_or_a_wrong_order_is_found(void)
{
    struct scene c;
    uint8_t empty[512 + 2 * 1536] = {0};
    unsigned total = 0;
    if (!scene_begin(&c, empty, sizeof(empty)))
        return;
    for (uint8_t i = 1; i < 6; i++)
        commit(&c, i);
    CHECK_EQ(count_broken(c.before, &c.log, &total), 0);
    CHECK(total > 50);
    CHECK_EQ(record_log_flushes(&c.log), 10);
    /* The last flush is the one that nothing follows. */
    for (size_t n = 0; n < 10; n++) {
        struct record_log bad;
        CHECK_OK(record_log_copy(&bad, &c.log, &err), &err);
        CHECK(record_log_remove_flush(&bad, n));
        unsigned broken = count_broken(c.before, &bad, &total);
        CHECK(n == 9 ? broken == 0 : broken > 0);
        record_log_finish(&bad);

        CHECK_OK(record_log_copy(&bad, &c.log, &err), &err);
        if (CHECK(record_log_swap_across_flush(&bad, n) == (n < 9)) && n < 9)
            CHECK(count_broken(c.before, &bad, &total) > 0);
        record_log_finish(&bad);
    }
    scene_end(&c);
}

/* Without order between flushes, the older of two writes may be the last. */
static void order_matters_only_where_writes_overlap(void)
{
    struct scene c;
    unsigned orders = 0, late = 0;
    if (!scene_begin(&c, "----------", 10))
        return;
    put(&c, "aa", 0);
    put(&c, "bb", 2);
    put(&c, "cc", 4);
    flush(&c);
    put(&c, "dd", 1);
    put(&c, "ee", 0);
    put(&c, "ff", 8);
    if (!scene_plan(&c, 10))
        return;
    for (size_t i = 0; i < c.plan.n_states; i++) {
        orders += c.plan.states[i].kind == CRASH_ORDER;
        late += c.plan.states[i].kind == CRASH_LATE;
        if (c.plan.states[i].kind == CRASH_ORDER ||
            c.plan.states[i].kind == CRASH_LATE)
            CHECK_EQ(c.plan.states[i].from, 4);
    }
    CHECK_EQ(orders, 10);
    CHECK_EQ(late, 1);
    CHECK_STR(build(&c, "late:4-7:4:0"), "eddbcc--ff");
    scene_end(&c);
}

/* Thousands of states of a large image are built in a moment. */
static void building_is_cheap(void)
{
    struct scene c;
    static uint8_t bytes[16 << 20];
    test_fill(bytes, sizeof(bytes), 1);
    if (!scene_begin(&c, bytes, sizeof(bytes)))
        return;
    for (unsigned i = 0; i < 200; i++) {
        CHECK_OK(rhea_storage_write(c.s, bytes, 65536, i * 65536u, &err), &err);
        if (i % 20 == 19)
            flush(&c);
    }
    if (!scene_plan(&c, 5))
        return;
    CHECK(c.plan.n_states > 1000);
    for (size_t i = 0; i < c.plan.n_states; i++) {
        struct rhea_storage *s;
        if (!CHECK_OK(crash_build(&c.crash, &c.plan.states[i], &s, &err), &err))
            break;
        rhea_storage_close(s);
    }
    scene_end(&c);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(states_are_what_their_names_say);
    TEST(the_plan_has_every_state_once);
    TEST(impossible_states_are_refused);
    TEST(every_state_is_one_the_model_allows);
    TEST(building_does_not_depend_on_the_order);
    TEST(a_sample_keeps_the_order);
    TEST(torn_writes_end_at_sectors);
    TEST(a_missing_flush_or_a_wrong_order_is_found);
    TEST(order_matters_only_where_writes_overlap);
    TEST(building_is_cheap);
    return test_finish();
}
