/* SPDX-License-Identifier: MIT */
#include "gdb/link.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

int link_open(struct link *l, const char *path, pid_t pid, int timeout,
              struct rhea_error *err)
{
    struct sockaddr_un address = {0};
    struct ucred peer = {0};
    socklen_t len, peer_len = sizeof(peer);
    int ret = link_address(&address, &len, path, pid);

    *l = (struct link){.fd = -1, .path = path, .pid = pid, .timeout = timeout};
    if (ret < 0)
        return rhea_error_set(err, -ret, "%s: the path is too long", path);
    l->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (l->fd < 0)
        return rhea_error_errno(err, errno, "cannot make a socket");
    if (connect(l->fd, (struct sockaddr *)(void *)&address, len) < 0) {
        rhea_error_set(err, ENOENT, "there is no plugin of rhea-trace in QEMU");
        link_close(l);
        return -ENOENT;
    }
    /* Anybody may take a name in the abstract namespace. */
    if (!path &&
        (getsockopt(l->fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_len) < 0 ||
         peer.pid != pid)) {
        rhea_error_set(err, EPERM,
                       "what listens in the plugin's place is not QEMU");
        link_close(l);
        return -EPERM;
    }
    return 0;
}

void link_close(struct link *l)
{
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
}

static int send_message(const struct link *l, enum link_kind kind, int fd,
                        struct rhea_error *err)
{
    struct link_message m = {.magic = LINK_MAGIC,
                             .kind = kind,
                             .frames = sizeof(struct frames_control)};
    struct iovec part = {&m, sizeof(m)};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr whole = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd >= 0) {
        struct cmsghdr *head;

        whole.msg_control = &control;
        whole.msg_controllen = sizeof(control);
        head = CMSG_FIRSTHDR(&whole);
        *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                                 .cmsg_type = SCM_RIGHTS,
                                 .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(head), &fd, sizeof(fd));
    }
    if (sendmsg(l->fd, &whole, MSG_NOSIGNAL) < 0)
        return rhea_error_errno(err, errno, "the plugin in QEMU is gone");
    return 0;
}

/* An answer. The plugin, once it does not answer, is no longer asked. */
static int receive(struct link *l, enum link_kind kind, struct link_message *m,
                   struct rhea_error *err)
{
    struct pollfd p = {.fd = l->fd, .events = POLLIN};
    ssize_t n;
    int ready;

    do
        ready = poll(&p, 1, l->timeout);
    while (ready < 0 && errno == EINTR);
    if (ready == 0)
        return rhea_error_set(err, ETIMEDOUT,
                              "the plugin in QEMU does not answer");
    n = recv(l->fd, m, sizeof(*m), 0);
    if (n <= 0)
        return rhea_error_set(err, ECONNRESET, "the plugin in QEMU is gone");
    if (n != sizeof(*m) || m->magic != LINK_MAGIC || m->kind != kind)
        return rhea_error_set(
            err, EPROTO,
            "the plugin in QEMU is of another version of rhea-trace");
    m->text[sizeof(m->text) - 1] = 0;
    return 0;
}

static int call(struct link *l, enum link_kind kind, int fd,
                struct link_message *m, struct rhea_error *err)
{
    int ret;

    if (l->fd < 0)
        return rhea_error_set(err, ENOTCONN, "the plugin in QEMU is gone");
    ret = send_message(l, kind, fd, err);
    if (ret == 0)
        ret = receive(l, kind, m, err);
    if (ret < 0) {
        link_close(l);
        return ret;
    }
    if (m->status < 0)
        return rhea_error_set(err, -m->status, "%s", m->text);
    return 0;
}

int link_attach(struct link *l, const struct frames *f, struct rhea_error *err)
{
    struct link_message m = {0};
    int ret = call(l, LINK_ATTACH, frames_fd(f), &m, err);

    if (ret == 0)
        memcpy(l->text, m.text, sizeof(l->text));
    return ret;
}

int link_load(struct link *l, struct rhea_error *err)
{
    struct link_message m = {0};

    return call(l, LINK_LOAD, -1, &m, err);
}

int link_unload(struct link *l, struct rhea_error *err)
{
    struct link_message m = {0};

    return call(l, LINK_UNLOAD, -1, &m, err);
}
