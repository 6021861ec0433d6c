/* SPDX-License-Identifier: MIT */
/* The metadata region (2.6): a table, and the items that it lists. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"

const uint8_t vhdx_item_guids[VHDX_N_ITEMS][UUID_BYTES] = {
    /* CAA16737-FA36-4D43-B3B6-33F0AA44E76B */
    [VHDX_ITEM_PARAMETERS] = {0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d,
                              0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b},
    /* 2FA54224-CD1B-4876-B211-5DBED83BF4B8 */
    [VHDX_ITEM_SIZE] = {0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2,
                        0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8},
    /* BECA12AB-B2E6-4523-93EF-C309E000C746 */
    [VHDX_ITEM_DISK_ID] = {0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93,
                           0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46},
    /* 8141BF1D-A96F-4709-BA47-F233A8FAAB5F */
    [VHDX_ITEM_LOGICAL_SECTOR] = {0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09,
                                  0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa,
                                  0xab, 0x5f},
    /* CDA348C7-445D-4471-9CC9-E9885251C556 */
    [VHDX_ITEM_PHYSICAL_SECTOR] = {0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71,
                                   0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51,
                                   0xc5, 0x56},
    /* A8D35F2D-B30B-454D-ABF7-D3D84834AB0C */
    [VHDX_ITEM_LOCATOR] = {0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab,
                           0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c},
};

/* How long each is; the locator is at least so long. */
static const uint32_t item_lengths[VHDX_N_ITEMS] = {
    [VHDX_ITEM_PARAMETERS] = VHDX_P_BYTES, [VHDX_ITEM_SIZE] = 8,
    [VHDX_ITEM_DISK_ID] = UUID_BYTES,      [VHDX_ITEM_LOGICAL_SECTOR] = 4,
    [VHDX_ITEM_PHYSICAL_SECTOR] = 4,       [VHDX_ITEM_LOCATOR] = VHDX_L_ENTRIES,
};

static const char *const item_names[VHDX_N_ITEMS] = {
    [VHDX_ITEM_PARAMETERS] = "file parameters",
    [VHDX_ITEM_SIZE] = "a virtual disk size",
    [VHDX_ITEM_DISK_ID] = "a virtual disk ID",
    [VHDX_ITEM_LOGICAL_SECTOR] = "a logical sector size",
    [VHDX_ITEM_PHYSICAL_SECTOR] = "a physical sector size",
    [VHDX_ITEM_LOCATOR] = "a parent locator",
};

static int item_of_guid(const uint8_t *guid)
{
    int i = 0;
    while (i < VHDX_N_ITEMS && !uuid_equal(guid, vhdx_item_guids[i]))
        i++;
    return i;
}

static int metadata_entry(struct vhdx *v, const uint8_t *e,
                          struct rhea_error *err)
{
    char name[UUID_TEXT];
    uint32_t offset = load_le32(e + VHDX_ME_OFFSET);
    uint32_t length = load_le32(e + VHDX_ME_LENGTH);
    uint32_t flags = load_le32(e + VHDX_ME_FLAGS);
    int item = flags & VHDX_ME_USER ? VHDX_N_ITEMS : item_of_guid(e);
    guid_text(e, name);
    if (item == VHDX_N_ITEMS && (flags & VHDX_ME_REQUIRED))
        return rhea_error_set(err, ENOTSUP,
                              "this VHDX image has a metadata item that this "
                              "program does not know, %s, and that it has to "
                              "know",
                              name);
    if (length && (offset < VHDX_M_TABLE_BYTES || length > VHDX_ITEM_MAX ||
                   !range_inside(offset, length, v->metadata_region.length)))
        return rhea_error_set(err, EINVAL,
                              "invalid VHDX metadata: item %s, %" PRIu32
                              " bytes at offset %" PRIu32
                              ", does not lie inside their region",
                              name, length, offset);
    if (item == VHDX_N_ITEMS)
        return 0;
    struct vhdx_range *known = &v->metadata.items[item];
    if (known->length || length < item_lengths[item])
        return rhea_error_set(err, EINVAL, "invalid VHDX metadata: %s %s",
                              item_names[item],
                              known->length ? "twice" : "that is too short");
    *known = (struct vhdx_range){v->metadata_region.offset + offset, length};
    return 0;
}

