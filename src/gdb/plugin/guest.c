/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/guest.h"

#include <errno.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/plugin/state.h"

static const char *const general_names[][2] = {
    {"rax", "eax"}, {"rcx", "ecx"}, {"rdx", "edx"}, {"rbx", "ebx"},
    {"rsp", "esp"}, {"rbp", "ebp"}, {"rsi", "esi"}, {"rdi", "edi"},
    {"r8", "r8"},   {"r9", "r9"},   {"r10", "r10"}, {"r11", "r11"},
    {"r12", "r12"}, {"r13", "r13"}, {"r14", "r14"}, {"r15", "r15"},
};

/* In the order of the stub's numbers, which begin behind the flags. */
static const char *const other_names[] = {
    "cs",      "ss",        "ds",    "es",    "fs",    "gs",    "fs_base",
    "gs_base", "k_gs_base", "cr0",   "cr2",   "cr3",   "cr4",   "cr8",
    "efer",    "st0",       "st1",   "st2",   "st3",   "st4",   "st5",
    "st6",     "st7",       "fctrl", "fstat", "ftag",  "fiseg", "fioff",
    "foseg",   "fooff",     "fop",   "xmm0",  "xmm1",  "xmm2",  "xmm3",
    "xmm4",    "xmm5",      "xmm6",  "xmm7",  "xmm8",  "xmm9",  "xmm10",
    "xmm11",   "xmm12",     "xmm13", "xmm14", "xmm15",
};

enum {
    CR8 = 13,
    ST0 = 15,
    STACK = 8,
    STACK_REGISTER = 10, /* bytes */
    FCTRL = 23,
    FSTAT = 24,
    XMM0 = 31,
    OTHERS = RHEA_ARRAY_SIZE(other_names)
};

static struct state state;
static struct state_plain plain[OTHERS];
static enum state_stack stack;
/* What those of the FPU's control, and mxcsr, are made from. */
static struct inputs inputs;
static bool has_inputs;
static struct inputs_priority priority;
/* The API's names of registers; NULL: it has none. */
static const struct qemu_bytes *names;
static struct qemu_register *ip_by_api;
/* What stands where the flags are not known at translation; see flags(). */
static uint64_t unknown_operation = UINT64_MAX;

static uint8_t *env_of(const struct guest_cpu *g)
{
    return (uint8_t *)g->cpu + state.from_cpu;
}

static uint64_t word_at(const struct guest_cpu *g, size_t offset)
{
    const uint8_t *at = env_of(g) + offset;

    return state.word == 8 ? load_le64(at) : load_le32(at);
}

static bool is_wide(const struct guest_cpu *g)
{
    return state.word == 8 &&
           load_le32(env_of(g) + state.modes) & STATE_64_BITS;
}

static bool can_read_by_symbols(void)
{
    return qemu.translate && qemu.space_number && qemu.space &&
           qemu.read_space && qemu.is_io;
}

static struct qemu_register *handle_of(const char *name)
{
    const struct qemu_register_name *list =
        (const struct qemu_register_name *)(const void *)names->data;

    for (unsigned i = 0; i < names->len; i++)
        if (!strcmp(list[i].name, name))
            return list[i].handle;
    return NULL;
}

/* The last 16 of them are fewer in a QEMU for 32 bits only. */
static int other_count(void)
{
    return (int)OTHERS - 16 + state_general_count(&state);
}

/* The stub's number of the one that is made as the Nth. */
static int number_of_made(int n)
{
    int first = state_general_count(&state) + 2;

    return n < XMM0 - FCTRL ? first + FCTRL + n : first + other_count();
}

static int find_state(struct qemu_cpu *cpu, struct qemu_bytes *bytes,
                      struct rhea_error *err)
{
    int ret = state_find(&state, cpu, bytes, err), first;

    if (ret < 0)
        return ret;
    guest_find_memory(cpu, state.from_cpu);
    first = state_general_count(&state) + 2;
    /* cr8 is behind a pointer in the state, which must stay as it is. */
    for (int i = 0; i < other_count(); i++)
        if (i != CR8)
            plain[i] = state_find_plain(&state, cpu, bytes, first + i);
    stack = state_find_stack(&state, cpu, bytes, first + ST0, &plain[ST0],
                             first + FSTAT);
    has_inputs = true;
    for (int i = 0; i < GUEST_MADE_COUNT; i++)
        has_inputs &=
            inputs_find(&state, cpu, bytes, number_of_made(i), &inputs);
    inputs_find_priority(&priority);
    return 0;
}

