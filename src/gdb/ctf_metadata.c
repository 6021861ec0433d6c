/* SPDX-License-Identifier: MIT */
/* The description of a trace in the Trace Stream Description Language (CTF 1.8,
 * appendix C). Names out of a trace are anything, so they are made fit. */
#include <errno.h>
#include <inttypes.h>

#include "config.h"
#include "gdb/ctf.h"

enum {
    NAME = 300,
    MAX_NAMES = EXPERIMENT_MAX_REGISTERS + CTF_MAX_VARIABLES + 8,
};

/* The names of an event's fields, each once. They begin with an underscore,
 * which readers take away, so that none is a keyword. */
struct names {
    char (*list)[NAME];
    size_t n;
};

static bool is_taken(const struct names *names, const char *name)
{
    for (size_t i = 0; i < names->n; i++)
        if (!strcmp(names->list[i], name))
            return true;
    return false;
}

static const char *add_name(struct names *names, const char *text)
{
    char base[NAME - 20], *name = names->list[names->n];
    size_t n = 0;

    base[n++] = '_';
    if (!strncmp(text, "memory_", 7)) /* these are ours */
        base[n++] = '_';
    for (; *text && n < sizeof(base) - 1; text++) {
        bool good = (*text >= 'a' && *text <= 'z') ||
                    (*text >= 'A' && *text <= 'Z') ||
                    (*text >= '0' && *text <= '9');

        base[n++] = good ? *text : '_';
    }
    base[n] = 0;
    snprintf(name, NAME, "%s", base);
    /* As many may have the same name, the place is tried first. */
    for (size_t i = names->n + 1; is_taken(names, name); i++)
        snprintf(name, NAME, "%s_%zu", base, i);
    names->n++;
    return name;
}

/* Inside quotes. */
static void put_text(FILE *out, const char *text)
{
    for (size_t n = 0; *text && n < NAME; text++, n++)
        fputc(*text >= ' ' && *text < 127 && *text != '"' && *text != '\\'
                  ? *text
                  : '_',
              out);
}

/* --- what is there once -------------------------------------------------- */

static const char types[] =
    "typealias integer { size = 8; align = 8; signed = false; base = x; } := "
    "x8;\n"
    "typealias integer { size = 16; align = 8; signed = false; base = x; } := "
    "x16;\n"
    "typealias integer { size = 32; align = 8; signed = false; base = x; } := "
    "x32;\n"
    "typealias integer { size = 64; align = 8; signed = false; base = x; } := "
    "x64;\n"
    "typealias integer { size = 16; align = 8; signed = false; } := u16;\n"
    "typealias integer { size = 32; align = 8; signed = false; } := u32;\n"
    "typealias integer { size = 64; align = 8; signed = false; } := u64;\n"
    "typealias integer { size = 64; align = 8; signed = true; } := i64;\n\n";

static void put_trace(const struct recorded *r, const struct ctf_facts *facts,
                      FILE *out)
{
    fputs("/* CTF 1.8 */\n\n", out);
    fputs(types, out);
    fputs("trace {\n"
          "    major = 1;\n"
          "    minor = 8;\n"
          "    byte_order = le;\n"
          "    packet.header := struct {\n"
          "        u32 magic;\n"
          "        u32 stream_id;\n"
          "    };\n"
          "};\n\n"
          "env {\n"
          "    domain = \"guest\";\n"
          "    tracer_name = \"rhea-trace\";\n"
          "    tracer_version = \"" RHEA_VERSION "\";\n"
          "    user = \"",
          out);
    put_text(out, r->status.user);
    fputs("\";\n    notes = \"", out);
    put_text(out, r->status.notes);
    fputs("\";\n};\n\n", out);
    fprintf(out,
            "clock {\n"
            "    name = \"%s\";\n"
            "    description = \"%s\";\n"
            "    freq = 1000000000;\n"
            "};\n"
            "typealias integer { size = 64; align = 8; signed = false; "
            "map = clock.%s.value; } := stamp;\n\n",
            facts->has_time ? "realtime" : "ordinal",
            facts->has_time
                ? "nanoseconds since 1970"
                : "numbers of frames: the trace does not have their times",
            facts->has_time ? "realtime" : "ordinal");
    fprintf(out,
            "stream {\n"
            "    id = 0;\n"
            "    packet.context := struct {\n"
            "        stamp timestamp_begin;\n"
            "        stamp timestamp_end;\n"
            "        u64 content_size;\n"
            "        u64 packet_size;\n"
            "    };\n"
            "    event.header := struct {\n"
            "        u32 id;\n"
            "        stamp timestamp;\n"
            "    };\n"
            "%s"
            "};\n",
            facts->has_cpu ? "    event.context := struct {\n"
                             "        u32 cpu_id;\n"
                             "    };\n"
                           : "");
}

