/* SPDX-License-Identifier: MIT */
/* The commands flush, truncate, quit, sleep, sigraise and abort. */
#include <errno.h>
#include <signal.h>

#include "io.h"

static int flush_run(struct io *io, int argc, char **argv)
{
    struct rhea_error err;
    int ret = rhea_image_flush(io->image, &err);

    (void)argc;
    (void)argv;
    if (ret < 0)
        tool_fail(rhea_image_filename(io->image), &err, 1);
    return ret;
}

static int truncate_run(struct io *io, int argc, char **argv)
{
    struct rhea_resize how = {.shrink = true};
    struct rhea_error err;
    int c, ret;

    while ((c = getopt(argc, argv, "m:")) != -1) {
        if (c != 'm')
            return io_usage(&io_truncate);
        how.preallocation = optarg;
    }
    if (optind != argc - 1)
        return io_usage(&io_truncate);
    ret = io_size(argv[optind], &how.size);
    if (ret < 0)
        return ret;
    ret = rhea_image_resize(io->image, &how, &err);
    if (ret < 0)
        tool_fail(rhea_image_filename(io->image), &err, 1);
    return ret;
}

static int quit_run(struct io *io, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    io->quit = true;
    return 0;
}

static int sleep_run(struct io *io, int argc, char **argv)
{
    char *end;
    long ms = strtol(argv[1], &end, 0);
    struct timespec t;

    (void)argc;
    (void)io;
    if (ms < 0 || end == argv[1] || *end) {
        tool_error("'%s' is no number of milliseconds", argv[1]);
        return -EINVAL;
    }
    t = (struct timespec){ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) < 0 && errno == EINTR)
        ;
    return 0;
}

static int sigraise_run(struct io *io, int argc, char **argv)
{
    uint64_t number;
    int ret = io_size(argv[1], &number);

    (void)argc;
    (void)io;
    if (ret < 0)
        return ret;
    if (number >= NSIG) {
        tool_error("there is no signal %s", argv[1]);
        return -EINVAL;
    }
    fflush(NULL);
    raise((int)number);
    return 0;
}

static int abort_run(struct io *io, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    (void)io;
    abort();
}

const struct io_command io_flush = {
    .name = "flush",
    .alias = "f",
    .run = flush_run,
    .summary = "make all that was written durable",
};

const struct io_command io_truncate = {
    .name = "truncate",
    .alias = "t",
    .run = truncate_run,
    .min = 1,
    .max = 3,
    .flags = IO_WRITES,
    .args = "[-m prealloc_mode] off",
    .summary = "change the size of the disk",
};

const struct io_command io_quit = {
    .name = "quit",
    .alias = "q",
    .run = quit_run,
    .max = -1,
    .flags = IO_NO_FILE,
    .summary = "end the program",
};

const struct io_command io_sleep = {
    .name = "sleep",
    .run = sleep_run,
    .min = 1,
    .max = 1,
    .flags = IO_NO_FILE,
    .args = "milliseconds",
    .summary = "do nothing for a while",
};

const struct io_command io_sigraise = {
    .name = "sigraise",
    .run = sigraise_run,
    .min = 1,
    .max = 1,
    .flags = IO_NO_FILE,
    .args = "signal",
    .summary = "send this program a signal, by its number",
};

const struct io_command io_abort = {
    .name = "abort",
    .run = abort_run,
    .flags = IO_NO_FILE,
    .summary = "end the program as a crash would",
};
