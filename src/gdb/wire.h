/* SPDX-License-Identifier: MIT */
/*
 * A connection on which packets go both ways: a socket, the reader of what
 * comes, a buffer of what goes out. Used towards gdb and towards QEMU's stub.
 *
 * What is sent waits in the buffer until wire_flush, so that several packets
 * leave in one write. A connection that fails is `dead` from then on, and every
 * call says so.
 *
 * Life: wire_init, use, wire_finish (closes the socket; safe on a wire whose fd
 * is -1).
 */
#ifndef RHEA_GDB_WIRE_H
#define RHEA_GDB_WIRE_H

#include "gdb/packet.h"

enum {
    WIRE_READ = 65536, /* bytes taken from the socket at a time */
    WIRE_MAX_OUT =
        8 << 20 /* bytes that may wait for a peer who does not read */
};

struct wire {
    int fd;
    bool dead;
    bool no_ack; /* both sides agreed not to acknowledge anything */
    bool quiet;  /* we acknowledge nothing, see stub.h */
    struct packet_reader in;
    /* private */
    uint8_t *bytes; /* read, from `at` on not yet parsed */
    size_t at, len;
    uint8_t *out;
    size_t out_len, out_room;
    struct packet_text last; /* the last packet, should it be asked for again */
};

/* Takes FD over, in any case. RUNS: the peer is a server, see packet.h. */
int wire_init(struct wire *w, int fd, bool runs, struct rhea_error *err);
void wire_finish(struct wire *w);

/* Put a packet, or bytes as they are, behind what waits. */
void wire_queue(struct wire *w, const void *payload, size_t len);
void wire_queue_bytes(struct wire *w, const void *bytes, size_t len);
/* Send all that waits, within TIMEOUT milliseconds. */
int wire_flush(struct wire *w, int timeout, struct rhea_error *err);

/* What came: an event of bytes that are here already (PACKET_NONE: none is).
 * Packets are acknowledged and damaged ones asked for again here. */
enum packet_event wire_next(struct wire *w);
/* Read what the socket has. -EAGAIN: nothing. -ECONNRESET: the peer is gone. */
int wire_fill(struct wire *w, struct rhea_error *err);
/* Wait for a packet (PACKET_DATA, PACKET_NOTICE or PACKET_INTERRUPT), TIMEOUT
 * milliseconds at most (-ETIMEDOUT), -1: for ever. Flushes first. */
int wire_receive(struct wire *w, int timeout, enum packet_event *event,
                 struct rhea_error *err);

/* Milliseconds of a clock that only goes forward. */
int64_t wire_now(void);

/* --- sockets ------------------------------------------------------------- */

/* `HOST:PORT`, `:PORT`, `tcp:HOST:PORT`, `unix:PATH` or a path with a slash. */
int wire_connect(const char *address, int *fd, struct rhea_error *err);
/* The same to listen on. `:0` finds a port; NAME, of SIZE bytes, is what to
 * connect to. A socket's file that nobody listens on is replaced. */
int wire_listen(const char *address, int *fd, char *name, size_t size,
                struct rhea_error *err);

#endif
