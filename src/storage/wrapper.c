/* SPDX-License-Identifier: MIT */
/* What storages that stand in front of another one have in common. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/internal.h"

int storage_wrap(struct storage_wrapper *w, const struct rhea_storage_ops *ops,
                 struct rhea_storage *inner, struct rhea_error *err)
{
    w->head.ops = ops;
    w->head.writable = inner->writable;
    w->head.path = NULL;
    if (inner->path) {
        w->head.path = strdup(inner->path);
        if (!w->head.path)
            return rhea_error_set(err, ENOMEM, "out of memory");
    }
    w->inner = inner;
    return 0;
}

void storage_unwrap(struct storage_wrapper *w)
{
    rhea_storage_close(w->inner);
    free(w->head.path);
    free(w);
}

int storage_wrapper_size(struct rhea_storage *s, uint64_t *size,
                         struct rhea_error *err)
{
    struct rhea_storage *inner = ((struct storage_wrapper *)s)->inner;
    return inner->ops->size(inner, size, err);
}

int storage_wrapper_extent(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, bool *hole, uint64_t *run,
                           struct rhea_error *err)
{
    struct rhea_storage *inner = ((struct storage_wrapper *)s)->inner;
    return rhea_storage_extent(inner, offset, len, hole, run, err);
}

int storage_wrapper_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
                         struct rhea_error *err)
{
    struct rhea_storage *inner = ((struct storage_wrapper *)s)->inner;
    return rhea_storage_lock(inner, perm, shared, err);
}

struct rhea_storage *storage_wrapper_inner(const struct rhea_storage *s)
{
    return ((const struct storage_wrapper *)s)->inner;
}

const struct rhea_storage *storage_innermost(const struct rhea_storage *s)
{
    while (s->ops->inner)
        s = s->ops->inner(s);
    return s;
}
