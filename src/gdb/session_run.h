/* SPDX-License-Identifier: MIT */
#ifndef RHEA_GDB_SESSION_RUN_H
#define RHEA_GDB_SESSION_RUN_H

#include <inttypes.h>

#include "gdb/machine.h"

/* The name of a thread as it is compared, from a packet's text. */
void session_thread(char name[MACHINE_THREAD], const char *text, size_t len);

#endif
