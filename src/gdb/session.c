/* SPDX-License-Identifier: MIT */
#include "gdb/session.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/session_packets.h"

/* --- life ---------------------------------------------------------------- */

static int fetch_description(void *opaque, const char *annex, char **text,
                             size_t *len, struct rhea_error *err)
{
    struct session *s = opaque;

    return stub_transfer(&s->stub, "features", annex, text, len, err);
}

/* Whether the stub is QEMU's, and which accelerator it has. */
static int find_out(struct session *s, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    const char *reply;
    int ret = stub_callf(&s->stub, &reply, err, "qqemu.sstepbits");

    if (ret < 0)
        return ret;
    s->is_qemu = reply[0] == 'E' && strstr(reply, "ENABLE=") == reply;
    if (!s->is_qemu)
        return 0;
    if (stub_monitor(&s->stub, "info kvm", &text, err) == 0)
        s->is_kvm = strstr(text, "enabled") != NULL;
    return s->stub.wire.dead ? -EPROTO : 0;
}

/* The guest was running when we connected, which has stopped it. */
static bool was_running(struct session *s)
{
    RHEA_AUTO_FREE char *text = NULL;

    return s->is_qemu &&
           stub_monitor(&s->stub, "info status", &text, NULL) == 0 &&
           !strstr(text, "prelaunch") && !strstr(text, "inmigrate") &&
           !strstr(text, "postmigrate") && !strstr(text, "shutdown");
}

/* Of the QEMU at the other end; 0: not known. */
static pid_t qemu_process(const struct session *s)
{
    if (!s->is_qemu)
        return 0;
    return s->how.child ? s->how.child : memory_peer(s->stub.wire.fd);
}

static int open_stub(struct session *s, struct rhea_error *err)
{
    int ret = stub_open(&s->stub, s->how.stub, s->how.timeout, err);

    if (ret == 0)
        ret = description_load(&s->description, fetch_description, s, err);
    if (ret == 0)
        ret = find_out(s, err);
    if (ret < 0)
        return ret;
    ret = machine_init(&s->machine, &s->stub, &s->description.layout,
                       qemu_process(s), err);
    if (ret == 0 && s->how.resume)
        s->was_running = was_running(s);
    return ret;
}

static int use_plugin(struct session *s, struct rhea_error *err)
{
    struct tracer *t = &s->tracer;
    pid_t qemu = qemu_process(s);
    int ret;

    if (s->is_kvm)
        return rhea_error_set(
            err, ENOTSUP,
            "under KVM QEMU translates no code, so its plugin "
            "sees none");
    if (!s->how.plugin && !qemu)
        return rhea_error_set(err, ENOENT,
                              "it is not known which process QEMU is: say "
                              "where its plugin's socket is");
    ret = link_open(&t->link, s->how.plugin, qemu, s->how.timeout, err);
    if (ret == 0)
        ret = link_attach(&t->link, t->frames, err);
    if (ret == 0)
        t->way = &way_plugin;
    else
        link_close(&t->link);
    return ret;
}

static int choose_way(struct session *s, struct rhea_error *err)
{
    struct rhea_error why;

    if (s->how.way == SESSION_PLUGIN)
        return use_plugin(s, err);
    if (s->how.way == SESSION_HARDWARE ||
        (s->how.way == SESSION_AUTO && s->is_kvm)) {
        s->tracer.way = &way_hardware;
    } else if (s->how.way == SESSION_AUTO && s->is_qemu) {
        if (use_plugin(s, &why) < 0)
            snprintf(s->no_plugin, sizeof(s->no_plugin), "%.*s",
                     (int)sizeof(s->no_plugin) - 1, why.text);
    }
    return 0;
}

int session_open(struct session *s, const struct session_how *how,
                 struct rhea_error *err)
{
    int ret;

    *s = (struct session){.how = *how,
                          .listener = -1,
                          .turned_away = -1,
                          .frame = -1,
                          .gdb = {.fd = -1, .dead = true}};
    ret = open_stub(s, err);
    if (ret == 0)
        ret = tracer_init(&s->tracer, &s->machine, &s->description, how->file,
                          how->limit, err);
    s->tracer.probe = (struct probe){.qemu = qemu_process(s),
                                     .kvm = s->is_kvm,
                                     .layout = &s->description.layout};
    if (ret == 0 && how->arch)
        ret = session_choose_view(s, err);
    if (ret == 0)
        ret = choose_way(s, err);
    if (ret == 0)
        ret = wire_listen(how->listen, &s->listener, s->address,
                          sizeof(s->address), err);
    if (ret < 0) {
        bool made = s->tracer.frames != NULL;

        session_close(s);
        if (made)
            unlink(how->file);
    }
    return ret;
}

