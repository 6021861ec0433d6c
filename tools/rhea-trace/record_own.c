/* SPDX-License-Identifier: MIT */
/*
 * Tracepoints without gdb. Places are addresses, and what is collected is
 *
 *     $regs, $NAME                      all registers, or one
 *     ADDRESS,LENGTH                    memory
 *     $NAME,LENGTH  $NAME+OFFSET,LENGTH
 *
 * They are put into the packets that gdb would send, and described in gdb's own
 * words for those who look at the trace later.
 */
#include <errno.h>
#include <inttypes.h>

#include "gdb/ax_code.h"
#include "record.h"

/* --- parsing ------------------------------------------------------------- */

struct item {
    char name[24];           /* of a register or variable; "": none */
    uint64_t offset, length; /* 0: not memory */
    bool minus;
};

static bool parse_value(const char **text, uint64_t *value)
{
    char *end;

    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    *value = strtoull(*text, &end, 0);
    *text = end;
    return errno == 0;
}

/* `*ADDRESS`, or the number alone. */
static bool parse_address(const char *text, uint64_t *address)
{
    text += *text == '*';
    return parse_value(&text, address) && !*text;
}

static bool parse_name(const char **text, char name[24])
{
    size_t len = strspn(*text + 1, "abcdefghijklmnopqrstuvwxyz_0123456789");

    if (**text != '$' || !len || len >= 24)
        return false;
    snprintf(name, 24, "%.*s", (int)len, *text + 1);
    *text += 1 + len;
    return true;
}

static bool parse_item(const char *text, struct item *i)
{
    *i = (struct item){.length = 0};
    if (parse_name(&text, i->name)) {
        if (!*text)
            return true;
        i->minus = *text == '-';
        if (strchr("+-", *text)) {
            text++;
            if (!parse_value(&text, &i->offset))
                return false;
        }
    } else if (!parse_value(&text, &i->offset)) {
        return false;
    }
    if (*text != ',')
        return false;
    text++;
    return parse_value(&text, &i->length) && i->length && !*text;
}

bool record_needs_gdb(const struct record_wish *w)
{
    uint64_t address;
    struct item item;

    if (w->gdb || w->symbols || w->n_commands)
        return true;
    for (size_t i = 0; i < w->n; i++) {
        const struct record_place *p = &w->places[i];

        if (p->condition || !parse_address(p->at, &address))
            return true;
        for (size_t k = 0; k < p->n; k++)
            if (!parse_item(p->collect[k], &item))
                return true;
    }
    return false;
}

/* --- packets ------------------------------------------------------------- */

static int find_register(const struct layout *l, const char *name)
{
    return strcmp(name, "pc") != 0 ? layout_number(l, name) : l->pc;
}

/* Registers are one action, a mask as a long number. */
static void put_mask(FILE *out, const struct register_set *set)
{
    fputc('R', out);
    for (unsigned i = EXPERIMENT_MAX_REGISTERS / 64; i-- > 0;)
        fprintf(out, "%016" PRIx64, set->bits[i]);
}

static int put_item(const struct item *i, const struct layout *l,
                    struct register_set *set, FILE *out, struct rhea_error *err)
{
    int n = i->name[0] ? find_register(l, i->name) : -1;

    if (!strcmp(i->name, "regs") && !i->length) {
        for (unsigned k = 0; k < l->n; k++)
            if (l->registers[k].size)
                register_set_add(set, k);
    } else if (i->name[0] && n < 0) {
        return rhea_error_set(err, ENOENT, "there is no register $%s", i->name);
    } else if (!i->length) {
        register_set_add(set, (unsigned)n);
    } else {
        fprintf(out, "M%s%x,%s%" PRIx64 ",%" PRIx64, n < 0 ? "-" : "",
                n < 0 ? 1 : n, i->minus ? "-" : "", i->offset, i->length);
    }
    return 0;
}

