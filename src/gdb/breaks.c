/* SPDX-License-Identifier: MIT */
#include "gdb/breaks.h"

#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"

static void drop_extras(struct breakpoint *p)
{
    for (unsigned i = 0; i < p->n_conditions; i++)
        free(p->conditions[i].code);
    for (unsigned i = 0; i < p->n_commands; i++)
        free(p->commands[i].code);
    free(p->conditions);
    free(p->commands);
    p->conditions = p->commands = NULL;
    p->n_conditions = p->n_commands = 0;
    p->persist = false;
}

void breaks_finish(struct breaks *b)
{
    for (size_t i = 0; i < b->n; i++)
        drop_extras(&b->list[i]);
    free(b->list);
    *b = (struct breaks){0};
}

static bool is_wanted(const struct breakpoint *p)
{
    return p->by_gdb || p->traced;
}

struct breakpoint *breaks_find(const struct breaks *b, enum break_type type,
                               uint64_t address)
{
    for (size_t i = 0; i < b->n; i++)
        if (b->list[i].address == address && b->list[i].type == type)
            return &b->list[i];
    return NULL;
}

struct breakpoint *breaks_at(const struct breaks *b, uint64_t address,
                             bool by_gdb)
{
    for (unsigned type = BREAK_SOFTWARE; type <= BREAK_HARDWARE; type++) {
        struct breakpoint *p = breaks_find(b, type, address);

        if (p && (by_gdb ? p->by_gdb : p->traced > 0))
            return p;
    }
    return NULL;
}

static struct breakpoint *find_or_add(struct breaks *b, enum break_type type,
                                      uint64_t address, struct rhea_error *err)
{
    struct breakpoint *p = breaks_find(b, type, address), *grown;

    if (p)
        return p;
    if (b->n == BREAKS_MAX) {
        rhea_error_set(err, ENOSPC, "more than %d breakpoints", BREAKS_MAX);
        return NULL;
    }
    if (b->n == b->room) {
        size_t room = b->room ? 2 * b->room : 64;

        grown = realloc(b->list, room * sizeof(*grown));
        if (!grown) {
            rhea_error_errno(err, ENOMEM, "cannot keep breakpoints");
            return NULL;
        }
        b->list = grown;
        b->room = room;
    }
    p = &b->list[b->n++];
    *p = (struct breakpoint){.type = type, .address = address, .kind = 1};
    return p;
}

/* --- gdb's packets ------------------------------------------------------- */

static int parse_head(struct packet_cursor *c, enum break_type *type,
                      uint64_t *address, uint64_t *kind, struct rhea_error *err)
{
    uint64_t t;

    if (!packet_number(c, &t) || !packet_skip(c, ",") ||
        !packet_number(c, address) || !packet_skip(c, ",") ||
        !packet_number(c, kind))
        return rhea_error_set(err, EINVAL, "a breakpoint cannot be understood");
    if (t >= BREAK_N_TYPES)
        return -ENOTSUP;
    *type = (enum break_type)t;
    return 0;
}

/* `X<length>,<bytes>`. */
static int add_expression(struct packet_cursor *c, struct expression **list,
                          unsigned *n, struct rhea_error *err)
{
    struct expression x = {0}, *grown;
    struct packet_cursor bytes;
    uint64_t len;
    int ret;

    if (!packet_number(c, &len) || !packet_skip(c, ",") || !len ||
        len > AX_MAX_LENGTH || (uint64_t)(c->end - c->at) < 2 * len ||
        *n == BREAKS_MAX_EXTRAS)
        return rhea_error_set(err, EINVAL,
                              "a breakpoint's expression cannot be understood");
    x.code = malloc(len);
    grown = realloc(*list, (*n + 1) * sizeof(x));
    if (grown)
        *list = grown;
    if (!x.code || !grown) {
        free(x.code);
        return rhea_error_errno(err, ENOMEM, "cannot keep breakpoints");
    }
    bytes = packet_cursor(c->at, 2 * (size_t)len);
    c->at += 2 * len;
    if (!packet_bytes(&bytes, x.code, (size_t)len, &x.len) || x.len != len)
        ret = rhea_error_set(err, EINVAL,
                             "a breakpoint's expression cannot be understood");
    else
        ret = ax_verify(x.code, x.len, &x.facts, err);
    if (ret < 0) {
        free(x.code);
        return ret;
    }
    (*list)[(*n)++] = x;
    return 0;
}