/* A tracepoint was quicker than the interrupt, which now waits as a signal that
 * would end the program. */
static void take_interrupt(struct session *s)
{
    const char *packet = s->stub.vcont ? "vCont;c" : "c";

    if (stub_resume(&s->stub, packet, strlen(packet), NULL) == 0)
        (void)stub_wait(&s->stub, s->how.timeout, NULL);
}

/* Of QEMU's processes the first is the one that there is. Other stubs leave
 * breakpoints where they are. */
static void let_go(struct session *s, bool interrupted)
{
    uint64_t process = s->is_qemu ? 1 : session_process(s->machine.thread);
    const char *reply;

    if (!s->is_qemu) {
        tracer_stop(&s->tracer, FRAMES_STOPPED);
        breaks_remove_gdb(&s->tracer.breaks);
        (void)breaks_sync(&s->tracer.breaks, &s->stub, NULL, NULL);
        if (interrupted && strncmp(s->stub.stop, "T02", 3) != 0)
            take_interrupt(s);
    }
    if (process && stub_has(&s->stub, "multiprocess+"))
        (void)stub_callf(&s->stub, &reply, NULL, "D;%" PRIx64, process);
    else
        (void)stub_callf(&s->stub, &reply, NULL, "D");
}

/* QEMU removes all breakpoints at `D`; a client that only hangs up leaves them
 * there, and the guest would stop at the next one for good. */
void session_leave(struct session *s)
{
    bool running = s->stub.running;
    int ret = 0;

    if (s->stub.wire.dead || s->how.child)
        return;
    if (running)
        ret = stub_interrupt(&s->stub, NULL);
    if (ret == 0 && s->stub.running)
        ret = stub_wait(&s->stub, s->how.timeout, NULL);
    if (ret == 0)
        let_go(s, running);
}

void session_close(struct session *s)
{
    if (s->listener >= 0)
        close(s->listener);
    if (s->address[0] && strchr(s->address, '/'))
        unlink(s->address);
    if (s->tracer.frames)
        tracer_finish(&s->tracer);
    stub_close(&s->stub);
    wire_finish(&s->gdb);
    packet_text_finish(&s->reply);
    free(s->lines);
    view_finish(&s->view);
    description_finish(&s->description);
    if (s->turned_away >= 0)
        close(s->turned_away);
    *s = (struct session){
        .listener = -1, .turned_away = -1, .gdb = {.fd = -1, .dead = true}};
}

bool session_is_foreign(const struct session *s, const char *thread)
{
    uint64_t process = session_process(thread);

    return !s->is_qemu && s->process && process && process != s->process;
}

/* A gdb whose machine is gone says nothing, and keeps others out: the system
 * asks for a sign of life, after a minute of silence. */
static void watch_over(int fd)
{
    static const int on = 1, idle = 60, pause = 10, tries = 3;

    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &pause, sizeof(pause));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &tries, sizeof(tries));
}

int session_accept(struct session *s)
{
    int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return -EAGAIN;
    watch_over(fd);
    if (wire_init(&s->gdb, fd, false, NULL) < 0)
        return -ENOMEM;
    s->gdb_serial++;
    s->n_uploads = 0;
    s->packet_waits = false;
    s->frame = -1;
    return 0;
}

/* There is one already. The newcomer gets a reason, once it has asked its first
 * question (what comes before that, it throws away), and the end of the
 * connection; it is closed with the next one, so that the reason is read. */
void session_turn_away(struct session *s)
{
    enum { PATIENCE = 300 /* ms for its question */ };
    static const char reason[] = "E.another gdb is connected to rhea-trace";
    struct pollfd p = {.fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC),
                       .events = POLLIN};
    struct packet_text text = {0};

    if (p.fd < 0)
        return;
    if (s->turned_away >= 0)
        close(s->turned_away);
    s->turned_away = p.fd;
    packet_puts(&text, "+");
    packet_put_frame(&text, reason, sizeof(reason) - 1);
    if (poll(&p, 1, PATIENCE) > 0 && !text.failed)
        (void)send(p.fd, text.data, text.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    packet_text_finish(&text);
    (void)shutdown(p.fd, SHUT_WR);
}

/* --- packets ------------------------------------------------------------- */

enum { MONITOR_MAX = 16 << 20 /* bytes of a command's output */ };

/* The handler of a packet; NULL: it goes to the stub. */
static const struct session_packet *
session_find(const struct session_packet *list, const char *packet, size_t len)
{
    for (; list->name; list++) {
        size_t n = strlen(list->name);

        if (len >= n && !memcmp(packet, list->name, n) &&
            (!list->exact || len == n))
            return list;
    }
    return NULL;
}

