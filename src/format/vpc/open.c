/* SPDX-License-Identifier: MIT */
/*
 * VHD, Microsoft's first "virtual hard disk", which Virtual PC, Hyper-V, Azure,
 * XenServer and VirtualBox share: "Virtual Hard Disk Image Format
 * Specification", 1.0 (2006), and libvhdi's notes. All numbers are big endian.
 *
 * A fixed image is the guest's bytes and a footer. A dynamic one begins with a
 * copy of the footer and a header; a table has for each block, of 2 MiB as a
 * rule, the sector at which a bitmap of its sectors stands, with its data
 * behind. A differencing image is one whose missing sectors are the parent's.
 *
 * All of that is read and written. The table and bitmaps go through a small
 * cache: with blocks of 512 bytes a table can be 16 GiB. What dynamic.c writes
 * is in an order that loses nothing; see there.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/vpc/vpc.h"

enum { CACHE_BYTES = 4 << 20 };

static int vpc_probe(const uint8_t *head, size_t len)
{
    return len >= VPC_FOOTER && load_be64(head) == VPC_COOKIE ? 100 : 0;
}

/* What is but damaged is to be refused, not read as if it were all the guest's:
 * its checksum is wrong, and all else is as a fixed image has it. */
static bool vpc_footer_is_alike(const uint8_t footer[VPC_FOOTER])
{
    return load_be64(footer) == VPC_COOKIE &&
           load_be32(footer + VPC_F_VERSION) == 0x00010000 &&
           load_be64(footer + VPC_F_HEADER_AT) == UINT64_MAX &&
           load_be32(footer + VPC_F_TYPE) == VPC_FIXED;
}

/* A fixed image has nothing else to be told by. */
static int vpc_probe_tail(const uint8_t *tail, size_t len, uint64_t file_size)
{
    uint8_t footer[VPC_FOOTER] = {0};
    if (len < VPC_FOOTER)
        return 0;
    if (file_size % VPC_SECTOR == VPC_SHORT_FOOTER)
        memcpy(footer, tail + 1, VPC_SHORT_FOOTER);
    else
        memcpy(footer, tail, VPC_FOOTER);
    return vpc_footer_is_good(footer) || vpc_footer_is_alike(footer) ? 100 : 0;
}

/* --- Opening --- */

static int open_no_footer(const struct vpc_found *found, struct rhea_error *err)
{
    if (found->tail.state == VPC_DAMAGED || found->head.state == VPC_DAMAGED)
        return rhea_error_set(err, EINVAL,
                              "the footer is damaged, its checksum is wrong, "
                              "and there is no good copy of it");
    return rhea_error_set(err, EINVAL,
                          "not a VHD image: there is no footer at the end of "
                          "the file, nor a copy of one at its beginning");
}

static int open_read_footer(struct vpc *v, const char *calc,
                            struct rhea_error *err)
{
    int ret = vpc_footer_find(v->base.storage, &v->found, err);
    if (ret)
        return ret;
    const struct vpc_copy *best = v->found.best;
    if (!best)
        return open_no_footer(&v->found, err);
    memcpy(v->footer, best->bytes, VPC_FOOTER);
    v->footer_at = v->found.tail.state == VPC_GOOD
                       ? v->found.tail.at
                       : align_down(v->found.file_size, VPC_SECTOR);
    uint32_t type = load_be32(v->footer + VPC_F_TYPE);
    v->type = type;
    if (load_be16(v->footer + VPC_F_VERSION) > 1)
        return rhea_error_set(err, ENOTSUP,
                              "this VHD is of version %u.%u, and only 1.x is "
                              "known",
                              load_be16(v->footer + VPC_F_VERSION),
                              load_be16(v->footer + VPC_F_VERSION + 2));
    if (type < VPC_FIXED || type > VPC_DIFFERENCING)
        return rhea_error_set(err, EINVAL,
                              "the footer says that the image is of type "
                              "%" PRIu32 ", which is none",
                              type);
    return vpc_size_of(v->footer, calc, &v->base.size, &v->use_chs, err);
}

