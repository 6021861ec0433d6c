/* SPDX-License-Identifier: MIT */
/*
 * New images: their extents, and the descriptor that names them.
 *
 * Order of writes: the extents, each durable; then the descriptor, where it is
 * a file of its own, flush. Before it there is no image.
 */
#include "format/vmdk/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/entropy.h"
#include "format/option.h"
#include "format/prealloc.h"

enum { NEW_HW_VERSION_6 = 6 };
#define NEW_SPLIT ((uint64_t)2 << 30)

static const struct new_type new_types[] = {
    {"monolithicSparse", "SPARSE", 0, NULL, VMDK_HOSTED, false},
    {"monolithicFlat", "FLAT", 0, "-flat", VMDK_FLAT, false},
    {"twoGbMaxExtentSparse", "SPARSE", 's', NULL, VMDK_HOSTED, false},
    {"twoGbMaxExtentFlat", "FLAT", 'f', NULL, VMDK_FLAT, false},
    {"streamOptimized", "SPARSE", 0, NULL, VMDK_HOSTED, true},
    {"vmfs", "VMFS", 0, "-flat", VMDK_FLAT, false},
    {"vmfsSparse", "VMFSSPARSE", 0, "-delta", VMDK_COWD, false},
    {"seSparse", "SESPARSE", 0, "-sesparse", VMDK_SESPARSE, false},
};

const struct rhea_option_help vmdk_create_options[] = {
    {"adapter_type", "str",
     "Adapter of the disk: ide (default), lsilogic, buslogic or legacyESX"},
    {"backing_file", "str", "The parent: a VMDK, which shows through"},
    {"backing_fmt", "str", "Format of the parent, only vmdk"},
    {"compat6", "bool (on/off)", "The same as hwversion=6"},
    {"hwversion", "str", "VMware hardware version (default: 4)"},
    {"preallocation", "str",
     "Space for flat extents: off (default), falloc or full"},
    {"size", "size", "Virtual disk size"},
    {"subformat", "str",
     "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, "
     "twoGbMaxExtentFlat, streamOptimized, vmfs, vmfsSparse or seSparse"},
    {"toolsversion", "str", "Version of VMware's guest tools"},
    {"zeroed_grain", "bool (on/off)",
     "Note zeroes in tables, without data (header version 2)"},
    {0},
};

/* --- Options --- */

const struct new_type *new_find_type(const char *name)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(new_types); i++)
        if (strcmp(name, new_types[i].name) == 0)
            return &new_types[i];
    return NULL;
}

static int option_subformat(const struct rhea_option *o, struct new_image *n,
                            struct rhea_error *err)
{
    const struct new_type *type = new_find_type(o->value);
    if (type) {
        n->type = type;
        return 0;
    }
    return rhea_error_set(err, EINVAL,
                          "subformat is monolithicSparse, monolithicFlat, "
                          "twoGbMaxExtentSparse, twoGbMaxExtentFlat, "
                          "streamOptimized, vmfs, vmfsSparse or seSparse, not "
                          "'%.100s'",
                          o->value);
}

static int option_adapter(const struct rhea_option *o, struct new_image *n,
                          struct rhea_error *err)
{
    static const char *const adapters[] = {"ide", "lsilogic", "buslogic",
                                           "legacyESX"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(adapters); i++)
        if (strcmp(o->value, adapters[i]) == 0) {
            n->adapter = adapters[i];
            return 0;
        }
    return rhea_error_set(err, EINVAL,
                          "adapter_type is ide, lsilogic, buslogic or "
                          "legacyESX, not '%.100s'",
                          o->value);
}

/* What stands between quotes in the descriptor. */
static int option_text(const char *value, const char *what,
                       struct rhea_error *err)
{
    return strpbrk(value, "\"\n\r")
               ? rhea_error_set(err, EINVAL,
                                "%s cannot have quotes or line ends in it: "
                                "'%.200s'",
                                what, value)
               : 0;
}

