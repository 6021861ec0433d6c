/* SPDX-License-Identifier: MIT */
/*
 * New images.
 *
 * The header section, the log, the metadata and the BAT follow each other; a
 * fixed disk's blocks come next, in their order. Order of writes: all but the
 * file's signature, flush, the signature, flush. Before that the file is no
 * image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/utf16.h"
#include "format/measure.h"
#include "format/option.h"
#include "format/vhdx/vhdx.h"

enum { BAT_PIECE = 64 << 10 };

const struct rhea_option_help vhdx_create_options[] = {
    {"size", "size", "Virtual disk size, at most 64 TiB"},
    {"backing_file", "str",
     "VHDX image that shows through where nothing is written (a differencing "
     "disk)"},
    {"backing_fmt", "str", "Format of the backing file: vhdx"},
    {"log_size", "size", "Size of the log, from 1 MiB on (default: 1M)"},
    {"block_size", "size",
     "Block size, 1 MiB to 256 MiB, a power of 2 (default: 0, which chooses by "
     "the size; 2 MiB with a backing file)"},
    {"subformat", "str", "'dynamic' (default) or 'fixed'"},
    {"block_state_zero", "bool",
     "Blocks of a new dynamic disk are zeroes, not undefined (default: on)"},
    {"logical_sector_size", "num",
     "Sector size that the guest sees, 512 (default) or 4096"},
    {"physical_sector_size", "num",
     "Sector size that the guest is told to be the disk's own, 512 or 4096 "
     "(default: the logical one)"},
    {0},
};

struct creation {
    struct vhdx_metadata metadata;
    uint64_t log_size, block_size, logical, physical;
    bool fixed, state_zero;
    const struct vhdx *parent;
    struct vhdx_range bat, metadata_region;
    uint64_t data; /* where blocks begin */
};

/* --- What is asked for --- */

static int create_subformat(const struct rhea_option *o, struct creation *c,
                            struct rhea_error *err)
{
    c->fixed = strcmp(o->value, "fixed") == 0;
    return c->fixed || strcmp(o->value, "dynamic") == 0
               ? 0
               : rhea_error_set(err, EINVAL,
                                "option subformat is 'dynamic' or 'fixed', not "
                                "'%s'",
                                o->value);
}

static int create_option(const struct rhea_option *o, struct creation *c,
                         struct rhea_error *err)
{
    if (strcmp(o->name, "log_size") == 0)
        return option_size(o, &c->log_size, err);
    if (strcmp(o->name, "block_size") == 0)
        return option_size(o, &c->block_size, err);
    if (strcmp(o->name, "subformat") == 0)
        return create_subformat(o, c, err);
    if (strcmp(o->name, "block_state_zero") == 0)
        return option_bool(o, &c->state_zero, err);
    if (strcmp(o->name, "logical_sector_size") == 0)
        return option_size(o, &c->logical, err);
    if (strcmp(o->name, "physical_sector_size") == 0)
        return option_size(o, &c->physical, err);
    return option_unknown(o, "vhdx", err);
}

static int create_check_parent(const struct rhea_create *how,
                               struct creation *c, struct rhea_error *err)
{
    if (!how->backing_file)
        return 0;
    if (!how->parent)
        return rhea_error_set(err, EINVAL,
                              "the backing file has to be there: its identity "
                              "is recorded in a VHDX image");
    if (how->parent->ops != &rhea_format_vhdx)
        return rhea_error_set(err, ENOTSUP,
                              "the backing file of a VHDX image is a VHDX "
                              "image, not a %s image",
                              how->parent->ops->name);
    if (c->fixed)
        return rhea_error_set(err, EINVAL,
                              "a fixed VHDX image has no backing file");
    c->parent = (const struct vhdx *)how->parent;
    const struct vhdx_metadata *m = &c->parent->metadata;
    if (c->logical && c->logical != m->logical_sector)
        return rhea_error_set(err, EINVAL,
                              "logical_sector_size is that of the backing "
                              "file, %" PRIu32,
                              m->logical_sector);
    c->logical = m->logical_sector;
    if (!c->physical)
        c->physical = m->physical_sector;
    return 0;
}

/* QEMU's choice, and that of Windows for children. */
static uint64_t create_choose_block(const struct creation *c, uint64_t size)
{
    if (c->parent)
        return 2 << 20;
    return size > UINT64_C(32) << 40    ? 64 << 20
           : size > UINT64_C(100) << 30 ? 32 << 20
           : size > UINT64_C(1) << 30   ? 16 << 20
                                        : 8 << 20;
}

