/* SPDX-License-Identifier: MIT */
/*
 * The sockets of connections to an NBD server, up to its greeting.
 *
 * Servers of the protocol's first years do not say that the flags they send
 * mean something (NBD_FLAG_HAS_FLAGS, doc/proto.md "Transmission flags"), and
 * libnbd does not speak to these. For them the bit is set on the way: what
 * follows the greeting is the same ever since, and is handed on as it is.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "storage/nbd.h"

enum {
    OLD_GREETING = 152, /* magic, magic, size, flags, 124 bytes of zeroes */
    OLD_FLAGS_AT = 24,
    OLD_HAS_FLAGS = 1,
    RELAY_BYTES = 256 << 10,
};
#define NBD_MAGIC 0x4e42444d41474943ULL /* "NBDMAGIC" */
#define OLD_MAGIC 0x00420281861253ULL

/* What calls on FD may take; 0: any time. */
static void socket_set_limit(int fd, int64_t ms)
{
    struct timeval t = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
}

/* A socket connected to ADDRESS, or a negative errno. */
static int socket_try(int family, const struct sockaddr *address, socklen_t len,
                      int64_t ms)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0)
        return -errno;
    socket_set_limit(fd, ms);
    if (family != AF_UNIX)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(fd, address, len) == 0)
        return fd;
    int code = errno == EINPROGRESS || errno == EAGAIN ? ETIMEDOUT : errno;
    close(fd);
    return -code;
}

static int socket_open_unix(const struct nbd *n, int64_t ms,
                            struct rhea_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(n->path);
    if (len >= sizeof(address.sun_path))
        return rhea_error_set(err, ENAMETOOLONG,
                              "the path of the socket, '%s', is too long",
                              n->path);
    memcpy(address.sun_path, n->path, len);
    int fd = socket_try(AF_UNIX, (const struct sockaddr *)&address,
                        sizeof(address), ms);
    return fd >= 0 ? fd
                   : rhea_error_errno(err, -fd,
                                      "could not connect to the server of '%s'",
                                      storage_name(&n->head));
}

static int socket_open_tcp(const struct nbd *n, int64_t ms,
                           struct rhea_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int fd = -ENOENT, ret = getaddrinfo(n->host, n->port, &hints, &list);
    if (ret)
        return rhea_error_set(err, ENOENT,
                              "could not find the server of '%s': %s",
                              storage_name(&n->head), gai_strerror(ret));
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
        fd = socket_try(a->ai_family, a->ai_addr, a->ai_addrlen, ms);
    freeaddrinfo(list);
    return fd >= 0 ? fd
                   : rhea_error_errno(err, -fd,
                                      "could not connect to the server of '%s'",
                                      storage_name(&n->head));
}

/* Two sockets between which bytes are handed on. */
struct relay {
    int side[2];
    uint8_t buf[RELAY_BYTES];
};

static bool relay_send(int fd, const uint8_t *buf, size_t len)
{
    while (len) {
        ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);
        if (n <= 0 && !(n < 0 && errno == EINTR))
            return false;
        buf += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* Until either side ends the connection. */
static void *relay_run(void *opaque)
{
    struct relay *r = opaque;
    bool going = true;
    while (going) {
        struct pollfd p[2] = {{.fd = r->side[0], .events = POLLIN},
                              {.fd = r->side[1], .events = POLLIN}};
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            break;
        for (int i = 0; going && i < 2; i++) {
            if (!p[i].revents)
                continue;
            ssize_t n = recv(r->side[i], r->buf, sizeof(r->buf), 0);
            going = n > 0 && relay_send(r->side[!i], r->buf, (size_t)n);
        }
    }
    close(r->side[0]);
    close(r->side[1]);
    free(r);
    return NULL;
}

/* Take the greeting of the server at FD, mend it, and hand it on to the other
 * end of a new socket, with all that follows. Returns that one. */
static int relay_start(int fd, uint8_t greeting[OLD_GREETING])
{
    struct relay *r = calloc(1, sizeof(*r));
    pthread_t thread;
    int pair[2] = {-1, -1};
    if (!r || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        free(r);
        return -1;
    }
    greeting[OLD_FLAGS_AT + 3] |= OLD_HAS_FLAGS;
    r->side[0] = fd;
    r->side[1] = pair[1];
    if (recv(fd, r->buf, OLD_GREETING, MSG_WAITALL) == OLD_GREETING &&
        relay_send(pair[1], greeting, OLD_GREETING) &&
        pthread_create(&thread, NULL, relay_run, r) == 0) {
        pthread_detach(thread);
        return pair[0];
    }
    close(pair[0]);
    close(pair[1]);
    free(r);
    return -1;
}

/* Look at the greeting, which stays to be read. */
static int socket_greet(int fd)
{
    uint8_t greeting[OLD_GREETING];
    if (recv(fd, greeting, 16, MSG_PEEK | MSG_WAITALL) != 16 ||
        load_be64(greeting) != NBD_MAGIC ||
        load_be64(greeting + 8) != OLD_MAGIC)
        return fd;
    if (recv(fd, greeting, OLD_GREETING, MSG_PEEK | MSG_WAITALL) !=
            OLD_GREETING ||
        load_be32(greeting + OLD_FLAGS_AT) & OLD_HAS_FLAGS)
        return fd;
    socket_set_limit(fd, 0);
    int mended = relay_start(fd, greeting);
    return mended < 0 ? fd : mended;
}

int nbd_socket_open(const struct nbd *n, int64_t ms, struct rhea_error *err)
{
    int fd =
        n->path ? socket_open_unix(n, ms, err) : socket_open_tcp(n, ms, err);
    if (fd < 0)
        return fd;
    fd = socket_greet(fd);
    socket_set_limit(fd, 0);
    return fd;
}
