/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of a bundle. The top's GUID stays what it is, so that all programs
 * find it: a new snapshot's GUID is given to the files that the top had, and
 * the top gets new ones over them.
 *
 * Order of writes. What a new descriptor names is made and flushed, then the
 * descriptor is replaced, then what it does not name any more is removed. A
 * crash leaves the old state or the new one, and perhaps files that no
 * descriptor names.
 *
 * Bitmaps follow the top: the new files get them before the descriptor changes,
 * those they are over lose them after.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

/* --- Finding --- */

static bool shot_is_snapshot(const struct bundle *b,
                             const struct prl_shot *shot)
{
    return !uuid_equal(shot->guid, b->d.top);
}

/* Of one that is being merged only the id is left. */
static const char *shot_name(const struct prl_shot *shot)
{
    return shot->temporary ? NULL : shot->name;
}

int bundle_find_snapshot(const struct bundle *b, const char *which,
                         struct prl_shot **out, struct rhea_error *err)
{
    uint8_t guid[UUID_BYTES];
    bool is_guid = uuid_parse(which, guid);
    *out = is_guid ? prl_shot_find(&b->d, guid) : NULL;
    for (size_t i = 0; !*out && i < b->d.n_shots; i++) {
        struct prl_shot *shot = &b->d.shots[i];
        if (shot_is_snapshot(b, shot) && shot_name(shot) &&
            strcmp(shot_name(shot), which) == 0)
            *out = shot;
    }
    if (*out && !uuid_equal((*out)->guid, b->d.top))
        return 0;
    return rhea_error_set(err, ENOENT, "there is no snapshot '%.200s'", which);
}

/* The same, which is to be read. */
static int shot_find_whole(const struct bundle *b, const char *which,
                           struct prl_shot **out, struct rhea_error *err)
{
    int ret = bundle_find_snapshot(b, which, out, err);
    if (!ret && (*out)->temporary)
        ret = rhea_error_set(err, EINVAL,
                             "the snapshot '%.200s' was being deleted, and may "
                             "hold anything; it can only be deleted",
                             which);
    return ret;
}

