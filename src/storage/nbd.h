/* SPDX-License-Identifier: MIT */
/* The parts of the NBD storage: nbd.c reads and writes; nbd_connect.c keeps
 * the connections, whose sockets nbd_socket.c opens; nbd_driver.c reads names
 * and options; nbd_lib.c loads libnbd. */
#ifndef RHEA_STORAGE_NBD_H
#define RHEA_STORAGE_NBD_H

#include <pthread.h>

#include "storage/internal.h"
#include "storage/nbd_lib.h"

/* The most connections to one export, where it may have several. */
enum { NBD_CONNECTIONS_MAX = 4 };

struct nbd {
    struct rhea_storage head;
    const struct nbd_lib *lib;
    bool no_flush;

    /* Where the export is: a socket's path, else host and port. */
    char *path, *host, *port, *export;
    /* What its status is asked for: holes, or a bitmap ("x-dirty-bitmap"), of
     * which what is dirty passes for a hole: only a map makes sense then. NULL:
     * holes. */
    char *bitmap;
    unsigned open_timeout;    /* seconds to go on trying to connect */
    unsigned reconnect_delay; /* the same once a connection is lost */

    /* What the server says of the export; the same on every connection. */
    uint64_t size;
    bool read_only, can_flush, can_zero, has_status;
    unsigned align;     /* of requests' offsets and lengths, a power of two */
    size_t largest;     /* bytes a request may carry */
    unsigned max_conns; /* 1, unless connections see each other's writes */

    pthread_mutex_t lock; /* for what follows */
    pthread_cond_t idle;  /* a connection was given back */
    struct nbd_handle *spare[NBD_CONNECTIONS_MAX];
    unsigned n_spare, n_conns;
    pthread_mutex_t edges; /* held while a part of a block is rewritten */
};

/* Open the first connection, and learn all about the export. */
int nbd_connect(struct nbd *n, struct rhea_error *err);
void nbd_disconnect(struct nbd *n);
/* A connection of the caller's own, until nbd_put. Waits for one. */
struct nbd_handle *nbd_take(struct nbd *n);
void nbd_put(struct nbd *n, struct nbd_handle *h);
/* A request on *H has failed, and may have been carried out. Whether it is to
 * be made again: the connection was lost, and *H is a new one. *UNTIL, 0 at
 * first, is up to when that may go on for this request. */
bool nbd_renew(struct nbd *n, struct nbd_handle **h, int64_t *until);
/* A socket that is connected to the server, within MS milliseconds (0: any
 * time), or a negative errno. */
int nbd_socket_open(const struct nbd *n, int64_t ms, struct rhea_error *err);
/* "could not VERB ...", with libnbd's words; the last call on this thread has
 * failed. */
int nbd_fail(const struct nbd *n, const char *what, struct rhea_error *err);

extern const struct rhea_storage_ops nbd_storage_ops;

#endif
