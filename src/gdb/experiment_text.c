/* SPDX-License-Identifier: MIT */
/* Experiments as lines of text, and back. See "Trace File Format" in gdb's
 * manual; a line `reg N:OFFSET:SIZE:NAME`, numbers in hexadecimal, is ours. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/experiment.h"
#include "gdb/source.h"

static void put_hex(FILE *file, const void *bytes, size_t len)
{
    const uint8_t *p = bytes;

    for (size_t i = 0; i < len; i++)
        fprintf(file, "%02x", p[i]);
}

static void save_actions(const struct tracepoint *t, char letter,
                         const struct actions *a, const char *front, FILE *file)
{
    for (size_t i = 0; i < a->n; i++)
        fprintf(file, "%s%c%x:%" PRIx64 ":%s\n", front, letter, t->number,
                t->address, a->list[i].text);
}

static void save_source(const struct tracepoint *t, const char *kind,
                        const char *front, FILE *file, const char *verb,
                        const char *text, size_t len)
{
    size_t verb_len = strlen(verb);

    fprintf(file, "%sZ%x:%" PRIx64 ":%s:0:%zx:", front, t->number, t->address,
            kind, verb_len + len);
    put_hex(file, verb, verb_len);
    put_hex(file, text, len);
    fputc('\n', file);
}

static void save_point(const struct tracepoint *t, bool in_trace_file,
                       const char *front, FILE *file)
{
    fprintf(file, "%sT%x:%" PRIx64 ":%c:%" PRIx64 ":%" PRIx64, front, t->number,
            t->address, t->enabled ? 'E' : 'D', t->step_count, t->pass_count);
    if (t->kind == POINT_FAST)
        fprintf(file, ":F%" PRIx64, t->fast_size);
    if (t->kind == POINT_STATIC)
        fputs(":S", file);
    if (t->condition.code) {
        fprintf(file, ":X%zx,", t->condition.len);
        put_hex(file, t->condition.code, t->condition.len);
    }
    fputc('\n', file);
    save_actions(t, 'A', &t->actions, front, file);
    save_actions(t, 'S', &t->step_actions, front, file);
    for (size_t i = 0; i < t->n_sources; i++) {
        struct source_piece piece = source_begin(&t->sources[i], in_trace_file);

        while (source_next(&piece))
            save_source(t, t->sources[i].kind, front, file, piece.verb,
                        piece.text, piece.len);
    }
}

void experiment_save_point(const struct tracepoint *t, bool in_trace_file,
                           FILE *file)
{
    save_point(t, in_trace_file, "", file);
}

void experiment_save_variable(const struct variable *v, FILE *file)
{
    fprintf(file, "%x:%" PRIx64 ":%x:", v->number, (uint64_t)v->initial,
            v->builtin);
    put_hex(file, v->name, strlen(v->name));
}

void experiment_save_points(const struct experiment *e, bool in_trace_file,
                            FILE *file)
{
    for (size_t i = 0; i < e->n_points; i++)
        save_point(e->points[i], in_trace_file, "tp ", file);
}

void experiment_save_description(const struct experiment *e, FILE *file)
{
    const char *p = e->description ? e->description : "";

    while (*p) {
        size_t len = strcspn(p, "\n");

        fprintf(file, "tdesc %.*s\n", (int)len, p);
        p += len;
        p += *p == '\n';
    }
}

static void save_watch(const struct tracepoint *t, FILE *file)
{
    const struct watch *w = &t->watch;

    if (w->len)
        fprintf(file, "watch %x:%" PRIx64 ":%x:%" PRIx64 ":%" PRIx64 "\n",
                t->number, t->address, w->kind, w->address, w->len);
}

void experiment_save_variables(const struct experiment *e, FILE *file)
{
    for (unsigned i = 0; i < EXPERIMENT_MAX_VARIABLES; i++) {
        if (!e->variables[i])
            continue;
        fputs("tsv ", file);
        experiment_save_variable(e->variables[i], file);
        fputc('\n', file);
    }
}

int experiment_save(const struct experiment *e, FILE *file)
{
    for (unsigned i = 0; i < e->layout.n; i++) {
        const struct layout_register *r = &e->layout.registers[i];

        if (r->size)
            fprintf(file, "reg %x:%x:%x:%s\n", i, r->offset, r->size, r->name);
    }
    experiment_save_variables(e, file);
    experiment_save_points(e, false, file);
    for (size_t i = 0; i < e->n_points; i++)
        save_watch(e->points[i], file);
    for (unsigned i = 0; i < NOTE_COUNT; i++) {
        if (!e->notes[i])
            continue;
        fprintf(file, "note %x:", i);
        put_hex(file, e->notes[i], strlen(e->notes[i]));
        fputc('\n', file);
    }
    experiment_save_description(e, file);
    return ferror(file) ? -ENOMEM : 0;
}

/* --- and back ------------------------------------------------------------ */

/* `A` and `S` lines are packets with a sign in front. */
static int load_actions(struct experiment *e, const char *line, size_t len,
                        struct rhea_error *err)
{
    RHEA_AUTO_FREE char *packet = malloc(len + 2);
    const char *colon = memchr(line + 1, ':', len - 1);
    struct packet_cursor c;
    size_t head;
    bool more;

