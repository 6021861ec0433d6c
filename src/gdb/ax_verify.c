/* SPDX-License-Identifier: MIT */
/* Agent expressions are checked here once, so that running them needs no
 * checks. */
#include <errno.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/ax.h"
#include "gdb/ax_code.h"

/* Floating point (0x01, 0x1b to 0x1f) is in no gdb and in no agent; 0x31 is a
 * hole. */
const struct ax_shape ax_shapes[AX_N_OPCODES] = {
    [AX_ADD] = {"add", 0, 2, 1},
    [AX_SUB] = {"sub", 0, 2, 1},
    [AX_MUL] = {"mul", 0, 2, 1},
    [AX_DIV_SIGNED] = {"div_signed", 0, 2, 1},
    [AX_DIV_UNSIGNED] = {"div_unsigned", 0, 2, 1},
    [AX_REM_SIGNED] = {"rem_signed", 0, 2, 1},
    [AX_REM_UNSIGNED] = {"rem_unsigned", 0, 2, 1},
    [AX_LSH] = {"lsh", 0, 2, 1},
    [AX_RSH_SIGNED] = {"rsh_signed", 0, 2, 1},
    [AX_RSH_UNSIGNED] = {"rsh_unsigned", 0, 2, 1},
    [AX_TRACE] = {"trace", 0, 2, 0},
    [AX_TRACE_QUICK] = {"trace_quick", 1, 1, 1},
    [AX_LOG_NOT] = {"log_not", 0, 1, 1},
    [AX_BIT_AND] = {"bit_and", 0, 2, 1},
    [AX_BIT_OR] = {"bit_or", 0, 2, 1},
    [AX_BIT_XOR] = {"bit_xor", 0, 2, 1},
    [AX_BIT_NOT] = {"bit_not", 0, 1, 1},
    [AX_EQUAL] = {"equal", 0, 2, 1},
    [AX_LESS_SIGNED] = {"less_signed", 0, 2, 1},
    [AX_LESS_UNSIGNED] = {"less_unsigned", 0, 2, 1},
    [AX_EXT] = {"ext", 1, 1, 1},
    [AX_REF8] = {"ref8", 0, 1, 1},
    [AX_REF16] = {"ref16", 0, 1, 1},
    [AX_REF32] = {"ref32", 0, 1, 1},
    [AX_REF64] = {"ref64", 0, 1, 1},
    [AX_IF_GOTO] = {"if_goto", 2, 1, 0},
    [AX_GOTO] = {"goto", 2, 0, 0},
    [AX_CONST8] = {"const8", 1, 0, 1},
    [AX_CONST16] = {"const16", 2, 0, 1},
    [AX_CONST32] = {"const32", 4, 0, 1},
    [AX_CONST64] = {"const64", 8, 0, 1},
    [AX_REG] = {"reg", 2, 0, 1},
    [AX_END] = {"end", 0, 0, 0},
    [AX_DUP] = {"dup", 0, 1, 2},
    [AX_POP] = {"pop", 0, 1, 0},
    [AX_ZERO_EXT] = {"zero_ext", 1, 1, 1},
    [AX_SWAP] = {"swap", 0, 2, 2},
    [AX_GETV] = {"getv", 2, 0, 1},
    [AX_SETV] = {"setv", 2, 1, 1},
    [AX_TRACEV] = {"tracev", 2, 0, 0},
    [AX_TRACENZ] = {"tracenz", 0, 2, 0},
    [AX_TRACE16] = {"trace16", 2, 1, 1},
    [AX_PICK] = {"pick", 1, 0, 1},
    [AX_ROT] = {"rot", 0, 3, 3},
    [AX_PRINTF] = {"printf", 3, 2, 0},
};

enum { HEIGHT_UNKNOWN = -1 };

struct verifier {
    const uint8_t *code;
    size_t len;
    struct ax_facts facts;
    /* Of each opcode's first byte: the height before it. */
    int16_t height[AX_MAX_LENGTH];
    /* Places of which the height is known and which were not looked at. */
    uint16_t todo[AX_MAX_LENGTH];
    size_t n_todo;
    /* Bit a byte: an opcode begins here; or it is inside of one. */
    uint8_t begins[AX_MAX_LENGTH / 8], inside[AX_MAX_LENGTH / 8];
    struct rhea_error *err;
};

static bool bit_get(const uint8_t *bits, size_t n)
{
    return bits[n / 8] >> (n % 8) & 1;
}

static void bit_set(uint8_t *bits, size_t n)
{
    bits[n / 8] |= (uint8_t)(1u << (n % 8));
}

/* The opcode at TARGET is reached with HEIGHT values on the stack. */
static int verify_reach(struct verifier *v, size_t from, size_t target,
                        int height)
{
    if (target >= v->len)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: it runs past its end from "
                              "byte %zu",
                              from);
    if (v->height[target] == height)
        return 0;
    if (v->height[target] != HEIGHT_UNKNOWN)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: byte %zu is reached with %d "
                              "and with %d values on the stack",
                              target, v->height[target], height);
    v->height[target] = (int16_t)height;
    v->todo[v->n_todo++] = (uint16_t)target;
    return 0;
}

