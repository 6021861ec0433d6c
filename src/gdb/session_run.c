/* SPDX-License-Identifier: MIT */
/*
 * The guest runs. A request of gdb's is carried out in as many resumes as it
 * takes: threads that stand at a tracepoint first depart from it, threads that
 * are being stepped for one make their steps, and stops that concern only
 * tracepoints are followed by another resume.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "gdb/session.h"

/* --- stop replies -------------------------------------------------------- */

/* What a stop reply says. */
struct stop {
    unsigned signal;
    char thread[MACHINE_THREAD];
    bool ended;           /* the program is no more */
    bool special;         /* a fork and the like: not for us */
    bool watch;           /* an access to memory that is watched */
    enum break_type kind; /* of the watchpoint */
    uint64_t address;     /* and where it begins */
};

/* Registers (a number in hexadecimal) and where the thread is say nothing about
 * the reason; nor does it matter that it is a breakpoint. Of what remains no
 * part is for us: watchpoints, forks, libraries. */
static bool is_special(const char *field)
{
    static const char *const plain[] = {
        "thread:", "core:", "swbreak:", "hwbreak:"};
    size_t digits = strspn(field, "0123456789abcdefABCDEF");

    if (digits && field[digits] == ':')
        return false;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(plain); i++)
        if (!strncmp(field, plain[i], strlen(plain[i])))
            return false;
    return strchr(field, ':') != NULL;
}

/* `watch:ADDRESS`, `rwatch:`, `awatch:`. */
static void parse_watch(struct stop *stop, const char *field, size_t len)
{
    static const struct {
        const char *name;
        enum break_type kind;
    } names[] = {{"watch:", BREAK_WRITE},
                 {"rwatch:", BREAK_READ},
                 {"awatch:", BREAK_ACCESS}};

    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        struct packet_cursor c = packet_cursor(field, len);

        if (packet_skip(&c, names[i].name) &&
            packet_number(&c, &stop->address)) {
            stop->watch = true;
            stop->kind = names[i].kind;
        }
    }
}

static struct stop parse_stop(struct session *s)
{
    struct stop stop = {0};
    const char *p = s->stub.stop;

    stop.ended = strchr("WXN", p[0]) != NULL;
    if (stop.ended)
        return stop;
    stop.signal =
        (unsigned)(packet_hex_digit(p[1]) << 4 | packet_hex_digit(p[2]));
    if (p[0] == 'T') {
        const char *field = p + 3;

        while (*field) {
            size_t len = strcspn(field, ";");

            if (!strncmp(field, "thread:", 7))
                session_thread(stop.thread, field + 7, len - 7);
            else
                stop.special |= is_special(field);
            parse_watch(&stop, field, len);
            field += len;
            field += *field == ';';
        }
    }
    if (!stop.thread[0])
        snprintf(stop.thread, sizeof(stop.thread), "%s", s->machine.thread);
    return stop;
}

/* --- waiting ------------------------------------------------------------- */

enum { SIGNAL_INT = 2, SIGNAL_TRAP = 5 };

/* While one request is carried out. */
struct running {
    struct request request;
    bool interrupt;    /* gdb wants a stop, or something that needs one does */
    bool interrupted;  /* the stub was asked for it */
    uint64_t start_pc; /* of the thread that steps */
    bool was_counted;  /* the thread of the last step, at step_pc */
    uint64_t step_pc;
    struct machine_place step_place; /* the same */
    unsigned answers; /* of packets sent with the resume, still to come */
};

static int ask_to_stop(struct session *s, struct running *r,
                       struct rhea_error *err)
{
    r->interrupt = true;
    if (r->interrupted)
        return 0;
    r->interrupted = true;
    return stub_interrupt(&s->stub, err);
}

/* gdb has gone while the guest ran. It runs on; tracing does too, if gdb wished
 * so, and else it ends at the next stop, which is brought about. */
static int lose_gdb(struct session *s, struct running *r,
                    struct rhea_error *err)
{
    wire_finish(&s->gdb);
    s->was_running = true;
    breaks_remove_gdb(&s->tracer.breaks);
    if (tracer_is_running(&s->tracer) &&
        !frames_control(s->tracer.frames)->disconnected)
        frames_stop(s->tracer.frames, FRAMES_DISCONNECTED, 0, NULL);
    if (!s->tracer.breaks.dirty &&
        (!s->tracer.active || tracer_is_running(&s->tracer)))
        return 0;
    return ask_to_stop(s, r, err);
}

