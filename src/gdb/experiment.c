/* SPDX-License-Identifier: MIT */
#include "gdb/experiment.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/ax_code.h"

static int no_memory(struct rhea_error *err)
{
    return rhea_error_errno(err, ENOMEM, "cannot keep the experiment");
}

static int malformed(struct rhea_error *err, const char *what)
{
    return rhea_error_set(err, EINVAL, "%s cannot be understood", what);
}

/* --- life ---------------------------------------------------------------- */

static void actions_finish(struct actions *a)
{
    for (size_t i = 0; i < a->n; i++) {
        free(a->list[i].text);
        free(a->list[i].expression.code);
    }
    free(a->list);
}

static void point_destroy(struct tracepoint *t)
{
    if (!t)
        return;
    free(t->condition.code);
    actions_finish(&t->actions);
    actions_finish(&t->step_actions);
    for (size_t i = 0; i < t->n_sources; i++) {
        free(t->sources[i].kind);
        free(t->sources[i].text);
    }
    free(t->sources);
    free(t);
}

static void point_cleanup(struct tracepoint **t)
{
    point_destroy(*t);
}

static int add_builtin(struct experiment *e, unsigned number, const char *name,
                       struct rhea_error *err)
{
    struct variable *v = calloc(1, sizeof(*v));

    if (!v)
        return no_memory(err);
    v->number = number;
    v->builtin = true;
    snprintf(v->name, sizeof(v->name), "%s", name);
    e->variables[number] = v;
    return 0;
}

int experiment_create(struct experiment **out, struct rhea_error *err)
{
    struct experiment *e = calloc(1, sizeof(*e));
    int ret;

    if (!e)
        return no_memory(err);
    e->layout.pc = -1;
    e->variables = calloc(EXPERIMENT_MAX_VARIABLES, sizeof(struct variable *));
    ret = e->variables ? 0 : no_memory(err);
    if (ret == 0)
        ret = add_builtin(e, VARIABLE_TIMESTAMP, "trace_timestamp", err);
    if (ret == 0)
        ret = add_builtin(e, VARIABLE_CPU, "trace_cpu", err);
    if (ret < 0) {
        experiment_destroy(e);
        return ret;
    }
    *out = e;
    return 0;
}

void experiment_clear(struct experiment *e)
{
    for (size_t i = 0; i < e->n_points; i++)
        point_destroy(e->points[i]);
    free(e->points);
    e->points = NULL;
    e->n_points = 0;
    for (unsigned i = VARIABLE_N_BUILTIN + 1; i < EXPERIMENT_MAX_VARIABLES;
         i++) {
        free(e->variables[i]);
        e->variables[i] = NULL;
    }
}

void experiment_destroy(struct experiment *e)
{
    if (!e)
        return;
    if (e->variables) {
        experiment_clear(e);
        for (unsigned i = 0; i <= VARIABLE_N_BUILTIN; i++)
            free(e->variables[i]);
    }
    free(e->variables);
    free(e->description);
    for (unsigned i = 0; i < NOTE_COUNT; i++)
        free(e->notes[i]);
    free(e);
}

void experiment_set_foreign(struct experiment *e)
{
    for (unsigned i = 0; i <= VARIABLE_N_BUILTIN; i++) {
        free(e->variables[i]);
        e->variables[i] = NULL;
    }
    e->foreign = true;
}

struct tracepoint *experiment_find(const struct experiment *e, unsigned number,
                                   uint64_t address)
{
    /* gdb defines and asks for the latest ones most. */
    for (size_t i = e->n_points; i-- > 0;)
        if (e->points[i]->number == number && e->points[i]->address == address)
            return e->points[i];
    return NULL;
}

static bool knows(const struct experiment *e, const struct expression *x)
{
    int n = x->code ? x->facts.last_variable : -1;

    return n < 0 || (n < EXPERIMENT_MAX_VARIABLES && e->variables[n]);
}

static bool knows_all(const struct experiment *e, const struct actions *a)
{
    for (size_t i = 0; i < a->n; i++)
        if (!knows(e, &a->list[i].expression))
            return false;
    return true;
}

int experiment_has_variables(const struct experiment *e,
                             const struct tracepoint *t, struct rhea_error *err)
{
    if (knows(e, &t->condition) && knows_all(e, &t->actions) &&
        knows_all(e, &t->step_actions))
        return 0;
    return rhea_error_set(err, ENOENT,
                          "a trace state variable of it was made after tracing "
                          "was started: start again");
}

void experiment_drop_last(struct experiment *e)
{
    if (e->n_points)
        point_destroy(e->points[--e->n_points]);
}

