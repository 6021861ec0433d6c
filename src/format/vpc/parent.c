/* SPDX-License-Identifier: MIT */
/*
 * A child and its parent. The child has the parent's UUID, and the time at
 * which the parent was last changed. Programs fill that in from the file's
 * modification time and do not look at it again, since copying a file changes
 * it. So the UUID has to be the same, and of the time only this counts: the
 * first write of ours to an image stamps its footer with a time that is later
 * than any that a child can have recorded by then.
 *
 * A parent without UUID is a raw image, as XenServer's tools mean it.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

/* Of the image's file; 0: not known. */
static uint32_t parent_file_time(const struct rhea_format *f)
{
    int64_t seconds;
    return rhea_file_mtime(f->storage, &seconds) ? 0 : vpc_time(seconds);
}

void vpc_stamp(struct vpc *v)
{
    uint32_t last =
        RHEA_MAX(load_be32(v->footer + VPC_F_TIME), parent_file_time(&v->base));
    uint32_t now = vpc_time_now();
    if (now <= last && last < UINT32_MAX)
        now = last + 1;
    store_be32(v->footer + VPC_F_TIME, now);
    vpc_footer_seal(v->footer);
}

static int parent_record_vhd(uint8_t header[VPC_HEADER], struct vpc *parent,
                             struct rhea_error *err)
{
    RHEA_LOCKED(&parent->blocks.lock);
    const uint8_t *uuid = parent->footer + VPC_F_UUID;
    if (uuid_is_null(uuid))
        return rhea_error_set(err, EINVAL,
                              "the parent has no UUID by which it could be "
                              "told; 'rhea-img amend -o uuid=new' gives it "
                              "one");
    memcpy(header + VPC_H_PARENT_UUID, uuid, UUID_BYTES);
    store_be32(header + VPC_H_PARENT_TIME,
               RHEA_MAX(parent_file_time(&parent->base),
                        load_be32(parent->footer + VPC_F_TIME)));
    return 0;
}

int vpc_parent_record(uint8_t header[VPC_HEADER], const char *format,
                      struct rhea_format *parent, struct rhea_error *err)
{
    const char *is = parent ? parent->ops->name : format;
    if (is && strcmp(is, "raw") == 0) {
        memset(header + VPC_H_PARENT_UUID, 0, UUID_BYTES);
        store_be32(header + VPC_H_PARENT_TIME,
                   parent ? parent_file_time(parent) : 0);
        return 0;
    }
    if (is && strcmp(is, "vpc") != 0)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VHD is a VHD or a raw image, "
                              "not a %s image",
                              is);
    if (!parent)
        return rhea_error_set(err, ENOENT,
                              "the parent cannot be opened, and its UUID has "
                              "to be recorded");
    return parent_record_vhd(header, vpc_of(parent), err);
}

/* A child of ours has recorded the stamp itself. In others a clock may be
 * wrong, and then only a stamp from after the child was made tells. */
static bool parent_was_changed(const struct vpc *child, uint32_t stamp)
{
    uint32_t recorded = load_be32(child->header + VPC_H_PARENT_TIME);
    uint32_t made = load_be32(child->footer + VPC_F_TIME);
    return recorded && stamp > recorded &&
           (vpc_creator_is(child->footer, "rhea") || stamp > made);
}

int vpc_check_parent(struct rhea_format *f, struct rhea_format *parent,
                     struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    const uint8_t *wanted = v->header + VPC_H_PARENT_UUID;
    char is[UUID_TEXT], should_be[UUID_TEXT];
    if (v->type != VPC_DIFFERENCING || uuid_is_null(wanted))
        return 0;
    uuid_text(wanted, should_be);
    if (parent->ops != &rhea_format_vpc)
        return rhea_error_set(err, EINVAL,
                              "the parent should be a VHD, with UUID %s, and "
                              "is a %s image",
                              should_be, parent->ops->name);
    struct vpc *p = vpc_of(parent);
    RHEA_LOCKED(&p->blocks.lock);
    uuid_text(p->footer + VPC_F_UUID, is);
    if (!uuid_equal(wanted, p->footer + VPC_F_UUID))
        return rhea_error_set(err, EINVAL,
                              "the parent should have the UUID %s and has %s: "
                              "it is another image",
                              should_be, is);
    if (parent_was_changed(v, load_be32(p->footer + VPC_F_TIME)))
        return rhea_error_set(err, EINVAL,
                              "the parent has been written to since the child "
                              "was made, so that the child's contents are "
                              "lost; where they are known not to be, 'rebase "
                              "-u' takes the parent as it is");
    return 0;
}
