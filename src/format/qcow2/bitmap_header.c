/* SPDX-License-Identifier: MIT */
/*
 * The header extension that says where the bitmap directory is (the spec,
 * "Bitmaps extension"), and the autoclear bit without which it means nothing.
 *
 * Order of writes:
 *   - from one directory to another: the extension's 24 bytes, flush. They lie
 *     in one sector, so they are either the old ones or the new ones. Where
 *     they do not (other files' long names before them), the autoclear bit is
 *     cleared first and set again at last, with a flush after each write: a
 *     crash between loses the bitmaps.
 *   - from none: the header anew, as header_write.c does it.
 *   - to none: the autoclear bit, flush; then the header anew.
 */
#include <errno.h>

#include "format/qcow2/bitmap.h"

enum { EXT_HEAD = 8, EXT_BODY = 24, SECTOR = 512 };

/* Where the extension's contents stand in the header; 0: there are none. */
static int header_find(struct qcow2 *q, uint64_t *place, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *header = malloc(q->cluster_size);
    uint64_t at = q->header_length, area;
    int r;

    *place = 0;
    if (!header)
        return rhea_error_set(err, ENOMEM, "out of memory");
    r = rhea_storage_read_padded(q->f.storage, header, q->cluster_size, 0, err);
    if (r < 0)
        return r;
    area = load_be64(header + QCOW2_AT_BACKING_OFFSET);
    if (!area || area > q->cluster_size)
        area = q->cluster_size;
    while (at + EXT_HEAD + EXT_BODY <= area) {
        uint32_t type = load_be32(header + at);
        uint64_t size = load_be32(header + at + 4);

        if (type == QCOW2_EXT_END)
            break;
        if (type == QCOW2_EXT_BITMAPS && size == EXT_BODY)
            *place = at + EXT_HEAD;
        at += EXT_HEAD + align_up(size, 8);
    }
    return 0;
}

static int header_autoclear(struct qcow2 *q, bool set, struct rhea_error *err)
{
    if (set)
        q->autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    else
        q->autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    return qcow2_header_write_features(q, err);
}

/* Write the extension's contents where they stand. */
static int header_replace(struct qcow2 *q, uint64_t place,
                          struct rhea_error *err)
{
    bool torn = place / SECTOR != (place + EXT_BODY - 1) / SECTOR;
    uint8_t body[EXT_BODY] = {0};
    int r = 0;

    store_be32(body, q->n_bitmaps);
    store_be64(body + 8, q->bitmap_dir_size);
    store_be64(body + 16, q->bitmap_dir_offset);
    if (torn)
        r = header_autoclear(q, false, err);
    if (r == 0)
        r = rhea_storage_write(q->f.storage, body, EXT_BODY, place, err);
    if (r == 0)
        r = rhea_storage_flush(q->f.storage, err);
    if (r == 0 && torn)
        r = header_autoclear(q, true, err);
    return qcow2_fail(q, r);
}

int qcow2_bitmaps_switch(struct qcow2 *q, uint32_t n, uint64_t offset,
                         uint64_t size, struct rhea_error *err)
{
    uint64_t place = 0, old_offset = q->bitmap_dir_offset,
             old_size = q->bitmap_dir_size, old_bits = q->autoclear;
    uint32_t old_n = q->n_bitmaps;
    int r = 0;

    if (n && qcow2_bitmaps_any(q))
        r = header_find(q, &place, err);
    else if (!n)
        r = header_autoclear(q, false, err);
    if (r < 0)
        return r;
    q->n_bitmaps = n;
    q->bitmap_dir_offset = offset;
    q->bitmap_dir_size = size;
    if (place)
        return header_replace(q, place, err);
    if (n)
        q->autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    r = qcow2_header_update(q, err);
    if (r < 0 && n) {
        q->n_bitmaps = old_n;
        q->bitmap_dir_offset = old_offset;
        q->bitmap_dir_size = old_size;
        q->autoclear = old_bits;
    }
    /* Without the bit there are none, even if the extension stays. */
    return n || q->failed ? r : 0;
}
