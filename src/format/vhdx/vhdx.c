/* SPDX-License-Identifier: MIT */
/*
 * VHDX, the disks of Hyper-V and of Windows since 8: [MS-VHDX], whose sections
 * the comments name.
 *
 * A file identifier, two headers, two copies of a table of regions; a log, the
 * block allocation table (BAT) and the metadata; then blocks of 1 to 256 MiB of
 * the guest, and for a differencing disk sector bitmaps. All of it is
 * supported: fixed, dynamic and differencing disks, sectors of 512 and 4,096
 * bytes, the log. What the program does not do: give single blocks back, and
 * follow parents that are no VHDX images.
 *
 * header.c, region.c, metadata.c and locator.c have the parts of the file;
 * log.c reads the log, overlay.c an image whose log has not been replayed;
 * log_write.c says in which order all is written; map.c has the tables.
 */
#include "format/vhdx/vhdx.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/utf16.h"
#include "format/option.h"

/* Pages of the BAT and of sector bitmaps: with blocks of 32 MiB the cache maps
 * 32 TiB, or 32 GiB sector by sector. A dirty sector is one of the log's. */
enum { PAGE_BYTES = 64 << 10, CACHE_BYTES = 8 << 20 };

static int vhdx_probe(const uint8_t *head, size_t len)
{
    return len >= 8 && load_le64(head) == VHDX_SIGNATURE ? 100 : 0;
}

static int open_identifier(struct vhdx *v, struct rhea_error *err)
{
    uint8_t bytes[VHDX_CREATOR + VHDX_CREATOR_BYTES];
    int ret =
        rhea_storage_read_padded(v->base.storage, bytes, sizeof(bytes), 0, err);
    if (ret)
        return ret;
    if (load_le64(bytes) != VHDX_SIGNATURE)
        return rhea_error_set(err, EINVAL, "not a VHDX image");
    v->creator = utf16_to_utf8(bytes + VHDX_CREATOR, VHDX_CREATOR_BYTES,
                               UTF16_LITTLE_ENDIAN);
    return v->creator ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
}

/* Footnote 5 of 2.3.3: who must not write to the file replays in memory. */
static int open_log(struct vhdx *v, unsigned flags, struct rhea_error *err)
{
    if (uuid_is_null(v->header.log_guid) || !v->header.log_length)
        return 0;
    int ret = vhdx_log_find(v, &v->replay, err);
    if (ret)
        return ret;
    if (!v->replay.n && v->replay.torn && !(flags & RHEA_FORMAT_CHECK))
        return rhea_error_set(err, EIO,
                              "the log of this VHDX image is damaged, so that "
                              "its last changes may be half done; 'check -r "
                              "all' goes on without them");
    if (!v->replay.n)
        return 0;
    if ((flags & RHEA_FORMAT_WRITE) && !(flags & RHEA_FORMAT_CHECK))
        return vhdx_log_replay(v, &v->replay, err);
    ret = vhdx_overlay_open(&v->overlay, v, &v->replay, err);
    v->image = ret ? v->image : v->overlay;
    return ret;
}

static int open_tables(struct vhdx *v, struct rhea_error *err)
{
    const struct table_how how = {
        .page_bytes = PAGE_BYTES,
        .sector = VHDX_LOG_SECTOR,
        .cache_bytes = CACHE_BYTES,
        .write = vhdx_tables_write,
        .opaque = v,
    };
    const struct vhdx_metadata *m = &v->metadata;
    struct blocks *b = &v->blocks;
    uint64_t size;
    uint64_t wanted = vhdx_bat_entries(m, vhdx_is_child(v));
    if (wanted > v->bat_region.length / sizeof(uint64_t))
        return rhea_error_set(err, EINVAL,
                              "the block allocation table of this VHDX image "
                              "is too small: it has room for %" PRIu64
                              " of %" PRIu64 " entries",
                              v->bat_region.length / sizeof(uint64_t), wanted);
    int ret = rhea_storage_size(v->image, &size, err);
    if (ret)
        return ret;
    if (!range_inside(v->bat_region.offset, wanted * sizeof(uint64_t), size))
        return rhea_error_set(err, EINVAL,
                              "this VHDX image was cut off: its block "
                              "allocation table, at offset %" PRIu64
                              ", lies past its end, %" PRIu64,
                              v->bat_region.offset, size);
    v->base.size = m->size;
    v->block_bits = log2_u64(m->block_size);
    v->ratio_bits = vhdx_ratio_bits(m);
    b->size = m->size;
    b->block_size = m->block_size;
    b->unit = m->logical_sector;
    /* A block that is not present may be anything, so that zeroes are said. */
    b->child = true;
    b->file_end = size;
    return table_init(&v->tables, v->image, &how, err);
}

