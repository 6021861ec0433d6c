/* SPDX-License-Identifier: MIT */
/*
 * Parents. A VDI file has the UUID of its parent and of what its parent's last
 * modification was, but no name: VirtualBox keeps the names in its settings. So
 * the file is searched for, where VirtualBox has it too: in the image's own
 * folder or, for one in "Snapshots", the folder above.
 *
 * What changes here are fields of the header, all in the file's first sector.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vdi.h"

struct parent_search {
    const struct vdi_head *child;
    bool unchanged; /* only as it was when the child was made */
};

static int parent_accept(void *opaque, struct rhea_storage *file)
{
    const struct parent_search *s = opaque;
    struct vdi_head h;
    if (vdi_head_read(&h, file, NULL) ||
        !uuid_equal(h.uuid[VDI_IMAGE], s->child->uuid[VDI_PARENT]))
        return 0;
    return !s->unchanged || uuid_equal(h.uuid[VDI_MODIFIED],
                                       s->child->uuid[VDI_PARENT_MODIFIED]);
}

/* *OUT is NULL where there is none. */
static int parent_look(const struct vdi_head *h, const struct rhea_files *files,
                       char **out, struct rhea_error *err)
{
    struct parent_search s = {.child = h, .unchanged = true};
    *out = NULL;
    if (!files || uuid_is_null(h->uuid[VDI_PARENT]))
        return 0;
    int ret = files->search(files->opaque, parent_accept, &s, out, err);
    /* One that was changed is to be told of. */
    s.unchanged = false;
    if (!ret && !*out)
        ret = files->search(files->opaque, parent_accept, &s, out, err);
    return ret;
}

int vdi_find_parent(const struct vdi_head *h, const struct rhea_files *files,
                    char **out, struct rhea_error *err)
{
    char text[UUID_TEXT];
    int ret = parent_look(h, files, out, err);
    if (ret || *out)
        return ret;
    /* As VirtualBox names the images it makes. */
    guid_text(h->uuid[VDI_PARENT], text);
    if (asprintf(out, "{%s}.vdi", text) < 0) {
        *out = NULL;
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static void parent_clear(struct vdi_head *h)
{
    if (vdi_head_is_child(h))
        h->type = VDI_DYNAMIC;
    memset(h->uuid[VDI_PARENT], 0, UUID_BYTES);
    memset(h->uuid[VDI_PARENT_MODIFIED], 0, UUID_BYTES);
}

int vdi_head_set_parent(struct vdi_head *h, struct rhea_format *parent,
                        const char *name, const struct rhea_files *files,
                        struct rhea_error *err)
{
    RHEA_AUTO_FREE char *found = NULL;
    if (!name) {
        parent_clear(h);
        return 0;
    }
    if (!parent)
        return rhea_error_set(err, EINVAL,
                              "the parent '%.300s' cannot be opened, and a VDI "
                              "image has to record its UUID",
                              name);
    if (parent->ops != &rhea_format_vdi)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VDI image has to be a VDI "
                              "image, but '%.300s' is of format %s",
                              name, parent->ops->name);
    const struct vdi *p = (const struct vdi *)parent;
    h->type = VDI_DIFFERENCING;
    memcpy(h->uuid[VDI_PARENT], p->head.uuid[VDI_IMAGE], UUID_BYTES);
    memcpy(h->uuid[VDI_PARENT_MODIFIED], p->head.uuid[VDI_MODIFIED],
           UUID_BYTES);
    int ret = parent_look(h, files, &found, err);
    if (!ret && !found)
        ret = rhea_error_set(
            err, EINVAL,
            "'%.300s' would not be found again: VDI images have no names of "
            "their parents, so both must be in one folder, or the parent in "
            "that above a folder Snapshots",
            name);
    return ret;
}

int vdi_check_parent(struct rhea_format *f, struct rhea_format *parent,
                     struct rhea_error *err)
{
    const struct vdi *v = (const struct vdi *)f;
    const struct vdi *p = (const struct vdi *)parent;
    char want[UUID_TEXT], have[UUID_TEXT];
    /* Of another format only if the user said so. */
    if (parent->ops != &rhea_format_vdi || !v->parent)
        return 0;
    guid_text(v->head.uuid[VDI_PARENT], want);
    guid_text(p->head.uuid[VDI_IMAGE], have);
    if (strcmp(want, have) != 0)
        return rhea_error_set(err, EINVAL,
                              "the image was made over another one: that has "
                              "UUID %s, this has %s",
                              want, have);
    guid_text(v->head.uuid[VDI_PARENT_MODIFIED], want);
    guid_text(p->head.uuid[VDI_MODIFIED], have);
    if (uuid_is_null(v->head.uuid[VDI_PARENT_MODIFIED]) ||
        strcmp(want, have) == 0)
        return 0;
    return rhea_error_set(err, EINVAL,
                          "the parent was changed after the image was made "
                          "over it: its modification UUID was %s and is %s; if "
                          "what the guest sees is right nevertheless, say so "
                          "with 'rebase -u'",
                          want, have);
}

int vdi_set_backing(struct rhea_format *f, const char *file, const char *format,
                    struct rhea_format *parent, struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    RHEA_AUTO_FREE char *name = NULL;
    if (file && !*file)
        file = NULL;
    if (file && format && strcmp(format, rhea_format_vdi.name) != 0)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VDI image has to be a VDI "
                              "image, not one of format %s",
                              format);
    RHEA_LOCKED(&v->blocks.lock);
    int ret = blocks_change_begin(&v->blocks, err);
    if (ret)
        return ret;
    struct vdi_head head = v->head;
    ret = vdi_head_set_parent(&head, parent, file, v->files, err);
    name = file && !ret ? strdup(file) : NULL;
    if (!ret && file && !name)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (ret)
        return ret;
    ret = blocks_change_end(&v->blocks, vdi_head_write(&head, f->storage, err),
                            err);
    if (ret)
        return ret;
    v->head = head;
    v->blocks.child = file;
    free(v->parent);
    v->parent = rhea_steal(name);
    return 0;
}

int vdi_renew_identity(struct rhea_format *f, struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    RHEA_LOCKED(&v->blocks.lock);
    if (!v->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    return blocks_begin(&v->blocks, err);
}
