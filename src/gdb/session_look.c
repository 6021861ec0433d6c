/* SPDX-License-Identifier: MIT */
/* Frames as gdb looks at them: tfind, and registers and memory out of one. */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/payload.h"
#include "gdb/session.h"

#define HANDLER(name)                                                          \
    static int name(struct session *s, struct packet_cursor rest,              \
                    const char *packet, size_t len, struct rhea_error *err)

static int malformed(struct rhea_error *err, const char *what)
{
    return rhea_error_set(err, EINVAL, "%s cannot be understood", what);
}

static struct frames *frames_of(struct session *s)
{
    return s->tracer.frames;
}

static const struct layout *layout_of(const struct session *s)
{
    return &s->tracer.experiment->layout;
}

/* --- which frame --------------------------------------------------------- */

static int found_frame(struct session *s, int64_t n)
{
    struct frames_frame frame;

    if (n < 0 || !frames_get(frames_of(s), (uint64_t)n, &frame)) {
        packet_puts(&s->reply, "F-1");
        return 0;
    }
    s->frame = n;
    packet_printf(&s->reply, "F%" PRIx64 "T%x", (uint64_t)n,
                  frame.entry.number);
    return 0;
}

static bool parse_search(struct packet_cursor *c, struct frames_search *search)
{
    bool two = false;

    if (packet_skip(c, "pc:")) {
        search->kind = FRAMES_BY_PC;
    } else if (packet_skip(c, "tdp:")) {
        search->kind = FRAMES_BY_NUMBER;
    } else if (packet_skip(c, "range:")) {
        search->kind = FRAMES_BY_RANGE;
        two = true;
    } else if (packet_skip(c, "outside:")) {
        search->kind = FRAMES_BY_OUTSIDE;
        two = true;
    } else {
        return false;
    }
    return packet_number(c, &search->low) &&
           (!two || (packet_skip(c, ":") && packet_number(c, &search->high)));
}

/* A search goes on behind the frame that is looked at. */
int session_find_frame(struct session *s, struct packet_cursor rest,
                       const char *packet, size_t len, struct rhea_error *err)
{
    struct frames_search search;
    struct packet_cursor c = rest;
    uint64_t n;

    (void)packet;
    (void)len;
    if (parse_search(&c, &search))
        return found_frame(
            s, frames_find(frames_of(s), (uint64_t)(s->frame + 1), &search));
    c = rest;
    if (packet_skip(&c, "-1") ||
        (packet_number(&c, &n) && (n == UINT32_MAX || n == UINT64_MAX))) {
        s->frame = -1;
        packet_puts(&s->reply, "F-1");
        return 0;
    }
    c = rest;
    if (!packet_number(&c, &n) || n > INT64_MAX)
        return malformed(err, "which trace frame to find");
    return found_frame(s, (int64_t)n);
}

/* --- variables ----------------------------------------------------------- */

/* An expression may have recorded it before and after a change: the last one
 * counts, as it does for gdb in a trace file. */
static bool frame_variable(const struct session *s,
                           const struct frames_frame *frame, uint64_t n,
                           int64_t *value)
{
    struct payload p = payload_of(frame, layout_of(s));
    struct payload_block b;
    bool found = false;

    while (payload_next(&p, &b)) {
        if (b.kind != 'V' || b.number != n)
            continue;
        *value = b.value;
        found = true;
    }
    return found;
}

int session_variable_value(struct session *s, struct packet_cursor rest,
                           const char *packet, size_t len,
                           struct rhea_error *err)
{
    struct experiment *e = s->tracer.experiment;
    struct frames_frame frame;
    uint64_t n;

    (void)packet;
    (void)len;
    if (!packet_number(&rest, &n))
        return malformed(err, "a trace state variable");
    if (s->frame >= 0) {
        int64_t value;

        if (frames_get(frames_of(s), (uint64_t)s->frame, &frame) &&
            frame_variable(s, &frame, n, &value))
            packet_printf(&s->reply, "V%" PRIx64, (uint64_t)value);
        else
            packet_puts(&s->reply, "U");
        return 0;
    }
    if (n >= EXPERIMENT_MAX_VARIABLES || !e->variables[n])
        packet_puts(&s->reply, "U");
    else
        packet_printf(&s->reply, "V%" PRIx64,
                      (uint64_t)hit_variable(&s->tracer.hit, (unsigned)n));
    return 0;
}

/* --- registers ----------------------------------------------------------- */

/* The registers of a frame as the bytes of a `g` packet; THERE: a byte each,
 * whether it was collected. The program counter always is known. */
static void frame_registers(const struct session *s,
                            const struct frames_frame *frame, uint8_t *bytes,
                            uint8_t *there)
{
    const struct layout *l = layout_of(s);
    const struct layout_register *pc = &l->registers[l->pc];
    struct payload p = payload_of(frame, l);
    struct payload_block b;

    memset(bytes, 0, l->bytes);
    memset(there, 0, l->bytes);
    while (payload_next(&p, &b)) {
        for (unsigned n = 0; b.kind == 'R' && n < l->n; n++) {
            const uint8_t *from = payload_register(&b, l, n);

            if (!from)
                continue;
            memcpy(bytes + l->registers[n].offset, from, l->registers[n].size);
            memset(there + l->registers[n].offset, 1, l->registers[n].size);
        }
    }
    if (!there[pc->offset]) {
        uint8_t value[8];

        store_le64(value, frame->entry.pc);
        memcpy(bytes + pc->offset, value, RHEA_MIN(pc->size, sizeof(value)));
        memset(there + pc->offset, 1, pc->size);
    }
}

