/* SPDX-License-Identifier: MIT */
/*
 * rhea-img bench: many requests of one size, some of them at a time, each on a
 * thread of its own.
 */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "tool.h"

enum { BENCH_DEPTH_MAX = 1024, BENCH_ALIGN = 4096, BENCH_STACK = 256 << 10 };

struct bench_arguments {
    struct tool_image image;
    uint64_t count, depth, offset, size, step, pattern, flush_interval;
    bool write, no_drain;
    bool write_through; /* each write is durable before the next one */
};

struct bench {
    const struct bench_arguments *arguments;
    struct rhea_image *image;
    unsigned char *pattern; /* what is written, by all */

    pthread_mutex_t lock; /* for all that follows */
    pthread_cond_t drained;
    uint64_t offset; /* of the next request */
    uint64_t begun, ended;
    unsigned in_flight;
    bool draining; /* nothing is begun until a flush has ended */
    int ret;       /* the first failure */
    struct rhea_error err;
};

static void bench_fail(struct bench *b, int ret, const struct rhea_error *err)
{
    if (b->ret == 0) {
        b->ret = ret;
        b->err = *err;
    }
    pthread_cond_broadcast(&b->drained);
}

/* The lock is held, but not while it flushes. */
static void bench_flush(struct bench *b)
{
    struct rhea_error err;
    int ret;

    pthread_mutex_unlock(&b->lock);
    ret = rhea_image_flush(b->image, &err);
    pthread_mutex_lock(&b->lock);
    if (ret < 0)
        bench_fail(b, ret, &err);
}

static bool bench_begin(struct bench *b, uint64_t *offset)
{
    const struct bench_arguments *a = b->arguments;

    while (b->draining && b->ret == 0)
        pthread_cond_wait(&b->drained, &b->lock);
    if (b->ret < 0 || b->begun == a->count)
        return false;
    *offset = b->offset;
    b->offset = (b->offset + a->step) % rhea_image_size(b->image);
    b->begun++;
    b->in_flight++;
    if (a->flush_interval && !a->no_drain)
        b->draining = b->begun % a->flush_interval == 0;
    return true;
}

static void bench_end(struct bench *b)
{
    const struct bench_arguments *a = b->arguments;

    b->in_flight--;
    b->ended++;
    if (a->no_drain && a->flush_interval && b->ended % a->flush_interval == 0)
        bench_flush(b);
    if (!b->draining || b->in_flight)
        return;
    bench_flush(b);
    b->draining = false;
    pthread_cond_broadcast(&b->drained);
}

static int bench_request(const struct bench *b, void *buf, uint64_t offset,
                         struct rhea_error *err)
{
    const struct bench_arguments *a = b->arguments;
    int ret;

    if (!a->write)
        return rhea_image_read(b->image, buf, a->size, offset, err);
    ret = rhea_image_write(b->image, b->pattern, a->size, offset, err);
    if (ret == 0 && a->write_through)
        ret = rhea_image_flush(b->image, err);
    return ret;
}

static void *bench_allocate(uint64_t size)
{
    return aligned_alloc(BENCH_ALIGN,
                         align_up(size ? size : 1, (uint64_t)BENCH_ALIGN));
}

static void *bench_work(void *opaque)
{
    struct bench *b = opaque;
    void *buf = b->pattern ? NULL : bench_allocate(b->arguments->size);
    struct rhea_error err;
    uint64_t offset;
    int ret = 0;

    if (!buf && !b->pattern)
        ret = rhea_error_set(&err, ENOMEM, "out of memory");
    pthread_mutex_lock(&b->lock);
    if (ret < 0)
        bench_fail(b, ret, &err);
    while (bench_begin(b, &offset)) {
        pthread_mutex_unlock(&b->lock);
        ret = bench_request(b, buf, offset, &err);
        pthread_mutex_lock(&b->lock);
        if (ret < 0)
            bench_fail(b, ret, &err);
        bench_end(b);
    }
    pthread_mutex_unlock(&b->lock);
    free(buf);
    return NULL;
}

