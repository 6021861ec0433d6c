/* SPDX-License-Identifier: MIT */
#include "gdb/stub.h"

#include <errno.h>
#include <stdarg.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum {
    TRANSFER_MAX = 4 << 20, /* bytes of an object, or of a command's output */
    DRAIN = 16, /* stops that nobody asked for, and packets in their place */
};

/* --- packets ------------------------------------------------------------- */

static int fail(struct stub *s, struct rhea_error *err)
{
    s->wire.dead = true;
    rhea_error_prefix(err, "the stub");
    return err ? -err->code : -EIO;
}

static int nonsense(struct stub *s, const char *what, struct rhea_error *err)
{
    s->wire.dead = true;
    return rhea_error_set(err, EPROTO,
                          "the stub: its answer to %s makes no "
                          "sense",
                          what);
}

void stub_queue(struct stub *s, const void *payload, size_t len)
{
    wire_queue(&s->wire, payload, len);
}

void stub_queuef(struct stub *s, const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    stub_queue(s, text, strlen(text));
}

/* Whether a packet is one of T05..., S05, W00, X09, N: the guest stands still.
 * gdbserver writes an exit code in one digit where that is enough. */
static bool looks_like_stop(const char *p, size_t len)
{
    bool digit = len >= 2 && packet_hex_digit(p[1]) >= 0;
    bool two = digit && len >= 3 && packet_hex_digit(p[2]) >= 0;

    return (two && strchr("TS", p[0])) || (digit && strchr("WX", p[0])) ||
           (len == 1 && p[0] == 'N');
}

bool stub_is_stop(struct stub *s, const char *packet, size_t len)
{
    if (!looks_like_stop(packet, len))
        return false;
    s->running = false;
    s->no_run = packet[0] == 'W' || packet[0] == 'X';
    snprintf(s->stop, sizeof(s->stop), "%s", packet);
    return true;
}

/* The next packet, whatever it is. */
static int receive(struct stub *s, int timeout, const char **packet,
                   size_t *len, struct rhea_error *err)
{
    int64_t until = wire_now() + timeout;
    enum packet_event event;
    int ret;

    do {
        int left = timeout;

        if (timeout >= 0)
            left = (int)RHEA_MAX(until - wire_now(), (int64_t)0);
        ret = wire_receive(&s->wire, left, &event, err);
    } while (ret == 0 && event != PACKET_DATA &&
             (timeout < 0 || wire_now() <= until));
    if (ret == 0 && event != PACKET_DATA)
        ret = -ETIMEDOUT;
    if (ret == -ETIMEDOUT)
        return rhea_error_set(err, ETIMEDOUT,
                              "there is no answer within %.1f s",
                              timeout / 1000.0);
    if (ret < 0)
        return ret;
    *packet = (const char *)s->wire.in.data;
    *len = s->wire.in.len;
    return 0;
}

static int answer_or_stop(struct stub *s, const char **reply, size_t *len,
                          struct rhea_error *err)
{
    int ret = receive(s, s->timeout, reply, len, err);

    return ret < 0 ? fail(s, err) : 0;
}

/* A stop that is told once more must not be taken for an answer, nor the answer
 * for the next one. */
int stub_answer(struct stub *s, const char **reply, size_t *len,
                struct rhea_error *err)
{
    int ret = answer_or_stop(s, reply, len, err);

    for (unsigned i = 0; i < DRAIN && ret == 0; i++) {
        if (!looks_like_stop(*reply, *len))
            return 0;
        ret = answer_or_stop(s, reply, len, err);
    }
    if (ret == 0)
        ret = nonsense(s, "a packet", err);
    return ret;
}

int stub_call(struct stub *s, const void *payload, size_t len,
              const char **reply, size_t *reply_len, struct rhea_error *err)
{
    stub_queue(s, payload, len);
    return stub_answer(s, reply, reply_len, err);
}

int stub_callf(struct stub *s, const char **reply, struct rhea_error *err,
               const char *fmt, ...)
{
    char text[512];
    va_list args;
    size_t len;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return stub_call(s, text, strlen(text), reply, &len, err);
}

int stub_expect_ok(struct stub *s, const char *what, struct rhea_error *err)
{
    const char *reply;
    size_t len;
    int ret = stub_answer(s, &reply, &len, err);

    if (ret < 0)
        return ret;
    if (!strcmp(reply, "OK"))
        return 0;
    return rhea_error_set(err, EIO, "the stub did not %s: it answered `%.40s'",
                          what, reply);
}

