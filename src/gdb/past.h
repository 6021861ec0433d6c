/* SPDX-License-Identifier: MIT */
/*
 * Instructions that can be done here and now, so that the guest resumes past
 * them instead of stepping over a breakpoint, which costs another stop. Only
 * those of which the effect is exact: nothing but registers and the program
 * counter changes, no flag, no memory, no fault.
 */
#ifndef RHEA_GDB_PAST_H
#define RHEA_GDB_PAST_H

#include <rhea/base.h>

enum {
    PAST_BYTES = 15, /* the longest instruction */
    PAST_REGISTERS = 16,
};

/* General registers in the processor's order: rax, rcx, rdx, rbx, rsp, rbp,
 * rsi, rdi, r8 to r15. */
struct past {
    bool bits64; /* 64-bit mode; else 32-bit, 16-bit mode is not known */
    uint64_t pc;
    uint64_t registers[PAST_REGISTERS];
    int changed; /* the register that past_run changed; -1: none */
};

/* Do the instruction of which CODE are the first LEN bytes; false, changing
 * nothing, where it is none that is known. */
bool past_run(struct past *p, const uint8_t *code, size_t len);

#endif