/* Which file the parent is. */
static int open_find_parent(struct vpc *v, const struct rhea_format_open *how,
                            struct rhea_error *err)
{
    char *names[VPC_LOCATORS * 2 + 2];
    int n = vpc_parent_names(v, names, err);
    if (n < 0)
        return n;
    int ret = 0;
    if (how->files)
        ret = how->files->find_parent(how->files->opaque,
                                      (const char *const *)names, (size_t)n,
                                      &v->backing_file, err);
    else if (n)
        v->backing_file = strdup(names[0]);
    while (n)
        free(names[--n]);
    return v->lenient ? 0 : ret;
}

static int open_dynamic(struct vpc *v, const struct rhea_format_open *how,
                        struct rhea_error *err)
{
    int ret = vpc_header_read(v, err);
    if (ret)
        return ret;
    if (v->type == VPC_DIFFERENCING)
        ret = open_find_parent(v, how, err);
    struct table_how table = {
        .page_bytes = RHEA_MIN(v->bitmap_bytes,
                               (uint32_t)TABLE_PAGE_SECTORS * VPC_SECTOR),
        .cache_bytes = CACHE_BYTES,
    };
    if (!ret)
        ret = table_init(&v->table, v->base.storage, &table, err);
    v->blocks.block_size = v->block_size;
    v->blocks.unit = VPC_SECTOR;
    v->blocks.child = v->type == VPC_DIFFERENCING;
    v->blocks.file_end = v->found.file_size;
    return ret;
}

static bool open_footers_are_good(const struct vpc *v)
{
    const struct vpc_found *found = &v->found;
    return found->tail.state == VPC_GOOD && found->head.state == VPC_GOOD &&
           memcmp(found->tail.bytes, found->head.bytes, VPC_FOOTER) == 0;
}

/* Blocks that are not all there must not be written to. What a crash can have
 * left of the footers is mended. */
static int open_dynamic_write(struct vpc *v, struct rhea_error *err)
{
    int ret = vpc_find_data_end(v, err);
    if (!ret && v->data_end > v->footer_at && !v->lenient)
        ret = rhea_error_set(err, EINVAL,
                             "the blocks reach to offset %" PRIu64
                             ", and the file has room for them up to %" PRIu64
                             ": it has been cut off, or is damaged ('check' "
                             "tells more)",
                             v->data_end, v->footer_at);
    if (!ret && !v->lenient && !open_footers_are_good(v))
        ret = vpc_settle(v, err);
    return ret;
}

static int open_parse_options(const struct rhea_format_open *how,
                              const char **calc, struct rhea_error *err)
{
    *calc = NULL;
    for (size_t i = 0; i < how->n_options; i++) {
        if (strcmp(how->options[i].name, "force_size_calc") != 0)
            return option_unknown(&how->options[i], "vpc", err);
        *calc = how->options[i].value;
    }
    return 0;
}

static void vpc_destroy(struct vpc *v)
{
    table_finish(&v->table);
    blocks_finish(&v->blocks);
    free(v->backing_file);
    free(v);
}

static int vpc_open(struct rhea_format **out,
                    const struct rhea_format_open *how, struct rhea_error *err)
{
    const char *calc;
    int ret = open_parse_options(how, &calc, err);
    if (ret)
        return ret;
    struct vpc *v = calloc(1, sizeof(*v));
    if (!v)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->base.ops = &rhea_format_vpc;
    v->base.storage = how->storage;
    v->lenient = how->flags & RHEA_FORMAT_CHECK;
    blocks_init(&v->blocks, &vpc_blocks_ops, &v->base);

    bool write = how->flags & RHEA_FORMAT_WRITE;
    ret = open_read_footer(v, calc, err);
    if (!ret)
        ret = v->type == VPC_FIXED ? vpc_check_fixed(v, err)
                                   : open_dynamic(v, how, err);
    if (!ret && write && v->type != VPC_FIXED)
        ret = open_dynamic_write(v, err);
    else if (!ret && write && !v->lenient)
        ret = vpc_mend_fixed(v, err);
    if (ret) {
        vpc_destroy(v);
        return ret;
    }
    v->blocks.size = v->base.size;
    v->blocks.writable = write;
    *out = &v->base;
    return 0;
}

