/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/guest.h"

#include <errno.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/plugin/state.h"

static struct state state;
/* The API's names of registers; NULL: it has none. */
static const struct qemu_bytes *names;

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

int guest_find(struct qemu_cpu *cpu, struct rhea_error *err)
{
    struct qemu_bytes *bytes = qemu.new_bytes(FRAMES_PAGE);
    int ret = 0;

    if (qemu.official)
        names = qemu.register_names();
    else
        ret = state_find(&state, cpu, bytes, err);
    if (ret == 0 && !qemu.read_memory && !can_read_by_symbols())
        ret = rhea_error_set(err, ENOTSUP,
                             "this QEMU does not let plugins read memory");
    return ret;
}

/* --- sources ------------------------------------------------------------- */

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

static struct guest_source by_symbols(const char *name)
{
    int count = state_general_count(&state);
    struct guest_source s = {.kind = GUEST_NOT};

    for (int i = 0; i < count; i++)
        if (!strcmp(name, general_names[i][0]) ||
            !strcmp(name, general_names[i][1]))
            return (struct guest_source){.kind = GUEST_GENERAL, .n = i};
    if (!strcmp(name, "rip") || !strcmp(name, "eip"))
        s.kind = GUEST_IP;
    else if (!strcmp(name, "eflags"))
        s.kind = GUEST_FLAGS;
    for (int i = 0; i < (int)RHEA_ARRAY_SIZE(other_names) - 16 + count; i++)
        if (!strcmp(name, other_names[i]))
            s = (struct guest_source){.kind = GUEST_BY_GDB, .n = count + 2 + i};
    if (!strcmp(name, "mxcsr"))
        s = (struct guest_source){
            .kind = GUEST_BY_GDB,
            .n = count + 2 + (int)RHEA_ARRAY_SIZE(other_names) - 16 + count};
    return s;
}

static const struct qemu_register_name *find_name(const char *name)
{
    const struct qemu_register_name *list =
        (const struct qemu_register_name *)(const void *)names->data;

    for (unsigned i = 0; i < names->len; i++)
        if (!strcmp(list[i].name, name))
            return &list[i];
    return NULL;
}

static struct guest_source by_api(const char *name)
{
    const struct qemu_register_name *n = find_name(name);

    if (!strcmp(name, "rip") || !strcmp(name, "eip"))
        return (struct guest_source){.kind = GUEST_IP};
    if (!n)
        return (struct guest_source){.kind = GUEST_NOT};
    return (struct guest_source){.kind = GUEST_BY_API, .handle = n->handle};
}

void guest_find_sources(struct guest_sources *s, const struct layout *l)
{
    for (unsigned i = 0; i < EXPERIMENT_MAX_REGISTERS; i++) {
        const struct layout_register *r = &l->registers[i];

        s->list[i] = (struct guest_source){.kind = GUEST_NOT};
        if (i < l->n && r->size)
            s->list[i] = qemu.official ? by_api(r->name) : by_symbols(r->name);
    }
}

/* --- registers ----------------------------------------------------------- */

static uint64_t code_base(const struct guest_cpu *g)
{
    enum { CS = 1 };

    return state.from_cpu ? word_at(g, state.bases + CS * state.stride) : 0;
}

/* While a block runs, QEMU's instruction pointer stays in the page that it
 * began in, as do the instructions of a block. */
uint64_t guest_pc(const struct guest_cpu *g, uint64_t translated)
{
    uint64_t pc, offset = translated % FRAMES_PAGE;

    if (!state.from_cpu)
        return translated;
    pc = word_at(g, state.ip) + code_base(g);
    pc = pc / FRAMES_PAGE * FRAMES_PAGE + offset;
    return is_wide(g) ? pc : pc & UINT32_MAX;
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

static uint64_t flags(const struct guest_cpu *g)
{
    enum { DIRECTION = 0x400, DYNAMIC = 0 };
    const uint8_t *env = env_of(g);
    uint64_t noted[8] = {0};
    uint32_t operation = load_le32(env + state.operation);

    /* Which operation set them last is known where the code was translated,
     * unless it is as it was before this block. */
    if (qemu.unwind(g->cpu, g->code, noted) && noted[1] != DYNAMIC)
        operation = (uint32_t)noted[1];
    return word_at(g, state.flags) | qemu.flags(env_of(g), (int)operation) |
           (load_le32(env + state.direction) & DIRECTION);
}

static void put(uint8_t *bytes, size_t size, uint64_t value)
{
    uint8_t wide[8];

    store_le64(wide, value);
    memset(bytes, 0, size);
    memcpy(bytes, wide, RHEA_MIN(size, sizeof(wide)));
}

static bool put_bytes(const struct qemu_bytes *b, uint8_t *bytes, size_t size)
{
    size_t n = RHEA_MIN(size, (size_t)b->len);

    memcpy(bytes, b->data, n);
    memset(bytes + n, 0, size - n);
    return n > 0;
}

bool guest_register(void *opaque, unsigned n, void *bytes)
{
    const struct guest_cpu *g = opaque;
    const struct guest_source *s = &g->sources->list[n];
    size_t size = g->layout->registers[n].size;

    switch (s->kind) {
    case GUEST_GENERAL:
        put(bytes, size, general(g, (unsigned)s->n));
        return true;
    case GUEST_IP:
        put(bytes, size, g->pc - code_base(g));
        return true;
    case GUEST_FLAGS:
        put(bytes, size, flags(g));
        return true;
    case GUEST_BY_GDB:
        g->bytes->len = 0;
        qemu.gdb_read(g->cpu, g->bytes, s->n);
        return put_bytes(g->bytes, bytes, size);
    case GUEST_BY_API:
        g->bytes->len = 0;
        qemu.read_register(s->handle, g->bytes);
        return put_bytes(g->bytes, bytes, size);
    default:
        return false;
    }
}

/* --- memory -------------------------------------------------------------- */

enum { ATTRIBUTES = 16 /* bytes; more than any QEMU's MemTxAttrs */ };

/* Whether memory is behind a virtual address, and no device. */
static bool translate(const struct guest_cpu *g, uint64_t address,
                      uint64_t *physical, uint8_t attributes[ATTRIBUTES])
{
    uint64_t page;

    memset(attributes, 0, ATTRIBUTES);
    page =
        qemu.translate(g->cpu, address / FRAMES_PAGE * FRAMES_PAGE, attributes);
    if (page == UINT64_MAX)
        return false;
    *physical = page + address % FRAMES_PAGE;
    return !qemu.is_io(*physical);
}

static size_t read_by_api(const struct guest_cpu *g, uint64_t address,
                          void *buf, size_t len)
{
    uint8_t attributes[ATTRIBUTES];
    uint64_t physical;

    if (qemu.translate && qemu.is_io &&
        !translate(g, address, &physical, attributes))
        return 0;
    g->bytes->len = 0;
    if (!qemu.read_memory(address, g->bytes, len) || g->bytes->len < len)
        return 0;
    memcpy(buf, g->bytes->data, len);
    return len;
}

size_t guest_read(void *opaque, uint64_t address, void *buf, size_t len)
{
    const struct guest_cpu *g = opaque;
    uint8_t attributes[ATTRIBUTES];
    uint32_t number;
    uint64_t physical;
    struct qemu_space *space;

    if (qemu.read_memory)
        return read_by_api(g, address, buf, len);
    if (!translate(g, address, &physical, attributes))
        return 0;
    number = load_le32(attributes); /* they are a number of 32 bits here */
    space = qemu.space(g->cpu, qemu.space_number(g->cpu, number));
    return qemu.read_space(space, physical, number, buf, len) == 0 ? len : 0;
}
