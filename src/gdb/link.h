/* SPDX-License-Identifier: MIT */
/*
 * What rhea-trace and its plugin inside QEMU say to each other: short messages
 * over a local socket that the plugin listens on (SOCK_SEQPACKET, so each is
 * whole or does not come). Frames and the experiment go through the file of
 * trace frames (frames.h), whose descriptor the first message carries.
 *
 *     LINK_ATTACH   with the descriptor: use this file
 *     LINK_LOAD     trace what the experiment in it says, from now on
 *     LINK_UNLOAD   trace nothing
 *
 * Each is answered with the same kind, once it has been done: from the answer
 * on no virtual processor runs code that was translated before. When the
 * connection ends, the plugin unloads by itself. It serves one at a time.
 */
#ifndef RHEA_GDB_LINK_H
#define RHEA_GDB_LINK_H

#include <sys/socket.h>
#include <sys/un.h>

#include "gdb/frames.h"

#define LINK_MAGIC UINT32_C(0x3154524c) /* "LRT1": changes with any of this */

enum link_kind { LINK_ATTACH = 1, LINK_LOAD, LINK_UNLOAD };

struct link_message {
    uint32_t magic;
    uint32_t kind;
    int32_t status;  /* of an answer: 0 or a negative errno */
    uint32_t frames; /* bytes of a struct frames_control, as a version */
    char text[240];  /* of an answer: what is wrong; to ATTACH, how it works */
};

/* The address of a plugin's socket. PATH NULL: where the plugin in the process
 * PID listens if it was not told, in the abstract namespace. -ENAMETOOLONG. */
int link_address(struct sockaddr_un *address, socklen_t *len, const char *path,
                 pid_t pid);

/* --- rhea-trace's side ---------------------------------------------------- */

struct link {
    int fd;           /* -1: there is none */
    const char *path; /* as it was opened */
    pid_t pid;
    int timeout;
    char text[240]; /* how it works, for users */
};

/* Connect, as in link_address; -ENOENT where nobody listens. PATH stays the
 * caller's. Once a call has failed, the link is closed, and may be opened
 * again. */
int link_open(struct link *l, const char *path, pid_t pid, int timeout,
              struct rhea_error *err);
int link_attach(struct link *l, const struct frames *f, struct rhea_error *err);
int link_load(struct link *l, struct rhea_error *err);
int link_unload(struct link *l, struct rhea_error *err);
void link_close(struct link *l); /* safe on fd -1 */

#endif
