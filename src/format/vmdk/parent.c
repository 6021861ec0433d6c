/* SPDX-License-Identifier: MIT */
/*
 * Parents. A child names its parent by a path, which may be of another system,
 * and records its content id; a parent that was written to has another one.
 *
 * VirtualBox does neither: its children have UUIDs, of the parent and of the
 * parent's last modification, and say "no parent" where VMware's say which. The
 * parent is searched for in the folder, or in the one above "Snapshots".
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/uuid.h"
#include "format/vmdk/header.h"
#include "format/vmdk/vmdk.h"

/* --- By UUID --- */

/* False: there is none, or it is all zeroes. */
static bool parent_uuid(const struct descriptor *d, const char *line,
                        uint8_t uuid[UUID_BYTES])
{
    RHEA_AUTO_FREE char *text = descriptor_get(d, line);
    return text && uuid_parse(text, uuid) && !uuid_is_null(uuid);
}

static bool parent_is_by_uuid(const struct descriptor *d)
{
    uint8_t uuid[UUID_BYTES];
    return d->text && !d->parent && parent_uuid(d, VMDK_UUID_PARENT, uuid);
}

/* The descriptor of FILE, inside of an extent or by itself. */
static int parent_read_descriptor(struct rhea_storage *file,
                                  struct descriptor *d)
{
    char head[VMDK_SECTOR];
    enum vmdk_kind kind;
    struct vmdk_header h;
    uint64_t size;
    int ret = rhea_storage_read(file, head, sizeof(head), 0, NULL);
    if (ret)
        return ret;
    if (vmdk_header_kind((const uint8_t *)head, sizeof(head), &kind)) {
        if (kind != VMDK_HOSTED || vmdk_header_read(file, true, &h, NULL) ||
            !h.descriptor)
            return -EINVAL;
        return descriptor_read(d, file, h.descriptor, h.descriptor_size, NULL);
    }
    if (!descriptor_probe(head, sizeof(head)) ||
        rhea_storage_size(file, &size, NULL) || size > DESCRIPTOR_MAX)
        return -EINVAL;
    return descriptor_read(d, file, 0, size, NULL);
}

/* What is to be compared of two descriptors; where the child says nothing,
 * anything will do. */
static bool parent_matches(const struct descriptor *child,
                           const char *child_line,
                           const struct descriptor *parent,
                           const char *parent_line)
{
    uint8_t want[UUID_BYTES], have[UUID_BYTES];
    return !parent_uuid(child, child_line, want) ||
           (parent_uuid(parent, parent_line, have) && uuid_equal(want, have));
}

struct parent_search {
    const struct descriptor *child;
    bool unchanged; /* only as it was when the child was made */
};

static int parent_accept(void *opaque, struct rhea_storage *file)
{
    const struct parent_search *s = opaque;
    struct descriptor d = {0};
    bool found =
        parent_read_descriptor(file, &d) == 0 &&
        parent_matches(s->child, VMDK_UUID_PARENT, &d, VMDK_UUID_IMAGE) &&
        (!s->unchanged || parent_matches(s->child, VMDK_UUID_PARENT_MODIFIED,
                                         &d, VMDK_UUID_MODIFIED));
    descriptor_finish(&d);
    return found;
}

