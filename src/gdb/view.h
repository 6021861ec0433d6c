/* SPDX-License-Identifier: MIT */
/*
 * The registers as gdb is to see them, where that is not as the stub has them.
 *
 * QEMU for x86-64 gives 64-bit registers in whatever mode the processor is. A
 * gdb whose program has 32 bits takes that for an error ("Remote 'g' packet
 * reply is too long"), so it gets a description of 32 bits and registers to
 * match. Those of 64 bits lose their upper halves, which are zero in these
 * modes.
 *
 * Life: view_init, use, view_finish (safe on all zero bytes).
 */
#ifndef RHEA_GDB_VIEW_H
#define RHEA_GDB_VIEW_H

#include "gdb/description.h"

enum view_kind {
    VIEW_STUB,  /* as the stub has them */
    VIEW_I386,  /* 32 bits */
    VIEW_I8086, /* the same registers, and code of 16 bits */
};

struct view {
    enum view_kind kind;
    struct description shown;               /* but for VIEW_STUB */
    uint8_t from[EXPERIMENT_MAX_REGISTERS]; /* the stub's numbers, by ours */
};

/* STUB: the registers that there are. */
int view_init(struct view *v, enum view_kind kind, const struct layout *stub,
              struct rhea_error *err);
void view_finish(struct view *v);

/* The view's name, as gdb calls architectures. */
const char *view_name(enum view_kind kind);

#endif
