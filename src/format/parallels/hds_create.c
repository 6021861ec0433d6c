/* SPDX-License-Identifier: MIT */
/*
 * A new, empty growing file: header and table, nothing else.
 *
 * Order of writes: the file grows to where the data will begin, flush, the
 * header, flush. Before the header the file is no image.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/parallels/hds.h"

int hds_lay_out(const struct hds_layout *layout, uint8_t header[HDS_HEADER],
                uint64_t *end, struct rhea_error *err)
{
    uint64_t cluster = layout->cluster_size;
    if (!cluster || cluster % HDS_SECTOR ||
        cluster / HDS_SECTOR > HDS_MAX_TRACKS)
        return rhea_error_set(err, EINVAL,
                              "cluster_size must be a multiple of %d bytes, "
                              "and at most %" PRIu64,
                              HDS_SECTOR,
                              (uint64_t)HDS_MAX_TRACKS * HDS_SECTOR);
    uint64_t entries = div_up(layout->size, cluster);
    if (entries > HDS_MAX_ENTRIES)
        return rhea_error_set(err, EFBIG,
                              "a Parallels image with clusters of %" PRIu64
                              " bytes holds at most %" PRIu64 " bytes, not "
                              "%" PRIu64,
                              cluster, HDS_MAX_ENTRIES * cluster, layout->size);
    uint64_t sectors = layout->size / HDS_SECTOR;
    *end = div_up(HDS_HEADER + 4 * entries, cluster) * cluster;
    if (!layout->extended &&
        (*end + entries * cluster) / HDS_SECTOR > UINT32_MAX)
        return rhea_error_set(err, EFBIG,
                              "an image of 2 TiB and more needs the option "
                              "extended=on");
    memset(header, 0, HDS_HEADER);
    memcpy(header, layout->extended ? HDS_MAGIC_EXT : HDS_MAGIC, 16);
    store_le32(header + HDS_H_VERSION, HDS_VERSION);
    store_le32(header + HDS_H_HEADS, HDS_HEADS);
    store_le32(header + HDS_H_CYLINDERS,
               (uint32_t)(sectors / HDS_HEADS / HDS_TRACK));
    store_le32(header + HDS_H_TRACKS, (uint32_t)(cluster / HDS_SECTOR));
    store_le32(header + HDS_H_ENTRIES, (uint32_t)entries);
    store_le64(header + HDS_H_SECTORS, sectors);
    store_le32(header + HDS_H_DATA_OFF, (uint32_t)(*end / HDS_SECTOR));
    return 0;
}

int hds_create(struct rhea_storage *storage, const struct hds_layout *layout,
               struct rhea_error *err)
{
    uint8_t header[HDS_HEADER];
    uint64_t end;
    int ret = hds_lay_out(layout, header, &end, err);
    if (!ret)
        ret = rhea_storage_truncate(storage, end, err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (!ret)
        ret = rhea_storage_write(storage, header, sizeof(header), 0, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}