/* --- actions ------------------------------------------------------------- */

/* `<length>,<bytes>`, behind the X. */
static int parse_expression(struct packet_cursor *c, struct expression *x,
                            struct rhea_error *err)
{
    uint64_t len;
    size_t got;

    if (!packet_number(c, &len) || !packet_skip(c, ","))
        return malformed(err, "an agent expression");
    if (len > AX_MAX_LENGTH)
        return rhea_error_set(
            err, E2BIG, "agent expression: %" PRIu64 " bytes, more than %d",
            len, AX_MAX_LENGTH);
    if ((uint64_t)(c->end - c->at) < 2 * len)
        return malformed(err, "an agent expression");
    free(x->code);
    x->len = 0;
    x->code = malloc(len ? len : 1);
    if (!x->code)
        return no_memory(err);
    struct packet_cursor bytes = packet_cursor(c->at, 2 * (size_t)len);
    if (!packet_bytes(&bytes, x->code, (size_t)len, &got) || got != len)
        return malformed(err, "an agent expression");
    c->at += 2 * len;
    x->len = (size_t)len;
    return ax_verify(x->code, x->len, &x->facts, err);
}

/* A mask, as one long hexadecimal number. */
static int parse_mask(struct packet_cursor *c, struct register_set *set,
                      struct rhea_error *err)
{
    const char *start = c->at, *p;
    unsigned bit = 0;

    while (c->at < c->end && packet_hex_digit(*c->at) >= 0)
        c->at++;
    for (p = c->at; p > start; bit += 4) {
        unsigned digit = (unsigned)packet_hex_digit(*--p);

        for (unsigned i = 0; i < 4; i++) {
            if (!(digit >> i & 1))
                continue;
            if (bit + i >= EXPERIMENT_MAX_REGISTERS)
                return rhea_error_set(
                    err, EINVAL, "there is no register %u to collect", bit + i);
            register_set_add(set, bit + i);
        }
    }
    return c->at > start ? 0 : malformed(err, "a mask of registers");
}

static int parse_memory(struct packet_cursor *c, struct action *a,
                        struct rhea_error *err)
{
    int64_t base, offset;

    if (!packet_signed(c, &base) || !packet_skip(c, ",") ||
        !packet_signed(c, &offset) || !packet_skip(c, ",") ||
        !packet_number(c, &a->size))
        return malformed(err, "an action that collects memory");
    if (base == 0xffffffff) /* as older ones write -1 */
        base = -1;
    if (base < -1 || base >= EXPERIMENT_MAX_REGISTERS)
        return rhea_error_set(
            err, EINVAL,
            "there is no register %" PRId64 " to collect memory from", base);
    if (a->size > EXPERIMENT_MAX_COLLECT)
        return rhea_error_set(err, E2BIG,
                              "collecting %" PRIu64
                              " bytes at a time is more than %d",
                              a->size, EXPERIMENT_MAX_COLLECT);
    a->base = (int)base;
    a->offset = (uint64_t)offset;
    return 0;
}

/* A constant of an expression, which was verified; false where there is none.
 */
static bool skip_constant(const uint8_t **at, uint64_t *value)
{
    const uint8_t *p = *at;
    unsigned opcode = *p++;

    if (opcode < AX_CONST8 || opcode > AX_CONST64)
        return false;
    *value = 0;
    for (size_t left = (size_t)1 << (opcode - AX_CONST8); left; left--)
        *value = *value << 8 | *p++;
    *at = p;
    return true;
}

/* `collect *(T *) $REG` is an expression in gdb's eyes, and what is traced
 * most: a register's value, which gdb extends to the 64 bits that it has, an
 * offset where there is one, a length, `trace`. It is memory in ours. */
static void find_memory(struct action *a)
{
    const uint8_t *p = a->expression.code;
    unsigned base;
    uint64_t first, size, offset = 0;

    if (*p != AX_REG)
        return;
    base = load_be16(p + 1);
    p += 3;
    if (*p == AX_EXT && p[1] == 64)
        p += 2;
    if (!skip_constant(&p, &first))
        return;
    size = first;
    if (*p == AX_ADD) {
        offset = first;
        p++;
        if (!skip_constant(&p, &size))
            return;
    }
    if (*p != AX_TRACE || p[1] != AX_END || size > EXPERIMENT_MAX_COLLECT)
        return;
    a->kind = ACTION_MEMORY;
    a->base = (int)base;
    a->offset = offset;
    a->size = size;
}

static int parse_action(struct packet_cursor *c, struct action *a,
                        struct register_set *set, struct rhea_error *err)
{
    char letter = *c->at++;
    int ret;

