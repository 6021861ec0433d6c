/* SPDX-License-Identifier: MIT */
/* The commands break, remove_break, resume and wait_break: requests that stop
 * at an event of a blkdebug node. */
#include <errno.h>

#include "io.h"

void io_breaks_poll(struct io *io)
{
    (void)io;
}

static int break_run(struct io *io, int argc, char **argv)
{
    (void)io;
    (void)argc;
    (void)argv;
    printf("Could not set breakpoint: %s\n", strerror(ENOTSUP));
    return -ENOTSUP;
}

static int remove_break_run(struct io *io, int argc, char **argv)
{
    (void)io;
    (void)argc;
    printf("Could not remove breakpoint %s: %s\n", argv[1], strerror(ENOTSUP));
    return -ENOTSUP;
}

static int resume_run(struct io *io, int argc, char **argv)
{
    (void)io;
    (void)argc;
    (void)argv;
    printf("Could not resume request: %s\n", strerror(ENOTSUP));
    return -ENOTSUP;
}

static int wait_break_run(struct io *io, int argc, char **argv)
{
    (void)io;
    (void)argc;
    tool_error("there is no breakpoint %s", argv[1]);
    return -ENOENT;
}

const struct io_command io_break = {
    .name = "break",
    .run = break_run,
    .min = 2,
    .max = 2,
    .args = "event tag",
    .summary = "let the next request stop at an event, and call it TAG",
};

const struct io_command io_remove_break = {
    .name = "remove_break",
    .run = remove_break_run,
    .min = 1,
    .max = 1,
    .args = "tag",
    .summary = "remove breakpoints, and let requests go on",
};

const struct io_command io_resume = {
    .name = "resume",
    .run = resume_run,
    .min = 1,
    .max = 1,
    .args = "tag",
    .summary = "let a request that has stopped go on",
};

const struct io_command io_wait_break = {
    .name = "wait_break",
    .run = wait_break_run,
    .min = 1,
    .max = 1,
    .args = "tag",
    .summary = "wait until a request has stopped",
};