int new_take_option(const struct rhea_option *o, struct new_image *n,
                    bool *compat6, struct rhea_error *err)
{
    if (strcmp(o->name, "subformat") == 0)
        return option_subformat(o, n, err);
    if (strcmp(o->name, "adapter_type") == 0)
        return option_adapter(o, n, err);
    if (strcmp(o->name, "zeroed_grain") == 0)
        return option_bool(o, &n->zero_grains, err);
    if (strcmp(o->name, "compat6") == 0)
        return option_bool(o, compat6, err);
    if (strcmp(o->name, "hwversion") == 0) {
        /* What qemu-img calls its default. */
        if (strcmp(o->value, "undefined") != 0)
            n->hw_version = o->value;
        return option_text(o->value, "hwversion", err);
    }
    if (strcmp(o->name, "toolsversion") == 0) {
        n->tools_version = o->value;
        return option_text(o->value, "toolsversion", err);
    }
    if (strcmp(o->name, "preallocation") == 0) {
        n->preallocation = o->value;
        return prealloc_check(o->value, err);
    }
    return option_unknown(o, "vmdk", err);
}

/* What goes together. */
static int new_check(const struct new_image *n, bool compat6,
                     struct rhea_error *err)
{
    if (compat6 && n->hw_version)
        return rhea_error_set(err, EINVAL,
                              "compat6 and hwversion both say the hardware "
                              "version: give only one");
    if (n->type->kind != VMDK_HOSTED && n->type->kind != VMDK_SESPARSE &&
        n->zero_grains)
        return rhea_error_set(err, ENOTSUP,
                              "an image of type %s cannot note zeroes "
                              "(zeroed_grain)",
                              n->type->name);
    if (strcmp(n->preallocation, "metadata") == 0 ||
        (strcmp(n->preallocation, "off") != 0 && n->type->kind != VMDK_FLAT))
        return rhea_error_set(err, ENOTSUP,
                              "an image of type %s cannot have preallocation "
                              "%s: only flat ones can have falloc and full",
                              n->type->name, n->preallocation);
    return 0;
}

int new_take_options(struct new_image *n, const struct rhea_option *options,
                     size_t n_options, struct rhea_error *err)
{
    bool compat6 = false;
    n->type = new_types;
    n->adapter = "ide";
    n->tools_version = "2147483647"; /* unknown; INT32_MAX, as everybody */
    n->preallocation = "off";
    int ret = 0;
    for (size_t i = 0; !ret && i < n_options; i++)
        ret = new_take_option(&options[i], n, &compat6, err);
    if (!ret)
        ret = new_check(n, compat6, err);
    if (!n->hw_version)
        n->hw_version = compat6 ? "6" : "4";
    return ret;
}

/* --- Parts --- */

unsigned new_n_extents(const struct new_image *n)
{
    uint64_t count = n->type->letter ? div_up(n->size, NEW_SPLIT) : 1;
    return (unsigned)RHEA_MIN(count, (uint64_t)UINT32_MAX);
}

uint64_t new_extent_size(const struct new_image *n, unsigned index)
{
    return n->type->letter ? RHEA_MIN(n->size - index * NEW_SPLIT, NEW_SPLIT)
                           : n->size;
}

/* "disk.vmdk" has "disk-flat.vmdk" or "disk-s001.vmdk". */
char *new_extent_name(const struct new_image *n, unsigned index)
{
    const char *dot = strrchr(n->name, '.');
    int stem = dot ? (int)(dot - n->name) : (int)strlen(n->name);
    char *name = NULL;
    int ret;
    if (n->type->letter)
        ret = asprintf(&name, "%.*s-%c%03u%s", stem, n->name, n->type->letter,
                       index + 1, dot ? dot : "");
    else
        ret = asprintf(&name, "%.*s%s%s", stem, n->name,
                       n->type->tail ? n->type->tail : "", dot ? dot : "");
    return ret < 0 ? NULL : name;
}

static bool new_is_inside(const struct new_type *type)
{
    return !type->letter && !type->tail;
}