static bool can_find_state(void)
{
    return qemu.gdb_read && qemu.gdb_write && qemu.unwind && qemu.flags &&
           qemu.set_flags;
}

int guest_find(struct qemu_cpu *cpu, struct rhea_error *err)
{
    struct qemu_bytes *bytes = qemu.new_bytes(FRAMES_PAGE);
    int ret = 0;

    if (can_find_state())
        ret = find_state(cpu, bytes, err);
    if (qemu.official) {
        ret = 0; /* it does without */
        names = qemu.register_names();
        ip_by_api = handle_of("rip") ? handle_of("rip") : handle_of("eip");
    }
    if (ret == 0 && !qemu.read_memory && !can_read_by_symbols())
        ret = rhea_error_set(err, ENOTSUP,
                             "this QEMU does not let plugins read memory");
    return ret;
}

void guest_prepare(struct guest_cpu *g)
{
    g->controller = inputs_controller(&priority, g->cpu);
}

/* --- sources ------------------------------------------------------------- */

/* Whether the stub gives the register this number, as far as that can be seen:
 * in its numbers' order the API lists them. */
static bool has_number(const char *name, int n)
{
    const struct qemu_register_name *list;

    if (!names)
        return true;
    list = (const struct qemu_register_name *)(const void *)names->data;
    return (unsigned)n < names->len && !strcmp(list[n].name, name);
}

static bool is_stack(int other)
{
    return other >= ST0 && other < ST0 + STACK;
}

/* What is in the state; GUEST_NOT: it is not. */
static struct guest_source in_state(const char *name)
{
    for (int i = 0; i < state_general_count(&state); i++)
        if (!strcmp(name, general_names[i][0]) ||
            !strcmp(name, general_names[i][1]))
            return (struct guest_source){.kind = GUEST_GENERAL, .n = i};
    if (!strcmp(name, "eflags"))
        return (struct guest_source){.kind = GUEST_FLAGS};
    for (int i = 0; i < other_count(); i++)
        if (!strcmp(name, other_names[i]) && plain[i].offset &&
            (!is_stack(i) || stack == STATE_STACK_FIXED) &&
            has_number(name, state_general_count(&state) + 2 + i))
            return (struct guest_source){.kind = GUEST_PLAIN,
                                         .plain = plain[i]};
    return (struct guest_source){.kind = GUEST_NOT};
}

/* Reading one of these by the stub takes ten times as long as all others. */
static struct guest_source quicker(struct guest_source s)
{
    int first = state_general_count(&state) + 2;

    if (s.kind != GUEST_BY_GDB || !state.from_cpu)
        return s;
    if (s.n == first + CR8)
        s.kind = GUEST_PRIORITY;
    if (is_stack(s.n - first) && stack == STATE_STACK_TURNS && has_inputs)
        return (struct guest_source){.kind = GUEST_STACK,
                                     .n = s.n - first - ST0};
    for (int i = 0; i < GUEST_MADE_COUNT && has_inputs; i++)
        if (s.n == number_of_made(i))
            return (struct guest_source){.kind = GUEST_MADE, .n = i};
    return s;
}

static struct guest_source by_gdb(const char *name)
{
    struct guest_source s = {.kind = GUEST_BY_GDB,
                             .n = state_general_count(&state) + 2};

    for (int i = 0; i < other_count(); i++, s.n++)
        if (!strcmp(name, other_names[i]) && has_number(name, s.n))
            return s;
    if (!strcmp(name, "mxcsr") && has_number(name, s.n))
        return s;
    return (struct guest_source){.kind = GUEST_NOT};
}

static struct guest_source source_of(const char *name)
{
    struct guest_source s = {.kind = GUEST_NOT};

