/* SPDX-License-Identifier: MIT */
/*
 * New, empty images.
 *
 * Order of writes: all but the footers; flush; the footers; flush. Without a
 * footer the file is no image.
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

enum {
    MIN_BLOCK = 4 << 10,
    MAX_BLOCK = 256 << 20,
    FILL_BYTES = 64 << 10,
};

struct create {
    enum vpc_type type;
    enum vpc_rule rule;
    bool has_type, has_rule, exact;
    uint64_t block_size;
    struct vpc_shape shape;
    struct vpc_locators locators;

    uint8_t footer[VPC_FOOTER], header[VPC_HEADER];
    uint64_t bat_end, end;
};

static int create_parse_type(struct create *c, const char *value,
                             struct rhea_error *err)
{
    c->has_type = true;
    if (strcmp(value, "dynamic") == 0)
        c->type = VPC_DYNAMIC;
    else if (strcmp(value, "fixed") == 0)
        c->type = VPC_FIXED;
    else if (strcmp(value, "differencing") == 0)
        c->type = VPC_DIFFERENCING;
    else
        return rhea_error_set(err, EINVAL,
                              "subformat is 'dynamic', 'fixed' or "
                              "'differencing', not '%s'",
                              value);
    return 0;
}

static int create_parse_option(struct create *c, const struct rhea_option *o,
                               struct rhea_error *err)
{
    if (strcmp(o->name, "subformat") == 0)
        return create_parse_type(c, o->value, err);
    if (strcmp(o->name, "force_size") == 0)
        return option_bool(o, &c->exact, err);
    if (strcmp(o->name, "block_size") == 0)
        return option_size(o, &c->block_size, err);
    if (strcmp(o->name, "size_rule") == 0) {
        c->has_rule = true;
        return vpc_rule_parse(o->value, &c->rule, err);
    }
    return option_unknown(o, "vpc", err);
}

static int create_parse(struct create *c, const struct rhea_option *options,
                        size_t n, struct rhea_error *err)
{
    *c = (struct create){.type = VPC_DYNAMIC};
    for (size_t i = 0; i < n; i++) {
        int ret = create_parse_option(c, &options[i], err);
        if (ret)
            return ret;
    }
    if (c->block_size && c->type == VPC_FIXED)
        return rhea_error_set(err, EINVAL,
                              "a fixed VHD has no blocks, so block_size makes "
                              "no sense");
    if (!c->block_size)
        c->block_size = VPC_DEFAULT_BLOCK;
    if (!is_power_of_2(c->block_size) || c->block_size < MIN_BLOCK ||
        c->block_size > MAX_BLOCK)
        return rhea_error_set(err, EINVAL,
                              "block_size must be a power of 2 from %d to %d "
                              "bytes",
                              MIN_BLOCK, MAX_BLOCK);
    if (c->rule == VPC_XENSERVER && c->block_size != VPC_DEFAULT_BLOCK)
        return rhea_error_set(err, EINVAL,
                              "XenServer knows only blocks of %d bytes",
                              VPC_DEFAULT_BLOCK);
    return 0;
}

/* A child is as large as its parent, whatever rule that was made by, if no
 * other is asked for. */
static int create_parse_child(struct create *c, const struct rhea_create *how,
                              struct rhea_error *err)
{
    if (c->has_type && (c->type == VPC_DIFFERENCING) != !!how->backing_file)
        return rhea_error_set(
            err, EINVAL,
            how->backing_file ? "a VHD over a backing file is 'differencing'"
                              : "a differencing VHD needs a backing file");
    if (!how->backing_file)
        return 0;
    c->type = VPC_DIFFERENCING;
    c->exact |= !c->has_rule;
    int ret =
        vpc_parent_record(c->header, how->backing_format, how->parent, err);
    if (!ret)
        ret = vpc_locators_make(&c->locators, how->backing_file, err);
    return ret;
}