    switch (letter) {
    case 'R':
        a->kind = ACTION_REGISTERS;
        return parse_mask(c, set, err);
    case 'M':
        a->kind = ACTION_MEMORY;
        return parse_memory(c, a, err);
    case 'X':
        a->kind = ACTION_EXPRESSION;
        ret = parse_expression(c, &a->expression, err);
        if (ret == 0 && a->expression.facts.prints)
            ret = rhea_error_set(err, EINVAL,
                                 "a tracepoint's action that prints");
        if (ret == 0)
            find_memory(a);
        return ret;
    case 'L':
        a->kind = ACTION_STATIC;
        return 0;
    default:
        return rhea_error_set(err, EINVAL,
                              "there is no action '%c' of a tracepoint",
                              letter > ' ' && letter < 127 ? letter : '?');
    }
}

static int add_action(struct actions *list, struct packet_cursor *c,
                      struct rhea_error *err)
{
    struct action a = {.base = -1}, *grown;
    struct register_set set = list->registers;
    const char *start = c->at;
    int ret = parse_action(c, &a, &set, err);

    if (ret == 0 && list->n == EXPERIMENT_MAX_ACTIONS)
        ret = rhea_error_set(err, ENOSPC,
                             "a tracepoint with more than %d actions",
                             EXPERIMENT_MAX_ACTIONS);
    if (ret == 0) {
        a.text = strndup(start, (size_t)(c->at - start));
        grown = realloc(list->list, (list->n + 1) * sizeof(a));
        if (grown)
            list->list = grown;
        if (!a.text || !grown)
            ret = no_memory(err);
    }
    if (ret < 0) {
        free(a.text);
        free(a.expression.code);
        return ret;
    }
    list->registers = set;
    list->list[list->n++] = a;
    return 0;
}

static int add_actions(struct tracepoint *t, struct packet_cursor *c,
                       struct rhea_error *err)
{
    int ret = 0;

    while (ret == 0 && !packet_at_end(c) && *c->at != '-') {
        if (packet_skip(c, "S"))
            t->stepping = true;
        else
            ret = add_action(t->stepping ? &t->step_actions : &t->actions, c,
                             err);
    }
    return ret;
}

/* --- tracepoints --------------------------------------------------------- */

/* `:F<size>`, `:S`, `:X<condition>` behind the numbers. */
static int parse_fields(struct tracepoint *t, struct packet_cursor *c,
                        struct rhea_error *err)
{
    while (packet_skip(c, ":")) {
        int ret = 0;

        if (packet_skip(c, "F")) {
            t->kind = POINT_FAST;
            if (!packet_number(c, &t->fast_size))
                ret = malformed(err, "a fast tracepoint's size");
        } else if (packet_skip(c, "S")) {
            t->kind = POINT_STATIC;
        } else if (packet_skip(c, "X")) {
            ret = parse_expression(c, &t->condition, err);
        } else {
            ret = malformed(err, "a field of a tracepoint");
        }
        if (ret < 0)
            return ret;
    }
    if (t->condition.code && t->condition.facts.end_height == 0)
        return rhea_error_set(err, EINVAL,
                              "the condition of tracepoint %u has no value",
                              t->number);
    if (t->condition.facts.records || t->condition.facts.prints)
        return rhea_error_set(err, EINVAL,
                              "the condition of tracepoint %u records or "
                              "prints",
                              t->number);
    return 0;
}

/* `E:step:pass` and the fields, behind number and address. */
static int parse_point(struct tracepoint *t, struct packet_cursor *c,
                       struct rhea_error *err)
{
    t->enabled = packet_skip(c, "E");
    if (!t->enabled && !packet_skip(c, "D"))
        return malformed(err, "a tracepoint");
    if (!packet_skip(c, ":") || !packet_number(c, &t->step_count) ||
        !packet_skip(c, ":") || !packet_number(c, &t->pass_count))
        return malformed(err, "a tracepoint");
    return parse_fields(t, c, err);
}

static int add_point(struct experiment *e, struct packet_cursor *c,
                     unsigned number, uint64_t address, struct rhea_error *err)
{
    struct tracepoint *t __attribute__((cleanup(point_cleanup))) = NULL;
    struct tracepoint **points;
    int ret;

    if (e->n_points == EXPERIMENT_MAX_POINTS)
        return rhea_error_set(err, ENOSPC, "more than %d tracepoints",
                              EXPERIMENT_MAX_POINTS);
    t = calloc(1, sizeof(*t));
    points = realloc(e->points, (e->n_points + 1) * sizeof(*points));
    if (points)
        e->points = points;
    if (!t || !points)
        return no_memory(err);
    t->number = number;
    t->address = address;
    t->slot = (unsigned)e->n_points;
    ret = parse_point(t, c, err);
    if (ret == 0)
        e->points[e->n_points++] = rhea_steal(t);
    return ret;
}

