/* SPDX-License-Identifier: MIT */
/*
 * An experiment, as gdb's manual calls what is traced: tracepoints with their
 * conditions and actions, trace state variables, and the registers that there
 * are. It is built from gdb's packets (QTDP, QTDPsrc, QTDV) and given back by
 * them (qTfP, qTfV).
 *
 * Its other form is text, the lines of the head of gdb's trace files ("Trace
 * File Format"): `tp T...`, `tp A...`, `tsv ...`, `tdesc ...`, and
 * besides `reg ...` lines for the registers and `note ...` lines. It lies in
 * the file of trace frames (frames.h), from where QEMU's plugin and `rhea-trace
 * report` load it. So it is untrusted: what is loaded was checked like what
 * came from gdb.
 *
 * Invariants: expressions are verified (ax.h). No two tracepoints have the same
 * number and the same address. A tracepoint's slot, its place in `points`,
 * stays the same until experiment_clear, and it is the same in every process
 * that loads the text: counters that processes share are found by it.
 *
 * Nothing here is changed by a hit: counters and the values of variables live
 * in frames.h.
 *
 * Life: experiment_create, define and so on, experiment_destroy. One thread at
 * a time; many may read what no longer changes.
 */
#ifndef RHEA_GDB_EXPERIMENT_H
#define RHEA_GDB_EXPERIMENT_H

#include <stdio.h>

#include "gdb/ax.h"
#include "gdb/packet.h"

enum {
    EXPERIMENT_MAX_POINTS = 8192,
    EXPERIMENT_MAX_VARIABLES = 1024, /* their numbers are below this, too */
    EXPERIMENT_MAX_ACTIONS = 1024,   /* of a tracepoint */
    EXPERIMENT_MAX_SOURCES = 1024,   /* of a tracepoint */
    EXPERIMENT_MAX_SOURCE = 65536,   /* bytes of one source string */
    EXPERIMENT_MAX_REGISTERS = 256,
    EXPERIMENT_MAX_REGISTER = 64,     /* bytes */
    EXPERIMENT_MAX_G = 16384,         /* bytes of all registers */
    EXPERIMENT_MAX_WATCH = 4096,      /* bytes */
    EXPERIMENT_MAX_COLLECT = 1 << 20, /* bytes of one memory action */
};

/* A register of the target description. */
struct layout_register {
    char name[24];
    uint16_t offset; /* in the bytes of a `g` packet */
    uint8_t size;    /* bytes; 0: there is no such register */
};

/* The registers, by number; their bytes never overlap. */
struct layout {
    struct layout_register registers[EXPERIMENT_MAX_REGISTERS];
    unsigned n;     /* highest number + 1 */
    unsigned bytes; /* of a `g` packet */
    int pc;         /* the program counter's number; -1: not known */
};

/* Registers as a set. */
struct register_set {
    uint64_t bits[EXPERIMENT_MAX_REGISTERS / 64];
};

static inline bool register_set_has(const struct register_set *s, unsigned n)
{
    return s->bits[n / 64] >> (n % 64) & 1;
}

static inline void register_set_add(struct register_set *s, unsigned n)
{
    s->bits[n / 64] |= UINT64_C(1) << (n % 64);
}

struct expression {
    uint8_t *code; /* NULL: none */
    size_t len;
    struct ax_facts facts;
};

enum action_kind {
    ACTION_REGISTERS, /* they are in actions.registers; nothing to do */
    ACTION_MEMORY,
    ACTION_EXPRESSION,
    ACTION_STATIC, /* a static tracepoint's own data: there is none */
};

struct action {
    enum action_kind kind;
    char *text;            /* as gdb sent it */
    int base;              /* memory: register to add; -1: none */
    uint64_t offset, size; /* memory */
    struct expression expression;
};

/* What is to be done at a hit, in order. */
struct actions {
    struct register_set registers; /* to collect, of all actions together */
    struct action *list;
    size_t n;
};

/* gdb's own words, which it wants back when it connects again. */
struct source {
    char *kind; /* "at", "cond", "cmd" */
    char *text;
};

enum point_kind { POINT_TRAP, POINT_FAST, POINT_STATIC };

/* What makes a tracepoint one of data: it is hit by accesses to memory, and not
 * at its address. */
struct watch {
    uint64_t address;
    uint64_t len;  /* bytes; 0: it is none */
    unsigned kind; /* as in Z packets: 2 writes, 3 reads, 4 both */
};

struct tracepoint {
    unsigned number; /* gdb's */
    unsigned slot;   /* see above */
    uint64_t address;
    enum point_kind kind;
    bool enabled; /* at first; see frames_point.enabled */
    uint64_t fast_size;
    uint64_t step_count; /* of while-stepping; 0: none */
    uint64_t pass_count; /* hits after which tracing stops; 0: never */
    struct watch watch;
    struct expression condition;
    struct actions actions;
    struct actions step_actions; /* done after each step */
    struct source *sources;
    size_t n_sources;
    /* while it is being defined: `S` was seen, so what follows are actions of
     * the steps */
    bool stepping;
};

