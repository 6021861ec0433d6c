/* SPDX-License-Identifier: MIT */
/*
 * Deleting a snapshot. One that nobody is made over goes with its files. One
 * that several are made over stays. Where there is one, its child, the two
 * become one, whichever way copies less:
 *
 *   up    what only the snapshot has is copied into the child's files, which go
 *         on, over what the snapshot is over;
 *   down  what the child has is copied into the snapshot's files, which become
 *         the child's.
 *
 * Order of writes. Up: the copies, flush; the descriptor, without the snapshot;
 * its files are removed. The child reads alike at each moment, for what is
 * copied is what showed through. Down: the descriptor, in which the snapshot is
 * "Temporary" and so none of the user's any more; its bitmaps go; the copies,
 * flush; the
 * descriptor, in which its files are the child's; the child's old files are
 * removed. The child reads alike, for its own files are over those that change.
 * Who crashes in between deletes the snapshot again by its id.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/bundle.h"
#include "format/parallels/hds.h"

enum { COPY_BYTES = 1 << 20 };

/* One part's files of the snapshot and of its child. */
struct merge_part {
    struct bundle_file *snapshot, *child;
};

struct merge {
    struct bundle *b;
    uint8_t snapshot[UUID_BYTES], child[UUID_BYTES], parent[UUID_BYTES];
    struct merge_part *parts;
    bool has_child;
};

/* --- Copying --- */

static int copy_run(struct bundle_file *to, uint64_t offset,
                    const struct rhea_extent *x, uint8_t *buf,
                    struct rhea_error *err)
{
    int ret = 0;
    for (uint64_t at = 0; !ret && at < x->length; at += COPY_BYTES) {
        size_t n = (size_t)RHEA_MIN(x->length - at, COPY_BYTES);
        if (x->kind == RHEA_EXTENT_DATA)
            ret =
                rhea_storage_read_padded(x->storage, buf, n, x->host + at, err);
        else
            memset(buf, 0, n);
        /* Not by the file's own write: to its bitmaps nothing changes. */
        if (!ret && to->hds)
            ret = blocks_write(&hds_of(to->hds)->blocks, offset + at, buf, n,
                               err);
        else if (!ret)
            ret = rhea_storage_write(to->storage, buf, n, offset + at, err);
    }
    return ret;
}

/* What goes from file to file. */
struct copy {
    struct bundle_file *to, *from;
    bool absent; /* only where TO has nothing */
    bool zeroes; /* these too; else they are what shows anyway */
};

/* What FROM itself has goes into TO. */
static int copy_file(const struct copy *c, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *buf = malloc(COPY_BYTES);
    int ret = 0;
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint64_t at = 0; !ret && at < c->to->size;) {
        struct rhea_extent x;
        uint64_t len = c->to->size - at;
        if (c->absent) {
            ret = bundle_map_file(c->to, at, len, &x, err);
            len = x.length;
            if (!ret && x.kind != RHEA_EXTENT_UNALLOCATED) {
                at += len;
                continue;
            }
        }
        if (!ret)
            ret = bundle_map_file(c->from, at, len, &x, err);
        if (!ret && (x.kind == RHEA_EXTENT_DATA ||
                     (x.kind == RHEA_EXTENT_ZERO && c->zeroes)))
            ret = copy_run(c->to, at, &x, buf, err);
        at += ret ? 0 : x.length;
    }
    return ret ? ret : bundle_settle(c->to, err);
}

/* How much of the disk FILE has itself. */
static int copy_amount(struct bundle_file *file, uint64_t *bytes,
                       struct rhea_error *err)
{
    for (uint64_t at = 0; at < file->size;) {
        struct rhea_extent x;
        int ret = bundle_map_file(file, at, file->size - at, &x, err);
        if (ret)
            return ret;
        *bytes += x.kind == RHEA_EXTENT_DATA ? x.length : 0;
        at += x.length;
    }
    return 0;
}

/* --- Both ways --- */

