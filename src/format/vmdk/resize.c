/* SPDX-License-Identifier: MIT */
/*
 * The size of an image: its last extent grows, as far as its type lets it, and
 * others follow it.
 *
 * Order of writes when it grows: new extents are made, each durable; what the
 * last one so far has behind its end is made to read as zeroes, and its tables
 * get larger, which nobody sees yet (resize_sparse.c); flush; its header says
 * the new size; flush; the descriptor does (edit.c). Of an extent that has the
 * descriptor inside both are one write. A crash before leaves files that no
 * image names.
 *   When it shrinks: a new content id, for children would miss what is lost;
 * flush; the descriptor; the last extent's header; flush; only then what is
 * behind is given back, and files that are not named any more are removed.
 *
 * Growing shows no child anything new, so the content id stays.
 */
#include "format/vmdk/resize.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/prealloc.h"
#include "format/vmdk/edit.h"
#include "format/vmdk/header.h"

#define RESIZE_SPLIT ((uint64_t)2 << 30)

/* --- What is possible --- */

static int resize_check_extent(const struct vmdk_extent *x, uint64_t size,
                               struct rhea_error *err)
{
    if (x->h.compressed)
        return rhea_error_set(err, ENOTSUP,
                              "a compressed image (streamOptimized) is written "
                              "once and stays as large as it is; convert it to "
                              "another type to resize it");
    if (x->kind == VMDK_SESPARSE && size < x->size)
        return rhea_error_set(err, ENOTSUP,
                              "an image of type SESparse cannot become "
                              "smaller; convert it");
    if (!x->writable || !x->file)
        return rhea_error_set(err, EACCES,
                              "the disk would end in an extent that can only "
                              "be read");
    return 0;
}

/* Other extents may be in the same file, behind this one. */
static int resize_check_alone(const struct vmdk *v, size_t index,
                              struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    const char *name = index < d->n_extents ? d->extents[index].name : NULL;
    for (size_t i = 0; name && i < d->n_extents; i++)
        if (i != index && d->extents[i].name &&
            strcmp(d->extents[i].name, name) == 0)
            return rhea_error_set(err, ENOTSUP,
                                  "the file '%.200s' has more than one extent "
                                  "of the image; convert it to resize it",
                                  name);
    return 0;
}

static bool resize_is_split(const struct vmdk *v)
{
    const char *type = v->descriptor.create_type;
    return type && (strcasecmp(type, "twoGbMaxExtentSparse") == 0 ||
                    strcasecmp(type, "twoGbMaxExtentFlat") == 0);
}

/* VMware's extents are a bit smaller than 2 GiB: others become as large. */
static uint64_t resize_split(const struct vmdk *v)
{
    if (!resize_is_split(v))
        return UINT64_MAX;
    return v->n_extents > 1 ? RHEA_MIN(v->extents->size, RESIZE_SPLIT)
                            : RESIZE_SPLIT;
}

static int resize_check_mode(const struct resize *r, struct rhea_error *err)
{
    int ret = prealloc_check(r->mode, err);
    if (ret || strcmp(r->mode, "off") == 0)
        return ret;
    if (strcmp(r->mode, "metadata") == 0 ||
        vmdk_resize_last(r)->kind != VMDK_FLAT)
        return rhea_error_set(err, ENOTSUP,
                              "only flat extents can be preallocated, with "
                              "falloc or full");
    return 0;
}

static int resize_plan(struct resize *r, struct rhea_error *err)
{
    const struct vmdk *v = r->v;
    r->split = resize_split(v);
    if (!(v->flags & RHEA_FORMAT_WRITE) || !v->descriptor.text)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (!r->size || r->size > INT64_MAX)
        return rhea_error_set(
            err, EINVAL, "no VMDK can be %" PRIu64 " bytes large", r->size);
    r->last = v->n_extents - 1;
    while (v->extents[r->last].start >= r->size)
        r->last--;
    const struct vmdk_extent *x = vmdk_resize_last(r);
    r->last_size = RHEA_MIN(r->size - x->start, RHEA_MAX(x->size, r->split));
    int ret = resize_check_extent(x, r->last_size, err);
    for (size_t i = r->last + 1; !ret && i < v->n_extents; i++)
        if (v->extents[i].h.compressed)
            ret = resize_check_extent(&v->extents[i], 0, err);
    if (!ret && r->last_size != x->size)
        ret = resize_check_alone(v, r->last, err);
    return ret ? ret : resize_check_mode(r, err);
}