/* `;X...` conditions, one behind the other; `;cmds:P,X...`. */
static int parse_extras(struct packet_cursor *c, struct breakpoint *p,
                        struct rhea_error *err)
{
    int ret = 0;

    while (ret == 0 && packet_skip(c, ";")) {
        if (packet_skip(c, "cmds:")) {
            uint64_t persist;

            if (!packet_number(c, &persist) || !packet_skip(c, ","))
                return rhea_error_set(err, EINVAL,
                                      "a breakpoint's commands cannot be "
                                      "understood");
            p->persist = persist != 0;
            while (ret == 0 && packet_skip(c, "X"))
                ret = add_expression(c, &p->commands, &p->n_commands, err);
        } else {
            while (ret == 0 && packet_skip(c, "X"))
                ret = add_expression(c, &p->conditions, &p->n_conditions, err);
        }
    }
    if (ret == 0 && !packet_at_end(c))
        ret = rhea_error_set(err, EINVAL, "a breakpoint cannot be understood");
    return ret;
}

static int check_extras(const struct breakpoint *p, struct rhea_error *err)
{
    for (unsigned i = 0; i < p->n_conditions; i++) {
        const struct ax_facts *f = &p->conditions[i].facts;

        if (f->records || f->prints || f->end_height == 0)
            return rhea_error_set(err, EINVAL,
                                  "a breakpoint's condition has no value, "
                                  "records or prints");
    }
    for (unsigned i = 0; i < p->n_commands; i++)
        if (p->commands[i].facts.records)
            return rhea_error_set(err, EINVAL,
                                  "a breakpoint's command records");
    return 0;
}

/* The stub knows watchpoints by their length, too. */
static int check_length(const struct breakpoint *p, uint64_t kind,
                        struct rhea_error *err)
{
    if (p->type < BREAK_WRITE || p->kind == kind)
        return 0;
    return rhea_error_set(
        err, EBUSY, "there is a watchpoint of %" PRIu64 " bytes at 0x%" PRIx64,
        p->kind, p->address);
}

int breaks_insert(struct breaks *b, struct packet_cursor c,
                  struct rhea_error *err)
{
    struct breakpoint extras = {0}, *p;
    enum break_type type;
    uint64_t address, kind;
    int ret = parse_head(&c, &type, &address, &kind, err);

    if (ret < 0)
        return ret;
    ret = parse_extras(&c, &extras, err);
    if (ret == 0)
        ret = check_extras(&extras, err);
    p = ret == 0 ? find_or_add(b, type, address, err) : NULL;
    if (!p || (p->traced && check_length(p, kind, err) < 0)) {
        drop_extras(&extras);
        return ret < 0 ? ret : p ? -EBUSY : -ENOMEM;
    }
    /* gdb sends a breakpoint again when its conditions change. */
    drop_extras(p);
    p->conditions = extras.conditions;
    p->commands = extras.commands;
    p->n_conditions = extras.n_conditions;
    p->n_commands = extras.n_commands;
    p->persist = extras.persist;
    p->kind = kind;
    p->by_gdb = true;
    b->dirty |= !p->inserted;
    return 0;
}

int breaks_remove(struct breaks *b, struct packet_cursor c,
                  struct rhea_error *err)
{
    enum break_type type;
    uint64_t address, kind;
    struct breakpoint *p;
    int ret = parse_head(&c, &type, &address, &kind, err);