/* Where bitmaps are, their file goes on. */
static int merge_choose(const struct merge *m, bool *up, struct rhea_error *err)
{
    uint64_t snapshot = 0, child = 0;
    bool bitmaps = false;
    int ret = 0;
    for (size_t i = 0; !ret && i < m->b->n_parts; i++) {
        const struct merge_part *p = &m->parts[i];
        /* Over a plain file nothing of the snapshot shows. */
        bitmaps |= !p->child->hds || hds_of(p->child->hds)->ext.n_bitmaps;
        ret = copy_amount(p->snapshot, &snapshot, err);
        if (!ret)
            ret = copy_amount(p->child, &child, err);
    }
    *up = bitmaps || snapshot <= child;
    return ret;
}

/* The descriptor in which one of the two is left, with the files of the child
 * (UP) or of the snapshot. */
static int merge_descriptor(struct merge *m, bool up, struct rhea_error *err)
{
    const struct prl_disk *d = &m->b->d;
    const struct prl_shot *child = prl_shot_find(d, m->child);
    const struct prl_shot *shot = prl_shot_find(d, m->snapshot);
    struct prl_edit e = {0};
    char child_guid[PRL_GUID_TEXT], parent[PRL_GUID_TEXT];
    prl_guid_text(m->child, child_guid);
    prl_guid_text(m->parent, parent);
    for (size_t i = 0; i < d->n_storages; i++) {
        const struct prl_storage *s = &d->storages[i];
        const struct prl_image *above = prl_image_find(s, m->child);
        const struct prl_image *below = prl_image_find(s, m->snapshot);
        prl_edit_remove(&e, d, up ? below->whole : above->whole);
        if (!up)
            prl_edit_replace(&e, below->guid_text, child_guid);
    }
    prl_edit_replace(&e, child->parent_text, parent);
    prl_edit_remove(&e, d, shot->whole);
    int ret = bundle_replace_descriptor(m->b, &e, err);
    prl_edit_finish(&e);
    return ret;
}

/* All files that have FROM below them have TO instead. */
static void merge_relink(struct bundle *b, const struct bundle_file *from,
                         struct bundle_file *to)
{
    for (struct bundle_file *file = b->open_files; file; file = file->next)
        if (file->lower == from)
            file->lower = to;
    for (size_t i = 0; i < b->n_parts; i++)
        if (b->parts[i].top == from)
            b->parts[i].top = to;
}

static void merge_put_over(struct bundle_file *file, struct bundle_file *lower)
{
    file->lower = lower;
    if (file->hds)
        hds_of(file->hds)->blocks.child = lower;
}

static int merge_up(struct merge *m, struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; !ret && i < m->b->n_parts; i++) {
        struct merge_part *p = &m->parts[i];
        ret = bundle_make_writable(m->b, p->child, err);
        const struct copy c = {.to = p->child,
                               .from = p->snapshot,
                               .absent = true,
                               .zeroes = p->snapshot->lower};
        if (!ret)
            ret = copy_file(&c, err);
    }
    if (!ret)
        ret = merge_descriptor(m, true, err);
    for (size_t i = 0; !ret && i < m->b->n_parts; i++) {
        struct bundle_file *gone = m->parts[i].snapshot;
        merge_put_over(m->parts[i].child, gone->lower);
        memset(gone->guid, 0, UUID_BYTES);
        bundle_remove_file(m->b, gone->name);
    }
    return ret;
}

static int merge_hide(struct merge *m, struct rhea_error *err)
{
    const struct prl_disk *d = &m->b->d;
    const struct prl_shot *shot = prl_shot_find(d, m->snapshot);
    struct prl_edit e = {0};
    if (shot->temporary)
        return 0;
    prl_edit_insert(&e, shot->content.to,
                    "    <Temporary></Temporary>\n        ");
    int ret = bundle_replace_descriptor(m->b, &e, err);
    prl_edit_finish(&e);
    return ret;
}

