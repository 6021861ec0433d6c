/* SPDX-License-Identifier: MIT */
/*
 * Amending: what Hyper-V's Set-VHD changes, the size of physical sectors
 * (2.6.2.5) and the disk's identity (2.6.2.3). They are metadata that the guest
 * sees, so a new DataWriteGuid goes before; then one entry of the log has both
 * (log_write.c).
 */
#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/vhdx/vhdx.h"

static int amend_id(const char *value, uint8_t id[UUID_BYTES],
                    struct rhea_error *err)
{
    if (strcmp(value, "new") == 0)
        return guid_new(id, err);
    if (!guid_parse(value, id) || uuid_is_null(id))
        return rhea_error_set(err, EINVAL,
                              "option disk_id is 'new' or a GUID, not '%.100s'",
                              value);
    return 0;
}

static int amend_sector(const struct rhea_option *o, uint32_t *sector,
                        struct rhea_error *err)
{
    uint64_t size;
    int ret = option_size(o, &size, err);
    if (!ret && size != 512 && size != 4096)
        ret = rhea_error_set(
            err, EINVAL, "physical_sector_size is 512 or 4096, not '%.100s'",
            o->value);
    *sector = ret ? 0 : (uint32_t)size;
    return ret;
}

static int amend_parse(struct vhdx_metadata *m,
                       const struct rhea_option *options, size_t n,
                       struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < n && !ret; i++) {
        const struct rhea_option *o = &options[i];
        if (strcmp(o->name, "disk_id") == 0)
            ret = amend_id(o->value, m->disk_id, err);
        else if (strcmp(o->name, "physical_sector_size") == 0)
            ret = amend_sector(o, &m->physical_sector, err);
        else
            ret = rhea_error_set(err, ENOTSUP,
                                 "option %s of a VHDX image cannot be changed",
                                 o->name);
    }
    return ret;
}

static int amend_write(struct vhdx *v, const struct vhdx_metadata *m,
                       struct rhea_error *err)
{
    struct vhdx_edit edit = {.v = v};
    uint8_t sector[4];
    store_le32(sector, m->physical_sector);
    int ret = vhdx_begin(v, true, err);
    if (!ret)
        ret = vhdx_edit_bytes(&edit, m->items[VHDX_ITEM_DISK_ID].offset,
                              m->disk_id, UUID_BYTES, err);
    if (!ret)
        ret = vhdx_edit_bytes(&edit, m->items[VHDX_ITEM_PHYSICAL_SECTOR].offset,
                              sector, sizeof(sector), err);
    if (!ret)
        ret = vhdx_edit_write(&edit, true, err);
    vhdx_edit_finish(&edit);
    return ret;
}

int vhdx_amend(struct rhea_format *f, const struct rhea_option *options,
               size_t n, bool force, const struct rhea_progress *progress,
               struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)f;
    (void)force;
    (void)progress;
    RHEA_LOCKED(&v->blocks.lock);
    struct vhdx_metadata m = v->metadata;
    int ret = amend_parse(&m, options, n, err);
    if (ret || memcmp(&m, &v->metadata, sizeof(m)) == 0)
        return ret;
    ret = blocks_change_begin(&v->blocks, err);
    if (!ret)
        ret = blocks_change_end(&v->blocks, amend_write(v, &m, err), err);
    if (!ret)
        v->metadata = m;
    return ret;
}

const struct rhea_option_help vhdx_amend_options[] = {
    {"disk_id", "str",
     "Another identity of the disk: new (a random one) or a GUID"},
    {"physical_sector_size", "num",
     "What the guest is told of the sectors beneath: 512 or 4096"},
    {0},
};
