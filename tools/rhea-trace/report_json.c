/* SPDX-License-Identifier: MIT */
/*
 * Traces for programs: JSON objects, a line each. "type" of the first is
 * "trace", of the last "end", and of those between "frame". What can be large
 * (addresses, registers) is a string in hexadecimal, for many programs keep
 * only 53 bits of a number. What is not known is left out.
 */
#include <inttypes.h>

#include "report.h"

static int print(json_t *line)
{
    int ret = line ? json_dumpf(line, stdout, JSON_COMPACT) : -1;

    json_decref(line);
    if (ret < 0 || putchar('\n') == EOF) {
        tool_error("cannot print the trace");
        return -1;
    }
    return 0;
}

static json_t *hex(uint64_t value)
{
    char text[20];

    snprintf(text, sizeof(text), "0x%" PRIx64, value);
    return json_string(text);
}

/* --- the trace ----------------------------------------------------------- */

static json_t *sources(const struct tracepoint *p, const char *kind)
{
    json_t *list = json_array();

    for (size_t i = 0; i < p->n_sources; i++)
        if (!strcmp(p->sources[i].kind, kind))
            json_array_append_new(list, tool_json_string(p->sources[i].text));
    return list;
}

static json_t *point(const struct recorded *r, const struct tracepoint *p)
{
    const char *where = recorded_location(p);
    json_t *o = json_object();
    uint64_t hits, usage;

    json_object_set_new(o, "number", json_integer(p->number));
    json_object_set_new(o, "address", hex(p->address));
    if (where)
        json_object_set_new(o, "location", tool_json_string(where));
    json_object_set_new(o, "enabled", json_boolean(p->enabled));
    json_object_set_new(o, "pass-count",
                        json_integer((json_int_t)p->pass_count));
    json_object_set_new(o, "step-count",
                        json_integer((json_int_t)p->step_count));
    json_object_set_new(o, "conditions", sources(p, "cond"));
    json_object_set_new(o, "actions", sources(p, "cmd"));
    if (recorded_counters(r, p, &hits, &usage)) {
        json_object_set_new(o, "hits", json_integer((json_int_t)hits));
        json_object_set_new(o, "bytes", json_integer((json_int_t)usage));
    }
    return o;
}

static json_t *variables(const struct experiment *e)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < EXPERIMENT_MAX_VARIABLES; i++) {
        const struct variable *v = e->variables[i];
        json_t *o;

        if (!v)
            continue;
        o = json_object();
        json_object_set_new(o, "name", tool_json_string(v->name));
        json_object_set_new(o, "initial", json_integer(v->initial));
        json_object_set_new(o, "builtin", json_boolean(v->builtin));
        json_array_append_new(list, o);
    }
    return list;
}

static void put_status(json_t *o, const struct status *s)
{
    json_object_set_new(o, "running", json_boolean(s->running));
    if (s->stop[0])
        json_object_set_new(o, "stop", tool_json_string(s->stop));
    if (!strcmp(s->stop, "tpasscount"))
        json_object_set_new(o, "stop-tracepoint",
                            json_integer((json_int_t)s->point));
    if (s->text[0])
        json_object_set_new(o, "stop-text", tool_json_string(s->text));
    if (s->has_frames)
        json_object_set_new(o, "frames", json_integer((json_int_t)s->frames));
    if (s->has_created)
        json_object_set_new(o, "frames-created",
                            json_integer((json_int_t)s->created));
    json_object_set_new(o, "circular", json_boolean(s->circular));
    if (s->start)
        json_object_set_new(o, "start-us", json_integer((json_int_t)s->start));
    if (s->end)
        json_object_set_new(o, "stop-us", json_integer((json_int_t)s->end));
    if (s->user[0])
        json_object_set_new(o, "user", tool_json_string(s->user));
    if (s->notes[0])
        json_object_set_new(o, "notes", tool_json_string(s->notes));
}

static int begin(const struct recorded *r)
{
    const struct experiment *e = r->experiment;
    json_t *o = json_object(), *points = json_array();

    json_object_set_new(o, "type", json_string("trace"));
    put_status(o, &r->status);
    for (size_t i = 0; i < e->n_points; i++)
        json_array_append_new(points, point(r, e->points[i]));
    json_object_set_new(o, "tracepoints", points);
    json_object_set_new(o, "variables", variables(e));
    return print(o);
}

/* --- frames -------------------------------------------------------------- */

static void add_registers(const struct recorded *r, json_t *o,
                          const struct payload_block *b)
{
    const struct layout *l = recorded_layout(r);
    json_t *registers = json_object();
    char number[REPORT_NUMBER];

    for (unsigned n = 0; n < l->n; n++) {
        const uint8_t *bytes = payload_register(b, l, n);

        if (!bytes)
            continue;
        report_number(number, bytes, l->registers[n].size);
        json_object_set_new(registers, l->registers[n].name,
                            json_string(number));
    }
    json_object_set_new(o, "registers", registers);
}

static json_t *memory(const struct payload_block *b)
{
    static const char digits[] = "0123456789abcdef";
    char *text = tool_realloc(NULL, 2 * b->len + 1);
    json_t *o = json_object();

    for (size_t i = 0; i < b->len; i++) {
        text[2 * i] = digits[b->bytes[i] >> 4];
        text[2 * i + 1] = digits[b->bytes[i] & 15];
    }
    text[2 * b->len] = 0;
    json_object_set_new(o, "address", hex(b->address));
    json_object_set_new(o, "bytes", json_string(text));
    free(text);
    return o;
}

static json_t *variable(const struct recorded *r, const struct payload_block *b)
{
    json_t *o = json_object();
    char name[32];

    json_object_set_new(o, "name",
                        tool_json_string(report_variable(r, b->number, name)));
    json_object_set_new(o, "value", json_integer(b->value));
    return o;
}

static int frame(const struct recorded *r, const struct recorded_frame *f)
{
    struct payload p = payload_of(&f->frame, recorded_layout(r));
    json_t *o = json_object(), *blocks = json_array(), *values = json_array();
    struct payload_block b;

    json_object_set_new(o, "type", json_string("frame"));
    json_object_set_new(o, "frame", json_integer((json_int_t)f->index));
    json_object_set_new(o, "tracepoint", json_integer(f->frame.entry.number));
    if (f->has_pc)
        json_object_set_new(o, "pc", hex(f->frame.entry.pc));
    json_object_set_new(o, "step", json_boolean(f->step));
    if (f->has_cpu)
        json_object_set_new(o, "cpu", json_integer(f->cpu));
    if (f->has_time)
        json_object_set_new(o, "time-ns", json_integer((json_int_t)f->time));
    while (payload_next(&p, &b)) {
        if (b.kind == 'R')
            add_registers(r, o, &b);
        else if (b.kind == 'M')
            json_array_append_new(blocks, memory(&b));
        else
            json_array_append_new(values, variable(r, &b));
    }
    json_object_set_new(o, "memory", blocks);
    json_object_set_new(o, "variables", values);
    return print(o);
}

static int end(const struct recorded *r, uint64_t n_frames)
{
    json_t *o = json_object(), *trouble = json_array();
    char text[512];

    for (unsigned n = 0; recorded_trouble(r, n, text, sizeof(text)); n++)
        json_array_append_new(trouble, tool_json_string(text));
    json_object_set_new(o, "type", json_string("end"));
    json_object_set_new(o, "frames", json_integer((json_int_t)n_frames));
    json_object_set_new(o, "trouble", trouble);
    return print(o);
}

const struct report_form report_json = {begin, frame, end};