/* The actions of a place, as a QTDP packet has them. */
static int put_actions(const struct record_place *p, const struct layout *l,
                       FILE *out, struct rhea_error *err)
{
    struct register_set set = {{0}}, none = {{0}};
    struct item item = {.length = 0};

    for (size_t k = 0; k < p->n; k++) {
        int ret;

        (void)parse_item(p->collect[k], &item);
        ret = put_item(&item, l, &set, out, err);
        if (ret < 0)
            return ret;
    }
    if (memcmp(&set, &none, sizeof(set)) != 0)
        put_mask(out, &set);
    fprintf(out, "X7,%02x%04x%02x%04x%02x", AX_TRACEV, VARIABLE_TIMESTAMP,
            AX_TRACEV, VARIABLE_CPU, AX_END);
    return 0;
}

/* What gdb would have been told. */
static void describe(const char *text, const struct layout *l, char *buf,
                     size_t room)
{
    struct item i;

    (void)parse_item(text, &i);
    if (!strcmp(i.name, "pc") && l->pc >= 0) /* to gdb that is none to trace */
        snprintf(i.name, sizeof(i.name), "%s", l->registers[l->pc].name);
    if (!i.length)
        snprintf(buf, room, "collect $%s", i.name);
    else if (!i.name[0])
        snprintf(buf, room, "collect *(unsigned char *) 0x%" PRIx64 "@%" PRIu64,
                 i.offset, i.length);
    else
        snprintf(buf, room,
                 "collect *(unsigned char *) ($%s %c 0x%" PRIx64 ")@%" PRIu64,
                 i.name, i.minus ? '-' : '+', i.offset, i.length);
}

static int add_source(struct experiment *e, unsigned number, uint64_t address,
                      const char *kind, const char *text,
                      struct rhea_error *err)
{
    struct packet_text packet = {0};
    int ret;

    packet_printf(&packet, "%x:%" PRIx64 ":%s:0:%zx:", number, address, kind,
                  strlen(text));
    packet_put_hex(&packet, text, strlen(text));
    ret =
        packet.failed
            ? rhea_error_errno(err, ENOMEM, "cannot define a tracepoint")
            : experiment_source(e, packet_cursor(packet.data, packet.len), err);
    packet_text_finish(&packet);
    return ret;
}

static int define_text(struct experiment *e, const char *text,
                       struct rhea_error *err)
{
    bool more;

    return experiment_define(e, packet_cursor(text, strlen(text)), NULL, &more,
                             err);
}

static int define_actions(struct experiment *e, const struct record_place *p,
                          unsigned number, uint64_t address,
                          struct rhea_error *err)
{
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    int ret;

    if (!out)
        return rhea_error_errno(err, errno, "cannot define a tracepoint");
    fprintf(out, "-%x:%" PRIx64 ":", number, address);
    ret = put_actions(p, &e->layout, out, err);
    if (fclose(out) != 0 && ret == 0)
        ret = rhea_error_errno(err, ENOMEM, "cannot define a tracepoint");
    if (ret == 0)
        ret = define_text(e, text, err);
    free(text);
    return ret;
}

static int define_place(const struct record_wish *w, unsigned number,
                        struct experiment *e, struct rhea_error *err)
{
    const struct record_place *p = &w->places[number - 1];
    uint64_t address = 0;
    char text[200];
    int ret;

    (void)parse_address(p->at, &address);
    snprintf(text, sizeof(text), "%x:%" PRIx64 ":E:0:%" PRIx64 "-", number,
             address, w->count);
    ret = define_text(e, text, err);
    if (ret == 0)
        ret = define_actions(e, p, number, address, err);
    snprintf(text, sizeof(text), "*0x%" PRIx64, address);
    if (ret == 0)
        ret = add_source(e, number, address, "at", text, err);
    for (size_t k = 0; k < p->n && ret == 0; k++) {
        describe(p->collect[k], &e->layout, text, sizeof(text));
        ret = add_source(e, number, address, "cmd", text, err);
    }
    if (ret == 0)
        ret = add_source(e, number, address, "cmd",
                         "collect $trace_timestamp, $trace_cpu", err);
    return ret;
}

int record_define(const struct record_wish *w, struct experiment *e,
                  struct rhea_error *err)
{
    int ret = 0;

    for (unsigned i = 1; i <= w->n && ret == 0; i++) {
        ret = define_place(w, i, e, err);
        if (ret < 0)
            rhea_error_prefix(err, "--at %s", w->places[i - 1].at);
    }
    return ret;
}
