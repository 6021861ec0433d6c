/* SPDX-License-Identifier: MIT */
/*
 * VDI, VirtualBox's disk images: docs/formats/vdi.md.
 *
 * A header, one table with a number for each block of the guest, and blocks,
 * 1 MiB each unless the header says otherwise. Fixed images have all of them,
 * dynamic ones those that were written to. What a differencing (or undo) image
 * does not have is its parent's, which it knows by UUID. Both versions of the
 * header that VirtualBox reads are supported, and data before each block, which
 * is kept. Snapshots are files of their own.
 *
 * vdi_table.c has the table, vdi_write.c the order of writes, vdi_parent.c what
 * is to do with parents.
 */
#include "format/vdi.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"

static int vdi_probe(const uint8_t *head, size_t len)
{
    return vdi_head_is(head, len) ? 100 : 0;
}

static void vdi_destroy(struct vdi *v)
{
    table_finish(&v->table);
    bitmap_finish(&v->used);
    blocks_finish(&v->blocks);
    free(v->parent);
    free(v);
}

static int vdi_read_head(struct vdi *v, struct rhea_error *err)
{
    struct vdi_head *h = &v->head;
    int ret = rhea_storage_size(v->base.storage, &v->file_size, err);
    if (!ret && v->file_size < VDI_SMALLEST)
        return rhea_error_set(
            err, EINVAL, "not a VDI image: the file has only %" PRIu64 " bytes",
            v->file_size);
    if (!ret)
        ret = vdi_head_read(h, v->base.storage, err);
    if (ret)
        return ret;
    v->base.size = h->disk_size;
    v->stride = (uint64_t)h->extra + h->block_size;
    v->count = h->count;
    if (!range_inside(h->table, h->blocks * sizeof(uint32_t), v->file_size))
        return rhea_error_set(err, EINVAL,
                              "invalid VDI header: a table of %" PRIu32
                              " entries at offset %" PRIu64
                              " reaches past the end of the file",
                              h->blocks, h->table);
    return 0;
}

static void vdi_init_blocks(struct vdi *v)
{
    v->blocks.size = v->base.size;
    v->blocks.block_size = v->blocks.unit = v->head.block_size;
    v->blocks.child = v->parent;
}

static int vdi_open(struct rhea_format **out,
                    const struct rhea_format_open *how, struct rhea_error *err)
{
    int ret = option_none(how, "vdi", err);
    if (ret)
        return ret;
    struct vdi *v = calloc(1, sizeof(*v));
    if (!v)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->base.ops = &rhea_format_vdi;
    v->base.storage = how->storage;
    v->files = how->files;
    blocks_init(&v->blocks, &vdi_blocks_ops, &v->base);

    ret = vdi_read_head(v, err);
    if (!ret && vdi_head_is_child(&v->head))
        ret = vdi_find_parent(&v->head, how->files, &v->parent, err);
    if (!ret) {
        vdi_init_blocks(v);
        ret = vdi_table_init(v, err);
    }
    v->repairable = how->flags & RHEA_FORMAT_WRITE;
    if (!ret && v->repairable && !(how->flags & RHEA_FORMAT_CHECK))
        ret = vdi_open_write(v, err);
    if (ret) {
        vdi_destroy(v);
        return ret;
    }
    *out = &v->base;
    return 0;
}

static int vdi_flush(struct rhea_format *f, struct rhea_error *err)
{
    return blocks_flush(&((struct vdi *)f)->blocks, err);
}

static int vdi_close(struct rhea_format *f, struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    int ret = v->blocks.writable ? vdi_flush(f, err) : 0;
    vdi_destroy(v);
    return ret;
}

static void vdi_info(struct rhea_format *f, struct rhea_format_info *info)
{
    const struct vdi *v = (const struct vdi *)f;
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = v->head.block_size,
        .part_size = v->parent ? 0 : RHEA_MIN(v->head.block_size, BLOCKS_PART),
        .backing_file = v->parent,
        .backing_format = v->parent ? rhea_format_vdi.name : NULL,
    };
}

static void facts_uuid(struct rhea_facts *facts, const char *name,
                       const char *json_name, const uint8_t *uuid)
{
    char text[UUID_TEXT];
    if (uuid_is_null(uuid))
        return;
    guid_text(uuid, text);
    rhea_facts_string(facts, name, json_name, text);
}

