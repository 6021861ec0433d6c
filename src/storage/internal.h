/* SPDX-License-Identifier: MIT */
/* What the kinds of storage share. */
#ifndef RHEA_STORAGE_INTERNAL_H
#define RHEA_STORAGE_INTERNAL_H

#include <rhea/storage.h>

/* How messages call S. */
static inline const char *storage_name(const struct rhea_storage *s)
{
    return s->path ? s->path : s->ops->name;
}

extern const struct rhea_storage_ops file_storage_ops;
extern const struct rhea_storage_ops memory_storage_ops;
extern const struct rhea_storage_ops record_storage_ops;
extern const struct rhea_storage_ops fault_storage_ops;

/* A storage in front of another one, which it owns. Record and fault begin
 * with this. */
struct storage_wrapper {
    struct rhea_storage head;
    struct rhea_storage *inner;
};

/* Fill W for INNER: path and writable are taken from it. */
int storage_wrap(struct storage_wrapper *w, const struct rhea_storage_ops *ops,
                 struct rhea_storage *inner, struct rhea_error *err);
/* Close the inner storage; free W. */
void storage_unwrap(struct storage_wrapper *w);

/* A storage's clone(), by its own pwrite: for storages in memory and those that
 * stand in front of them in tests, so that there, too, formats clone. */
int storage_clone_by_copy(struct rhea_storage *s, uint64_t offset,
                          struct rhea_storage *from, uint64_t from_offset,
                          uint64_t len, struct rhea_error *err);

/* Calls that a wrapper only passes on. */
int storage_wrapper_size(struct rhea_storage *s, uint64_t *size,
                         struct rhea_error *err);
int storage_wrapper_extent(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, bool *hole, uint64_t *run,
                           struct rhea_error *err);
int storage_wrapper_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
                         struct rhea_error *err);

struct rhea_storage *storage_wrapper_inner(const struct rhea_storage *s);

/* The storage that holds the bytes behind any wrappers. */
const struct rhea_storage *storage_innermost(const struct rhea_storage *s);

#endif
