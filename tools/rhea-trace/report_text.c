/* SPDX-License-Identifier: MIT */
/* Traces for people. */
#include <inttypes.h>
#include <time.h>

#include "base/checked.h"
#include "report.h"

/* Text out of a file, on a terminal. */
static void put_text(const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c < ' ' || c == 127)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

static void put_line(const char *front, const char *text)
{
    fputs(front, stdout);
    put_text(text);
    putchar('\n');
}

/* --- the trace ----------------------------------------------------------- */

/* gdbserver counts from when its machine started. */
enum { FIRST_YEAR = 946684800 /* 2000, in seconds since 1970 */ };

static void put_start(const struct status *s)
{
    time_t seconds = (time_t)(s->start / 1000000);
    char text[40];
    struct tm t;

    if (!s->start)
        return;
    if (seconds >= FIRST_YEAR && gmtime_r(&seconds, &t) &&
        strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &t))
        printf("started: %s.%06" PRIu64 " UTC", text, s->start % 1000000);
    else
        printf("started: at %" PRIu64 ".%06" PRIu64 " s", s->start / 1000000,
               s->start % 1000000);
    if (s->end >= s->start)
        printf(", for %.6f s", (double)(s->end - s->start) / 1e6);
    putchar('\n');
}

static void put_status(const struct recorded *r)
{
    const struct status *s = &r->status;
    char text[600];

    status_describe(s, text, sizeof(text));
    put_line("trace: ", text);
    if (s->has_frames && s->has_created)
        printf("frames: %" PRIu64 " of %" PRIu64 "\n", s->frames, s->created);
    put_start(s);
    if (s->user[0])
        put_line("user: ", s->user);
    if (s->notes[0])
        put_line("notes: ", s->notes);
}

static void put_point(const struct recorded *r, const struct tracepoint *p)
{
    const char *where = recorded_location(p);
    uint64_t hits, usage;

    printf("tracepoint %u at 0x%" PRIx64, p->number, p->address);
    if (where) {
        fputs(" (", stdout);
        put_text(where);
        putchar(')');
    }
    if (recorded_counters(r, p, &hits, &usage))
        printf(": %" PRIu64 " hits", hits);
    if (!p->enabled)
        fputs(", disabled", stdout);
    if (p->pass_count)
        printf(", pass count %" PRIu64, p->pass_count);
    putchar('\n');
    for (size_t i = 0; i < p->n_sources; i++) {
        if (!strcmp(p->sources[i].kind, "cond"))
            put_line("  if ", p->sources[i].text);
        else if (!strcmp(p->sources[i].kind, "cmd"))
            put_line("  ", p->sources[i].text);
    }
}

static int begin(const struct recorded *r)
{
    const struct experiment *e = r->experiment;

    put_status(r);
    for (size_t i = 0; i < e->n_points; i++)
        put_point(r, e->points[i]);
    for (unsigned i = 0; i < EXPERIMENT_MAX_VARIABLES; i++) {
        const struct variable *v = e->variables[i];

        if (!v || v->builtin)
            continue;
        fputs("variable $", stdout);
        put_text(v->name);
        printf(", at first %" PRId64 "\n", v->initial);
    }
    return 0;
}

/* --- frames -------------------------------------------------------------- */

static void put_registers(const struct recorded *r,
                          const struct payload_block *b)
{
    const struct layout *l = recorded_layout(r);
    char number[REPORT_NUMBER];

    for (unsigned n = 0; n < l->n; n++) {
        const uint8_t *bytes = payload_register(b, l, n);

        if (!bytes)
            continue;
        report_number(number, bytes, l->registers[n].size);
        fputs("  ", stdout);
        put_text(l->registers[n].name);
        printf(" = %s\n", number);
    }
}

/* 16 bytes a line, as hexadecimal and as characters. */
static void put_memory(const struct payload_block *b)
{
    for (size_t at = 0; at < b->len; at += 16) {
        size_t n = RHEA_MIN(b->len - at, (size_t)16);

        printf("  0x%" PRIx64 ":", b->address + at);
        for (size_t i = 0; i < 16; i++) {
            if (i < n)
                printf(" %02x", b->bytes[at + i]);
            else if (b->len > 16)
                fputs("   ", stdout);
        }
        fputs("  |", stdout);
        for (size_t i = 0; i < n; i++) {
            uint8_t c = b->bytes[at + i];

            putchar(c >= ' ' && c < 127 ? c : '.');
        }
        fputs("|\n", stdout);
    }
}

static void put_time(const struct recorded *r, uint64_t time)
{
    int64_t t = report_time(r, time);
    uint64_t size = t < 0 ? -(uint64_t)t : (uint64_t)t;

    printf(", %s%" PRIu64 ".%09" PRIu64 " s", t < 0 ? "-" : "",
           size / 1000000000, size % 1000000000);
}

/* Time and processor are in the frame's line. */
static bool is_shown(const struct recorded *r, unsigned number)
{
    return number < EXPERIMENT_MAX_VARIABLES &&
           r->experiment->variables[number] &&
           r->experiment->variables[number]->builtin;
}

static int frame(const struct recorded *r, const struct recorded_frame *f)
{
    struct payload p = payload_of(&f->frame, recorded_layout(r));
    struct payload_block b;
    char name[32];

    printf("frame %" PRIu64 ": tracepoint %u", f->index, f->frame.entry.number);
    if (f->has_pc)
        printf(" at 0x%" PRIx64, f->frame.entry.pc);
    if (f->step)
        fputs(", step", stdout);
    if (f->has_cpu)
        printf(", cpu %u", f->cpu);
    if (f->has_time)
        put_time(r, f->time);
    putchar('\n');
    while (payload_next(&p, &b)) {
        if (b.kind == 'R') {
            put_registers(r, &b);
        } else if (b.kind == 'M') {
            put_memory(&b);
        } else if (!is_shown(r, b.number)) {
            fputs("  $", stdout);
            put_text(report_variable(r, b.number, name));
            printf(" = %" PRId64 "\n", b.value);
        }
    }
    return 0;
}

static int end(const struct recorded *r, uint64_t n_frames)
{
    (void)r;
    printf("%" PRIu64 " frames shown\n", n_frames);
    return 0;
}

const struct report_form report_text = {begin, frame, end};
