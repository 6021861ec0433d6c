/* SPDX-License-Identifier: MIT */
/* Opcodes of agent expressions (gdb's manual, "Bytecode Descriptions"). */
#ifndef RHEA_GDB_AX_CODE_H
#define RHEA_GDB_AX_CODE_H

#include <stdint.h>

enum ax_opcode {
    AX_ADD = 0x02,
    AX_SUB = 0x03,
    AX_MUL = 0x04,
    AX_DIV_SIGNED = 0x05,
    AX_DIV_UNSIGNED = 0x06,
    AX_REM_SIGNED = 0x07,
    AX_REM_UNSIGNED = 0x08,
    AX_LSH = 0x09,
    AX_RSH_SIGNED = 0x0a,
    AX_RSH_UNSIGNED = 0x0b,
    AX_TRACE = 0x0c,
    AX_TRACE_QUICK = 0x0d,
    AX_LOG_NOT = 0x0e,
    AX_BIT_AND = 0x0f,
    AX_BIT_OR = 0x10,
    AX_BIT_XOR = 0x11,
    AX_BIT_NOT = 0x12,
    AX_EQUAL = 0x13,
    AX_LESS_SIGNED = 0x14,
    AX_LESS_UNSIGNED = 0x15,
    AX_EXT = 0x16,
    AX_REF8 = 0x17,
    AX_REF16 = 0x18,
    AX_REF32 = 0x19,
    AX_REF64 = 0x1a,
    AX_IF_GOTO = 0x20,
    AX_GOTO = 0x21,
    AX_CONST8 = 0x22,
    AX_CONST16 = 0x23,
    AX_CONST32 = 0x24,
    AX_CONST64 = 0x25,
    AX_REG = 0x26,
    AX_END = 0x27,
    AX_DUP = 0x28,
    AX_POP = 0x29,
    AX_ZERO_EXT = 0x2a,
    AX_SWAP = 0x2b,
    AX_GETV = 0x2c,
    AX_SETV = 0x2d,
    AX_TRACEV = 0x2e,
    AX_TRACENZ = 0x2f,
    AX_TRACE16 = 0x30,
    AX_PICK = 0x32,
    AX_ROT = 0x33,
    AX_PRINTF = 0x34, /* operands: arguments (1), length (2), format */
    AX_N_OPCODES,
};

/* How an opcode looks and what it does to the stack. `pick` takes more values,
 * by its operand, and `printf` takes two and its arguments. */
struct ax_shape {
    const char *name; /* NULL: there is no such opcode, or we cannot run it */
    uint8_t operands; /* bytes behind the opcode */
    uint8_t takes, gives;
};

extern const struct ax_shape ax_shapes[AX_N_OPCODES];

#endif
