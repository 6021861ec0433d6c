/* SPDX-License-Identifier: MIT */
/* libnbd, loaded when it is first needed. */
#ifndef RHEA_STORAGE_NBD_LIB_H
#define RHEA_STORAGE_NBD_LIB_H

#include <libnbd.h>

#include <rhea/base.h>

/* The functions in use, without "nbd_" in front. */
#define NBD_FUNCTIONS(X)                                                       \
    X(add_meta_context)                                                        \
    X(aio_connect_socket)                                                      \
    X(aio_is_closed)                                                           \
    X(aio_is_connecting)                                                       \
    X(aio_is_dead)                                                             \
    X(aio_is_ready)                                                            \
    X(block_status)                                                            \
    X(can_flush)                                                               \
    X(can_meta_context)                                                        \
    X(can_multi_conn)                                                          \
    X(can_zero)                                                                \
    X(close)                                                                   \
    X(create)                                                                  \
    X(flush)                                                                   \
    X(get_block_size)                                                          \
    X(get_errno)                                                               \
    X(get_error)                                                               \
    X(get_size)                                                                \
    X(is_read_only)                                                            \
    X(poll)                                                                    \
    X(pread)                                                                   \
    X(pwrite)                                                                  \
    X(set_export_name)                                                         \
    X(zero)

struct nbd_lib {
#define NBD_MEMBER(name) __typeof__(nbd_##name) *name;
    NBD_FUNCTIONS(NBD_MEMBER)
#undef NBD_MEMBER
};

/* The library; NULL and an error where there is none. It stays loaded. */
const struct nbd_lib *nbd_lib_get(struct rhea_error *err);

#endif
