/* SPDX-License-Identifier: MIT */
/* The commands break, remove_break, resume and wait_break: requests that stop
 * at an event of a blkdebug node. */
#include <errno.h>
#include <unistd.h>

#include "io.h"
#include "storage/blkdebug.h"

enum { DEBUG_POLL = 2000 }; /* microseconds */

/* The blkdebug node; NULL: there is none. */
static struct rhea_storage *debug_node(const struct io *io)
{
    return io->image ? blkdebug_find(rhea_image_storage(io->image)) : NULL;
}

void io_breaks_poll(struct io *io)
{
    struct rhea_storage *node = debug_node(io);
    char *tag;

    while (node && (tag = blkdebug_news(node))) {
        printf("blkdebug: Suspended request '%s'\n", tag);
        free(tag);
    }
}

void io_breaks_end(struct io *io)
{
    struct rhea_storage *node = debug_node(io);

    if (node)
        blkdebug_resume_all(node);
}

static int break_run(struct io *io, int argc, char **argv)
{
    struct rhea_storage *node = debug_node(io);
    int ret = node ? blkdebug_break(node, argv[1], argv[2]) : -ENOTSUP;

    (void)argc;
    if (ret < 0)
        printf("Could not set breakpoint: %s\n", strerror(-ret));
    return ret;
}

static int remove_break_run(struct io *io, int argc, char **argv)
{
    struct rhea_storage *node = debug_node(io);
    int ret = node ? blkdebug_remove_break(node, argv[1]) : -ENOTSUP;

    (void)argc;
    if (ret < 0)
        printf("Could not remove breakpoint %s: %s\n", argv[1], strerror(-ret));
    return ret;
}

static int resume_run(struct io *io, int argc, char **argv)
{
    struct rhea_storage *node = debug_node(io);
    int ret = -ENOTSUP;

    (void)argc;
    if (node && blkdebug_stopped(node, argv[1]))
        printf("blkdebug: Resuming request '%s'\n", argv[1]);
    if (node)
        ret = blkdebug_resume(node, argv[1]);
    if (ret < 0)
        printf("Could not resume request: %s\n", strerror(-ret));
    return ret;
}

static int wait_break_run(struct io *io, int argc, char **argv)
{
    struct rhea_storage *node = debug_node(io);

    (void)argc;
    while (node && !blkdebug_stopped(node, argv[1])) {
        /* The last one may stop right before it is looked at. */
        if (!io_aio_busy(io) && !blkdebug_stopped(node, argv[1]))
            node = NULL;
        else
            usleep(DEBUG_POLL);
    }
    if (!node) {
        tool_error("there is no request that could stop as %s", argv[1]);
        return -ENOENT;
    }
    io_breaks_poll(io);
    return 0;
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
