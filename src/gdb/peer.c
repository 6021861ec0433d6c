/* SPDX-License-Identifier: MIT */
/* Which process is at the other end of a socket. */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gdb/memory.h"

/* The inode of the socket whose ends are LOCAL_PORT and REMOTE_PORT; 0: none.
 * Of a connection inside this machine both ends are in the table. */
static uint64_t find_inode(const char *table, unsigned local_port,
                           unsigned remote_port)
{
    FILE *file = fopen(table, "re");
    uint64_t inode = 0;
    char line[512];

    if (!file)
        return 0;
    while (!inode && fgets(line, sizeof(line), file)) {
        unsigned local, remote;
        uint64_t n;

        if (sscanf(line,
                   " %*u: %*[0-9A-Fa-f]:%X %*[0-9A-Fa-f]:%X %*X %*X:%*X "
                   "%*X:%*X %*X %*u %*u %" SCNu64,
                   &local, &remote, &n) == 3 &&
            local == local_port && remote == remote_port)
            inode = n;
    }
    fclose(file);
    return inode;
}

static bool has_descriptor(const char *pid, const char *target)
{
    char folder[64], path[384], link[64];
    struct dirent *entry;
    bool found = false;
    DIR *dir;

    snprintf(folder, sizeof(folder), "/proc/%.20s/fd", pid);
    dir = opendir(folder);
    while (dir && !found && (entry = readdir(dir))) {
        ssize_t n;

        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        n = readlink(path, link, sizeof(link) - 1);
        found = n > 0 && (size_t)n == strlen(target) &&
                !memcmp(link, target, (size_t)n);
    }
    if (dir)
        closedir(dir);
    return found;
}

static pid_t find_owner(uint64_t inode)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    char target[64];
    pid_t pid = 0;

    snprintf(target, sizeof(target), "socket:[%" PRIu64 "]", inode);
    while (proc && !pid && (entry = readdir(proc)))
        if (isdigit((unsigned char)entry->d_name[0]) &&
            has_descriptor(entry->d_name, target))
            pid = (pid_t)strtol(entry->d_name, NULL, 10);
    if (proc)
        closedir(proc);
    return pid;
}

static unsigned port_of(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)(const void *)a)->sin_port);
    return ntohs(((const struct sockaddr_in6 *)(const void *)a)->sin6_port);
}

pid_t memory_peer(int fd)
{
    struct sockaddr_storage local, remote;
    socklen_t local_len = sizeof(local), remote_len = sizeof(remote);
    struct ucred cred;
    socklen_t cred_len = sizeof(cred);
    uint64_t inode;

    if (getsockname(fd, (struct sockaddr *)&local, &local_len) < 0 ||
        getpeername(fd, (struct sockaddr *)&remote, &remote_len) < 0)
        return 0;
    if (local.ss_family == AF_UNIX)
        return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len) < 0
                   ? 0
                   : cred.pid;
    inode = find_inode("/proc/net/tcp", port_of(&remote), port_of(&local));
    if (!inode)
        inode = find_inode("/proc/net/tcp6", port_of(&remote), port_of(&local));
    return inode ? find_owner(inode) : 0;
}
