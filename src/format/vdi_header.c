/* SPDX-License-Identifier: MIT */
/* The header, in its versions: docs/formats/vdi.md. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vdi.h"

enum {
    HEAD_SIGNATURE = 64, /* after a text that means nothing */
    HEAD_VERSION = 68,
    HEAD_SIZE = 72, /* version 1: bytes of the header from here on */
    HEAD_SECTOR_SIZE = 360,
    HEAD_GEOMETRY_SECTOR = 468, /* in headers of 400 bytes */
};
#define HEAD_VERSION_0 UINT32_C(0x00000002)
#define HEAD_VERSION_1 UINT32_C(0x00010001)

static const struct vdi_layout layout_0 = {
    .size = VDI_SMALLEST,
    .type = 72,
    .flags = 76,
    .comment = 80,
    .disk_size = 352,
    .block_size = 360,
    .blocks = 364,
    .count = 368,
    .uuid = {372, 388, 404, 0},
};

static const struct vdi_layout layout_1 = {
    .size = 456,
    .type = 76,
    .flags = 80,
    .comment = 84,
    .table = 340,
    .data = 344,
    .disk_size = 368,
    .block_size = 376,
    .extra = 380,
    .blocks = 384,
    .count = 388,
    .uuid = {392, 408, 424, 440},
};

bool vdi_head_is(const uint8_t *raw, size_t len)
{
    return len >= VDI_SMALLEST &&
           load_le32(raw + HEAD_SIGNATURE) == VDI_SIGNATURE;
}

bool vdi_head_is_child(const struct vdi_head *h)
{
    return h->type == VDI_UNDO || h->type == VDI_DIFFERENCING ||
           (h->type == VDI_DYNAMIC && !uuid_is_null(h->uuid[VDI_PARENT]));
}

const char *vdi_type_name(enum vdi_type type)
{
    static const char *const names[] = {
        [VDI_DYNAMIC] = "dynamic",
        [VDI_FIXED] = "fixed",
        [VDI_UNDO] = "undo",
        [VDI_DIFFERENCING] = "differencing",
    };
    return names[type];
}

static int head_choose_layout(struct vdi_head *h, struct rhea_error *err)
{
    h->version = load_le32(h->raw + HEAD_VERSION);
    if (h->version == HEAD_VERSION_0)
        h->at = &layout_0;
    else if (h->version >> 16 == 1)
        h->at = &layout_1;
    else
        return rhea_error_set(err, ENOTSUP,
                              "this VDI image is of version %" PRIu32
                              ".%" PRIu32 ", which this program does not know",
                              h->version >> 16, h->version & 0xffff);
    /* How long the header says it is does not matter: all fields have their
     * places, and QEMU does not ask either. */
    return 0;
}

static void head_load(struct vdi_head *h)
{
    const struct vdi_layout *at = h->at;
    h->type = (enum vdi_type)load_le32(h->raw + at->type);
    h->flags = load_le32(h->raw + at->flags);
    h->disk_size = load_le64(h->raw + at->disk_size);
    h->block_size = load_le32(h->raw + at->block_size);
    h->blocks = load_le32(h->raw + at->blocks);
    h->count = load_le32(h->raw + at->count);
    h->extra = at->extra ? load_le32(h->raw + at->extra) : 0;
    h->table = at->table ? load_le32(h->raw + at->table) : at->size;
    h->data = at->data ? load_le32(h->raw + at->data)
                       : h->table + h->blocks * sizeof(uint32_t);
    for (unsigned i = 0; i < VDI_UUIDS; i++)
        if (at->uuid[i])
            memcpy(h->uuid[i], h->raw + at->uuid[i], UUID_BYTES);
}

