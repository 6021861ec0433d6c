/* SPDX-License-Identifier: MIT */
#include "gdb/payload.h"

#include "base/byteorder.h"

struct payload payload_of(const struct frames_frame *frame,
                          const struct layout *layout)
{
    return (struct payload){layout, frame->payload,
                            frame->payload + frame->head.size};
}

static bool mask_has(const struct payload_block *b, unsigned n)
{
    return n / 8 < b->mask_bytes && b->mask[n / 8] >> (n % 8) & 1;
}

static bool next_registers(struct payload *p, struct payload_block *b)
{
    size_t left = (size_t)(p->end - p->at);

    if (left < 2 || p->at[1] > PAYLOAD_MASK || left - 2 < p->at[1])
        return false;
    b->mask_bytes = p->at[1];
    b->mask = p->at + 2;
    b->bytes = b->mask + b->mask_bytes;
    b->len = 0;
    for (unsigned n = 0; n < 8 * b->mask_bytes; n++)
        if (mask_has(b, n))
            b->len += p->layout->registers[n].size;
    if (b->len > (size_t)(p->end - b->bytes))
        return false;
    p->at = b->bytes + b->len;
    return true;
}

bool payload_next(struct payload *p, struct payload_block *b)
{
    size_t left = (size_t)(p->end - p->at);

    *b = (struct payload_block){0};
    if (!left)
        return false;
    b->kind = (char)p->at[0];
    switch (b->kind) {
    case 'R':
        return next_registers(p, b);
    case 'M':
        if (left < PAYLOAD_MEMORY_HEAD)
            return false;
        b->address = load_le64(p->at + 1);
        b->len = load_le16(p->at + 9);
        b->bytes = p->at + PAYLOAD_MEMORY_HEAD;
        if (left - PAYLOAD_MEMORY_HEAD < b->len)
            return false;
        p->at = b->bytes + b->len;
        return true;
    case 'V':
        if (left < PAYLOAD_VARIABLE)
            return false;
        b->number = load_le32(p->at + 1);
        b->value = (int64_t)load_le64(p->at + 5);
        p->at += PAYLOAD_VARIABLE;
        return true;
    default:
        return false;
    }
}

const uint8_t *payload_register(const struct payload_block *b,
                                const struct layout *layout, unsigned n)
{
    const uint8_t *at = b->bytes;

    if (b->kind != 'R' || !mask_has(b, n) || !layout->registers[n].size)
        return NULL;
    for (unsigned i = 0; i < n; i++)
        if (mask_has(b, i))
            at += layout->registers[i].size;
    return at;
}
