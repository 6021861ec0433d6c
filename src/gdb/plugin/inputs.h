/* SPDX-License-Identifier: MIT */
/*
 * What a register that QEMU computes is made from: found out by changing word
 * after word of what it might be, and looking whether the register does. So
 * one that is asked for again and again has to be computed only if one of these
 * words has changed.
 */
#ifndef RHEA_GDB_PLUGIN_INPUTS_H
#define RHEA_GDB_PLUGIN_INPUTS_H

#include "base/byteorder.h"
#include "gdb/plugin/state.h"

enum { INPUTS_MAX = 16 };

/* Words of 4 bytes; offsets in ascending order for one register. */
struct inputs {
    unsigned n;
    uint16_t offsets[INPUTS_MAX];
};

/* Add those of the processor's state that the stub's register N is made from,
 * which is one of at most 8 bytes and without pointers on its way. False where
 * they are too many. */
bool inputs_find(const struct state *s, struct qemu_cpu *cpu,
                 struct qemu_bytes *bytes, int n, struct inputs *inputs);

/* Where an interrupt controller has cr8, in the upper half of a byte; true
 * while some words are 0, else something outside of it counts too. */
struct inputs_priority {
    const void *type; /* of the controllers for which it holds; NULL: of none */
    size_t byte;
    struct inputs zeros;
};

/* On an interrupt controller of our own. In QEMU's main thread. */
void inputs_find_priority(struct inputs_priority *p);

/* The controller of a processor; NULL: it has none like that. */
const uint8_t *inputs_controller(const struct inputs_priority *p,
                                 struct qemu_cpu *cpu);

/* False where QEMU has to be asked. */
static inline bool inputs_read_priority(const struct inputs_priority *p,
                                        const uint8_t *controller,
                                        uint64_t *value)
{
    for (unsigned i = 0; i < p->zeros.n; i++)
        if (load_le32(controller + p->zeros.offsets[i]))
            return false;
    *value = controller[p->byte] >> 4;
    return true;
}

#endif
