/* SPDX-License-Identifier: MIT */
/* What the forms of `rhea-trace report` share. */
#ifndef RHEA_TRACE_REPORT_H
#define RHEA_TRACE_REPORT_H

#include "gdb/recorded.h"
#include "trace.h"

enum { REPORT_NUMBER = 2 * EXPERIMENT_MAX_REGISTER + 3 };

/* A form to print in: the trace as such, each frame, and the end with what is
 * wrong. A message was printed where one fails. */
struct report_form {
    int (*begin)(const struct recorded *r);
    int (*frame)(const struct recorded *r, const struct recorded_frame *f);
    int (*end)(const struct recorded *r, uint64_t n_frames);
};

extern const struct report_form report_text, report_json;

/* "0x1f" of LEN little-endian bytes. */
void report_number(char text[REPORT_NUMBER], const uint8_t *bytes, size_t len);
/* Nanoseconds since tracing began, or since the epoch if that is not known. */
int64_t report_time(const struct recorded *r, uint64_t time);
/* The name of a trace state variable, or its number. */
const char *report_variable(const struct recorded *r, unsigned number,
                            char buf[32]);

#endif