    if (!strcmp(name, "rip") || !strcmp(name, "eip"))
        return (struct guest_source){.kind = GUEST_IP};
    if (state.from_cpu)
        s = in_state(name);
    if (s.kind == GUEST_NOT && (!qemu.official || state.from_cpu))
        s = quicker(by_gdb(name));
    if (s.kind == GUEST_NOT && qemu.official && handle_of(name))
        s = (struct guest_source){.kind = GUEST_BY_API,
                                  .handle = handle_of(name)};
    return s;
}

/* Registers that are beside each other in both places move together. */
static void plan_move(struct guest_plan *p, size_t from, size_t size)
{
    if (p->n_moves) {
        const struct guest_move *last = &p->moves[p->n_moves - 1];
        size_t after = p->bytes - last->to;

        if (from == last->from + after && after + size <= HIT_REGISTER_SLACK)
            return;
    }
    p->moves[p->n_moves++] =
        (struct guest_move){.from = (uint16_t)from, .to = (uint16_t)p->bytes};
}

static void plan_one(struct guest_plan *p, unsigned n,
                     const struct guest_source *s, size_t size)
{
    struct guest_move it = {.from = (uint16_t)n, .to = (uint16_t)p->bytes};

    if (s->kind == GUEST_GENERAL && size == 8) {
        it.from = (uint16_t)(s->n * 8);
        p->words[p->n_words++] = it;
    } else if (s->kind == GUEST_PLAIN && size == s->plain.size) {
        plan_move(p, s->plain.offset, size);
    } else if (s->kind == GUEST_IP && size == 8) {
        p->has_ip = true;
        p->ip = it.to;
    } else if (s->kind == GUEST_STACK && size == STACK_REGISTER) {
        it.from = (uint16_t)s->n;
        p->stack[p->n_stack++] = it;
    } else if (s->kind == GUEST_MADE && size == sizeof(uint32_t)) {
        it.from = (uint16_t)s->n;
        p->made[p->n_made++] = it;
    } else {
        p->rest[p->n_rest++] = it;
    }
    p->usable &= s->kind != GUEST_NOT;
}

static void make_plan(struct guest_sources *s, const struct layout *l)
{
    struct guest_plan *p = &s->plan;

    *p = (struct guest_plan){.usable = state.word == 8};
    for (unsigned n = 0; n < l->n && p->usable; n++) {
        if (!l->registers[n].size)
            continue;
        plan_one(p, n, &s->list[n], l->registers[n].size);
        register_set_add(&p->all, n);
        p->mask[n / 8] |= (uint8_t)(1u << (n % 8));
        p->bytes += l->registers[n].size;
    }
}

void guest_find_sources(struct guest_sources *s, const struct layout *l)
{
    for (unsigned i = 0; i < EXPERIMENT_MAX_REGISTERS; i++) {
        const struct layout_register *r = &l->registers[i];

        s->list[i] = (struct guest_source){.kind = GUEST_NOT};
        if (i < l->n && r->size)
            s->list[i] = source_of(r->name);
    }
    make_plan(s, l);
}

/* --- registers ----------------------------------------------------------- */

static uint64_t code_base(const struct guest_cpu *g)
{
    enum { CS = 1 };

    return state.from_cpu ? word_at(g, state.bases + CS * state.stride) : 0;
}

/* Without the state, code segments begin at 0. */
static uint64_t pc_by_api(const struct guest_cpu *g)
{
    g->bytes->len = 0;
    if (!ip_by_api || qemu.read_register(ip_by_api, g->bytes) <= 0)
        return 0;
    return g->bytes->len >= 8 ? load_le64(g->bytes->data)
                              : load_le32(g->bytes->data);
}

/* While a block runs, QEMU's instruction pointer stays in the page that it
 * began in, as do the instructions of a block. */
uint64_t guest_pc(const struct guest_cpu *g, uint64_t offset)
{
    uint64_t pc =
        state.from_cpu ? word_at(g, state.ip) + code_base(g) : pc_by_api(g);

    pc = pc / FRAMES_PAGE * FRAMES_PAGE + offset;
    return !state.from_cpu || is_wide(g) ? pc : pc & UINT32_MAX;
}

/* As the stub gives them: outside of 64-bit mode the lower halves of eight. */
static uint64_t general(const struct guest_cpu *g, unsigned n)
{
    uint64_t value = word_at(g, n * state.word);

    if (is_wide(g))
        return value;
    return n < 8 ? value & UINT32_MAX : 0;
}