/* `<number>:<address>:`. */
static int parse_name(struct packet_cursor *c, unsigned *number,
                      uint64_t *address, struct rhea_error *err)
{
    uint64_t n;

    if (!packet_number(c, &n) || n > INT32_MAX || !packet_skip(c, ":") ||
        !packet_number(c, address) || !packet_skip(c, ":"))
        return malformed(err, "a tracepoint's number and address");
    *number = (unsigned)n;
    return 0;
}

int experiment_define(struct experiment *e, struct packet_cursor c,
                      struct tracepoint **out, bool *more,
                      struct rhea_error *err)
{
    bool goes_on = packet_skip(&c, "-");
    struct tracepoint *t;
    uint64_t address;
    unsigned number;
    int ret;

    ret = parse_name(&c, &number, &address, err);
    if (ret < 0)
        return ret;
    t = experiment_find(e, number, address);
    if (goes_on && !t)
        return rhea_error_set(err, ENOENT,
                              "there is no tracepoint %u at 0x%" PRIx64, number,
                              address);
    if (!goes_on && t)
        return rhea_error_set(err, EEXIST,
                              "tracepoint %u at 0x%" PRIx64 " is there already",
                              number, address);
    ret = goes_on ? add_actions(t, &c, err)
                  : add_point(e, &c, number, address, err);
    if (ret < 0)
        return ret;
    *more = packet_skip(&c, "-");
    if (!packet_at_end(&c)) {
        if (!goes_on)
            experiment_drop_last(e);
        return malformed(err, "the end of a tracepoint");
    }
    if (out)
        *out = goes_on ? t : e->points[e->n_points - 1];
    return 0;
}

/* --- source strings and variables ---------------------------------------- */

/* Bytes of text in hexadecimal, to the end of the packet. */
static int parse_text(struct packet_cursor *c, char **text, size_t *len,
                      struct rhea_error *err)
{
    size_t room = (size_t)(c->end - c->at) / 2;
    char *p = malloc(room + 1);

    if (!p)
        return no_memory(err);
    if (!packet_bytes(c, p, room, len) || !packet_at_end(c)) {
        free(p);
        return malformed(err, "text in hexadecimal");
    }
    p[*len] = 0;
    *text = p;
    return 0;
}

/* A long string comes in parts, each with its start; the first of which makes
 * a new one, for there are many strings of kind `cmd`. */
static int add_source(struct tracepoint *t, const char *kind, size_t kind_len,
                      uint64_t start, const char *text, size_t len,
                      struct rhea_error *err)
{
    struct source *last = t->n_sources ? &t->sources[t->n_sources - 1] : NULL;
    struct source s = {NULL, NULL}, *grown;

    if (start) {
        size_t had = last && strlen(last->kind) == kind_len &&
                             !memcmp(last->kind, kind, kind_len)
                         ? strlen(last->text)
                         : 0;
        char *longer;

        if (had != start || had + len > EXPERIMENT_MAX_SOURCE)
            return malformed(err, "a part of a source string");
        longer = realloc(last->text, had + len + 1);
        if (!longer)
            return no_memory(err);
        memcpy(longer + had, text, len + 1);
        last->text = longer;
        return 0;
    }
    if (t->n_sources == EXPERIMENT_MAX_SOURCES || len > EXPERIMENT_MAX_SOURCE)
        return rhea_error_set(err, ENOSPC,
                              "tracepoint %u has more commands than can be "
                              "kept",
                              t->number);
    s.kind = strndup(kind, kind_len);
    s.text = strdup(text);
    grown = realloc(t->sources, (t->n_sources + 1) * sizeof(s));
    if (grown)
        t->sources = grown;
    if (!s.kind || !s.text || !grown) {
        free(s.kind);
        free(s.text);
        return no_memory(err);
    }
    t->sources[t->n_sources++] = s;
    return 0;
}

