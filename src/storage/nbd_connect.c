/* SPDX-License-Identifier: MIT */
/*
 * Connections to an export. There is one from the beginning. Where the server
 * says that several see the same (NBD_FLAG_CAN_MULTI_CONN: what one flushes,
 * the others have flushed too), more are made as threads need them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/nbd.h"

enum {
    NBD_LARGEST = 32 << 20,  /* what every server takes, by the protocol */
    NBD_RETRY_MS = 100,      /* between attempts to connect */
    NBD_MORE_SECONDS = 5,    /* that a further connection may take */
    NBD_ALIGN_MAX = 1 << 16, /* the largest smallest block there may be */
};

int nbd_fail(const struct nbd *n, const char *what, struct rhea_error *err)
{
    const char *words = n->lib->get_error();
    int code = n->lib->get_errno();

    return rhea_error_set(err, code > 0 ? code : EIO, "%s of '%s': %s", what,
                          storage_name(&n->head),
                          words ? words : "the server gave no reason");
}

static int64_t connect_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Connect H, by socket FD, until DEADLINE (ms; 0: as long as it takes). */
static int connect_handle(const struct nbd *n, struct nbd_handle *h, int fd,
                          int64_t deadline)
{
    const struct nbd_lib *lib = n->lib;
    int ret = lib->aio_connect_socket(h, fd);

    while (ret >= 0 && !lib->aio_is_ready(h)) {
        int64_t left = deadline ? deadline - connect_now() : INT32_MAX;

        if (left <= 0 || !lib->aio_is_connecting(h))
            return -1;
        ret = lib->poll(h, (int)RHEA_MIN(left, (int64_t)INT32_MAX));
    }
    return ret < 0 ? -1 : 0;
}

static const char *connect_context(const struct nbd *n)
{
    return n->bitmap ? n->bitmap : LIBNBD_CONTEXT_BASE_ALLOCATION;
}

static struct nbd_handle *connect_once(const struct nbd *n, int64_t deadline,
                                       struct rhea_error *err)
{
    const struct nbd_lib *lib = n->lib;
    int64_t left = deadline ? RHEA_MAX(deadline - connect_now(), 1) : 0;
    int fd = nbd_socket_open(n, left, err);
    struct nbd_handle *h;

    if (fd < 0)
        return NULL;
    h = lib->create();
    if (h && lib->set_export_name(h, n->export ? n->export : "") == 0 &&
        lib->add_meta_context(h, connect_context(n)) == 0) {
        if (connect_handle(n, h, fd, deadline) == 0)
            return h;
    } else {
        close(fd);
    }
    nbd_fail(n, "could not connect to the server", err);
    lib->close(h);
    return NULL;
}

/* Try until DEADLINE; 0: once. A server that is starting may refuse. */
static struct nbd_handle *connect_until(const struct nbd *n, int64_t deadline,
                                        struct rhea_error *err)
{
    for (;;) {
        struct nbd_handle *h = connect_once(n, deadline, err);
        int64_t left = deadline - connect_now();

        if (h || left <= 0)
            return h;
        usleep((useconds_t)(RHEA_MIN(left, (int64_t)NBD_RETRY_MS) * 1000));
    }
}

static int connect_learn_sizes(struct nbd *n, struct nbd_handle *h,
                               struct rhea_error *err)
{
    int64_t size = n->lib->get_size(h);
    int64_t least = n->lib->get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t most = n->lib->get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    if (size < 0)
        return nbd_fail(n, "could not find out the size", err);
    n->size = (uint64_t)size;
    n->align = 1;
    if (least > 1) {
        if (least > NBD_ALIGN_MAX || least & (least - 1))
            return rhea_error_set(err, EIO,
                                  "the server of '%s' says that its smallest "
                                  "block has %" PRId64 " bytes",
                                  storage_name(&n->head), least);
        n->align = (unsigned)least;
    }
    n->largest = NBD_LARGEST;
    if (most > 0 && most < NBD_LARGEST)
        n->largest = (size_t)align_down((uint64_t)most, n->align);
    if (!n->largest)
        return rhea_error_set(err, EIO,
                              "the server of '%s' says that its largest block "
                              "is smaller than its smallest",
                              storage_name(&n->head));
    return 0;
}

static int connect_learn(struct nbd *n, struct nbd_handle *h,
                         struct rhea_error *err)
{
    const struct nbd_lib *lib = n->lib;

    n->read_only = lib->is_read_only(h) != 0;
    n->can_flush = lib->can_flush(h) > 0;
    n->can_zero = lib->can_zero(h) > 0;
    n->has_status = lib->can_meta_context(h, connect_context(n)) > 0;
    if (n->bitmap && !n->has_status)
        return rhea_error_set(err, EINVAL,
                              "the server of '%s' has no '%s' (option "
                              "x-dirty-bitmap)",
                              storage_name(&n->head), n->bitmap);
    n->max_conns = lib->can_multi_conn(h) > 0 ? NBD_CONNECTIONS_MAX : 1;
    return connect_learn_sizes(n, h, err);
}

int nbd_connect(struct nbd *n, struct rhea_error *err)
{
    int64_t patience = n->open_timeout * 1000LL;
    struct nbd_handle *h =
        connect_until(n, patience ? connect_now() + patience : 0, err);

    if (!h)
        return err && err->code ? -err->code : -EIO;
    n->spare[n->n_spare++] = h;
    n->n_conns = 1;
    return connect_learn(n, h, err);
}

void nbd_disconnect(struct nbd *n)
{
    /* No goodbye: a server that does not answer must not keep us. */
    while (n->n_spare)
        n->lib->close(n->spare[--n->n_spare]);
}

/* One more connection to the same export; NULL: there will be none. */
static struct nbd_handle *connect_more(const struct nbd *n)
{
    struct nbd_handle *h =
        connect_once(n, connect_now() + NBD_MORE_SECONDS * 1000, NULL);

    if (h && n->lib->get_size(h) != (int64_t)n->size) {
        n->lib->close(h);
        h = NULL;
    }
    return h;
}

bool nbd_renew(struct nbd *n, struct nbd_handle **h, int64_t *until)
{
    const struct nbd_lib *lib = n->lib;
    struct nbd_handle *new;

    if (!n->reconnect_delay ||
        !(lib->aio_is_dead(*h) > 0 || lib->aio_is_closed(*h) > 0))
        return false;
    if (!*until)
        *until = connect_now() + n->reconnect_delay * 1000LL;
    else if (connect_now() >= *until)
        return false;
    else
        usleep(NBD_RETRY_MS * 1000);
    new = connect_until(n, *until, NULL);
    if (new && lib->get_size(new) != (int64_t)n->size) {
        lib->close(new);
        new = NULL;
    }
    if (!new)
        return false;
    lib->close(*h);
    *h = new;
    return true;
}

struct nbd_handle *nbd_take(struct nbd *n)
{
    struct nbd_handle *h;

    RHEA_LOCKED(&n->lock);
    while (!n->n_spare) {
        if (n->n_conns == n->max_conns) {
            pthread_cond_wait(&n->idle, &n->lock);
            continue;
        }
        n->n_conns++;
        pthread_mutex_unlock(&n->lock);
        h = connect_more(n);
        pthread_mutex_lock(&n->lock);
        if (h)
            return h;
        n->max_conns = --n->n_conns;
    }
    return n->spare[--n->n_spare];
}

void nbd_put(struct nbd *n, struct nbd_handle *h)
{
    RHEA_LOCKED(&n->lock);
    n->spare[n->n_spare++] = h;
    pthread_cond_signal(&n->idle);
}
