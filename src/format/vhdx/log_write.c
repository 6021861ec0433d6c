/* SPDX-License-Identifier: MIT */
/*
 * Writing the log (2.3). All changes of the BAT, of sector bitmaps, of metadata
 * and of region tables go through it, so that whoever opens the image after a
 * crash brings it into order, be it Hyper-V, QEMU or this program.
 *
 * Order of writes, for each change:
 *   1. flush: whatever the changed sectors refer to is durable, as is the
 *      length of the file and what was changed before;
 *   2. the entry, behind the last one; flush;
 *   3. where the log is not in use: both headers, with a new LogGuid, each with
 *      a flush;
 *   4. the sectors, in their places.
 * From step 2 or 3 on every crash ends in a replay of the entry. Before it the
 * entry is no valid one, or the log is not in use, and the sectors are as they
 * were. So whenever a header names a LogGuid, there is a whole sequence. On
 * close: flush; both headers without the LogGuid.
 *
 * An entry can be replayed on its own, unless those before it are not durable
 * in their places; then its tail is the oldest of these. Where the ring ends,
 * the log is closed and begun anew: QEMU takes entries with wrong numbers for a
 * sequence where a ring wraps. It also refuses an image where an entry's head
 * is whole and a descriptor is torn, and picks the wrong sequence where one
 * entry is torn and the next is not; so the descriptors are in one sector of
 * 512 bytes with the head, and each entry is flushed before the next is
 * written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/crc32c.h"
#include "format/vhdx/vhdx.h"

static void entry_head(const struct vhdx *v, uint8_t *b, uint32_t length,
                       size_t n, uint64_t size)
{
    const struct vhdx_log *log = &v->log;
    store_le32(b, VHDX_E_SIGNATURE);
    store_le32(b + VHDX_E_LENGTH, length);
    store_le32(b + VHDX_E_TAIL, log->unsettled ? log->tail : log->head);
    store_le64(b + VHDX_E_SEQUENCE, log->sequence);
    store_le32(b + VHDX_E_COUNT, (uint32_t)n);
    memcpy(b + VHDX_E_GUID, log->guid, UUID_BYTES);
    store_le64(b + VHDX_E_FLUSHED, align_down(size, VHDX_MIB));
    store_le64(b + VHDX_E_LAST, align_up(size, VHDX_MIB));
}

static void entry_sector(const struct vhdx *v, const struct vhdx_patch *patch,
                         uint8_t *d, uint8_t *s)
{
    uint64_t number = v->log.sequence;
    store_le32(d, VHDX_D_DATA);
    memcpy(d + VHDX_D_LEADING, patch->bytes, VHDX_S_DATA);
    memcpy(d + VHDX_D_TRAILING, patch->bytes + VHDX_S_SEQUENCE_LOW, 4);
    store_le64(d + VHDX_D_OFFSET, patch->offset);
    store_le64(d + VHDX_D_SEQUENCE, number);
    memcpy(s, patch->bytes, VHDX_LOG_SECTOR);
    store_le32(s, VHDX_S_SIGNATURE);
    store_le32(s + VHDX_S_SEQUENCE_HIGH, (uint32_t)(number >> 32));
    store_le32(s + VHDX_S_SEQUENCE_LOW, (uint32_t)number);
}

/* An image without a log, which may be: there is one at the end of the file
 * then, as soon as the headers say so. */
static int log_need_room(struct vhdx *v, struct rhea_error *err)
{
    uint64_t place;
    if (v->header.log_length)
        return 0;
    vhdx_round_end(v);
    int ret = blocks_extend(&v->blocks, VHDX_LOG_MIN, &place, err);
    if (!ret)
        ret = rhea_storage_truncate(v->base.storage, v->blocks.file_end, err);
    if (ret)
        return ret;
    v->header.log_offset = place;
    v->header.log_length = VHDX_LOG_MIN;
    v->taken[0] = (struct vhdx_range){place, VHDX_LOG_MIN};
    return 0;
}

/* Into v->log: where the next entry of LENGTH bytes goes. */
static int log_place(struct vhdx *v, uint32_t length, struct rhea_error *err)
{
    struct vhdx_log *log = &v->log;
    int ret = log_need_room(v, err);
    if (!ret && log->open && log->head + length > v->header.log_length)
        ret = vhdx_log_close(v, err);
    if (ret || log->open)
        return ret;
    ret = guid_new(log->guid, err);
    log->head = 0;
    log->unsettled = false;
    /* Numbers that no old entry has. */
    if (!log->sequence)
        log->sequence = load_le64(log->guid) >> 1 | 1;
    return ret;
}

