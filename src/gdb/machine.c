/* SPDX-License-Identifier: MIT */
#include "gdb/machine.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"

static int find_either(const struct layout *l, const char *a, const char *b)
{
    int n = layout_number(l, a);

    return n >= 0 ? n : layout_number(l, b);
}

int machine_init(struct machine *m, struct stub *stub,
                 const struct layout *layout, pid_t pid, struct rhea_error *err)
{
    static const char *const wide[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                       "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                       "r12", "r13", "r14", "r15"};
    static const char *const narrow[] = {"eax", "ecx", "edx", "ebx",
                                         "esp", "ebp", "esi", "edi"};

    *m = (struct machine){.stub = stub, .layout = layout};
    m->rip = find_either(layout, "rip", "eip");
    m->rsp = find_either(layout, "rsp", "esp");
    m->cs = layout_number(layout, "cs");
    m->eflags = layout_number(layout, "eflags");
    m->cr0 = layout_number(layout, "cr0");
    m->cr3 = layout_number(layout, "cr3");
    m->cr4 = layout_number(layout, "cr4");
    m->efer = layout_number(layout, "efer");
    for (unsigned i = 0; i < PAST_REGISTERS; i++)
        m->general[i] = find_either(layout, wide[i], i < 8 ? narrow[i] : "-");
    /* Without control registers addresses cannot be translated here. */
    return memory_find(&m->memory, stub, m->cr3 < 0 ? 0 : pid, err);
}

void machine_forget(struct machine *m)
{
    m->has_g = false;
}

int machine_select(struct machine *m, const char *thread,
                   struct rhea_error *err)
{
    const char *reply;
    int ret;

    if (!strcmp(m->thread, thread))
        return 0;
    machine_forget(m);
    ret = stub_callf(m->stub, &reply, err, "Hg%s", thread);
    if (ret < 0)
        return ret;
    if (strcmp(reply, "OK") != 0)
        return rhea_error_set(err, ESRCH, "the stub has no thread %s", thread);
    snprintf(m->thread, sizeof(m->thread), "%s", thread);
    return 0;
}

/* `p01.02` or `2`: threads are counted from 1. */
unsigned machine_cpu(const struct machine *m)
{
    const char *dot = strchr(m->thread, '.');
    unsigned long n = strtoul(dot ? dot + 1 : m->thread, NULL, 16);

    return n ? (unsigned)(n - 1) & 0xffff : 0;
}

/* --- registers ----------------------------------------------------------- */

/* `xx` stands for what is not there. */
static void parse_register(struct machine *m, unsigned n, const char *text,
                           size_t len)
{
    const struct layout_register *r = &m->layout->registers[n];
    size_t from = 2 * (size_t)r->offset, size = 2 * (size_t)r->size, got;
    struct packet_cursor c;

    m->there[n / 8] &= (uint8_t) ~(1u << (n % 8));
    if (!r->size || from + size > len)
        return;
    c = packet_cursor(text + from, size);
    if (packet_bytes(&c, m->g + r->offset, r->size, &got) && got == r->size)
        m->there[n / 8] |= (uint8_t)(1u << (n % 8));
}

int machine_fetch(struct machine *m, struct rhea_error *err)
{
    const char *reply;
    int ret;

    if (m->has_g)
        return 0;
    ret = stub_callf(m->stub, &reply, err, "g");
    if (ret < 0)
        return ret;
    if (reply[0] == 'E' || !reply[0])
        return rhea_error_set(err, EIO, "the stub does not give registers");
    for (unsigned n = 0; n < m->layout->n; n++)
        parse_register(m, n, reply, strlen(reply));
    if (m->rip >= 0 && !machine_register(m, (unsigned)m->rip))
        return rhea_error_set(err, EPROTO,
                              "the stub does not give the program counter");
    m->has_g = true;
    return 0;
}

const uint8_t *machine_register(const struct machine *m, unsigned n)
{
    if (n >= m->layout->n || !(m->there[n / 8] >> (n % 8) & 1))
        return NULL;
    return m->g + m->layout->registers[n].offset;
}

uint64_t machine_value(const struct machine *m, int n)
{
    const uint8_t *bytes = n < 0 ? NULL : machine_register(m, (unsigned)n);
    uint8_t wide[8] = {0};

    if (!bytes || m->layout->registers[n].size > 8)
        return 0;
    memcpy(wide, bytes, m->layout->registers[n].size);
    return load_le64(wide);
}

/* --- what the program counter means -------------------------------------- */

enum { CR0_PE = 1, EFER_LMA = 1 << 10 };
static const uint64_t cr0_pg = UINT64_C(1) << 31;

static bool is_real_mode(const struct machine *m)
{
    return m->cr0 >= 0 && !(machine_value(m, m->cr0) & CR0_PE);
}

/* In long mode the code segment decides between 64 bits and compatibility; its
 * descriptor is not among the registers. Addresses above 4 GiB exist only in
 * 64-bit mode, and below, user programs of 32 bits are told by the selector
 * that Linux, BSD and Windows give them. */
enum machine_bits machine_bits(const struct machine *m)
{
    uint64_t cs = machine_value(m, m->cs);

    if (is_real_mode(m))
        return MACHINE_16;
    if (m->cr0 < 0) /* a user program's server */
        return m->layout->registers[m->rip].size == 8 ? MACHINE_64 : MACHINE_32;
    if (!(machine_value(m, m->efer) & EFER_LMA))
        return MACHINE_32;
    return cs == 0x23 || cs == 0x1b ? MACHINE_32 : MACHINE_64;
}

bool machine_is_paged_32(const struct machine *m)
{
    return m->cr0 >= 0 && machine_bits(m) == MACHINE_32 &&
           machine_value(m, m->cr0) & cr0_pg &&
           !(machine_value(m, m->efer) & EFER_LMA);
}

static uint64_t code_base(const struct machine *m)
{
    uint64_t cs = machine_value(m, m->cs) & 0xffff;

    if (!is_real_mode(m))
        return 0;
    /* At reset, until the first far jump, the base is another one. */
    if (cs == 0xf000 && machine_value(m, m->rip) == 0xfff0)
        return 0xffff0000;
    return cs << 4;
}

uint64_t machine_pc(const struct machine *m)
{
    return code_base(m) + machine_value(m, m->rip);
}

uint64_t machine_pc_for(const struct machine *m, uint64_t address)
{
    return address - code_base(m);
}

/* --- memory -------------------------------------------------------------- */

static size_t read_by_stub(struct machine *m, uint64_t address, void *buf,
                           size_t len)
{
    size_t part = (m->stub->packet_size - 16) / 2, done = 0;
    uint8_t *p = buf;

    while (done < len) {
        size_t n = RHEA_MIN(part, len - done), got = 0;
        struct packet_cursor c;
        const char *reply;

        if (stub_callf(m->stub, &reply, NULL, "m%" PRIx64 ",%zx",
                       address + done, n) < 0)
            return done;
        c = packet_cursor(reply, strlen(reply));
        if (reply[0] == 'E' || !packet_bytes(&c, p + done, n, &got) || !got)
            return done;
        done += got;
    }
    return done;
}

size_t machine_read(struct machine *m, uint64_t address, void *buf, size_t len)
{
    size_t n = 0;

    len = RHEA_MIN(len, 4096 - (size_t)(address % 4096));
    if (m->memory.pid && machine_fetch(m, NULL) == 0) {
        struct memory_mode mode = {
            machine_value(m, m->cr0), machine_value(m, m->cr3),
            machine_value(m, m->cr4), machine_value(m, m->efer)};

        n = memory_read(&m->memory, &mode, address, buf, len);
    }
    return n == len ? n : read_by_stub(m, address, buf, len);
}

/* --- interruptions ------------------------------------------------------- */

struct machine_place machine_place(const struct machine *m)
{
    return (struct machine_place){
        machine_value(m, m->rip), machine_value(m, m->rsp),
        machine_value(m, m->cr3), (uint16_t)machine_value(m, m->cs)};
}

/* The kernel's part of a table of pages is the same in all of them. */
bool machine_same_place(const struct machine_place *a,
                        const struct machine_place *b)
{
    return a->pc == b->pc && a->sp == b->sp && a->cs == b->cs &&
           (!(a->cs & 3) || a->cr3 == b->cr3);
}

/* N words of SIZE bytes from ADDRESS on, which may be over the end of a page.
 */
static bool read_words(struct machine *m, uint64_t address, uint64_t *words,
                       unsigned n, unsigned size)
{
    uint8_t bytes[8];

    for (unsigned i = 0; i < n; i++, address += size) {
        memset(bytes, 0, sizeof(bytes));
        if (machine_read(m, address, bytes, size) != size)
            return false;
        words[i] = load_le64(bytes);
    }
    return true;
}

/* The processor has pushed the program counter and the code segment (Intel's
 * manual, volume 3, 6.12 and 6.14), and then, for some faults, an error code.
 * In 64-bit mode, and where the handler has more privileges, the stack pointer
 * is there, too. */
bool machine_has_interrupted(struct machine *m,
                             const struct machine_place *from)
{
    bool wide = machine_bits(m) == MACHINE_64;
    uint16_t cs = (uint16_t)machine_value(m, m->cs);
    uint64_t words[5];

    if (machine_bits(m) == MACHINE_16 || m->cr0 < 0 || cs & 3)
        return false;
    for (unsigned skip = 0; skip <= 1; skip++) {
        unsigned size = wide ? 8 : 4;
        bool has_sp = wide || from->cs & 3;

        if (read_words(m, machine_value(m, m->rsp) + (uint64_t)skip * size,
                       words, has_sp ? 5 : 3, size) &&
            words[0] == from->pc && (uint16_t)words[1] == from->cs &&
            (!has_sp || words[3] == from->sp))
            return true;
    }
    return false;
}

/* --- hits ---------------------------------------------------------------- */

static bool get_register(void *opaque, unsigned n, void *bytes)
{
    struct machine *m = opaque;
    const struct layout *l = m->view ? &m->view->shown.layout : m->layout;
    const uint8_t *from = machine_register(m, m->view ? m->view->from[n] : n);

    if (from)
        memcpy(bytes, from, l->registers[n].size);
    return from != NULL;
}

static size_t read_memory(void *opaque, uint64_t address, void *buf, size_t len)
{
    return machine_read(opaque, address, buf, len);
}

struct hit_machine machine_for_hit(struct machine *m, uint64_t pc)
{
    return (struct hit_machine){.get_register = get_register,
                                .read = read_memory,
                                .opaque = m,
                                .pc = pc,
                                .cpu = machine_cpu(m)};
}

/* --- past an instruction ------------------------------------------------- */

/* The trap flag wants a stop after each instruction. */
enum { EFLAGS_TF = 1 << 8 };

bool machine_past(struct machine *m, struct past *p)
{
    enum machine_bits bits = machine_bits(m);
    uint8_t code[PAST_BYTES];
    uint64_t pc = machine_pc(m);
    size_t len;

    /* A thread of 32 bits may be mistaken for one of 64 (machine_bits), but
     * not above 4 GiB. */
    if (bits == MACHINE_16 || m->rip < 0 ||
        machine_value(m, m->eflags) & EFLAGS_TF ||
        (bits == MACHINE_64 && pc <= UINT32_MAX && m->cr0 >= 0 &&
         machine_value(m, m->cs) & 3))
        return false;
    *p = (struct past){.bits64 = bits == MACHINE_64, .pc = pc, .changed = -1};
    for (unsigned i = 0; i < PAST_REGISTERS; i++)
        p->registers[i] = machine_value(m, m->general[i]);
    len = machine_read(m, pc, code, sizeof(code));
    return past_run(p, code, len);
}

/* `P`, which sets a register. */
static void queue_register(struct machine *m, int n, uint64_t value)
{
    struct packet_text text = {0};
    uint8_t bytes[8];

    store_le64(bytes, value);
    packet_printf(&text, "P%x=", n);
    packet_put_hex(
        &text, bytes,
        RHEA_MIN((size_t)m->layout->registers[n].size, sizeof(bytes)));
    if (text.data)
        stub_queue(m->stub, text.data, text.len);
    packet_text_finish(&text);
}

unsigned machine_queue_past(struct machine *m, const struct past *p)
{
    if (p->changed >= 0)
        queue_register(m, m->general[p->changed], p->registers[p->changed]);
    queue_register(m, m->rip, machine_pc_for(m, p->pc));
    machine_forget(m);
    return p->changed >= 0 ? 2 : 1;
}
