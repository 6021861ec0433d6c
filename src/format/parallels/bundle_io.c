/* SPDX-License-Identifier: MIT */
/* The guest's bytes of a bundle: through its parts, and in each through the
 * files of its snapshots. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "format/parallels/bundle.h"

struct bundle_part *bundle_part_at(const struct bundle *b, uint64_t offset)
{
    size_t from = 0, to = b->n_parts - 1;
    while (from < to) {
        size_t middle = from + (to - from + 1) / 2;
        if (b->parts[middle].start <= offset)
            from = middle;
        else
            to = middle - 1;
    }
    return &b->parts[from];
}

/* All of a plain file counts; where it is a hole, or ends too soon, zeroes. */
static int map_plain(struct bundle_file *file, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err)
{
    uint64_t size, run = len;
    bool hole = true;
    int ret = rhea_storage_size(file->storage, &size, err);
    if (!ret && offset < size)
        ret =
            rhea_storage_extent(file->storage, offset,
                                RHEA_MIN(len, size - offset), &hole, &run, err);
    if (ret)
        return ret;
    *extent = (struct rhea_extent){
        .kind = hole ? RHEA_EXTENT_ZERO : RHEA_EXTENT_DATA,
        .length = run,
        .has_host = offset < size,
        .host = offset,
        .stored_length = run,
        .storage = file->storage,
    };
    return 0;
}

int bundle_map_file(struct bundle_file *file, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err)
{
    if (!file->hds)
        return map_plain(file, offset, len, extent, err);
    if (offset < file->hds->size)
        return file->hds->ops->map(file->hds, offset, len, extent, err);
    /* A disk that was smaller ends in zeroes. */
    *extent = (struct rhea_extent){.kind = RHEA_EXTENT_ZERO, .length = len};
    return 0;
}

int bundle_map_files(struct bundle_file *file, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err)
{
    *extent =
        (struct rhea_extent){.kind = RHEA_EXTENT_UNALLOCATED, .length = len};
    for (; file; file = file->lower) {
        int ret = bundle_map_file(file, offset, len, extent, err);
        if (ret || extent->kind != RHEA_EXTENT_UNALLOCATED)
            return ret;
        len = extent->length;
    }
    return 0;
}

int bundle_read_below(void *opaque, uint64_t offset, void *buf, size_t len,
                      struct rhea_error *err)
{
    const struct bundle_file *file = opaque;
    uint8_t *p = buf;
    while (len) {
        struct rhea_extent x;
        int ret = bundle_map_files(file->lower, offset, len, &x, err);
        if (ret)
            return ret;
        if (x.kind == RHEA_EXTENT_DATA)
            ret = rhea_storage_read_padded(x.storage, p, (size_t)x.length,
                                           x.host, err);
        else
            memset(p, 0, (size_t)x.length);
        if (ret)
            return ret;
        p += x.length;
        offset += x.length;
        len -= (size_t)x.length;
    }
    return 0;
}

int bundle_map(struct rhea_format *f, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    if (offset >= f->size || len == 0)
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    pthread_rwlock_rdlock(&b->lock);
    const struct bundle_part *part = bundle_part_at(b, offset);
    offset -= part->start;
    len = RHEA_MIN(len, part->size - offset);
    int ret = bundle_map_files(part->top, offset, len, extent, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

/* --- Writing --- */

int bundle_write_file(struct bundle_file *file, uint64_t offset,
                      const void *buf, size_t len, struct rhea_error *err)
{
    file->written = true;
    return file->hds ? file->hds->ops->write(file->hds, offset, buf, len, err)
                     : rhea_storage_write(file->storage, buf, len, offset, err);
}

static int zero_file(struct bundle_file *file, uint64_t offset, uint64_t len,
                     bool unmap, struct rhea_error *err)
{
    file->written = true;
    return file->hds
               ? file->hds->ops->write_zeroes(file->hds, offset, len, unmap,
                                              err)
               : rhea_storage_zero(file->storage, offset, len, unmap, err);
}

static int discard_file(struct bundle_file *file, uint64_t offset, uint64_t len,
                        struct rhea_error *err)
{
    file->written = true;
    return file->hds ? file->hds->ops->discard(file->hds, offset, len, err)
                     : rhea_storage_discard(file->storage, offset, len, err);
}

enum change { CHANGE_WRITE, CHANGE_ZERO, CHANGE_UNMAP, CHANGE_DISCARD };

static int change_part(const struct bundle_part *part, enum change change,
                       uint64_t at, const uint8_t *buf, uint64_t len,
                       struct rhea_error *err)
{
    if (!part->top->writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    if (change == CHANGE_WRITE)
        return bundle_write_file(part->top, at, buf, (size_t)len, err);
    if (change == CHANGE_DISCARD)
        return discard_file(part->top, at, len, err);
    return zero_file(part->top, at, len, change == CHANGE_UNMAP, err);
}

/* BUF is for CHANGE_WRITE. */
static int change_parts(struct bundle *b, enum change change, uint64_t offset,
                        const uint8_t *buf, uint64_t len,
                        struct rhea_error *err)
{
    int ret = 0;
    if (!range_inside(offset, len, b->base.size))
        return rhea_error_set(err, EINVAL,
                              "cannot write %" PRIu64
                              " bytes at guest offset %" PRIu64
                              ": past the end of the image",
                              len, offset);
    pthread_rwlock_rdlock(&b->lock);
    while (!ret && len) {
        const struct bundle_part *part = bundle_part_at(b, offset);
        uint64_t at = offset - part->start;
        uint64_t n = RHEA_MIN(len, part->size - at);
        ret = change_part(part, change, at, buf, n, err);
        buf = buf ? buf + n : NULL;
        offset += n;
        len -= n;
    }
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

int bundle_write(struct rhea_format *f, uint64_t offset, const void *buf,
                 size_t len, struct rhea_error *err)
{
    return change_parts(bundle_of(f), CHANGE_WRITE, offset, buf, len, err);
}

int bundle_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                        bool unmap, struct rhea_error *err)
{
    return change_parts(bundle_of(f), unmap ? CHANGE_UNMAP : CHANGE_ZERO,
                        offset, NULL, len, err);
}

int bundle_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_error *err)
{
    return change_parts(bundle_of(f), CHANGE_DISCARD, offset, NULL, len, err);
}

/* All that were written to are flushed, also where one fails. */
int bundle_flush(struct rhea_format *f, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    int ret = 0;
    pthread_rwlock_rdlock(&b->lock);
    for (size_t i = 0; i < b->n_parts; i++) {
        struct bundle_file *file = b->parts[i].top;
        if (!atomic_exchange(&file->written, false))
            continue;
        struct rhea_error *to = ret ? NULL : err;
        int one = file->hds ? file->hds->ops->flush(file->hds, to)
                            : rhea_storage_flush(file->storage, to);
        /* The next flush must not say that all is well. */
        if (one)
            file->written = true;
        ret = ret ? ret : one;
    }
    pthread_rwlock_unlock(&b->lock);
    return ret;
}
