/* SPDX-License-Identifier: MIT */
/* What gdb asks of the guest: packets that make it run (`vCont`, `c`, `s`, `C`,
 * `S`, `bc`, `bs`). One request is carried out in several resumes where
 * tracepoints are in the way. */
#ifndef RHEA_GDB_SESSION_REQUEST_H
#define RHEA_GDB_SESSION_REQUEST_H

#include "gdb/machine.h"

struct request {
    char text[16384];              /* the packet, as it is to be sent next */
    char stepping[MACHINE_THREAD]; /* the thread that steps; "": none */
    bool reverse;
    bool ranged;        /* it steps while it is in [low, high) */
    uint64_t low, high; /* `vCont;r` */
};

/* The name of a thread as it is compared, from a packet's text. */
void session_thread(char name[MACHINE_THREAD], const char *text, size_t len);

/* The process of such a name; 0: it says none. */
uint64_t session_process(const char *name);

/* Whether PACKET makes the guest run. */
bool session_is_resume(const char *packet, size_t len);

/* THREAD: the one that is looked at, which steps where none is named. A packet
 * too long to be kept is cut off; it resumes what it named up to there. */
void request_parse(struct request *r, const char *packet, size_t len,
                   const char *thread);
/* It was sent once: a signal was delivered and a thread jumped, and neither is
 * to happen again when the guest is resumed for it another time. */
void request_was_sent(struct request *r);
/* Whether it lets THREAD run: where it steps one and says nothing of others,
 * these stand still. */
bool request_resumes(const struct request *r, const char *thread);

#endif
