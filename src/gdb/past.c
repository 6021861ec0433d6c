/* SPDX-License-Identifier: MIT */
/* Intel's manual, volume 2: chapter 2 on how instructions are encoded. */
#include "gdb/past.h"

#include "base/byteorder.h"

enum {
    REX_B = 1,
    REX_X = 2,
    REX_R = 4,
    REX_W = 8,
};

struct decoder {
    struct past *p;
    const uint8_t *code;
    size_t len, at;
    unsigned rex;
    bool operand16, repeat;
    /* of ModRM */
    unsigned mod, reg, rm;
    uint64_t address; /* where it is memory */
};

static bool take(struct decoder *d, uint8_t *byte)
{
    if (d->at == d->len)
        return false;
    *byte = d->code[d->at++];
    return true;
}

/* A signed number of SIZE bytes. */
static bool take_number(struct decoder *d, unsigned size, int64_t *value)
{
    uint8_t bytes[8] = {0};

    if (size > d->len - d->at)
        return false;
    memcpy(bytes, d->code + d->at, size);
    d->at += size;
    *value = (int64_t)(load_le64(bytes) << (64 - 8 * size)) >> (64 - 8 * size);
    return true;
}

/* Operand size, the repeats that are part of an opcode, REX; segments and
 * address sizes change too much. */
static bool prefixes(struct decoder *d, uint8_t *opcode)
{
    bool more = true;

    while (more) {
        if (!take(d, opcode))
            return false;
        if (*opcode == 0x66)
            d->operand16 = true;
        else if (*opcode == 0xf3)
            d->repeat = true;
        else
            more = *opcode == 0x2e; /* CS, in padding */
    }
    if (d->p->bits64 && (*opcode & 0xf0) == 0x40) {
        d->rex = *opcode & 15;
        return take(d, opcode);
    }
    return true;
}

static bool scaled(struct decoder *d, bool *no_base)
{
    uint8_t sib;
    unsigned index, base;

    if (!take(d, &sib))
        return false;
    index = (sib >> 3 & 7) | (d->rex & REX_X ? 8 : 0);
    base = (sib & 7) | (d->rex & REX_B ? 8 : 0);
    *no_base = (sib & 7) == 5 && d->mod == 0;
    d->address = *no_base ? 0 : d->p->registers[base];
    if (index != 4)
        d->address += d->p->registers[index] << (sib >> 6);
    return true;
}

/* ModRM with all that belongs to it. */
static bool modrm(struct decoder *d)
{
    bool no_base = false, relative;
    int64_t displacement = 0;
    uint8_t byte;

    if (!take(d, &byte))
        return false;
    d->mod = byte >> 6;
    d->reg = (byte >> 3 & 7) | (d->rex & REX_R ? 8 : 0);
    d->rm = (byte & 7) | (d->rex & REX_B ? 8 : 0);
    if (d->mod == 3)
        return true;
    relative = d->mod == 0 && (byte & 7) == 5;
    if ((byte & 7) == 4) {
        if (!scaled(d, &no_base))
            return false;
    } else {
        d->address = relative ? 0 : d->p->registers[d->rm];
    }
    if (d->mod == 1 && !take_number(d, 1, &displacement))
        return false;
    if ((d->mod == 2 || relative || no_base) &&
        !take_number(d, 4, &displacement))
        return false;
    d->address += (uint64_t)displacement;
    if (relative && d->p->bits64)
        d->address += d->p->pc + d->at; /* no immediate follows in what we do */
    return true;
}

/* Write register N as an operation of this size does. */
static bool write_register(struct decoder *d, unsigned n, uint64_t value)
{
    uint64_t *r = &d->p->registers[n];

    if (d->operand16 && !(d->rex & REX_W))
        *r = (*r & ~UINT64_C(0xffff)) | (value & 0xffff);
    else if (d->p->bits64 && d->rex & REX_W)
        *r = value;
    else
        *r = value & 0xffffffff;
    d->p->changed = (int)n;
    return true;
}

/* 0F 1F: nop with an operand. F3 0F 1E FA and FB: endbr64, endbr32. */
static bool run_0f(struct decoder *d)
{
    uint8_t opcode, byte;

    if (!take(d, &opcode))
        return false;
    if (opcode == 0x1e && d->repeat)
        return take(d, &byte) && (byte == 0xfa || byte == 0xfb);
    return opcode == 0x1f && !d->repeat && modrm(d) && (d->reg & 7) == 0;
}

static bool run_jump(struct decoder *d, unsigned size)
{
    int64_t offset;

    if (d->operand16 || !take_number(d, size, &offset))
        return false;
    d->p->pc += (uint64_t)offset;
    return true;
}

static bool run_move_immediate(struct decoder *d, uint8_t opcode)
{
    unsigned n = (opcode & 7) | (d->rex & REX_B ? 8 : 0);
    unsigned size = d->rex & REX_W ? 8 : d->operand16 ? 2 : 4;
    int64_t value;

    return take_number(d, size, &value) &&
           write_register(d, n, (uint64_t)value);
}

static bool run_opcode(struct decoder *d, uint8_t opcode)
{
    int64_t value;

    if (opcode == 0x0f)
        return run_0f(d);
    if (d->repeat) /* pause, and what is repeated */
        return false;
    switch (opcode) {
    case 0x90: /* nop; with REX.B it is an exchange */
        return !(d->rex & REX_B);
    case 0xeb:
        return run_jump(d, 1);
    case 0xe9:
        return run_jump(d, 4);
    case 0x89: /* mov between registers */
        return modrm(d) && d->mod == 3 &&
               write_register(d, d->rm, d->p->registers[d->reg]);
    case 0x8b:
        return modrm(d) && d->mod == 3 &&
               write_register(d, d->reg, d->p->registers[d->rm]);
    case 0x8d: /* lea */
        return modrm(d) && d->mod != 3 && write_register(d, d->reg, d->address);
    case 0xc7: /* mov immediate; four bytes are sign-extended to eight */
        return modrm(d) && d->mod == 3 && (d->reg & 7) == 0 &&
               take_number(d, d->operand16 && !(d->rex & REX_W) ? 2 : 4,
                           &value) &&
               write_register(d, d->rm, (uint64_t)value);
    default:
        return (opcode & 0xf8) == 0xb8 && run_move_immediate(d, opcode);
    }
}

bool past_run(struct past *p, const uint8_t *code, size_t len)
{
    struct past next = *p;
    struct decoder d = {.p = &next, .code = code, .len = len};
    uint8_t opcode;

    next.changed = -1;
    if (!prefixes(&d, &opcode) || !run_opcode(&d, opcode))
        return false;
    next.pc += d.at;
    if (!p->bits64)
        next.pc &= 0xffffffff;
    *p = next;
    return true;
}
