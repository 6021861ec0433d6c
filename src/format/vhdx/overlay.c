/* SPDX-License-Identifier: MIT */
/*
 * A file that cannot or must not be written to, as it will be when its log has
 * been replayed. Only where the log's sectors go is kept in memory; their bytes
 * are read from the log, which does not change meanwhile.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "format/vhdx/vhdx.h"

enum {
    /* 256 times what a log of Windows' size can hold. */
    SECTORS_MAX = 1 << 16,
    /* They are gone through one by one. */
    ZEROES_MAX = 256,
};

/* A sector that the log replaces. */
struct overlay_sector {
    uint64_t offset, order;
    uint64_t data_at; /* in the file */
    uint8_t leading[VHDX_S_DATA], trailing[4];
};

struct overlay_zeroes {
    uint64_t offset, length, order;
};

struct overlay {
    struct rhea_storage head;
    struct rhea_storage *file;
    struct overlay_sector *sectors; /* sorted by offset, each there once */
    size_t n_sectors, sectors_size;
    struct overlay_zeroes zeroes[ZEROES_MAX];
    size_t n_zeroes;
    uint64_t size; /* of the file, at least */
};

static int overlay_too_large(struct rhea_error *err)
{
    return rhea_error_set(err, EFBIG,
                          "the log of this VHDX image is too large to be read "
                          "without being replayed; replay it with "
                          "'check -r all'");
}

static int overlay_add_zeroes(struct overlay *o, const struct vhdx_update *u,
                              struct rhea_error *err)
{
    if (o->n_zeroes == ZEROES_MAX)
        return overlay_too_large(err);
    o->zeroes[o->n_zeroes++] =
        (struct overlay_zeroes){u->offset, u->length, u->order};
    return 0;
}

static int overlay_add(void *opaque, const struct vhdx_update *u,
                       struct rhea_error *err)
{
    struct overlay *o = opaque;
    o->size = RHEA_MAX(o->size, u->offset + u->length);
    if (!u->data)
        return overlay_add_zeroes(o, u, err);
    if (o->n_sectors == SECTORS_MAX)
        return overlay_too_large(err);
    if (o->n_sectors == o->sectors_size) {
        size_t n = o->sectors_size ? 2 * o->sectors_size : 64;
        struct overlay_sector *p = reallocarray(o->sectors, n, sizeof(*p));
        if (!p)
            return rhea_error_set(err, ENOMEM, "out of memory");
        o->sectors = p;
        o->sectors_size = n;
    }
    struct overlay_sector *s = &o->sectors[o->n_sectors++];
    *s = (struct overlay_sector){
        .offset = u->offset,
        .order = u->order,
        .data_at = u->data_at,
    };
    memcpy(s->leading, u->data, sizeof(s->leading));
    memcpy(s->trailing, u->data + VHDX_S_SEQUENCE_LOW, sizeof(s->trailing));
    return 0;
}

/* By offset; of the same offset the newest first. */
static int sector_compare(const void *a, const void *b)
{
    const struct overlay_sector *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->order > y->order ? -1 : x->order < y->order;
}

static void overlay_sort(struct overlay *o)
{
    size_t n = 0;
    if (o->n_sectors)
        qsort(o->sectors, o->n_sectors, sizeof(*o->sectors), sector_compare);
    for (size_t i = 0; i < o->n_sectors; i++)
        if (n == 0 || o->sectors[i].offset != o->sectors[n - 1].offset)
            o->sectors[n++] = o->sectors[i];
    o->n_sectors = n;
}

