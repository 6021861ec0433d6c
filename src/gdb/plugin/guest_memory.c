/* SPDX-License-Identifier: MIT */
/*
 * Guest memory, in two ways that agree:
 *
 *     the TLB   where the processor itself has just read: QEMU keeps the
 *               address at which it has that page in its own memory. It is
 *               QEMU's to forget it when tables or the machine's memory
 *               change, before the guest goes on. A look at it fills nothing,
 *               so no table's bits are set for what the guest did not do.
 *     tables    everything else: by QEMU's debugger functions.
 *
 * How QEMU answers a look at the TLB is no promise of its. So the answers are
 * not used before one was the same as the other way's.
 */
#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/plugin/guest.h"

/* --- by tables ------------------------------------------------------------ */

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

static size_t read_by_tables(const struct guest_cpu *g, uint64_t address,
                             void *buf, size_t len)
{
    uint8_t attributes[ATTRIBUTES];
    uint32_t number;
    uint64_t physical;
    struct qemu_space *space;

    if (!translate(g, address, &physical, attributes))
        return 0;
    number = load_le32(attributes); /* they are a number of 32 bits here */
    space = qemu.space(g->cpu, qemu.space_number(g->cpu, number));
    return qemu.read_space(space, physical, number, buf, len) == 0 ? len : 0;
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

/* --- by the TLB ----------------------------------------------------------- */

/* QEMU has a TLB for each kind of access. The last two are for physical
 * addresses and for nested guests; those before them translate virtual
 * addresses, and never in two ways: of the kernel, of programs, of the kernel
 * in programs' memory, and these for 64 and for 32 bits in versions with eight
 * kinds. 0: they are not used. */
static int n_kinds;
static size_t state_from_cpu;

/* Those of COUNT that translate virtual addresses. From 8.0 on there are
 * sixteen in any case, of which the first eight serve in versions that give
 * registers to plugins (9.0 on). */
static int count_virtual(int count)
{
    enum { FIVE = 5, EIGHT = 8, SIXTEEN = 16, OTHERS = 2 };

    if (qemu.official)
        return count == SIXTEEN && qemu.memory_at ? EIGHT - OTHERS : 0;
    return count == FIVE || count == EIGHT ? count - OTHERS : 0;
}

/* How many pairs of a mask and a table there are up to LAST. All masks are the
 * same when a processor is made. */
static int count_pairs(const uint8_t *last)
{
    enum { ENTRY = 32, PAIR = 16, MOST = 16 };
    uint64_t mask = load_le64(last), entries = mask / ENTRY + 1;
    int n = 0;

    if (mask % ENTRY != 0 || entries < 2 || (entries & (entries - 1)))
        return 0;
    while (n <= MOST && load_le64(last - n * PAIR) == mask &&
           load_le64(last - n * PAIR + 8))
        n++;
    return n;
}

/* In front of a processor's state is what generated code looks into: for each
 * kind a mask and a table, and behind them 16 or 32 bytes for counters. */
void guest_find_memory(const struct qemu_cpu *cpu, size_t from_cpu)
{
    const uint8_t *env = (const uint8_t *)cpu + from_cpu;

    n_kinds = 0;
    state_from_cpu = from_cpu;
    if (!qemu.look_up || !qemu.map || !qemu.unmap)
        return;
    for (int behind = 32; behind <= 48 && !n_kinds; behind += 16)
        n_kinds = count_virtual(count_pairs(env - behind));
}

/* What has been found out about the TLB's answers. */
enum { UNTRIED = 0, WRONG = 16 /* times, then it is given up */, RIGHT = 64 };
static unsigned verdict = UNTRIED;

/* Where the TLB of a kind has ADDRESS, this fills nothing. */
static const uint8_t *memory_at(const struct guest_cpu *g, uint64_t address,
                                int kind)
{
    enum { READ = 0 };

    return qemu.memory_at((uint8_t *)g->cpu + state_from_cpu, address, READ,
                          kind);
}

/* NULL: the TLB has no memory there. */
static const uint8_t *look_up(struct guest_cpu *g, uint64_t address)
{
    for (int i = 0, kind = g->kind; i < n_kinds;
         i++, kind = kind + 1 < n_kinds ? kind + 1 : 0) {
        struct qemu_place place = {.device = true};

        if (!qemu.look_up(g->cpu, address, kind, false, &place) || place.device)
            continue;
        g->kind = kind;
        return qemu.official ? memory_at(g, address, kind) : place.memory;
    }
    return NULL;
}

/* Whether HOST is where the other way would read. */
static bool is_right(const struct guest_cpu *g, uint64_t address,
                     const void *host)
{
    static const uint8_t no_attributes[ATTRIBUTES];
    uint8_t attributes[ATTRIBUTES];
    uint64_t physical, len = 1;
    void *mapped;
    bool is;

    if (!translate(g, address, &physical, attributes) ||
        memcmp(attributes, no_attributes, ATTRIBUTES) != 0)
        return false;
    mapped = qemu.map(physical, &len, false);
    if (!mapped)
        return false;
    is = mapped == host;
    qemu.unmap(mapped, len, false, 0);
    return is;
}

/* Tables that the guest has changed and not yet told the processor of make an
 * answer seem wrong that is not, so one alone says nothing. */
static bool can_trust(const struct guest_cpu *g, uint64_t address,
                      const void *host)
{
    unsigned v = __atomic_load_n(&verdict, __ATOMIC_RELAXED);

    if (v == RIGHT)
        return true;
    if (v < WRONG) {
        v = is_right(g, address, host) ? RIGHT : v + 1;
        __atomic_store_n(&verdict, v, __ATOMIC_RELAXED);
    }
    return v == RIGHT;
}

/* A word at a time: what the guest has just stored to its stack a processor
 * passes on before it is in the cache, but not two stores together. */
static void copy(uint8_t *to, const uint8_t *from, size_t len)
{
    typedef uint64_t word __attribute__((aligned(1), may_alias));

    for (; len >= 8; to += 8, from += 8, len -= 8)
        *(word *)(void *)to = *(const volatile word *)(const void *)from;
    memcpy(to, from, len);
}

static size_t read_by_tlb(struct guest_cpu *g, uint64_t address, void *buf,
                          size_t len)
{
    const uint8_t *host;

    if (!n_kinds || __atomic_load_n(&verdict, __ATOMIC_RELAXED) == WRONG)
        return 0;
    host = look_up(g, address);
    if (!host || !can_trust(g, address, host))
        return 0;
    copy(buf, host, len);
    return len;
}

size_t guest_read(void *opaque, uint64_t address, void *buf, size_t len)
{
    struct guest_cpu *g = opaque;

    if (read_by_tlb(g, address, buf, len))
        return len;
    return qemu.read_memory ? read_by_api(g, address, buf, len)
                            : read_by_tables(g, address, buf, len);
}