int session_ok(struct session *s)
{
    packet_puts(&s->reply, "OK");
    return 0;
}

int session_refuse(struct session *s, const struct rhea_error *err)
{
    packet_text_clear(&s->reply);
    packet_printf(&s->reply, "E.%s", err->text);
    return 0;
}

int session_forward(struct session *s, const char *packet, size_t len,
                    struct rhea_error *err)
{
    const char *reply;
    size_t reply_len, total = 0;
    int ret = stub_call(&s->stub, packet, len, &reply, &reply_len, err);

    /* Of a monitor's command there is an answer for each piece of output. */
    while (ret == 0 && !strncmp(packet, "qRcmd,", 6) && reply[0] == 'O' &&
           reply[1] != 'K') {
        total += reply_len;
        wire_queue(&s->gdb, reply, reply_len);
        (void)wire_flush(&s->gdb, s->how.timeout, NULL);
        ret = stub_answer(&s->stub, &reply, &reply_len, err);
        if (ret == 0 && total > MONITOR_MAX) {
            s->stub.wire.dead = true;
            ret = rhea_error_set(err, EFBIG,
                                 "the stub's output of a command has no end");
        }
    }
    if (ret == 0)
        packet_put(&s->reply, reply, reply_len);
    return ret;
}

int session_put_part(struct session *s, const char *text, size_t len,
                     struct packet_cursor part, struct rhea_error *err)
{
    uint64_t offset, size;

    if (!packet_number(&part, &offset) || !packet_skip(&part, ",") ||
        !packet_number(&part, &size))
        return rhea_error_set(err, EINVAL,
                              "gdb asks for an unknown part of an object");
    offset = RHEA_MIN(offset, (uint64_t)len);
    size = RHEA_MIN(size, (uint64_t)PACKET_MAX / 4);
    packet_puts(&s->reply, len - offset > size ? "m" : "l");
    packet_put(&s->reply, text + offset, (size_t)RHEA_MIN(len - offset, size));
    return 0;
}

static int answer(struct session *s, struct rhea_error *err)
{
    if (s->reply.failed)
        s->gdb.dead = true;
    else
        wire_queue(&s->gdb, s->reply.data ? s->reply.data : "", s->reply.len);
    (void)err;
    (void)wire_flush(&s->gdb, s->how.timeout, NULL);
    return 0;
}

static int run_on(struct session *s, struct rhea_error *err)
{
    const char *packet = s->stub.vcont ? "vCont;c" : "c";

    s->was_running = false;
    return session_run(s, packet, strlen(packet), err);
}

/* gdb waits for a stop that will not come: tell why, as output of the guest's,
 * before the connection closes. */
static int say_goodbye(struct session *s, int ret, const struct rhea_error *err)
{
    static const char name[] = "rhea-trace: ";

    packet_puts(&s->reply, "O");
    packet_put_hex(&s->reply, name, sizeof(name) - 1);
    packet_put_hex(&s->reply, err->text, strlen(err->text));
    packet_put_hex(&s->reply, "\n", 1);
    (void)answer(s, NULL);
    return ret;
}

static int resume(struct session *s, const char *packet, size_t len,
                  struct rhea_error *err)
{
    unsigned serial = s->gdb_serial;
    int ret;

    if (s->frame >= 0) {
        packet_puts(&s->reply, "E.a trace frame does not run: `tfind none`");
        return answer(s, err);
    }
    ret = session_run(s, packet, len, err);
    if (s->gdb.fd < 0 || serial != s->gdb_serial)
        return ret;
    if (ret < 0 && s->stub.wire.dead)
        return say_goodbye(s, ret, err);
    if (ret == -EINTR)
        return ret;
    if (ret < 0) {
        (void)session_refuse(s, err);
        return answer(s, err);
    }
    packet_puts(&s->reply, s->refused ? s->refusal : s->stub.stop);
    return answer(s, err);
}

static int handle(struct session *s, const char *packet, size_t len,
                  struct rhea_error *err)
{
    const struct session_packet *p = NULL;
    int ret;

    packet_text_clear(&s->reply);
    if (s->frame >= 0)
        p = session_find(session_look_packets, packet, len);
    if (!p)
        p = session_find(session_trace_packets, packet, len);
    if (!p)
        p = session_find(session_view_packets, packet, len);
    if (!p)
        p = session_find(session_base_packets, packet, len);
    if (!p && session_is_resume(packet, len))
        return resume(s, packet, len, err);
    if (p) {
        size_t n = strlen(p->name);

        ret =
            p->handle(s, packet_cursor(packet + n, len - n), packet, len, err);
    } else {
        ret = session_forward(s, packet, len, err);
    }
    if (ret < 0 && s->stub.wire.dead) {
        /* The last answer. */
        (void)session_refuse(s, err);
        (void)answer(s, err);
        return ret;
    }
    if (ret < 0)
        ret = session_refuse(s, err);
    if (ret == 0)
        ret = answer(s, err);
    if (ret >= 0 && s->leaving) {
        /* It runs on while gdb makes up its mind to close the connection, or
         * has another wish. */
        s->leaving = false;
        return run_on(s, err);
    }
    return ret < 0 ? ret : 0;
}

