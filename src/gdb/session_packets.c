/* SPDX-License-Identifier: MIT */
#include "gdb/session_packets.h"

#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "config.h"

/* --- features ------------------------------------------------------------ */

/* What the stub may offer and we do ourselves, or cannot pass on. */
static const char *const ours[] = {
    "QStartNoAckMode",
    "QNonStop",
    "ConditionalTracepoints",
    "ConditionalBreakpoints",
    "BreakpointCommands",
    "TracepointSource",
    "EnableDisableTracepoints",
    "tracenz",
    "DisconnectedTracing",
    "InstallInTrace",
    "FastTracepoints",
    "StaticTracepoints",
    "QTBuffer:size",
    "qXfer:traceframe-info:read",
    "qXfer:statictrace:read",
    "QAgent",
};

static const char offered[] =
    "QStartNoAckMode+;ConditionalTracepoints+;ConditionalBreakpoints+;"
    "BreakpointCommands+;TracepointSource+;EnableDisableTracepoints+;tracenz+;"
    "DisconnectedTracing+;InstallInTrace+;FastTracepoints+;QTBuffer:size+;"
    "qXfer:traceframe-info:read+";

static bool is_ours(const char *feature, size_t len)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(ours); i++) {
        size_t n = strlen(ours[i]);

        if (len >= n && !memcmp(feature, ours[i], n) &&
            (len == n || strchr("+-?=", feature[n])))
            return true;
    }
    return false;
}

static int supported(struct session *s, struct packet_cursor rest,
                     const char *packet, size_t len, struct rhea_error *err)
{
    const char *reply, *p;
    size_t reply_len;
    int ret = stub_call(&s->stub, packet, len, &reply, &reply_len, err);

    (void)rest;
    if (ret < 0)
        return ret;
    for (p = reply; *p;) {
        size_t n = strcspn(p, ";");

        if (n && !is_ours(p, n)) {
            packet_put(&s->reply, p, n);
            packet_puts(&s->reply, ";");
        }
        p += n;
        p += *p == ';';
    }
    packet_puts(&s->reply, offered);
    return 0;
}

static int no_ack_mode(struct session *s, struct packet_cursor rest,
                       const char *packet, size_t len, struct rhea_error *err)
{
    (void)rest;
    (void)packet;
    (void)len;
    (void)err;
    session_ok(s);
    wire_queue(&s->gdb, s->reply.data, s->reply.len);
    packet_text_clear(&s->reply);
    s->gdb.no_ack = true;
    return 1; /* answered */
}

/* --- the stop, threads, registers ---------------------------------------- */

/* The stub would take this for a new connection, and remove all breakpoints. */
static int why_stopped(struct session *s, struct packet_cursor rest,
                       const char *packet, size_t len, struct rhea_error *err)
{
    (void)rest;
    (void)packet;
    (void)len;
    (void)err;
    packet_puts(&s->reply, s->stub.stop);
    /* As QEMU says it to a gdb that connects. */
    if (s->is_qemu && s->reply.len > 3 && s->reply.data[0] == 'T')
        memcpy(s->reply.data + 1, "05", 2);
    return 0;
}

static int select_thread(struct session *s, struct packet_cursor rest,
                         const char *packet, size_t len, struct rhea_error *err)
{
    int ret = session_forward(s, packet, len, err);

    (void)rest;
    if (ret == 0 && packet[1] == 'g' && !strcmp(s->reply.data, "OK")) {
        session_thread(s->machine.thread, packet + 2, len - 2);
        machine_forget(&s->machine);
    }
    return ret;
}

/* --- breakpoints --------------------------------------------------------- */

/* Whether gdb means another process's. The first one is ours. */
static bool is_foreign(struct session *s)
{
    if (!s->process && !s->is_qemu)
        s->process = session_process(s->machine.thread);
    return session_is_foreign(s, s->machine.thread);
}

static int insert_breakpoint(struct session *s, struct packet_cursor rest,
                             const char *packet, size_t len,
                             struct rhea_error *err)
{
    struct breakpoint refused;
    int ret;

    if (is_foreign(s))
        return session_forward(s, packet, len, err);
    ret = breaks_insert(&s->tracer.breaks, rest, err);
    if (ret == -ENOTSUP)
        return session_forward(s, packet, len, err);
    if (ret < 0)
        return ret;
    ret = breaks_sync(&s->tracer.breaks, &s->stub, &refused, err);
    if (ret < 0) {
        struct rhea_error scratch;

        (void)breaks_remove(&s->tracer.breaks, rest, &scratch);
        (void)breaks_sync(&s->tracer.breaks, &s->stub, NULL, &scratch);
        return ret == -ENOTSUP ? 0 : ret; /* an empty answer: not known */
    }
    return session_ok(s);
}

static int remove_breakpoint(struct session *s, struct packet_cursor rest,
                             const char *packet, size_t len,
                             struct rhea_error *err)
{
    int ret;

    if (is_foreign(s))
        return session_forward(s, packet, len, err);
    ret = breaks_remove(&s->tracer.breaks, rest, err);
    if (ret == -ENOTSUP)
        return session_forward(s, packet, len, err);
    if (ret == 0)
        ret = breaks_sync(&s->tracer.breaks, &s->stub, NULL, err);
    return ret < 0 ? ret : session_ok(s);
}

/* --- leaving ------------------------------------------------------------- */

/* A child has all breakpoints that its parent had, and gdb knows of its own
 * only; the child is not to run into ours. */