    if (ret < 0)
        return ret;
    p = breaks_find(b, type, address);
    if (!p || !p->by_gdb)
        return rhea_error_set(err, ENOENT,
                              "there is no breakpoint at 0x%" PRIx64, address);
    p->by_gdb = false;
    drop_extras(p);
    b->dirty |= !p->traced;
    return 0;
}

void breaks_remove_gdb(struct breaks *b)
{
    for (size_t i = 0; i < b->n; i++) {
        struct breakpoint *p = &b->list[i];

        if (!p->by_gdb || p->persist)
            continue;
        p->by_gdb = false;
        drop_extras(p);
        b->dirty |= !p->traced;
    }
}

int breaks_trace(struct breaks *b, enum break_type type, uint64_t address,
                 uint64_t kind, struct rhea_error *err)
{
    struct breakpoint *p = find_or_add(b, type, address, err);

    if (!p)
        return -ENOMEM;
    if (!is_wanted(p) && !p->inserted)
        p->kind = kind;
    if (check_length(p, kind, err) < 0)
        return -EBUSY;
    p->traced++;
    b->dirty |= !p->inserted;
    return 0;
}

void breaks_untrace(struct breaks *b, enum break_type type, uint64_t address)
{
    struct breakpoint *p = breaks_find(b, type, address);

    if (!p || !p->traced)
        return;
    p->traced--;
    b->dirty |= !p->traced && !p->by_gdb;
}

/* --- the stub ------------------------------------------------------------ */

void breaks_queue(struct stub *s, const struct breakpoint *p, bool insert)
{
    stub_queuef(s, "%c%d,%" PRIx64 ",%" PRIx64, insert ? 'Z' : 'z', p->type,
                p->address, p->kind);
}

unsigned breaks_count_hardware(const struct breaks *b)
{
    unsigned n = 0;

    for (size_t i = 0; i < b->n; i++)
        n += b->list[i].type != BREAK_SOFTWARE && is_wanted(&b->list[i]);
    return n;
}

/* The answer for one. */
static int sync_answer(struct breakpoint *p, struct stub *s,
                       struct rhea_error *err)
{
    const char *reply;
    size_t len;
    int ret = stub_answer(s, &reply, &len, err);

    if (ret < 0)
        return ret;
    if (!strcmp(reply, "OK") || !is_wanted(p)) {
        p->inserted = is_wanted(p);
        return 0;
    }
    if (!len)
        return rhea_error_set(err, ENOTSUP, "the stub has no %s",
                              p->type == BREAK_SOFTWARE ? "breakpoints"
                              : p->type == BREAK_HARDWARE
                                  ? "hardware breakpoints"
                                  : "watchpoints");
    return rhea_error_set(err, ENOSPC,
                          "the stub cannot insert another %s at 0x%" PRIx64,
                          p->type == BREAK_SOFTWARE   ? "breakpoint"
                          : p->type == BREAK_HARDWARE ? "hardware breakpoint"
                                                      : "watchpoint",
                          p->address);
}

static void drop_unwanted(struct breaks *b)
{
    size_t kept = 0;

    for (size_t i = 0; i < b->n; i++)
        if (is_wanted(&b->list[i]) || b->list[i].inserted)
            b->list[kept++] = b->list[i];
    b->n = kept;
}

int breaks_sync(struct breaks *b, struct stub *s, struct breakpoint *refused,
                struct rhea_error *err)
{
    int ret = 0;

    if (!b->dirty)
        return 0;
    for (size_t i = 0; i < b->n; i++)
        if (is_wanted(&b->list[i]) != b->list[i].inserted)
            breaks_queue(s, &b->list[i], is_wanted(&b->list[i]));
    for (size_t i = 0; i < b->n && !s->wire.dead; i++) {
        struct breakpoint *p = &b->list[i];
        int one;

        if (is_wanted(p) == p->inserted)
            continue;
        one = sync_answer(p, s, ret == 0 ? err : NULL);
        if (one < 0 && ret == 0) {
            ret = one;
            if (refused)
                *refused = *p;
        }
    }
    drop_unwanted(b);
    b->dirty = ret < 0;
    return ret;
}
