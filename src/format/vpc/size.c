/* SPDX-License-Identifier: MIT */
/*
 * How large a disk is. The footer says it twice: in bytes, and as a geometry of
 * cylinders, heads and sectors, which can only say some sizes. Virtual PC goes
 * by the geometry; Hyper-V, Azure, XenServer and all others go by the bytes. A
 * reader knows by the creator's name which of the two was meant, and the
 * largest geometry always means the bytes.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vpc/vpc.h"

const struct vpc_geometry vpc_geometry_max = {65535, 16, 255};

void vpc_geometry_of(const uint8_t footer[VPC_FOOTER], struct vpc_geometry *g)
{
    *g = (struct vpc_geometry){
        .cylinders = load_be16(footer + VPC_F_CYLINDERS),
        .heads = footer[VPC_F_HEADS],
        .sectors = footer[VPC_F_SECTORS],
    };
}

uint64_t vpc_geometry_bytes(const struct vpc_geometry *g)
{
    return (uint64_t)g->cylinders * g->heads * g->sectors * VPC_SECTOR;
}

/* An ATA disk of old has at most 1024 cylinders; tracks get longer, then heads
 * more, to keep within that. */
void vpc_geometry_for(uint64_t size, struct vpc_geometry *g)
{
    const uint64_t long_tracks = 65535 * 16 * 63;
    uint64_t total =
        RHEA_MIN(size, vpc_geometry_bytes(&vpc_geometry_max)) / VPC_SECTOR;
    uint64_t sectors = 17, heads = RHEA_MAX(div_up(total / 17, 1024), 4);
    if (total >= long_tracks) {
        sectors = 255;
        heads = 16;
    } else if (total / 17 >= heads * 1024 || heads > 16) {
        heads = 16;
        sectors = total / 31 >= heads * 1024 ? 63 : 31;
    }
    *g = (struct vpc_geometry){
        .cylinders = (uint16_t)(total / sectors / heads),
        .heads = (uint8_t)heads,
        .sectors = (uint8_t)sectors,
    };
}

/* Those who have written sizes in bytes that they do not go by. */
static bool size_is_by_geometry(const uint8_t footer[VPC_FOOTER])
{
    return vpc_creator_is(footer, "vpc ") || vpc_creator_is(footer, "vs  ") ||
           vpc_creator_is(footer, "qemu");
}

int vpc_size_of(const uint8_t footer[VPC_FOOTER], const char *calc,
                uint64_t *size, bool *use_chs, struct rhea_error *err)
{
    struct vpc_geometry g;
    vpc_geometry_of(footer, &g);
    uint64_t chs = vpc_geometry_bytes(&g);
    *use_chs = size_is_by_geometry(footer);
    if (calc && strcmp(calc, "chs") == 0)
        *use_chs = true;
    else if (calc && strcmp(calc, "current_size") == 0)
        *use_chs = false;
    else if (calc)
        return rhea_error_set(err, EINVAL,
                              "option force_size_calc is 'chs' or "
                              "'current_size', not '%s'",
                              calc);
    /* A geometry is rounded down, so that one that says more says nothing. */
    uint64_t bytes = align_down(load_be64(footer + VPC_F_SIZE), VPC_SECTOR);
    if (chs == 0 || chs == vpc_geometry_bytes(&vpc_geometry_max) ||
        (!calc && bytes && chs > bytes))
        *use_chs = false;
    *size = *use_chs ? chs : bytes;
    if (*size > (INT64_MAX & ~UINT64_C(0xffff)))
        return rhea_error_set(err, EFBIG,
                              "the footer says that the disk has %" PRIu64
                              " bytes, which no file can hold",
                              *size);
    return 0;
}

static const char *const rule_names[] = {
    [VPC_VIRTUAL_PC] = "virtual-pc",
    [VPC_HYPER_V] = "hyper-v",
    [VPC_AZURE] = "azure",
    [VPC_XENSERVER] = "xenserver",
};

int vpc_rule_parse(const char *name, enum vpc_rule *rule,
                   struct rhea_error *err)
{
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(rule_names); i++) {
        if (strcmp(rule_names[i], name) == 0) {
            *rule = i;
            return 0;
        }
    }
    return rhea_error_set(err, EINVAL,
                          "size_rule is 'virtual-pc', 'hyper-v', 'azure' or "
                          "'xenserver', not '%s'",
                          name);
}