/* Without what would leave its line. */
static void facts_comment(struct rhea_facts *facts, const struct vdi_head *h)
{
    char text[VDI_COMMENT + 1] = {0};
    memcpy(text, h->raw + h->at->comment, VDI_COMMENT);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127)
            *p = ' ';
    if (*text)
        rhea_facts_string(facts, "comment", "comment", text);
}

static int vdi_facts(struct rhea_format *f, struct rhea_facts *facts,
                     struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    char version[32];
    (void)err;
    RHEA_LOCKED(&v->blocks.lock);
    const struct vdi_head *h = &v->head;
    snprintf(version, sizeof(version), "%u.%u", (unsigned)(h->version >> 16),
             (unsigned)(h->version & 0xffff));
    rhea_facts_string(facts, "version", "version", version);
    rhea_facts_string(facts, "type", "type", vdi_type_name(h->type));
    rhea_facts_number(facts, "block size", "block-size", h->block_size);
    rhea_facts_number(facts, "blocks", "blocks", h->blocks);
    rhea_facts_number(facts, "blocks in file", "blocks-in-file", h->count);
    if (h->flags)
        rhea_facts_number(facts, "flags", "flags", h->flags);
    facts_uuid(facts, "uuid", "uuid", h->uuid[VDI_IMAGE]);
    facts_uuid(facts, "modification uuid", "modification-uuid",
               h->uuid[VDI_MODIFIED]);
    facts_uuid(facts, "parent uuid", "parent-uuid", h->uuid[VDI_PARENT]);
    facts_uuid(facts, "parent modification uuid", "parent-modification-uuid",
               h->uuid[VDI_PARENT_MODIFIED]);
    facts_comment(facts, h);
    return 0;
}

/* All of a fixed image is there; what nobody has written is a hole. */
static int map_hole(struct rhea_extent *extent, struct rhea_error *err)
{
    bool hole;
    uint64_t run, size;
    int ret = rhea_storage_size(extent->storage, &size, err);
    /* The file may end within the last block, see vdi_is_inside. */
    if (ret || extent->host >= size)
        return ret;
    ret = rhea_storage_extent(extent->storage, extent->host,
                              RHEA_MIN(extent->length, size - extent->host),
                              &hole, &run, err);
    if (ret)
        return ret;
    extent->length = extent->stored_length = run;
    if (hole)
        extent->kind = RHEA_EXTENT_ZERO;
    return 0;
}

static int vdi_map(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err)
{
    struct vdi *v = (struct vdi *)f;
    int ret = blocks_map(&v->blocks, offset, len, extent, err);
    if (ret || v->head.type != VDI_FIXED || extent->kind != RHEA_EXTENT_DATA)
        return ret;
    return map_hole(extent, err);
}

static int vdi_write(struct rhea_format *f, uint64_t offset, const void *buf,
                     size_t len, struct rhea_error *err)
{
    return blocks_write(&((struct vdi *)f)->blocks, offset, buf, len, err);
}

static int vdi_clone(struct rhea_format *f, uint64_t offset,
                     struct rhea_storage *from, uint64_t from_offset,
                     uint64_t len, struct rhea_error *err)
{
    return blocks_clone(&((struct vdi *)f)->blocks, offset, from, from_offset,
                        len, err);
}

static int vdi_write_zeroes(struct rhea_format *f, uint64_t offset,
                            uint64_t len, bool unmap, struct rhea_error *err)
{
    return blocks_write_zeroes(&((struct vdi *)f)->blocks, offset, len, unmap,
                               err);
}

const struct rhea_format_ops rhea_format_vdi = {
    .name = "vdi",
    .create_options = vdi_create_options,
    .probe = vdi_probe,
    .open = vdi_open,
    .close = vdi_close,
    .info = vdi_info,
    .facts = vdi_facts,
    .map = vdi_map,
    .write = vdi_write,
    .clone = vdi_clone,
    .write_zeroes = vdi_write_zeroes,
    .flush = vdi_flush,
    .check = vdi_check,
    .counts_lost = true,
    .create = vdi_create,
    .measure = vdi_measure,
    .resize = vdi_resize,
    .amend_options = vdi_amend_options,
    .amend = vdi_amend,
    .set_backing = vdi_set_backing,
    .check_parent = vdi_check_parent,
    .renew_identity = vdi_renew_identity,
    .make_empty = vdi_make_empty,
};