/* What gdb sends while the guest runs is a wish to stop it. */
static int hear_gdb(struct session *s, struct running *r,
                    struct rhea_error *err)
{
    if (wire_fill(&s->gdb, NULL) == -ECONNRESET)
        return lose_gdb(s, r, err);
    while (!r->interrupt) {
        enum packet_event event = wire_next(&s->gdb);

        if (event == PACKET_NONE)
            break;
        s->packet_waits = event == PACKET_DATA;
        if (event == PACKET_INTERRUPT || event == PACKET_DATA)
            return ask_to_stop(s, r, err);
    }
    if (wire_flush(&s->gdb, s->how.timeout, NULL) < 0)
        return lose_gdb(s, r, err);
    return 0;
}

static int hear_listener(struct session *s, struct running *r,
                         struct rhea_error *err)
{
    if (session_accept(s) < 0)
        return 0;
    return ask_to_stop(s, r, err);
}

/* Console output and the like, for gdb. */
static void pass_on(struct session *s, const char *packet, size_t len)
{
    if (s->gdb.fd < 0)
        return;
    wire_queue(&s->gdb, packet, len);
    (void)wire_flush(&s->gdb, s->how.timeout, NULL);
}

/* 1: the guest has stopped. 0: not yet. */
static int hear_stub(struct session *s, struct running *r,
                     struct rhea_error *err)
{
    enum packet_event event;
    int ret = wire_fill(&s->stub.wire, err);

    if (ret == -EAGAIN)
        return 0;
    if (ret < 0) {
        s->stub.wire.dead = true;
        return ret;
    }
    while ((event = wire_next(&s->stub.wire)) != PACKET_NONE) {
        const char *packet = (const char *)s->stub.wire.in.data;
        size_t len = s->stub.wire.in.len;

        if (event != PACKET_DATA)
            continue;
        if (r->answers) {
            r->answers--;
            if (strcmp(packet, "OK") != 0) {
                s->stub.wire.dead = true;
                return rhea_error_set(err, EPROTO,
                                      "the stub refused to change a register "
                                      "or a breakpoint: `%.40s'",
                                      packet);
            }
        } else if (stub_is_stop(&s->stub, packet, len)) {
            return 1;
        } else if (len == 0 || packet[0] == 'E') {
            /* Backwards, say, where nothing was recorded. */
            s->stub.running = false;
            s->refused = true;
            snprintf(s->refusal, sizeof(s->refusal), "%s", packet);
            return 1;
        } else if ((packet[0] == 'O' && packet[1] != 'K') || packet[0] == 'F') {
            pass_on(s, packet, len);
            ret = stub_hear(&s->stub, err);
            if (ret < 0)
                return ret;
        } else {
            s->stub.wire.dead = true;
            return rhea_error_set(err, EPROTO,
                                  "the stub says something else than why the "
                                  "guest has stopped: `%.40s'",
                                  packet);
        }
    }
    return 0;
}

/* TIMEOUT in milliseconds. */
static int wait_some(struct session *s, struct pollfd *p, nfds_t n, int timeout)
{
    struct timespec t = {timeout / 1000, timeout % 1000 * 1000000L};

    return ppoll(p, n, timeout < 0 ? NULL : &t, s->how.signals);
}

/* The guest has stopped. Where it stops all the time, gdb gets a word in all
 * the same; nobody has to be asked to stop. */
static int hear_other(struct session *s, struct running *r, bool ready,
                      struct rhea_error *err)
{
    if (!ready || r->interrupt)
        return 0;
    r->interrupted = true;
    return s->gdb.fd >= 0 ? hear_gdb(s, r, err) : hear_listener(s, r, err);
}

/* Wait until the guest has stopped. */
static int wait_for_stop(struct session *s, struct running *r,
                         struct rhea_error *err)
{
    int64_t until = -1;