static int bench_threads(struct bench *b, struct rhea_error *err)
{
    pthread_t threads[BENCH_DEPTH_MAX];
    unsigned n = (unsigned)RHEA_MIN(b->arguments->depth, b->arguments->count);
    unsigned started, i;
    pthread_attr_t attributes;
    int code = 0;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, BENCH_STACK);
    for (started = 0; started < n && !code; started += !code)
        code = pthread_create(&threads[started], &attributes, bench_work, b);
    pthread_attr_destroy(&attributes);
    if (code) {
        struct rhea_error failure;
        int ret = rhea_error_errno(&failure, code, "cannot start a thread");

        pthread_mutex_lock(&b->lock);
        bench_fail(b, ret, &failure);
        pthread_mutex_unlock(&b->lock);
    }
    for (i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    *err = b->err;
    return b->ret;
}

static void bench_announce(const struct bench_arguments *a)
{
    printf("Sending %ju %s requests, %ju bytes each, %ju in parallel "
           "(starting at offset %ju, step size %ju)\n",
           (uintmax_t)a->count, a->write ? "write" : "read", (uintmax_t)a->size,
           (uintmax_t)a->depth, (uintmax_t)a->offset, (uintmax_t)a->step);
    if (a->flush_interval)
        printf("Sending flush every %ju requests\n",
               (uintmax_t)a->flush_interval);
    fflush(stdout);
}

static double bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int bench_image(struct bench *b)
{
    const struct bench_arguments *a = b->arguments;
    struct rhea_error err;
    double start;

    if (!rhea_image_size(b->image)) {
        tool_error("%s is empty", a->image.name);
        return 1;
    }
    if (a->write) {
        b->pattern = bench_allocate(a->size);
        if (!b->pattern) {
            tool_error("out of memory");
            return 1;
        }
        memset(b->pattern, (int)a->pattern, a->size);
    }
    bench_announce(a);
    start = bench_now();
    if (bench_threads(b, &err) < 0)
        return tool_fail(a->image.name, &err, 1);
    printf("Run completed in %3.3f seconds.\n", bench_now() - start);
    return 0;
}

static int bench_do(const struct bench_arguments *a)
{
    struct bench b = {
        .arguments = a,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .drained = PTHREAD_COND_INITIALIZER,
        .offset = a->offset,
    };
    struct rhea_error err;
    int code;

    if (tool_image_open(&a->image, &b.image) < 0)
        return 1;
    code = bench_image(&b);
    free(b.pattern);
    if (rhea_image_close(b.image, &err) < 0 && !code)
        code = tool_fail(a->image.name, &err, 1);
    return tool_finish_output(code, 1);
}

static int bench_check(struct bench_arguments *a)
{
    if (!a->step)
        a->step = a->size;
    if (a->flush_interval && !a->write)
        return tool_usage(&tool_bench,
                          "bench: --flush-interval goes with -w only");
    if (a->flush_interval && a->flush_interval < a->depth)
        return tool_usage(&tool_bench,
                          "bench: fewer requests between two flushes (%ju) "
                          "than at a time (%ju)",
                          (uintmax_t)a->flush_interval, (uintmax_t)a->depth);
    return -1;
}

static int bench_get(const char *what, uint64_t *value, uint64_t min,
                     uint64_t max)
{
    if (tool_get_size(what, optarg, value) < 0)
        return 1;
    if (*value >= min && *value <= max)
        return -1;
    tool_error("the %s is from %ju to %ju, not %s", what, (uintmax_t)min,
               (uintmax_t)max, optarg);
    return 1;
}

static int bench_get_aio(const char *text)
{
    if (!strcmp(text, "threads") || !strcmp(text, "native") ||
        !strcmp(text, "io_uring"))
        return -1;
    tool_error("-i is threads, native or io_uring, not '%s'", text);
    return 1;
}