/* A copy, since the reader's buffer is used by what comes next. */
static int handle_waiting(struct session *s, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *packet = malloc(s->gdb.in.len + 1);
    size_t len = s->gdb.in.len;

    s->packet_waits = false;
    if (!packet)
        return rhea_error_errno(err, ENOMEM, "cannot answer gdb");
    memcpy(packet, s->gdb.in.data, len + 1);
    return handle(s, packet, len, err);
}

/* --- serving ------------------------------------------------------------- */

/* gdb went while the guest stood still. */
static int lose_gdb(struct session *s, struct rhea_error *err)
{
    struct tracer *t = &s->tracer;

    wire_finish(&s->gdb);
    s->frame = -1;
    s->packet_waits = false;
    breaks_remove_gdb(&t->breaks);
    if (tracer_is_running(t) && frames_control(t->frames)->disconnected)
        s->was_running = true;
    else
        tracer_stop(t, FRAMES_DISCONNECTED);
    return breaks_sync(&t->breaks, &s->stub, NULL, err);
}

/* Wait until FD has something, while the guest stands still. */
static int wait_for(struct session *s, int fd, struct rhea_error *err)
{
    int others = fd == s->listener ? -1 : s->listener;
    struct pollfd p[3] = {{.fd = fd, .events = POLLIN},
                          {.fd = s->stub.wire.fd, .events = POLLIN},
                          {.fd = others, .events = POLLIN}};

    if (s->how.stop && *s->how.stop)
        return -EINTR;
    if (ppoll(p, 3, NULL, s->how.signals) < 0)
        return errno == EINTR ? 0 : -errno;
    /* gdb may just have gone. */
    if (p[2].revents && !p[0].revents)
        session_turn_away(s);
    if (p[1].revents) {
        /* It has nothing to say now, so it is going; or it tells of a stop that
         * we know of. */
        int ret = wire_fill(&s->stub.wire, err);

        if (ret == -ECONNRESET)
            return ret;
        while (wire_next(&s->stub.wire) != PACKET_NONE)
            ;
    }
    return p[0].revents ? 1 : 0;
}

static int serve_nobody(struct session *s, struct rhea_error *err)
{
    int ret;

    if (s->was_running)
        return run_on(s, err);
    ret = wait_for(s, s->listener, err);
    if (ret > 0)
        (void)session_accept(s);
    return ret < 0 ? ret : 0;
}

static int serve_gdb(struct session *s, struct rhea_error *err)
{
    enum packet_event event;
    int ret;

    if (s->packet_waits)
        return handle_waiting(s, err);
    event = wire_next(&s->gdb);
    if (event == PACKET_DATA)
        return handle_waiting(s, err);
    if (event == PACKET_NACK && !s->gdb.no_ack)
        wire_queue_bytes(&s->gdb, s->gdb.last.data, s->gdb.last.len);
    if (event != PACKET_NONE)
        return 0;
    if (wire_flush(&s->gdb, s->how.timeout, NULL) < 0)
        return lose_gdb(s, err);
    ret = wait_for(s, s->gdb.fd, err);
    if (ret > 0 && wire_fill(&s->gdb, NULL) == -ECONNRESET)
        return lose_gdb(s, err);
    return ret < 0 ? ret : 0;
}

/* So says what becomes of the trace. */
static void note_end(struct session *s)
{
    static const char text[] = "the guest has ended";
    struct tracer *t = &s->tracer;

    if (!tracer_is_running(t))
        return;
    (void)experiment_note(t->experiment, NOTE_STOP, text, sizeof(text) - 1,
                          NULL);
    (void)frames_publish(t->frames, t->experiment, NULL);
    frames_stop(t->frames, FRAMES_STOPPED, 0, NULL);
}

int session_serve(struct session *s, struct rhea_error *err)
{
    int ret = 0;

    if (s->how.ready)
        s->how.ready(s->how.opaque, s->address);
    while (ret == 0)
        ret = s->gdb.fd < 0 ? serve_nobody(s, err) : serve_gdb(s, err);
    if (!s->stub.wire.dead || ret != -ECONNRESET)
        return ret;
    note_end(s);
    return 0;
}
