/* SPDX-License-Identifier: MIT */
/* The commands write, writev and discard. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "io.h"

enum { WRITE_PATTERN = 0xcd };

struct write_arguments {
    struct io_report report;
    bool vm_state, compressed, zeroes, has_pattern;
    int pattern;
    const char *source; /* a file of bytes; NULL: the pattern */
    unsigned flags;     /* IO_* */
};

static int write_options(const struct io_command *command, const char *letters,
                         int argc, char **argv, struct write_arguments *a)
{
    int c, ret = 0;

    *a = (struct write_arguments){.pattern = WRITE_PATTERN};
    while (ret == 0 && (c = getopt(argc, argv, letters)) != -1) {
        if (c == 'b') {
            a->vm_state = true;
        } else if (c == 'c') {
            a->compressed = true;
        } else if (c == 'C') {
            a->report.compact = true;
        } else if (c == 'f') {
            a->flags |= IO_FUA;
        } else if (c == 'n') {
            a->flags |= IO_NO_FALLBACK;
        } else if (c == 'P') {
            a->has_pattern = true;
            ret = io_pattern(optarg, &a->pattern);
        } else if (c == 'q') {
            a->report.quiet = true;
        } else if (c == 's') {
            a->source = optarg;
        } else if (c == 'u') {
            a->flags |= IO_UNMAP;
        } else if (c == 'z') {
            a->zeroes = true;
        } else if (c == '?') {
            ret = io_usage(command);
        }
    }
    return ret;
}

/* Options that exclude each other; NULL: all is well. */
static const char *write_conflict(const struct write_arguments *a)
{
    if (a->vm_state && a->zeroes)
        return "-b does not go with -z";
    if (a->flags & IO_FUA && (a->vm_state || a->compressed))
        return "-f goes with neither -b nor -c";
    if (a->flags & IO_NO_FALLBACK && !a->zeroes)
        return "-n goes only with -z";
    if (a->flags & IO_UNMAP && !a->zeroes)
        return "-u goes only with -z";
    if (a->zeroes + a->has_pattern + !!a->source > 1)
        return "only one of -z, -P and -s can say what is written";
    return NULL;
}

static int write_range(const struct write_arguments *a)
{
    if ((a->vm_state || a->compressed) &&
        !is_aligned(a->report.offset | a->report.count, IO_SECTOR)) {
        tool_error("-b and -c write whole sectors: offset and length must be "
                   "multiples of 512");
        return -EINVAL;
    }
    return 0;
}

static int write_buffer(struct io *io, const struct write_arguments *a,
                        const uint8_t *buf, struct rhea_error *err)
{
    const struct io_report *r = &a->report;

    if (a->vm_state)
        return io_vm_state_write(io, buf, r->count, r->offset, err);
    /* Zeroes take no space that compressing them could save. */
    if (a->zeroes)
        return io_write_zeroes(io, r->offset, r->count, a->flags, err);
    if (a->compressed)
        return io_write_compressed(io, buf, r->count, r->offset, err);
    return io_write(io, buf, r->count, r->offset, a->flags, err);
}

static int write_do(struct io *io, struct write_arguments *a, const char *what)
{
    struct rhea_error err;
    uint8_t *buf = NULL;
    int ret;

    if (a->source)
        buf = io_buffer_from(io, a->report.count, a->source);
    else if (!a->zeroes)
        buf = io_buffer(io, a->report.count, a->pattern);
    if (!buf && !a->zeroes)
        return -EINVAL;
    a->report.verb = "wrote";
    io_report_start(&a->report);
    ret = write_buffer(io, a, buf, &err);
    io_report_end(&a->report);
    if (ret < 0)
        io_failed(what, ret, &err);
    else
        io_report_print(&a->report);
    io_buffer_free(io, buf);
    return ret;
}