void vhdx_round_end(struct vhdx *v)
{
    uint64_t end = v->blocks.file_end;
    for (size_t i = 0; i < v->n_taken; i++)
        end = RHEA_MAX(end, v->taken[i].offset + v->taken[i].length);
    v->blocks.file_end = align_up(end, VHDX_MIB);
}

/* What an entry leads to is inside of the file; OPAQUE is the image. */
static int open_scan_entry(void *opaque, const struct vhdx_entry *e,
                           struct rhea_error *err)
{
    struct vhdx *v = opaque;
    uint64_t host = e->entry & VHDX_BAT_OFFSET;
    uint64_t state = e->entry & VHDX_BAT_STATE;
    uint64_t used = vhdx_entry_used(v, e);
    if (state != VHDX_FULLY_PRESENT && state != VHDX_PARTIALLY_PRESENT)
        return 0;
    if (!range_inside(host, used, v->blocks.file_end))
        return rhea_error_set(
            err, EIO,
            "this VHDX image was cut off: %" PRIu64 " bytes at offset %" PRIu64
            " lie past its end, %" PRIu64 "; it can only be read",
            used, host, v->blocks.file_end);
    v->scan_end = RHEA_MAX(v->scan_end, host + vhdx_entry_length(v, e));
    return 0;
}

/*
 * Before anything is written behind the end of the file: nothing is there that
 * blocks refer to. Only the last block may go on there, with what is behind the
 * disk's end: QEMU has made such images.
 */
static int open_scan(struct vhdx *v, struct rhea_error *err)
{
    v->scan_end = v->blocks.file_end;
    int ret = vhdx_bat_walk(v, open_scan_entry, v, err);
    v->blocks.file_end = v->scan_end;
    return ret;
}

static int open_write(struct vhdx *v, unsigned flags, struct rhea_error *err)
{
    v->blocks.writable = true;
    if (flags & RHEA_FORMAT_CHECK)
        return 0;
    int ret = open_scan(v, err);
    if (!ret)
        vhdx_round_end(v);
    return ret;
}

static int open_all(struct vhdx *v, const struct rhea_format_open *how,
                    struct rhea_error *err)
{
    int ret = open_identifier(v, err);
    if (!ret)
        ret = vhdx_headers_read(v, err);
    if (!ret)
        ret = open_log(v, how->flags, err);
    if (!ret)
        ret = vhdx_regions_read(v, err);
    if (!ret)
        ret = vhdx_metadata_read(v, err);
    if (!ret && vhdx_is_child(v))
        ret = vhdx_locator_find(v, how->files, err);
    if (!ret)
        ret = open_tables(v, err);
    if (!ret && v->may_write && !v->overlay)
        ret = open_write(v, how->flags, err);
    return ret;
}

static void vhdx_destroy(struct vhdx *v)
{
    vhdx_gaps_forget(v);
    table_finish(&v->tables);
    blocks_finish(&v->blocks);
    rhea_storage_close(v->overlay);
    vhdx_locator_finish(&v->locator);
    free(v->taken);
    free(v->creator);
    free(v->parent);
    free(v);
}

static int vhdx_open(struct rhea_format **out,
                     const struct rhea_format_open *how, struct rhea_error *err)
{
    int ret = option_none(how, "vhdx", err);
    if (ret)
        return ret;
    struct vhdx *v = calloc(1, sizeof(*v));
    if (!v)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->base.ops = &rhea_format_vhdx;
    v->base.storage = v->image = how->storage;
    v->may_write = how->flags & RHEA_FORMAT_WRITE;
    blocks_init(&v->blocks, &vhdx_blocks_ops, &v->base);
    ret = open_all(v, how, err);
    if (ret) {
        vhdx_destroy(v);
        return ret;
    }
    *out = &v->base;
    return 0;
}

