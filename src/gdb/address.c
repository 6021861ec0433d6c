/* SPDX-License-Identifier: MIT */
/* Addresses of sockets, as gdb and QEMU write them. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "gdb/wire.h"

/* The path of a Unix socket; NULL where the address is HOST:PORT. */
static const char *unix_path(const char *address)
{
    if (!strncmp(address, "unix:", 5))
        return address + 5;
    return strchr(address, '/') ? address : NULL;
}

static int unix_address(const char *path, struct sockaddr_un *a,
                        struct rhea_error *err)
{
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(a->sun_path))
        return rhea_error_set(err, ENAMETOOLONG,
                              "%s: a socket's path has at most %zu characters",
                              path, sizeof(a->sun_path) - 1);
    snprintf(a->sun_path, sizeof(a->sun_path), "%s", path);
    return 0;
}

static int find_host(const char *address, bool passive, struct addrinfo **list,
                     struct rhea_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = passive ? AI_PASSIVE : 0};
    char host[256];
    const char *colon;
    size_t len;
    int ret;

    if (!strncmp(address, "tcp:", 4))
        address += 4;
    colon = strrchr(address, ':');
    len = colon ? (size_t)(colon - address) : 0;
    if (!colon || !colon[1] || len >= sizeof(host))
        return rhea_error_set(err, EINVAL,
                              "%s is no address: say HOST:PORT, :PORT or a "
                              "socket's path with a slash in it",
                              address);
    if (len > 2 && address[0] == '[' && colon[-1] == ']') {
        address++; /* IPv6 */
        len -= 2;
    }
    memcpy(host, address, len);
    host[len] = 0;
    /* getaddrinfo takes any number, modulo 65536. */
    if (strtoul(colon + 1, NULL, 10) > UINT16_MAX)
        return rhea_error_set(err, EINVAL, "%s: a port is %d at most", address,
                              UINT16_MAX);
    /* Nobody but this machine may debug the guest, unless asked for. */
    ret = getaddrinfo(len ? host : "127.0.0.1", colon + 1, &hints, list);
    if (ret)
        return rhea_error_set(err, EINVAL, "%s: %s", address,
                              gai_strerror(ret));
    return 0;
}

static int connect_host(const char *address, int *fd, struct rhea_error *err)
{
    struct addrinfo *list, *a;
    int ret = find_host(address, false, &list, err), s = -1;

    if (ret < 0)
        return ret;
    ret = ECONNREFUSED;
    for (a = list; a && s < 0; a = a->ai_next) {
        s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (s >= 0 && connect(s, a->ai_addr, a->ai_addrlen) < 0) {
            ret = errno;
            close(s);
            s = -1;
        }
    }
    freeaddrinfo(list);
    if (s < 0)
        return rhea_error_errno(err, ret, "cannot connect to %s", address);
    *fd = s;
    return 0;
}

static int connect_unix(const char *path, int *fd, struct rhea_error *err)
{
    struct sockaddr_un a;
    int ret = unix_address(path, &a, err), s;

    if (ret < 0)
        return ret;
    s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof(a)) < 0) {
        ret = errno;
        if (s >= 0)
            close(s);
        return rhea_error_errno(err, ret, "cannot connect to %s", path);
    }
    *fd = s;
    return 0;
}

int wire_connect(const char *address, int *fd, struct rhea_error *err)
{
    const char *path = unix_path(address);

    return path ? connect_unix(path, fd, err) : connect_host(address, fd, err);
}

/* A file that a socket left behind is in the way. */
static void remove_stale(const char *path)
{
    struct stat st;
    int fd, ret;

    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return;
    ret = connect_unix(path, &fd, NULL);
    if (ret == -ECONNREFUSED)
        unlink(path);
    else if (ret == 0)
        close(fd);
}

static int listen_unix(const char *path, int *fd, char *name, size_t size,
                       struct rhea_error *err)
{
    struct sockaddr_un a;
    int ret = unix_address(path, &a, err), s;

    if (ret < 0)
        return ret;
    remove_stale(path);
    s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&a, sizeof(a)) < 0 ||
        listen(s, 2) < 0) {
        ret = errno;
        if (s >= 0)
            close(s);
        return rhea_error_errno(err, ret, "cannot listen on %s", path);
    }
    snprintf(name, size, "%s", path);
    *fd = s;
    return 0;
}

static void name_port(int s, const char *address, char *name, size_t size)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);
    char host[128], port[16];

    if (getsockname(s, (struct sockaddr *)&a, &len) < 0 ||
        getnameinfo((struct sockaddr *)&a, len, host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(name, size, "%s", address);
    else
        snprintf(name, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host,
                 port);
}

static int listen_host(const char *address, int *fd, char *name, size_t size,
                       struct rhea_error *err)
{
    struct addrinfo *list, *a;
    int ret = find_host(address, true, &list, err), s = -1, one = 1;

    if (ret < 0)
        return ret;
    ret = EADDRNOTAVAIL;
    for (a = list; a && s < 0; a = a->ai_next) {
        s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (s < 0)
            continue;
        (void)setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(s, a->ai_addr, a->ai_addrlen) < 0 || listen(s, 2) < 0) {
            ret = errno;
            close(s);
            s = -1;
        }
    }
    freeaddrinfo(list);
    if (s < 0)
        return rhea_error_errno(err, ret, "cannot listen on %s", address);
    name_port(s, address, name, size);
    *fd = s;
    return 0;
}

int wire_listen(const char *address, int *fd, char *name, size_t size,
                struct rhea_error *err)
{
    const char *path = unix_path(address);

    return path ? listen_unix(path, fd, name, size, err)
                : listen_host(address, fd, name, size, err);
}
