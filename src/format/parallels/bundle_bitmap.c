/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps of a bundle: those of the file that the guest writes to. In a split
 * disk each file has its own, which follow the guest's writes, but are nothing
 * that one name would stand for.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

/* --- Files that take another one's place --- */

int bundle_bitmaps_copy(struct bundle_file *to, struct bundle_file *from,
                        struct rhea_error *err)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    if (!from->hds)
        return 0;
    int ret = hds_bitmap_list(from->hds, &list, &n, err);
    for (size_t i = 0; !ret && i < n; i++) {
        size_t bytes =
            (size_t)div_up(div_up(from->hds->size, list[i].granularity), 8);
        RHEA_AUTO_FREE uint8_t *bits = calloc(1, bytes + 1);
        if (list[i].in_use)
            continue; /* its bits mean nothing */
        if (!bits)
            ret = rhea_error_set(err, ENOMEM, "out of memory");
        if (!ret)
            ret = hds_bitmap_load(from->hds, list[i].name, bits, bytes, err);
        if (!ret)
            ret = hds_bitmap_add(to->hds, &list[i], err);
        if (!ret)
            ret = hds_bitmap_store(to->hds, list[i].name, bits, bytes, err);
    }
    rhea_bitmaps_free(list, n);
    return ret;
}

int bundle_bitmaps_remove(struct bundle_file *file, struct rhea_error *err)
{
    struct rhea_bitmap *list = NULL;
    size_t n = 0;
    if (!file->hds)
        return 0;
    int ret = hds_bitmap_list(file->hds, &list, &n, err);
    for (size_t i = 0; !ret && i < n; i++)
        ret = hds_bitmap_remove(file->hds, list[i].name, err);
    rhea_bitmaps_free(list, n);
    return ret;
}

/* --- The interface --- */

/* The file that has them, NULL: none. */
static struct rhea_format *bitmap_file(const struct bundle *b)
{
    return b->n_parts == 1 ? b->parts[0].top->hds : NULL;
}

static int bitmap_need_file(const struct bundle *b, struct rhea_format **out,
                            struct rhea_error *err)
{
    *out = bitmap_file(b);
    if (*out)
        return 0;
    return rhea_error_set(err, ENOTSUP,
                          b->n_parts > 1
                              ? "a disk that is split into several files has "
                                "no bitmaps as a whole"
                              : "a disk that is a plain file has no bitmaps");
}

int bundle_bitmap_list(struct rhea_format *f, struct rhea_bitmap **list,
                       size_t *n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    int ret = 0;
    *list = NULL;
    *n = 0;
    pthread_rwlock_rdlock(&b->lock);
    struct rhea_format *file = bitmap_file(b);
    if (file)
        ret = hds_bitmap_list(file, list, n, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

int bundle_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                      struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_format *file;
    pthread_rwlock_rdlock(&b->lock);
    int ret = bitmap_need_file(b, &file, err);
    if (!ret)
        ret = hds_bitmap_add(file, what, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

int bundle_bitmap_remove(struct rhea_format *f, const char *name,
                         struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_format *file;
    pthread_rwlock_rdlock(&b->lock);
    int ret = bitmap_need_file(b, &file, err);
    if (!ret)
        ret = hds_bitmap_remove(file, name, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

int bundle_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                       size_t n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_format *file;
    pthread_rwlock_rdlock(&b->lock);
    int ret = bitmap_need_file(b, &file, err);
    if (!ret)
        ret = hds_bitmap_load(file, name, bits, n, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

int bundle_bitmap_store(struct rhea_format *f, const char *name,
                        const uint8_t *bits, size_t n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    struct rhea_format *file;
    pthread_rwlock_rdlock(&b->lock);
    int ret = bitmap_need_file(b, &file, err);
    if (!ret)
        ret = hds_bitmap_store(file, name, bits, n, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}