/* --- Text --- */

/* Cylinders as many as fit; heads and sectors are what a guest goes by. */
static int resize_geometry(const struct resize *r, char **text,
                           struct rhea_error *err)
{
    static const char *const names[] = {"ddb.geometry.heads",
                                        "ddb.geometry.sectors"};
    const struct descriptor *d = &r->v->descriptor;
    uint64_t product = 1;
    char value[24];
    size_t at, len;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        RHEA_AUTO_FREE char *number = descriptor_get(d, names[i]);
        uint64_t n = number ? strtoul(number, NULL, 10) : 0;
        if (!n || n > UINT8_MAX)
            return 0;
        product *= n;
    }
    if (!descriptor_find(d, "ddb.geometry.cylinders", &at, &len))
        return 0;
    RHEA_AUTO_FREE char *adapter = descriptor_get(d, "ddb.adapterType");
    uint64_t max =
        adapter && strcasecmp(adapter, "ide") != 0 ? UINT16_MAX : UINT64_MAX;
    uint64_t n = RHEA_MAX(r->size / VMDK_SECTOR / product, (uint64_t)1);
    snprintf(value, sizeof(value), "%" PRIu64, RHEA_MIN(n, max));
    return vmdk_edit_line(text, "ddb.geometry.cylinders", value, NULL, err);
}

/* The descriptor, and what of the header changes with it. */
static int resize_store(struct resize *r, const uint8_t *header,
                        struct rhea_error *err)
{
    struct vmdk *v = r->v;
    RHEA_LOCKED(&v->lock);
    RHEA_AUTO_FREE char *text =
        v->descriptor.n_extents ? descriptor_resize(&v->descriptor, r->last,
                                                    r->last_size / VMDK_SECTOR,
                                                    r->lines ? r->lines : "")
                                : strdup(v->descriptor.text);
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = resize_geometry(r, &text, err);
    return ret ? ret : vmdk_edit_store_with(v, rhea_steal(text), header, err);
}

/* Header, where there is one, and descriptor; SHRINK: this first. */
static int resize_commit(struct resize *r, bool shrink, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_resize_last(r);
    uint8_t p[HOSTED_HEADER_BYTES];
    uint64_t capacity =
        shrink ? r->last_size : RHEA_MAX(r->last_size, x->h.capacity);
    if (!x->has_blocks || capacity == x->h.capacity)
        return resize_store(r, NULL, err);
    int ret = vmdk_header_load(x, p, err);
    if (ret)
        return ret;
    vmdk_sparse_put_size(x, p, capacity);
    if (x->file == r->v->base.storage && r->v->descriptor.offset) {
        ret = rhea_storage_flush(x->file, err);
        if (!ret)
            ret = resize_store(r, p, err);
        x->h.capacity = ret ? x->h.capacity : capacity;
        return ret;
    }
    if (shrink)
        ret = resize_store(r, NULL, err);
    if (!ret)
        ret = vmdk_header_store(x, p, err);
    if (!ret)
        x->h.capacity = capacity;
    if (!ret && !shrink)
        ret = resize_store(r, NULL, err);
    return ret;
}

/* --- Growing --- */

