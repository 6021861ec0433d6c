/* SPDX-License-Identifier: MIT */
/*
 * Raw: the guest's bytes and nothing else. The size is the file's, rounded up
 * to a sector; what the file does not hold of the last one reads as zeroes.
 * Holes of the file are reported as zeroes.
 *
 * With options offset and size it is a part of the file: from that offset on,
 * to the end or that many bytes.
 *
 * There is nothing to check, and nothing in the file says what it is: raw is
 * what remains when no other format fits.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/prealloc.h"

extern const struct rhea_format_ops rhea_format_raw;

enum { RAW_SECTOR = 512, RAW_BLOCK = 4096 };

enum raw_kind {
    RAW_DATA,
    RAW_HOLE,
    RAW_PAST, /* the end of the file, in its last sector */
};

struct raw {
    struct rhea_format base;
    uint64_t offset; /* of the first byte in the storage */
    bool fixed;      /* the size was asked for */
    /* The run of data or hole that was found last, kept only where nobody
     * writes: some file systems look at every page of it to find its end. */
    pthread_mutex_t lock;
    uint64_t start, end; /* guest offsets */
    enum raw_kind kind;
};

static int raw_probe(const uint8_t *head, size_t len)
{
    (void)head;
    (void)len;
    return 1;
}

/* What part of FILE_SIZE bytes the image is. */
static int raw_take_options(const struct rhea_format_open *how,
                            uint64_t file_size, uint64_t *offset,
                            uint64_t *size, bool *fixed, struct rhea_error *err)
{
    bool has_size = false;
    *offset = 0;
    for (size_t i = 0; i < how->n_options; i++) {
        const struct rhea_option *o = &how->options[i];
        bool is_size = strcmp(o->name, "size") == 0;
        if (!is_size && strcmp(o->name, "offset") != 0)
            return option_unknown(o, "raw", err);
        int ret = option_size(o, is_size ? size : offset, err);
        if (ret)
            return ret;
        has_size |= is_size;
    }
    *fixed = has_size;
    if (*offset > file_size)
        return rhea_error_set(err, EINVAL,
                              "option offset lies behind the end of the file, "
                              "which has %" PRIu64 " bytes",
                              file_size);
    if (!has_size)
        *size = file_size - *offset;
    else if (*size > file_size - *offset)
        return rhea_error_set(err, EINVAL,
                              "options offset and size reach behind the end of "
                              "the file, which has %" PRIu64 " bytes",
                              file_size);
    else if (!is_aligned(*size, RAW_SECTOR))
        return rhea_error_set(
            err, EINVAL, "option size is not a multiple of %d", RAW_SECTOR);
    return 0;
}

static int raw_open(struct rhea_format **out,
                    const struct rhea_format_open *how, struct rhea_error *err)
{
    uint64_t file_size, size = 0, offset = 0;
    bool fixed = false;
    int ret = rhea_storage_size(how->storage, &file_size, err);
    if (ret)
        return ret;
    if (file_size > (INT64_MAX & ~(RAW_SECTOR - 1)))
        return rhea_error_set(err, EFBIG, "the file is too large");
    ret = raw_take_options(how, file_size, &offset, &size, &fixed, err);
    if (ret)
        return ret;
    struct raw *r = calloc(1, sizeof(*r));
    if (!r)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r->base.ops = &rhea_format_raw;
    r->base.storage = how->storage;
    r->base.size = align_up(size, RAW_SECTOR);
    r->offset = offset;
    r->fixed = fixed;
    pthread_mutex_init(&r->lock, NULL);
    *out = &r->base;
    return 0;
}

static int raw_close(struct rhea_format *f, struct rhea_error *err)
{
    int ret = f->storage->writable ? rhea_storage_flush(f->storage, err) : 0;
    struct raw *r = (struct raw *)f;
    pthread_mutex_destroy(&r->lock);
    free(r);
    return ret;
}

static void raw_info(struct rhea_format *f, struct rhea_format_info *info)
{
    *info = (struct rhea_format_info){.virtual_size = f->size};
}

/* The run of data or hole around guest OFFSET, from the storage. *END is past
 * it. */
