/* SPDX-License-Identifier: MIT */
/*
 * Where QEMU keeps the registers that change in every block (its CPUX86State):
 * not known by a header but found out, by writing to them as gdb would and
 * looking for what changed. What does not come out as expected is an error.
 */
#ifndef RHEA_GDB_PLUGIN_STATE_H
#define RHEA_GDB_PLUGIN_STATE_H

#include "gdb/plugin/qemu.h"

enum {
    STATE_64_BITS = 1 << 15, /* of the modes */
    STATE_FAR = 16384,       /* all registers are within its first pages */
};

/* Offsets from the general registers, which come first. The flags are kept in
 * pieces: those of results as an operation and its operands. */
struct state {
    size_t from_cpu; /* where it begins; 0: it was not found */
    size_t word;     /* 8 bytes, or 4 in a QEMU for 32 bits only */
    size_t ip, flags, source, operation, direction, modes;
    size_t bases, stride; /* of segments: ES, CS, SS, DS, FS, GS */
};

/* A register that the stub reads as it stands in memory. */
struct state_plain {
    size_t offset; /* 0: it is not one */
    size_t size;
    bool halves; /* outside of 64-bit mode the upper half reads as zero */
};

/* The stub's numbers. */
static inline int state_general_count(const struct state *s)
{
    return s->word == 8 ? 16 : 8;
}

/* BYTES is a buffer. The processor does not run. */
int state_find(struct state *s, struct qemu_cpu *cpu, struct qemu_bytes *bytes,
               struct rhea_error *err);
/* The stub's register N, once the state was found. */
struct state_plain state_find_plain(const struct state *s, struct qemu_cpu *cpu,
                                    struct qemu_bytes *bytes, int n);

/* How the stub numbers the FPU's registers: st0 is always the same one (up to
 * 8.1), or that on top of the stack, which the status word tells. */
enum state_stack { STATE_STACK_UNKNOWN, STATE_STACK_FIXED, STATE_STACK_TURNS };

/* N is the number of the first, and FSTAT that of the status word; where the
 * eight were found, P says. */
enum state_stack state_find_stack(const struct state *s, struct qemu_cpu *cpu,
                                  struct qemu_bytes *bytes, int n,
                                  const struct state_plain *p, int fstat);

static inline unsigned state_top(uint32_t fstat)
{
    return fstat >> 11 & 7;
}

#endif