    for (;;) {
        bool gdb = s->gdb.fd >= 0, pending;
        struct pollfd p[3] = {
            {.fd = s->stub.wire.fd, .events = POLLIN},
            {.fd = gdb ? s->gdb.fd : s->listener, .events = POLLIN},
            {.fd = gdb ? s->listener : -1, .events = POLLIN}};
        int ret, timeout = -1;

        pending = gdb && !r->interrupt && s->gdb.at < s->gdb.len;
        /* Asked to stop, it has to, in time. */
        if (r->interrupted && until < 0)
            until = wire_now() + s->how.timeout;
        if (until >= 0)
            timeout = (int)RHEA_MAX(until - wire_now(), (int64_t)0);
        ret = pending ? 1 : wait_some(s, p, r->interrupt ? 1 : 3, timeout);
        if (ret < 0 && errno != EINTR)
            return rhea_error_errno(err, errno, "cannot wait for the guest");
        if (s->how.stop && *s->how.stop)
            return -EINTR;
        if (ret == 0 || (until >= 0 && wire_now() > until)) {
            s->stub.wire.dead = true;
            return rhea_error_set(err, ETIMEDOUT,
                                  "the stub does not stop the guest");
        }
        if (ret < 0)
            continue;
        if (p[2].revents && !p[1].revents && !pending)
            session_turn_away(s);
        if (p[0].revents && (ret = hear_stub(s, r, err)) != 0)
            return ret < 0 ? ret
                           : hear_other(s, r, pending || p[1].revents, err);
        if (pending || p[1].revents)
            ret = gdb ? hear_gdb(s, r, err) : hear_listener(s, r, err);
        if (ret < 0)
            return ret;
    }
}

/* --- resuming ------------------------------------------------------------ */

/* Let it run as PACKET says, up to the next stop. */
static int resume(struct session *s, struct running *r, const char *packet,
                  struct rhea_error *err)
{
    int ret = stub_resume(&s->stub, packet, strlen(packet), err);

    machine_forget(&s->machine);
    r->interrupted = false;
    /* gdb may have wanted a stop while none of these packets was on its way. */
    if (ret == 0 && r->interrupt)
        ret = ask_to_stop(s, r, err);
    return ret < 0 ? ret : wait_for_stop(s, r, err);
}

/* THREAD's registers can be read then. */
static int look_at(struct session *s, const char *thread,
                   struct rhea_error *err)
{
    int ret = machine_select(&s->machine, thread, err);

    return ret < 0 ? ret : machine_fetch(&s->machine, err);
}

/* Take the breakpoints under a thread out of the stub, or put them back; how
 * many answers there will be. */
static unsigned queue_breaks_at(struct session *s, uint64_t pc, bool insert)
{
    unsigned n = 0;

    for (unsigned type = BREAK_SOFTWARE; type <= BREAK_HARDWARE; type++) {
        struct breakpoint *b = breaks_find(&s->tracer.breaks, type, pc);

        if (!b || !b->inserted)
            continue;
        breaks_queue(&s->stub, b, insert);
        n++;
    }
    return n;
}

/* Resume so that THREAD makes a step, over the breakpoint under it if there is
 * one. */
static int step(struct session *s, struct running *r, const char *thread,
                const char *packet, struct rhea_error *err)
{
    uint64_t pc, counted;
    int ret;

    ret = look_at(s, thread, err);
    if (ret < 0)
        return ret;
    pc = machine_pc(&s->machine);
    r->answers += queue_breaks_at(s, pc, false);
    r->step_pc = pc;
    r->step_place = machine_place(&s->machine);
    r->was_counted = tracer_is_counted(&s->tracer, thread, &counted);
    tracer_departed(&s->tracer, thread);
    ret = resume(s, r, packet, err);
    if (ret < 0)
        return ret;
    /* The answer comes with the next resume, or before the next packet. */
    for (unsigned n = queue_breaks_at(s, pc, true); n && ret == 0; n--)
        ret = stub_expect_ok(&s->stub, "put a breakpoint back", err);
    return ret;
}

static int step_alone(struct session *s, struct running *r, const char *thread,
                      struct rhea_error *err)
{
    char packet[64];

    if (s->stub.vcont) {
        snprintf(packet, sizeof(packet), "vCont;s:%s", thread);
        return step(s, r, thread, packet, err);
    }
    return step(s, r, thread, "s", err);
}

/* Move a thread past the instruction at which it was counted without a step;
 * 0: that cannot be done. */
static int pass(struct session *s, struct running *r, const char *thread,
                struct rhea_error *err)
{
    struct past p;
    int ret = look_at(s, thread, err);