static int new_check_parent(struct new_image *n, const struct rhea_create *how,
                            struct rhea_error *err)
{
    n->parent_cid = (uint32_t)DESCRIPTOR_NO_CID;
    n->parent = how->backing_file;
    if (!n->parent)
        return 0;
    if (n->type->kind == VMDK_FLAT)
        return rhea_error_set(err, ENOTSUP,
                              "an image of type %s has all of its bytes, and "
                              "so no parent",
                              n->type->name);
    if (how->backing_format && strcmp(how->backing_format, "vmdk") != 0)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VMDK is another one, not a "
                              "%.100s image",
                              how->backing_format);
    if (!how->parent)
        return rhea_error_set(err, EINVAL,
                              "the parent '%.300s' cannot be opened, and the "
                              "child has to record its content id",
                              n->parent);
    int ret = option_text(n->parent, "the parent's name", err);
    return ret ? ret : vmdk_content_id(how->parent, &n->parent_cid, err);
}

/* Neither what says "none" nor "ask the long one". */
static int new_choose_cid(struct new_image *n, struct rhea_error *err)
{
    int ret;
    do {
        ret = entropy_get(&n->cid, sizeof(n->cid), err);
    } while (!ret && n->cid >= UINT32_MAX - 1);
    return ret;
}

int new_check_size(const struct new_image *n, struct rhea_error *err)
{
    unsigned count = new_n_extents(n);
    if (!n->size)
        return rhea_error_set(err, EINVAL, "a VMDK cannot be empty");
    if (count > VMDK_EXTENTS_MAX)
        return rhea_error_set(err, EFBIG,
                              "an image of type %s has extents of 2 GiB, and "
                              "can have only %d of them",
                              n->type->name, VMDK_EXTENTS_MAX);
    return new_extent_check(n, new_extent_size(n, 0), err);
}

static int new_make_extents(const struct new_image *n,
                            const struct rhea_create *how,
                            struct rhea_error *err)
{
    int ret = 0;
    for (unsigned i = 0; !ret && i < new_n_extents(n); i++) {
        struct rhea_storage *storage;
        RHEA_AUTO_FREE char *name = new_extent_name(n, i);
        if (!name)
            return rhea_error_set(err, ENOMEM, "out of memory");
        ret = how->files->create(how->files->opaque, name, &storage, err);
        if (!ret)
            ret = new_extent(storage, n, new_extent_size(n, i), NULL, err);
    }
    return ret;
}

static int new_write(const struct new_image *n, struct rhea_storage *storage,
                     const struct rhea_create *how, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    int ret = new_descriptor(n, &text, err);
    if (ret)
        return ret;
    size_t len = strlen(text);
    if (new_is_inside(n->type)) {
        if (len > DESCRIPTOR_SECTORS * VMDK_SECTOR)
            return rhea_error_set(err, ENAMETOOLONG,
                                  "the names in the image do not fit into its "
                                  "descriptor");
        return new_extent(storage, n, n->size, text, err);
    }
    if (!how->files || !how->files->create)
        return rhea_error_set(err, ENOTSUP,
                              "an image of type %s is made of several files, "
                              "and so must be in a folder",
                              n->type->name);
    ret = new_make_extents(n, how, err);
    if (!ret)
        ret = rhea_storage_write(storage, text, len, 0, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

int vmdk_create(struct rhea_storage *storage, const struct rhea_create *how,
                struct rhea_error *err)
{
    struct new_image n = {
        .size = align_up(how->size, VMDK_SECTOR),
        .name = how->name ? how->name : "disk.vmdk",
    };
    int ret = new_take_options(&n, how->options, how->n_options, err);
    if (!ret)
        ret = option_text(n.name, "the image's name", err);
    if (!ret)
        ret = new_check_size(&n, err);
    if (!ret)
        ret = new_check_parent(&n, how, err);
    if (!ret)
        ret = new_choose_cid(&n, err);
    return ret ? ret : new_write(&n, storage, how, err);
}
