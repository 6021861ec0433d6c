/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/control.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gdb/link.h"
#include "gdb/plugin/tracing.h"

static int listener = -1;
static char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];

/* Who is served. */
struct client {
    int fd;
    struct frames *frames; /* NULL: not attached */
    bool loaded;           /* what is in them is traced */
};

/* --- requests ------------------------------------------------------------ */

static int attach(struct client *c, const struct link_message *m, int fd,
                  struct rhea_error *err)
{
    if (fd < 0)
        return rhea_error_set(err, EPROTO, "no file came with the request");
    if (m->frames != sizeof(struct frames_control)) {
        close(fd);
        return rhea_error_set(
            err, EPROTO,
            "the plugin in QEMU is of another version of rhea-trace");
    }
    if (tracing_fault()) {
        close(fd);
        return rhea_error_set(err, ENOTSUP, "%s", tracing_fault());
    }
    if (c->frames) {
        close(fd);
        return rhea_error_set(err, EBUSY, "there is a file already");
    }
    return frames_attach_fd(&c->frames, fd, err);
}

static int load(struct client *c, struct rhea_error *err)
{
    struct tracing *t, *old = NULL;
    int ret;

    if (!c->frames)
        return rhea_error_set(err, EPROTO, "there is no file yet");
    ret = tracing_load(&t, c->frames, err);
    if (ret < 0)
        return ret;
    ret = tracing_replace(t, &old, err);
    tracing_free(ret < 0 ? t : old);
    c->loaded |= ret == 0;
    return ret;
}

static int unload(struct rhea_error *err)
{
    struct tracing *old = NULL;
    int ret = tracing_replace(NULL, &old, err);

    tracing_free(old);
    return ret;
}

static int handle(struct client *c, struct link_message *m, int fd,
                  struct rhea_error *err)
{
    int ret;

    switch (m->kind) {
    case LINK_ATTACH:
        ret = attach(c, m, fd, err);
        if (ret == 0)
            snprintf(m->text, sizeof(m->text), "%s",
                     qemu.official ? "registers by QEMU's plugin API"
                                   : "registers as QEMU 7.2 keeps them");
        return ret;
    case LINK_LOAD:
        return load(c, err);
    case LINK_UNLOAD:
        c->loaded = false;
        return unload(err);
    default:
        return rhea_error_set(err, EPROTO, "an unknown request");
    }
}

/* --- messages ------------------------------------------------------------ */

/* 1: a message, perhaps with a descriptor at *FD. 0: the other side is gone. */
static int receive(int from, struct link_message *m, int *fd)
{
    struct iovec part = {m, sizeof(*m)};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr whole = {.msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof(control)};
    struct cmsghdr *head;
    ssize_t n;

    do
        n = recvmsg(from, &whole, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    *fd = -1;
    if (n <= 0)
        return 0;
    head = CMSG_FIRSTHDR(&whole);
    if (head && head->cmsg_level == SOL_SOCKET &&
        head->cmsg_type == SCM_RIGHTS &&
        head->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(head), sizeof(*fd));
    return n == sizeof(*m) && m->magic == LINK_MAGIC;
}

static void reply(int to, struct link_message *m, int status,
                  const struct rhea_error *err)
{
    m->magic = LINK_MAGIC;
    m->status = status < 0 ? status : 0;
    if (status < 0)
        snprintf(m->text, sizeof(m->text), "%.*s", (int)sizeof(m->text) - 1,
                 err->text);
    (void)send(to, m, sizeof(*m), MSG_NOSIGNAL);
}

/* Another one while somebody is served. */
static void send_away(void)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    struct link_message m = {.kind = LINK_ATTACH};
    struct rhea_error err;

    if (fd < 0)
        return;
    rhea_error_set(&err, EBUSY, "another rhea-trace uses the plugin in QEMU");
    reply(fd, &m, -EBUSY, &err);
    close(fd);
}

static void serve_client(struct client *c)
{
    for (;;) {
        struct pollfd p[2] = {{.fd = c->fd, .events = POLLIN},
                              {.fd = listener, .events = POLLIN}};
        struct link_message m;
        struct rhea_error err = {0};
        int fd, ret;

        if (c->loaded && frames_is_running(frames_control(c->frames)))
            frames_go_ahead(c->frames);
        if (poll(p, 2, c->loaded ? FRAMES_AGAIN : -1) <= 0)
            continue;
        /* If the first one has gone, the other one is next. */
        if (!p[0].revents) {
            send_away();
            continue;
        }
        ret = receive(c->fd, &m, &fd);
        if (!ret) {
            if (fd >= 0)
                close(fd);
            return;
        }
        if (m.kind != LINK_ATTACH && fd >= 0)
            close(fd);
        ret = handle(c, &m, fd, &err);
        reply(c->fd, &m, ret, &err);
    }
}

/* Only whoever may do with QEMU as he likes. */
static bool is_allowed(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == geteuid() || peer.uid == 0);
}

static void *serve(void *opaque)
{
    (void)opaque;
    for (;;) {
        struct client c = {.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)};

        if (c.fd < 0) {
            if (errno != EINTR && errno != ECONNABORTED)
                usleep(100000); /* descriptors have run out, say */
            continue;
        }
        if (is_allowed(c.fd))
            serve_client(&c);
        close(c.fd);
        /* Frames stay as they are: that tracing went on until now is for
         * whoever opens them to see. */
        if (!tracing_fault())
            (void)unload(NULL);
        frames_close(c.frames);
    }
    return NULL;
}

/* --- life ---------------------------------------------------------------- */

int control_listen(const char *path, struct rhea_error *err)
{
    struct sockaddr_un address = {0};
    socklen_t len;
    int ret = link_address(&address, &len, path, getpid());

    if (ret < 0)
        return rhea_error_set(err, -ret, "%s: the path is too long", path);
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (listener < 0 ||
        bind(listener, (struct sockaddr *)(void *)&address, len) < 0 ||
        listen(listener, 4) < 0)
        return rhea_error_errno(err, errno, "%s: cannot listen there",
                                path ? path : "the plugin's own socket");
    snprintf(socket_path, sizeof(socket_path), "%s", path ? path : "");
    return 0;
}

/* Signals are QEMU's. */
void control_start(void)
{
    static bool started;
    pthread_t thread;
    sigset_t all, saved;

    if (started)
        return;
    started = true;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    if (pthread_create(&thread, NULL, serve, NULL) == 0)
        pthread_detach(thread);
    else
        tracing_set_fault("there is no room for another thread");
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
}

void control_end(void)
{
    if (socket_path[0])
        unlink(socket_path);
}