    if (ret < 0)
        return ret;
    /* gdbserver has no `P`. */
    if (!s->is_qemu || !machine_past(&s->machine, &p))
        return 0;
    r->answers += machine_queue_past(&s->machine, &p);
    tracer_departed(&s->tracer, thread);
    return 1;
}

/* --- stops --------------------------------------------------------------- */

/* A dynamic printf's text, for gdb to show. */
static void print(struct session *s, const char *text)
{
    struct packet_text packet = {0};

    packet_puts(&packet, "O");
    packet_put_hex(&packet, text, strlen(text));
    if (s->gdb.fd < 0)
        fputs(text, stdout);
    else
        pass_on(s, packet.data, packet.len);
    packet_text_finish(&packet);
}

/* Whether gdb is to know that its breakpoint was reached. Conditions that
 * cannot be evaluated stop, so that somebody looks. */
static bool concerns_gdb(struct session *s, const struct breakpoint *b,
                         uint64_t pc, bool again)
{
    struct hit_machine m = machine_for_hit(&s->machine, pc);
    struct hit *hit = &s->tracer.hit;
    bool holds = b->n_conditions == 0;
    char text[4096];

    for (unsigned i = 0; i < b->n_conditions && !holds; i++) {
        uint64_t value = 0;

        holds = hit_evaluate(hit, &b->conditions[i], &m, &value) != AX_OK ||
                value != 0;
    }
    if (!holds || !b->n_commands)
        return holds;
    for (unsigned i = 0; i < b->n_commands && !again; i++)
        if (hit_print(hit, &b->commands[i], &m, text, sizeof(text)) == AX_OK)
            print(s, text);
    return false;
}

/* AGAIN: it has printed what it prints. */
static bool at_breakpoint_of_gdb(struct session *s, uint64_t pc, bool again,
                                 bool *any)
{
    bool concerned = false;

    for (unsigned type = BREAK_SOFTWARE; type <= BREAK_HARDWARE; type++) {
        const struct breakpoint *b = breaks_find(&s->tracer.breaks, type, pc);

        if (!b || !b->by_gdb)
            continue;
        *any = true;
        concerned |= concerns_gdb(s, b, pc, again);
    }
    return concerned;
}

/* Tell gdb of a stop that was not the stub's last word. */
static void pretend_stop(struct session *s, unsigned signal, const char *thread)
{
    if (thread[0])
        snprintf(s->stub.stop, sizeof(s->stub.stop), "T%02xthread:%s;", signal,
                 thread);
    else
        snprintf(s->stub.stop, sizeof(s->stub.stop), "S%02x", signal);
}

/* A thread that gdb steps, while another one stopped the guest: whether it has
 * made its step. */
static int has_stepped(struct session *s, const struct running *r, bool *has,
                       struct rhea_error *err)
{
    int ret = look_at(s, r->request.stepping, err);

    if (ret == 0)
        *has = machine_pc(&s->machine) != r->start_pc;
    return ret;
}

static bool is_in_range(const struct request *q, uint64_t pc)
{
    return pc >= q->low && pc < q->high;
}

/* A thread that was to make a step is at PC. Now and then QEMU stops without a
 * step having been made, and repeated instructions step in place: nobody has
 * arrived. True where it stands at an instruction that was counted. */
static bool note_step(struct session *s, const struct running *r,
                      const char *thread, uint64_t pc)
{
    if (pc == r->step_pc) {
        if (r->was_counted)
            tracer_stand(&s->tracer, pc);
        return r->was_counted;
    }
    if (r->was_counted && machine_has_interrupted(&s->machine, &r->step_place))
        tracer_interrupted(&s->tracer, &r->step_place);
    if (tracer_is_stepping(&s->tracer, thread))
        tracer_step(&s->tracer, pc);
    return false;
}

/* A trap of a thread's: 1 where gdb is to know. STEPPED: the thread that was
 * stepped alone; "": none. */
static int judge_trap(struct session *s, struct running *r,
                      const struct stop *stop, const char *stepped,
                      struct rhea_error *err)
{
    bool traced, of_gdb = false, report, own_step, has = false, again = false;
    uint64_t pc;
    int ret = look_at(s, stop->thread, err);

