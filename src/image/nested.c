/* SPDX-License-Identifier: MIT */
/*
 * The guest's bytes of an image as a storage, so that a format stands on
 * another one: QCOW2 on LUKS, for instance. It grows where the image below can
 * be resized.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "image/internal.h"
#include "image/node.h"

struct nested {
    struct rhea_storage head;
    struct rhea_image *image;
    pthread_rwlock_t lock; /* held for writing by who changes the size */
};

static int nested_size(struct rhea_storage *s, uint64_t *size,
                       struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    (void)err;
    pthread_rwlock_rdlock(&n->lock);
    *size = rhea_image_size(n->image);
    pthread_rwlock_unlock(&n->lock);
    return 0;
}

static int64_t nested_pread(struct rhea_storage *s, void *buf, size_t len,
                            uint64_t offset, struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    pthread_rwlock_rdlock(&n->lock);
    uint64_t size = rhea_image_size(n->image);
    len = offset < size ? (size_t)RHEA_MIN(len, size - offset) : 0;
    int ret = len ? rhea_image_read(n->image, buf, len, offset, err) : 0;
    pthread_rwlock_unlock(&n->lock);
    return ret ? ret : (int64_t)len;
}

/* Change the size; the lock is held for writing. */
static int nested_resize(struct nested *n, uint64_t size,
                         struct rhea_error *err)
{
    struct rhea_format *f = n->image->format;
    struct rhea_resize how = {.size = align_up(size, 512), .shrink = true};
    if (how.size == f->size)
        return 0;
    if (!f->ops->resize)
        return rhea_error_set(err, EOPNOTSUPP,
                              "the %s image '%s' cannot be resized",
                              f->ops->name, n->image->filename);
    return f->ops->resize(f, &how, err);
}

/* Hold the lock for reading while the image is at least END bytes large. */
static int nested_grow(struct nested *n, uint64_t end, struct rhea_error *err)
{
    int ret = 0;
    pthread_rwlock_rdlock(&n->lock);
    while (!ret && end > rhea_image_size(n->image)) {
        pthread_rwlock_unlock(&n->lock);
        pthread_rwlock_wrlock(&n->lock);
        if (end > rhea_image_size(n->image))
            ret = nested_resize(n, end, err);
        pthread_rwlock_unlock(&n->lock);
        pthread_rwlock_rdlock(&n->lock);
    }
    if (ret)
        pthread_rwlock_unlock(&n->lock);
    return ret;
}

static int nested_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                         uint64_t offset, struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    int ret = nested_grow(n, offset + len, err);
    if (ret)
        return ret;
    ret = rhea_image_write(n->image, buf, len, offset, err);
    pthread_rwlock_unlock(&n->lock);
    return ret;
}

static int nested_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                       bool punch, struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    int ret = nested_grow(n, offset + len, err);
    if (ret)
        return ret;
    ret = rhea_image_write_zeroes(n->image, offset, len, punch, err);
    pthread_rwlock_unlock(&n->lock);
    return ret;
}

/* What is not there need not be given back. */
static int nested_discard(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    pthread_rwlock_rdlock(&n->lock);
    uint64_t size = rhea_image_size(n->image);
    int ret = 0;
    if (offset < size)
        ret = rhea_image_discard(n->image, offset, RHEA_MIN(len, size - offset),
                                 err);
    pthread_rwlock_unlock(&n->lock);
    return ret;
}

/* Space for what is written later cannot be promised by every format; growing
 * is all that is done. */
static int nested_allocate(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    int ret = nested_grow(n, offset + len, err);
    if (!ret)
        pthread_rwlock_unlock(&n->lock);
    return ret;
}

static int nested_truncate(struct rhea_storage *s, uint64_t size,
                           struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    pthread_rwlock_wrlock(&n->lock);
    int ret = nested_resize(n, size, err);
    pthread_rwlock_unlock(&n->lock);
    return ret;
}

static int nested_flush(struct rhea_storage *s, struct rhea_error *err)
{
    return rhea_image_flush(((struct nested *)s)->image, err);
}

static int nested_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                         bool *hole, uint64_t *run, struct rhea_error *err)
{
    struct nested *n = (struct nested *)s;
    struct rhea_image_extent x;
    pthread_rwlock_rdlock(&n->lock);
    uint64_t size = rhea_image_size(n->image);
    int ret = 0;
    *hole = true;
    *run = len;
    if (offset < size)
        ret = rhea_image_map(n->image, offset, RHEA_MIN(len, size - offset), &x,
                             err);
    pthread_rwlock_unlock(&n->lock);
    if (ret || offset >= size)
        return ret;
    *hole = x.extent.kind == RHEA_EXTENT_ZERO ||
            x.extent.kind == RHEA_EXTENT_UNALLOCATED;
    *run = x.extent.length;
    return 0;
}

static int nested_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
                       struct rhea_error *err)
{
    return rhea_storage_lock(((struct nested *)s)->image->storage, perm, shared,
                             err);
}

static struct rhea_storage *nested_inner(const struct rhea_storage *s)
{
    return ((const struct nested *)s)->image->storage;
}

static void nested_close(struct rhea_storage *s)
{
    struct nested *n = (struct nested *)s;
    rhea_image_close(n->image, NULL);
    pthread_rwlock_destroy(&n->lock);
    free(s->path);
    free(n);
}

static const struct rhea_storage_ops nested_ops = {
    .name = "image",
    .pread = nested_pread,
    .pwrite = nested_pwrite,
    .flush = nested_flush,
    .size = nested_size,
    .truncate = nested_truncate,
    .zero = nested_zero,
    .discard = nested_discard,
    .allocate = nested_allocate,
    .extent = nested_extent,
    .lock = nested_lock,
    .inner = nested_inner,
    .close = nested_close,
};

struct rhea_image *nested_image(struct rhea_storage *s)
{
    while (s && s->ops != &nested_ops)
        s = s->ops->inner ? s->ops->inner(s) : NULL;
    return s ? ((struct nested *)s)->image : NULL;
}

int nested_open(struct rhea_storage **out, struct rhea_image *image,
                struct rhea_error *err)
{
    if (image->is_raw && !image->filters)
        return slice_open(out, image, err);
    struct nested *n = calloc(1, sizeof(*n));
    char *path = strdup(image->filename);
    if (!n || !path) {
        free(n);
        free(path);
        rhea_image_close(image, NULL);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    n->head.ops = &nested_ops;
    n->head.path = path;
    n->head.writable = image->flags & RHEA_IMAGE_WRITE;
    n->image = image;
    pthread_rwlock_init(&n->lock, NULL);
    *out = &n->head;
    return 0;
}
