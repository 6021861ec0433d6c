/* SPDX-License-Identifier: MIT */
/* Changes of metadata and of the region table, gathered by sectors. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vhdx/vhdx.h"

/* The sector at OFFSET, as it is going to be. */
static int edit_sector(struct vhdx_edit *e, uint64_t offset, uint8_t **bytes,
                       struct rhea_error *err)
{
    for (size_t i = 0; i < e->n; i++) {
        *bytes = e->patches[i].own;
        if (e->patches[i].offset == offset)
            return 0;
    }
    struct vhdx_patch *patches =
        reallocarray(e->patches, e->n + 1, sizeof(*patches));
    if (!patches)
        return rhea_error_set(err, ENOMEM, "out of memory");
    e->patches = patches;
    uint8_t *own = malloc(VHDX_LOG_SECTOR);
    if (!own)
        return rhea_error_set(err, ENOMEM, "out of memory");
    patches[e->n++] =
        (struct vhdx_patch){.offset = offset, .bytes = own, .own = own};
    *bytes = own;
    return rhea_storage_read_padded(e->v->base.storage, own, VHDX_LOG_SECTOR,
                                    offset, err);
}

int vhdx_edit_bytes(struct vhdx_edit *e, uint64_t offset, const void *bytes,
                    size_t len, struct rhea_error *err)
{
    const uint8_t *p = bytes;
    while (len) {
        uint64_t skip = offset % VHDX_LOG_SECTOR;
        size_t n = (size_t)RHEA_MIN(len, VHDX_LOG_SECTOR - skip);
        uint8_t *sector = NULL;
        int ret = edit_sector(e, offset - skip, &sector, err);
        if (ret)
            return ret;
        memcpy(sector + skip, p, n);
        offset += n;
        p += n;
        len -= n;
    }
    return 0;
}

int vhdx_edit_write(struct vhdx_edit *e, bool atomic, struct rhea_error *err)
{
    if (atomic && e->n > VHDX_PATCHES)
        return rhea_error_set(err, ENOTSUP,
                              "the metadata of this VHDX image are too far "
                              "apart to be changed at once");
    return e->n ? vhdx_log_write(e->v, e->patches, e->n, err) : 0;
}

void vhdx_edit_finish(struct vhdx_edit *e)
{
    for (size_t i = 0; i < e->n; i++)
        free(e->patches[i].own);
    free(e->patches);
    e->patches = NULL;
    e->n = 0;
}

/* --- A larger BAT --- */

enum { COPY_BYTES = 64 << 10 };

static int room_copy(struct vhdx *v, uint64_t to, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *b = malloc(COPY_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t at = 0; at < v->bat_region.length && !ret; at += COPY_BYTES) {
        ret = rhea_storage_read_padded(v->base.storage, b, COPY_BYTES,
                                       v->bat_region.offset + at, err);
        if (!ret)
            ret = rhea_storage_write(v->base.storage, b, COPY_BYTES, to + at,
                                     err);
    }
    return ret;
}

/* Both copies of the region table get the BAT's new place. */
static int room_regions(struct vhdx *v, const struct vhdx_range *bat,
                        struct vhdx_edit *e, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *b = malloc(VHDX_REGIONS_BYTES);
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read_padded(
        v->base.storage, b, VHDX_REGIONS_BYTES,
        v->bad_regions & 1 ? VHDX_REGIONS_2 : VHDX_REGIONS_1, err);
    if (ret)
        return ret;
    size_t at = vhdx_regions_move_bat(b, bat);
    for (unsigned i = 0; i < 2 && !ret; i++) {
        uint64_t copy = i ? VHDX_REGIONS_2 : VHDX_REGIONS_1;
        /* A damaged one is left for the check. */
        if (v->bad_regions & 1u << i)
            continue;
        ret = vhdx_edit_bytes(e, copy, b, VHDX_R_ENTRIES, err);
        if (!ret)
            ret = vhdx_edit_bytes(e, copy + at, b + at, VHDX_RE_BYTES, err);
    }
    return ret;
}

int vhdx_bat_make_room(struct vhdx *v, const struct vhdx_metadata *m,
                       struct vhdx_range *bat, struct vhdx_edit *e,
                       struct rhea_error *err)
{
    bool child = m->flags & VHDX_P_PARENT;
    *bat = v->bat_region;
    if (vhdx_bat_entries(m, child) <= bat->length / sizeof(uint64_t))
        return 0;
    bat->length =
        align_up(vhdx_bat_entries(m, true) * sizeof(uint64_t), VHDX_MIB);
    int ret = blocks_extend(&v->blocks, bat->length, &bat->offset, err);
    if (!ret)
        ret = rhea_storage_truncate(v->base.storage, v->blocks.file_end, err);
    if (!ret)
        ret = room_copy(v, bat->offset, err);
    return ret ? ret : room_regions(v, bat, e, err);
}

void vhdx_bat_moved(struct vhdx *v, const struct vhdx_range *bat)
{
    for (size_t i = 0; i < v->n_taken; i++)
        if (v->taken[i].offset == v->bat_region.offset)
            v->taken[i] = *bat;
    v->bat_region = *bat;
    vhdx_gaps_forget(v);
}
