/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/state.h"

#include <errno.h>
#include <malloc.h>

#include "base/byteorder.h"

static int unexpected(struct rhea_error *err, const char *what)
{
    return rhea_error_set(err, ENOTSUP,
                          "this QEMU keeps its processors' %s in a way that is "
                          "not known here",
                          what);
}

/* Where four bytes that are written to the stub's register N go; 0: nowhere
 * that can be told. The register is then what it was. */
static size_t find_place(struct qemu_cpu *cpu, struct qemu_bytes *bytes, int n)
{
    static const uint32_t first = 0x52a1e7c3, second = 0x1d4b96f5;
    const uint8_t *p = (const uint8_t *)cpu;
    size_t room = malloc_usable_size(cpu), at = 0;
    uint8_t saved[16] = {0}, value[16] = {0};

    bytes->len = 0;
    qemu.gdb_read(cpu, bytes, n);
    if (bytes->len > sizeof(saved))
        return 0;
    memcpy(saved, bytes->data, bytes->len);
    store_le32(value, first);
    qemu.gdb_write(cpu, value, n);
    for (size_t i = 4; i + 4 <= room && !at; i += 4) {
        if (load_le32(p + i) != first)
            continue;
        store_le32(value, second);
        qemu.gdb_write(cpu, value, n);
        if (load_le32(p + i) == second)
            at = i;
        store_le32(value, first);
        qemu.gdb_write(cpu, value, n);
    }
    qemu.gdb_write(cpu, saved, n);
    return at;
}

static uint64_t word_of(const struct state *s, const uint8_t *at)
{
    return s->word == 8 ? load_le64(at) : load_le32(at);
}

static int find_general(struct state *s, struct qemu_cpu *cpu,
                        struct qemu_bytes *bytes, struct rhea_error *err)
{
    int n = state_general_count(s);
    size_t next;

    s->from_cpu = find_place(cpu, bytes, 0);
    next = find_place(cpu, bytes, s->word == 8 ? 2 : 1); /* rcx */
    s->ip = (size_t)n * s->word;
    s->flags = s->ip + s->word;
    if (!s->from_cpu || next != s->from_cpu + s->word ||
        find_place(cpu, bytes, n) != s->from_cpu + s->ip ||
        find_place(cpu, bytes, n + 1) != s->from_cpu + s->flags)
        return unexpected(err, "general registers");
    return 0;
}

/* Behind the flags: two operands of which the second is `source`, a third, the
 * operation, the direction, the modes. QEMU itself splits flags here. */
static int find_flags(struct state *s, uint8_t *env, struct rhea_error *err)
{
    enum { ALL = 0xcd5, RESULTS = 0x8d5 };
    uint8_t saved[64];
    bool found;

    s->source = s->flags + 2 * s->word;
    s->operation = s->flags + 4 * s->word;
    s->direction = s->operation + 4;
    s->modes = s->direction + 4;
    memcpy(saved, env + s->flags, sizeof(saved));
    qemu.set_flags(env, ALL, 0);
    found = word_of(s, env + s->source) == RESULTS &&
            load_le32(env + s->direction) == UINT32_MAX;
    store_le32(env + s->operation, UINT32_MAX);
    qemu.set_flags(env, 0, 0);
    found &= word_of(s, env + s->source) == 0 &&
             load_le32(env + s->operation) <= 1 &&
             load_le32(env + s->direction) == 1;
    memcpy(env + s->flags, saved, sizeof(saved));
    return found ? 0 : unexpected(err, "flags");
}

/* In 64-bit mode, and only then, gdb writes all of a register. */
static int check_modes(const struct state *s, struct qemu_cpu *cpu,
                       uint8_t *env, struct rhea_error *err)
{
    uint8_t general[8], modes[4], ones[8];
    uint64_t wide, narrow;

    if (s->word != 8)
        return 0;
    memset(ones, 0xff, sizeof(ones));
    memcpy(general, env, sizeof(general));
    memcpy(modes, env + s->modes, sizeof(modes));
    store_le32(env + s->modes, load_le32(modes) | STATE_64_BITS);
    store_le64(env, 0);
    qemu.gdb_write(cpu, ones, 0);
    wide = load_le64(env);
    store_le32(env + s->modes, load_le32(modes) & ~(uint32_t)STATE_64_BITS);
    store_le64(env, 0);
    qemu.gdb_write(cpu, ones, 0);
    narrow = load_le64(env);
    memcpy(env + s->modes, modes, sizeof(modes));
    memcpy(env, general, sizeof(general));
    return wide == UINT64_MAX && narrow == UINT32_MAX
               ? 0
               : unexpected(err, "modes");
}

static int find_bases(struct state *s, struct qemu_cpu *cpu,
                      struct qemu_bytes *bytes, struct rhea_error *err)
{
    enum { FS = 4 };
    int n = state_general_count(s) + 8;
    size_t fs = find_place(cpu, bytes, n), gs = find_place(cpu, bytes, n + 1);

