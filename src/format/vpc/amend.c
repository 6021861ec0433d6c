/* SPDX-License-Identifier: MIT */
/*
 * Amending: whose rules the size keeps, and the UUID. Both are in the footer
 * alone, of which one is written and flushed before the other.
 */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

struct amend {
    bool has_rule, has_uuid;
    enum vpc_rule rule;
    uint8_t uuid[UUID_BYTES];
};

static int amend_parse_uuid(struct amend *a, const char *value,
                            struct rhea_error *err)
{
    a->has_uuid = true;
    if (strcmp(value, "new") == 0)
        return uuid_new(a->uuid, err);
    if (!uuid_parse(value, a->uuid) || uuid_is_null(a->uuid))
        return rhea_error_set(
            err, EINVAL, "option uuid is 'new' or a UUID, not '%s'", value);
    return 0;
}

static int amend_parse(struct amend *a, const struct rhea_option *options,
                       size_t n, struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < n && !ret; i++) {
        const struct rhea_option *o = &options[i];
        if (strcmp(o->name, "uuid") == 0) {
            ret = amend_parse_uuid(a, o->value, err);
        } else if (strcmp(o->name, "size_rule") == 0) {
            a->has_rule = true;
            ret = vpc_rule_parse(o->value, &a->rule, err);
        } else {
            ret = rhea_error_set(
                err, ENOTSUP, "option %s of a VHD cannot be changed", o->name);
        }
    }
    return ret;
}

/* The disk stays as large as it is. An image that was made without XenServer's
 * map of full blocks says that it is of a version that may lack it. */
static int amend_rule(struct vpc *v, enum vpc_rule rule, struct rhea_error *err)
{
    struct vpc_shape shape;
    int ret = vpc_shape_for(v->base.size, rule, true, v->type, &shape, err);
    if (ret)
        return ret;
    if (rule == VPC_XENSERVER && v->type != VPC_FIXED) {
        if (v->block_size != VPC_DEFAULT_BLOCK)
            return rhea_error_set(err, ENOTSUP,
                                  "XenServer knows only blocks of %d bytes",
                                  VPC_DEFAULT_BLOCK);
        shape.creator_version = 0x00010001;
    }
    vpc_shape_put(&shape, v->footer);
    v->use_chs = false;
    return 0;
}

static int amend_begin(struct vpc *v, struct rhea_error *err)
{
    if (v->type == VPC_FIXED)
        return v->blocks.writable
                   ? 0
                   : rhea_error_set(err, EACCES,
                                    "the image is open for reading only");
    int ret = blocks_change_begin(&v->blocks, err);
    /* What no longer follows the image must not be believed later. */
    if (!ret)
        ret = vpc_batmap_clear(v, err);
    return ret ? ret : vpc_settle(v, err);
}

static int amend_write(struct vpc *v, struct rhea_error *err)
{
    vpc_footer_seal(v->footer);
    if (v->type == VPC_FIXED)
        return vpc_put_footer_fixed(v, err);
    return blocks_change_end(&v->blocks, vpc_write_footers(v, err), err);
}

int vpc_amend(struct rhea_format *f, const struct rhea_option *options,
              size_t n, bool force, const struct rhea_progress *progress,
              struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    struct amend a = {0};
    uint8_t before[VPC_FOOTER];
    (void)force;
    (void)progress;
    int ret = amend_parse(&a, options, n, err);
    if (ret)
        return ret;
    RHEA_LOCKED(&v->blocks.lock);
    ret = amend_begin(v, err);
    if (ret)
        return ret;
    memcpy(before, v->footer, VPC_FOOTER);
    if (a.has_uuid)
        memcpy(v->footer + VPC_F_UUID, a.uuid, UUID_BYTES);
    if (a.has_rule)
        ret = amend_rule(v, a.rule, err);
    if (ret) {
        memcpy(v->footer, before, VPC_FOOTER);
        return ret;
    }
    return amend_write(v, err);
}

const struct rhea_option_help vpc_amend_options[] = {
    {"size_rule", "str",
     "Whose rules sizes keep: virtual-pc, hyper-v, azure or xenserver; the "
     "size "
     "stays, and has to be one that these allow"},
    {"uuid", "str", "Another identity: new (a random one) or a UUID"},
    {0},
};