/* --- event classes ------------------------------------------------------- */

static void put_register(const struct layout_register *r, struct names *names,
                         FILE *out)
{
    const char *name = add_name(names, r->name);

    if (r->size == 1 || r->size == 2 || r->size == 4 || r->size == 8)
        fprintf(out, "        x%d %s;\n", 8 * r->size, name);
    else
        fprintf(out, "        x8 %s[%d];\n", name, r->size);
}

static void put_variable(const struct recorded *r, unsigned n,
                         struct names *names, FILE *out)
{
    const struct variable *v =
        n < EXPERIMENT_MAX_VARIABLES ? r->experiment->variables[n] : NULL;
    char number[30];

    snprintf(number, sizeof(number), "variable_%u", n);
    fprintf(out, "        i64 %s;\n",
            add_name(names, v && v->name[0] ? v->name : number));
}

static const struct tracepoint *find_point(const struct experiment *e,
                                           unsigned number)
{
    for (size_t i = 0; i < e->n_points; i++)
        if (e->points[i]->number == number)
            return e->points[i];
    return NULL;
}

static void put_event(const struct recorded *r, const struct ctf_shape *s,
                      size_t id, struct names *names, FILE *out)
{
    const struct layout *l = recorded_layout(r);
    const char *where = recorded_location(find_point(r->experiment, s->number));

    names->n = 0;
    fprintf(out, "\nevent {\n    id = %zu;\n    name = \"tracepoint %u", id,
            s->number);
    if (where && *where) {
        fputs(" at ", out);
        put_text(out, where);
    }
    fprintf(out,
            "%s\";\n    stream_id = 0;\n    fields := struct {\n"
            "        u64 %s;\n",
            s->step ? ", step" : "", add_name(names, "frame"));
    if (s->has_pc)
        fprintf(out, "        x64 %s;\n", add_name(names, "pc"));
    for (unsigned n = 0; n < l->n; n++)
        if (s->mask[n / 8] >> (n % 8) & 1 && l->registers[n].size)
            put_register(&l->registers[n], names, out);
    for (unsigned i = 0; i < s->n_variables; i++)
        put_variable(r, s->variables[i], names, out);
    for (unsigned i = 0; i < s->n_blocks; i++)
        fprintf(out,
                "        x64 _memory_%u_address;\n"
                "        u16 _memory_%u_length;\n"
                "        x8 _memory_%u[_memory_%u_length];\n",
                i, i, i, i);
    fputs("    };\n};\n", out);
}

int ctf_put_metadata(const struct recorded *r, const struct ctf_facts *facts,
                     const struct ctf_shape *shapes, size_t n, FILE *out,
                     struct rhea_error *err)
{
    struct names names = {.list = malloc(MAX_NAMES * sizeof(*names.list))};

    if (!names.list)
        return rhea_error_errno(err, ENOMEM, "cannot describe the trace");
    put_trace(r, facts, out);
    for (size_t i = 0; i < n; i++)
        put_event(r, &shapes[i], i, &names, out);
    free(names.list);
    return 0;
}
