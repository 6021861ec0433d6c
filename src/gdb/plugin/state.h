/* SPDX-License-Identifier: MIT */
/*
 * Where QEMU keeps the registers that change in every block (its CPUX86State):
 * not known by a header but found out, by writing to them as gdb would and
 * looking for what changed. What does not come out as expected is an error.
 */
#ifndef RHEA_GDB_PLUGIN_STATE_H
#define RHEA_GDB_PLUGIN_STATE_H

#include "gdb/plugin/qemu.h"

enum { STATE_64_BITS = 1 << 15 /* of the modes */ };

/* Offsets from the general registers, which come first. The flags are kept in
 * pieces: those of results as an operation and its operands. */
struct state {
    size_t from_cpu; /* where it begins; 0: it was not found */
    size_t word;     /* 8 bytes, or 4 in a QEMU for 32 bits only */
    size_t ip, flags, source, operation, direction, modes;
    size_t bases, stride; /* of segments: ES, CS, SS, DS, FS, GS */
};

/* The stub's numbers. */
static inline int state_general_count(const struct state *s)
{
    return s->word == 8 ? 16 : 8;
}

/* BYTES is a buffer. The processor does not run. */
int state_find(struct state *s, struct qemu_cpu *cpu, struct qemu_bytes *bytes,
               struct rhea_error *err);

#endif
