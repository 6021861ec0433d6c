/* SPDX-License-Identifier: MIT */
/* What `info` tells of a VHD. QEMU tells nothing of its own. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

/* Four characters, of which some programs fill in fewer. */
static void facts_code(struct rhea_facts *facts, const char *name,
                       const char *json_name, const uint8_t *code)
{
    char text[5] = {0};
    memcpy(text, code, 4);
    for (int i = 3; i >= 0 && (text[i] == ' ' || !text[i]); i--)
        text[i] = 0;
    for (char *p = text; *p; p++)
        if (*p < ' ' || *p > '~')
            *p = '?';
    rhea_facts_string(facts, name, json_name, text);
}

static void facts_version(struct rhea_facts *facts, const uint8_t *p)
{
    char text[16];
    snprintf(text, sizeof(text), "%u.%u", load_be16(p), load_be16(p + 2));
    rhea_facts_string(facts, "creator version", "creator-version", text);
}

static void facts_geometry(struct rhea_facts *facts, const struct vpc *v)
{
    char text[32];
    struct vpc_geometry g;
    vpc_geometry_of(v->footer, &g);
    snprintf(text, sizeof(text), "%u/%u/%u", g.cylinders, g.heads, g.sectors);
    rhea_facts_string(facts, "geometry", "geometry", text);
    rhea_facts_string(facts, "size by", "size-by",
                      v->use_chs ? "geometry" : "bytes");
    rhea_facts_number(facts, "current size", "current-size",
                      load_be64(v->footer + VPC_F_SIZE));
    rhea_facts_number(facts, "original size", "original-size",
                      load_be64(v->footer + VPC_F_ORIGINAL_SIZE));
}

static void facts_time(struct rhea_facts *facts, const char *name,
                       const char *json_name, const uint8_t *p)
{
    char text[24];
    vpc_time_text(load_be32(p), text);
    rhea_facts_string(facts, name, json_name, text);
}

static void facts_uuid(struct rhea_facts *facts, const char *name,
                       const char *json_name, const uint8_t *p)
{
    char text[UUID_TEXT];
    uuid_text(p, text);
    rhea_facts_string(facts, name, json_name, text);
}

static int facts_parent(struct rhea_facts *facts, const struct vpc *v,
                        struct rhea_error *err)
{
    char *names[VPC_LOCATORS * 2 + 2];
    int n = vpc_parent_names(v, names, err);
    if (n < 0)
        return n;
    facts_uuid(facts, "parent UUID", "parent-uuid",
               v->header + VPC_H_PARENT_UUID);
    facts_time(facts, "parent time stamp", "parent-time-stamp",
               v->header + VPC_H_PARENT_TIME);
    rhea_facts_list(facts, "parent names", "parent-names");
    for (int i = 0; i < n; i++) {
        rhea_facts_string(facts, NULL, NULL, names[i]);
        free(names[i]);
    }
    rhea_facts_end(facts);
    return 0;
}

int vpc_facts(struct rhea_format *f, struct rhea_facts *facts,
              struct rhea_error *err)
{
    static const char *const types[] = {[VPC_FIXED] = "fixed",
                                        [VPC_DYNAMIC] = "dynamic",
                                        [VPC_DIFFERENCING] = "differencing"};
    struct vpc *v = vpc_of(f);
    RHEA_LOCKED(&v->blocks.lock);
    rhea_facts_string(facts, "subformat", "subformat", types[v->type]);
    if (v->block_size)
        rhea_facts_number(facts, "block size", "block-size", v->block_size);
    facts_code(facts, "creator", "creator", v->footer + VPC_F_CREATOR);
    facts_version(facts, v->footer + VPC_F_CREATOR_VERSION);
    facts_code(facts, "creator system", "creator-system",
               v->footer + VPC_F_CREATOR_SYSTEM);
    facts_geometry(facts, v);
    facts_uuid(facts, "UUID", "uuid", v->footer + VPC_F_UUID);
    facts_time(facts, "time stamp", "time-stamp", v->footer + VPC_F_TIME);
    rhea_facts_bool(facts, "saved state", "saved-state",
                    v->footer[VPC_F_SAVED_STATE]);
    if (v->found.best != &v->found.tail)
        rhea_facts_bool(facts, "footer recovered from its copy",
                        "footer-recovered", true);
    return v->type == VPC_DIFFERENCING ? facts_parent(facts, v, err) : 0;
}
