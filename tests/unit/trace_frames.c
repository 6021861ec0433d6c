/* SPDX-License-Identifier: MIT */
/* The file of trace frames: full, circular, many threads, killed, damaged. */
#include "gdb/frames.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>

#include "lib/test.h"

static struct frames *new_frames(const char *name, uint64_t limit)
{
    struct frames *f = NULL;
    struct rhea_error err;

    unlink(test_path(name));
    CHECK_OK(frames_create(&f, test_path(name), limit, &err), &err);
    return f;
}

/* An experiment of nothing but tracepoints 1 and 2. */
static struct experiment *new_experiment(void)
{
    static const char text[] = "tp T1:1000:E:0:0\ntp T2:2000:D:0:0\n";
    struct experiment *e = NULL;

    CHECK_OK(experiment_create(&e, NULL), NULL);
    CHECK_OK(experiment_load(e, text, sizeof(text) - 1, NULL), NULL);
    return e;
}

static void start(struct frames *f)
{
    struct experiment *e = new_experiment();

    CHECK_OK(frames_publish(f, e, NULL), NULL);
    CHECK_OK(frames_start(f, e, NULL), NULL);
    experiment_destroy(e);
}

/* A frame of which all can be computed from SEED. */
static bool append(struct frames *f, uint64_t seed, size_t len)
{
    static __thread uint8_t payload[FRAMES_MAX_PAYLOAD];
    struct frames_hit hit = {.pc = seed * 16,
                             .run = frames_control(f)->run,
                             .number = (uint32_t)(seed % 7),
                             .cpu = (uint16_t)(seed % 3)};

    memset(payload, (int)(seed & 255), len);
    return frames_append(f, &hit, payload, len);
}

static bool frame_is(struct frames *f, uint64_t n, uint64_t seed, size_t len)
{
    struct frames_frame frame;

    if (!frames_get(f, n, &frame) || frame.entry.pc != seed * 16 ||
        frame.entry.number != seed % 7 || frame.entry.cpu != seed % 3 ||
        frame.head.size != len)
        return false;
    for (size_t i = 0; i < len; i++)
        if (frame.payload[i] != (seed & 255))
            return false;
    return true;
}

static size_t length_of(uint64_t seed)
{
    return (size_t)(seed * 31 % 700);
}

static void a_full_buffer_stops_tracing(void)
{
    struct frames *f = new_frames("full", 1 << 20);
    struct frames_control *c = frames_control(f);
    uint64_t n = 0;

    CHECK(!append(f, 0, 10)); /* nothing runs */
    CHECK_EQ(c->stop, FRAMES_NEVER_RUN);
    start(f);
    while (append(f, n, length_of(n)))
        n++;
    CHECK(n > 1000);
    CHECK(!frames_is_running(c));
    CHECK_EQ(c->stop, FRAMES_FULL);
    CHECK_EQ(frames_count(f), n);
    CHECK_EQ(frames_created(f), n);
    CHECK(c->used <= c->limit && c->limit - c->used < 800);
    for (uint64_t i = 0; i < n; i++)
        if (!CHECK(frame_is(f, i, i, length_of(i))))
            break;
    CHECK(!append(f, 0, 0));
    frames_close(f);
}

static void a_circular_buffer_keeps_the_latest(void)
{
    struct frames *f = new_frames("circular", 100000);
    struct frames_control *c = frames_control(f);
    const uint64_t n = 50000;
    uint64_t count;

    frames_set_circular(f, true);
    start(f);
    for (uint64_t i = 0; i < n; i++) {
        if (!CHECK(append(f, i, length_of(i))))
            break;
        CHECK(c->used <= c->limit);
    }
    CHECK(frames_is_running(c));
    CHECK_EQ(frames_created(f), n);
    count = frames_count(f);
    CHECK(count > 100 && count < 2000);
    for (uint64_t i = 0; i < count; i++)
        if (!CHECK(frame_is(f, i, n - count + i, length_of(n - count + i))))
            break;
    frames_close(f);
}

/* Also where the pages to come go over the end, and when tracing starts again,
 * behind them. */
