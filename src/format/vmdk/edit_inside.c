/* SPDX-License-Identifier: MIT */
/*
 * Changes of a descriptor inside an extent, of more than one sector.
 *
 * Order of writes: the new text is written beside the old one, in what is left
 * of its room; flush; the extent's header, one sector, leads there; flush; the
 * text is written where the old one was; flush; the header leads back; flush.
 * So the header leads to a whole text at any time, and what else of the header
 * is to change does so together with the text.
 *
 * Where the room is too small for both, the new text's sectors but the first
 * are written over the old one's; flush; then the first, which has who the
 * parent is and what its content id; flush; then the header. A crash in between
 * garbles lines that describe the disk's geometry, which are looked at by
 * nobody who reads the disk.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/edit.h"
#include "format/vmdk/header.h"

/* Sectors of TEXT and the NUL behind it, as bytes. */
static uint64_t inside_bytes(size_t len)
{
    return align_up((uint64_t)len + 1, VMDK_SECTOR);
}

static int inside_put(const struct vmdk *v, const char *text, size_t from,
                      size_t to, uint64_t at, struct rhea_error *err)
{
    int ret = from < to ? rhea_storage_write(v->base.storage, text + from,
                                             to - from, at + from, err)
                        : 0;
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

/* The header leads to a descriptor AT; NEW: the rest of it changes, too. */
static int inside_lead_to(struct vmdk *v, const uint8_t *new, uint64_t at,
                          struct rhea_error *err)
{
    struct descriptor *d = &v->descriptor;
    uint64_t end = d->offset + d->room;
    uint8_t p[HOSTED_HEADER_BYTES];
    int ret = rhea_storage_read(v->base.storage, p, sizeof(p), 0, err);
    if (new)
        memcpy(p, new, sizeof(p));
    store_le64(p + HOSTED_H_DESCRIPTOR, at / VMDK_SECTOR);
    store_le64(p + HOSTED_H_DESCRIPTOR_SIZE, (end - at) / VMDK_SECTOR);
    if (!ret)
        ret = inside_put(v, (const char *)p, 0, sizeof(p), 0, err);
    if (ret)
        return ret;
    d->offset = at;
    d->room = end - at;
    for (size_t i = 0; i < v->n_extents; i++)
        if (v->extents[i].file == v->base.storage && v->extents[i].has_blocks) {
            v->extents[i].h.descriptor = at;
            v->extents[i].h.descriptor_size = d->room;
        }
    return 0;
}

/* Where descriptors are: the first sector after the header, if that is in the
 * room, as a change leaves it that was cut short; else where this one is. */
static uint64_t inside_home(const struct vmdk *v)
{
    char head[VMDK_SECTOR];
    return v->descriptor.offset > VMDK_SECTOR &&
                   rhea_storage_read(v->base.storage, head, sizeof(head),
                                     VMDK_SECTOR, NULL) == 0 &&
                   descriptor_probe(head, sizeof(head))
               ? VMDK_SECTOR
               : v->descriptor.offset;
}

/* TEXT has zeroes behind it up to the sector's end. */
static int inside_move(struct vmdk *v, const char *text, size_t len,
                       const uint8_t *header, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    uint64_t bytes = inside_bytes(len), end = d->offset + d->room;
    uint64_t home = inside_home(v), at = d->offset;
    int ret = 0;
    /* It may have to go beside what is beside already. */
    if (home + bytes > at) {
        at += inside_bytes(d->length);
        if (at + bytes > end)
            return -ENOSPC;
        ret = inside_put(v, text, 0, (size_t)bytes, at, err);
        if (!ret)
            ret = inside_lead_to(v, header, at, err);
        header = NULL;
    }
    if (!ret)
        ret = inside_put(v, text, 0, (size_t)bytes, home, err);
    if (!ret)
        ret = inside_lead_to(v, header, home, err);
    if (!ret)
        ret = rhea_storage_zero(v->base.storage, home + bytes,
                                RHEA_MIN(at + bytes, end) - (home + bytes),
                                false, err);
    return ret ? -EIO : 0;
}

/* [FROM, TO) of TEXT is what differs, in whole sectors. */
static int inside_write_over(struct vmdk *v, const char *text, size_t from,
                             size_t to, const uint8_t *header,
                             struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    size_t first = RHEA_MIN(to, from + VMDK_SECTOR);
    int ret = first < to ? inside_put(v, text, first, to, d->offset, err) : 0;
    if (!ret)
        ret = inside_put(v, text, from, first, d->offset, err);
    if (!ret && header)
        ret = inside_lead_to(v, header, d->offset, err);
    return ret;
}

int vmdk_edit_inside(struct vmdk *v, const char *text, size_t len, size_t from,
                     size_t to, const uint8_t *header, struct rhea_error *err)
{
    if (len > v->descriptor.room)
        return rhea_error_set(err, ENOSPC,
                              "the descriptor, inside of the extent, has no "
                              "room for that");
    if (to - from <= VMDK_SECTOR && !header)
        return inside_write_over(v, text, from, to, NULL, err);
    int ret = inside_move(v, text, len, header, err);
    return ret == -ENOSPC ? inside_write_over(v, text, from, to, header, err)
                          : ret;
}