/* What sizes have to be multiples of. */
static uint64_t rule_unit(enum vpc_rule rule)
{
    return rule == VPC_AZURE       ? 1 << 20
           : rule == VPC_XENSERVER ? VPC_DEFAULT_BLOCK
                                   : VPC_SECTOR;
}

/* Azure's disks have no blocks to number, and end at 32767 GiB. */
static uint64_t rule_limit(enum vpc_rule rule, enum vpc_type type)
{
    return rule == VPC_AZURE && type == VPC_FIXED ? UINT64_C(32767) << 30
                                                  : VPC_MAX_SIZE;
}

/* The least size that a geometry can say, from SIZE on. */
static uint64_t shape_round_chs(uint64_t size, struct vpc_geometry *g)
{
    uint64_t max = vpc_geometry_bytes(&vpc_geometry_max);
    if (size >= max) {
        *g = vpc_geometry_max;
        return size;
    }
    *g = (struct vpc_geometry){0};
    if (size)
        vpc_geometry_for(size, g);
    for (uint64_t more = VPC_SECTOR; vpc_geometry_bytes(g) < size;
         more += VPC_SECTOR)
        vpc_geometry_for(size + more, g);
    return vpc_geometry_bytes(g) == max ? size : vpc_geometry_bytes(g);
}

static void shape_name(struct vpc_shape *shape, const char creator[static 4],
                       uint32_t version, const char *system)
{
    memcpy(shape->creator, creator, 4);
    shape->creator_version = version;
    shape->creator_system = system ? load_be32(system) : 0;
}

/* Whoever reads it takes the size in bytes: by the geometry, which is the
 * largest, or where that would not be the parent's, by a creator that is known
 * for it. */
static void shape_make_exact(struct vpc_shape *shape, enum vpc_type type)
{
    vpc_geometry_for(shape->size, &shape->geometry);
    if (vpc_geometry_bytes(&shape->geometry) == shape->size)
        return;
    if (type == VPC_DIFFERENCING)
        shape_name(shape, "win ", 0x00060003, "Wi2k");
    else
        shape->geometry = vpc_geometry_max;
}

int vpc_shape_for(uint64_t size, enum vpc_rule rule, bool exact,
                  enum vpc_type type, struct vpc_shape *shape,
                  struct rhea_error *err)
{
    uint64_t unit = rule_unit(rule), limit = rule_limit(rule, type);
    if (size > limit)
        return rhea_error_set(err, EFBIG,
                              "such a VHD holds at most %" PRIu64
                              " bytes, not %" PRIu64,
                              limit, size);
    *shape = (struct vpc_shape){.size = align_up(size, unit)};
    if (exact && shape->size != align_up(size, VPC_SECTOR))
        return rhea_error_set(err, EINVAL,
                              "for %s the size must be a multiple of %" PRIu64
                              " bytes; %" PRIu64 " would be one",
                              rule_names[rule], unit, shape->size);
    shape_name(shape, "rhea", 0x00010000, "Wi2k");
    if (rule == VPC_VIRTUAL_PC && exact)
        shape_make_exact(shape, type);
    else if (rule == VPC_VIRTUAL_PC)
        shape->size = shape_round_chs(shape->size, &shape->geometry);
    else
        vpc_geometry_for(shape->size, &shape->geometry);
    if (rule == VPC_HYPER_V || rule == VPC_AZURE)
        shape_name(shape, "win ", 0x00060003, "Wi2k");
    else if (rule == VPC_XENSERVER)
        shape_name(shape, "tap", 0x00010003, NULL);
    return 0;
}

void vpc_shape_put(const struct vpc_shape *shape, uint8_t footer[VPC_FOOTER])
{
    store_be64(footer + VPC_F_SIZE, shape->size);
    memcpy(footer + VPC_F_CREATOR, shape->creator, 4);
    store_be32(footer + VPC_F_CREATOR_VERSION, shape->creator_version);
    store_be32(footer + VPC_F_CREATOR_SYSTEM, shape->creator_system);
    store_be16(footer + VPC_F_CYLINDERS, shape->geometry.cylinders);
    footer[VPC_F_HEADS] = shape->geometry.heads;
    footer[VPC_F_SECTORS] = shape->geometry.sectors;
}
