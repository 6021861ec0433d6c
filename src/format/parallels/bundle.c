/* SPDX-License-Identifier: MIT */
/*
 * Parallels' bundles: docs/interop/prl-xml.txt in QEMU ("spec"), libphdi's
 * notes on split disks.
 *
 * The disk is split into storages, ranges that follow each other; most have
 * one. A storage has a file for each snapshot: plain ones hold all of the
 * range, growing ones what differs from the file of the snapshot's parent. The
 * guest writes to the top's files, all others are read only.
 *
 * File names that lead out of the folder are refused. One with a folder that is
 * not this one, as a bundle has that was moved, is looked for by its last part.
 *
 * A change of the descriptor replaces all of it (files->replace), behind
 * whatever the new one needs: at each moment it is the old or the new one, and
 * what it names is there and durable.
 */
#include "format/parallels/bundle.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/parallels/hds.h"

/* --- Files --- */

static bool file_is_foreign(const char *file)
{
    return *file == '/' || strchr(file, '\\');
}

/* In the folder by its own name, or by the last part of a foreign one. */
static int file_open(const struct bundle *b, const char *file, bool write,
                     struct rhea_storage **out, struct rhea_error *err)
{
    const char *last = prl_last_part(file);
    bool foreign = file_is_foreign(file);
    if (!b->files)
        return rhea_error_set(err, EINVAL,
                              "the disk is made of other files, but is in no "
                              "folder");
    if (!*last)
        return rhea_error_set(err, EINVAL, "'%.300s' is no name of a file",
                              file);
    int ret = b->files->open(b->files->opaque, foreign ? last : file, write,
                             out, err);
    if (ret == -ENOENT && foreign)
        ret = rhea_error_set(err, ENOENT,
                             "the disk's file '%.300s' is neither in this "
                             "folder, as '%.300s', nor may it be elsewhere",
                             file, last);
    return ret;
}

static int file_open_hds(struct bundle_file *file, struct rhea_storage *storage,
                         unsigned flags, struct rhea_error *err)
{
    const struct rhea_format_open how = {.storage = storage, .flags = flags};
    int ret = hds_open(&file->hds, &how, file->lower != NULL, err);
    if (ret)
        return ret;
    file->hds->below = bundle_read_below;
    file->hds->below_opaque = file;
    return 0;
}

/* What is shorter than its storage has lost something. */
static int file_check_size(const struct bundle *b,
                           const struct bundle_file *file,
                           struct rhea_error *err)
{
    uint64_t size = 0;
    int ret = 0;
    if (file->hds)
        size = file->hds->size;
    else
        ret = rhea_storage_size(file->storage, &size, err);
    if (ret || size >= file->size || (b->flags & RHEA_FORMAT_CHECK))
        return ret;
    return rhea_error_set(err, EINVAL,
                          "the disk's file '%.300s' holds %" PRIu64
                          " bytes, not %" PRIu64 "; see 'check'",
                          file->name, size, file->size);
}

static void file_free(struct bundle_file *file)
{
    if (file->hds)
        file->hds->ops->close(file->hds, NULL);
    free(file->name);
    free(file);
}