static int detach_child(struct session *s, uint64_t process, const char *packet,
                        size_t len, struct rhea_error *err)
{
    const struct breaks *b = &s->tracer.breaks;
    const char *reply;
    unsigned n = 0;
    int ret = stub_callf(&s->stub, &reply, err, "Hgp%" PRIx64 ".0", process);

    if (ret == 0 && !strcmp(reply, "OK")) {
        for (size_t i = 0; i < b->n; i++) {
            if (!b->list[i].inserted)
                continue;
            breaks_queue(&s->stub, &b->list[i], false);
            n++;
        }
    }
    while (n-- && ret == 0) {
        size_t reply_len;

        ret = stub_answer(&s->stub, &reply, &reply_len, err);
    }
    /* The stub looks at another thread now; it went with the process, if gdb
     * looked at one of that. */
    if (ret == 0)
        ret = session_forward(s, packet, len, err);
    if (ret == 0 && s->machine.thread[0])
        ret = stub_callf(&s->stub, &reply, err, "Hg%s", s->machine.thread);
    return ret;
}

/* `D`: gdb lets go, and the guest runs on. The stub keeps us. */
static int detach(struct session *s, struct packet_cursor rest,
                  const char *packet, size_t len, struct rhea_error *err)
{
    struct tracer *t = &s->tracer;
    uint64_t process;
    int ret;

    if (!s->is_qemu && packet_skip(&rest, ";") &&
        packet_number(&rest, &process) && s->process && process != s->process)
        return detach_child(s, process, packet, len, err);
    s->process = 0;
    breaks_remove_gdb(&t->breaks);
    if (!frames_control(t->frames)->disconnected)
        tracer_stop(t, FRAMES_DISCONNECTED);
    ret = breaks_sync(&t->breaks, &s->stub, NULL, err);
    if (ret < 0)
        return ret;
    if (!s->is_qemu && !tracer_is_running(t))
        return session_forward(s, packet, len, err);
    s->leaving = true;
    return session_ok(s);
}

/* `k` has no answer. */
static int kill_guest(struct session *s, struct packet_cursor rest,
                      const char *packet, size_t len, struct rhea_error *err)
{
    (void)rest;
    stub_queue(&s->stub, packet, len);
    (void)wire_flush(&s->stub.wire, s->how.timeout, err);
    return 1;
}

/* --- the monitor --------------------------------------------------------- */

/* `monitor rhea`: what is going on, for people. */
static void describe(struct session *s, FILE *out)
{
    const struct tracer *t = &s->tracer;
    const struct memory *m = &s->machine.memory;

    fprintf(out, "rhea-trace %s\n", RHEA_VERSION);
    fprintf(out, "stub: %s, %s\n", s->how.stub,
            !s->is_qemu ? "not QEMU's"
            : s->is_kvm ? "QEMU with KVM"
                        : "QEMU with TCG");
    fprintf(out, "way: %s (%s%s%s)\n", t->way->name, t->way->text,
            t->link.fd >= 0 ? ", " : "", t->link.fd >= 0 ? t->link.text : "");
    if (s->no_plugin[0])
        fprintf(out, "no plugin: %s\n", s->no_plugin);
    fprintf(out, "registers: %s\n",
            s->view.kind == VIEW_STUB ? "as the stub has them"
                                      : view_name(s->view.kind));
    if (m->pid)
        fprintf(out, "memory: read from process %d, %u ranges\n", (int)m->pid,
                m->n);
    else
        fprintf(out, "memory: read by the stub: %s\n", m->why);
    fprintf(out, "frames: %" PRIu64 " of %" PRIu64 ", in %s\n",
            frames_count(t->frames), frames_created(t->frames),
            frames_path(t->frames));
    for (size_t i = 0; i < t->experiment->n_points; i++) {
        const struct tracepoint *p = t->experiment->points[i];
        const struct frames_point *f = frames_point(t->frames, p->slot);

        fprintf(out,
                "tracepoint %u at 0x%" PRIx64 ": %s, passed %" PRIu64
                " times, %" PRIu64 " hits, %" PRIu64 " faults\n",
                p->number, p->address, f->enabled ? "enabled" : "disabled",
                f->tests, f->hits, f->faults);
    }
}

static int monitor(struct session *s, struct packet_cursor rest,
                   const char *packet, size_t len, struct rhea_error *err)
{
    char command[256] = "", *text = NULL;
    size_t n;
    FILE *out;

    if (!packet_bytes(&rest, command, sizeof(command) - 1, &n) ||
        (strcmp(command, "rhea") != 0 && strncmp(command, "rhea ", 5) != 0))
        return session_forward(s, packet, len, err);
    out = open_memstream(&text, &n);
    if (out) {
        if (command[4])
            session_watch(s, command + 5, out);
        else
            describe(s, out);
        fclose(out);
    }
    if (text)
        packet_put_hex(&s->reply, text, n);
    free(text);
    return 0;
}

const struct session_packet session_base_packets[] = {
    {"qSupported", false, supported},
    {"QStartNoAckMode", true, no_ack_mode},
    {"?", true, why_stopped},
    {"Hg", false, select_thread},
    {"Z", false, insert_breakpoint},
    {"z", false, remove_breakpoint},
    {"D", false, detach},
    {"k", true, kill_guest},
    {"qRcmd,", false, monitor},
    {NULL, false, NULL},
};
