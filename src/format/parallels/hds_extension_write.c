/* SPDX-License-Identifier: MIT */
/*
 * Writing the format extension.
 *
 * Order of writes: while the header leads to no extension, its bitmaps' bits
 * and then its own cluster are written, to the clusters that the one before had
 * or to the end of the file. Only the header that follows, behind a flush,
 * leads to it.
 *
 * The old clusters are used again only where no entry of the table leads to
 * them, whatever the image says.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/hds_extension.h"

/* --- Clusters --- */

enum { SPARE_IN_USE = 1 };

static int spare_add(void *opaque, uint64_t host, struct rhea_error *err)
{
    struct hds *h = opaque;
    struct hds_extension *ext = &h->ext;
    size_t n = ext->n_spare;
    if (host % h->cluster_size != h->grid)
        return 0;
    /* Room for 16, 32, 64, ... */
    if ((n & (n - 1)) == 0 && (n >= 16 || n == 0)) {
        uint64_t *spare =
            reallocarray(ext->spare, n ? 2 * n : 16, sizeof(*spare));
        if (!spare)
            return rhea_error_set(err, ENOMEM, "out of memory");
        ext->spare = spare;
    }
    ext->spare[ext->n_spare++] = host;
    return 0;
}

static int spare_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* In order, and each once. They are on the grid, so that none overlaps another
 * in part. */
static void spare_sort(struct hds_extension *ext)
{
    size_t n = 0;
    if (ext->n_spare)
        qsort(ext->spare, ext->n_spare, sizeof(*ext->spare), spare_compare);
    for (size_t i = 0; i < ext->n_spare; i++)
        if (n == 0 || ext->spare[n - 1] != ext->spare[i])
            ext->spare[n++] = ext->spare[i];
    ext->n_spare = n;
}

/* Those that an entry of the table leads to, perhaps with a part of its
 * cluster. */
static int spare_strike(void *opaque, uint64_t index, uint32_t entry,
                        struct rhea_error *err)
{
    struct hds *h = opaque;
    struct hds_extension *ext = &h->ext;
    uint64_t host = hds_host(h, entry);
    size_t from = 0, to = ext->n_spare;
    (void)index;
    (void)err;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if ((ext->spare[middle] | SPARE_IN_USE) - SPARE_IN_USE +
                h->cluster_size <=
            host)
            from = middle + 1;
        else
            to = middle;
    }
    for (; from < ext->n_spare && ext->spare[from] < host + h->cluster_size;
         from++)
        ext->spare[from] |= SPARE_IN_USE;
    return 0;
}

static int cluster_get(struct hds *h, uint64_t *host, struct rhea_error *err)
{
    struct hds_extension *ext = &h->ext;
    while (ext->n_spare) {
        *host = ext->spare[--ext->n_spare];
        if (!(*host & SPARE_IN_USE))
            return 0;
    }
    int ret = blocks_extend(&h->blocks, h->cluster_size, host, err);
    return ret ? ret : blocks_grow(&h->blocks, err);
}

/* --- Bits --- */

static bool bytes_are(const uint8_t *p, size_t len, uint8_t value)
{
    return len == 0 || (p[0] == value && memcmp(p, p + 1, len - 1) == 0);
}

/* What the bytes of a bitmap from AT on, LEN of them, are: 0 and 1 as in a
 * table of level 1, 2: anything. */
static unsigned bits_kind(const struct hds *h, const struct hds_bitmap *b,
                          uint64_t at, uint64_t len)
{
    uint64_t left = hds_bitmap_bits(h, b->granularity) - 8 * at;
    uint64_t whole = RHEA_MIN(len, left / 8);
    uint8_t rest = (uint8_t)((1U << (whole < len ? left % 8 : 0)) - 1);
    if (bytes_are(b->bits + at, (size_t)len, 0))
        return 0;
    return bytes_are(b->bits + at, (size_t)whole, 0xff) &&
                   (whole == len || b->bits[at + whole] == rest)
               ? 1
               : 2;
}

static int bits_write(struct hds *h, struct hds_bitmap *b,
                      struct rhea_error *err)
{
    uint64_t bytes = hds_bitmap_bytes(h, b);
    for (uint32_t i = 0; i < b->l1_size; i++) {
        uint64_t at = (uint64_t)i * h->cluster_size, host;
        uint64_t len = RHEA_MIN(h->cluster_size, bytes - RHEA_MIN(at, bytes));
        b->l1[i] = len ? bits_kind(h, b, at, len) : 0;
        if (b->l1[i] < 2)
            continue;
        int ret = cluster_get(h, &host, err);
        if (!ret)
            ret = rhea_storage_write(h->base.storage, b->bits + at, (size_t)len,
                                     host, err);
        if (ret)
            return ret;
        b->l1[i] = host / HDS_SECTOR;
    }
    return 0;
}

/* --- The cluster --- */