static int create_check_numbers(struct creation *c, struct rhea_error *err)
{
    if (c->log_size > UINT32_MAX - VHDX_MIB)
        return rhea_error_set(err, EINVAL, "log_size must be less than 4 GiB");
    c->log_size = align_up(RHEA_MAX(c->log_size, (uint64_t)1), VHDX_LOG_MIN);
    /* Rounded as QEMU does. */
    c->block_size = c->block_size > VHDX_BLOCK_MAX
                        ? VHDX_BLOCK_MAX
                        : align_up(c->block_size, VHDX_BLOCK_MIN);
    if (!is_power_of_2(c->block_size))
        return rhea_error_set(err, EINVAL,
                              "block_size must be a power of 2 from 1 MiB to "
                              "256 MiB");
    if ((c->logical != 512 && c->logical != 4096) ||
        (c->physical != 512 && c->physical != 4096))
        return rhea_error_set(err, EINVAL,
                              "logical_sector_size and physical_sector_size "
                              "are 512 or 4096");
    return 0;
}

static int create_parse(const struct rhea_create *how, struct creation *c,
                        struct rhea_error *err)
{
    *c = (struct creation){.log_size = VHDX_LOG_MIN, .state_zero = true};
    int ret = 0;
    for (size_t i = 0; i < how->n_options && !ret; i++)
        ret = create_option(&how->options[i], c, err);
    if (!ret)
        ret = create_check_parent(how, c, err);
    if (ret)
        return ret;
    if (how->size > VHDX_MAX_SIZE)
        return rhea_error_set(err, EFBIG,
                              "a VHDX image holds at most 64 TiB, not %" PRIu64
                              " bytes",
                              how->size);
    c->logical = c->logical ? c->logical : 512;
    c->physical = c->physical ? c->physical : c->logical;
    if (!c->block_size)
        c->block_size = create_choose_block(c, how->size);
    ret = create_check_numbers(c, err);
    c->metadata = (struct vhdx_metadata){
        .block_size = (uint32_t)c->block_size,
        .flags = c->parent  ? VHDX_P_PARENT
                 : c->fixed ? VHDX_P_FIXED
                            : 0,
        .size = ret ? 0 : align_up(how->size, c->logical),
        .logical_sector = (uint32_t)c->logical,
        .physical_sector = (uint32_t)c->physical,
    };
    return ret;
}

static void create_lay_out(struct creation *c, size_t metadata_length)
{
    /* Room for sector bitmaps, should it become a child. */
    uint64_t entries = vhdx_bat_entries(&c->metadata, true);
    uint64_t bytes = RHEA_MAX(entries, (uint64_t)1) * sizeof(uint64_t);
    c->metadata_region = (struct vhdx_range){
        VHDX_SECTION_END + c->log_size,
        metadata_length,
    };
    c->bat.offset = c->metadata_region.offset + metadata_length;
    c->bat.length = align_up(bytes, VHDX_MIB);
    c->data = c->bat.offset + c->bat.length;
}

/* --- Writing it --- */

static uint64_t create_entry(const struct creation *c, uint64_t block)
{
    if (c->fixed)
        return (c->data + block * c->block_size) | VHDX_FULLY_PRESENT;
    return c->state_zero && !c->parent ? VHDX_ZERO : VHDX_NOT_PRESENT;
}

static int create_bat(struct rhea_storage *storage, const struct creation *c,
                      struct rhea_error *err)
{
    uint64_t blocks = div_up(c->metadata.size, c->block_size);
    uint64_t ratio = UINT64_C(1) << vhdx_ratio_bits(&c->metadata);
    uint64_t place = c->bat.offset;
    if (!create_entry(c, 0))
        return 0; /* a hole */
    RHEA_AUTO_FREE uint8_t *b = malloc(BAT_PIECE);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t block = 0, in_chunk = 0; block < blocks && !ret;) {
        size_t n = 0;
        for (; n < BAT_PIECE && block < blocks; n += sizeof(uint64_t)) {
            bool bitmap = in_chunk++ == ratio;
            store_le64(b + n, bitmap ? 0 : create_entry(c, block));
            if (bitmap)
                in_chunk = 0;
            else
                block++;
        }
        ret = rhea_storage_write(storage, b, n, place, err);
        place += n;
    }
    return ret;
}