static int vhdx_close(struct rhea_format *f, struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)f;
    int ret = v->blocks.grown ? blocks_flush(&v->blocks, err) : 0;
    if (!ret && !v->blocks.failed)
        ret = vhdx_log_close(v, err);
    vhdx_destroy(v);
    return ret;
}

static int vhdx_map_guest(struct rhea_format *f, uint64_t offset, uint64_t len,
                          struct rhea_extent *extent, struct rhea_error *err)
{
    return blocks_map(&((struct vhdx *)f)->blocks, offset, len, extent, err);
}

static int vhdx_write(struct rhea_format *f, uint64_t offset, const void *buf,
                      size_t len, struct rhea_error *err)
{
    return blocks_write(&((struct vhdx *)f)->blocks, offset, buf, len, err);
}

static int vhdx_clone(struct rhea_format *f, uint64_t offset,
                      struct rhea_storage *from, uint64_t from_offset,
                      uint64_t len, struct rhea_error *err)
{
    return blocks_clone(&((struct vhdx *)f)->blocks, offset, from, from_offset,
                        len, err);
}

static int vhdx_write_zeroes(struct rhea_format *f, uint64_t offset,
                             uint64_t len, bool unmap, struct rhea_error *err)
{
    return blocks_write_zeroes(&((struct vhdx *)f)->blocks, offset, len, unmap,
                               err);
}

static int vhdx_flush(struct rhea_format *f, struct rhea_error *err)
{
    return blocks_flush(&((struct vhdx *)f)->blocks, err);
}

static int vhdx_renew_identity(struct rhea_format *f, struct rhea_error *err)
{
    struct vhdx *v = (struct vhdx *)f;
    RHEA_LOCKED(&v->blocks.lock);
    return blocks_begin(&v->blocks, err);
}

static void vhdx_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct vhdx *v = (struct vhdx *)f;
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = v->metadata.block_size,
        .part_size = BLOCKS_PART,
        .backing_file = v->parent,
        .backing_format = v->parent ? "vhdx" : NULL,
        .dirty = v->overlay,
    };
}

/* A parent is known by the DataWriteGuid that it had (2.6.2.6.3). */
static int vhdx_check_parent(struct rhea_format *f, struct rhea_format *parent,
                             struct rhea_error *err)
{
    const struct vhdx *v = (const struct vhdx *)f;
    const struct vhdx *p = (const struct vhdx *)parent;
    char is[UUID_TEXT], wanted[UUID_TEXT];
    if (!vhdx_is_child(v))
        return 0;
    if (parent->ops != &rhea_format_vhdx)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VHDX image is a VHDX image, not "
                              "a %s image",
                              parent->ops->name);
    guid_text(p->header.data_write, is);
    guid_text(v->locator.linkage, wanted);
    if (!uuid_equal(p->header.data_write, v->locator.linkage) &&
        !(v->locator.has_linkage2 &&
          uuid_equal(p->header.data_write, v->locator.linkage2)))
        return rhea_error_set(err, EINVAL,
                              "the parent was changed since, or is another "
                              "one: its data has the identity %s, not %s; if "
                              "what the guest sees is right nevertheless, say "
                              "so with 'rebase -u'",
                              is, wanted);
    if (p->metadata.logical_sector != v->metadata.logical_sector)
        return rhea_error_set(err, EINVAL,
                              "the parent has sectors of %" PRIu32
                              " bytes, the child of %" PRIu32,
                              p->metadata.logical_sector,
                              v->metadata.logical_sector);
    return 0;
}

const struct rhea_format_ops rhea_format_vhdx = {
    .name = "vhdx",
    .create_options = vhdx_create_options,
    .probe = vhdx_probe,
    .open = vhdx_open,
    .close = vhdx_close,
    .info = vhdx_info,
    .facts = vhdx_facts,
    .map = vhdx_map_guest,
    .write = vhdx_write,
    .clone = vhdx_clone,
    .write_zeroes = vhdx_write_zeroes,
    .flush = vhdx_flush,
    .check = vhdx_check,
    .create = vhdx_create,
    .measure = vhdx_measure,
    .resize = vhdx_resize,
    .amend_options = vhdx_amend_options,
    .amend = vhdx_amend,
    .set_backing = vhdx_set_backing,
    .check_parent = vhdx_check_parent,
    .renew_identity = vhdx_renew_identity,
    .make_empty = vhdx_make_empty,
};