struct variable {
    unsigned number; /* 0: there is none */
    int64_t initial;
    bool builtin; /* the machine sets it, see VARIABLE_* */
    char name[256];
};

/* Variables that are always there. Their numbers are the first, which gdb
 * leaves to the target. */
enum {
    VARIABLE_TIMESTAMP = 1, /* $trace_timestamp: microseconds */
    VARIABLE_CPU = 2,       /* $trace_cpu: the virtual processor, from 0 */
    VARIABLE_N_BUILTIN = 2,
};

/* What users say about a run. */
enum experiment_note {
    NOTE_USER,  /* who they are */
    NOTE_START, /* what it is for */
    NOTE_STOP,  /* why it was stopped */
    NOTE_COUNT,
};

struct experiment {
    struct layout layout;
    char *description;       /* the target's, XML in one piece; NULL: none */
    char *notes[NOTE_COUNT]; /* NULL: none */
    struct tracepoint **points;
    size_t n_points;
    struct variable **variables; /* by number; NULL: none */
    /* Another agent's, out of a file: it has builtin variables of its own. */
    bool foreign;
};

/* --- life ---------------------------------------------------------------- */

/* Empty but for the builtin variables. */
int experiment_create(struct experiment **e, struct rhea_error *err);
void experiment_destroy(struct experiment *e);
/* What is loaded is another agent's: forget our builtin variables. */
void experiment_set_foreign(struct experiment *e);
/* QTinit: forget all but the registers, the target's description, notes and
 * the builtin variables. */
void experiment_clear(struct experiment *e);

/* --- from packets -------------------------------------------------------- */

/* Each takes what stands behind the packet's name and its colon. A packet that
 * is refused changes nothing, but that a tracepoint whose actions are refused
 * stays as far as it was defined; -EEXIST, -ENOENT, -EINVAL, -ENOSPC. */

/* `QTDP:`. MORE: whether further packets will define the same tracepoint. T
 * (may be NULL): the tracepoint. */
int experiment_define(struct experiment *e, struct packet_cursor packet,
                      struct tracepoint **t, bool *more,
                      struct rhea_error *err);
/* `QTDPsrc:`. */
int experiment_source(struct experiment *e, struct packet_cursor packet,
                      struct rhea_error *err);
/* `QTDV:`. V (may be NULL): the variable. */
int experiment_variable(struct experiment *e, struct packet_cursor packet,
                        struct variable **v, struct rhea_error *err);

/* Keep a note; LEN bytes of text. */
int experiment_note(struct experiment *e, enum experiment_note which,
                    const char *text, size_t len, struct rhea_error *err);

/* --- looking at it ------------------------------------------------------- */

/* NULL where there is none. */
struct tracepoint *experiment_find(const struct experiment *e, unsigned number,
                                   uint64_t address);
/* Whether all trace state variables that a tracepoint is about are there; gdb
 * tells of those that it makes only when tracing starts. */
int experiment_has_variables(const struct experiment *e,
                             const struct tracepoint *t,
                             struct rhea_error *err);
/* Remove the last tracepoint, which could not be inserted. */
void experiment_drop_last(struct experiment *e);

/* --- text ---------------------------------------------------------------- */

/* Lines as described at the top: registers, variables, tracepoints. Returns
 * -ENOMEM where writing failed. */
int experiment_save(const struct experiment *e, FILE *file);
/* The lines of one tracepoint, without `tp ` in front; as gdb takes them from a
 * trace file, or from a target. */
void experiment_save_point(const struct tracepoint *t, bool in_trace_file,
                           FILE *file);
/* The `tp` lines of all. */
void experiment_save_points(const struct experiment *e, bool in_trace_file,
                            FILE *file);
/* What a `tsv` line says, without that word. */
void experiment_save_variable(const struct variable *v, FILE *file);
/* The `tsv` lines of all. */
void experiment_save_variables(const struct experiment *e, FILE *file);
/* The `tdesc` lines. */
void experiment_save_description(const struct experiment *e, FILE *file);
/* One line, without the newline, added to E. A line of an unknown kind is
 * -ENOTSUP; a trace file has others besides. */
int experiment_load_line(struct experiment *e, const char *line, size_t len,
                         struct rhea_error *err);
/* All lines of a text. Unknown kinds are skipped. */
int experiment_load(struct experiment *e, const char *text, size_t len,
                    struct rhea_error *err);

/* --- the layout ---------------------------------------------------------- */

/* Add a register; -EINVAL where it does not fit or is there already. */
int layout_add(struct layout *l, unsigned n, const char *name, unsigned offset,
               unsigned size, struct rhea_error *err);
/* The number of the register NAME; -1 where there is none. */
int layout_number(const struct layout *l, const char *name);

#endif