    if (ret < 0)
        return ret;
    pc = machine_pc(&s->machine);
    own_step = !strcmp(stop->thread, stepped);
    traced = breaks_at(&s->tracer.breaks, pc, false) != NULL;
    if (own_step || !strcmp(stop->thread, r->request.stepping))
        again = note_step(s, r, stop->thread, pc);
    if (tracer_returns(&s->tracer)) {
        tracer_stand(&s->tracer, pc);
        again = true;
    } else {
        tracer_arrive(&s->tracer, pc);
    }
    report = at_breakpoint_of_gdb(s, pc, again, &of_gdb);
    if (!strcmp(stop->thread, r->request.stepping))
        report |= r->request.ranged ? !is_in_range(&r->request, pc) : !own_step;
    report |= !traced && !of_gdb && !own_step && !stop->watch;
    if (!report && of_gdb)
        tracer_stand(&s->tracer, pc);
    if (!report && r->request.stepping[0] &&
        strcmp(stop->thread, r->request.stepping) != 0 && !own_step) {
        ret = has_stepped(s, r, &has, err);
        if (ret < 0)
            return ret;
        if (has)
            pretend_stop(s, SIGNAL_TRAP, r->request.stepping);
        report = has;
    }
    if (!report && r->interrupt) {
        pretend_stop(s, SIGNAL_INT, stop->thread);
        report = true;
    }
    return report;
}

/* Something else has stopped the guest, perhaps before THREAD has made its
 * step: then it stands where it was. */
static int judge_other(struct session *s, const struct running *r,
                       const char *thread, struct rhea_error *err)
{
    uint64_t pc;
    int ret;

    if (!thread[0] || !r->was_counted)
        return 1;
    ret = look_at(s, thread, err);
    if (ret < 0)
        return ret;
    pc = machine_pc(&s->machine);
    if (pc == r->step_pc)
        tracer_stand(&s->tracer, pc);
    return 1;
}

/* An access to watched memory. 0: it was a tracepoint's, and gdb is not to
 * know; 1: it was gdb's. */
static int judge_watch(struct session *s, struct running *r,
                       const struct stop *stop, const char *stepped,
                       struct rhea_error *err)
{
    const struct breakpoint *b =
        breaks_find(&s->tracer.breaks, stop->kind, stop->address);
    bool traced;
    int ret = look_at(s, stop->thread, err);

    if (ret < 0)
        return ret;
    traced = tracer_touch(&s->tracer, stop->kind, stop->address,
                          machine_pc(&s->machine));
    if (!traced || (b && b->by_gdb))
        return judge_other(s, r, stepped[0] ? stepped : r->request.stepping,
                           err);
    pretend_stop(s, SIGNAL_TRAP, stop->thread);
    return judge_trap(s, r, stop, stepped, err);
}

/* `W00;process:1`: another one may follow, whose breakpoints are ours then. */
static void note_end(struct session *s)
{
    const char *field = strstr(s->stub.stop, ";process:");
    struct packet_cursor c = packet_cursor("", 0);
    uint64_t process;

    if (field)
        c = packet_cursor(field + 9, strlen(field + 9));
    if (!packet_number(&c, &process) || process == s->process) {
        s->process = 0;
        tracer_departed(&s->tracer, NULL);
    }
}

static int judge(struct session *s, struct running *r, const char *stepped,
                 struct rhea_error *err)
{
    struct stop stop = parse_stop(s);
    int ret;

    if (stop.ended) {
        note_end(s);
        return 1;
    }
    if (session_is_foreign(s, stop.thread))
        ret = 1;
    else if (stop.signal == SIGNAL_TRAP && stop.watch)
        ret = judge_watch(s, r, &stop, stepped, err);
    else if (stop.signal == SIGNAL_TRAP && !stop.special)
        ret = judge_trap(s, r, &stop, stepped, err);
    else
        ret =
            judge_other(s, r, stepped[0] ? stepped : r->request.stepping, err);
    if (ret == 1 && stop.thread[0]) {
        /* The stub's idea of the thread that gdb looks at is the one that
         * stopped. */
        stop = parse_stop(s);
        snprintf(s->machine.thread, sizeof(s->machine.thread), "%s", "");
        if (machine_select(&s->machine, stop.thread, err) < 0)
            ret = -EIO;
    }
    return ret;
}

/* --- a request ----------------------------------------------------------- */

/* A thread that gdb steps departs by that step. In a range it may come by the
 * same place again, so the breakpoint has to be in. */