static int log_announce(struct vhdx *v, struct rhea_error *err)
{
    if (v->log.open)
        return 0;
    memcpy(v->header.log_guid, v->log.guid, UUID_BYTES);
    v->header.log_version = 0;
    int ret = vhdx_headers_write(v, err);
    v->log.open = !ret;
    return ret;
}

/* Steps 2 to 4, of a file of SIZE durable bytes. */
static int log_entry(struct vhdx *v, const struct vhdx_patch *patches, size_t n,
                     uint64_t size, struct rhea_error *err)
{
    uint32_t length = (uint32_t)(n + 1) * VHDX_LOG_SECTOR;
    struct vhdx_log *log = &v->log;
    int ret = log_place(v, length, err);
    if (ret)
        return ret;
    RHEA_AUTO_FREE uint8_t *b = calloc(1, length);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    entry_head(v, b, length, n, size);
    for (size_t i = 0; i < n; i++)
        entry_sector(v, &patches[i], b + VHDX_LOG_HEAD + i * VHDX_DESC_BYTES,
                     b + (i + 1) * VHDX_LOG_SECTOR);
    store_le32(b + VHDX_E_CHECKSUM, crc32c(0, b, length));
    ret = rhea_storage_write(v->base.storage, b, length,
                             v->header.log_offset + log->head, err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    if (!ret)
        ret = log_announce(v, err);
    if (!log->unsettled)
        log->tail = log->head;
    log->unsettled = true;
    log->head += length;
    log->sequence++;
    for (size_t i = 0; i < n && !ret; i++) {
        rhea_storage_event(v->base.storage, "l2_update");
        ret = rhea_storage_write(v->base.storage, patches[i].bytes,
                                 VHDX_LOG_SECTOR, patches[i].offset, err);
    }
    return ret;
}

int vhdx_log_write(struct vhdx *v, const struct vhdx_patch *patches, size_t n,
                   struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(v->base.storage, &size, err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    v->log.unsettled &= ret != 0;
    for (size_t done = 0; done < n && !ret;) {
        size_t some = RHEA_MIN(n - done, (size_t)VHDX_PATCHES);
        ret = log_entry(v, patches + done, some, size, err);
        done += some;
    }
    v->blocks.failed |= ret != 0;
    return ret;
}

int vhdx_log_close(struct vhdx *v, struct rhea_error *err)
{
    if (!v->log.open)
        return 0;
    int ret = rhea_storage_flush(v->base.storage, err);
    if (!ret) {
        memset(v->header.log_guid, 0, UUID_BYTES);
        ret = vhdx_headers_write(v, err);
    }
    v->blocks.failed |= ret != 0;
    v->log.open &= ret != 0;
    return ret;
}

/* --- Tables --- */

/*
 * What is dirty goes into as many entries as it takes. So that those that come
 * first do no harm without the others, bitmaps go before the BAT, for no bit
 * counts before its block is partially present; and the BAT from its end to its
 * beginning, for a chunk's bitmap has its entry behind those of its blocks.
 */
static int patch_compare(const void *a, const void *b)
{
    const struct vhdx_patch *x = a, *y = b;
    if (x->is_bat != y->is_bat)
        return x->is_bat ? 1 : -1;
    return x->offset > y->offset ? -1 : x->offset < y->offset;
}

static size_t patches_gather(const struct vhdx *v, const struct table *t,
                             struct vhdx_patch *patches)
{
    size_t cursor = 0, n = 0;
    uint64_t offset;
    const uint8_t *bytes;
    uint32_t len;
    const struct vhdx_range *bat = &v->bat_region;
    while (table_next_dirty(t, &cursor, &offset, &bytes, &len)) {
        for (uint32_t i = 0; i < len; i += VHDX_LOG_SECTOR, n++) {
            if (!patches)
                continue;
            uint64_t at = offset + i;
            patches[n] = (struct vhdx_patch){
                .offset = at,
                .bytes = bytes + i,
                .is_bat = at >= bat->offset && at < bat->offset + bat->length,
            };
        }
    }
    return n;
}

int vhdx_tables_write(void *opaque, struct table *t, struct rhea_error *err)
{
    struct vhdx *v = opaque;
    size_t n = patches_gather(v, t, NULL);
    RHEA_AUTO_FREE struct vhdx_patch *patches = calloc(n, sizeof(*patches));
    if (!patches)
        return rhea_error_set(err, ENOMEM, "out of memory");
    patches_gather(v, t, patches);
    qsort(patches, n, sizeof(*patches), patch_compare);
    return vhdx_log_write(v, patches, n, err);
}