static int parent_find_by_uuid(struct vmdk *v, struct rhea_error *err)
{
    struct parent_search s = {.child = &v->descriptor, .unchanged = true};
    uint8_t uuid[UUID_BYTES] = {0};
    char text[UUID_TEXT];
    int ret = 0;
    if (v->files && v->files->search) {
        ret = v->files->search(v->files->opaque, parent_accept, &s, &v->parent,
                               err);
        /* One that was changed is to be told of. */
        s.unchanged = false;
        if (!ret && !v->parent)
            ret = v->files->search(v->files->opaque, parent_accept, &s,
                                   &v->parent, err);
    }
    if (ret || v->parent)
        return ret;
    /* As VirtualBox names the images it makes. */
    parent_uuid(&v->descriptor, VMDK_UUID_PARENT, uuid);
    uuid_text(uuid, text);
    if (asprintf(&v->parent, "{%s}.vmdk", text) < 0) {
        v->parent = NULL;
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}

static int parent_check_uuid(const struct descriptor *d,
                             const struct descriptor *parent,
                             struct rhea_error *err)
{
    RHEA_AUTO_FREE char *want = descriptor_get(d, VMDK_UUID_PARENT);
    RHEA_AUTO_FREE char *have = descriptor_get(parent, VMDK_UUID_IMAGE);
    if (!parent_matches(d, VMDK_UUID_PARENT, parent, VMDK_UUID_IMAGE))
        return rhea_error_set(err, EINVAL,
                              "the image was made over another one: that has "
                              "UUID %.40s, this has %.40s",
                              want ? want : "", have ? have : "none");
    if (parent_matches(d, VMDK_UUID_PARENT_MODIFIED, parent,
                       VMDK_UUID_MODIFIED))
        return 0;
    RHEA_AUTO_FREE char *was = descriptor_get(d, VMDK_UUID_PARENT_MODIFIED);
    RHEA_AUTO_FREE char *is = descriptor_get(parent, VMDK_UUID_MODIFIED);
    return rhea_error_set(err, EINVAL,
                          "the parent was changed since the child was made "
                          "over it: its modification UUID was %.40s and is "
                          "%.40s; if what the guest sees is right "
                          "nevertheless, say so with 'rebase -u'",
                          was ? was : "", is ? is : "none");
}

/* --- Either way --- */

int vmdk_find_parent(struct vmdk *v, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    const char *name = d->parent;
    if (parent_is_by_uuid(d))
        return parent_find_by_uuid(v, err);
    if (!d->text || (!name && d->parent_cid == (uint32_t)DESCRIPTOR_NO_CID))
        return 0;
    if (!name && (v->flags & (RHEA_FORMAT_CHECK | RHEA_FORMAT_NO_IO)))
        return 0;
    if (!name)
        return rhea_error_set(err, EINVAL,
                              "the image has a parent (content id %08" PRIx32
                              "), but its descriptor does not say which: it "
                              "needs a line parentFileNameHint=\"...\"",
                              d->parent_cid);
    if (strlen(name) > RHEA_BACKING_NAME_MAX)
        return rhea_error_set(err, EINVAL, "the parent's name is too long");
    if (v->files && v->files->find_parent)
        return v->files->find_parent(v->files->opaque, &name, 1, &v->parent,
                                     err);
    v->parent = strdup(name);
    return v->parent ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

int vmdk_content_id(struct rhea_format *f, uint32_t *cid,
                    struct rhea_error *err)
{
    if (f->ops != &rhea_format_vmdk)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VMDK is another one, not a %s "
                              "image",
                              f->ops->name);
    const struct descriptor *d = &vmdk_of(f)->descriptor;
    if (!d->text)
        return rhea_error_set(err, EINVAL,
                              "the parent has no descriptor that tells whether "
                              "it has changed");
    *cid = d->cid;
    return 0;
}

int vmdk_check_parent(struct rhea_format *f, struct rhea_format *parent,
                      struct rhea_error *err)
{
    const struct descriptor *d = &vmdk_of(f)->descriptor;
    uint32_t cid = 0;
    if (!d->text)
        return 0;
    int ret = vmdk_content_id(parent, &cid, err);
    if (!ret && parent_is_by_uuid(d))
        return parent_check_uuid(d, &vmdk_of(parent)->descriptor, err);
    if (ret || cid == d->parent_cid)
        return ret;
    return rhea_error_set(err, EINVAL,
                          "the parent was changed since the child was made "
                          "over it: its content id is %08" PRIx32
                          ", the child expects %08" PRIx32,
                          cid, d->parent_cid);
}
