/* SPDX-License-Identifier: MIT */
/* Both sides' part of link.h. */
#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#include "gdb/link.h"

int link_address(struct sockaddr_un *address, socklen_t *len, const char *path,
                 pid_t pid)
{
    char *name = address->sun_path;
    size_t room = sizeof(address->sun_path), n;

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (path)
        n = (size_t)snprintf(name, room, "%s", path) + 1;
    else /* a zero byte in front, and none behind */
        n = (size_t)snprintf(name + 1, room - 1, "rhea-trace-plugin/%lld",
                             (long long)pid) +
            1;
    if (n > room)
        return -ENAMETOOLONG;
    *len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    return 0;
}