/* One option; -1 to go on, else the exit code. */
static int bench_option(struct bench_arguments *a, int c, char **argv)
{
    switch (c) {
    case 'c':
        return bench_get("number of requests", &a->count, 0, INT32_MAX);
    case 'd':
        return bench_get("number of requests at a time", &a->depth, 1,
                         BENCH_DEPTH_MAX);
    case 'i':
        return bench_get_aio(optarg);
    case 'n':
    case 'q':
        return -1;
    case 'o':
        return bench_get("offset", &a->offset, 0, INT64_MAX);
    case 's':
        return bench_get("size of a request", &a->size, 0, INT32_MAX);
    case 'S':
        return bench_get("step size", &a->step, 0, INT32_MAX);
    case 't':
        a->image.cache = optarg;
        a->write_through =
            !strcmp(optarg, "writethrough") || !strcmp(optarg, "directsync");
        return -1;
    case 'w':
        a->write = true;
        a->image.flags |= RHEA_IMAGE_WRITE;
        return -1;
    case TOOL_OPT_FLUSH_INTERVAL:
        return bench_get("number of requests between two flushes",
                         &a->flush_interval, 0, INT32_MAX);
    case TOOL_OPT_NO_DRAIN:
        a->no_drain = true;
        return -1;
    case TOOL_OPT_PATTERN:
        return bench_get("pattern byte", &a->pattern, 0, 255);
    default:
        return tool_image_option(&tool_bench, &a->image, c, argv);
    }
}

static int bench_parse(struct bench_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"flush-interval", required_argument, NULL, TOOL_OPT_FLUSH_INTERVAL},
        {"force-share", no_argument, NULL, 'U'},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"no-drain", no_argument, NULL, TOOL_OPT_NO_DRAIN},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"pattern", required_argument, NULL, TOOL_OPT_PATTERN},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hc:d:f:ni:o:qs:S:t:wU", long_options,
                            NULL)) != -1) {
        code = bench_option(a, c, argv);
        if (code >= 0)
            return code;
    }
    code = tool_only_file(&tool_bench, argc, argv, &a->image.name);
    if (code >= 0)
        return code;
    return bench_check(a);
}

static int bench_run(int argc, char **argv)
{
    struct bench_arguments a = {.count = 75000, .depth = 64, .size = 4096};
    int code = bench_parse(&a, argc, argv);

    return code < 0 ? bench_do(&a) : code;
}

const struct tool_command tool_bench = {
    .name = "bench",
    .summary = "Measure how fast an image is read or written",
    .usage = "[-f FORMAT] [-c COUNT] [-d DEPTH] [-s SIZE] [-S STEP] "
             "[-o OFFSET]\n"
             "                      [-w] [--pattern=BYTE] "
             "[--flush-interval=COUNT] [--no-drain]\n"
             "                      [-t CACHE] [-i AIO] [-n] [-q] [-U] "
             "[--image-opts]\n"
             "                      [--object OBJECT] FILE",
    .help =
        "  -f FORMAT               of the image; else it is found out\n"
        "  -c COUNT                requests in all (75000)\n"
        "  -d DEPTH                requests at a time, up to 1024 (64)\n"
        "  -s SIZE                 bytes of a request (4096)\n"
        "  -S STEP                 from one request to the next (SIZE)\n"
        "  -o OFFSET               of the first request (0)\n"
        "  -w                      write; the image's contents are lost\n"
        "      --pattern=BYTE      what is written (0)\n"
        "      --flush-interval=N  flush after every N requests\n"
        "      --no-drain          and do not wait for them before it\n"
        "  -t CACHE                none: past the page cache; writethrough: "
        "each\n"
        "                          write is durable\n"
        "  -i AIO, -n, -q          accepted, and without effect\n"
        "  -U, --force-share       even if the image is in use\n"
        "      --object OBJECT     such as a secret that the image needs\n"
        "      --image-opts        FILE is a list of options, NAME=VALUE,...\n",
    .run = bench_run,
    .usage_code = 1,
};
