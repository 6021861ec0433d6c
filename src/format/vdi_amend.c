/* SPDX-License-Identifier: MIT */
/*
 * Amending: the image's UUID, which VirtualBox wants to be one of a kind, so
 * that a copy needs another; and the comment. Both are in the header's sector,
 * which is written whole; flush.
 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "format/vdi.h"

static int amend_uuid(struct vdi_head *h, const char *value,
                      struct rhea_error *err)
{
    uint8_t *uuid = h->uuid[VDI_IMAGE];
    if (strcmp(value, "new") == 0)
        return guid_new(uuid, err);
    if (!guid_parse(value, uuid) || uuid_is_null(uuid))
        return rhea_error_set(
            err, EINVAL, "option uuid is 'new' or a UUID, not '%.100s'", value);
    return 0;
}

static int amend_comment(struct vdi_head *h, const char *value,
                         struct rhea_error *err)
{
    char *comment = (char *)h->raw + h->at->comment;
    if (strlen(value) >= VDI_COMMENT)
        return rhea_error_set(err, ENAMETOOLONG,
                              "a VDI image's comment has less than %d bytes",
                              VDI_COMMENT);
    memset(comment, 0, VDI_COMMENT);
    memcpy(comment, value, strlen(value) + 1);
    return 0;
}

static int amend_parse(struct vdi_head *h, const struct rhea_option *options,
                       size_t n, struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < n && !ret; i++) {
        const struct rhea_option *o = &options[i];
        if (strcmp(o->name, "uuid") == 0)
            ret = amend_uuid(h, o->value, err);
        else if (strcmp(o->name, "comment") == 0)
            ret = amend_comment(h, o->value, err);
        else
            ret = rhea_error_set(err, ENOTSUP,
                                 "option %s of a VDI image cannot be changed",
                                 o->name);
    }
    return ret;
}

int vdi_amend(struct rhea_format *f, const struct rhea_option *options,
              size_t n, bool force, const struct rhea_progress *progress,
              struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    (void)force;
    (void)progress;
    RHEA_LOCKED(&v->blocks.lock);
    int ret = blocks_change_begin(&v->blocks, err);
    struct vdi_head h = v->head;
    if (!ret)
        ret = amend_parse(&h, options, n, err);
    if (ret)
        return ret;
    ret = blocks_change_end(&v->blocks,
                            vdi_head_write(&h, v->base.storage, err), err);
    if (!ret)
        v->head = h;
    return ret;
}

const struct rhea_option_help vdi_amend_options[] = {
    {"comment", "str", "Text for people, less than 256 bytes"},
    {"uuid", "str",
     "Another identity, which a copy needs: new (a random one) or a UUID; "
     "children of the image will not find it"},
    {0},
};
