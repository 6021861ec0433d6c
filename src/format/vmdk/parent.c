/* SPDX-License-Identifier: MIT */
/*
 * Parents. A child names its parent by a path, which may be of another system,
 * and records its content id; a parent that was written to has another one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "format/vmdk/vmdk.h"

int vmdk_find_parent(struct vmdk *v, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    const char *name = d->parent;
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
    if (ret || cid == d->parent_cid)
        return ret;
    return rhea_error_set(err, EINVAL,
                          "the parent was changed since the child was made "
                          "over it: its content id is %08" PRIx32
                          ", the child expects %08" PRIx32,
                          cid, d->parent_cid);
}