static int raw_ask(const struct raw *r, uint64_t offset, uint64_t len,
                   enum raw_kind *kind, uint64_t *end, struct rhea_error *err)
{
    struct rhea_storage *storage = r->base.storage;
    uint64_t size, run, host = r->offset + offset;
    bool hole;
    /* Asked each time: a write may have completed the last sector. */
    int ret = rhea_storage_size(storage, &size, err);
    if (ret)
        return ret;
    if (host >= size) {
        *kind = RAW_PAST;
        *end = offset + len;
        return 0;
    }
    ret = rhea_storage_extent(storage, host, RHEA_MIN(len, size - host), &hole,
                              &run, err);
    if (ret)
        return ret;
    *kind = hole ? RAW_HOLE : RAW_DATA;
    *end = offset + run;
    return 0;
}

static int raw_find_run(struct raw *r, uint64_t offset, uint64_t len,
                        enum raw_kind *kind, uint64_t *end,
                        struct rhea_error *err)
{
    if (r->base.storage->writable)
        return raw_ask(r, offset, len, kind, end, err);

    RHEA_LOCKED(&r->lock);
    if (offset < r->start || offset >= r->end) {
        r->end = 0;
        int ret = raw_ask(r, offset, r->base.size - offset, &r->kind, end, err);
        if (ret)
            return ret;
        r->start = offset;
        r->end = *end;
    }
    *kind = r->kind;
    *end = r->end;
    return 0;
}

static int raw_map(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err)
{
    if (offset >= f->size || len == 0)
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    len = RHEA_MIN(len, f->size - offset);

    enum raw_kind kind = RAW_PAST;
    uint64_t end = 0;
    int ret = raw_find_run((struct raw *)f, offset, len, &kind, &end, err);
    if (ret)
        return ret;
    len = RHEA_MIN(len, end - offset);
    *extent = (struct rhea_extent){
        .kind = kind == RAW_DATA ? RHEA_EXTENT_DATA : RHEA_EXTENT_ZERO,
        .length = len,
        .has_host = kind != RAW_PAST,
        .host = ((const struct raw *)f)->offset + offset,
        .stored_length = len,
        .storage = f->storage,
    };
    return 0;
}

static int raw_write(struct rhea_format *f, uint64_t offset, const void *buf,
                     size_t len, struct rhea_error *err)
{
    rhea_storage_event(f->storage, "write_aio");
    return rhea_storage_write(f->storage, buf, len,
                              ((struct raw *)f)->offset + offset, err);
}

static int raw_clone(struct rhea_format *f, uint64_t offset,
                     struct rhea_storage *from, uint64_t from_offset,
                     uint64_t len, struct rhea_error *err)
{
    rhea_storage_event(f->storage, "write_aio");
    return rhea_storage_clone(f->storage, ((struct raw *)f)->offset + offset,
                              from, from_offset, len, err);
}

static int raw_write_zeroes(struct rhea_format *f, uint64_t offset,
                            uint64_t len, bool unmap, struct rhea_error *err)
{
    return rhea_storage_zero(f->storage, ((struct raw *)f)->offset + offset,
                             len, unmap, err);
}

static int raw_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                       struct rhea_error *err)
{
    return rhea_storage_discard(f->storage, ((struct raw *)f)->offset + offset,
                                len, err);
}

static int raw_flush(struct rhea_format *f, struct rhea_error *err)
{
    return rhea_storage_flush(f->storage, err);
}

/* On a device or an export, whose size is what it is, the image may leave some
 * of it unused. */
static int raw_set_size(struct rhea_storage *storage, uint64_t size,
                        struct rhea_error *err)
{
    uint64_t now;
    if (!rhea_file_is_regular(storage) &&
        rhea_storage_size(storage, &now, NULL) == 0 && now >= size)
        return 0;
    return rhea_storage_truncate(storage, size, err);
}

/* A new file of SIZE bytes that are a hole, save for the first block: on some
 * file systems QEMU finds out by reading it how direct access must be aligned,
 * and a hole tells nothing. */
static int raw_set_new_size(struct rhea_storage *storage, uint64_t size,
                            struct rhea_error *err)
{
    static const uint8_t block[RAW_BLOCK];
    int ret = raw_set_size(storage, size, err);
    if (ret || !size || !rhea_file_is_regular(storage))
        return ret;
    return rhea_storage_write(
        storage, block, size < RAW_BLOCK ? RAW_SECTOR : RAW_BLOCK, 0, err);
}

