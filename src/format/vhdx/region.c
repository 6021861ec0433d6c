/* SPDX-License-Identifier: MIT */
/* The region table (2.2.3), of which there are two copies. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"

/* 2DC27766-F623-4200-9D64-115E9BFD4A08 */
static const uint8_t region_bat[UUID_BYTES] = {
    0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
    0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08,
};
/* 8B7CA206-4790-4B9A-B8FE-575F050F886E */
static const uint8_t region_metadata[UUID_BYTES] = {
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
    0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
};

/* 1: it is whole, 0: it is not. */
static int regions_load(const struct vhdx *v, uint64_t at, uint8_t *bytes,
                        struct rhea_error *err)
{
    int ret =
        rhea_storage_read_padded(v->image, bytes, VHDX_REGIONS_BYTES, at, err);
    if (ret)
        return ret;
    return load_le32(bytes) == VHDX_R_SIGNATURE &&
           load_le32(bytes + VHDX_R_COUNT) <= VHDX_R_MAX &&
           load_le32(bytes + VHDX_R_CHECKSUM) ==
               vhdx_checksum(bytes, VHDX_REGIONS_BYTES, VHDX_R_CHECKSUM);
}

static bool ranges_overlap(const struct vhdx_range *a,
                           const struct vhdx_range *b)
{
    return a->length && b->length && a->offset < b->offset + b->length &&
           b->offset < a->offset + a->length;
}

static bool is_known(const uint8_t *guid)
{
    return uuid_equal(guid, region_bat) || uuid_equal(guid, region_metadata);
}

static int region_take(struct vhdx *v, const uint8_t *guid,
                       const struct vhdx_range *r, struct rhea_error *err)
{
    struct vhdx_range *known =
        uuid_equal(guid, region_bat) ? &v->bat_region : &v->metadata_region;
    if (!is_known(guid))
        return 0;
    if (known->length)
        return rhea_error_set(err, EINVAL,
                              "invalid VHDX region table: a region is there "
                              "twice");
    *known = *r;
    return 0;
}

/* One entry. Those before it are in v->taken, with the log. */
static int region_parse(struct vhdx *v, const uint8_t *e,
                        struct rhea_error *err)
{
    char name[UUID_TEXT];
    const uint8_t *guid = e + VHDX_RE_GUID;
    const struct vhdx_range r = {load_le64(e + VHDX_RE_OFFSET),
                                 load_le32(e + VHDX_RE_LENGTH)};
    guid_text(guid, name);
    if (!is_known(guid) && load_le32(e + VHDX_RE_REQUIRED) & 1)
        return rhea_error_set(err, ENOTSUP,
                              "this VHDX image has a region that this program "
                              "does not know, %s, and that it has to know",
                              name);
    if (!is_aligned(r.offset, VHDX_MIB) || !is_aligned(r.length, VHDX_MIB) ||
        r.offset < VHDX_SECTION_END || r.offset > INT64_MAX - UINT32_MAX)
        return rhea_error_set(err, EINVAL,
                              "invalid VHDX region table: %" PRIu64
                              " bytes at offset %" PRIu64 " for region %s",
                              r.length, r.offset, name);
    for (size_t i = 0; i < v->n_taken; i++)
        if (ranges_overlap(&v->taken[i], &r))
            return rhea_error_set(err, EINVAL,
                                  "invalid VHDX region table: region %s, at "
                                  "offset %" PRIu64 ", overlaps another one "
                                  "or the log",
                                  name, r.offset);
    v->taken[v->n_taken++] = r;
    return region_take(v, guid, &r, err);
}

static int regions_parse(struct vhdx *v, const uint8_t *bytes,
                         struct rhea_error *err)
{
    uint32_t n = load_le32(bytes + VHDX_R_COUNT);
    v->taken = calloc((size_t)n + 1, sizeof(*v->taken));
    if (!v->taken)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->taken[v->n_taken++] = (struct vhdx_range){
        v->header.log_offset,
        v->header.log_length,
    };
    int ret = 0;
    for (uint32_t i = 0; i < n && !ret; i++)
        ret = region_parse(v, bytes + VHDX_R_ENTRIES + i * VHDX_RE_BYTES, err);
    if (!ret && (!v->bat_region.length || !v->metadata_region.length))
        ret = rhea_error_set(err, EINVAL,
                             "this VHDX image has no block allocation table or "
                             "no metadata");
    return ret;
}

int vhdx_regions_read(struct vhdx *v, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *bytes = malloc(2 * VHDX_REGIONS_BYTES);
    if (!bytes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    uint8_t *second = bytes + VHDX_REGIONS_BYTES;
    int a = regions_load(v, VHDX_REGIONS_1, bytes, err);
    int b = a < 0 ? a : regions_load(v, VHDX_REGIONS_2, second, err);
    if (a < 0 || b < 0)
        return a < 0 ? a : b;
    if (!a && !b)
        return rhea_error_set(err, EINVAL,
                              "both region tables of this VHDX image are "
                              "damaged");
    v->bad_regions = (unsigned)!a | (unsigned)!b << 1;
    return regions_parse(v, a ? bytes : second, err);
}

static void region_store(uint8_t *e, const uint8_t *guid,
                         const struct vhdx_range *r)
{
    memcpy(e + VHDX_RE_GUID, guid, UUID_BYTES);
    store_le64(e + VHDX_RE_OFFSET, r->offset);
    store_le32(e + VHDX_RE_LENGTH, (uint32_t)r->length);
    store_le32(e + VHDX_RE_REQUIRED, 1);
}

void vhdx_regions_store(uint8_t bytes[VHDX_REGIONS_BYTES],
                        const struct vhdx_range *bat,
                        const struct vhdx_range *metadata)
{
    memset(bytes, 0, VHDX_REGIONS_BYTES);
    store_le32(bytes, VHDX_R_SIGNATURE);
    store_le32(bytes + VHDX_R_COUNT, 2);
    region_store(bytes + VHDX_R_ENTRIES, region_bat, bat);
    region_store(bytes + VHDX_R_ENTRIES + VHDX_RE_BYTES, region_metadata,
                 metadata);
    store_le32(bytes + VHDX_R_CHECKSUM,
               vhdx_checksum(bytes, VHDX_REGIONS_BYTES, VHDX_R_CHECKSUM));
}

size_t vhdx_regions_move_bat(uint8_t bytes[VHDX_REGIONS_BYTES],
                             const struct vhdx_range *bat)
{
    size_t at = VHDX_R_ENTRIES;
    while (!uuid_equal(bytes + at, region_bat))
        at += VHDX_RE_BYTES;
    region_store(bytes + at, region_bat, bat);
    store_le32(bytes + VHDX_R_CHECKSUM,
               vhdx_checksum(bytes, VHDX_REGIONS_BYTES, VHDX_R_CHECKSUM));
    return at;
}

bool vhdx_is_taken(const struct vhdx *v, uint64_t offset, uint64_t length)
{
    const struct vhdx_range r = {offset, length};
    if (offset < VHDX_SECTION_END)
        return true;
    for (size_t i = 0; i < v->n_taken; i++)
        if (ranges_overlap(&v->taken[i], &r))
            return true;
    return false;
}
