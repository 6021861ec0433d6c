/* SPDX-License-Identifier: MIT */
/* The descriptors of new images. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/entropy.h"
#include "format/vmdk/create.h"
#include "format/vmdk/sesparse.h"

/* IDE: 16 heads, 63 sectors. SCSI adapters choose by size, as VMware's do: up
 * to 1 GiB 64 heads and 32 sectors, up to 2 GiB 128 and 32, then 255 and 63;
 * no more cylinders than 16 bits hold. */
struct new_geometry new_geometry(const char *adapter, uint64_t size)
{
    struct new_geometry g = {.heads = 16, .sectors = 63};
    uint64_t max = UINT64_MAX;
    if (strcmp(adapter, "ide") != 0) {
        bool small = size <= (uint64_t)1 << 30;
        bool medium = size <= (uint64_t)2 << 30;
        g.heads = small ? 64 : medium ? 128 : 255;
        g.sectors = medium ? 32 : 63;
        max = UINT16_MAX;
    }
    g.cylinders = size / VMDK_SECTOR / g.heads / g.sectors;
    g.cylinders = RHEA_MIN(RHEA_MAX(g.cylinders, (uint64_t)1), max);
    return g;
}

static void text_extents(FILE *out, const struct new_image *n, bool *failed)
{
    const char *offset = strcmp(n->type->line, "FLAT") == 0 ? " 0" : "";
    for (unsigned i = 0; i < new_n_extents(n); i++) {
        RHEA_AUTO_FREE char *name = new_extent_name(n, i);
        *failed |= !name;
        fprintf(out, "RW %" PRIu64 " %s \"%s\"%s\n",
                new_extent_size(n, i) / VMDK_SECTOR, n->type->line,
                name ? name : "", offset);
    }
}

/* A stream goes over the network to who wants to know the long id, of which the
 * last part is the short one. */
static int text_long_id(FILE *out, const struct new_image *n,
                        struct rhea_error *err)
{
    uint32_t random[3];
    if (!n->type->compressed)
        return 0;
    int ret = entropy_get(random, sizeof(random), err);
    if (!ret)
        fprintf(out,
                "ddb.longContentID = \"%08" PRIx32 "%08" PRIx32 "%08" PRIx32
                "%08" PRIx32 "\"\n",
                random[0], random[1], random[2], n->cid);
    return ret;
}

static int text_write(FILE *out, const struct new_image *n,
                      struct rhea_error *err)
{
    struct new_geometry g = new_geometry(n->adapter, n->size);
    bool failed = false;
    fprintf(out,
            "# Disk DescriptorFile\n"
            "version=1\n"
            "encoding=\"UTF-8\"\n"
            "CID=%08" PRIx32 "\n"
            "parentCID=%08" PRIx32 "\n"
            "createType=\"%s\"\n",
            n->cid, n->parent_cid, n->type->name);
    if (n->parent)
        fprintf(out, "parentFileNameHint=\"%s\"\n", n->parent);
    fprintf(out, "\n# Extent description\n");
    text_extents(out, n, &failed);
    fprintf(out, "\n# The Disk Data Base\n#DDB\n\n");
    if (n->type->kind == VMDK_SESPARSE)
        fprintf(out, "ddb.grain = \"%d\"\n",
                SESPARSE_GRAIN_BYTES / VMDK_SECTOR);
    int ret = text_long_id(out, n, err);
    fprintf(out,
            "ddb.virtualHWVersion = \"%s\"\n"
            "ddb.geometry.cylinders = \"%" PRIu64 "\"\n"
            "ddb.geometry.heads = \"%u\"\n"
            "ddb.geometry.sectors = \"%u\"\n"
            "ddb.adapterType = \"%s\"\n"
            "ddb.toolsVersion = \"%s\"\n",
            n->hw_version, g.cylinders, g.heads, g.sectors, n->adapter,
            n->tools_version);
    if (!ret && failed)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    return ret;
}

int new_descriptor(const struct new_image *n, char **text,
                   struct rhea_error *err)
{
    size_t len;
    FILE *out = open_memstream(text, &len);
    if (!out)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = text_write(out, n, err);
    if (fclose(out) && !ret)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (ret) {
        free(*text);
        *text = NULL;
    }
    return ret;
}
