/* SPDX-License-Identifier: MIT */
/*
 * gdb's agent expressions: bytecode for a stack machine of 64-bit integers
 * (gdb's manual, "The GDB Agent Expression Mechanism"). They are conditions,
 * what is to be collected, and dynamic printf.
 *
 * An expression is verified once (ax_verify) and then run as often as wanted
 * (ax_run): no allocation, no lock, a bounded number of steps, safe from many
 * threads. Whoever runs one supplies the machine it looks at, a table of
 * functions. The same code serves in the proxy and inside QEMU.
 *
 * Invariant of a verified expression: opcodes and their operands lie inside it,
 * every jump leads to the start of an opcode, the stack has the same height
 * whichever way an opcode is reached, no more than AX_STACK values, and never
 * fewer than the opcode takes; every way ends in `end` or in a loop.
 *
 * Two kinds of error are kept apart. What the machine cannot give (AX_MEMORY,
 * AX_NO_REGISTER) depends on the state it is in; the rest is a fault of the
 * expression.
 */
#ifndef RHEA_GDB_AX_H
#define RHEA_GDB_AX_H

#include <rhea/base.h>

enum {
    AX_MAX_LENGTH = 4096,  /* bytes of an expression */
    AX_STACK = 128,        /* values */
    AX_MAX_STEPS = 65536,  /* opcodes run, for expressions with loops */
    AX_MAX_ARGUMENTS = 32, /* of a printf */
};

enum ax_status {
    AX_OK,
    AX_MEMORY,      /* memory that it reads cannot be read */
    AX_NO_REGISTER, /* there is no such register, or it is not at hand */
    AX_NO_VARIABLE, /* a trace state variable that was not defined */
    AX_DIVIDE_BY_ZERO,
    AX_TOO_LONG, /* AX_MAX_STEPS */
    AX_FULL,     /* record_* wants no more: there is no room */
    AX_EMPTY,    /* a value is asked for, and the stack is empty */
};

/*
 * The machine, each function called with the OPAQUE of ax_run. A function
 * returns whether it could. Those that record are called only for expressions
 * that record (struct ax_facts), and `print` only for those that print; where
 * the caller refuses such expressions they may be NULL.
 */
struct ax_machine {
    /* The value of register N (by the target description), zero-extended. */
    bool (*get_register)(void *opaque, unsigned n, uint64_t *value);
    /* LEN (1, 2, 4 or 8) bytes of guest memory. */
    bool (*read)(void *opaque, uint64_t address, void *buf, size_t len);
    bool (*get_variable)(void *opaque, unsigned n, int64_t *value);
    bool (*set_variable)(void *opaque, unsigned n, int64_t value);
    /* Record LEN bytes at ADDRESS as far as they can be read; false only where
     * there is no more room. */
    bool (*record_memory)(void *opaque, uint64_t address, uint64_t len);
    /* The same with a string: up to its zero byte, that included, and at most
     * LEN bytes. */
    bool (*record_string)(void *opaque, uint64_t address, uint64_t len);
    bool (*record_variable)(void *opaque, unsigned n);
    /* Print by FORMAT, a string inside the expression. */
    bool (*print)(void *opaque, const char *format, unsigned n_arguments,
                  const uint64_t *arguments);
};

/* What an expression does. */
struct ax_facts {
    bool records, prints, sets_variables, reads_memory, loops;
    unsigned max_height; /* of the stack */
    unsigned end_height; /* the least number of values at an `end` */
    int last_variable;   /* the highest number of one that it is about; -1: none
                          */
    /* A bit a register that it reads. */
    uint64_t registers[4]; /* a higher number than 255 is refused */
};

/* Whether the LEN bytes are an expression that can be run. FACTS may be
 * NULL. */
int ax_verify(const uint8_t *code, size_t len, struct ax_facts *facts,
              struct rhea_error *err);

/* Run a verified expression. VALUE: where the stack's top goes at the end;
 * where that is NULL, an empty stack is no error. */
enum ax_status ax_run(const uint8_t *code, size_t len,
                      const struct ax_machine *machine, void *opaque,
                      uint64_t *value);

/* Words for a status, for people: "division by zero". */
const char *ax_status_text(enum ax_status status);

/*
 * For `print`: write FORMAT, as C's printf with gdb's length modifiers, to BUF,
 * at most ROOM bytes with the zero; returns the length. Understands %d %i %u %x
 * %X %o %c %p %s %% with flags, width, precision, hh h l ll z t j, and C's
 * escapes but for numbers; what it does not understand it prints as it stands.
 * The string of a %s is read by STRING, up to ROOM bytes, which returns its
 * length.
 */
size_t ax_format(char *buf, size_t room, const char *format,
                 unsigned n_arguments, const uint64_t *arguments,
                 size_t (*string)(void *opaque, uint64_t address, char *buf,
                                  size_t room),
                 void *opaque);

#endif
