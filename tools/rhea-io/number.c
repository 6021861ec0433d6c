/* SPDX-License-Identifier: MIT */
/* Numbers as they are read and printed. */
#include <errno.h>
#include <inttypes.h>

#include "io.h"

int io_size(const char *text, uint64_t *value)
{
    return tool_get_size("argument", text, value);
}

int io_length(const char *text, uint64_t *value)
{
    int ret = io_size(text, value);

    if (ret < 0 || *value <= IO_MAX)
        return ret;
    tool_error("one request is of at most %llu bytes, not of %s", IO_MAX, text);
    return -EINVAL;
}

int io_pattern(const char *text, int *pattern)
{
    char *end;
    long value = strtol(text, &end, 0);

    if (end == text || *end || value < 0 || value > 255) {
        printf("%s is not a valid pattern byte\n", text);
        return -EINVAL;
    }
    *pattern = (int)value;
    return 0;
}

struct io_text io_bytes(double value)
{
    static const char units[][6] = {"bytes", "KiB", "MiB", "GiB",
                                    "TiB",   "PiB", "EiB"};
    unsigned unit = 0;
    struct io_text t;
    char *zeroes;

    for (; value >= 1024 && unit < 6; unit++)
        value /= 1024;
    snprintf(t.text, sizeof(t.text) - 8, unit ? "%.3f" : "%f", value);
    zeroes = strstr(t.text, ".000");
    if (zeroes)
        *zeroes = '\0';
    size_t len = strlen(t.text);
    snprintf(t.text + len, sizeof(t.text) - len, " %s", units[unit]);
    return t;
}

void io_report_start(struct io_report *r)
{
    clock_gettime(CLOCK_MONOTONIC, &r->start);
}

void io_report_end(struct io_report *r)
{
    clock_gettime(CLOCK_MONOTONIC, &r->end);
}

/* Hours and minutes only where there are any, or where ALL is to be seen. */
static struct io_text report_time(double seconds, bool all)
{
    uint64_t whole = (uint64_t)seconds;
    double rest = seconds - (double)(whole - whole % 60);
    struct io_text t;

    if (all || whole)
        snprintf(t.text, sizeof(t.text), "%" PRIu64 ":%02u:%05.2f",
                 whole / 3600, (unsigned)(whole / 60 % 60), rest);
    else
        snprintf(t.text, sizeof(t.text), "%05.2f sec", seconds);
    return t;
}

void io_report_print(const struct io_report *r)
{
    double seconds = (double)(r->end.tv_sec - r->start.tv_sec) +
                     (double)(r->end.tv_nsec - r->start.tv_nsec) / 1e9;
    struct io_text time = report_time(seconds, r->compact);
    double rate = (double)r->count / seconds;

    if (r->quiet)
        return;
    if (r->compact) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", r->count, time.text, rate,
               1 / seconds);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", r->verb,
           r->count, r->count, r->offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n",
           io_bytes((double)r->count).text, time.text, io_bytes(rate).text,
           1 / seconds);
}