static void going_ahead_changes_nothing(void)
{
    struct frames *f = new_frames("ahead", 1 << 20);
    const uint64_t n = 10000;

    frames_go_ahead(f);
    frames_set_circular(f, true);
    for (unsigned run = 0; run < 2; run++) {
        uint64_t count;

        start(f);
        for (uint64_t i = 0; i < n; i++) {
            if (!CHECK(append(f, i, length_of(i))))
                break;
            if (i % 50 == 0)
                frames_go_ahead(f);
        }
        count = frames_count(f);
        CHECK(count > 1000 && count < n);
        for (uint64_t i = 0; i < count; i++)
            if (!CHECK(frame_is(f, i, n - count + i, length_of(n - count + i))))
                break;
    }
    frames_close(f);
}

static void empty_frames_are_bounded_by_the_buffer_too(void)
{
    struct frames *f = new_frames("empty", 4800);

    start(f);
    for (int i = 0; i < 100; i++)
        CHECK(append(f, i, 0));
    CHECK(!append(f, 100, 0));
    CHECK_EQ(frames_count(f), 100);
    frames_close(f);
}

static void a_frame_larger_than_the_buffer_stops_tracing(void)
{
    struct frames *f = new_frames("small", 1000);

    frames_set_circular(f, true);
    start(f);
    CHECK(append(f, 1, 900));
    CHECK(append(f, 2, 900));
    CHECK_EQ(frames_count(f), 1);
    CHECK(!append(f, 3, 1001));
    CHECK_EQ(frames_control(f)->stop, FRAMES_FULL);
    frames_close(f);
}