static int create_footer(struct create *c, struct rhea_error *err)
{
    uint8_t *f = c->footer;
    store_be64(f, VPC_COOKIE);
    store_be32(f + VPC_F_FEATURES, 2); /* always set, says the specification */
    store_be32(f + VPC_F_VERSION, 0x00010000);
    store_be64(f + VPC_F_HEADER_AT,
               c->type == VPC_FIXED ? VPC_NO_OFFSET : VPC_FOOTER);
    store_be32(f + VPC_F_TIME, vpc_time_now());
    store_be64(f + VPC_F_ORIGINAL_SIZE, c->shape.size);
    store_be32(f + VPC_F_TYPE, c->type);
    vpc_shape_put(&c->shape, f);
    int ret = uuid_new(f + VPC_F_UUID, err);
    vpc_footer_seal(f);
    return ret;
}

/* The header; what follows the table is put behind it in the order in which
 * XenServer wants it. */
static void create_header(struct create *c)
{
    uint8_t *h = c->header;
    uint64_t blocks = div_up(c->shape.size, c->block_size);
    store_be64(h, VPC_HEADER_COOKIE);
    store_be64(h + VPC_H_NEXT, VPC_NO_OFFSET);
    store_be64(h + VPC_H_BAT, VPC_BAT_AT);
    store_be32(h + VPC_H_VERSION, 0x00010000);
    store_be32(h + VPC_H_ENTRIES, (uint32_t)blocks);
    store_be32(h + VPC_H_BLOCK_SIZE, (uint32_t)c->block_size);
    memcpy(h + VPC_H_PARENT_NAME, c->locators.name, sizeof(c->locators.name));
    c->bat_end = align_up(VPC_BAT_AT + blocks * 4, VPC_SECTOR);
    c->end = c->bat_end;
    if (c->rule == VPC_XENSERVER)
        c->end += vpc_batmap_bytes(blocks);
    for (unsigned i = 0; i < c->locators.n; i++) {
        uint64_t space = vpc_locator_space(&c->locators.items[i]);
        vpc_locator_put(h, i, &c->locators.items[i], c->end, space);
        c->end += space;
    }
    vpc_header_seal(h);
}

static int create_write_bat(struct rhea_storage *storage, uint64_t from,
                            uint64_t end, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *unused = malloc(FILL_BYTES);
    if (!unused)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memset(unused, 0xff, FILL_BYTES);
    int ret = 0;
    for (uint64_t at = from; at < end && !ret; at += FILL_BYTES)
        ret = rhea_storage_write(
            storage, unused, (size_t)RHEA_MIN(end - at, FILL_BYTES), at, err);
    return ret;
}

static int create_write_locators(struct rhea_storage *storage,
                                 const struct create *c, struct rhea_error *err)
{
    int ret = 0;
    for (unsigned i = 0; i < c->locators.n && !ret; i++) {
        const uint8_t *e = c->header + VPC_H_LOCATORS + i * VPC_L_BYTES;
        ret = rhea_storage_write(storage, c->locators.items[i].data,
                                 c->locators.items[i].length,
                                 load_be64(e + VPC_L_OFFSET), err);
    }
    return ret;
}