static int raw_create(struct rhea_storage *storage,
                      const struct rhea_create *how, struct rhea_error *err)
{
    const char *preallocation = "off";
    for (size_t i = 0; i < how->n_options; i++) {
        if (strcmp(how->options[i].name, "preallocation") != 0)
            return option_unknown(&how->options[i], "raw", err);
        preallocation = how->options[i].value;
    }
    bool full = strcmp(preallocation, "full") == 0;
    bool falloc = strcmp(preallocation, "falloc") == 0;
    if (!full && !falloc && strcmp(preallocation, "off") != 0)
        return rhea_error_set(err, EINVAL,
                              "preallocation is 'off', 'falloc' or 'full', not "
                              "'%s'",
                              preallocation);
    if (how->backing_file)
        return rhea_error_set(err, EINVAL,
                              "a raw image cannot have a backing file");
    if (how->size > (INT64_MAX & ~(RAW_SECTOR - 1)))
        return rhea_error_set(err, EFBIG, "no file can have %" PRIu64 " bytes",
                              how->size);

    uint64_t size = align_up(how->size, RAW_SECTOR);
    int ret = 0;
    if (full)
        ret = prealloc_fill_told(storage, 0, size, how->progress, err);
    else if (falloc && size)
        ret = rhea_storage_allocate(storage, 0, size, err);
    else
        ret = raw_set_new_size(storage, size, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    return ret;
}

/* Holes count as if they were data. */
static int raw_measure(const struct rhea_measure *what,
                       struct rhea_measured *out, struct rhea_error *err)
{
    (void)err;
    *out = (struct rhea_measured){.required = what->size,
                                  .fully_allocated = what->size};
    return 0;
}

/* There are no tables: the file's size is the image's. */
static int raw_resize(struct rhea_format *f, const struct rhea_resize *how,
                      struct rhea_error *err)
{
    const char *mode = how->preallocation ? how->preallocation : "off";
    bool full = strcmp(mode, "full") == 0, falloc = strcmp(mode, "falloc") == 0;
    const struct raw *r = (const struct raw *)f;
    uint64_t old, new;
    if (r->fixed)
        return rhea_error_set(err, ENOTSUP,
                              "the image was opened with option size, which "
                              "fixes its size");
    if (!full && !falloc && strcmp(mode, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "preallocation of a raw image is 'off', 'falloc' "
                              "or 'full', not '%s'",
                              mode);
    if (!add_u64(r->offset, how->size, &new) ||
        new > (INT64_MAX & ~(RAW_SECTOR - 1)))
        return rhea_error_set(err, EFBIG, "no file can be so large");
    int ret = rhea_storage_size(f->storage, &old, err);
    if (ret)
        return ret;
    if (how->size < f->size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "the image would lose what lies behind its new "
                              "end");
    if (falloc && new > old)
        ret = rhea_storage_allocate(f->storage, old, new - old, err);
    else if (full && new > old)
        ret = prealloc_fill_told(f->storage, old, new, how->progress, err);
    else
        ret = rhea_storage_truncate(f->storage, new, err);
    if (ret) {
        if (new > old)
            (void)rhea_storage_truncate(f->storage, old, NULL);
        return ret;
    }
    f->size = align_up(how->size, RAW_SECTOR);
    return rhea_storage_flush(f->storage, err);
}

static const struct rhea_option_help raw_options[] = {
    {"size", "size", "Virtual disk size"},
    {"preallocation", "str",
     "Space reserved at once: off (default), falloc or full (written)"},
    {0},
};

static const char *const raw_strong_options[] = {"offset", "size", NULL};

const struct rhea_format_ops rhea_format_raw = {
    .name = "raw",
    .create_options = raw_options,
    .strong_options = raw_strong_options,
    .probe = raw_probe,
    .open = raw_open,
    .close = raw_close,
    .info = raw_info,
    .map = raw_map,
    .write = raw_write,
    .clone = raw_clone,
    .write_zeroes = raw_write_zeroes,
    .discard = raw_discard,
    .flush = raw_flush,
    .create = raw_create,
    .measure = raw_measure,
    .resize = raw_resize,
};
