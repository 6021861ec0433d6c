/* SPDX-License-Identifier: MIT */
/* Opening, closing and opening again. */
#include <errno.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "io.h"

void io_how_finish(struct io_how *how)
{
    free(how->name);
    free(how->format);
    free(how->cache);
    tool_options_finish(&how->options);
    *how = (struct io_how){.name = NULL};
}

static unsigned file_flags(const struct io_how *how)
{
    bool write = !how->read_only && !how->snapshot;

    return (write ? RHEA_IMAGE_WRITE : 0) |
           (write && how->copy_on_read ? RHEA_IMAGE_COPY_ON_READ : 0) |
           (how->no_lock ? RHEA_IMAGE_NO_LOCK : 0);
}

/* All that is said of the image but its name. */
static int file_options(const struct io_how *how, struct tool_options *all)
{
    int ret = 0;

    if (how->image_opts)
        ret = tool_options_add_first(all, how->name, "file");
    if (how->format)
        tool_options_set(all, "driver", how->format);
    for (size_t i = 0; i < how->options.n; i++)
        tool_options_set(all, how->options.items[i].name,
                         how->options.items[i].value);
    return ret;
}

static int file_open_options(const struct io_how *how,
                             struct rhea_image **image)
{
    bool direct = false, unsafe = false;
    struct tool_options all = {.n = 0};
    struct rhea_error err;
    int ret = 0;

    if (how->cache)
        ret = tool_get_cache(how->cache, &direct, &unsafe);
    if (ret == 0)
        ret = file_options(how, &all);
    if (ret == 0) {
        ret = rhea_image_open_named(
            image, how->image_opts ? NULL : how->name, all.items, all.n,
            file_flags(how) | (direct ? RHEA_IMAGE_DIRECT : 0) |
                (unsafe ? RHEA_IMAGE_NO_FLUSH : 0),
            &err);
        if (ret < 0)
            tool_fail(how->name ? how->name : "the image", &err, 1);
    }
    tool_options_finish(&all);
    return ret;
}

static int file_open(const struct io_how *how, struct rhea_image **image)
{
    struct tool_image what = {
        .name = how->name,
        .format = how->format,
        .image_opts = how->image_opts,
        .cache = how->cache,
        .flags = file_flags(how),
    };

    if (how->options.n)
        return file_open_options(how, image);
    if (!how->name) {
        tool_error("which file is to be opened?");
        return -EINVAL;
    }
    return tool_image_open(&what, image);
}

/* Put an overlay on *IMAGE. */
static int file_snapshot(const struct io_how *how, struct rhea_image **image)
{
    unsigned flags = how->copy_on_read ? RHEA_IMAGE_COPY_ON_READ : 0;
    struct rhea_error err;
    int ret = rhea_image_open_overlay(image, *image, flags, &err);

    if (ret < 0)
        tool_fail(how->name ? how->name : "-s", &err, 1);
    return ret;
}

/* Writes reach the disk at once unless a cache mode says that they need not. */
static bool file_writethrough(const struct io_how *how)
{
    return !how->cache || !strcmp(how->cache, "writethrough") ||
           !strcmp(how->cache, "directsync");
}

int io_open(struct io *io, struct io_how *how)
{
    struct rhea_image *image;
    int ret = -EINVAL;

    if (io->image)
        tool_error("an image is open already; `close` it first");
    else
        ret = file_open(how, &image);
    if (ret == 0 && how->snapshot)
        ret = file_snapshot(how, &image);
    if (ret < 0) {
        io_how_finish(how);
        return ret;
    }
    io->image = image;
    io_how_finish(&io->how);
    io->how = *how;
    io->writethrough = file_writethrough(how);
    *how = (struct io_how){.name = NULL};
    return 0;
}

int io_close(struct io *io)
{
    struct rhea_error err;
    int ret;

    io_breaks_end(io);
    io_aio_drain(io);
    if (!io->image)
        return 0;
    ret = rhea_image_close(io->image, &err);
    io->image = NULL;
    if (ret < 0)
        tool_fail(io->how.name ? io->how.name : "the image", &err, 1);
    return ret;
}