int bundle_add_file(struct bundle *b, size_t part, const uint8_t *guid,
                    const char *name, struct rhea_storage *storage, bool plain,
                    bool write, struct bundle_file *lower,
                    struct bundle_file **out, struct rhea_error *err)
{
    unsigned flags = b->flags & (RHEA_FORMAT_CHECK | RHEA_FORMAT_NO_IO);
    struct bundle_file *file = calloc(1, sizeof(*file));
    if (file)
        file->name = strdup(name);
    if (!file || !file->name) {
        free(file);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    memcpy(file->guid, guid, UUID_BYTES);
    file->part = part;
    file->size = b->parts[part].size;
    file->lower = lower;
    file->storage = storage;
    file->writable = write;
    int ret = plain
                  ? 0
                  : file_open_hds(file, storage,
                                  flags | (write ? RHEA_FORMAT_WRITE : 0), err);
    if (!ret)
        ret = file_check_size(b, file, err);
    if (ret) {
        file_free(file);
        return rhea_error_prefix(err, "'%.200s'", name), ret;
    }
    file->next = b->open_files;
    b->open_files = file;
    *out = file;
    return 0;
}

static struct bundle_file *file_find(const struct bundle *b, size_t part,
                                     const uint8_t *guid)
{
    for (struct bundle_file *file = b->open_files; file; file = file->next)
        if (file->part == part && uuid_equal(file->guid, guid))
            return file;
    return NULL;
}

/* Image GUID of part PART, over LOWER. */
static int file_get(struct bundle *b, size_t part, const uint8_t *guid,
                    bool write, struct bundle_file *lower,
                    struct bundle_file **out, struct rhea_error *err)
{
    char name[UUID_TEXT];
    const struct prl_image *image = prl_image_find(&b->d.storages[part], guid);
    struct rhea_storage *storage;
    *out = file_find(b, part, guid);
    if (*out)
        return write ? bundle_make_writable(b, *out, err) : 0;
    uuid_text(guid, name);
    if (!image)
        return rhea_error_set(err, EINVAL,
                              "invalid disk descriptor: snapshot {%s} has no "
                              "file for the storage at sector %" PRIu64,
                              name, b->d.storages[part].start);
    int ret = file_open(b, image->file, write, &storage, err);
    return ret ? ret
               : bundle_add_file(b, part, guid, image->file, storage,
                                 image->plain, write, lower, out, err);
}

int bundle_open_chain(struct bundle *b, size_t part, const uint8_t *guid,
                      bool write, struct bundle_file **top,
                      struct rhea_error *err)
{
    const uint8_t *chain[PRL_DEPTH_MAX + 1];
    size_t n = 0;
    bool repair = b->flags & RHEA_FORMAT_CHECK;
    /* What lies below a plain file does not show; no more than DEPTH_MAX are
     * over each other. */
    for (;;) {
        const struct prl_shot *shot = prl_shot_find(&b->d, guid);
        const struct prl_image *image =
            prl_image_find(&b->d.storages[part], guid);
        chain[n++] = guid;
        if (!shot || uuid_is_null(shot->parent) || (image && image->plain) ||
            n > PRL_DEPTH_MAX)
            break;
        guid = shot->parent;
    }
    struct bundle_file *file = NULL;
    int ret = 0;
    while (!ret && n--)
        ret = file_get(b, part, chain[n], write && (n == 0 || repair), file,
                       &file, err);
    *top = file;
    return ret;
}

int bundle_make_writable(struct bundle *b, struct bundle_file *file,
                         struct rhea_error *err)
{
    struct rhea_storage *storage;
    if (file->writable)
        return 0;
    /* Our own lock must not be in the way; who else wants the file has to go by
     * the descriptor, whose lock we have. */
    int ret =
        rhea_storage_lock(file->storage, RHEA_LOCK_READ, RHEA_LOCK_ALL, err);
    if (!ret)
        ret = file_open(b, file->name, true, &storage, err);
    if (ret) {
        rhea_storage_lock(file->storage, RHEA_LOCK_READ,
                          RHEA_LOCK_READ | RHEA_LOCK_UNCHANGED, NULL);
        return ret;
    }
    if (file->hds) {
        file->hds->ops->close(file->hds, NULL);
        file->hds = NULL;
        ret = file_open_hds(file, storage, RHEA_FORMAT_WRITE, err);
        /* As it was; it has been opened before. */
        if (ret && file_open_hds(file, file->storage, 0, NULL))
            b->base.size = 0;
        if (ret)
            return ret;
    }
    file->storage = storage;
    file->writable = true;
    return 0;
}

int bundle_settle(struct bundle_file *file, struct rhea_error *err)
{
    int ret;
    if (!file->hds)
        return rhea_storage_flush(file->storage, err);
    struct hds *h = hds_of(file->hds);
    ret = blocks_flush(&h->blocks, err);
    if (ret)
        return ret;
    RHEA_LOCKED(&h->blocks.lock);
    return hds_settle(h, err);
}

void bundle_remove_file(struct bundle *b, const char *name)
{
    /* What stays is in nobody's way. */
    b->files->remove(b->files->opaque,
                     file_is_foreign(name) ? prl_last_part(name) : name, NULL);
}

int bundle_replace_descriptor(struct bundle *b, const struct prl_edit *e,
                              struct rhea_error *err)
{
    struct prl_disk new = {0};
    RHEA_AUTO_FREE char *text = NULL;
    size_t len = 0;
    int ret = prl_edit_apply(e, &b->d, &text, &len, err);
    if (!ret)
        ret = prl_parse(&new, text, len, err);
    if (!ret)
        ret = b->files->replace(b->files->opaque, NULL, text, len, err);
    if (ret) {
        prl_finish(&new);
        return ret;
    }
    prl_finish(&b->d);
    b->d = new;
    return 0;
}

bool bundle_is_whole(const struct prl_disk *d, const char *name)
{
    for (size_t i = 0; i < d->n_storages; i++)
        for (size_t k = 0; k < d->storages[i].n_images; k++)
            if (strcmp(prl_last_part(d->storages[i].images[k].file), name) == 0)
                return d->n_storages == 1 && d->storages[0].n_images == 1;
    return true;
}

/* --- Opening and closing --- */

static void bundle_destroy(struct bundle *b)
{
    while (b->open_files) {
        struct bundle_file *file = b->open_files;
        b->open_files = file->next;
        file_free(file);
    }
    prl_finish(&b->d);
    free(b->parts);
    pthread_rwlock_destroy(&b->lock);
    free(b);
}

static int open_parts(struct bundle *b, bool write, struct rhea_error *err)
{
    int ret = 0;
    b->n_parts = b->d.n_storages;
    b->parts = calloc(b->n_parts + 1, sizeof(*b->parts));
    if (!b->parts)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; i < b->n_parts; i++) {
        const struct prl_storage *s = &b->d.storages[i];
        b->parts[i].start = s->start * PRL_SECTOR;
        b->parts[i].size = (s->end - s->start) * PRL_SECTOR;
    }
    for (size_t i = 0; !ret && i < b->n_parts; i++) {
        ret = bundle_open_chain(b, i, b->d.top, write, &b->parts[i].top, err);
        if (!ret && b->parts[i].top->hds && !b->cluster_size)
            b->cluster_size = hds_of(b->parts[i].top->hds)->cluster_size;
    }
    return ret;
}