    if (!packet)
        return rhea_error_errno(err, ENOMEM, "cannot load an experiment");
    colon =
        colon ? memchr(colon + 1, ':', (size_t)(line + len - colon) - 1) : NULL;
    if (!colon)
        return rhea_error_set(err, EINVAL,
                              "an action of a tracepoint has no colon");
    head = (size_t)(colon - line);
    packet[0] = '-';
    memcpy(packet + 1, line + 1, head);
    len -= head + 1;
    if (line[0] == 'S')
        packet[1 + head] = 'S';
    memcpy(packet + 1 + head + (line[0] == 'S'), colon + 1, len);
    c = packet_cursor(packet, 1 + head + (line[0] == 'S') + len);
    return experiment_define(e, c, NULL, &more, err);
}

static int load_point(struct experiment *e, const char *line, size_t len,
                      struct rhea_error *err)
{
    struct packet_cursor c = packet_cursor(line + 1, len - 1);
    bool more;

    switch (line[0]) {
    case 'T':
        return experiment_define(e, c, NULL, &more, err);
    case 'A':
    case 'S':
        return load_actions(e, line, len, err);
    case 'Z':
        return experiment_source(e, c, err);
    default:
        return -ENOTSUP; /* `V`, the counters; whatever gdb adds */
    }
}

static int load_register(struct experiment *e, const char *line, size_t len,
                         struct rhea_error *err)
{
    struct packet_cursor c = packet_cursor(line, len);
    char name[sizeof(e->layout.registers[0].name)];
    uint64_t n, offset, size;
    size_t name_len;

    if (!packet_number(&c, &n) || !packet_skip(&c, ":") ||
        !packet_number(&c, &offset) || !packet_skip(&c, ":") ||
        !packet_number(&c, &size) || !packet_skip(&c, ":") ||
        n >= EXPERIMENT_MAX_REGISTERS || offset >= EXPERIMENT_MAX_G ||
        size > EXPERIMENT_MAX_REGISTER)
        return rhea_error_set(err, EINVAL, "a register cannot be understood");
    name_len = RHEA_MIN((size_t)(c.end - c.at), sizeof(name) - 1);
    memcpy(name, c.at, name_len);
    name[name_len] = 0;
    return layout_add(&e->layout, (unsigned)n, name, (unsigned)offset,
                      (unsigned)size, err);
}

static int load_watch(struct experiment *e, struct packet_cursor c,
                      struct rhea_error *err)
{
    struct watch w = {0};
    uint64_t number, address, kind;
    struct tracepoint *t;

    if (!packet_number(&c, &number) || !packet_skip(&c, ":") ||
        !packet_number(&c, &address) || !packet_skip(&c, ":") ||
        !packet_number(&c, &kind) || !packet_skip(&c, ":") ||
        !packet_number(&c, &w.address) || !packet_skip(&c, ":") ||
        !packet_number(&c, &w.len) || !packet_at_end(&c) || kind < 2 ||
        kind > 4 || !w.len || w.len > EXPERIMENT_MAX_WATCH)
        return rhea_error_set(err, EINVAL, "a watch cannot be understood");
    w.kind = (unsigned)kind;
    t = experiment_find(e, (unsigned)number, address);
    if (!t)
        return rhea_error_set(err, ENOENT, "a watch has no tracepoint");
    t->watch = w;
    return 0;
}

static int load_note(struct experiment *e, struct packet_cursor c,
                     struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = malloc((size_t)(c.end - c.at) + 1);
    uint64_t which;
    size_t len;

    if (!text)
        return rhea_error_errno(err, ENOMEM, "cannot load a note");
    if (!packet_number(&c, &which) || which >= NOTE_COUNT ||
        !packet_skip(&c, ":") ||
        !packet_bytes(&c, text, (size_t)(c.end - c.at), &len) ||
        !packet_at_end(&c))
        return rhea_error_set(err, EINVAL, "a note cannot be understood");
    return experiment_note(e, (enum experiment_note)which, text, len, err);
}

/* A line of the target's description, behind those before. */
static int load_description(struct experiment *e, const char *line, size_t len,
                            struct rhea_error *err)
{
    size_t had = e->description ? strlen(e->description) : 0;
    char *longer;

    if (memchr(line, 0, len))
        return rhea_error_set(err, EINVAL,
                              "the target's description cannot be understood");
    longer = realloc(e->description, had + len + 2);
    if (!longer)
        return rhea_error_errno(err, ENOMEM, "cannot load a description");
    memcpy(longer + had, line, len);
    memcpy(longer + had + len, "\n", 2);
    e->description = longer;
    return 0;
}

int experiment_load_line(struct experiment *e, const char *line, size_t len,
                         struct rhea_error *err)
{
    struct packet_cursor c = packet_cursor(line, len);
    size_t left;

    if (packet_skip(&c, "tp ")) {
        left = (size_t)(c.end - c.at);
        return left ? load_point(e, c.at, left, err) : -ENOTSUP;
    }
    if (packet_skip(&c, "tsv "))
        return experiment_variable(e, c, NULL, err);
    if (packet_skip(&c, "watch "))
        return load_watch(e, c, err);
    if (packet_skip(&c, "note "))
        return load_note(e, c, err);
    if (packet_skip(&c, "tdesc "))
        return load_description(e, c.at, (size_t)(c.end - c.at), err);
    if (packet_skip(&c, "reg "))
        return load_register(e, c.at, (size_t)(c.end - c.at), err);
    return -ENOTSUP;
}

int experiment_load(struct experiment *e, const char *text, size_t len,
                    struct rhea_error *err)
{
    const char *end = text + len;

    for (size_t number = 1; text < end; number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *line_end = newline ? newline : end;
        int ret = experiment_load_line(e, text, (size_t)(line_end - text), err);

        if (ret < 0 && ret != -ENOTSUP) {
            rhea_error_prefix(err, "line %zu of the experiment", number);
            return ret;
        }
        text = newline ? newline + 1 : end;
    }
    return 0;
}
