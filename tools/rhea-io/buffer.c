/* SPDX-License-Identifier: MIT */
/* Buffers of guest bytes. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "io.h"

enum {
    BUFFER_ALIGN = 4096,
    BUFFER_MISALIGN = 16, /* with -m */
    BUFFER_LINE = 16,     /* bytes in a line of a dump */
};

static size_t buffer_shift(const struct io *io)
{
    return io->misalign ? BUFFER_MISALIGN : 0;
}

uint8_t *io_buffer(const struct io *io, size_t len, int pattern)
{
    void *buf;

    if (posix_memalign(&buf, BUFFER_ALIGN, len + buffer_shift(io) + 1)) {
        tool_error("no memory for %zu bytes", len);
        return NULL;
    }
    memset(buf, pattern, len + buffer_shift(io));
    return (uint8_t *)buf + buffer_shift(io);
}

void io_buffer_free(const struct io *io, uint8_t *buf)
{
    if (buf)
        free(buf - buffer_shift(io));
}

uint8_t *io_buffer_from(const struct io *io, size_t len, const char *filename)
{
    FILE *f = fopen(filename, "r");
    uint8_t *buf;
    size_t n;

    if (!f) {
        tool_error("cannot read '%s': %s", filename, strerror(errno));
        return NULL;
    }
    buf = io_buffer(io, len, 0);
    n = buf ? fread(buf, 1, len, f) : 0;
    if (buf && len && !n) {
        tool_error(ferror(f) ? "cannot read '%s'" : "'%s' is empty", filename);
        io_buffer_free(io, buf);
        buf = NULL;
    }
    for (size_t at = n; buf && at < len; at++)
        buf[at] = buf[at - n];
    fclose(f);
    return buf;
}

void io_dump(const uint8_t *buf, uint64_t offset, size_t len)
{
    for (size_t at = 0; at < len; at += BUFFER_LINE) {
        size_t n = RHEA_MIN(len - at, BUFFER_LINE);

        printf("%08" PRIx64 ":  ", offset + at);
        for (size_t i = 0; i < n; i++)
            printf("%02x ", buf[at + i]);
        putchar(' ');
        for (size_t i = 0; i < n; i++)
            putchar(isalnum(buf[at + i]) ? buf[at + i] : '.');
        putchar('\n');
    }
}

int io_verify(const uint8_t *buf, uint64_t offset, size_t len, int pattern)
{
    if (!len || (buf[0] == pattern && !memcmp(buf, buf + 1, len - 1)))
        return 0;
    printf("Pattern verification failed at offset %" PRIu64 ", %zu bytes\n",
           offset, len);
    return -EINVAL;
}

int io_vector(char **argv, int n, uint64_t *len)
{
    *len = 0;
    for (int i = 0; i < n; i++) {
        uint64_t one;
        int ret = io_length(argv[i], &one);

        if (ret < 0)
            return ret;
        *len += one;
        if (*len > IO_MAX) {
            tool_error("one request is of at most %llu bytes", IO_MAX);
            return -EINVAL;
        }
    }
    return 0;
}
