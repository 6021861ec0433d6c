/* SPDX-License-Identifier: MIT */
/* What the parts of rhea-trace share. */
#ifndef RHEA_TRACE_TRACE_H
#define RHEA_TRACE_TRACE_H

#include <sys/types.h>

#include "common/common.h"
#include "gdb/session.h"

/* QEMU as it is started by us. */
struct launch {
    pid_t pid;        /* 0: none */
    char folder[256]; /* of the stub's socket and of frames; "": none */
    char stub[300];   /* the stub's address */
    char listen[256]; /* where gdb was to connect by -s or -gdb; "": neither */
    bool wait;        /* -S: the guest waits for gdb */
};

/* A folder of our own for sockets and frames. */
int launch_folder(struct launch *l, struct rhea_error *err);
/* Start QEMU with ARGV, NULL at its end, its stub on a socket of ours. */
int launch_start(struct launch *l, char **argv, struct rhea_error *err);
/* Wait until the stub can be connected to. */
int launch_wait(struct launch *l, struct rhea_error *err);
/* Wait until QEMU has ended, which is told to if END says so; its exit code. */
int launch_finish(struct launch *l, bool end);

/* Commands: each gets its arguments from its own name on. */
int serve_main(int argc, char **argv);

#endif