uint64_t guest_general(const struct guest_cpu *g, enum guest_general n)
{
    return state.from_cpu ? general(g, (unsigned)n) : 0;
}

bool guest_wants_to_learn(void)
{
    return state.from_cpu &&
           __atomic_load_n(&unknown_operation, __ATOMIC_RELAXED) == UINT64_MAX;
}

/* A block does not know what set the flags before it. */
void guest_learn(const struct guest_cpu *g)
{
    uint64_t noted[8] = {0};

    if (qemu.unwind(g->cpu, g->code, noted))
        __atomic_store_n(&unknown_operation, noted[1], __ATOMIC_RELAXED);
}

/* Which operation set them last is known where the code was translated, unless
 * that was before the block. QEMUs differ in whether the function that computes
 * them is told or looks by itself. */
static bool flags(const struct guest_cpu *g, uint64_t *value)
{
    enum { DIRECTION = 0x400 };
    uint8_t *env = env_of(g), *operation = env + state.operation;
    uint32_t saved = load_le32(operation), now = saved;
    uint64_t noted[8] = {0};

    if (!g->first) {
        if (guest_wants_to_learn() || !qemu.unwind(g->cpu, g->code, noted))
            return false;
        if (noted[1] != __atomic_load_n(&unknown_operation, __ATOMIC_RELAXED))
            now = (uint32_t)noted[1];
    }
    store_le32(operation, now);
    *value = word_at(g, state.flags) | qemu.flags(env, (int)now) |
             (load_le32(env + state.direction) & DIRECTION);
    store_le32(operation, saved);
    return true;
}

/* Copies of a length that is not known to the compiler are slow. */
static void put(uint8_t *bytes, size_t size, uint64_t value)
{
    if (size == 8) {
        store_le64(bytes, value);
    } else if (size == 4) {
        store_le32(bytes, (uint32_t)value);
    } else {
        for (size_t i = 0; i < size; i++)
            bytes[i] = i < 8 ? (uint8_t)(value >> 8 * i) : 0;
    }
}

static bool put_bytes(const struct qemu_bytes *b, uint8_t *bytes, size_t size)
{
    size_t n = RHEA_MIN(size, (size_t)b->len);

    memcpy(bytes, b->data, n);
    memset(bytes + n, 0, size - n);
    return n > 0;
}

static bool put_by_gdb(const struct guest_cpu *g, int n, uint8_t *bytes,
                       size_t size)
{
    g->bytes->len = 0;
    qemu.gdb_read(g->cpu, g->bytes, n);
    return put_bytes(g->bytes, bytes, size);
}

static void put_plain(const struct guest_cpu *g, const struct state_plain *p,
                      uint8_t *bytes, size_t size)
{
    const uint8_t *from = env_of(g) + p->offset;

    if (p->size == 16 && size == 16) {
        memcpy(bytes, from, 16);
    } else if (p->size == 10 && size == 10) {
        memcpy(bytes, from, 10);
    } else if (p->size == 8 && (!p->halves || is_wide(g))) {
        put(bytes, size, load_le64(from));
    } else if (p->size >= 4 && p->size <= 8) {
        put(bytes, size, load_le32(from));
    } else {
        memset(bytes, 0, size);
        memcpy(bytes, from, RHEA_MIN(size, p->size));
    }
}

static void make_anew(struct guest_cpu *g)
{
    struct guest_made *m = &g->made;
    const uint8_t *env = env_of(g);

    for (int i = 0; i < GUEST_MADE_COUNT; i++) {
        uint8_t value[4] = {0};

        g->bytes->len = 0;
        qemu.gdb_read(g->cpu, g->bytes, number_of_made(i));
        memcpy(value, g->bytes->data, RHEA_MIN(g->bytes->len, 4u));
        m->values[i] = load_le32(value);
    }
    /* Only now, since reading has written to some. */
    for (unsigned i = 0; i < inputs.n; i++)
        m->words[i] = load_le32(env + inputs.offsets[i]);
    m->valid = true;
}