int experiment_source(struct experiment *e, struct packet_cursor c,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    uint64_t address, start, total;
    struct tracepoint *t;
    const char *kind;
    unsigned number;
    size_t kind_len, len;
    int ret;

    ret = parse_name(&c, &number, &address, err);
    if (ret < 0)
        return ret;
    t = experiment_find(e, number, address);
    if (!t)
        return rhea_error_set(err, ENOENT,
                              "there is no tracepoint %u at 0x%" PRIx64, number,
                              address);
    kind = c.at;
    while (!packet_at_end(&c) && *c.at != ':')
        c.at++;
    kind_len = (size_t)(c.at - kind);
    if (!kind_len || kind_len > 16 || !packet_skip(&c, ":") ||
        !packet_number(&c, &start) || !packet_skip(&c, ":") ||
        !packet_number(&c, &total) || !packet_skip(&c, ":"))
        return malformed(err, "a tracepoint's source string");
    ret = parse_text(&c, &text, &len, err);
    if (ret < 0)
        return ret;
    if (strlen(text) != len)
        return malformed(err, "a tracepoint's source string");
    return add_source(t, kind, kind_len, start, text, len, err);
}

/* gdb sends builtin ones back to us under their names. */
static bool is_builtin(const struct experiment *e, uint64_t n, const char *name)
{
    return !e->foreign && n && n <= VARIABLE_N_BUILTIN &&
           !strcmp(e->variables[n]->name, name);
}

int experiment_variable(struct experiment *e, struct packet_cursor c,
                        struct variable **out, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *name = NULL;
    uint64_t n, initial, builtin;
    struct variable *v;
    size_t len;
    int ret;

    if (!packet_number(&c, &n) || !packet_skip(&c, ":") ||
        !packet_number(&c, &initial) || !packet_skip(&c, ":") ||
        !packet_number(&c, &builtin) || !packet_skip(&c, ":"))
        return malformed(err, "a trace state variable");
    ret = parse_text(&c, &name, &len, err);
    if (ret < 0)
        return ret;
    if (strlen(name) != len || len >= sizeof(v->name))
        return malformed(err, "a trace state variable's name");
    if (n == 0 || n >= EXPERIMENT_MAX_VARIABLES)
        return rhea_error_set(err, ENOSPC,
                              "trace state variable $%s has the number %" PRIu64
                              ", and they end at %d",
                              name, n, EXPERIMENT_MAX_VARIABLES - 1);
    if (is_builtin(e, n, name)) {
        if (out)
            *out = e->variables[n];
        return 0;
    }
    if (n <= VARIABLE_N_BUILTIN && !e->foreign)
        return rhea_error_set(err, EEXIST,
                              "trace state variable %" PRIu64
                              " is $%s, which cannot become $%s",
                              n, e->variables[n]->name, name);
    v = e->variables[n] ? e->variables[n] : calloc(1, sizeof(*v));
    if (!v)
        return no_memory(err);
    v->number = (unsigned)n;
    v->initial = (int64_t)initial;
    v->builtin = e->foreign && builtin;
    snprintf(v->name, sizeof(v->name), "%s", name);
    e->variables[n] = v;
    if (out)
        *out = v;
    return 0;
}

int experiment_note(struct experiment *e, enum experiment_note which,
                    const char *text, size_t len, struct rhea_error *err)
{
    char *note = strndup(text, len);

    if (!note)
        return no_memory(err);
    free(e->notes[which]);
    e->notes[which] = note;
    return 0;
}

/* --- the layout ---------------------------------------------------------- */

int layout_add(struct layout *l, unsigned n, const char *name, unsigned offset,
               unsigned size, struct rhea_error *err)
{
    struct layout_register *r = &l->registers[n];

    if (n >= EXPERIMENT_MAX_REGISTERS || !size ||
        size > EXPERIMENT_MAX_REGISTER ||
        !range_inside(offset, size, EXPERIMENT_MAX_G))
        return rhea_error_set(err, EINVAL,
                              "register %s (number %u, %u bytes at %u) is "
                              "none that can be handled",
                              name, n, size, offset);
    for (unsigned i = 0; i < l->n; i++) {
        const struct layout_register *o = &l->registers[i];

        if (o->size && (i == n || (offset < o->offset + (unsigned)o->size &&
                                   o->offset < offset + size)))
            return rhea_error_set(err, EINVAL,
                                  "registers %s and %s are in each other's way",
                                  o->name, name);
    }
    snprintf(r->name, sizeof(r->name), "%s", name);
    r->offset = (uint16_t)offset;
    r->size = (uint8_t)size;
    l->n = RHEA_MAX(l->n, n + 1);
    l->bytes = RHEA_MAX(l->bytes, offset + size);
    if (!strcmp(name, "rip") || !strcmp(name, "eip") || !strcmp(name, "pc"))
        l->pc = (int)n;
    return 0;
}

int layout_number(const struct layout *l, const char *name)
{
    for (unsigned i = 0; i < l->n; i++)
        if (l->registers[i].size && !strcmp(l->registers[i].name, name))
            return (int)i;
    return -1;
}