static bool moves_first(const struct request *q, const char *thread)
{
    return q->ranged || strcmp(thread, q->stepping) != 0;
}

/* A thread that has to be moved before the request can be sent; "": none. */
static void find_mover(struct session *s, const struct request *q,
                       char thread[MACHINE_THREAD])
{
    struct tracer *t = &s->tracer;

    thread[0] = 0;
    for (size_t i = 0; i < t->n_stepping && !thread[0]; i++)
        if (request_resumes(q, t->stepping[i].thread) &&
            moves_first(q, t->stepping[i].thread))
            snprintf(thread, MACHINE_THREAD, "%s", t->stepping[i].thread);
    for (size_t i = 0; i < t->n_counted && !thread[0]; i++)
        if (request_resumes(q, t->counted[i].thread) &&
            moves_first(q, t->counted[i].thread))
            snprintf(thread, MACHINE_THREAD, "%s", t->counted[i].thread);
}

/* Nothing is under a thread any more: it need not depart. */
static bool stands_free(struct session *s, const char *thread)
{
    uint64_t pc = 0;

    if (!tracer_is_counted(&s->tracer, thread, &pc))
        return true;
    for (unsigned type = BREAK_SOFTWARE; type <= BREAK_HARDWARE; type++) {
        struct breakpoint *b = breaks_find(&s->tracer.breaks, type, pc);

        if (b && b->inserted)
            return false;
    }
    return true;
}

/* Send the request itself. */
static int carry_out(struct session *s, struct running *r,
                     struct rhea_error *err)
{
    const struct request *q = &r->request;
    int ret;

    r->step_pc = UINT64_MAX;
    if (q->stepping[0] && !q->ranged && !session_is_foreign(s, q->stepping))
        ret = step(s, r, q->stepping, q->text, err);
    else
        ret = resume(s, r, q->text, err);
    request_was_sent(&r->request);
    return ret;
}

/* One resume, of a single thread if one has to be moved first. 1: gdb is to
 * know of the stop. */
static int run_once(struct session *s, struct running *r,
                    struct rhea_error *err)
{
    char mover[MACHINE_THREAD];
    int ret;

    tracer_settle(&s->tracer);
    ret = breaks_sync(&s->tracer.breaks, &s->stub, NULL, err);
    if (ret < 0)
        return ret;
    find_mover(s, &r->request, mover);
    if (mover[0] && !tracer_is_stepping(&s->tracer, mover)) {
        if (stands_free(s, mover)) {
            tracer_departed(&s->tracer, mover);
            return 0;
        }
        ret = pass(s, r, mover, err);
        if (ret != 0)
            return ret < 0 ? ret : 0;
    }
    if (mover[0])
        ret = step_alone(s, r, mover, err);
    else
        ret = carry_out(s, r, err);
    if (ret < 0 || s->refused)
        return ret < 0 ? ret : 1;
    return judge(s, r, mover, err);
}

/* Backwards, tracepoints do not count, and their breakpoints would stop it. */
static int run_back(struct session *s, struct running *r,
                    struct rhea_error *err)
{
    struct tracer *t = &s->tracer;
    int ret;

    tracer_suspend(t, true);
    ret = breaks_sync(&t->breaks, &s->stub, NULL, err);
    if (ret == 0)
        ret = resume(s, r, r->request.text, err);
    tracer_departed(t, NULL);
    tracer_suspend(t, false);
    if (ret == 0 && !s->stub.wire.dead)
        ret = breaks_sync(&t->breaks, &s->stub, NULL, err);
    if (ret < 0 || s->refused)
        return ret;
    return judge(s, r, "", err);
}

int session_run(struct session *s, const char *packet, size_t len,
                struct rhea_error *err)
{
    struct running r = {0};
    int ret = 0;

    s->refused = false;
    request_parse(&r.request, packet, len, s->machine.thread);
    if (r.request.stepping[0] && !r.request.reverse) {
        ret = look_at(s, r.request.stepping, err);
        r.start_pc = machine_pc(&s->machine);
    }
    if (ret == 0 && r.request.reverse)
        ret = run_back(s, &r, err);
    while (ret == 0)
        ret = run_once(s, &r, err);
    tracer_settle(&s->tracer);
    return ret < 0 ? ret : 0;
}