static int create_headers(struct rhea_storage *storage,
                          const struct creation *c, struct rhea_error *err)
{
    uint8_t bytes[VHDX_HEADER_BYTES];
    struct vhdx_header h = {
        .version = 1,
        .log_length = (uint32_t)c->log_size,
        .log_offset = VHDX_SECTION_END,
    };
    int ret = guid_new(h.file_write, err);
    if (!ret)
        ret = guid_new(h.data_write, err);
    for (unsigned i = 0; i < 2 && !ret; i++) {
        h.sequence = i + 1;
        vhdx_header_store(&h, bytes);
        ret = rhea_storage_write(storage, bytes, sizeof(bytes),
                                 i ? VHDX_HEADER_2 : VHDX_HEADER_1, err);
    }
    return ret;
}

static int create_regions(struct rhea_storage *storage,
                          const struct creation *c, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *b = malloc(VHDX_REGIONS_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    vhdx_regions_store(b, &c->bat, &c->metadata_region);
    int ret =
        rhea_storage_write(storage, b, VHDX_REGIONS_BYTES, VHDX_REGIONS_1, err);
    if (!ret)
        ret = rhea_storage_write(storage, b, VHDX_REGIONS_BYTES, VHDX_REGIONS_2,
                                 err);
    return ret;
}

static int create_identifier(struct rhea_storage *storage,
                             struct rhea_error *err)
{
    uint8_t b[VHDX_CREATOR + VHDX_CREATOR_BYTES] = {0};
    RHEA_AUTO_FREE uint8_t *creator = NULL;
    char text[64];
    size_t len = 0;
    snprintf(text, sizeof(text), "Rhea v%s", rhea_version());
    int ret = utf16_from_utf8(text, UTF16_LITTLE_ENDIAN, &creator, &len, err);
    if (ret)
        return ret;
    store_le64(b, VHDX_SIGNATURE);
    memcpy(b + VHDX_CREATOR, creator, RHEA_MIN(len, VHDX_CREATOR_BYTES));
    return rhea_storage_write(storage, b, sizeof(b), 0, err);
}

static int create_metadata(const struct rhea_create *how, struct creation *c,
                           uint8_t **out, size_t *len, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *locator = NULL;
    size_t locator_length = 0;
    int ret = 0;
    if (c->parent) {
        memcpy(c->metadata.disk_id, c->parent->metadata.disk_id, UUID_BYTES);
        ret =
            vhdx_locator_build(how->backing_file, c->parent->header.data_write,
                               &locator, &locator_length, err);
    } else {
        ret = guid_new(c->metadata.disk_id, err);
    }
    if (!ret)
        ret = vhdx_metadata_build(&c->metadata, locator, locator_length,
                                  c->parent, out, len, err);
    return ret;
}

int vhdx_create(struct rhea_storage *storage, const struct rhea_create *how,
                struct rhea_error *err)
{
    struct creation c;
    RHEA_AUTO_FREE uint8_t *metadata = NULL;
    size_t len = 0;
    int ret = create_parse(how, &c, err);
    if (!ret)
        ret = create_metadata(how, &c, &metadata, &len, err);
    if (ret)
        return ret;
    create_lay_out(&c, len);
    uint64_t blocks = c.fixed ? div_up(c.metadata.size, c.block_size) : 0;
    ret = rhea_storage_truncate(storage, c.data + blocks * c.block_size, err);
    if (!ret)
        ret = create_bat(storage, &c, err);
    if (!ret)
        ret = rhea_storage_write(storage, metadata, len,
                                 c.metadata_region.offset, err);
    if (!ret)
        ret = create_regions(storage, &c, err);
    if (!ret)
        ret = create_headers(storage, &c, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret = create_identifier(storage, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

int vhdx_measure(const struct rhea_measure *what, struct rhea_measured *out,
                 struct rhea_error *err)
{
    struct creation c;
    uint64_t blocks;
    const struct rhea_create how = {
        .size = what->size,
        .options = what->options,
        .n_options = what->n_options,
    };
    int ret = create_parse(&how, &c, err);
    if (!ret)
        ret = measure_blocks(what, c.block_size, &blocks, err);
    if (ret)
        return ret;
    create_lay_out(&c, VHDX_MIB);
    uint64_t all = div_up(c.metadata.size, c.block_size);
    *out = (struct rhea_measured){
        .required = c.data + (c.fixed ? all : blocks) * c.block_size,
        .fully_allocated = c.data + all * c.block_size,
    };
    return 0;
}
