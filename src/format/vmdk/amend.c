/* SPDX-License-Identifier: MIT */
/*
 * Amending: what the descriptor says of the adapter and of versions. The
 * guest's bytes stay, and so does the content id, by which children go. Order
 * of writes: edit.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/vmdk/create.h"
#include "format/vmdk/edit.h"

const struct rhea_option_help vmdk_amend_options[] = {
    {"adapter_type", "str",
     "Adapter of the disk: ide, lsilogic, buslogic or legacyESX"},
    {"hwversion", "str", "VMware hardware version"},
    {"toolsversion", "str", "Version of VMware's guest tools"},
    {0},
};

/* What N has that is not NULL is what is asked for. */
static int amend_parse(struct new_image *n, const struct rhea_option *options,
                       size_t n_options, struct rhea_error *err)
{
    bool compat6;
    int ret = 0;
    for (size_t i = 0; !ret && i < n_options; i++) {
        const struct rhea_option *o = &options[i];
        if (!option_is_listed(vmdk_amend_options, o->name))
            ret = option_is_listed(vmdk_create_options, o->name)
                      ? rhea_error_set(err, ENOTSUP,
                                       "option %s of a VMDK cannot be changed",
                                       o->name)
                      : option_unknown(o, "vmdk", err);
        else if (strcmp(o->name, "hwversion") == 0 &&
                 strcmp(o->value, "undefined") == 0)
            n->hw_version = "4";
        else
            ret = new_take_option(o, n, &compat6, err);
    }
    return ret;
}

/* What fits a disk of SIZE bytes at an adapter of that type. */
static int amend_geometry(char **text, const char *adapter, uint64_t size,
                          struct rhea_error *err)
{
    const struct new_geometry g = new_geometry(adapter, size);
    const struct {
        const char *name;
        uint64_t value;
    } lines[] = {
        {"ddb.geometry.cylinders", g.cylinders},
        {"ddb.geometry.heads", g.heads},
        {"ddb.geometry.sectors", g.sectors},
    };
    int ret = 0;
    for (size_t i = 0; !ret && i < RHEA_ARRAY_SIZE(lines); i++) {
        char value[24];
        snprintf(value, sizeof(value), "%" PRIu64, lines[i].value);
        ret = vmdk_edit_line(text, lines[i].name, value, NULL, err);
    }
    return ret;
}

static int amend_text(const struct vmdk *v, const struct new_image *n,
                      char **text, struct rhea_error *err)
{
    int ret = 0;
    if (n->hw_version)
        ret = vmdk_edit_line(text, "ddb.virtualHWVersion", n->hw_version, NULL,
                             err);
    if (!ret && n->adapter)
        ret = amend_geometry(text, n->adapter, v->base.size, err);
    if (!ret && n->adapter)
        ret = vmdk_edit_line(text, "ddb.adapterType", n->adapter, NULL, err);
    if (!ret && n->tools_version)
        ret = vmdk_edit_line(text, "ddb.toolsVersion", n->tools_version, NULL,
                             err);
    return ret;
}

int vmdk_amend(struct rhea_format *f, const struct rhea_option *options,
               size_t n, bool force, const struct rhea_progress *progress,
               struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    struct new_image new = {0};
    (void)force;
    (void)progress;
    int ret = amend_parse(&new, options, n, err);
    if (!ret && !(v->flags & RHEA_FORMAT_WRITE))
        ret = rhea_error_set(err, EACCES, "the image is open for reading only");
    if (!ret)
        ret = vmdk_flush(f, err);
    if (ret)
        return ret;
    RHEA_LOCKED(&v->lock);
    RHEA_AUTO_FREE char *text = strdup(v->descriptor.text);
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = amend_text(v, &new, &text, err);
    return ret ? ret : vmdk_edit_store(v, rhea_steal(text), err);
}
