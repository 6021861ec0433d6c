/* SPDX-License-Identifier: MIT */
/*
 * Check and size of a bundle.
 *
 * Each file that the active state needs is checked and repaired by itself
 * (hds_check.c); one that is shorter than its storage grows.
 *
 * A new size is that of the last storage, where there are no snapshots, whose
 * files would keep the old one.
 *
 * Order of writes. To grow: the file, flush; the descriptor. To shrink: the
 * descriptor; the file. A file may be larger than the descriptor says, so that
 * a crash leaves a whole disk of the old size or of the new one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/finding.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

/* --- Check --- */

struct file_findings {
    const char *name;
    struct rhea_check *out;
};

static void check_tell_file(void *opaque, bool is_error, const char *text)
{
    const struct file_findings *f = opaque;
    char line[512];
    if (!f->out->finding)
        return;
    snprintf(line, sizeof(line), "%.200s: %s", f->name, text);
    f->out->finding(f->out->opaque, is_error, line);
}

/* The header of a growing file is not repaired here: it has its own size. */
static int check_size(struct bundle_file *file, struct rhea_check *one,
                      bool fix, struct rhea_error *err)
{
    uint64_t size = file->hds ? file->hds->size : 0;
    int ret = file->hds ? 0 : rhea_storage_size(file->storage, &size, err);
    if (ret || size >= file->size)
        return ret;
    fix &= !file->hds;
    char text[160];
    snprintf(text, sizeof(text),
             "the file holds %" PRIu64 " bytes of a storage of %" PRIu64 "%s",
             size, file->size, fix ? "; it is longer now" : "");
    check_tell_file(one->opaque, true, text);
    if (!fix) {
        one->corruptions++;
        return 0;
    }
    one->corruptions_fixed++;
    ret = rhea_storage_truncate(file->storage, file->size, err);
    return ret ? ret : rhea_storage_flush(file->storage, err);
}

int bundle_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                 struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    int ret = 0;
    if (fix && !(b->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EACCES,
                              "cannot repair: the image is open for reading "
                              "only");
    pthread_rwlock_wrlock(&b->lock);
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        for (struct bundle_file *file = b->parts[i].top; !ret && file;
             file = file->lower) {
            struct file_findings findings = {file->name, check};
            struct rhea_check one = {.finding = check_tell_file,
                                     .opaque = &findings,
                                     .progress = check->progress};
            if (file->hds)
                ret = file->hds->ops->check(file->hds, file->writable ? fix : 0,
                                            &one, err);
            if (!ret)
                ret = check_size(
                    file, &one, file->writable && (fix & RHEA_FIX_ERRORS), err);
            check_add(check, &one);
            check->total_clusters += one.total_clusters;
        }
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

/* --- Size --- */

static int resize_file(struct bundle_file *file, uint64_t size,
                       struct rhea_error *err)
{
    struct rhea_resize how = {.size = size, .shrink = true};
    uint64_t now = 0;
    int ret = 0;
    if (file->hds)
        return file->hds->ops->resize(file->hds, &how, err);
    ret = rhea_storage_size(file->storage, &now, err);
    if (!ret && now != size)
        ret = rhea_storage_truncate(file->storage, size, err);
    return ret;
}

static int resize_descriptor(struct bundle *b, uint64_t size,
                             struct rhea_error *err)
{
    const struct prl_disk *d = &b->d;
    struct prl_edit e = {0};
    char number[24], cylinders[24];
    uint64_t per_cylinder = d->heads * d->sectors;
    snprintf(number, sizeof(number), "%" PRIu64, size / PRL_SECTOR);
    snprintf(cylinders, sizeof(cylinders), "%" PRIu64,
             size / PRL_SECTOR / (per_cylinder ? per_cylinder : 512));
    prl_edit_replace(&e, d->size_text, number);
    prl_edit_replace(&e, d->storages[d->n_storages - 1].end_text, number);
    prl_edit_replace(&e, d->cylinders_text, cylinders);
    int ret = bundle_replace_descriptor(b, &e, err);
    prl_edit_finish(&e);
    return ret;
}

static int resize_check(const struct bundle *b, const struct rhea_resize *how,
                        const struct bundle_part *last, struct rhea_error *err)
{
    if (how->preallocation && strcmp(how->preallocation, "off") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "Parallels images know no preallocation, such as "
                              "'%s'",
                              how->preallocation);
    if (how->size % PRL_SECTOR)
        return rhea_error_set(
            err, EINVAL, "the size must be a multiple of %d bytes", PRL_SECTOR);
    if (last->top->lower || b->d.n_shots > 1)
        return rhea_error_set(err, ENOTSUP,
                              "a disk with snapshots keeps its size; delete "
                              "them first");
    if (how->size < b->base.size && !how->shrink)
        return rhea_error_set(err, EINVAL,
                              "what lies behind the new end would be lost");
    if (how->size <= last->start)
        return rhea_error_set(err, ENOTSUP,
                              "the disk is split, and can shrink to no less "
                              "than %" PRIu64 " bytes",
                              last->start + PRL_SECTOR);
    return last->top->writable
               ? 0
               : rhea_error_set(err, EACCES,
                                "the image is open for reading only");
}

static int resize_locked(struct bundle *b, const struct rhea_resize *how,
                         struct rhea_error *err)
{
    struct bundle_part *last = &b->parts[b->n_parts - 1];
    int ret = resize_check(b, how, last, err);
    if (ret || how->size == b->base.size)
        return ret;
    uint64_t size = how->size - last->start;
    if (how->size > b->base.size) {
        /* What an earlier attempt may have left behind is not zeroes. */
        ret = resize_file(last->top, last->size, err);
        if (!ret)
            ret = resize_file(last->top, size, err);
        if (!ret)
            ret = bundle_settle(last->top, err);
    }
    if (!ret)
        ret = resize_descriptor(b, how->size, err);
    if (ret)
        return ret;
    if (how->size < b->base.size)
        ret = resize_file(last->top, size, err);
    b->base.size = how->size;
    last->size = last->top->size = size;
    return ret;
}

int bundle_resize(struct rhea_format *f, const struct rhea_resize *how,
                  struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_wrlock(&b->lock);
    int ret = resize_locked(b, how, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}
