/* SPDX-License-Identifier: MIT */
#include "base/uuid.h"
#include "format/vhdx/vhdx.h"

static void facts_guid(struct rhea_facts *facts, const char *name,
                       const char *json_name, const uint8_t guid[UUID_BYTES])
{
    char text[UUID_TEXT];
    guid_text(guid, text);
    rhea_facts_string(facts, name, json_name, text);
}

static void facts_path(struct rhea_facts *facts, const char *name,
                       const char *json_name, const char *path)
{
    if (path)
        rhea_facts_string(facts, name, json_name, path);
}

static void facts_parent(const struct vhdx *v, struct rhea_facts *facts)
{
    const struct vhdx_locator *l = &v->locator;
    rhea_facts_object(facts, "parent", "parent");
    facts_guid(facts, "linkage", "linkage", l->linkage);
    if (l->has_linkage2)
        facts_guid(facts, "second linkage", "linkage2", l->linkage2);
    facts_path(facts, "relative path", "relative-path", l->relative);
    facts_path(facts, "volume path", "volume-path", l->volume);
    facts_path(facts, "absolute path", "absolute-win32-path", l->absolute);
    facts_path(facts, "path of this system", "absolute-posix-path", l->posix);
    rhea_facts_end(facts);
}

int vhdx_facts(struct rhea_format *f, struct rhea_facts *facts,
               struct rhea_error *err)
{
    const struct vhdx *v = (const struct vhdx *)f;
    const struct vhdx_metadata *m = &v->metadata;
    (void)err;
    rhea_facts_string(facts, "subformat", "subformat",
                      vhdx_is_child(v)          ? "differencing"
                      : m->flags & VHDX_P_FIXED ? "fixed"
                                                : "dynamic");
    rhea_facts_number(facts, "block size", "block-size", m->block_size);
    rhea_facts_number(facts, "logical sector size", "logical-sector-size",
                      m->logical_sector);
    rhea_facts_number(facts, "physical sector size", "physical-sector-size",
                      m->physical_sector);
    rhea_facts_number(facts, "log size", "log-size", v->header.log_length);
    rhea_facts_bool(facts, "log to be replayed", "log-pending",
                    v->overlay != NULL);
    facts_guid(facts, "disk ID", "disk-id", m->disk_id);
    facts_guid(facts, "data write ID", "data-write-id", v->header.data_write);
    if (*v->creator)
        rhea_facts_string(facts, "creator", "creator", v->creator);
    if (vhdx_is_child(v))
        facts_parent(v, facts);
    return 0;
}
