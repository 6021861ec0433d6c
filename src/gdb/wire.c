/* SPDX-License-Identifier: MIT */
#include "gdb/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"

int64_t wire_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int wire_init(struct wire *w, int fd, bool runs, struct rhea_error *err)
{
    int one = 1, ret;

    *w = (struct wire){.fd = fd};
    /* Packets are small and wait for each other's answers. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    ret = packet_reader_init(&w->in, runs, err);
    w->bytes = malloc(WIRE_READ);
    if (ret == 0 && !w->bytes)
        ret = rhea_error_errno(err, ENOMEM, "cannot read packets");
    if (ret == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        ret = rhea_error_errno(err, errno, "cannot set up a connection");
    if (ret < 0)
        wire_finish(w);
    return ret;
}

void wire_finish(struct wire *w)
{
    if (w->fd >= 0)
        close(w->fd);
    packet_reader_finish(&w->in);
    packet_text_finish(&w->last);
    free(w->bytes);
    free(w->out);
    *w = (struct wire){.fd = -1, .dead = true};
}

/* --- out ----------------------------------------------------------------- */

void wire_queue_bytes(struct wire *w, const void *bytes, size_t len)
{
    if (w->dead)
        return;
    if (len > WIRE_MAX_OUT - w->out_len) {
        w->dead = true; /* the peer does not read */
        return;
    }
    if (w->out_len + len > w->out_room) {
        size_t room = RHEA_MAX(2 * w->out_room, w->out_len + len + 4096);
        uint8_t *grown = realloc(w->out, room);

        if (!grown) {
            w->dead = true;
            return;
        }
        w->out = grown;
        w->out_room = room;
    }
    memcpy(w->out + w->out_len, bytes, len);
    w->out_len += len;
}

void wire_queue(struct wire *w, const void *payload, size_t len)
{
    packet_text_clear(&w->last);
    packet_put_frame(&w->last, payload, len);
    if (w->last.failed)
        w->dead = true;
    else
        wire_queue_bytes(w, w->last.data, w->last.len);
}

static int gone(struct wire *w, struct rhea_error *err)
{
    w->dead = true;
    return rhea_error_set(err, ECONNRESET, "the connection is closed");
}

static int wait_for(const struct wire *w, short events, int64_t until)
{
    struct pollfd p = {.fd = w->fd, .events = events};
    int64_t left = until < 0 ? -1 : RHEA_MAX(until - wire_now(), (int64_t)0);
    int n = poll(&p, 1, (int)RHEA_MIN(left, (int64_t)1000000));

    return n < 0 ? -errno : n;
}

int wire_flush(struct wire *w, int timeout, struct rhea_error *err)
{
    int64_t until = timeout < 0 ? -1 : wire_now() + timeout;
    size_t done = 0;

    while (!w->dead && done < w->out_len) {
        ssize_t n = send(w->fd, w->out + done, w->out_len - done, MSG_NOSIGNAL);

        if (n > 0) {
            done += (size_t)n;
        } else if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            n = wait_for(w, POLLOUT, until);
            if (n == 0) {
                w->dead = true;
                return rhea_error_set(err, ETIMEDOUT,
                                      "the other side does not read what it "
                                      "is sent");
            }
        } else {
            w->dead = true;
        }
    }
    w->out_len = 0;
    return w->dead ? gone(w, err) : 0;
}

/* --- in ------------------------------------------------------------------ */

enum packet_event wire_next(struct wire *w)
{
    const uint8_t *bytes = w->bytes + w->at;
    size_t left = w->len - w->at;
    enum packet_event event;

    w->in.no_check = w->no_ack;
    event = packet_read(&w->in, &bytes, &left);
    w->at = w->len - left;
    if (event == PACKET_DATA && !w->no_ack && !w->quiet)
        wire_queue_bytes(w, "+", 1);
    if (event == PACKET_BAD && !w->no_ack && !w->quiet)
        wire_queue_bytes(w, "-", 1);
    return event;
}

int wire_fill(struct wire *w, struct rhea_error *err)
{
    ssize_t n;

    if (w->dead)
        return gone(w, err);
    if (w->at < w->len)
        return 0;
    n = recv(w->fd, w->bytes, WIRE_READ, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return -EAGAIN;
    if (n <= 0)
        return gone(w, err);
    w->at = 0;
    w->len = (size_t)n;
    return 0;
}

/* Whether to go on with the packets: the last one again, if it is asked for. */
static bool is_chatter(struct wire *w, enum packet_event event)
{
    if (event == PACKET_NACK && !w->no_ack && w->last.len)
        wire_queue_bytes(w, w->last.data, w->last.len);
    return event == PACKET_ACK || event == PACKET_NACK || event == PACKET_BAD;
}

int wire_receive(struct wire *w, int timeout, enum packet_event *event,
                 struct rhea_error *err)
{
    int64_t until = timeout < 0 ? -1 : wire_now() + timeout;

    for (;;) {
        bool late = until >= 0 && wire_now() > until;
        int ret;

        do
            *event = wire_next(w);
        while (is_chatter(w, *event));
        if (*event != PACKET_NONE)
            return 0;
        ret = wire_flush(w, timeout, err);
        if (ret == 0)
            ret = wire_fill(w, err);
        if (ret == -EAGAIN && !late)
            late = wait_for(w, POLLIN, until) == 0;
        else if (ret < 0 && ret != -EAGAIN)
            return ret;
        /* Also where bytes come all the time, and never a packet. */
        if (late)
            return rhea_error_set(err, ETIMEDOUT,
                                  "there is no answer within %.1f s",
                                  timeout / 1000.0);
    }
}
