/* SPDX-License-Identifier: MIT */
/*
 * The guest as a callback of a virtual processor finds it: registers and
 * memory. To be called in that processor's own thread, from such a callback.
 * Nothing is allocated, no lock is taken, and devices are not read: their
 * registers may have effects when they are.
 */
#ifndef RHEA_GDB_PLUGIN_GUEST_H
#define RHEA_GDB_PLUGIN_GUEST_H

#include "gdb/hit.h"
#include "gdb/plugin/inputs.h"
#include "gdb/plugin/qemu.h"
#include "gdb/plugin/state.h"

/* General registers as QEMU has them. */
enum guest_general { GUEST_RCX = 1, GUEST_RSI = 6, GUEST_RDI = 7 };

enum { GUEST_MADE_COUNT = 9 };

/* How a register of the layout is read. */
struct guest_source {
    enum {
        GUEST_NOT, /* it cannot be */
        GUEST_GENERAL,
        GUEST_IP,
        GUEST_FLAGS,
        GUEST_PLAIN, /* as it stands in QEMU's memory */
        GUEST_STACK, /* the same, of the FPU's stack, from its top on */
        GUEST_MADE,  /* by QEMU's stub, from some words of that memory */
        GUEST_PRIORITY,
        GUEST_BY_GDB, /* as QEMU's stub does */
        GUEST_BY_API,
    } kind;
    int n; /* the general register, of those made, or the stub's number */
    struct qemu_register *handle;
    struct state_plain plain;
};

/* All registers in 64-bit mode, which are what is asked for most, without a
 * look at each. Those that stand in the state are moved in the order of their
 * places in the frame, 16 bytes at a time: what is too much the next one
 * overwrites. */
struct guest_plan {
    bool usable;
    struct register_set all;
    uint8_t mask[EXPERIMENT_MAX_REGISTERS / 8];
    size_t bytes;
    unsigned n_moves, n_words, n_made, n_stack, n_rest;
    bool has_ip;
    uint16_t ip; /* where it goes */
    struct guest_move {
        uint16_t from, to;
    } moves[EXPERIMENT_MAX_REGISTERS];
    /* General registers, 8 bytes each: the guest's code has just stored some of
     * them, and a processor does not pass on more than was stored at once. */
    struct guest_move words[EXPERIMENT_MAX_REGISTERS];
    /* Those of the FPU's stack, those that are made, and others, by their
     * numbers. */
    struct guest_move stack[EXPERIMENT_MAX_REGISTERS];
    struct guest_move made[EXPERIMENT_MAX_REGISTERS];
    struct guest_move rest[EXPERIMENT_MAX_REGISTERS];
};

struct guest_sources {
    struct guest_source list[EXPERIMENT_MAX_REGISTERS];
    struct guest_plan plan;
};

/* Registers that QEMU's stub makes from some words of the state (of the FPU,
 * and mxcsr), as they were made last: they change seldom. */
struct guest_made {
    bool valid;
    uint32_t words[INPUTS_MAX];
    uint32_t values[GUEST_MADE_COUNT];
};

/* A virtual processor in a callback. */
struct guest_cpu {
    struct qemu_cpu *cpu;
    struct qemu_bytes *bytes; /* a buffer of a page, never grown */
    const struct layout *layout;
    const struct guest_sources *sources;
    uint64_t pc;    /* linear */
    bool first;     /* the instruction is the first of its block */
    uintptr_t code; /* where the callback returns to */
    int kind;       /* of QEMU's TLBs, the one that had an answer last */
    const uint8_t *controller; /* of interrupts, for GUEST_PRIORITY */
    struct guest_made made;
};

/* Find out where QEMU keeps registers; once, when the first processor has been
 * made (CPU), in its thread. */
int guest_find(struct qemu_cpu *cpu, struct rhea_error *err);
/* Before tracing begins: a processor is not whole when QEMU tells of it. */
void guest_prepare(struct guest_cpu *g);
/* How the registers of a layout are read. */
void guest_find_sources(struct guest_sources *s, const struct layout *l);

/* The linear address of the instruction that is about to run, which is OFFSET
 * into its page. */
uint64_t guest_pc(const struct guest_cpu *g, uint64_t offset);
/* Something has to be learned from the first instruction of any block. */
bool guest_wants_to_learn(void);
void guest_learn(const struct guest_cpu *g);
/* 0 where it is not known. */
uint64_t guest_general(const struct guest_cpu *g, enum guest_general n);

/* The processor's state is so many bytes behind CPU; for guest_find. */
void guest_find_memory(const struct qemu_cpu *cpu, size_t from_cpu);

/* For struct hit_machine; OPAQUE is a struct guest_cpu. */
bool guest_register(void *opaque, unsigned n, void *bytes);
size_t guest_registers(void *opaque, const struct register_set *set,
                       uint8_t *out, uint8_t *mask);
size_t guest_read(void *opaque, uint64_t address, void *buf, size_t len);

#endif