static void frames_are_found(void)
{
    struct frames *f = new_frames("found", 64 << 20);
    struct frames_search s = {.kind = FRAMES_BY_PC, .low = 900 * 16};

    start(f);
    for (uint64_t i = 0; i < 1000; i++)
        append(f, i, 8);
    CHECK_EQ(frames_find(f, 0, &s), 900);
    CHECK_EQ(frames_find(f, 900, &s), 900);
    CHECK_EQ(frames_find(f, 901, &s), -1);
    CHECK_EQ(frames_find(f, 1000, &s), -1);
    s = (struct frames_search){.kind = FRAMES_BY_NUMBER, .low = 3};
    CHECK_EQ(frames_find(f, 4, &s), 10);
    s = (struct frames_search){.kind = FRAMES_BY_RANGE, .low = 33, .high = 64};
    CHECK_EQ(frames_find(f, 0, &s), 3);
    CHECK_EQ(frames_find(f, 4, &s), 4);
    CHECK_EQ(frames_find(f, 5, &s), -1);
    s = (struct frames_search){.kind = FRAMES_BY_OUTSIDE, .low = 0, .high = 64};
    CHECK_EQ(frames_find(f, 0, &s), 5);
    frames_close(f);
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void a_million_frames_are_searched_quickly(void)
{
    struct frames *f = new_frames("million", 64 << 20);
    struct frames_search s = {.kind = FRAMES_BY_PC, .low = 999999 * 16};
    double best = 1;

    start(f);
    for (uint64_t i = 0; i < 1000000; i++)
        append(f, i, 8);
    CHECK_EQ(frames_count(f), 1000000);
    for (int i = 0; i < 5; i++) {
        double t = seconds();

        CHECK_EQ(frames_find(f, 0, &s), 999999);
        t = seconds() - t;
        best = t < best ? t : best;
    }
    printf("# %.1f ms\n", best * 1e3);
    CHECK(best < 0.05);
    frames_close(f);
    unlink(test_path("million"));
}

static void the_first_reason_to_stop_stays(void)
{
    struct frames *f = new_frames("reason", 10000);
    struct frames_control *c = frames_control(f);
    uint64_t run;

    start(f);
    run = c->run;
    frames_stop(f, FRAMES_PASS_COUNT, 5, NULL);
    frames_stop(f, FRAMES_ERROR, 6, "too late");
    CHECK_EQ(c->stop, FRAMES_PASS_COUNT);
    CHECK_EQ(c->stop_point, 5);
    CHECK_STR(c->reason, "");
    start(f);
    CHECK(c->run != run);
    /* A hit that began before does not get into the next run. */
    struct frames_hit late = {.run = run};
    CHECK(!frames_append(f, &late, "x", 1));
    CHECK(frames_is_running(c));
    frames_clear(f);
    CHECK_EQ(c->stop, FRAMES_NEVER_RUN);
    frames_close(f);
}

static void another_process_sees_what_changes(void)
{
    struct frames *f = new_frames("shared", 10000), *g = NULL;
    struct experiment *e = new_experiment();
    struct rhea_error err;
    uint64_t generation;
    char *text;
    size_t len;

    CHECK_OK(frames_publish(f, e, &err), &err);
    CHECK_OK(frames_attach(&g, test_path("shared"), &err), &err);
    if (!g)
        return;
    CHECK_OK(frames_text(g, &text, &len, &generation, &err), &err);
    CHECK_CONTAINS(text, "tp T2:2000:D:0:0\n");
    CHECK_EQ(generation, 1);
    free(text);
    CHECK(frames_point(g, 0)->enabled && !frames_point(g, 1)->enabled);
    CHECK_OK(frames_start(f, e, &err), &err);
    CHECK(append(g, 1, 100));
    CHECK(frame_is(f, 0, 1, 100));
    frames_stop(f, FRAMES_STOPPED, 0, NULL);
    /* The other one maps a ring of another size by itself. */
    CHECK_OK(frames_resize(f, 8 << 20, &err), &err);
    CHECK_EQ(frames_count(g), 0);
    CHECK_OK(frames_start(f, e, &err), &err);
    for (uint64_t i = 0; i < 5000; i++)
        CHECK(append(g, i, 1000));
    CHECK_EQ(frames_resize(f, 10000, &err), -EBUSY);
    CHECK(frame_is(f, 4999, 4999, 1000));
    frames_stop(g, FRAMES_STOPPED, 0, NULL);
    CHECK_OK(frames_resize(f, 10000, &err), &err);
    CHECK_OK(frames_start(f, e, &err), &err);
    CHECK(append(g, 7, 100));
    CHECK(frame_is(f, 0, 7, 100));
    frames_close(g);
    frames_close(f);
    experiment_destroy(e);
}

/* --- many threads -------------------------------------------------------- */

enum { THREADS = 4, EACH = 20000 };

struct worker {
    struct frames *f;
    uint64_t first;
    pthread_t thread;
};

static void *work(void *opaque)
{
    struct worker *w = opaque;

    for (uint64_t i = w->first; i < w->first + EACH; i++)
        append(w->f, i, length_of(i));
    return NULL;
}

static void run_threads(struct frames *f)
{
    struct worker workers[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.f = f, .first = i * EACH};
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
}

/* Each frame is whole, and each thread's are in order; how many. */
static uint64_t check_threads(struct frames *f)
{
    uint64_t last[THREADS] = {0}, n = frames_count(f), time = 0;

    for (uint64_t i = 0; i < n; i++) {
        struct frames_frame frame;
        uint64_t seed;

        if (!CHECK(frames_get(f, i, &frame)))
            return i;
        seed = frame.entry.pc / 16;
        CHECK(frame.head.time >= time);
        time = frame.head.time;
        if (!CHECK(seed < THREADS * EACH) ||
            !CHECK(frame_is(f, i, seed, length_of(seed))) ||
            !CHECK(seed + 1 > last[seed / EACH]))
            return i;
        last[seed / EACH] = seed + 1;
    }
    return n;
}

static void many_threads_store_every_frame(void)
{
    struct frames *f = new_frames("threads", 64 << 20);

    start(f);
    run_threads(f);
    CHECK_EQ(frames_count(f), THREADS * EACH);
    CHECK_EQ(check_threads(f), THREADS * EACH);
    frames_close(f);
    unlink(test_path("threads"));
}

static void many_threads_share_a_circular_buffer(void)
{
    struct frames *f = new_frames("threads2", 50000);

    frames_set_circular(f, true);
    start(f);
    run_threads(f);
    CHECK_EQ(frames_created(f), THREADS * EACH);
    CHECK(check_threads(f) > 50);
    frames_close(f);
}

/* --- ends ---------------------------------------------------------------- */

/* A process that stores frames until it is killed. */
static pid_t start_writer(const char *path)
{
    pid_t pid = fork();

    if (pid == 0) {
        struct frames *g;

        if (frames_attach(&g, path, NULL) == 0)
            for (uint64_t i = 0;; i++)
                append(g, i, length_of(i));
        _exit(1);
    }
    return pid;
}

static void killed_writers_leave_whole_frames(void)
{
    uint64_t seed = 3;

    for (unsigned round = 0; round < 40; round++) {
        bool circular = round & 1;
        struct frames *f = new_frames("killed", circular ? 60000 : 64 << 20);
        uint64_t n, created, lost;
        pid_t pid;
        struct frames *g = NULL;

        frames_set_circular(f, circular);
        start(f);
        pid = start_writer(test_path("killed"));
        while (frames_created(f) < 50)
            usleep(100);
        usleep((useconds_t)(test_random(&seed) % 3000));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        created = frames_created(f);
        n = frames_count(f);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t s = created - n + i;

            if (!CHECK(frame_is(f, i, s, length_of(s))))
                break;
        }
        /* The lock is not lost with who held it. */
        CHECK(append(f, created, 5));
        /* And the file as it lies there is whole, too. Nobody holds it. */
        CHECK(flock(frames_fd(f), LOCK_UN) == 0);
        CHECK_OK(frames_open(&g, test_path("killed"), &lost, NULL), NULL);
        CHECK_EQ(lost, 0);
        CHECK_EQ(frames_count(g), frames_count(f));
        CHECK_EQ(frames_control(g)->stop, FRAMES_CRASHED);
        CHECK(frame_is(g, frames_count(g) - 1, created, 5));
        frames_close(g);
        frames_close(f);
    }
}

