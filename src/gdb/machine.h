/* SPDX-License-Identifier: MIT */
/*
 * The guest as it stands still: the virtual processor that is looked at, its
 * registers, its memory. Nothing here may be called while it runs.
 *
 * What was read is kept until machine_forget, which whoever lets the guest run
 * or writes to it calls.
 */
#ifndef RHEA_GDB_MACHINE_H
#define RHEA_GDB_MACHINE_H

#include "gdb/description.h"
#include "gdb/hit.h"
#include "gdb/memory.h"
#include "gdb/past.h"
#include "gdb/stub.h"
#include "gdb/view.h"

enum { MACHINE_THREAD = 32 /* characters of a thread's name, with the zero */ };

/* How the processor runs, which decides what the program counter means. */
enum machine_bits { MACHINE_16 = 16, MACHINE_32 = 32, MACHINE_64 = 64 };

/* Where a thread is, so that it is known again after an interruption: two
 * threads have no stack in common. */
struct machine_place {
    uint64_t pc; /* the program counter, without the segment's base */
    uint64_t sp, cr3;
    uint16_t cs;
};

struct machine {
    struct stub *stub;
    const struct layout *layout; /* the stub's */
    /* The registers that tracepoints mean; NULL: the stub's. */
    const struct view *view;
    struct memory memory;
    char thread[MACHINE_THREAD]; /* which one; "": whichever the stub has */
    /* private */
    uint8_t g[EXPERIMENT_MAX_G];
    uint8_t there[EXPERIMENT_MAX_REGISTERS / 8]; /* bit a register: it is */
    bool has_g;
    int rip, rsp, eflags, cs, cr0, cr3, cr4, efer; /* numbers; -1: none */
    int general[PAST_REGISTERS];
};

int machine_init(struct machine *m, struct stub *stub,
                 const struct layout *layout, pid_t pid,
                 struct rhea_error *err);
void machine_forget(struct machine *m);

/* Look at another processor; THREAD as in the stub's packets. */
int machine_select(struct machine *m, const char *thread,
                   struct rhea_error *err);
/* The number of the processor, from 0. */
unsigned machine_cpu(const struct machine *m);

/* Read all registers, if they have not been. */
int machine_fetch(struct machine *m, struct rhea_error *err);
/* Register N, after machine_fetch: its bytes; NULL where it is not there. */
const uint8_t *machine_register(const struct machine *m, unsigned n);
/* The same as a number, for registers of 8 bytes at most; 0 where it is not
 * there. */
uint64_t machine_value(const struct machine *m, int n);

enum machine_bits machine_bits(const struct machine *m);
/* Paging on a processor that is not in long mode: a system of 32 bits runs.
 * Without, it may as well be firmware or a boot loader, and a kernel on its way
 * to 64 bits never is here (Intel's manual, volume 3, 9.8.5). */
bool machine_is_paged_32(const struct machine *m);
/* The address that the processor is at: with the code segment's base, as
 * breakpoints count. */
uint64_t machine_pc(const struct machine *m);
/* The program counter that means ADDRESS. */
uint64_t machine_pc_for(const struct machine *m, uint64_t address);

struct machine_place machine_place(const struct machine *m);
bool machine_same_place(const struct machine_place *a,
                        const struct machine_place *b);
/* Whether the processor stands at the beginning of a handler, of an interrupt
 * or a fault, that has come before the instruction at FROM was done. */
bool machine_has_interrupted(struct machine *m,
                             const struct machine_place *from);

/* Guest memory, not over the end of a page; how many bytes could be read. */
size_t machine_read(struct machine *m, uint64_t address, void *buf, size_t len);

/* For hits at the processor that is looked at. */
struct hit_machine machine_for_hit(struct machine *m, uint64_t pc);

/* Whether the instruction at the program counter is one that can be done here;
 * then *P is what comes of it. */
bool machine_past(struct machine *m, struct past *p);
/* Queue the packets that make it so, the program counter included; their
 * answers are OK. Returns how many. */
unsigned machine_queue_past(struct machine *m, const struct past *p);

#endif