static const uint32_t *made(struct guest_cpu *g)
{
    const struct guest_made *m = &g->made;
    const uint8_t *env = env_of(g);
    bool same = m->valid;

    for (unsigned i = 0; i < inputs.n; i++)
        same &= m->words[i] == load_le32(env + inputs.offsets[i]);
    if (!same)
        make_anew(g);
    return m->values;
}

/* Where the Nth from the top is. */
static const struct state_plain *in_stack(unsigned n, const uint32_t *values)
{
    return &plain[ST0 + (n + state_top(values[FSTAT - FCTRL])) % STACK];
}

bool guest_register(void *opaque, unsigned n, void *bytes)
{
    struct guest_cpu *g = opaque;
    const struct guest_source *s = &g->sources->list[n];
    size_t size = g->layout->registers[n].size;
    uint64_t value;

    switch (s->kind) {
    case GUEST_GENERAL:
        put(bytes, size, general(g, (unsigned)s->n));
        return true;
    case GUEST_IP:
        put(bytes, size, g->pc - code_base(g));
        return true;
    case GUEST_FLAGS:
        if (!flags(g, &value))
            return false;
        put(bytes, size, value);
        return true;
    case GUEST_PLAIN:
        put_plain(g, &s->plain, bytes, size);
        return true;
    case GUEST_STACK:
        put_plain(g, in_stack((unsigned)s->n, made(g)), bytes, size);
        return true;
    case GUEST_MADE:
        put(bytes, size, made(g)[s->n]);
        return true;
    case GUEST_PRIORITY:
        if (g->controller &&
            inputs_read_priority(&priority, g->controller, &value)) {
            put(bytes, size, value);
            return true;
        }
        return put_by_gdb(g, s->n, bytes, size);
    case GUEST_BY_GDB:
        return put_by_gdb(g, s->n, bytes, size);
    case GUEST_BY_API:
        g->bytes->len = 0;
        qemu.read_register(s->handle, g->bytes);
        return put_bytes(g->bytes, bytes, size);
    default:
        return false;
    }
}

static bool is_all(const struct guest_plan *p, const struct register_set *set)
{
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(set->bits); i++)
        if ((set->bits[i] & p->all.bits[i]) != p->all.bits[i])
            return false;
    return true;
}

/* False where one of them is not at hand. */
static bool follow_plan(struct guest_cpu *g, const struct layout *l,
                        uint8_t *out, uint8_t *mask)
{
    const struct guest_plan *p = &g->sources->plan;
    const uint8_t *env = env_of(g);
    const uint32_t *values = p->n_made || p->n_stack ? made(g) : NULL;

    for (unsigned i = 0; i < p->n_moves; i++)
        memcpy(out + p->moves[i].to, env + p->moves[i].from,
               HIT_REGISTER_SLACK);
    for (unsigned i = 0; i < p->n_words; i++)
        store_le64(out + p->words[i].to, load_le64(env + p->words[i].from));
    if (p->has_ip)
        store_le64(out + p->ip, g->pc - code_base(g));
    for (unsigned i = 0; i < p->n_stack; i++)
        memcpy(out + p->stack[i].to,
               env + in_stack(p->stack[i].from, values)->offset,
               STACK_REGISTER);
    for (unsigned i = 0; i < p->n_made; i++)
        store_le32(out + p->made[i].to, values[p->made[i].from]);
    for (unsigned i = 0; i < p->n_rest; i++)
        if (!guest_register(g, p->rest[i].from, out + p->rest[i].to))
            return false;
    memcpy(mask, p->mask, (l->n + 7) / 8);
    return true;
}

size_t guest_registers(void *opaque, const struct register_set *set,
                       uint8_t *out, uint8_t *mask)
{
    struct guest_cpu *g = opaque;
    const struct guest_plan *p = &g->sources->plan;
    const struct layout *l = g->layout;
    size_t done = 0;

    if (p->usable && is_wide(g) && is_all(p, set) &&
        follow_plan(g, l, out, mask))
        return p->bytes;
    for (unsigned n = 0; n < l->n; n++) {
        if (!l->registers[n].size || !register_set_has(set, n) ||
            !guest_register(opaque, n, out + done))
            continue;
        mask[n / 8] |= (uint8_t)(1u << (n % 8));
        done += l->registers[n].size;
    }
    return done;
}