static int write_run(struct io *io, int argc, char **argv)
{
    struct write_arguments a;
    const char *conflict;
    int ret =
        write_options(&io_write_command, "bcCfnpP:qrs:uz", argc, argv, &a);

    if (ret < 0)
        return ret;
    if (optind != argc - 2)
        return io_usage(&io_write_command);
    conflict = write_conflict(&a);
    if (conflict) {
        tool_error("%s", conflict);
        return -EINVAL;
    }
    ret = io_size(argv[optind], &a.report.offset);
    /* What is not carried in a buffer may be of any length. */
    if (ret == 0)
        ret = (a.flags & IO_NO_FALLBACK ? io_size : io_length)(argv[optind + 1],
                                                               &a.report.count);
    if (ret == 0)
        ret = write_range(&a);
    return ret < 0 ? ret : write_do(io, &a, "write");
}

static int writev_run(struct io *io, int argc, char **argv)
{
    struct write_arguments a;
    int ret = write_options(&io_writev, "CfP:qr", argc, argv, &a);

    if (ret < 0)
        return ret;
    if (optind > argc - 2)
        return io_usage(&io_writev);
    ret = io_size(argv[optind], &a.report.offset);
    if (ret == 0)
        ret = io_vector(argv + optind + 1, argc - optind - 1, &a.report.count);
    return ret < 0 ? ret : write_do(io, &a, "writev");
}

static int discard_run(struct io *io, int argc, char **argv)
{
    struct write_arguments a;
    struct rhea_error err;
    int ret = write_options(&io_discard_command, "Cq", argc, argv, &a);

    if (ret < 0)
        return ret;
    if (optind != argc - 2)
        return io_usage(&io_discard_command);
    ret = io_size(argv[optind], &a.report.offset);
    if (ret == 0)
        ret = io_length(argv[optind + 1], &a.report.count);
    if (ret < 0)
        return ret;
    a.report.verb = "discard";
    io_report_start(&a.report);
    ret = io_discard(io, a.report.offset, a.report.count, &err);
    io_report_end(&a.report);
    if (ret < 0)
        return io_failed("discard", ret, &err);
    io_report_print(&a.report);
    return 0;
}

const struct io_command io_write_command = {
    .name = "write",
    .alias = "w",
    .run = write_run,
    .min = 2,
    .max = -1,
    .flags = IO_WRITES,
    .args = "[-bcCfnpqruz] [-P pattern | -s source_file] off len",
    .summary = "write bytes",
    .help = "Writes the byte 0xcd, unless told otherwise.\n\n"
            "  -b  write the VM state, not the disk\n"
            "  -c  compressed\n"
            "  -C  print one line of numbers\n"
            "  -f  return only when it is durable\n"
            "  -n  with -z: fail where zeroes would have to be written out\n"
            "  -p  nothing; for old scripts\n"
            "  -P  write this byte\n"
            "  -q  print nothing if all is well\n"
            "  -r  nothing; there are no buffers to be registered\n"
            "  -s  write what is in a file, over and over\n"
            "  -u  with -z: give space back\n"
            "  -z  write zeroes\n",
};

const struct io_command io_writev = {
    .name = "writev",
    .run = writev_run,
    .min = 2,
    .max = -1,
    .flags = IO_WRITES,
    .args = "[-Cfqr] [-P pattern] off len [len..]",
    .summary = "write bytes from several buffers",
    .help = "  -C  print one line of numbers\n"
            "  -f  return only when it is durable\n"
            "  -P  write this byte\n"
            "  -q  print nothing if all is well\n"
            "  -r  nothing; there are no buffers to be registered\n",
};

const struct io_command io_discard_command = {
    .name = "discard",
    .alias = "d",
    .run = discard_run,
    .min = 2,
    .max = -1,
    .flags = IO_WRITES,
    .args = "[-Cq] off len",
    .summary = "give the space of bytes back",
    .help = "  -C  print one line of numbers\n"
            "  -q  print nothing if all is well\n",
};