int bundle_snapshot_list(struct rhea_format *f, struct rhea_snapshot **list,
                         size_t *n, struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    size_t count = 0;
    bool failed = false;
    pthread_rwlock_rdlock(&b->lock);
    struct rhea_snapshot *all = calloc(b->d.n_shots + 1, sizeof(*all));
    for (size_t i = 0; all && !failed && i < b->d.n_shots; i++) {
        const struct prl_shot *shot = &b->d.shots[i];
        char id[UUID_TEXT];
        if (!shot_is_snapshot(b, shot))
            continue;
        uuid_text(shot->guid, id);
        all[count] = (struct rhea_snapshot){
            .id = strdup(id),
            .name = strdup(shot_name(shot) ? shot_name(shot) : id),
            .disk_size = f->size,
            .date = shot->date,
            .icount = UINT64_MAX,
        };
        failed = !all[count].id || !all[count].name;
        count++;
    }
    pthread_rwlock_unlock(&b->lock);
    if (!all || failed) {
        rhea_snapshots_free(all, count);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    *list = all;
    *n = count;
    return 0;
}

/* --- New files --- */

/* The new files of all parts, in their order. */
struct new_top {
    struct bundle *b;
    struct bundle_file **files;
    struct bundle_file *open_before; /* what is open besides them */
};

/* "NAME.hdd.0.{guid}.hds" with another GUID, malloc'd. The descriptor's readers
 * drop white space around a name, which must be the file's all the same. */
static char *new_name(const char *old, const uint8_t *guid)
{
    char braced[PRL_GUID_TEXT];
    char *name = NULL;
    const char *last = prl_last_part(old);
    last += strspn(last, " ");
    const char *brace = strstr(last, ".{");
    int len = (int)(brace ? brace - last : (ptrdiff_t)strlen(last));
    prl_guid_text(guid, braced);
    for (const char *p = last; p < last + len; p++)
        if (*p < ' ' || *p > '~') {
            last = "harddisk.hdd";
            len = (int)strlen(last);
        }
    return asprintf(&name, "%.*s.%s.hds", len, last, braced) < 0 ? NULL : name;
}

/* A new file of part PART over LOWER, as large and with clusters as OLD has,
 * where that is known. */
static int new_file(struct new_top *new, size_t part, struct bundle_file *lower,
                    const struct bundle_file *old, struct rhea_error *err)
{
    struct bundle *b = new->b;
    const struct hds *like = old->hds ? hds_of(old->hds) : NULL;
    uint64_t block = b->d.storages[part].block * PRL_SECTOR;
    struct hds_layout layout = {
        .size = old->size,
        .cluster_size = like    ? like->cluster_size
                        : block ? block
                                : HDS_DEFAULT_CLUSTER,
        .extended = like ? like->extended : old->size > UINT64_C(1) << 40,
    };
    uint8_t guid[UUID_BYTES];
    struct rhea_storage *storage;
    int ret = uuid_new(guid, err);
    RHEA_AUTO_FREE char *name = ret ? NULL : new_name(old->name, guid);
    if (!name)
        return ret ? ret : rhea_error_set(err, ENOMEM, "out of memory");
    ret = b->files->create(b->files->opaque, name, &storage, err);
    if (ret)
        return ret;
    ret = hds_create(storage, &layout, err);
    if (!ret)
        ret = bundle_add_file(b, part, b->d.top, name, storage, false, true,
                              lower, &new->files[part], err);
    if (ret)
        bundle_remove_file(b, name);
    return ret;
}

static void new_finish(struct new_top *new)
{
    free(new->files);
}

/* Nothing of it has been used. */
static void new_undo(struct new_top *new)
{
    struct bundle *b = new->b;
    while (b->open_files != new->open_before) {
        struct bundle_file *file = b->open_files;
        b->open_files = file->next;
        if (file->hds)
            file->hds->ops->close(file->hds, NULL);
        bundle_remove_file(b, file->name);
        free(file->name);
        free(file);
    }
}

static int new_begin(struct new_top *new, struct bundle *b,
                     struct rhea_error *err)
{
    *new = (struct new_top){.b = b, .open_before = b->open_files};
    if (!(b->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    new->files = calloc(b->n_parts + 1, sizeof(struct bundle_file *));
    return new->files ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* --- Creating --- */

/* The descriptor with a snapshot GUID of what the top has, and new files for
 * the top. */
static int create_descriptor(struct bundle *b, const struct new_top *new,
                             const struct rhea_snapshot *what,
                             const uint8_t *guid, struct rhea_error *err)
{
    static const uint8_t none[UUID_BYTES];
    const struct prl_disk *d = &b->d;
    const struct prl_shot *top = prl_shot_find(d, d->top);
    struct prl_edit e = {0};
    char braced[PRL_GUID_TEXT];
    prl_guid_text(guid, braced);
    for (size_t i = 0; i < b->n_parts; i++) {
        const struct prl_storage *s = &d->storages[i];
        const struct prl_image *image = prl_image_find(s, d->top);
        RHEA_AUTO_FREE char *text =
            prl_xml_image(d->top, false, new->files[i]->name);
        prl_edit_replace(&e, image->guid_text, braced);
        if (text)
            prl_edit_insert(&e, s->images[s->n_images - 1].whole.to, text);
        e.failed |= !text;
    }
    RHEA_AUTO_FREE char *more = prl_xml_shot_name(what->name, what->date);
    RHEA_AUTO_FREE char *below = prl_xml_shot(guid, none, more);
    RHEA_AUTO_FREE char *above = prl_xml_shot(d->top, guid, NULL);
    e.failed |= !more || !below || !above;
    if (!e.failed && top) {
        prl_edit_replace(&e, top->guid_text, braced);
        prl_edit_insert(&e, top->content.to, more);
        prl_edit_insert(&e, top->whole.to, above);
    } else if (!e.failed) {
        prl_edit_insert(&e, d->root.to, "    <Snapshots>");
        prl_edit_insert(&e, d->root.to, below);
        prl_edit_insert(&e, d->root.to, above);
        prl_edit_insert(&e, d->root.to, "\n    </Snapshots>\n");
    }
    int ret = bundle_replace_descriptor(b, &e, err);
    prl_edit_finish(&e);
    return ret;
}

static int create_check_name(const struct bundle *b,
                             const struct rhea_snapshot *what,
                             struct rhea_error *err)
{
    uint8_t guid[UUID_BYTES];
    if (uuid_parse(what->name, guid))
        return rhea_error_set(err, EINVAL,
                              "a snapshot's name cannot look like its id, "
                              "'%.100s'",
                              what->name);
    for (size_t i = 0; i < b->d.n_shots; i++)
        if (shot_name(&b->d.shots[i]) && shot_is_snapshot(b, &b->d.shots[i]) &&
            strcmp(b->d.shots[i].name, what->name) == 0)
            return rhea_error_set(err, EEXIST,
                                  "there is a snapshot '%.200s' already",
                                  what->name);
    if (b->d.n_shots + 1 >= PRL_SHOTS_MAX)
        return rhea_error_set(err, EMFILE, "the disk has too many snapshots");
    return what->vm_state_size
               ? rhea_error_set(err, ENOTSUP,
                                "a Parallels disk keeps no state of a machine")
               : 0;
}

static int create_locked(struct bundle *b, const struct rhea_snapshot *what,
                         struct rhea_error *err)
{
    struct new_top new;
    uint8_t guid[UUID_BYTES];
    int ret = new_begin(&new, b, err);
    if (!ret)
        ret = create_check_name(b, what, err);
    if (!ret)
        ret = uuid_new(guid, err);
    for (size_t i = 0; !ret && i < b->n_parts; i++) {
        struct bundle_file *old = b->parts[i].top;
        ret = bundle_settle(old, err);
        if (!ret)
            ret = new_file(&new, i, old, old, err);
        if (!ret)
            ret = bundle_bitmaps_copy(new.files[i], old, err);
        if (!ret)
            ret = bundle_settle(new.files[i], err);
    }
    if (!ret)
        ret = create_descriptor(b, &new, what, guid, err);
    if (ret) {
        new_undo(&new);
        new_finish(&new);
        return ret;
    }
    for (size_t i = 0; i < b->n_parts; i++) {
        /* The snapshot is made: nothing is to be undone for this. */
        bundle_bitmaps_remove(b->parts[i].top, NULL);
        memcpy(b->parts[i].top->guid, guid, UUID_BYTES);
        b->parts[i].top = new.files[i];
    }
    new_finish(&new);
    return 0;
}

int bundle_snapshot_create(struct rhea_format *f,
                           const struct rhea_snapshot *what,
                           struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_wrlock(&b->lock);
    int ret = create_locked(b, what, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

/* --- Going back --- */

/* The top's files are NEW's, over snapshot GUID. */
static int apply_descriptor(struct bundle *b, const struct new_top *new,
                            const uint8_t *guid, struct rhea_error *err)
{
    const struct prl_disk *d = &b->d;
    const struct prl_shot *top = prl_shot_find(d, d->top);
    struct prl_edit e = {0};
    char braced[PRL_GUID_TEXT];
    prl_guid_text(guid, braced);
    for (size_t i = 0; i < b->n_parts; i++) {
        const struct prl_image *image = prl_image_find(&d->storages[i], d->top);
        RHEA_AUTO_FREE char *file = prl_xml_escape(new->files[i]->name);
        prl_edit_replace(&e, image->type_text, "Compressed");
        if (file)
            prl_edit_replace(&e, image->file_text, file);
        e.failed |= !file;
    }
    prl_edit_replace(&e, top->parent_text, braced);
    int ret = bundle_replace_descriptor(b, &e, err);
    prl_edit_finish(&e);
    return ret;
}

static int apply_locked(struct bundle *b, const char *which,
                        struct rhea_error *err)
{
    struct new_top new;
    struct prl_shot *shot;
    uint8_t guid[UUID_BYTES];
    int ret = new_begin(&new, b, err);
    if (!ret)
        ret = shot_find_whole(b, which, &shot, err);
    if (ret) {
        new_finish(&new);
        return ret;
    }
    memcpy(guid, shot->guid, UUID_BYTES);
    RHEA_AUTO_FREE struct bundle_file **lower =
        calloc(b->n_parts + 1, sizeof(struct bundle_file *));
    if (!lower)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        ret = bundle_open_chain(b, i, guid, false, &lower[i], err);
    /* All that is open now stays, whatever happens. */
    new.open_before = b->open_files;
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        ret = new_file(&new, i, lower[i], b->parts[i].top, err);
    if (!ret)
        ret = apply_descriptor(b, &new, guid, err);
    if (ret) {
        new_undo(&new);
        new_finish(&new);
        return ret;
    }
    for (size_t i = 0; i < b->n_parts; i++) {
        struct bundle_file *old = b->parts[i].top;
        b->parts[i].top = new.files[i];
        /* Not to be found as the top any more. */
        memset(old->guid, 0, UUID_BYTES);
        bundle_remove_file(b, old->name);
    }
    new_finish(&new);
    return 0;
}

int bundle_snapshot_apply(struct rhea_format *f, const char *which,
                          struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_wrlock(&b->lock);
    int ret = apply_locked(b, which, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}

/* --- Reading one --- */

static int load_locked(struct bundle *b, const char *which,
                       struct rhea_error *err)
{
    struct prl_shot *shot;
    RHEA_AUTO_FREE struct bundle_file **tops =
        calloc(b->n_parts + 1, sizeof(struct bundle_file *));
    if (!tops)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = shot_find_whole(b, which, &shot, err);
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        ret = bundle_open_chain(b, i, shot->guid, false, &tops[i], err);
    for (size_t i = 0; !ret && i < b->n_parts; i++)
        b->parts[i].top = tops[i];
    return ret;
}

int bundle_snapshot_load(struct rhea_format *f, const char *which,
                         struct rhea_error *err)
{
    struct bundle *b = bundle_of(f);
    pthread_rwlock_wrlock(&b->lock);
    int ret = load_locked(b, which, err);
    pthread_rwlock_unlock(&b->lock);
    return ret;
}
