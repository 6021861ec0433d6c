/* SPDX-License-Identifier: MIT */
/*
 * Requests in the background: a thread each. One that overlaps an earlier one
 * waits for that, unless both read, so that the later write wins. What became
 * of them is printed by the main thread, between commands and in the order in
 * which they were asked for.
 */
#include <errno.h>
#include <pthread.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "io.h"

enum { AIO_MAX = 64 }; /* under way at once */

struct io_aio {
    struct io *io;
    struct io_aio *next;
    struct io_report report;
    bool write, zeroes, dump, verify;
    int pattern;
    unsigned flags;
    uint8_t *buf;
    pthread_t thread;
    bool done; /* under AIO_LOCK, and so is the list */
    int ret;
    struct rhea_error err;
};

static pthread_mutex_t aio_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t aio_changed = PTHREAD_COND_INITIALIZER;

static bool aio_overlap(const struct io_aio *a, const struct io_aio *b)
{
    const struct io_report *x = &a->report, *y = &b->report;

    return (a->write || b->write) && x->offset < y->offset + y->count &&
           y->offset < x->offset + x->count;
}

/* Whether an earlier request is in the way. */
static bool aio_blocked(const struct io_aio *a)
{
    const struct io_aio *b;

    for (b = a->io->aio; b && b != a; b = b->next) {
        if (!b->done && aio_overlap(a, b))
            return true;
    }
    return false;
}

static int aio_do(struct io_aio *a)
{
    const struct io_report *r = &a->report;

    if (a->zeroes)
        return io_write_zeroes(a->io, r->offset, r->count, a->flags, &a->err);
    if (a->write)
        return io_write(a->io, a->buf, r->count, r->offset, a->flags, &a->err);
    return io_read(a->io, a->buf, r->count, r->offset, &a->err);
}

static void *aio_thread(void *opaque)
{
    struct io_aio *a = opaque;

    pthread_mutex_lock(&aio_lock);
    while (aio_blocked(a))
        pthread_cond_wait(&aio_changed, &aio_lock);
    pthread_mutex_unlock(&aio_lock);
    a->ret = aio_do(a);
    io_report_end(&a->report);
    pthread_mutex_lock(&aio_lock);
    a->done = true;
    pthread_cond_broadcast(&aio_changed);
    pthread_mutex_unlock(&aio_lock);
    return NULL;
}

static void aio_print(struct io_aio *a)
{
    if (a->ret < 0) {
        io_failed(a->write ? "aio_write" : "readv", a->ret, &a->err);
        return;
    }
    if (a->verify)
        (void)io_verify(a->buf, a->report.offset, a->report.count, a->pattern);
    if (a->dump && !a->report.quiet)
        io_dump(a->buf, a->report.offset, a->report.count);
    io_report_print(&a->report);
}

static void aio_free(struct io_aio *a)
{
    io_buffer_free(a->io, a->buf);
    free(a);
}

/* Take a request that is done off the list; NULL: none is. */
static struct io_aio *aio_take(struct io *io)
{
    struct io_aio **at, *a;

    RHEA_LOCKED(&aio_lock);
    for (at = &io->aio; *at; at = &(*at)->next) {
        a = *at;
        if (!a->done)
            continue;
        *at = a->next;
        return a;
    }
    return NULL;
}

void io_aio_poll(struct io *io)
{
    struct io_aio *a;

    io_breaks_poll(io);
    while ((a = aio_take(io))) {
        pthread_join(a->thread, NULL);
        aio_print(a);
        aio_free(a);
    }
}

static size_t aio_pending(const struct io *io)
{
    const struct io_aio *a;
    size_t n = 0;

    for (a = io->aio; a; a = a->next)
        n += !a->done;
    return n;
}

/* Until at most N are not done. */
static void aio_wait(struct io *io, size_t n)
{
    pthread_mutex_lock(&aio_lock);
    while (aio_pending(io) > n)
        pthread_cond_wait(&aio_changed, &aio_lock);
    pthread_mutex_unlock(&aio_lock);
}

bool io_aio_busy(const struct io *io)
{
    RHEA_LOCKED(&aio_lock);
    return aio_pending(io) > 0;
}

void io_aio_drain(struct io *io)
{
    aio_wait(io, 0);
    io_aio_poll(io);
}

static int aio_start(struct io_aio *a)
{
    struct io *io = a->io;
    struct io_aio **at;
    int ret;

    if (!a->zeroes)
        a->buf = io_buffer(io, a->report.count, a->write ? a->pattern : 0xab);
    if (!a->buf && !a->zeroes)
        return -ENOMEM;
    a->report.verb = a->write ? "wrote" : "read";
    aio_wait(io, AIO_MAX - 1);
    io_report_start(&a->report);
    RHEA_LOCKED(&aio_lock);
    for (at = &io->aio; *at;)
        at = &(*at)->next;
    *at = a;
    ret = pthread_create(&a->thread, NULL, aio_thread, a);
    if (!ret)
        return 0;
    *at = NULL;
    tool_error("cannot start a thread: %s", strerror(ret));
    return -ret;
}