static int metadata_table(struct vhdx *v, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *b = malloc(VHDX_M_TABLE_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read_padded(v->image, b, VHDX_M_TABLE_BYTES,
                                       v->metadata_region.offset, err);
    if (ret)
        return ret;
    uint16_t n = load_le16(b + VHDX_M_COUNT);
    if (load_le64(b) != VHDX_M_SIGNATURE || n > VHDX_M_MAX)
        return rhea_error_set(err, EINVAL,
                              "the metadata table of this VHDX image is "
                              "damaged");
    for (unsigned i = 0; i < n && !ret; i++)
        ret = metadata_entry(v, b + VHDX_M_ENTRIES + i * VHDX_ME_BYTES, err);
    for (int i = 0; i < VHDX_ITEM_LOCATOR && !ret; i++)
        if (!v->metadata.items[i].length)
            ret = rhea_error_set(err, EINVAL,
                                 "invalid VHDX metadata: there is not %s",
                                 item_names[i]);
    return ret;
}

static int metadata_items(struct vhdx *v, struct rhea_error *err)
{
    struct vhdx_metadata *m = &v->metadata;
    uint8_t items[VHDX_ITEM_LOCATOR][UUID_BYTES];
    for (int i = 0; i < VHDX_ITEM_LOCATOR; i++) {
        int ret = rhea_storage_read_padded(v->image, items[i], item_lengths[i],
                                           m->items[i].offset, err);
        if (ret)
            return ret;
    }
    const uint8_t *p = items[VHDX_ITEM_PARAMETERS];
    m->block_size = load_le32(p + VHDX_P_BLOCK_SIZE);
    m->flags = load_le32(p + VHDX_P_FLAGS);
    m->size = load_le64(items[VHDX_ITEM_SIZE]);
    memcpy(m->disk_id, items[VHDX_ITEM_DISK_ID], UUID_BYTES);
    m->logical_sector = load_le32(items[VHDX_ITEM_LOGICAL_SECTOR]);
    m->physical_sector = load_le32(items[VHDX_ITEM_PHYSICAL_SECTOR]);
    return 0;
}

static bool is_sector_size(uint32_t n)
{
    return n == 512 || n == 4096;
}

static int metadata_check(const struct vhdx_metadata *m, struct rhea_error *err)
{
    if (!is_power_of_2(m->block_size) || m->block_size < VHDX_BLOCK_MIN ||
        m->block_size > VHDX_BLOCK_MAX)
        return rhea_error_set(
            err, EINVAL, "invalid VHDX metadata: blocks of %" PRIu32 " bytes",
            m->block_size);
    if (!is_sector_size(m->logical_sector) ||
        !is_sector_size(m->physical_sector))
        return rhea_error_set(err, EINVAL,
                              "invalid VHDX metadata: sectors of %" PRIu32
                              " bytes, physical ones of %" PRIu32,
                              m->logical_sector, m->physical_sector);
    if (m->size > VHDX_MAX_SIZE || m->size % m->logical_sector)
        return rhea_error_set(err, EINVAL,
                              "invalid VHDX metadata: a virtual disk of "
                              "%" PRIu64 " bytes",
                              m->size);
    if ((m->flags & VHDX_P_PARENT) && !m->items[VHDX_ITEM_LOCATOR].length)
        return rhea_error_set(err, EINVAL,
                              "this VHDX image has a parent, but does not say "
                              "which");
    return 0;
}

static int metadata_locator(struct vhdx *v, struct rhea_error *err)
{
    const struct vhdx_range *r = &v->metadata.items[VHDX_ITEM_LOCATOR];
    RHEA_AUTO_FREE uint8_t *bytes = malloc(r->length);
    if (!bytes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read_padded(v->image, bytes, (size_t)r->length,
                                       r->offset, err);
    return ret ? ret
               : vhdx_locator_parse(&v->locator, bytes, (size_t)r->length, err);
}

int vhdx_metadata_read(struct vhdx *v, struct rhea_error *err)
{
    int ret = metadata_table(v, err);
    if (!ret)
        ret = metadata_items(v, err);
    if (!ret)
        ret = metadata_check(&v->metadata, err);
    if (!ret && vhdx_is_child(v))
        ret = metadata_locator(v, err);
    return ret;
}

/* --- Building --- */

struct metadata_image {
    uint8_t *bytes;
    size_t size, end; /* in use */
    unsigned n;
};

/* Room for an item of LENGTH bytes, and its entry; NULL: there is none. */
static uint8_t *image_add(struct metadata_image *i, const uint8_t *guid,
                          uint32_t flags, uint32_t length)
{
    uint8_t *e = i->bytes + VHDX_M_ENTRIES + i->n * VHDX_ME_BYTES;
    size_t at = i->end;
    if (i->n == VHDX_M_MAX || length > i->size - at)
        return NULL;
    memcpy(e + VHDX_ME_GUID, guid, UUID_BYTES);
    store_le32(e + VHDX_ME_OFFSET, length ? (uint32_t)at : 0);
    store_le32(e + VHDX_ME_LENGTH, length);
    store_le32(e + VHDX_ME_FLAGS, flags);
    i->n++;
    store_le16(i->bytes + VHDX_M_COUNT, (uint16_t)i->n);
    i->end = align_up(at + length, 8);
    return i->bytes + at;
}

static uint8_t *image_add_known(struct metadata_image *i, enum vhdx_item item,
                                uint32_t length)
{
    bool file = item == VHDX_ITEM_PARAMETERS || item == VHDX_ITEM_LOCATOR;
    return image_add(i, vhdx_item_guids[item],
                     VHDX_ME_REQUIRED | (file ? 0 : VHDX_ME_VIRTUAL_DISK),
                     length);
}

/* There is room for these. */
static void image_fill(struct metadata_image *i, const struct vhdx_metadata *m,
                       const uint8_t *locator, size_t locator_length)
{
    uint8_t *p = image_add_known(i, VHDX_ITEM_PARAMETERS, VHDX_P_BYTES);
    store_le32(p + VHDX_P_BLOCK_SIZE, m->block_size);
    store_le32(p + VHDX_P_FLAGS, m->flags);
    store_le64(image_add_known(i, VHDX_ITEM_SIZE, 8), m->size);
    memcpy(image_add_known(i, VHDX_ITEM_DISK_ID, UUID_BYTES), m->disk_id,
           UUID_BYTES);
    store_le32(image_add_known(i, VHDX_ITEM_LOGICAL_SECTOR, 4),
               m->logical_sector);
    store_le32(image_add_known(i, VHDX_ITEM_PHYSICAL_SECTOR, 4),
               m->physical_sector);
    if (locator)
        memcpy(image_add_known(i, VHDX_ITEM_LOCATOR, (uint32_t)locator_length),
               locator, locator_length);
}

/* An item of another image, of which E is the entry. */
static int image_copy(struct metadata_image *i, const struct vhdx *from,
                      const uint8_t *e, struct rhea_error *err)
{
    uint32_t flags = load_le32(e + VHDX_ME_FLAGS);
    uint32_t length = load_le32(e + VHDX_ME_LENGTH);
    if (!(flags & VHDX_ME_VIRTUAL_DISK) ||
        (!(flags & VHDX_ME_USER) && item_of_guid(e) != VHDX_N_ITEMS))
        return 0;
    uint8_t *p = image_add(i, e + VHDX_ME_GUID, flags, length);
    if (!p)
        return rhea_error_set(err, ENOSPC,
                              "the parent has too many metadata items");
    return rhea_storage_read_padded(
        from->image, p, length,
        from->metadata_region.offset + load_le32(e + VHDX_ME_OFFSET), err);
}

static int image_copy_all(struct metadata_image *i, const struct vhdx *from,
                          struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *b = malloc(VHDX_M_TABLE_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read_padded(from->image, b, VHDX_M_TABLE_BYTES,
                                       from->metadata_region.offset, err);
    /* Its entries have been checked. */
    for (unsigned n = ret ? 0 : load_le16(b + VHDX_M_COUNT), k = 0;
         k < n && !ret; k++)
        ret = image_copy(i, from, b + VHDX_M_ENTRIES + k * VHDX_ME_BYTES, err);
    return ret;
}

int vhdx_metadata_build(const struct vhdx_metadata *m, const uint8_t *locator,
                        size_t locator_length, const struct vhdx *from,
                        uint8_t **out, size_t *len, struct rhea_error *err)
{
    struct metadata_image i = {.size = VHDX_MIB, .end = VHDX_M_TABLE_BYTES};
    RHEA_AUTO_FREE uint8_t *bytes = calloc(1, i.size);
    if (!bytes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    i.bytes = bytes;
    store_le64(bytes, VHDX_M_SIGNATURE);
    image_fill(&i, m, locator, locator_length);
    int ret = from ? image_copy_all(&i, from, err) : 0;
    if (ret)
        return ret;
    *out = rhea_steal(bytes);
    *len = i.size;
    return 0;
}
