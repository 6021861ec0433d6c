/* SPDX-License-Identifier: MIT */
/* Registers as gdb sees them (view.h), and their description. */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "gdb/session.h"

#define HANDLER(name)                                                          \
    static int name(struct session *s, struct packet_cursor rest,              \
                    const char *packet, size_t len, struct rhea_error *err)

static bool has_view(const struct session *s)
{
    return s->view.kind != VIEW_STUB;
}

/* --- which one ----------------------------------------------------------- */

static int set_view(struct session *s, enum view_kind kind,
                    struct rhea_error *err)
{
    struct view v;
    const struct description *d = &s->description;
    int ret;

    if (kind == s->view.kind)
        return 0;
    ret = view_init(&v, kind, &s->description.layout, err);
    if (ret < 0)
        return ret;
    view_finish(&s->view);
    s->view = v;
    s->machine.view = has_view(s) ? &s->view : NULL;
    if (has_view(s))
        d = &s->view.shown;
    return tracer_describe(&s->tracer, d, err);
}

/* Where the user has not said it, what the processor runs decides when gdb
 * comes: firmware and boot loaders nobody knows what after, so that they get
 * what QEMU gives. Trace frames and tracepoints keep the registers with which
 * they were made. */
int session_choose_view(struct session *s, struct rhea_error *err)
{
    bool wide = layout_number(&s->description.layout, "rip") >= 0, empty;
    int ret;

    if (s->how.arch == SESSION_ARCH_X86_64 || (!wide && s->how.arch == 0))
        return 0;
    if (s->how.arch == SESSION_ARCH_I386)
        return wide ? set_view(s, VIEW_I386, err) : 0;
    if (s->how.arch == SESSION_ARCH_I8086)
        return set_view(s, VIEW_I8086, err);
    empty = !s->tracer.experiment->n_points && !frames_count(s->tracer.frames);
    if (!empty)
        return 0;
    ret = machine_fetch(&s->machine, err);
    if (ret < 0)
        return ret;
    return set_view(s, machine_is_paged_32(&s->machine) ? VIEW_I386 : VIEW_STUB,
                    err);
}

/* --- registers ----------------------------------------------------------- */

static void put_register(struct session *s, unsigned n)
{
    const uint8_t *bytes = machine_register(&s->machine, s->view.from[n]);
    unsigned size = s->view.shown.layout.registers[n].size;

    if (bytes)
        packet_put_hex(&s->reply, bytes, size);
    for (unsigned i = 0; !bytes && i < size; i++)
        packet_puts(&s->reply, "xx");
}

HANDLER(read_all)
{
    const struct layout *l = &s->view.shown.layout;
    int ret;

    (void)rest;
    if (!has_view(s))
        return session_forward(s, packet, len, err);
    ret = machine_fetch(&s->machine, err);
    for (unsigned n = 0; n < l->n && ret == 0; n++)
        put_register(s, n);
    return ret;
}

static bool is_shown(const struct session *s, uint64_t n)
{
    const struct layout *l = &s->view.shown.layout;

    return n < l->n && l->registers[n].size;
}

HANDLER(read_one)
{
    uint64_t n;
    int ret;

    if (!has_view(s))
        return session_forward(s, packet, len, err);
    if (!packet_number(&rest, &n) || !is_shown(s, n))
        return rhea_error_set(err, EINVAL, "gdb reads an unknown register");
    ret = machine_fetch(&s->machine, err);
    if (ret == 0)
        put_register(s, (unsigned)n);
    return ret;
}

/* Set a register of ours from BYTES, with zeroes above. */
static int write_register(struct session *s, unsigned n, const uint8_t *bytes,
                          struct rhea_error *err)
{
    unsigned from = s->view.from[n];
    uint8_t wide[EXPERIMENT_MAX_REGISTER] = {0};
    struct packet_text text = {0};
    int ret;

    memcpy(wide, bytes, s->view.shown.layout.registers[n].size);
    packet_printf(&text, "P%x=", from);
    packet_put_hex(&text, wide, s->description.layout.registers[from].size);
    if (text.data)
        stub_queue(&s->stub, text.data, text.len);
    ret = text.data ? stub_expect_ok(&s->stub, "change a register", err)
                    : rhea_error_errno(err, ENOMEM, "cannot set a register");
    packet_text_finish(&text);
    return ret;
}

/* Somebody moves the thread. */
static void forget_thread(struct session *s)
{
    machine_forget(&s->machine);
    tracer_departed(&s->tracer,
                    s->machine.thread[0] ? s->machine.thread : NULL);
}

HANDLER(write_one)
{
    uint8_t bytes[EXPERIMENT_MAX_REGISTER];
    uint64_t n;
    size_t got;
    int ret;

    if (!has_view(s)) {
        forget_thread(s);
        return session_forward(s, packet, len, err);
    }
    if (!packet_number(&rest, &n) || !is_shown(s, n) ||
        !packet_skip(&rest, "=") ||
        !packet_bytes(&rest, bytes, sizeof(bytes), &got) ||
        got != s->view.shown.layout.registers[n].size)
        return rhea_error_set(err, EINVAL, "gdb writes an unknown register");
    ret = write_register(s, (unsigned)n, bytes, err);
    forget_thread(s);
    return ret < 0 ? ret : session_ok(s);
}

/* Only those that change: QEMU's stub takes fewer bytes of control registers
 * than it gives while the processor is not in 64-bit mode, and so would put the
 * rest of a `G` into the wrong registers. */
HANDLER(write_all)
{
    const struct layout *l = &s->view.shown.layout;
    uint8_t bytes[EXPERIMENT_MAX_G];
    size_t got;
    int ret;

    if (!has_view(s)) {
        forget_thread(s);
        return session_forward(s, packet, len, err);
    }
    if (!packet_bytes(&rest, bytes, sizeof(bytes), &got) || got != l->bytes)
        return rhea_error_set(err, EINVAL, "gdb writes unknown registers");
    ret = machine_fetch(&s->machine, err);
    for (unsigned n = 0; n < l->n && ret == 0; n++) {
        const struct layout_register *r = &l->registers[n];
        const uint8_t *had = machine_register(&s->machine, s->view.from[n]);

        if (r->size && (!had || memcmp(had, bytes + r->offset, r->size) != 0))
            ret = write_register(s, n, bytes + r->offset, err);
    }
    forget_thread(s);
    return ret < 0 ? ret : session_ok(s);
}

/* --- the description ----------------------------------------------------- */

HANDLER(features)
{
    int ret;

    if (packet_skip(&rest, "target.xml:0,")) {
        ret = session_choose_view(s, err);
        if (ret < 0)
            return ret;
        rest.at -= 2;
    } else if (!packet_skip(&rest, "target.xml:")) {
        return session_forward(s, packet, len, err);
    }
    if (!has_view(s))
        return session_forward(s, packet, len, err);
    return session_put_part(s, s->view.shown.text, strlen(s->view.shown.text),
                            rest, err);
}

const struct session_packet session_view_packets[] = {
    {"g", true, read_all},
    {"p", false, read_one},
    {"G", false, write_all},
    {"P", false, write_one},
    {"qXfer:features:read:", false, features},
    {NULL, false, NULL},
};