static int close_run(struct io *io, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return io_close(io);
}

/* An option of `open` or of the program. */
int io_how_option(struct io_how *how, int c, const char *value)
{
    bool direct, unsafe;

    switch (c) {
    case 'r':
        how->read_only = true;
        return 0;
    case 's':
        how->snapshot = true;
        return 0;
    case 'C':
        how->copy_on_read = true;
        return 0;
    case 'U':
        how->no_lock = true;
        return 0;
    case 'k':
        return 0;
    case 'n':
        value = "none";
        __attribute__((fallthrough));
    case 't':
        if (tool_get_cache(value, &direct, &unsafe) < 0)
            return -EINVAL;
        free(how->cache);
        how->cache = tool_strdup(value);
        return 0;
    case 'd':
        how->no_discard = !strcmp(value, "off") || !strcmp(value, "ignore");
        if (how->no_discard || !strcmp(value, "on") || !strcmp(value, "unmap"))
            return 0;
        tool_error("there is no discard mode '%s'", value);
        return -EINVAL;
    case 'i':
        if (!strcmp(value, "threads") || !strcmp(value, "native") ||
            !strcmp(value, "io_uring"))
            return 0;
        tool_error("there is no asynchronous mode '%s'", value);
        return -EINVAL;
    default:
        return -ENOENT;
    }
}

static int open_run(struct io *io, int argc, char **argv)
{
    struct io_how how = {.image_opts = io->image_opts};
    int c, ret = 0;

    while (ret == 0 && (c = getopt(argc, argv, "snCro:ki:t:d:U")) != -1) {
        if (c == 'o')
            ret = tool_options_add(&how.options, optarg);
        else
            ret = io_how_option(&how, c, optarg);
    }
    if (ret == -ENOENT || (ret == 0 && optind < argc - 1))
        ret = io_usage(&io_open_command);
    if (ret == 0 && how.image_opts && how.options.n) {
        tool_error("-o and --image-opts exclude each other");
        ret = -EINVAL;
    }
    if (ret < 0) {
        io_how_finish(&how);
        return ret;
    }
    if (optind < argc)
        how.name = tool_strdup(argv[optind]);
    return io_open(io, &how);
}

static void how_copy(struct io_how *to, const struct io_how *from)
{
    *to = *from;
    to->name = from->name ? tool_strdup(from->name) : NULL;
    to->format = from->format ? tool_strdup(from->format) : NULL;
    to->cache = from->cache ? tool_strdup(from->cache) : NULL;
    to->options = (struct tool_options){.n = 0};
    for (size_t i = 0; i < from->options.n; i++)
        tool_options_set(&to->options, from->options.items[i].name,
                         from->options.items[i].value);
}

/* What the image, or its child, is now by the option NAME; NULL: there is no
 * such. *FIXED: that has to stay. */
static const char *reopen_present(const struct io *io, const char *name,
                                  bool *fixed)
{
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    char child[16];

    *fixed = true;
    if (!strcmp(last, "node-name"))
        return tool_options_get(&io->how.options, name);
    *fixed = !strcmp(last, "driver");
    if (!*fixed || !dot)
        return rhea_image_driver(io->image);
    snprintf(child, sizeof(child), "%.*s", (int)RHEA_MIN(dot - name, 15), name);
    return rhea_image_child_driver(io->image, child);
}