static void put_registers(struct packet_text *out, const uint8_t *bytes,
                          const uint8_t *there, size_t from, size_t size)
{
    for (size_t i = from; i < from + size; i++) {
        if (there[i])
            packet_put_hex(out, bytes + i, 1);
        else
            packet_puts(out, "xx");
    }
}

static int read_registers(struct session *s, size_t from, size_t size,
                          struct rhea_error *err)
{
    uint8_t bytes[EXPERIMENT_MAX_G], there[EXPERIMENT_MAX_G];
    struct frames_frame frame;

    if (!frames_get(frames_of(s), (uint64_t)s->frame, &frame))
        return rhea_error_set(err, ENOENT, "the trace frame is gone");
    frame_registers(s, &frame, bytes, there);
    put_registers(&s->reply, bytes, there, from, size);
    return 0;
}

HANDLER(registers)
{
    (void)rest;
    (void)packet;
    (void)len;
    return read_registers(s, 0, layout_of(s)->bytes, err);
}

HANDLER(one_register)
{
    const struct layout *l = layout_of(s);
    uint64_t n;

    (void)packet;
    (void)len;
    if (!packet_number(&rest, &n) || n >= l->n || !l->registers[n].size)
        return malformed(err, "a register");
    return read_registers(s, l->registers[n].offset, l->registers[n].size, err);
}

/* --- memory -------------------------------------------------------------- */

/* The bytes at ADDRESS, at most LEN, that one block holds; 0: none does. */
static size_t frame_memory(const struct session *s,
                           const struct frames_frame *frame, uint64_t address,
                           const uint8_t **bytes, size_t len)
{
    struct payload p = payload_of(frame, layout_of(s));
    struct payload_block b;

    while (payload_next(&p, &b)) {
        uint64_t skip = address - b.address;

        if (b.kind != 'M' || skip >= b.len)
            continue;
        *bytes = b.bytes + skip;
        return RHEA_MIN(len, b.len - (size_t)skip);
    }
    return 0;
}

/* Memory that gdb says never changes is read from the guest. */
static size_t constant_memory(struct session *s, uint64_t address, uint8_t *buf,
                              size_t len)
{
    for (unsigned i = 0; i < s->n_read_only; i++)
        if (address >= s->read_only[i].start && address < s->read_only[i].end)
            return machine_read(
                &s->machine, address, buf,
                (size_t)RHEA_MIN((uint64_t)len, s->read_only[i].end - address));
    return 0;
}

HANDLER(memory)
{
    struct frames_frame frame;
    uint64_t address, size, done = 0;

    (void)packet;
    (void)len;
    if (!packet_number(&rest, &address) || !packet_skip(&rest, ",") ||
        !packet_number(&rest, &size) || size > PACKET_MAX / 2)
        return malformed(err, "where to read memory");
    if (!frames_get(frames_of(s), (uint64_t)s->frame, &frame))
        return rhea_error_set(err, ENOENT, "the trace frame is gone");
    while (done < size) {
        const uint8_t *bytes = NULL;
        uint8_t buf[4096];
        size_t n = frame_memory(s, &frame, address + done, &bytes,
                                (size_t)(size - done));

        if (!n) {
            bytes = buf;
            n = constant_memory(s, address + done, buf,
                                RHEA_MIN((size_t)(size - done), sizeof(buf)));
        }
        if (!n)
            break;
        packet_put_hex(&s->reply, bytes, n);
        done += n;
    }
    if (size && !done) {
        packet_text_clear(&s->reply);
        packet_puts(&s->reply, "E01"); /* as for memory that is not there */
    }
    return 0;
}

HANDLER(read_only_frame)
{
    (void)s;
    (void)rest;
    (void)packet;
    (void)len;
    return rhea_error_set(err, EPERM, "a trace frame cannot be changed");
}

/* --- what there is ------------------------------------------------------- */

static void describe_frame(const struct session *s,
                           const struct frames_frame *frame, FILE *out)
{
    struct payload p = payload_of(frame, layout_of(s));
    struct payload_block b;

    fputs("<?xml version=\"1.0\"?>\n"
          "<!DOCTYPE traceframe-info SYSTEM \"traceframe-info.dtd\">\n"
          "<traceframe-info>\n",
          out);
    while (payload_next(&p, &b)) {
        if (b.kind == 'M')
            fprintf(out, "<memory start=\"0x%" PRIx64 "\" length=\"0x%zx\"/>\n",
                    b.address, b.len);
        if (b.kind == 'V')
            fprintf(out, "<tvar id=\"0x%x\"/>\n", b.number);
    }
    fputs("</traceframe-info>\n", out);
}

int session_frame_info(struct session *s, struct packet_cursor rest,
                       const char *packet, size_t len, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    struct frames_frame frame;
    size_t n;
    FILE *out;

    (void)packet;
    (void)len;
    if (!packet_skip(&rest, ":"))
        return malformed(err, "what is asked of a trace frame");
    if (s->frame < 0 || !frames_get(frames_of(s), (uint64_t)s->frame, &frame))
        return rhea_error_set(err, ENOENT, "no trace frame is looked at");
    out = open_memstream(&text, &n);
    if (!out)
        return rhea_error_errno(err, errno, "cannot describe a trace frame");
    describe_frame(s, &frame, out);
    if (fclose(out) != 0)
        return rhea_error_errno(err, errno, "cannot describe a trace frame");
    return session_put_part(s, text, n, rest, err);
}

/* `m` must not hide `monitor`-like packets: the letters are followed by a
 * number. */
const struct session_packet session_look_packets[] = {
    {"g", true, registers},        {"p", false, one_register},
    {"m", false, memory},          {"G", false, read_only_frame},
    {"P", false, read_only_frame}, {"M", false, read_only_frame},
    {"X", false, read_only_frame}, {NULL, false, NULL},
};