/* --- longer answers ------------------------------------------------------ */

static int append(char **text, size_t *len, const void *more, size_t more_len,
                  struct rhea_error *err)
{
    char *grown;

    if (more_len > TRANSFER_MAX - *len)
        return rhea_error_set(err, EFBIG, "the stub: an answer has no end");
    grown = realloc(*text, *len + more_len + 1);
    if (!grown)
        return rhea_error_errno(err, ENOMEM, "cannot read from the stub");
    memcpy(grown + *len, more, more_len);
    *text = grown;
    *len += more_len;
    grown[*len] = 0;
    return 0;
}

int stub_transfer(struct stub *s, const char *object, const char *annex,
                  char **out, size_t *out_len, struct rhea_error *err)
{
    size_t part = RHEA_MAX(s->packet_size, (size_t)256) - 16, len = 0;
    RHEA_AUTO_FREE char *text = NULL;
    char packet[512];

    for (;;) {
        const char *reply;
        size_t reply_len;
        int ret;

        snprintf(packet, sizeof(packet), "qXfer:%s:read:%s:%zx,%zx", object,
                 annex, len, part);
        ret = stub_call(s, packet, strlen(packet), &reply, &reply_len, err);
        if (ret < 0)
            return ret;
        if (reply_len == 0 || reply[0] == 'E')
            return rhea_error_set(err, ENOTSUP, "the stub has no %s %s", object,
                                  annex);
        if ((reply[0] != 'm' && reply[0] != 'l') ||
            (reply[0] == 'm' && reply_len == 1))
            return nonsense(s, packet, err);
        ret = append(&text, &len, reply + 1, reply_len - 1, err);
        if (ret < 0)
            return ret;
        if (reply[0] == 'l') {
            *out = rhea_steal(text);
            *out_len = len;
            return 0;
        }
    }
}

/* Console output, `O` and hexadecimal, comes in pieces up to an OK. */
int stub_monitor(struct stub *s, const char *command, char **out,
                 struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    struct packet_text packet = {0};
    size_t len = 0;
    int ret;

    packet_puts(&packet, "qRcmd,");
    packet_put_hex(&packet, command, strlen(command));
    stub_queue(s, packet.data, packet.len);
    packet_text_finish(&packet);
    ret = append(&text, &len, "", 0, err);
    while (ret == 0) {
        uint8_t bytes[WIRE_READ / 2];
        struct packet_cursor c;
        const char *reply;
        size_t n;

        ret = stub_answer(s, &reply, &n, err);
        if (ret < 0)
            return ret;
        if (!strcmp(reply, "OK")) {
            *out = rhea_steal(text);
            return 0;
        }
        if (n == 0 || reply[0] == 'E')
            return rhea_error_set(
                err, ENOTSUP, "the stub has no monitor command %s", command);
        c = packet_cursor(reply + 1, n - 1);
        if (reply[0] != 'O' || !packet_bytes(&c, bytes, sizeof(bytes), &n) ||
            !packet_at_end(&c))
            return nonsense(s, command, err);
        ret = append(&text, &len, bytes, n, err);
    }
    return ret;
}

/* --- life ---------------------------------------------------------------- */

bool stub_has(const struct stub *s, const char *word)
{
    size_t len = strlen(word);
    const char *p = s->features;

    while ((p = strstr(p, word))) {
        if ((p == s->features || p[-1] == ';') &&
            (p[len] == 0 || p[len] == ';' || word[len - 1] == '='))
            return true;
        p += len;
    }
    return false;
}

/* QEMU tells of the stop that a connection causes, sooner or later. When `qC`
 * is answered, everything before it has been. */
static int settle(struct stub *s, struct rhea_error *err)
{
    const char *reply;
    size_t len;
    int ret = 0;

    stub_queue(s, "?", 1);
    stub_queue(s, "qC", 2);
    for (unsigned i = 0; i < DRAIN; i++) {
        ret = answer_or_stop(s, &reply, &len, err);
        if (ret < 0)
            return ret;
        if (!stub_is_stop(s, reply, len))
            return s->stop[0] ? 0 : nonsense(s, "?", err);
    }
    return nonsense(s, "?", err);
}

