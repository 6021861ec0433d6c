/* SPDX-License-Identifier: MIT */
/* Packets that are not about tracing and need a hand all the same. */
#ifndef RHEA_GDB_SESSION_PACKETS_H
#define RHEA_GDB_SESSION_PACKETS_H

#include "gdb/session.h"

extern const struct session_packet session_base_packets[];

#endif