/* As what gdb and QEMU leave running for a moment. */
static pid_t start_circular(const char *name)
{
    int ready[2];
    char c;
    pid_t pid;

    CHECK(pipe(ready) == 0);
    pid = fork();
    if (pid == 0) {
        struct frames *f = new_frames(name, 60000);

        frames_set_circular(f, true);
        start(f);
        append(f, 1, 100);
        (void)!write(ready[1], "x", 1);
        usleep(300000);
        _exit(0);
    }
    CHECK(read(ready[0], &c, 1) == 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void what_makes_room_is_not_looked_at(void)
{
    pid_t pid = start_circular("left");
    struct frames *f = new_frames("held", 60000), *g = NULL;
    struct rhea_error err = {0};

    CHECK_OK(frames_open(&g, test_path("left"), NULL, NULL), NULL);
    CHECK_EQ(frames_count(g), 1);
    frames_close(g);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    start(f);
    append(f, 1, 100);
    /* Frames of a linear one stay. */
    CHECK_OK(frames_open(&g, test_path("held"), NULL, NULL), NULL);
    CHECK_EQ(frames_count(g), 1);
    frames_close(g);
    frames_set_circular(f, true);
    CHECK_EQ(frames_open(&g, test_path("held"), NULL, &err), -EBUSY);
    CHECK_CONTAINS(err.text, "stop it first");
    frames_close(f);
}

static void damage(const char *path, uint64_t offset, size_t len)
{
    uint8_t bytes[64] = {0};
    int fd = open(path, O_RDWR);

    CHECK(pwrite(fd, bytes, len, (off_t)offset) == (ssize_t)len);
    close(fd);
}

/* As after a crash of the system: some pages never got to the disk. */
static void torn_frames_are_dropped_and_others_kept(void)
{
    const char *path;
    struct frames *f = new_frames("torn", 1 << 20), *g = NULL;
    struct frames_control *c = frames_control(f), copy;
    struct frames_frame frame;
    uint64_t lost;
    int fd;

    start(f);
    for (uint64_t i = 1; i <= 500; i++)
        append(f, i, 500);
    path = test_path("torn");
    /* Frame 10's bytes, frame 20's index entry. */
    CHECK(frames_get(f, 10, &frame));
    damage(path, c->data + frame.entry.position + 100, 1);
    damage(path, c->ring + 20 * sizeof(struct frames_entry), 24);
    CHECK_OK(frames_open(&g, path, &lost, NULL), NULL);
    CHECK_EQ(lost, 2);
    CHECK_EQ(frames_count(g), 498);
    CHECK(frame_is(g, 9, 10, 500));
    CHECK(frame_is(g, 10, 12, 500));
    CHECK(frame_is(g, 18, 20, 500));
    CHECK(frame_is(g, 19, 22, 500));
    CHECK(frame_is(g, 497, 500, 500));
    frames_close(g);
    /* An old control page: frames that it does not know are found. */
    copy = *c;
    copy.next = 300;
    fd = open(path, O_RDWR);
    CHECK(pwrite(fd, &copy, offsetof(struct frames_control, lock), 0) > 0);
    close(fd);
    CHECK_OK(frames_open(&g, path, &lost, NULL), NULL);
    CHECK_EQ(frames_count(g), 498);
    CHECK_EQ(lost, 2);
    frames_close(g);
    frames_close(f);
}

static void a_torn_experiment_is_that_before(void)
{
    struct frames *f = new_frames("text", 1 << 20), *g = NULL;
    const struct frames_control *c = frames_control(f);
    uint64_t generation, was;
    struct experiment *e;
    char *text = NULL;
    size_t len;

    start(f);
    CHECK_OK(frames_text(f, &text, &len, &was, NULL), NULL);
    CHECK_OK(experiment_create(&e, NULL), NULL);
    CHECK_OK(experiment_load(e, text, len, NULL), NULL);
    free(text);
    CHECK_OK(experiment_note(e, NOTE_STOP, "enough", 6, NULL), NULL);
    CHECK_OK(frames_publish(f, e, NULL), NULL);
    for (unsigned i = 0; i < 2; i++) {
        CHECK_OK(frames_open(&g, test_path("text"), NULL, NULL), NULL);
        CHECK_OK(frames_text(g, &text, &len, &generation, NULL), NULL);
        CHECK_EQ(generation, was + !i);
        CHECK_CONTAINS(text, "tp T1:1000");
        CHECK_EQ(strstr(text, "note") != NULL, !i);
        free(text);
        frames_close(g);
        damage(test_path("text"),
               c->text + ((was + 1) & 1) * (uint64_t)FRAMES_TEXT, 4);
    }
    experiment_destroy(e);
    frames_close(f);
}

static void a_closed_file_opens_as_it_was(void)
{
    struct frames *f = new_frames("closed", 1 << 20), *g = NULL;
    uint64_t lost = 7, generation;
    char *text;
    size_t len;

    start(f);
    for (uint64_t i = 0; i < 100; i++)
        append(f, i, 64);
    frames_stop(f, FRAMES_ERROR, 2, "division by zero");
    frames_close(f);
    CHECK_OK(frames_open(&g, test_path("closed"), &lost, NULL), NULL);
    CHECK_EQ(lost, 0);
    CHECK_EQ(frames_count(g), 100);
    CHECK(frame_is(g, 99, 99, 64));
    CHECK_EQ(frames_control(g)->stop, FRAMES_ERROR);
    CHECK_STR(frames_control(g)->reason, "division by zero");
    CHECK_OK(frames_text(g, &text, &len, &generation, NULL), NULL);
    CHECK_CONTAINS(text, "tp T1:1000");
    free(text);
    frames_close(g);
}

static void files_are_not_overwritten(void)
{
    struct frames *f = new_frames("there", 10000), *g;
    struct rhea_error err;

    CHECK_EQ(frames_create(&g, test_path("there"), 10000, &err), -EEXIST);
    CHECK_CONTAINS(err.text, "there");
    frames_close(f);
    CHECK_EQ(frames_create(&g, "/nonexistent/x", 10000, &err), -ENOENT);
    CHECK_EQ(frames_create(&g, test_path("zero"), 0, &err), -EINVAL);
    CHECK_EQ(frames_create(&g, test_path("huge"), UINT64_C(1) << 60, &err),
             -EINVAL);
}

static void check_damaged(size_t field, uint64_t value, const char *why)
{
    struct frames *f = new_frames("bad", 10000), *g = NULL;
    struct rhea_error err;
    int fd;

    frames_close(f);
    fd = open(test_path("bad"), O_RDWR);
    CHECK(pwrite(fd, &value, 8, (off_t)field) == 8);
    close(fd);
    err.text[0] = 0;
    CHECK_EQ(frames_open(&g, test_path("bad"), NULL, &err), -EINVAL);
    CHECK_CONTAINS(err.text, why);
    /* How many frames there are, only who looks at them wants to know. */
    if (field == offsetof(struct frames_control, next))
        return;
    CHECK_EQ(frames_attach(&g, test_path("bad"), &err), -EINVAL);
    CHECK_CONTAINS(err.text, why);
}

#define FIELD(name) offsetof(struct frames_control, name)

static void damaged_control_pages_are_refused(void)
{
    struct frames *g = NULL;
    struct rhea_error err;
    FILE *file;

    check_damaged(FIELD(magic), 0, "not a file of trace frames");
    check_damaged(FIELD(bytes), 0, "another version");
    check_damaged(FIELD(ring), 1, "another version");
    check_damaged(FIELD(limit), UINT64_MAX, "size is damaged");
    check_damaged(FIELD(limit), 1 << 30, "damaged");
    check_damaged(FIELD(n_entries), 0, "damaged");
    check_damaged(FIELD(data), 4096, "damaged");
    check_damaged(FIELD(data_bytes), 0, "damaged");
    check_damaged(FIELD(next), UINT64_MAX, "number of frames");
    CHECK_EQ(truncate(test_path("bad"), 100000), 0);
    CHECK_EQ(frames_open(&g, test_path("bad"), NULL, &err), -EINVAL);
    file = fopen(test_path("bad"), "w");
    fputs("hello", file);
    fclose(file);
    CHECK_EQ(frames_open(&g, test_path("bad"), NULL, &err), -EINVAL);
}

/* Random damage anywhere: all that is found can be read. */
static void random_damage_is_survived(void)
{
    uint64_t seed = 5;

    for (unsigned round = 0; round < 60; round++) {
        struct frames *f = new_frames("random", 100000), *g = NULL;
        struct frames_control *c = frames_control(f);
        uint64_t ring = c->ring, data = c->data, sum = 0;
        int fd;

        frames_set_circular(f, round & 1);
        start(f);
        for (uint64_t i = 0; i < 1000; i++)
            append(f, i, length_of(i));
        frames_close(f);
        fd = open(test_path("random"), O_RDWR);
        for (unsigned i = 0; i < 50; i++) {
            static const unsigned spans[] = {500, 50000, 100000};
            unsigned where = (unsigned)(test_random(&seed) % 3);
            uint64_t at = test_random(&seed) % spans[where];
            uint64_t value = test_random(&seed);

            at += where == 0 ? 100 : where == 1 ? ring : data;
            /* The layout is checked above, the lock is nobody's here. */
            if (where == 0 && at >= FIELD(ring_generation))
                at = FIELD(first) + at % 16 / 8 * 8;
            if (where == 0)
                value = value % 2000;
            CHECK(pwrite(fd, &value, 8, (off_t)at) == 8);
        }
        uint32_t clean = round & 2 ? 1 : 0;
        CHECK(pwrite(fd, &clean, 4, (off_t)FIELD(clean)) == 4);
        close(fd);
        if (frames_open(&g, test_path("random"), NULL, NULL) == 0) {
            uint64_t n = frames_count(g);

            for (uint64_t i = 0; i < n; i++) {
                struct frames_frame frame;

                if (frames_get(g, i, &frame))
                    for (size_t j = 0; j < frame.head.size; j++)
                        sum += frame.payload[j];
            }
            frames_close(g);
        }
        CHECK(sum != 1);
    }
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(a_full_buffer_stops_tracing);
    TEST(a_circular_buffer_keeps_the_latest);
    TEST(going_ahead_changes_nothing);
    TEST(empty_frames_are_bounded_by_the_buffer_too);
    TEST(a_frame_larger_than_the_buffer_stops_tracing);
    TEST(frames_are_found);
    TEST(a_million_frames_are_searched_quickly);
    TEST(the_first_reason_to_stop_stays);
    TEST(another_process_sees_what_changes);
    TEST(many_threads_store_every_frame);
    TEST(many_threads_share_a_circular_buffer);
    TEST(killed_writers_leave_whole_frames);
    TEST(what_makes_room_is_not_looked_at);
    TEST(torn_frames_are_dropped_and_others_kept);
    TEST(a_torn_experiment_is_that_before);
    TEST(a_closed_file_opens_as_it_was);
    TEST(files_are_not_overwritten);
    TEST(damaged_control_pages_are_refused);
    TEST(random_damage_is_survived);
    return test_finish();
}