/* What -o cannot change while the image stays the same, or says twice. */
static int reopen_check(const struct io *io, const struct tool_options *given,
                        bool mode, bool cache)
{
    for (size_t i = 0; i < given->n; i++) {
        const struct rhea_option *o = &given->items[i];
        bool fixed;
        const char *present = reopen_present(io, o->name, &fixed);

        if (!fixed || (present && !strcmp(present, o->value)))
            continue;
        tool_error("'%s' is open with %s=%s, which `reopen` cannot change",
                   rhea_image_filename(io->image), o->name,
                   present ? present : "(none)");
        return -EINVAL;
    }
    if (mode && tool_options_get(given, "read-only")) {
        tool_error("-r and -w exclude the option read-only");
        return -EINVAL;
    }
    for (size_t i = 0; cache && i < given->n; i++) {
        if (strncmp(given->items[i].name, "cache.", 6))
            continue;
        tool_error("-c excludes the option %s", given->items[i].name);
        return -EINVAL;
    }
    return 0;
}

static int reopen_parse(const struct io *io, struct io_how *how,
                        struct tool_options *given, int argc, char **argv)
{
    bool mode = false, cache = false;
    int c, ret = 0;

    while (ret == 0 && (c = getopt(argc, argv, "c:o:rw")) != -1) {
        if (c == 'c') {
            ret = io_how_option(how, 't', optarg);
            cache = true;
        } else if (c == 'o') {
            ret = tool_options_add(given, optarg);
        } else if ((c == 'r' || c == 'w') && mode) {
            tool_error("only one of -r and -w can be asked for");
            ret = -EINVAL;
        } else if (c == 'r' || c == 'w') {
            how->read_only = c == 'r';
            mode = true;
        } else {
            ret = io_usage(&io_reopen);
        }
    }
    if (ret == 0 && optind != argc)
        ret = io_usage(&io_reopen);
    return ret ? ret : reopen_check(io, given, mode, cache);
}

static int reopen_options(const struct io *io, struct io_how *how, int argc,
                          char **argv)
{
    struct tool_options given = {.n = 0};
    int ret = reopen_parse(io, how, &given, argc, argv);

    for (size_t i = 0; ret == 0 && i < given.n; i++)
        tool_options_set(&how->options, given.items[i].name,
                         given.items[i].value);
    tool_options_finish(&given);
    return ret;
}

/*
 * The image is closed first, for its own lock would be in the way; where it
 * cannot be opened as is asked, it is opened as it was.
 */
static int reopen_run(struct io *io, int argc, char **argv)
{
    struct io_how old, how;
    int ret;

    how_copy(&old, &io->how);
    how_copy(&how, &io->how);
    ret = reopen_options(io, &how, argc, argv);
    if (ret == 0 && how.snapshot) {
        tool_error("what was written since -s would be lost");
        ret = -EINVAL;
    }
    if (ret < 0) {
        io_how_finish(&how);
    } else {
        ret = io_close(io);
        if (ret == 0)
            ret = io_open(io, &how);
        if (ret < 0 && !io->image)
            (void)io_open(io, &old);
        io_how_finish(&how);
    }
    io_how_finish(&old);
    return ret;
}

const struct io_command io_open_command = {
    .name = "open",
    .alias = "o",
    .run = open_run,
    .min = 1,
    .max = -1,
    .flags = IO_NO_FILE,
    .args = "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
    .summary = "open an image",
    .help = "  -C  copy what is read from a backing file\n"
            "  -d  what becomes of discards: unmap or ignore\n"
            "  -i  nothing; requests are made by threads\n"
            "  -k  nothing\n"
            "  -n  past the page cache, as -t none\n"
            "  -o  options: driver=qcow2,file.filename=...\n"
            "  -r  for reading only\n"
            "  -s  forget what was written when it is closed\n"
            "  -t  the cache mode\n"
            "  -U  even if it is in use\n",
};

const struct io_command io_close_command = {
    .name = "close",
    .alias = "c",
    .run = close_run,
    .summary = "close the image",
};

const struct io_command io_reopen = {
    .name = "reopen",
    .run = reopen_run,
    .max = -1,
    .args = "[(-r|-w)] [-c cache] [-o options]",
    .summary = "open the image again with other options",
    .help = "  -c  the cache mode\n"
            "  -o  options of the format\n"
            "  -r  for reading only\n"
            "  -w  for writing too\n",
};
