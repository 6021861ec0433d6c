/* SPDX-License-Identifier: MIT */
/*
 * New images, and how large they would be. As VirtualBox does, the table and
 * the blocks begin at multiples of 1 MiB; so the table can grow by a good deal
 * before blocks have to make room for it.
 *
 * Order of writes: space, the table, flush, the header, flush. Before the
 * header the file is no image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/measure.h"
#include "format/option.h"
#include "format/prealloc.h"
#include "format/vdi.h"

enum {
    BLOCK_MIN = 4 << 10,
    BLOCK_MAX = 256 << 20,
    ENTRY = sizeof(uint32_t),
    TABLE_PIECE = 64 << 10, /* entries written at a time */
};

const struct rhea_option_help vdi_create_options[] = {
    {"size", "size", "Virtual disk size"},
    {"backing_file", "str",
     "VDI image below, in the same folder; makes a differencing image"},
    {"backing_fmt", "str", "Format of the backing file, which is vdi"},
    {"block_size", "size",
     "Block size, 4k to 256M (default: 1M, and QEMU takes no other)"},
    {"preallocation", "str",
     "Fixed image: metadata, falloc or full (written); off (default)"},
    {"static", "bool (on/off)", "The same as preallocation=metadata"},
    {0},
};

struct create {
    uint64_t block_size;
    const char *preallocation;
    bool is_static;
    bool fixed;
};

static int create_parse(struct create *c, const struct rhea_option *options,
                        size_t n, struct rhea_error *err)
{
    *c = (struct create){.block_size = VDI_DEFAULT_BLOCK,
                         .preallocation = "off"};
    for (size_t i = 0; i < n; i++) {
        const struct rhea_option *o = &options[i];
        int ret = 0;
        if (strcmp(o->name, "block_size") == 0)
            ret = option_size(o, &c->block_size, err);
        else if (strcmp(o->name, "static") == 0)
            ret = option_bool(o, &c->is_static, err);
        else if (strcmp(o->name, "preallocation") == 0)
            c->preallocation = o->value;
        else
            ret = option_unknown(o, "vdi", err);
        if (ret)
            return ret;
    }
    if (!is_power_of_2(c->block_size) || c->block_size < BLOCK_MIN ||
        c->block_size > BLOCK_MAX)
        return rhea_error_set(err, EINVAL,
                              "block_size is a power of 2 from %d to %d bytes",
                              BLOCK_MIN, BLOCK_MAX);
    if (c->is_static && strcmp(c->preallocation, "off") == 0)
        c->preallocation = "metadata";
    c->fixed = strcmp(c->preallocation, "off") != 0;
    return prealloc_check(c->preallocation, err);
}

/* The header for SIZE guest bytes. */
static int create_head(struct vdi_head *h, const struct create *c,
                       uint64_t size, struct rhea_error *err)
{
    vdi_head_init(h);
    /* The place of the data has 32 bits. */
    uint64_t max = (UINT32_MAX - 2 * (uint64_t)VDI_ALIGN) / ENTRY;
    uint64_t blocks = div_up(size, c->block_size);
    if (size > INT64_MAX - VDI_SECTOR || blocks > max)
        return rhea_error_set(err, EFBIG,
                              "a VDI image with blocks of %" PRIu64
                              " bytes cannot have %" PRIu64 " bytes: "
                              "at most %" PRIu64 " blocks are possible",
                              c->block_size, size, max);
    h->type = c->fixed ? VDI_FIXED : VDI_DYNAMIC;
    h->disk_size = align_up(size, VDI_SECTOR);
    h->block_size = (uint32_t)c->block_size;
    h->blocks = (uint32_t)blocks;
    h->count = c->fixed ? h->blocks : 0;
    h->table = VDI_ALIGN;
    h->data = align_up(h->table + blocks * ENTRY, VDI_ALIGN);
    int ret = guid_new(h->uuid[VDI_IMAGE], err);
    return ret ? ret : guid_new(h->uuid[VDI_MODIFIED], err);
}

static int create_table(struct rhea_storage *storage, const struct vdi_head *h,
                        struct rhea_error *err)
{
    RHEA_AUTO_FREE uint32_t *entries = malloc(TABLE_PIECE * ENTRY);
    if (!entries)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint32_t at = 0; at < h->blocks && !ret; at += TABLE_PIECE) {
        uint32_t n = RHEA_MIN(h->blocks - at, TABLE_PIECE);
        for (uint32_t i = 0; i < n; i++)
            entries[i] = htole32(h->type == VDI_FIXED ? at + i : VDI_FREE);
        ret = rhea_storage_write(storage, entries, n * ENTRY,
                                 h->table + (uint64_t)at * ENTRY, err);
    }
    return ret;
}

int vdi_create(struct rhea_storage *storage, const struct rhea_create *how,
               struct rhea_error *err)
{
    struct create c;
    struct vdi_head h;
    int ret = create_parse(&c, how->options, how->n_options, err);
    if (ret)
        return ret;
    if (c.fixed && how->backing_file)
        return rhea_error_set(err, EINVAL,
                              "a VDI image with a backing file cannot be "
                              "preallocated");
    ret = create_head(&h, &c, how->size, err);
    if (!ret)
        ret = vdi_head_set_parent(&h, how->parent, how->backing_file,
                                  how->files, err);
    if (ret)
        return ret;
    uint64_t data = (uint64_t)h.count * h.block_size;
    if (data > INT64_MAX - h.data)
        return rhea_error_set(err, EFBIG, "the image file would be too large");

    ret = prealloc_space(storage, c.preallocation, 0, h.data + data, err);
    if (!ret)
        ret = create_table(storage, &h, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    vdi_head_store(&h);
    if (!ret)
        ret = rhea_storage_write(storage, h.raw, VDI_SECTOR, 0, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    return ret;
}

int vdi_measure(const struct rhea_measure *what, struct rhea_measured *out,
                struct rhea_error *err)
{
    struct create c;
    struct vdi_head h;
    uint64_t blocks;
    int ret = create_parse(&c, what->options, what->n_options, err);
    if (!ret)
        ret = create_head(&h, &c, what->size, err);
    if (!ret)
        ret = measure_blocks(what, c.block_size, &blocks, err);
    if (ret)
        return ret;
    if (c.fixed)
        blocks = h.blocks;
    *out = (struct rhea_measured){
        .required = h.data + blocks * h.block_size,
        .fully_allocated = h.data + (uint64_t)h.blocks * h.block_size,
    };
    return 0;
}