int bundle_open(struct rhea_format **out, const struct rhea_format_open *how,
                struct rhea_error *err)
{
    int ret = hds_take_options(how, err);
    if (ret)
        return ret;
    struct bundle *b = calloc(1, sizeof(*b));
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    b->base.ops = &bundle_ops;
    b->base.storage = how->storage;
    b->files = how->files;
    b->flags = how->flags;
    pthread_rwlock_init(&b->lock, NULL);
    ret = prl_read(&b->d, how->storage, err);
    b->base.size = b->d.size * PRL_SECTOR;
    if (!ret)
        ret = open_parts(b, how->flags & RHEA_FORMAT_WRITE, err);
    if (ret) {
        bundle_destroy(b);
        return ret;
    }
    *out = &b->base;
    return 0;
}

/* The first error counts; all are closed. */
static int bundle_close(struct rhea_format *f, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    int ret = 0;
    for (struct bundle_file *file = b->open_files; file; file = file->next) {
        int one = 0;
        if (file->hds)
            one = file->hds->ops->close(file->hds, ret ? NULL : err);
        else if (file->writable && file->written)
            one = rhea_storage_flush(file->storage, ret ? NULL : err);
        file->hds = NULL;
        ret = ret ? ret : one;
    }
    bundle_destroy(b);
    return ret;
}

/* --- What it is --- */

static void bundle_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_rdlock(&b->lock);
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = b->cluster_size,
        .part_size = RHEA_MIN(b->cluster_size, BLOCKS_PART),
        .snapshots = (uint32_t)b->d.n_shots,
    };
    for (size_t i = 0; i < b->n_parts; i++)
        if (b->parts[i].top->hds)
            info->dirty |= hds_of(b->parts[i].top->hds)->unclean;
    pthread_rwlock_unlock(&b->lock);
    info->bitmaps = bundle_bitmap_count(f);
}

static void facts_file(struct rhea_facts *facts, const struct bundle_file *file)
{
    rhea_facts_object(facts, NULL, NULL);
    rhea_facts_string(facts, "filename", "filename", file->name);
    rhea_facts_string(facts, "type", "type", file->hds ? "expanding" : "plain");
    rhea_facts_number(facts, "virtual size", "virtual-size", file->size);
    rhea_facts_end(facts);
}

static int bundle_facts(struct rhea_format *f, struct rhea_facts *facts,
                        struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    char top[UUID_TEXT];
    pthread_rwlock_rdlock(&b->lock);
    const struct bundle_file *first = b->parts[0].top;
    uuid_text(first->guid, top);
    rhea_facts_bool(facts, "bundle", "bundle", true);
    if (b->d.name)
        rhea_facts_string(facts, "name", "name", b->d.name);
    if (b->d.uid)
        rhea_facts_string(facts, "uid", "uid", b->d.uid);
    if (b->d.physical_sector)
        rhea_facts_number(facts, "physical sector size", "physical-sector-size",
                          b->d.physical_sector);
    rhea_facts_string(facts, "top", "top", top);
    rhea_facts_list(facts, "files", "files");
    for (size_t i = 0; i < b->n_parts; i++)
        for (const struct bundle_file *file = b->parts[i].top; file;
             file = file->lower)
            facts_file(facts, file);
    rhea_facts_end(facts);
    pthread_rwlock_unlock(&b->lock);
    return hds_facts_bitmaps(facts, f, err);
}

const struct rhea_format_ops bundle_ops = {
    .name = "parallels",
    .bundle_file = PRL_FILE,
    .close = bundle_close,
    .info = bundle_info,
    .facts = bundle_facts,
    .map = bundle_map,
    .write = bundle_write,
    .write_zeroes = bundle_write_zeroes,
    .discard = bundle_discard,
    .flush = bundle_flush,
    .check = bundle_check,
    .counts_lost = true,
    .resize = bundle_resize,
    .snapshot_list = bundle_snapshot_list,
    .snapshot_create = bundle_snapshot_create,
    .snapshot_apply = bundle_snapshot_apply,
    .snapshot_delete = bundle_snapshot_delete,
    .snapshot_load = bundle_snapshot_load,
    .bitmap_list = bundle_bitmap_list,
    .bitmap_add = bundle_bitmap_add,
    .bitmap_remove = bundle_bitmap_remove,
    .bitmap_load = bundle_bitmap_load,
    .bitmap_store = bundle_bitmap_store,
};