/* All but the footers. */
static int create_write_dynamic(struct rhea_storage *storage,
                                const struct create *c, struct rhea_error *err)
{
    int ret = create_write_bat(storage, VPC_BAT_AT, c->bat_end, err);
    if (!ret)
        ret =
            rhea_storage_write(storage, c->header, VPC_HEADER, VPC_FOOTER, err);
    if (!ret && c->rule == VPC_XENSERVER)
        ret = vpc_batmap_write(storage, c->bat_end,
                               div_up(c->shape.size, c->block_size), err);
    if (!ret)
        ret = create_write_locators(storage, c, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

static int create_write(struct rhea_storage *storage, const struct create *c,
                        struct rhea_error *err)
{
    bool fixed = c->type == VPC_FIXED;
    uint64_t end = fixed ? c->shape.size : c->end;
    int ret = fixed ? rhea_storage_truncate(storage, end + VPC_FOOTER, err)
                    : create_write_dynamic(storage, c, err);
    if (!ret && fixed && !rhea_file_is_regular(storage))
        return rhea_error_set(err, ENOTSUP,
                              "a fixed VHD is told by the end of its file, and "
                              "this is none");
    if (!ret)
        ret = rhea_storage_write(storage, c->footer, VPC_FOOTER, end, err);
    if (!ret && !fixed)
        ret = rhea_storage_write(storage, c->footer, VPC_FOOTER, 0, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

int vpc_create(struct rhea_storage *storage, const struct rhea_create *how,
               struct rhea_error *err)
{
    struct create c;
    int ret = create_parse(&c, how->options, how->n_options, err);
    if (!ret)
        ret = create_parse_child(&c, how, err);
    if (!ret)
        ret = vpc_shape_for(how->size, c.rule, c.exact, c.type, &c.shape, err);
    if (!ret)
        ret = create_footer(&c, err);
    if (!ret && c.type != VPC_FIXED)
        create_header(&c);
    if (!ret)
        ret = create_write(storage, &c, err);
    vpc_locators_finish(&c.locators);
    return ret;
}

/* --- Measuring --- */

/* How many blocks hold data. */
static int measure_blocks(const struct rhea_measure *what, uint64_t block_size,
                          uint64_t *blocks, struct rhea_error *err)
{
    uint64_t next = 0; /* the first block that is not counted yet */
    *blocks = 0;
    for (uint64_t at = 0; at < what->size;) {
        bool data;
        uint64_t length;
        int ret = what->next(what->opaque, at, &data, &length, err);
        if (ret)
            return ret;
        if (data) {
            uint64_t first = RHEA_MAX(at / block_size, next);
            next = RHEA_MAX(next, div_up(at + length, block_size));
            *blocks += next > first ? next - first : 0;
        }
        at += length;
    }
    return 0;
}

/* A file of so many blocks, behind END bytes. */
static uint64_t measure_file(const struct create *c, uint64_t blocks)
{
    uint64_t bitmap = vpc_bitmap_bytes((uint32_t)c->block_size);
    return vpc_place_end(c->end, blocks, (uint32_t)c->block_size,
                         (uint32_t)bitmap) +
           VPC_FOOTER;
}

int vpc_measure(const struct rhea_measure *what, struct rhea_measured *out,
                struct rhea_error *err)
{
    struct create c;
    int ret = create_parse(&c, what->options, what->n_options, err);
    if (!ret)
        ret = vpc_shape_for(what->size, c.rule, c.exact, c.type, &c.shape, err);
    if (ret)
        return ret;
    *out = (struct rhea_measured){0};
    if (c.type == VPC_FIXED) {
        out->required = out->fully_allocated = c.shape.size + VPC_FOOTER;
        return 0;
    }
    create_header(&c);
    uint64_t used = 0;
    if (what->next)
        ret = measure_blocks(what, c.block_size, &used, err);
    out->required = measure_file(&c, used);
    out->fully_allocated = measure_file(&c, div_up(c.shape.size, c.block_size));
    return ret;
}

const struct rhea_option_help vpc_create_options[] = {
    {"size", "size", "Virtual disk size"},
    {"backing_file", "str", "File that shows through where nothing is written"},
    {"backing_fmt", "str", "Format of the backing file: vpc or raw"},
    {"subformat", "str",
     "Type of image: dynamic (default), fixed or, over a backing file, "
     "differencing"},
    {"force_size", "bool",
     "Keep the size that is asked for, rather than rounding it up to what a "
     "geometry of cylinders, heads and sectors can say"},
    {"size_rule", "str",
     "Whose rules sizes keep: virtual-pc (default: a geometry's), hyper-v (as "
     "asked for), azure (multiples of 1 MiB) or xenserver (of 2 MiB)"},
    {"block_size", "size",
     "Block size of dynamic and differencing images, 4k to 256M (default: 2M; "
     "Windows knows 512k and 2M)"},
    {0},
};
