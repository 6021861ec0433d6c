/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/inputs.h"

#include <malloc.h>

#include "base/byteorder.h"
#include "base/checked.h"

struct probing {
    uint64_t (*read)(const struct probing *p);
    uint8_t *base; /* the words are there */
    size_t start, end;
    struct qemu_cpu *cpu;
    struct qemu_bytes *bytes;
    int n;
};

static bool has(const struct inputs *inputs, size_t offset)
{
    for (unsigned i = 0; i < inputs->n; i++)
        if (inputs->offsets[i] == offset)
            return true;
    return false;
}

/* Reading may write to words too, but to none that the answer does not show. */
static bool probe_words(const struct probing *p, const uint8_t *before,
                        struct inputs *inputs)
{
    static const uint32_t patterns[] = {UINT32_MAX, 0x01010101};
    uint64_t want = p->read(p);

    for (size_t i = p->start; i + 4 <= p->end; i += 4) {
        uint32_t word = load_le32(p->base + i);
        bool differs = false;

        for (size_t k = 0; k < RHEA_ARRAY_SIZE(patterns) && !differs; k++) {
            store_le32(p->base + i, word ^ patterns[k]);
            differs = p->read(p) != want;
        }
        store_le32(p->base + i, word);
        if (!differs)
            continue;
        memcpy(p->base + p->start, before, p->end - p->start);
        if (has(inputs, i))
            continue;
        if (inputs->n == INPUTS_MAX)
            return false;
        inputs->offsets[inputs->n++] = (uint16_t)i;
    }
    return true;
}

/* Whether one word counts may depend on another: all are looked at as they are,
 * and with what was found clear, and set. */
static bool probe(const struct probing *p, struct inputs *inputs)
{
    static const int fills[] = {-1, 0, 0xff};
    uint8_t saved[STATE_FAR], before[STATE_FAR];
    size_t len = p->end - p->start;
    bool found = true;

    memcpy(saved, p->base + p->start, len);
    for (size_t f = 0; f < RHEA_ARRAY_SIZE(fills) && found; f++) {
        for (unsigned i = 0; i < inputs->n && fills[f] >= 0; i++)
            memset(p->base + inputs->offsets[i], fills[f], 4);
        p->read(p);
        memcpy(before, p->base + p->start, len);
        found = probe_words(p, before, inputs);
        memcpy(p->base + p->start, saved, len);
    }
    return found;
}

/* --- the state ------------------------------------------------------------ */

static uint64_t read_by_stub(const struct probing *p)
{
    uint8_t value[8] = {0};

    p->bytes->len = 0;
    qemu.gdb_read(p->cpu, p->bytes, p->n);
    memcpy(value, p->bytes->data, RHEA_MIN(p->bytes->len, 8u));
    return load_le64(value);
}

bool inputs_find(const struct state *s, struct qemu_cpu *cpu,
                 struct qemu_bytes *bytes, int n, struct inputs *inputs)
{
    size_t room = malloc_usable_size(cpu) - s->from_cpu;
    struct probing p = {.read = read_by_stub,
                        .base = (uint8_t *)cpu + s->from_cpu,
                        .end = RHEA_MIN(room, (size_t)STATE_FAR),
                        .cpu = cpu,
                        .bytes = bytes,
                        .n = n};

    return probe(&p, inputs);
}

/* --- the interrupt controller --------------------------------------------- */

enum { HEAD = 40 /* bytes of QEMU's Object, which begins with its type */ };

static const void *type_of(const uint8_t *object)
{
    const void *type;

    memcpy(&type, object, sizeof(type));
    return type;
}

static uint64_t read_priority(const struct probing *p)
{
    return qemu.priority(p->base);
}

/* Whether the upper half of a byte is the answer. */
static bool is_priority(const struct probing *p, size_t byte)
{
    uint8_t saved = p->base[byte];
    bool is = true;

    for (unsigned value = 0; value < 256 && is; value++) {
        p->base[byte] = (uint8_t)value;
        is = p->read(p) == value >> 4;
    }
    p->base[byte] = saved;
    return is;
}

/* Sort the words out: one has the priority, and the others are to be zero. */
static bool sort_out(struct inputs_priority *p, const struct probing *probing,
                     const struct inputs *all)
{
    unsigned found = 0;

    p->zeros.n = 0;
    for (unsigned i = 0; i < all->n; i++) {
        size_t at = all->offsets[i], byte = 0;

        while (byte < 4 && !is_priority(probing, at + byte))
            byte++;
        if (byte < 4) {
            p->byte = at + byte;
            found++;
        } else if (load_le32(probing->base + at)) {
            return false;
        } else {
            p->zeros.offsets[p->zeros.n++] = (uint16_t)at;
        }
    }
    return found == 1;
}

void inputs_find_priority(struct inputs_priority *p)
{
    static const char type[] = "apic";
    struct inputs all = {0};
    struct probing probing = {.read = read_priority, .start = HEAD};
    size_t room;

    p->type = NULL;
    if (!qemu.child || !qemu.priority || !qemu.type || !qemu.make ||
        !qemu.unref || !qemu.type(type))
        return;
    probing.base = qemu.make(type);
    room = malloc_usable_size(probing.base);
    probing.end = RHEA_MIN(room, (size_t)STATE_FAR);
    if (room > HEAD && probe(&probing, &all) && sort_out(p, &probing, &all))
        p->type = type_of(probing.base);
    qemu.unref(probing.base);
}

const uint8_t *inputs_controller(const struct inputs_priority *p,
                                 struct qemu_cpu *cpu)
{
    const uint8_t *controller = p->type ? qemu.child(cpu, "lapic") : NULL;

    return controller && type_of(controller) == p->type ? controller : NULL;
}
