/* SPDX-License-Identifier: MIT */
/*
 * Whether breakpoints in memory work under this machine's KVM: under some, a
 * guest that meets one stops with an internal error, for good. So it is tried
 * with another guest: the same QEMU is started once more, with four bytes of
 * code and nothing else.
 */
#ifndef RHEA_GDB_PROBE_H
#define RHEA_GDB_PROBE_H

#include <sys/types.h>

#include "gdb/experiment.h"

struct probe {
    pid_t qemu;                  /* whose program is used; 0: not known */
    bool kvm;                    /* the accelerator */
    const struct layout *layout; /* the registers of its stub */
    /* private */
    enum { PROBE_NEW, PROBE_WORKS, PROBE_FAILS } state;
    char why[200];
};

/* 0, or why they cannot be used. Tries it the first time. */
int probe_software(struct probe *p, struct rhea_error *err);

#endif