static int aio_options(const struct io_command *command, const char *letters,
                       int argc, char **argv, struct io_aio *a, bool *invalid)
{
    int c, ret = 0;

    while (ret == 0 && (c = getopt(argc, argv, letters)) != -1) {
        if (c == 'C') {
            a->report.compact = true;
        } else if (c == 'f') {
            a->flags |= IO_FUA;
        } else if (c == 'i') {
            *invalid = true;
        } else if (c == 'P') {
            a->verify = true;
            ret = io_pattern(optarg, &a->pattern);
        } else if (c == 'q') {
            a->report.quiet = true;
        } else if (c == 'u') {
            a->flags |= IO_UNMAP;
        } else if (c == 'v') {
            a->dump = true;
        } else if (c == 'z') {
            a->zeroes = true;
        } else if (c == '?') {
            ret = io_usage(command);
        }
    }
    if (ret == 0 && !*invalid && optind > argc - 2)
        ret = io_usage(command);
    return ret;
}

static int aio_range(struct io_aio *a, int argc, char **argv)
{
    int ret = io_size(argv[optind], &a->report.offset);

    if (ret < 0)
        return ret;
    if (a->zeroes)
        return io_size(argv[optind + 1], &a->report.count);
    return io_vector(argv + optind + 1, argc - optind - 1, &a->report.count);
}

static int aio_run(struct io_aio *a, int argc, char **argv, bool invalid)
{
    int ret;

    if (invalid) {
        printf("injecting invalid %s request\n", a->write ? "write" : "read");
        aio_free(a);
        return 0;
    }
    ret = aio_range(a, argc, argv);
    if (ret == 0)
        ret = aio_start(a);
    if (ret < 0)
        aio_free(a);
    return ret;
}

static struct io_aio *aio_new(struct io *io, bool write)
{
    struct io_aio *a = tool_realloc(NULL, sizeof(*a));

    *a = (struct io_aio){.io = io, .write = write, .pattern = 0xcd};
    return a;
}

static int aio_read_run(struct io *io, int argc, char **argv)
{
    struct io_aio *a = aio_new(io, false);
    bool invalid = false;
    int ret = aio_options(&io_aio_read, "CiP:qrv", argc, argv, a, &invalid);

    if (ret < 0) {
        aio_free(a);
        return ret;
    }
    return aio_run(a, argc, argv, invalid);
}

static int aio_write_run(struct io *io, int argc, char **argv)
{
    struct io_aio *a = aio_new(io, true);
    bool invalid = false;
    const char *wrong = NULL;
    int ret = aio_options(&io_aio_write, "CfiP:qruz", argc, argv, a, &invalid);

    if (ret == 0 && a->zeroes && !invalid && optind != argc - 2)
        wrong = "-z takes one length only";
    else if (ret == 0 && a->zeroes && a->verify)
        wrong = "-z does not go with -P";
    else if (ret == 0 && a->flags & IO_UNMAP && !a->zeroes)
        wrong = "-u goes only with -z";
    if (wrong) {
        tool_error("%s", wrong);
        ret = -EINVAL;
    }
    if (ret < 0) {
        aio_free(a);
        return ret;
    }
    a->verify = false;
    return aio_run(a, argc, argv, invalid);
}

static int aio_flush_run(struct io *io, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    io_aio_drain(io);
    return 0;
}

const struct io_command io_aio_read = {
    .name = "aio_read",
    .run = aio_read_run,
    .min = 2,
    .max = -1,
    .flags = IO_BACKGROUND,
    .args = "[-Ciqrv] [-P pattern] off len [len..]",
    .summary = "read bytes in the background",
    .help = "What it finds is printed once it is done, at the latest by\n"
            "aio_flush.\n\n"
            "  -C  print one line of numbers\n"
            "  -i  do nothing\n"
            "  -P  compare with this byte\n"
            "  -q  print nothing if all is well\n"
            "  -r  nothing; there are no buffers to be registered\n"
            "  -v  print the bytes\n",
};

const struct io_command io_aio_write = {
    .name = "aio_write",
    .run = aio_write_run,
    .min = 2,
    .max = -1,
    .flags = IO_WRITES | IO_BACKGROUND,
    .args = "[-Cfiqruz] [-P pattern] off len [len..]",
    .summary = "write bytes in the background",
    .help = "How it went is printed once it is done, at the latest by\n"
            "aio_flush.\n\n"
            "  -C  print one line of numbers\n"
            "  -f  make it durable, too\n"
            "  -i  do nothing\n"
            "  -P  write this byte\n"
            "  -q  print nothing if all is well\n"
            "  -r  nothing; there are no buffers to be registered\n"
            "  -u  with -z: give space back\n"
            "  -z  write zeroes\n",
};

const struct io_command io_aio_flush = {
    .name = "aio_flush",
    .run = aio_flush_run,
    .summary = "wait for all requests in the background",
};
