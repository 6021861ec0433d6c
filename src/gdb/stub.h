/* SPDX-License-Identifier: MIT */
/*
 * A client of QEMU's stub for gdb, or of another server that speaks the remote
 * protocol. It knows packets, not what is traced.
 *
 * The stub takes any byte that comes while the guest runs as a wish to stop it.
 * So nothing is ever sent behind a resume but stub_interrupt, acknowledgements
 * included: QEMU's stub does without them, since the next packet's `$` counts
 * as one, and from 8.1 on does not tell of a stop before which it got one.
 * Where the server has a mode without acknowledgements, it is used.
 *
 * While the guest is stopped, packets may be queued one behind the other and
 * their answers taken in the same order.
 *
 * A stub that does not answer in time, answers nonsense or goes away is `dead`:
 * every call then fails with the reason.
 *
 * Life: stub_open, use, stub_close (safe on all zero bytes and fd -1).
 */
#ifndef RHEA_GDB_STUB_H
#define RHEA_GDB_STUB_H

#include "gdb/wire.h"

enum { STUB_TIMEOUT = 30000 /* ms, of an answer, by default */ };

struct stub {
    struct wire wire;
    int timeout;
    bool running;        /* a resume was sent and no stop has come */
    unsigned interrupts; /* since then, how often it was asked to stop */
    bool unheard; /* since then, a packet has come: it waits for our word */
    bool vcont;   /* has vCont;c and vCont;s */
    bool no_run;  /* it told that the program has exited */
    size_t packet_size;
    char features[1024]; /* its answer to qSupported */
    char stop[256];      /* the last stop reply */
};

/* Connect, and find out what it can do. With QEMU this stops the guest. */
int stub_open(struct stub *s, const char *address, int timeout,
              struct rhea_error *err);
void stub_close(struct stub *s);

/* Whether the answer to qSupported had WORD, "QStartNoAckMode+" say. */
bool stub_has(const struct stub *s, const char *word);

/* --- while it is stopped ------------------------------------------------- */

void stub_queue(struct stub *s, const void *payload, size_t len);
void stub_queuef(struct stub *s, const char *fmt, ...) RHEA_PRINTF(2, 3);
/* The next answer, in order; LEN bytes with a zero behind, valid until the next
 * call. */
int stub_answer(struct stub *s, const char **reply, size_t *len,
                struct rhea_error *err);
/* One packet and its answer. */
int stub_call(struct stub *s, const void *payload, size_t len,
              const char **reply, size_t *reply_len, struct rhea_error *err);
int stub_callf(struct stub *s, const char **reply, struct rhea_error *err,
               const char *fmt, ...) RHEA_PRINTF(4, 5);
/* The next answer must be OK; WHAT was asked for is said if it is not. */
int stub_expect_ok(struct stub *s, const char *what, struct rhea_error *err);

/* Read an object as `qXfer:OBJECT:read:ANNEX` gives it; new at *TEXT. */
int stub_transfer(struct stub *s, const char *object, const char *annex,
                  char **text, size_t *len, struct rhea_error *err);
/* Run a monitor command (qRcmd); what it prints, new at *TEXT. -ENOTSUP where
 * there is no monitor. */
int stub_monitor(struct stub *s, const char *command, char **text,
                 struct rhea_error *err);

/* --- running ------------------------------------------------------------- */

/* Send a packet that lets the guest run. */
int stub_resume(struct stub *s, const void *payload, size_t len,
                struct rhea_error *err);
/* A packet came while it ran: whether it says that the guest has stopped, which
 * is noted. Others are console output and the like. */
bool stub_is_stop(struct stub *s, const char *packet, size_t len);
/* One of these came. */
int stub_hear(struct stub *s, struct rhea_error *err);
/* Ask it to stop; the stop reply comes by itself. */
int stub_interrupt(struct stub *s, struct rhea_error *err);
/* Wait for a stop, TIMEOUT milliseconds at most (-ETIMEDOUT); what comes before
 * is dropped. */
int stub_wait(struct stub *s, int timeout, struct rhea_error *err);

#endif
