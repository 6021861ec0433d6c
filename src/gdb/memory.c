/* SPDX-License-Identifier: MIT */
#include "gdb/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/uio.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"

/* Intel's manual, volume 3, chapter 4, "Paging". */
enum {
    CR0_PE = 1,
    CR4_PSE = 1 << 4,
    CR4_PAE = 1 << 5,
    CR4_LA57 = 1 << 12,
    EFER_LMA = 1 << 10,
    ENTRY_PRESENT = 1,
    ENTRY_LARGE = 1 << 7,
};
static const uint64_t cr0_pg = UINT64_C(1) << 31;
static const uint64_t entry_address = UINT64_C(0x000ffffffffff000);

/* Chipsets map other things here and there in it. */
enum { REMAPPED_START = 0xa0000, REMAPPED_END = 0x100000 };

size_t memory_read_physical(const struct memory *m, uint64_t address, void *buf,
                            size_t len)
{
    for (unsigned i = 0; m->pid && i < m->n; i++) {
        const struct memory_range *r = &m->ranges[i];
        struct iovec to = {buf, len}, from;
        ssize_t n;

        if (address < r->start || address >= r->end)
            continue;
        to.iov_len = (size_t)RHEA_MIN((uint64_t)len, r->end - address);
        from.iov_base = (void *)(uintptr_t)(r->host + (address - r->start));
        from.iov_len = to.iov_len;
        n = process_vm_readv(m->pid, &to, 1, &from, 1, 0);
        return n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* An entry of SIZE bytes; 0, which is not present, where it cannot be read. */
static uint64_t read_entry(const struct memory *m, uint64_t address,
                           size_t size)
{
    uint8_t bytes[8] = {0};

    if (memory_read_physical(m, address, bytes, size) != size)
        return 0;
    return load_le64(bytes);
}

/* Two levels of 1024 entries of 4 bytes. */
static bool walk_32(const struct memory *m, const struct memory_mode *mode,
                    uint64_t address, uint64_t *physical)
{
    uint64_t table = mode->cr3 & 0xfffff000, entry;

    entry = read_entry(m, table + (address >> 22 & 1023) * 4, 4);
    if (!(entry & ENTRY_PRESENT))
        return false;
    if (entry & ENTRY_LARGE && mode->cr4 & CR4_PSE) {
        *physical = (entry & 0xffc00000) | (entry & 0x1fe000) << 19 |
                    (address & 0x3fffff);
        return true;
    }
    entry = read_entry(m, (entry & 0xfffff000) + (address >> 12 & 1023) * 4, 4);
    *physical = (entry & 0xfffff000) | (address & 0xfff);
    return entry & ENTRY_PRESENT;
}

/* LEVELS of 512 entries of 8 bytes; of three the first has but 4. */
static bool walk_64(const struct memory *m, const struct memory_mode *mode,
                    uint64_t address, unsigned levels, uint64_t *physical)
{
    uint64_t table = mode->cr3 & (levels == 3 ? 0xffffffe0 : entry_address);

    for (unsigned level = levels; level > 0; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t below = (UINT64_C(1) << shift) - 1;
        uint64_t entry = read_entry(m, table + (address >> shift & 511) * 8, 8);

        if (!(entry & ENTRY_PRESENT))
            return false;
        table = entry & entry_address;
        if (level == 1 || (level <= 3 && entry & ENTRY_LARGE &&
                           !(level == 3 && levels == 3))) {
            *physical = (table & ~below) | (address & below);
            return true;
        }
    }
    return false;
}

bool memory_translate(const struct memory *m, const struct memory_mode *mode,
                      uint64_t address, uint64_t *physical)
{
    if (!(mode->cr0 & cr0_pg)) {
        *physical = address & 0xffffffff;
        return true;
    }
    if (mode->efer & EFER_LMA) {
        unsigned levels = mode->cr4 & CR4_LA57 ? 5 : 4;
        unsigned bits = 12 + 9 * levels;
        int64_t top = (int64_t)address >> (bits - 1);

        return (top == 0 || top == -1) &&
               walk_64(m, mode, address, levels, physical);
    }
    address &= 0xffffffff;
    if (mode->cr4 & CR4_PAE)
        return walk_64(m, mode, address, 3, physical);
    return walk_32(m, mode, address, physical);
}

size_t memory_read(const struct memory *m, const struct memory_mode *mode,
                   uint64_t address, void *buf, size_t len)
{
    uint64_t physical;

    if (!m->pid || !memory_translate(m, mode, address, &physical))
        return 0;
    return memory_read_physical(m, physical, buf,
                                RHEA_MIN(len, 4096 - (size_t)(address % 4096)));
}

/* --- finding it ---------------------------------------------------------- */

static void keep_range(struct memory *m, uint64_t start, uint64_t end)
{
    if (start < end && m->n < MEMORY_MAX_RANGES)
        m->ranges[m->n++] = (struct memory_range){start, end, 0};
}

/* `  0000000000100000-0000000007ffffff (prio 0, ram): pc.ram @...` */
static void parse_range(struct memory *m, const char *line, size_t len)
{
    struct packet_cursor c = packet_cursor(line, len);
    uint64_t start, last;

    while (packet_skip(&c, " "))
        ;
    if (!packet_number(&c, &start) || !packet_skip(&c, "-") ||
        !packet_number(&c, &last) || last == UINT64_MAX ||
        !memmem(c.at, (size_t)(c.end - c.at), ", ram): ", 8))
        return;
    keep_range(m, start, RHEA_MIN(last + 1, (uint64_t)REMAPPED_START));
    keep_range(m, RHEA_MAX(start, (uint64_t)REMAPPED_END), last + 1);
}

/* The view of memory that a processor has is the one with the address space
 * "memory", or of a processor. */
static void parse_tree(struct memory *m, const char *text)
{
    bool memory = false;

    while (*text) {
        size_t len = strcspn(text, "\n");

        if (!strncmp(text, "FlatView", 8))
            memory = false;
        else if (memmem(text, len, " AS \"memory\"", 12) ||
                 memmem(text, len, " AS \"cpu-memory-0\"", 18))
            memory = true;
        else if (memory)
            parse_range(m, text, len);
        text += len;
        text += *text == '\n';
    }
}

/* Where a physical address is in QEMU. */
static bool find_host(struct stub *s, struct memory_range *r,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    struct packet_cursor c;
    char command[64];
    const char *is;

    snprintf(command, sizeof(command), "gpa2hva 0x%" PRIx64, r->start);
    if (stub_monitor(s, command, &text, err) < 0)
        return false;
    is = strstr(text, " is 0x");
    if (!is)
        return false;
    c = packet_cursor(is + 6, strlen(is + 6));
    return packet_number(&c, &r->host);
}

/* Whether QEMU's memory holds what the stub reads at both ends of a range. */
static bool check_range(const struct memory *m, struct stub *s,
                        const struct memory_range *r, struct rhea_error *err)
{
    const uint64_t places[] = {r->start, (r->start + r->end) / 2, r->end - 64};

    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(places); i++) {
        uint8_t ours[64], theirs[64];
        struct packet_cursor c;
        const char *reply;
        size_t n;

        if (memory_read_physical(m, places[i], ours, 64) != 64 ||
            stub_callf(s, &reply, err, "m%" PRIx64 ",40", places[i]) < 0)
            return false;
        c = packet_cursor(reply, strlen(reply));
        if (!packet_bytes(&c, theirs, 64, &n) || n != 64 ||
            memcmp(ours, theirs, 64) != 0)
            return false;
    }
    return true;
}

static void check_ranges(struct memory *m, struct stub *s,
                         struct rhea_error *err)
{
    unsigned kept = 0, n = m->n;

    for (unsigned i = 0; i < n && !s->wire.dead; i++) {
        struct memory_range r = m->ranges[i];

        if (r.end - r.start < 4096 || !find_host(s, &r, err))
            continue;
        m->ranges[kept] = r;
        m->n = kept + 1;
        if (check_range(m, s, &r, err))
            kept++;
    }
    m->n = kept;
}

/* In physical mode the stub reads without translation. */
static bool physical_mode(struct stub *s, bool on, struct rhea_error *err)
{
    const char *reply;

    return stub_callf(s, &reply, err, "Qqemu.PhyMemMode:%d", on) == 0 &&
           !strcmp(reply, "OK");
}

static int no_memory(struct memory *m, const char *why)
{
    m->pid = 0;
    m->n = 0;
    snprintf(m->why, sizeof(m->why), "%s", why);
    return 0;
}

int memory_find(struct memory *m, struct stub *s, pid_t pid,
                struct rhea_error *err)
{
    RHEA_AUTO_FREE char *tree = NULL;
    struct rhea_error scratch = {0};

    *m = (struct memory){.pid = pid};
    err = err ? err : &scratch;
    if (pid <= 0)
        return no_memory(m, "QEMU's process was not found");
    if (stub_monitor(s, "info mtree -f", &tree, err) < 0)
        return s->wire.dead ? -err->code
                            : no_memory(m, "the stub has no monitor");
    parse_tree(m, tree);
    if (!physical_mode(s, true, err))
        return s->wire.dead ? -err->code
                            : no_memory(m, "the stub has no physical mode");
    check_ranges(m, s, err);
    if (s->wire.dead || !physical_mode(s, false, err))
        return s->wire.dead ? -err->code
                            : rhea_error_set(err, EPROTO,
                                             "the stub does not leave its "
                                             "physical mode");
    if (!m->n)
        return no_memory(m, "QEMU's memory cannot be read (ptrace_scope?)");
    return 0;
}
