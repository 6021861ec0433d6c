/* SPDX-License-Identifier: MIT */
/* What the files of rhea-io share: the open image, its commands, numbers. */
#ifndef RHEA_IO_H
#define RHEA_IO_H

#include <getopt.h>
#include <time.h>

#include "common/common.h"

/* The most bytes of one request, as in qemu-io. */
#define IO_MAX 2147483136ULL
enum { IO_SECTOR = 512 };

/* How an image was opened, so that it can be opened again. Strings are
 * malloc'd. */
struct io_how {
    char *name, *format, *cache;
    struct tool_options options; /* of `open -o` */
    bool image_opts;             /* NAME is a list of options */
    bool read_only, snapshot, copy_on_read, no_lock;
    bool no_discard;
};

struct io {
    struct rhea_image *image; /* NULL: none is open */
    struct io_how how;
    bool writethrough; /* flush after each write */
    bool image_opts;   /* --image-opts was given */
    bool misalign;
    bool quit;
    struct io_aio *aio; /* requests under way, in the order they came in */
};

/* A command; each file of them declares its own, command.c lists them. */
struct io_command {
    const char *name, *alias; /* alias NULL: none */
    /* argv[0] is the name; optind is reset. 0 or a negative errno; what went
     * wrong has been printed. */
    int (*run)(struct io *io, int argc, char **argv);
    int min, max; /* arguments; max -1: any number */
    enum {
        IO_NO_FILE = 1 << 0,    /* works without an open image */
        IO_WRITES = 1 << 1,     /* needs one that is open for writing */
        IO_BACKGROUND = 1 << 2, /* comes before what earlier ones print */
    } flags;
    const char *args, *summary;
    const char *help; /* more of it; NULL: none */
};

/* command.c */
/* Run one line; a negative errno when it failed. */
int io_run(struct io *io, const char *line);
/* For a command that is called with wrong options. Returns -EINVAL. */
int io_usage(const struct io_command *command);
extern const struct io_command io_help;

/* number.c; what is wrong they print. */
int io_size(const char *text, uint64_t *value);
/* A size of at most IO_MAX. */
int io_length(const char *text, uint64_t *value);
int io_pattern(const char *text, int *pattern);
struct io_text {
    char text[64];
};
/* "1.500 MiB", "64 KiB", "3 bytes" */
struct io_text io_bytes(double value);
/* What a request did, in one line of numbers if COMPACT. */
struct io_report {
    const char *verb;
    uint64_t offset, count;
    bool quiet, compact;
    struct timespec start, end;
};
void io_report_start(struct io_report *r);
void io_report_end(struct io_report *r);
void io_report_print(const struct io_report *r);

/* buffer.c */
/* LEN bytes of PATTERN, for a direct transfer unless to be misaligned; NULL
 * and a message when there is no memory. */
uint8_t *io_buffer(const struct io *io, size_t len, int pattern);
/* LEN bytes of a file, repeated as often as it takes. */
uint8_t *io_buffer_from(const struct io *io, size_t len, const char *filename);
void io_buffer_free(const struct io *io, uint8_t *buf);
void io_dump(const uint8_t *buf, uint64_t offset, size_t len);
/* Whether all is PATTERN; says so where not. */
int io_verify(const uint8_t *buf, uint64_t offset, size_t len, int pattern);
/* The sum of the lengths in ARGV. */
int io_vector(char **argv, int n, uint64_t *len);

/* file.c */
int io_open(struct io *io, struct io_how *how); /* takes HOW over */
int io_close(struct io *io);
void io_how_finish(struct io_how *how);
/* One option of `open`, as getopt returned it; -ENOENT: there is no such. */
int io_how_option(struct io_how *how, int c, const char *value);

/* request.c: reading and writing. */
enum {
    IO_FUA = 1 << 0,
    IO_UNMAP = 1 << 1,
    IO_NO_FALLBACK = 1 << 2,
};
int io_read(struct io *io, uint8_t *buf, size_t len, uint64_t offset,
            struct rhea_error *err);
int io_write(struct io *io, const uint8_t *buf, size_t len, uint64_t offset,
             unsigned flags, struct rhea_error *err);
int io_write_zeroes(struct io *io, uint64_t offset, uint64_t len,
                    unsigned flags, struct rhea_error *err);
int io_write_compressed(struct io *io, const uint8_t *buf, size_t len,
                        uint64_t offset, struct rhea_error *err);
int io_vm_state_read(struct io *io, uint8_t *buf, size_t len, uint64_t offset,
                     struct rhea_error *err);
int io_vm_state_write(struct io *io, const uint8_t *buf, size_t len,
                      uint64_t offset, struct rhea_error *err);
int io_discard(struct io *io, uint64_t offset, uint64_t len,
               struct rhea_error *err);
/* "read failed: Input/output error"; under our own name the reason, too.
 * Returns RET. */
int io_failed(const char *what, int ret, const struct rhea_error *err);

/* aio.c */
/* Wait for all requests, and print what became of them. */
void io_aio_drain(struct io *io);
/* Print what became of those that are done. */
void io_aio_poll(struct io *io);
/* Whether any is not done. */
bool io_aio_busy(const struct io *io);

/* debug.c */
/* Tell of requests that have stopped at a breakpoint since. */
void io_breaks_poll(struct io *io);
/* Let all go on that have stopped. */
void io_breaks_end(struct io *io);

extern const struct io_command io_abort, io_aio_flush, io_aio_read,
    io_aio_write, io_alloc, io_break, io_close_command, io_discard_command,
    io_flush, io_info, io_length_command, io_map, io_open_command, io_quit,
    io_read_command, io_readv, io_remove_break, io_reopen, io_resume,
    io_sigraise, io_sleep, io_truncate, io_wait_break, io_write_command,
    io_writev;

#endif