/* What the file has behind the extent must not show. */
static int grow_flat(struct resize *r, struct vmdk_extent *x,
                     struct rhea_error *err)
{
    uint64_t from = x->flat_offset + x->size, file_size;
    uint64_t to = x->flat_offset + r->last_size;
    int ret = rhea_storage_size(x->file, &file_size, err);
    if (!ret && from < file_size)
        ret = rhea_storage_zero(x->file, from, RHEA_MIN(file_size, to) - from,
                                true, err);
    if (!ret && strcmp(r->mode, "full") == 0)
        ret = prealloc_fill_told(x->file, from, to, r->how->progress, err);
    else if (!ret && (file_size < to || strcmp(r->mode, "falloc") == 0))
        ret = prealloc_space_told(x->file, r->mode, from, to, r->how->progress,
                                  err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

static int grow_last(struct resize *r, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_resize_last(r);
    if (r->last_size == x->size)
        return 0;
    if (x->has_blocks)
        return vmdk_sparse_grow(x, r->last_size, r->how->hide_below, err);
    int ret = grow_flat(r, x, err);
    if (ret)
        return ret;
    x->size = r->last_size;
    x->run_from = x->run_to = 0;
    return 0;
}

static int resize_grow(struct resize *r, struct rhea_error *err)
{
    struct vmdk *v = r->v;
    uint64_t old = vmdk_resize_last(r)->size;
    /* No guest byte changes. */
    bool renewed = atomic_exchange(&v->renewed, true);
    int ret = vmdk_resize_more(r, err);
    if (!ret)
        ret = grow_last(r, err);
    if (!ret)
        ret = resize_commit(r, false, err);
    vmdk_resize_finish_more(r, !ret);
    struct vmdk_extent *x = vmdk_resize_last(r);
    if (ret)
        x->size = x->blocks.size = old;
    else
        v->base.size = r->size;
    atomic_store(&v->renewed, renewed);
    return ret;
}

/* --- Shrinking --- */

/* Extents that the image has no more: their files go, where no other extent is
 * in them. NAMES are theirs. */
static int shrink_remove(struct resize *r, char *const *names, size_t n,
                         struct rhea_error *err)
{
    struct vmdk *v = r->v;
    int ret = 0;
    for (size_t i = r->last + 1; i < v->n_extents; i++)
        vmdk_extent_finish(&v->extents[i]);
    v->n_extents = r->last + 1;
    for (size_t i = 0; !ret && i < n; i++)
        if (names[i])
            ret = v->files->remove(v->files->opaque, names[i], err);
    return ret;
}

static int shrink_give_back(struct resize *r, uint64_t old,
                            struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_resize_last(r);
    if (x->size == old)
        return 0;
    if (x->has_blocks)
        return vmdk_sparse_shrink(x, err);
    x->run_from = x->run_to = 0;
    int ret = rhea_storage_truncate(x->file, x->flat_offset + x->size, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

/* Of which files nobody else is in: their names, malloc'd. */
static int shrink_list(const struct resize *r, char **names,
                       struct rhea_error *err)
{
    const struct vmdk *v = r->v;
    const struct descriptor *d = &v->descriptor;
    if (!v->files || !v->files->remove)
        return 0;
    for (size_t i = r->last + 1; i < d->n_extents; i++) {
        const char *name = d->extents[i].name;
        bool alone = name && v->extents[i].writable && v->extents[i].file &&
                     v->extents[i].file != v->base.storage;
        for (size_t k = 0; alone && k < d->n_extents; k++)
            alone = k == i || !d->extents[k].name ||
                    strcmp(d->extents[k].name, name) != 0;
        names[i - r->last - 1] = alone ? strdup(name) : NULL;
        if (alone && !names[i - r->last - 1])
            return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static int resize_shrink(struct resize *r, struct rhea_error *err)
{
    struct vmdk *v = r->v;
    struct vmdk_extent *x = vmdk_resize_last(r);
    size_t n = v->n_extents - r->last - 1;
    uint64_t old = x->size;
    char **names = calloc(n + 1, sizeof(*names));
    int ret = names ? shrink_list(r, names, err)
                    : rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret)
        ret = vmdk_renew_identity(&v->base, err);
    if (!ret)
        ret = resize_commit(r, true, err);
    if (!ret) {
        x->size = x->blocks.size = r->last_size;
        v->base.size = r->size;
        ret = shrink_give_back(r, old, err);
    }
    if (!ret)
        ret = shrink_remove(r, names, n, err);
    for (size_t i = 0; names && i < n; i++)
        free(names[i]);
    free(names);
    return ret;
}

int vmdk_resize(struct rhea_format *f, const struct rhea_resize *how,
                struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    struct resize r = {
        .v = v,
        .how = how,
        .mode = how->preallocation ? how->preallocation : "off",
        .size = align_up(how->size, VMDK_SECTOR),
    };
    int ret = resize_plan(&r, err);
    if (ret || r.size == f->size)
        return ret;
    if (r.size < f->size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "what lies behind the new end would be lost");
    ret = vmdk_flush(f, err);
    if (!ret)
        ret = r.size < f->size ? resize_shrink(&r, err) : resize_grow(&r, err);
    free(r.lines);
    return ret;
}