static int vpc_flush(struct rhea_format *f, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    return v->type == VPC_FIXED ? rhea_storage_flush(f->storage, err)
                                : blocks_flush(&v->blocks, err);
}

static int vpc_close(struct rhea_format *f, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    int ret = v->blocks.writable ? vpc_flush(f, err) : 0;
    if (!ret && v->settled) {
        RHEA_LOCKED(&v->blocks.lock);
        ret = vpc_trim(v, err);
    }
    vpc_destroy(v);
    return ret;
}

/* --- Guest bytes --- */

static int vpc_map(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    return v->type == VPC_FIXED
               ? vpc_map_fixed(v, offset, len, extent, err)
               : blocks_map(&v->blocks, offset, len, extent, err);
}

static int vpc_write(struct rhea_format *f, uint64_t offset, const void *buf,
                     size_t len, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    return v->type == VPC_FIXED
               ? vpc_write_fixed(v, offset, buf, len, err)
               : blocks_write(&v->blocks, offset, buf, len, err);
}

static int vpc_write_zeroes(struct rhea_format *f, uint64_t offset,
                            uint64_t len, bool unmap, struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    return v->type == VPC_FIXED
               ? vpc_zero_fixed(v, offset, len, unmap, err)
               : blocks_write_zeroes(&v->blocks, offset, len, unmap, err);
}

/* Only what has its place can be given back: the file keeps a hole there. */
static int vpc_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                       struct rhea_error *err)
{
    struct vpc *v = vpc_of(f);
    int ret = 0;
    if (v->type == VPC_FIXED)
        return vpc_zero_fixed(v, offset, len, true, err);
    while (!ret && len) {
        struct rhea_extent x;
        ret = blocks_map(&v->blocks, offset, len, &x, err);
        if (!ret && x.kind == RHEA_EXTENT_DATA)
            ret = blocks_write_zeroes(&v->blocks, offset, x.length, true, err);
        if (ret)
            break;
        offset += x.length;
        len -= x.length;
    }
    return ret;
}

static void vpc_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct vpc *v = vpc_of(f);
    RHEA_LOCKED(&v->blocks.lock);
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .cluster_size = v->block_size,
        .part_size = RHEA_MIN(v->block_size, BLOCKS_PART),
        .backing_file = v->backing_file,
    };
    if (v->backing_file)
        info->backing_format =
            uuid_is_null(v->header + VPC_H_PARENT_UUID) ? "raw" : "vpc";
}

static const char *const vpc_strong_options[] = {"force_size_calc", NULL};

const struct rhea_format_ops rhea_format_vpc = {
    .name = "vpc",
    .create_options = vpc_create_options,
    .strong_options = vpc_strong_options,
    .probe = vpc_probe,
    .probe_tail = vpc_probe_tail,
    .open = vpc_open,
    .close = vpc_close,
    .info = vpc_info,
    .facts = vpc_facts,
    .map = vpc_map,
    .write = vpc_write,
    .write_zeroes = vpc_write_zeroes,
    .discard = vpc_discard,
    .flush = vpc_flush,
    .check = vpc_check,
    .counts_lost = true,
    .create = vpc_create,
    .measure = vpc_measure,
    .resize = vpc_resize,
    .amend_options = vpc_amend_options,
    .amend = vpc_amend,
    .set_backing = vpc_set_backing,
    .check_parent = vpc_check_parent,
    .renew_identity = vpc_renew_identity,
    .make_empty = vpc_make_empty,
};