/* No opcode may begin inside of another. */
static int verify_place(struct verifier *v, size_t at, size_t size)
{
    bool overlaps = bit_get(v->inside, at);

    bit_set(v->begins, at);
    for (size_t i = at + 1; i < at + size; i++) {
        overlaps |= bit_get(v->begins, i);
        bit_set(v->inside, i);
    }
    if (overlaps)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: a jump leads into the middle "
                              "of an opcode near byte %zu",
                              at);
    return 0;
}

/* Operands that change how an opcode looks. */
static int verify_operands(struct verifier *v, size_t at, size_t *size,
                           int *takes)
{
    const uint8_t *p = v->code + at;

    switch (p[0]) {
    case AX_PICK:
        *takes = p[1] + 1; /* they stay */
        return 0;
    case AX_REG:
        if (load_be16(p + 1) > 255)
            return rhea_error_set(v->err, EINVAL,
                                  "agent expression: there is no register %u",
                                  load_be16(p + 1));
        v->facts.registers[p[2] / 64] |= UINT64_C(1) << (p[2] % 64);
        return 0;
    case AX_PRINTF:
        *takes = p[1] + 2;
        *size += load_be16(p + 2);
        if (p[1] > AX_MAX_ARGUMENTS)
            return rhea_error_set(v->err, EINVAL,
                                  "agent expression: printf with %u arguments",
                                  p[1]);
        if (*size > v->len - at || *size == 4 || p[*size - 1] != 0)
            return rhea_error_set(v->err, EINVAL,
                                  "agent expression: the format at byte %zu "
                                  "has no end",
                                  at);
        return 0;
    default:
        return 0;
    }
}

static void verify_note(struct verifier *v, const uint8_t *p)
{
    switch (p[0]) {
    case AX_TRACE:
    case AX_TRACE_QUICK:
    case AX_TRACE16:
    case AX_TRACENZ:
    case AX_TRACEV:
        v->facts.records = true;
        break;
    case AX_PRINTF:
        v->facts.prints = true;
        break;
    case AX_SETV:
        v->facts.sets_variables = true;
        break;
    case AX_REF8:
    case AX_REF16:
    case AX_REF32:
    case AX_REF64:
        v->facts.reads_memory = true;
        break;
    default:
        break;
    }
}

static int verify_opcode(struct verifier *v, size_t at)
{
    const uint8_t *p = v->code + at;
    const struct ax_shape *shape;
    int height = v->height[at], takes, ret;
    size_t size;

    shape =
        p[0] < AX_N_OPCODES && ax_shapes[p[0]].name ? &ax_shapes[p[0]] : NULL;
    if (!shape)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: opcode 0x%02x at byte %zu "
                              "cannot be run here",
                              p[0], at);
    size = 1u + shape->operands;
    takes = shape->takes;
    if (size > v->len - at)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: %s at byte %zu is cut off",
                              shape->name, at);
    ret = verify_operands(v, at, &size, &takes);
    if (ret == 0)
        ret = verify_place(v, at, size);
    if (ret < 0)
        return ret;
    if (height < takes)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: %s at byte %zu takes %d "
                              "values and finds %d",
                              shape->name, at, takes, height);
    height += shape->gives - (p[0] == AX_PICK ? 0 : takes);
    if (height > AX_STACK)
        return rhea_error_set(v->err, EINVAL,
                              "agent expression: more than %d values on the "
                              "stack",
                              AX_STACK);
    v->facts.max_height = RHEA_MAX(v->facts.max_height, (unsigned)height);
    verify_note(v, p);
    if (p[0] == AX_GETV || p[0] == AX_SETV || p[0] == AX_TRACEV)
        v->facts.last_variable =
            RHEA_MAX(v->facts.last_variable, (int)load_be16(p + 1));
    if (p[0] == AX_END) {
        v->facts.end_height = RHEA_MIN(v->facts.end_height, (unsigned)height);
        return 0;
    }
    if (p[0] == AX_GOTO || p[0] == AX_IF_GOTO) {
        v->facts.loops |= load_be16(p + 1) <= at;
        ret = verify_reach(v, at, load_be16(p + 1), height);
        if (ret < 0 || p[0] == AX_GOTO)
            return ret;
    }
    return verify_reach(v, at, at + size, height);
}

int ax_verify(const uint8_t *code, size_t len, struct ax_facts *facts,
              struct rhea_error *err)
{
    struct verifier v = {.code = code, .len = len, .err = err};
    int ret;

    if (len > AX_MAX_LENGTH)
        return rhea_error_set(err, E2BIG,
                              "agent expression: %zu bytes, more than %d", len,
                              AX_MAX_LENGTH);
    for (size_t i = 0; i < len; i++)
        v.height[i] = HEIGHT_UNKNOWN;
    v.facts.end_height = AX_STACK;
    v.facts.last_variable = -1;
    ret = verify_reach(&v, 0, 0, 0);
    while (ret == 0 && v.n_todo)
        ret = verify_opcode(&v, v.todo[--v.n_todo]);
    if (ret < 0)
        return ret;
    if (facts)
        *facts = v.facts;
    return 0;
}
