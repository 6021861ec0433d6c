/* SPDX-License-Identifier: MIT */
/* What `info` tells: as qemu-img does, then what else there is, as far as it is
 * not what every image has that QEMU makes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/vmdk.h"

static void facts_extent(const struct vmdk_extent *x, struct rhea_facts *facts)
{
    rhea_facts_object(facts, NULL, NULL);
    if (x->h.compressed)
        rhea_facts_bool(facts, "compressed", "compressed", true);
    rhea_facts_number(facts, "virtual size", "virtual-size", x->size);
    rhea_facts_string(facts, "filename", "filename",
                      x->file && x->file->path ? x->file->path : "");
    if (x->has_blocks)
        rhea_facts_number(facts, "cluster size", "cluster-size",
                          x->h.grain_size);
    rhea_facts_string(facts, "format", "format", x->type ? x->type : "");
    rhea_facts_end(facts);
}

/* Lines of the descriptor, by what is said of them; USUAL: not told. */
static void facts_descriptor(const struct descriptor *d,
                             struct rhea_facts *facts)
{
    static const struct {
        const char *line, *name, *json_name, *usual;
    } lines[] = {
        {"ddb.adapterType", "adapter type", "adapter-type", "ide"},
        {"ddb.virtualHWVersion", "hardware version", "hardware-version", "4"},
        {"ddb.toolsVersion", "tools version", "tools-version", "2147483647"},
        {"ddb.uuid", "uuid", "uuid", NULL},
        {VMDK_UUID_IMAGE, "image uuid", "image-uuid", VMDK_UUID_NONE},
        {VMDK_UUID_MODIFIED, "modification uuid", "modification-uuid",
         VMDK_UUID_NONE},
        {VMDK_UUID_PARENT, "parent uuid", "parent-uuid", VMDK_UUID_NONE},
        {VMDK_UUID_PARENT_MODIFIED, "parent modification uuid",
         "parent-modification-uuid", VMDK_UUID_NONE},
        {"changeTrackPath", "change tracking file", "change-tracking-file",
         NULL},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(lines); i++) {
        RHEA_AUTO_FREE char *value = descriptor_get(d, lines[i].line);
        if (value && *value &&
            !(lines[i].usual && strcmp(value, lines[i].usual) == 0))
            rhea_facts_string(facts, lines[i].name, lines[i].json_name, value);
    }
}

static const char *facts_create_type(const struct vmdk *v)
{
    /* An extent that has the descriptor inside is what it is. */
    if (v->n_extents == 1 && v->extents->h.compressed && !v->extents->type)
        return "streamOptimized";
    return v->descriptor.create_type ? v->descriptor.create_type
                                     : "monolithicSparse";
}

int vmdk_facts(struct rhea_format *f, struct rhea_facts *facts,
               struct rhea_error *err)
{
    const struct vmdk *v = vmdk_of(f);
    const struct descriptor *d = &v->descriptor;
    bool journal = false;
    if (d->text) {
        rhea_facts_number(facts, "cid", "cid", d->cid);
        rhea_facts_number(facts, "parent cid", "parent-cid", d->parent_cid);
    }
    rhea_facts_string(facts, "create type", "create-type",
                      facts_create_type(v));
    rhea_facts_list(facts, "extents", "extents");
    for (size_t i = 0; i < v->n_extents; i++) {
        facts_extent(&v->extents[i], facts);
        journal |= v->extents[i].h.journal;
    }
    rhea_facts_end(facts);
    facts_descriptor(d, facts);
    if (journal)
        rhea_facts_bool(facts, "journal to be replayed",
                        "journal-to-be-replayed", true);
    return facts->failed ? rhea_error_set(err, ENOMEM, "out of memory") : 0;
}
