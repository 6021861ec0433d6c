/* SPDX-License-Identifier: MIT */
/*
 * Raw deflate of whole clusters, as qcow and qcow2 store them. What encoding
 * takes is kept from one cluster to the next.
 */
#ifndef RHEA_FORMAT_DEFLATE_H
#define RHEA_FORMAT_DEFLATE_H

#include <pthread.h>
#include <rhea/base.h>

struct deflate_pool {
    pthread_mutex_t lock;
    struct deflate_encoder *idle;
};

void deflate_pool_init(struct deflate_pool *pool);
void deflate_pool_finish(struct deflate_pool *pool);

/* The bytes in OUT, of which there may be MAX; 0: they do not suffice, or
 * memory ran out. Safe from many threads. */
size_t deflate_encode(struct deflate_pool *pool, const void *in, size_t len,
                      void *out, size_t max);

/* Whether IN has all of OUT. It may be longer, and may be cut off once OUT is
 * complete: lengths are stored by sectors, and old writers counted a sector
 * too few. */
bool deflate_decode(const uint8_t *in, size_t in_len, uint8_t *out,
                    size_t out_len);

#endif
