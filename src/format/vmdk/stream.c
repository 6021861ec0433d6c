/* SPDX-License-Identifier: MIT */
#include "format/vmdk/stream.h"

#include <string.h>

#include "base/byteorder.h"
#include "format/vmdk/header.h"

static void stream_marker(uint8_t *p, uint32_t type, uint64_t sectors)
{
    memset(p, 0, VMDK_SECTOR);
    store_le64(p + MARKER_SECTORS, sectors);
    store_le32(p + MARKER_TYPE, type);
}

int stream_write_tail(struct rhea_storage *storage, const uint8_t *header,
                      const uint8_t *directory, uint64_t sectors, uint64_t at,
                      uint64_t *end, struct rhea_error *err)
{
    uint8_t p[3 * VMDK_SECTOR], *footer = p + VMDK_SECTOR;
    uint64_t directory_at = at + VMDK_SECTOR;
    uint64_t footer_at = directory_at + sectors * VMDK_SECTOR;
    stream_marker(p, MARKER_DIRECTORY, sectors);
    int ret = rhea_storage_write(storage, p, VMDK_SECTOR, at, err);
    if (!ret)
        ret = rhea_storage_write(storage, directory,
                                 (size_t)(sectors * VMDK_SECTOR), directory_at,
                                 err);
    if (ret)
        return ret;
    stream_marker(p, MARKER_FOOTER, 1);
    memcpy(footer, header, VMDK_SECTOR);
    store_le64(footer + HOSTED_H_DIRECTORY, directory_at / VMDK_SECTOR);
    stream_marker(p + (size_t)2 * VMDK_SECTOR, MARKER_END, 0);
    *end = footer_at + sizeof(p);
    return rhea_storage_write(storage, p, sizeof(p), footer_at, err);
}
