/* SPDX-License-Identifier: MIT */
/* The commands read and readv. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "io.h"

struct read_arguments {
    struct io_report report;
    bool vm_state, dump, verify, has_start, has_length;
    int pattern;
    uint64_t start, length; /* of what is verified, from the buffer's start */
};

static int read_options(const struct io_command *command, const char *letters,
                        int argc, char **argv, struct read_arguments *a)
{
    int c, ret = 0;

    while (ret == 0 && (c = getopt(argc, argv, letters)) != -1) {
        if (c == 'b') {
            a->vm_state = true;
        } else if (c == 'C') {
            a->report.compact = true;
        } else if (c == 'l') {
            a->has_length = true;
            ret = io_size(optarg, &a->length);
        } else if (c == 'P') {
            a->verify = true;
            ret = io_pattern(optarg, &a->pattern);
        } else if (c == 'q') {
            a->report.quiet = true;
        } else if (c == 's') {
            a->has_start = true;
            ret = io_size(optarg, &a->start);
        } else if (c == 'v') {
            a->dump = true;
        } else if (c == '?') {
            ret = io_usage(command);
        }
    }
    return ret;
}

static bool read_aligned(uint64_t value, const char *what)
{
    if (is_aligned(value, IO_SECTOR))
        return true;
    tool_error("VM state is read and written by sectors; the %s %" PRIu64
               " is no multiple of 512",
               what, value);
    return false;
}

static int read_check(struct read_arguments *a)
{
    if (!a->has_length)
        a->length = a->start <= a->report.count ? a->report.count - a->start
                                                : UINT64_MAX;
    if (!range_inside(a->start, a->length, a->report.count)) {
        tool_error("what is to be verified is not within what is read");
        return -EINVAL;
    }
    if (a->vm_state && !(read_aligned(a->report.offset, "offset") &&
                         read_aligned(a->report.count, "length")))
        return -EINVAL;
    return 0;
}

static int read_do(struct io *io, struct read_arguments *a, const char *what)
{
    uint8_t *buf = io_buffer(io, a->report.count, 0xab);
    struct rhea_error err = {0};
    int ret;

    if (!buf)
        return -ENOMEM;
    a->report.verb = "read";
    io_report_start(&a->report);
    ret = (a->vm_state ? io_vm_state_read : io_read)(io, buf, a->report.count,
                                                     a->report.offset, &err);
    io_report_end(&a->report);
    if (ret < 0) {
        io_failed(what, ret, &err);
    } else {
        if (a->verify)
            ret = io_verify(buf + a->start, a->report.offset + a->start,
                            a->length, a->pattern);
        if (a->dump && !a->report.quiet)
            io_dump(buf, a->report.offset, a->report.count);
        io_report_print(&a->report);
    }
    io_buffer_free(io, buf);
    return ret;
}

static int read_run(struct io *io, int argc, char **argv)
{
    struct read_arguments a = {.dump = false};
    int ret = read_options(&io_read_command, "bCl:pP:qrs:v", argc, argv, &a);

    if (ret < 0)
        return ret;
    if (optind != argc - 2 || (!a.verify && (a.has_length || a.has_start)))
        return io_usage(&io_read_command);
    ret = io_size(argv[optind], &a.report.offset);
    if (ret == 0)
        ret = io_length(argv[optind + 1], &a.report.count);
    if (ret == 0)
        ret = read_check(&a);
    return ret < 0 ? ret : read_do(io, &a, "read");
}

static int readv_run(struct io *io, int argc, char **argv)
{
    struct read_arguments a = {.dump = false};
    int ret = read_options(&io_readv, "CP:qrv", argc, argv, &a);

    if (ret < 0)
        return ret;
    if (optind > argc - 2)
        return io_usage(&io_readv);
    ret = io_size(argv[optind], &a.report.offset);
    if (ret == 0)
        ret = io_vector(argv + optind + 1, argc - optind - 1, &a.report.count);
    if (ret == 0)
        ret = read_check(&a);
    return ret < 0 ? ret : read_do(io, &a, "readv");
}

const struct io_command io_read_command = {
    .name = "read",
    .alias = "r",
    .run = read_run,
    .min = 2,
    .max = -1,
    .args = "[-bCpqrv] [-P pattern [-s off] [-l len]] off len",
    .summary = "read bytes",
    .help = "  -b  read the VM state, not the disk\n"
            "  -C  print one line of numbers\n"
            "  -l  how much to compare with the pattern\n"
            "  -p  nothing; for old scripts\n"
            "  -P  compare with this byte\n"
            "  -q  print nothing if all is well\n"
            "  -r  nothing; there are no buffers to be registered\n"
            "  -s  from where to compare with the pattern\n"
            "  -v  print the bytes\n",
};

const struct io_command io_readv = {
    .name = "readv",
    .run = readv_run,
    .min = 2,
    .max = -1,
    .args = "[-Cqrv] [-P pattern] off len [len..]",
    .summary = "read bytes into several buffers",
    .help = "  -C  print one line of numbers\n"
            "  -P  compare with this byte\n"
            "  -q  print nothing if all is well\n"
            "  -r  nothing; there are no buffers to be registered\n"
            "  -v  print the bytes\n",
};