static int merge_down(struct merge *m, struct rhea_error *err)
{
    int ret = merge_hide(m, err);
    for (size_t i = 0; !ret && i < m->b->n_parts; i++) {
        struct merge_part *p = &m->parts[i];
        ret = bundle_make_writable(m->b, p->snapshot, err);
        /* What a crash or another program has left there knows nothing of the
         * child's changes. */
        if (!ret)
            ret = bundle_bitmaps_remove(p->snapshot, err);
        const struct copy c = {
            .to = p->snapshot, .from = p->child, .zeroes = true};
        if (!ret)
            ret = copy_file(&c, err);
    }
    if (!ret)
        ret = merge_descriptor(m, false, err);
    for (size_t i = 0; !ret && i < m->b->n_parts; i++) {
        struct merge_part *p = &m->parts[i];
        merge_relink(m->b, p->child, p->snapshot);
        memcpy(p->snapshot->guid, m->child, UUID_BYTES);
        memset(p->child->guid, 0, UUID_BYTES);
        bundle_remove_file(m->b, p->child->name);
    }
    return ret;
}

/* --- Deleting --- */

/* Nobody is made over it; it is not open, save by having been looked at. */
static int delete_leaf(struct merge *m, struct rhea_error *err)
{
    struct bundle *b = m->b;
    const struct prl_disk *d = &b->d;
    struct prl_edit e = {0};
    RHEA_AUTO_FREE char **names = calloc(d->n_storages + 1, sizeof(char *));
    int ret = names ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; !ret && i < d->n_storages; i++) {
        const struct prl_image *image =
            prl_image_find(&d->storages[i], m->snapshot);
        if (!image)
            continue;
        prl_edit_remove(&e, d, image->whole);
        names[i] = strdup(prl_last_part(image->file));
    }
    if (!ret) {
        prl_edit_remove(&e, d, prl_shot_find(d, m->snapshot)->whole);
        ret = bundle_replace_descriptor(b, &e, err);
    }
    prl_edit_finish(&e);
    for (size_t i = 0; names && i < b->n_parts; i++) {
        if (!ret && names[i])
            bundle_remove_file(b, names[i]);
        free(names[i]);
    }
    return ret;
}

static int delete_prepare(struct merge *m, const char *which,
                          struct rhea_error *err)
{
    struct prl_shot *shot;
    struct bundle *b = m->b;
    if (!(b->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    int ret = bundle_find_snapshot(b, which, &shot, err);
    if (ret)
        return ret;
    memcpy(m->snapshot, shot->guid, UUID_BYTES);
    memcpy(m->parent, shot->parent, UUID_BYTES);
    size_t children = prl_children(&b->d, shot->guid);
    if (children > 1)
        return rhea_error_set(err, EBUSY,
                              "the snapshot '%.200s' is what %zu others are "
                              "made over; delete all but one of them first",
                              which, children);
    m->has_child = children;
    for (size_t i = 0; i < b->d.n_shots; i++)
        if (uuid_equal(b->d.shots[i].parent, shot->guid))
            memcpy(m->child, b->d.shots[i].guid, UUID_BYTES);
    return 0;
}

static int delete_open(struct merge *m, struct rhea_error *err)
{
    struct bundle *b = m->b;
    int ret = 0;
    m->parts = calloc(b->n_parts + 1, sizeof(*m->parts));
    if (!m->parts)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; !ret && i < b->n_parts; i++) {
        struct merge_part *p = &m->parts[i];
        ret = bundle_open_chain(b, i, m->snapshot, false, &p->snapshot, err);
        if (!ret)
            ret = bundle_open_chain(b, i, m->child, false, &p->child, err);
    }
    return ret;
}

static int delete_locked(struct merge *m, const char *which,
                         struct rhea_error *err)
{
    bool up;
    int ret = delete_prepare(m, which, err);
    if (ret || !m->has_child)
        return ret ? ret : delete_leaf(m, err);
    ret = delete_open(m, err);
    if (!ret)
        ret = merge_choose(m, &up, err);
    if (!ret)
        ret = up ? merge_up(m, err) : merge_down(m, err);
    return ret;
}

int bundle_snapshot_delete(struct rhea_format *f, const char *which,
                           struct rhea_error *err)
{
    struct merge m = {.b = bundle_of(f)};
    pthread_rwlock_wrlock(&m.b->lock);
    int ret = delete_locked(&m, which, err);
    pthread_rwlock_unlock(&m.b->lock);
    free(m.parts);
    return ret;
}