    s->stride = gs - fs;
    if (!fs || !gs || s->stride != 8 + 2 * s->word ||
        fs < s->from_cpu + FS * s->stride)
        return unexpected(err, "segments");
    s->bases = fs - s->from_cpu - FS * s->stride;
    return 0;
}

int state_find(struct state *s, struct qemu_cpu *cpu, struct qemu_bytes *bytes,
               struct rhea_error *err)
{
    uint8_t *env;
    int ret;

    *s = (struct state){0};
    bytes->len = 0;
    qemu.gdb_read(cpu, bytes, 0);
    s->word = bytes->len;
    if (s->word != 8 && s->word != 4)
        return unexpected(err, "general registers");
    ret = find_general(s, cpu, bytes, err);
    env = (uint8_t *)cpu + s->from_cpu;
    if (ret == 0)
        ret = find_flags(s, env, err);
    if (ret == 0)
        ret = check_modes(s, cpu, env, err);
    if (ret == 0)
        ret = find_bases(s, cpu, bytes, err);
    if (ret < 0)
        s->from_cpu = 0;
    return ret;
}

/* --- others --------------------------------------------------------------- */

static bool reads(struct qemu_cpu *cpu, struct qemu_bytes *bytes, int n,
                  const uint8_t *want, size_t len)
{
    bytes->len = 0;
    qemu.gdb_read(cpu, bytes, n);
    return bytes->len == len && !memcmp(bytes->data, want, len);
}

/* Whether the LEN bytes at AT are the register. They are left as they were. */
static bool is_at(struct qemu_cpu *cpu, struct qemu_bytes *bytes, int n,
                  uint8_t *at, size_t len)
{
    uint8_t saved[16], turned[16];
    bool is;

    memcpy(saved, at, len);
    if (!reads(cpu, bytes, n, saved, len))
        return false;
    for (size_t i = 0; i < len; i++)
        turned[i] = (uint8_t)(~saved[i] ^ i);
    memcpy(at, turned, len);
    is = reads(cpu, bytes, n, turned, len);
    memcpy(at, saved, len);
    return is;
}

struct state_plain state_find_plain(const struct state *s, struct qemu_cpu *cpu,
                                    struct qemu_bytes *bytes, int n)
{
    uint8_t *env = (uint8_t *)cpu + s->from_cpu;
    size_t room = malloc_usable_size(cpu) - s->from_cpu;
    uint32_t modes = load_le32(env + s->modes);
    struct state_plain p = {0};

    bytes->len = 0;
    qemu.gdb_read(cpu, bytes, n);
    p.size = bytes->len;
    if (!p.size || p.size > 16)
        return p;
    store_le32(env + s->modes, modes | STATE_64_BITS);
    for (size_t i = s->modes + 4; i < STATE_FAR && i + 16 <= room && !p.offset;
         i += 4)
        if (is_at(cpu, bytes, n, env + i, p.size))
            p.offset = i;
    store_le32(env + s->modes, modes & ~(uint32_t)STATE_64_BITS);
    p.halves =
        p.offset && p.size == 8 && !is_at(cpu, bytes, n, env + p.offset, 8);
    store_le32(env + s->modes, modes);
    return p;
}

/* Whether they are where they were found, but the first at the place of number
 * TOP. */
static bool is_stack(const struct state *s, struct qemu_cpu *cpu,
                     struct qemu_bytes *bytes, int n,
                     const struct state_plain *p, unsigned top)
{
    enum { REGISTERS = 8 };
    uint8_t *env = (uint8_t *)cpu + s->from_cpu;
    bool is = true;

    for (unsigned i = 0; i < REGISTERS && is; i++) {
        const struct state_plain *place = &p[(i + top) % REGISTERS];

        is = place->offset &&
             is_at(cpu, bytes, n + (int)i, env + place->offset, place->size);
    }
    return is;
}

enum state_stack state_find_stack(const struct state *s, struct qemu_cpu *cpu,
                                  struct qemu_bytes *bytes, int n,
                                  const struct state_plain *p, int fstat)
{
    enum { TOP = 3 };
    enum state_stack found = STATE_STACK_UNKNOWN;
    uint8_t saved[4], moved[4];

    bytes->len = 0;
    qemu.gdb_read(cpu, bytes, fstat);
    if (bytes->len != sizeof(saved))
        return found;
    memcpy(saved, bytes->data, sizeof(saved));
    if (state_top(load_le32(saved)) != 0)
        return found;
    store_le32(moved, load_le32(saved) | TOP << 11);
    qemu.gdb_write(cpu, moved, fstat);
    if (reads(cpu, bytes, fstat, moved, sizeof(moved))) {
        if (is_stack(s, cpu, bytes, n, p, 0))
            found = STATE_STACK_FIXED;
        else if (is_stack(s, cpu, bytes, n, p, TOP))
            found = STATE_STACK_TURNS;
    }
    qemu.gdb_write(cpu, saved, fstat);
    return found;
}