static int negotiate(struct stub *s, struct rhea_error *err)
{
    const char *reply, *size;
    int ret;

    ret = stub_callf(s, &reply, err,
                     "qSupported:multiprocess+;swbreak+;hwbreak+;"
                     "vContSupported+;xmlRegisters=i386");
    if (ret < 0)
        return ret;
    snprintf(s->features, sizeof(s->features), "%s", reply);
    size = strstr(s->features, "PacketSize=");
    s->packet_size = 400; /* what every server takes */
    if (size) {
        struct packet_cursor c = packet_cursor(size + 11, strlen(size + 11));
        uint64_t n;

        if (packet_number(&c, &n) && n >= 64)
            s->packet_size = (size_t)RHEA_MIN(n, (uint64_t)PACKET_MAX);
    }
    if (stub_has(s, "QStartNoAckMode+")) {
        ret = stub_callf(s, &reply, err, "QStartNoAckMode");
        if (ret == 0 && !strcmp(reply, "OK"))
            ret = wire_flush(&s->wire, s->timeout, err);
        s->wire.no_ack = true;
    }
    return ret;
}

int stub_open(struct stub *s, const char *address, int timeout,
              struct rhea_error *err)
{
    const char *reply = "";
    int fd, ret;

    *s = (struct stub){.wire = {.fd = -1, .dead = true}, .timeout = timeout};
    ret = wire_connect(address, &fd, err);
    /* A socket's file is there a moment before somebody listens. */
    for (unsigned i = 0; i < 100 && ret == -ECONNREFUSED; i++) {
        usleep(10000);
        ret = wire_connect(address, &fd, err);
    }
    if (ret < 0)
        return ret;
    ret = wire_init(&s->wire, fd, true, err);
    if (ret == 0)
        ret = negotiate(s, err);
    if (ret == 0) {
        ret = wire_flush(&s->wire, timeout, err);
        s->wire.quiet = true;
    }
    if (ret == 0)
        ret = settle(s, err);
    if (ret == 0)
        ret = stub_callf(s, &reply, err, "vCont?");
    if (ret == -ETIMEDOUT)
        ret = rhea_error_set(err, ETIMEDOUT,
                             "there is no answer within %.1f s: is it a stub "
                             "for gdb, and does no other debugger use it?",
                             timeout / 1000.0);
    if (ret < 0) {
        rhea_error_prefix(err, "%s", address);
        stub_close(s);
        return ret;
    }
    s->vcont = strstr(reply, ";c") && strstr(reply, ";s");
    return 0;
}

void stub_close(struct stub *s)
{
    if (s->wire.bytes)
        wire_finish(&s->wire);
    *s = (struct stub){.wire = {.fd = -1, .dead = true}};
}

/* --- running ------------------------------------------------------------- */

int stub_resume(struct stub *s, const void *payload, size_t len,
                struct rhea_error *err)
{
    int ret;

    stub_queue(s, payload, len);
    ret = wire_flush(&s->wire, s->timeout, err);
    if (ret < 0)
        return fail(s, err);
    s->running = true;
    s->interrupts = 0;
    s->unheard = false;
    return 0;
}

/* Where QEMU waits for an acknowledgement it takes the first byte as that, and
 * would so take 0x03. Where it does not, it stops at the first byte, and tells
 * of it only if that is 0x03 (from 8.1 on). */
int stub_interrupt(struct stub *s, struct rhea_error *err)
{
    const uint8_t bytes[] = {'+', PACKET_INTERRUPT_BYTE};
    size_t skip = s->wire.no_ack || !s->unheard;
    int ret;

    s->interrupts++;
    s->unheard = false;
    wire_queue_bytes(&s->wire, bytes + skip, sizeof(bytes) - skip);
    ret = wire_flush(&s->wire, s->timeout, err);
    return ret < 0 ? fail(s, err) : 0;
}

/* An interrupt that came to QEMU behind the packet has been swallowed. */
int stub_hear(struct stub *s, struct rhea_error *err)
{
    s->unheard = true;
    if (!s->interrupts || s->interrupts > DRAIN || s->wire.no_ack)
        return 0;
    return stub_interrupt(s, err);
}

int stub_wait(struct stub *s, int timeout, struct rhea_error *err)
{
    int64_t until = timeout < 0 ? -1 : wire_now() + timeout;
    const char *packet;
    size_t len;
    int ret;

    for (;;) {
        int left = timeout;

        if (timeout >= 0)
            left = (int)RHEA_MAX(until - wire_now(), (int64_t)0);
        ret = receive(s, left, &packet, &len, err);
        if (ret < 0 || stub_is_stop(s, packet, len))
            break;
        ret = stub_hear(s, err);
        if (ret < 0)
            break;
    }
    if (ret < 0 && ret != -ETIMEDOUT)
        return fail(s, err);
    return ret;
}