static size_t ext_bytes(const struct hds_extension *ext)
{
    size_t bytes = EXT_HEADER + EXT_FEATURE + ext->kept_bytes;
    for (size_t i = 0; i < ext->n_bitmaps; i++)
        bytes += EXT_FEATURE + EXT_BITMAP + 8 * (size_t)ext->bitmaps[i].l1_size;
    return bytes;
}

static uint8_t *ext_put_bitmap(const struct hds *h, const struct hds_bitmap *b,
                               uint8_t *at)
{
    store_le64(at, EXT_DIRTY_BITMAP);
    store_le32(at + EXT_FEATURE_SIZE, EXT_BITMAP + 8 * b->l1_size);
    at += EXT_FEATURE;
    store_le64(at, h->base.size / HDS_SECTOR);
    memcpy(at + EXT_BITMAP_ID, b->id, UUID_BYTES);
    store_le32(at + EXT_BITMAP_GRANULARITY, b->granularity);
    store_le32(at + EXT_BITMAP_L1_SIZE, b->l1_size);
    at += EXT_BITMAP;
    for (uint32_t i = 0; i < b->l1_size; i++, at += 8)
        store_le64(at, b->l1[i]);
    return at;
}

static int ext_write_cluster(struct hds *h, uint64_t host,
                             struct rhea_error *err)
{
    size_t bytes = ext_bytes(&h->ext);
    RHEA_AUTO_FREE uint8_t *head = calloc(1, bytes);
    if (!head)
        return rhea_error_set(err, ENOMEM, "out of memory");
    uint8_t *at = head + EXT_HEADER;
    for (size_t i = 0; i < h->ext.n_bitmaps; i++)
        at = ext_put_bitmap(h, &h->ext.bitmaps[i], at);
    if (h->ext.kept_bytes)
        memcpy(at, h->ext.kept, h->ext.kept_bytes);
    store_le64(head, EXT_MAGIC);
    int ret =
        hds_extension_hash(h, head, bytes, false, head + EXT_CHECKSUM, err);
    if (!ret)
        ret = rhea_storage_write(h->base.storage, head, bytes, host, err);
    if (!ret && bytes < h->cluster_size)
        ret = rhea_storage_zero(h->base.storage, host + bytes,
                                h->cluster_size - bytes, false, err);
    return ret;
}

int hds_extension_trim(struct hds *h, struct rhea_error *err)
{
    struct hds_extension *ext = &h->ext;
    uint64_t end = h->blocks.file_end;
    while (ext->n_spare &&
           ext->spare[ext->n_spare - 1] == end - h->cluster_size) {
        end -= h->cluster_size;
        ext->n_spare--;
    }
    if (end == h->blocks.file_end)
        return 0;
    h->blocks.file_end = end;
    return rhea_storage_truncate(h->base.storage, end, err);
}

int hds_extension_begin(struct hds *h, struct rhea_error *err)
{
    struct hds_extension *ext = &h->ext;
    int ret = 0;
    if (ext->dead)
        ret = hds_header_set64(h, HDS_H_EXT_OFF, 0, err);
    if (!ext->offset || ext->stale)
        return ret;
    for (size_t i = 0; !ret && i < ext->n_bitmaps; i++)
        if (!ext->bitmaps[i].bits)
            ret = hds_bitmap_read(h, &ext->bitmaps[i], err);
    if (!ret)
        ret = hds_extension_each(h, spare_add, h, err);
    spare_sort(ext);
    if (!ret)
        ret = hds_header_set64(h, HDS_H_EXT_OFF, 0, err);
    if (!ret) {
        ext->changed = true;
        ext->unknown = ext->kept_bytes != 0;
    }
    return ret;
}

int hds_extension_check_room(const struct hds *h, uint32_t more,
                             struct rhea_error *err)
{
    size_t bytes = ext_bytes(&h->ext) + more;
    if (bytes <= RHEA_MIN(h->cluster_size, EXT_MAX) &&
        h->cluster_size <= EXT_CLUSTER_MAX)
        return 0;
    return rhea_error_set(err, ENOSPC,
                          "the image has no room for this bitmap: all of them "
                          "are described in one cluster, of at most %d bytes",
                          EXT_CLUSTER_MAX);
}

int hds_extension_write(struct hds *h, struct rhea_error *err)
{
    struct hds_extension *ext = &h->ext;
    if (!ext->changed)
        return 0;
    int ret = ext->n_spare ? hds_each_entry(h, 0, spare_strike, h, err) : 0;
    for (size_t i = 0; !ret && i < ext->n_bitmaps; i++)
        if (ext->bitmaps[i].bits)
            ret = bits_write(h, &ext->bitmaps[i], err);
    ext->offset = 0;
    if (!ret && (ext->n_bitmaps || ext->kept_bytes)) {
        ret = cluster_get(h, &ext->offset, err);
        if (!ret)
            ret = ext_write_cluster(h, ext->offset, err);
    }
    if (!ret)
        ret = hds_header_set64(h, HDS_H_EXT_OFF, ext->offset / HDS_SECTOR, err);
    if (!ret) {
        ext->changed = false;
        ext->stale &= ext->offset != 0;
    }
    return ret;
}