static int head_check_sizes(struct vdi_head *h, struct rhea_error *err)
{
    if (!is_power_of_2(h->block_size) || h->block_size < VDI_SECTOR)
        return rhea_error_set(err, EINVAL,
                              "invalid VDI header: blocks of %" PRIu32 " bytes",
                              h->block_size);
    if (h->extra && !is_power_of_2(h->extra))
        return rhea_error_set(err, EINVAL,
                              "invalid VDI header: %" PRIu32
                              " bytes before the data of each block",
                              h->extra);
    /* Some versions of VirtualBox's tools took sizes that are no sectors. */
    uint64_t room = (uint64_t)h->blocks * h->block_size;
    if (h->disk_size > room || align_up(h->disk_size, VDI_SECTOR) > room ||
        h->disk_size > INT64_MAX)
        return rhea_error_set(err, EINVAL,
                              "invalid VDI header: a disk of %" PRIu64
                              " bytes does not fit into %" PRIu32
                              " blocks of %" PRIu32 " bytes",
                              h->disk_size, h->blocks, h->block_size);
    h->disk_size = align_up(h->disk_size, VDI_SECTOR);
    return 0;
}

static int head_check(struct vdi_head *h, struct rhea_error *err)
{
    if (h->type < VDI_DYNAMIC || h->type > VDI_DIFFERENCING)
        return rhea_error_set(err, ENOTSUP,
                              "this VDI image is of type %d, which this "
                              "program does not know",
                              (int)h->type);
    if (h->table < h->at->size || !is_aligned(h->table, sizeof(uint32_t)))
        return rhea_error_set(err, EINVAL,
                              "invalid VDI header: the table cannot be at "
                              "offset %" PRIu64,
                              h->table);
    if (h->data < h->table + h->blocks * sizeof(uint32_t))
        return rhea_error_set(err, EINVAL,
                              "invalid VDI header: a table of %" PRIu32
                              " entries at offset %" PRIu64
                              " reaches into the data at %" PRIu64,
                              h->blocks, h->table, h->data);
    return head_check_sizes(h, err);
}

int vdi_head_read(struct vdi_head *h, struct rhea_storage *storage,
                  struct rhea_error *err)
{
    *h = (struct vdi_head){0};
    int ret = rhea_storage_read_padded(storage, h->raw, VDI_SECTOR, 0, err);
    if (ret)
        return ret;
    if (!vdi_head_is(h->raw, VDI_SECTOR))
        return rhea_error_set(err, EINVAL, "not a VDI image");
    ret = head_choose_layout(h, err);
    if (ret)
        return ret;
    head_load(h);
    return head_check(h, err);
}

void vdi_head_init(struct vdi_head *h)
{
    static const char text[] = "<<< Rhea Virtual Disk Image >>>\n";
    *h = (struct vdi_head){.at = &layout_1, .version = HEAD_VERSION_1};
    memcpy(h->raw, text, sizeof(text));
    store_le32(h->raw + HEAD_SIGNATURE, VDI_SIGNATURE);
    store_le32(h->raw + HEAD_VERSION, h->version);
    /* As VirtualBox writes it, with a geometry that is not known behind. */
    store_le32(h->raw + HEAD_SIZE, 400);
    store_le32(h->raw + HEAD_SECTOR_SIZE, VDI_SECTOR);
    store_le32(h->raw + HEAD_GEOMETRY_SECTOR, VDI_SECTOR);
}

void vdi_head_store(struct vdi_head *h)
{
    const struct vdi_layout *at = h->at;
    store_le32(h->raw + at->type, h->type);
    store_le32(h->raw + at->flags, h->flags);
    store_le64(h->raw + at->disk_size, h->disk_size);
    store_le32(h->raw + at->block_size, h->block_size);
    store_le32(h->raw + at->blocks, h->blocks);
    store_le32(h->raw + at->count, h->count);
    if (at->extra)
        store_le32(h->raw + at->extra, h->extra);
    if (at->table)
        store_le32(h->raw + at->table, (uint32_t)h->table);
    if (at->data)
        store_le32(h->raw + at->data, (uint32_t)h->data);
    for (unsigned i = 0; i < VDI_UUIDS; i++)
        if (at->uuid[i])
            memcpy(h->raw + at->uuid[i], h->uuid[i], UUID_BYTES);
}

int vdi_head_write(struct vdi_head *h, struct rhea_storage *storage,
                   struct rhea_error *err)
{
    vdi_head_store(h);
    return rhea_storage_write(storage, h->raw, h->at->size, 0, err);
}