/* The first sector that ends behind OFFSET. */
static size_t overlay_find(const struct overlay *o, uint64_t offset)
{
    size_t from = 0, to = o->n_sectors;
    while (from < to) {
        size_t middle = (from + to) / 2;
        if (o->sectors[middle].offset + VHDX_LOG_SECTOR <= offset)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* The newest zeroes at OFFSET; *LEN is shortened so that it is the same for all
 * of it. */
static const struct overlay_zeroes *
overlay_zeroes_at(const struct overlay *o, uint64_t offset, uint64_t *len)
{
    const struct overlay_zeroes *found = NULL;
    for (size_t i = 0; i < o->n_zeroes; i++) {
        const struct overlay_zeroes *z = &o->zeroes[i];
        uint64_t end = z->offset + z->length;
        if (offset < z->offset) {
            *len = RHEA_MIN(*len, z->offset - offset);
        } else if (offset < end) {
            *len = RHEA_MIN(*len, end - offset);
            found = z; /* they are in order */
        }
    }
    return found;
}

/* What the log says of OFFSET, for *LEN bytes: a sector, zeroes or neither. */
static void overlay_look(const struct overlay *o, uint64_t offset,
                         uint64_t *len, const struct overlay_sector **sector,
                         const struct overlay_zeroes **zeroes)
{
    size_t i = overlay_find(o, offset);
    *sector = NULL;
    *zeroes = overlay_zeroes_at(o, offset, len);
    if (i == o->n_sectors)
        return;
    const struct overlay_sector *s = &o->sectors[i];
    if (s->offset > offset) {
        *len = RHEA_MIN(*len, s->offset - offset);
        return;
    }
    *len = RHEA_MIN(*len, s->offset + VHDX_LOG_SECTOR - offset);
    if (*zeroes && (*zeroes)->order > s->order)
        return;
    *zeroes = NULL;
    *sector = s;
}

static int overlay_read_sector(const struct overlay *o,
                               const struct overlay_sector *s, uint8_t *buf,
                               size_t len, uint64_t offset,
                               struct rhea_error *err)
{
    uint8_t bytes[VHDX_LOG_SECTOR];
    int ret = rhea_storage_read_padded(o->file, bytes, sizeof(bytes),
                                       s->data_at, err);
    if (ret)
        return ret;
    memcpy(bytes, s->leading, sizeof(s->leading));
    memcpy(bytes + VHDX_S_SEQUENCE_LOW, s->trailing, sizeof(s->trailing));
    memcpy(buf, bytes + (offset - s->offset), len);
    return 0;
}

static int64_t overlay_pread(struct rhea_storage *s, void *buf, size_t len,
                             uint64_t offset, struct rhea_error *err)
{
    struct overlay *o = (struct overlay *)s;
    uint8_t *p = buf;
    if (offset >= o->size)
        return 0;
    len = (size_t)RHEA_MIN(len, o->size - offset);
    for (size_t left = len; left;) {
        uint64_t run = left;
        const struct overlay_sector *sector;
        const struct overlay_zeroes *zeroes;
        overlay_look(o, offset, &run, &sector, &zeroes);
        size_t n = (size_t)run;
        int ret = 0;
        if (sector)
            ret = overlay_read_sector(o, sector, p, n, offset, err);
        else if (zeroes)
            memset(p, 0, n);
        else
            ret = rhea_storage_read_padded(o->file, p, n, offset, err);
        if (ret)
            return ret;
        p += n;
        offset += n;
        left -= n;
    }
    return (int64_t)len;
}

static int overlay_refuse(struct rhea_error *err)
{
    return rhea_error_set(err, EACCES,
                          "the log of this VHDX image has not been replayed");
}

static int overlay_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                          uint64_t offset, struct rhea_error *err)
{
    (void)s;
    (void)buf;
    (void)len;
    (void)offset;
    return overlay_refuse(err);
}

static int overlay_flush(struct rhea_storage *s, struct rhea_error *err)
{
    (void)s;
    (void)err;
    return 0;
}

static int overlay_size(struct rhea_storage *s, uint64_t *size,
                        struct rhea_error *err)
{
    (void)err;
    *size = ((struct overlay *)s)->size;
    return 0;
}

static int overlay_truncate(struct rhea_storage *s, uint64_t size,
                            struct rhea_error *err)
{
    (void)s;
    (void)size;
    return overlay_refuse(err);
}

static int overlay_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                        bool punch, struct rhea_error *err)
{
    (void)s;
    (void)offset;
    (void)len;
    (void)punch;
    return overlay_refuse(err);
}

static int overlay_allocate(struct rhea_storage *s, uint64_t offset,
                            uint64_t len, struct rhea_error *err)
{
    (void)s;
    (void)offset;
    (void)len;
    return overlay_refuse(err);
}

static int overlay_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                          bool *hole, uint64_t *run, struct rhea_error *err)
{
    struct overlay *o = (struct overlay *)s;
    const struct overlay_sector *sector;
    const struct overlay_zeroes *zeroes;
    uint64_t size;
    int ret = rhea_storage_size(o->file, &size, err);
    if (ret)
        return ret;
    *run = len;
    overlay_look(o, offset, run, &sector, &zeroes);
    *hole = zeroes || (!sector && offset >= size);
    if (*hole || sector)
        return 0;
    return rhea_storage_extent(o->file, offset, RHEA_MIN(*run, size - offset),
                               hole, run, err);
}

static struct rhea_storage *overlay_inner(const struct rhea_storage *s)
{
    return ((const struct overlay *)s)->file;
}

static void overlay_event(struct rhea_storage *s, const char *name)
{
    rhea_storage_event(((struct overlay *)s)->file, name);
}

/* The file stays the image's. */
static void overlay_close(struct rhea_storage *s)
{
    struct overlay *o = (struct overlay *)s;
    free(o->sectors);
    free(o->head.path);
    free(o);
}

static const struct rhea_storage_ops overlay_ops = {
    .name = "vhdx-log",
    .pread = overlay_pread,
    .pwrite = overlay_pwrite,
    .flush = overlay_flush,
    .size = overlay_size,
    .truncate = overlay_truncate,
    .zero = overlay_zero,
    .allocate = overlay_allocate,
    .extent = overlay_extent,
    .inner = overlay_inner,
    .event = overlay_event,
    .close = overlay_close,
};

int vhdx_overlay_open(struct rhea_storage **out, struct vhdx *v,
                      const struct vhdx_sequence *s, struct rhea_error *err)
{
    struct overlay *o = calloc(1, sizeof(*o));
    if (!o)
        return rhea_error_set(err, ENOMEM, "out of memory");
    o->head.ops = &overlay_ops;
    o->file = v->base.storage;
    int ret = rhea_storage_size(o->file, &o->size, err);
    if (o->file->path && !ret && !(o->head.path = strdup(o->file->path)))
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    o->size = RHEA_MAX(o->size, s->last);
    if (!ret)
        ret = vhdx_log_walk(v, s, overlay_add, o, err);
    if (ret) {
        overlay_close(&o->head);
        return ret;
    }
    overlay_sort(o);
    *out = &o->head;
    return 0;
}
