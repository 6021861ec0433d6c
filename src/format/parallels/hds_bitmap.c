/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps: their names are UUIDs, and all of them follow guest writes.
 *
 * From the first change on the bits are in memory, and the file has none that
 * count (hds.c). What changes the list of bitmaps, or the bits of one, settles
 * the image at once.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/hds_extension.h"

uint64_t hds_bitmap_bits(const struct hds *h, uint32_t granularity)
{
    return div_up(h->base.size / HDS_SECTOR, granularity);
}

/* QEMU counts the bytes in words of 8. */
uint64_t hds_bitmap_clusters(const struct hds *h, uint64_t bits)
{
    return div_up(align_up(div_up(bits, 8), 8), h->cluster_size);
}

uint64_t hds_bitmap_bytes(const struct hds *h, const struct hds_bitmap *b)
{
    return div_up(hds_bitmap_bits(h, b->granularity), 8);
}

/* Never of no bytes: they are there. */
static uint8_t *bitmap_blank(uint64_t bytes, struct rhea_error *err)
{
    uint8_t *bits = calloc(1, bytes + !bytes);
    if (!bits)
        rhea_error_set(err, ENOMEM, "out of memory for a bitmap");
    return bits;
}

int hds_bitmap_read(struct hds *h, struct hds_bitmap *b, struct rhea_error *err)
{
    uint64_t n = hds_bitmap_bits(h, b->granularity);
    uint64_t bytes = hds_bitmap_bytes(h, b);
    RHEA_AUTO_FREE uint8_t *bits = bitmap_blank(bytes, err);
    if (!bits)
        return -ENOMEM;
    for (uint32_t i = 0; i < b->l1_size; i++) {
        uint64_t at = (uint64_t)i * h->cluster_size;
        size_t len =
            (size_t)RHEA_MIN(h->cluster_size, bytes - RHEA_MIN(at, bytes));
        int ret = 0;
        if (len && b->l1[i] == 1)
            memset(bits + at, 0xff, len);
        else if (len && b->l1[i])
            ret = rhea_storage_read_padded(h->base.storage, bits + at, len,
                                           b->l1[i] * HDS_SECTOR, err);
        if (ret)
            return ret;
    }
    /* The file may have anything behind the last bit. */
    if (n % 8)
        bits[n / 8] &= (uint8_t)((1U << n % 8) - 1);
    b->bits = rhea_steal(bits);
    return 0;
}

static void bits_set(uint8_t *bits, uint64_t first, uint64_t last)
{
    for (; first <= last && first % 8; first++)
        bits[first / 8] |= (uint8_t)(1U << first % 8);
    if (first > last)
        return;
    memset(bits + first / 8, 0xff, (size_t)((last + 1) / 8 - first / 8));
    for (first = (last + 1) / 8 * 8; first <= last; first++)
        bits[first / 8] |= (uint8_t)(1U << first % 8);
}

void hds_bitmaps_mark(struct hds *h, uint64_t offset, uint64_t len)
{
    if (!h->blocks.writable || !h->ext.n_bitmaps || !len ||
        !range_inside(offset, len, h->base.size))
        return;
    RHEA_LOCKED(&h->blocks.lock);
    /* The first change reads them; if it fails, nothing is written. */
    if (blocks_begin(&h->blocks, NULL))
        return;
    for (size_t i = 0; i < h->ext.n_bitmaps; i++) {
        struct hds_bitmap *b = &h->ext.bitmaps[i];
        uint64_t unit = (uint64_t)b->granularity * HDS_SECTOR;
        if (b->bits)
            bits_set(b->bits, offset / unit, (offset + len - 1) / unit);
    }
}

/* --- The interface --- */

static struct hds_bitmap *bitmap_named(struct hds *h, const char *name)
{
    uint8_t id[UUID_BYTES];
    for (size_t i = 0; uuid_parse(name, id) && i < h->ext.n_bitmaps; i++)
        if (uuid_equal(h->ext.bitmaps[i].id, id))
            return &h->ext.bitmaps[i];
    return NULL;
}

static int bitmap_need(struct hds *h, const char *name, bool sound,
                       struct hds_bitmap **out, struct rhea_error *err)
{
    *out = bitmap_named(h, name);
    if (!*out)
        return rhea_error_set(err, ENOENT, "there is no bitmap '%.100s'", name);
    if (sound && h->ext.stale)
        return rhea_error_set(err, EINVAL,
                              "bitmap '%.100s' was not kept up to date when "
                              "the image was written to; it can only be "
                              "removed",
                              name);
    return 0;
}

int hds_bitmap_list(struct rhea_format *f, struct rhea_bitmap **list, size_t *n,
                    struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    RHEA_LOCKED(&h->blocks.lock);
    struct rhea_bitmap *all = calloc(h->ext.n_bitmaps + 1, sizeof(*all));
    bool failed = !all;
    for (size_t i = 0; !failed && i < h->ext.n_bitmaps; i++) {
        char name[UUID_TEXT];
        uuid_text(h->ext.bitmaps[i].id, name);
        all[i] = (struct rhea_bitmap){
            .name = strdup(name),
            .granularity = (uint64_t)h->ext.bitmaps[i].granularity * HDS_SECTOR,
            .enabled = true,
            .in_use = h->ext.stale,
        };
        failed = !all[i].name;
    }
    if (failed) {
        rhea_bitmaps_free(all, h->ext.n_bitmaps);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    *list = all;
    *n = h->ext.n_bitmaps;
    return 0;
}

/* Before a change of the extension; also one that is stale leaves the file. */
static int bitmap_begin(struct hds *h, struct rhea_error *err)
{
    if (!h->blocks.writable)
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    int ret = blocks_change_begin(&h->blocks, err);
    if (!ret)
        ret = blocks_begin(&h->blocks, err);
    if (!ret && h->ext.stale) {
        ret = hds_header_set64(h, HDS_H_EXT_OFF, 0, err);
        h->dropped = true;
    }
    if (!ret)
        ret = hds_write_back(h, err);
    h->ext.changed = true;
    return ret;
}

static int add_check(struct hds *h, const struct rhea_bitmap *what,
                     struct hds_bitmap *b, struct rhea_error *err)
{
    uint64_t granularity = what->granularity / HDS_SECTOR;
    if (!uuid_parse(what->name, b->id))
        return rhea_error_set(err, EINVAL,
                              "the name of a Parallels image's bitmap is a "
                              "UUID, such as "
                              "e4f2eed0-37fe-4539-b50b-85d2e7fd235f, not "
                              "'%.100s'",
                              what->name);
    if (!what->enabled)
        return rhea_error_set(err, ENOTSUP,
                              "bitmaps of a Parallels image cannot be "
                              "disabled");
    if (bitmap_named(h, what->name))
        return rhea_error_set(err, EEXIST, "there is a bitmap '%.100s' already",
                              what->name);
    if (h->ext.stale || h->ext.broken)
        return rhea_error_set(err, EINVAL,
                              "the image has bitmaps that were not kept up to "
                              "date; remove them first");
    if (!is_power_of_2(granularity) || granularity > EXT_MAX_GRANULARITY)
        return rhea_error_set(err, EINVAL,
                              "the granularity must be a power of 2 from 512 "
                              "bytes to 2 GiB");
    b->granularity = (uint32_t)granularity;
    uint64_t bits = hds_bitmap_bits(h, b->granularity);
    uint64_t l1 = hds_bitmap_clusters(h, bits);
    if (div_up(bits, 8) > RHEA_BITMAP_BYTES_MAX || l1 > EXT_MAX / 8)
        return rhea_error_set(
            err, EFBIG, "a bitmap of %" PRIu64 " bits is too large", bits);
    b->l1_size = (uint32_t)l1;
    return hds_extension_check_room(
        h, EXT_FEATURE + EXT_BITMAP + 8 * b->l1_size, err);
}

static int bitmap_check_bytes(const struct hds *h, const struct hds_bitmap *b,
                              size_t n, struct rhea_error *err)
{
    uint64_t want = hds_bitmap_bytes(h, b);
    return n == want ? 0
                     : rhea_error_set(err, EINVAL,
                                      "the bitmap has %" PRIu64
                                      " bytes of bits, not %zu",
                                      want, n);
}

/* BITS NULL: none is set. */
static int bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                      const uint8_t *bits, size_t n, struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    struct hds_bitmap b = {0};
    RHEA_LOCKED(&h->blocks.lock);
    int ret = add_check(h, what, &b, err);
    if (!ret && bits)
        ret = bitmap_check_bytes(h, &b, n, err);
    if (ret)
        return ret;
    struct hds_bitmap *bitmaps =
        reallocarray(h->ext.bitmaps, h->ext.n_bitmaps + 1, sizeof(*bitmaps));
    b.l1 = calloc(b.l1_size + 1ULL, sizeof(*b.l1));
    b.bits = bitmap_blank(hds_bitmap_bytes(h, &b), err);
    if (bitmaps)
        h->ext.bitmaps = bitmaps;
    if (!bitmaps || !b.l1 || !b.bits)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    if (!ret)
        ret = bitmap_begin(h, err);
    if (!ret && bits)
        memcpy(b.bits, bits, n);
    if (ret) {
        free(b.l1);
        free(b.bits);
        return ret;
    }
    bitmaps[h->ext.n_bitmaps++] = b;
    return hds_settle(h, err);
}

int hds_bitmap_add(struct rhea_format *f, const struct rhea_bitmap *what,
                   struct rhea_error *err)
{
    return bitmap_add(f, what, NULL, 0, err);
}

int hds_bitmap_add_bits(struct rhea_format *f, const struct rhea_bitmap *what,
                        const uint8_t *bits, size_t n, struct rhea_error *err)
{
    return bitmap_add(f, what, bits, n, err);
}

int hds_bitmap_remove(struct rhea_format *f, const char *name,
                      struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    struct hds_bitmap *b;
    RHEA_LOCKED(&h->blocks.lock);
    int ret = bitmap_need(h, name, false, &b, err);
    if (!ret)
        ret = bitmap_begin(h, err);
    if (ret)
        return ret;
    free(b->l1);
    free(b->bits);
    size_t behind = h->ext.n_bitmaps - (size_t)(b - h->ext.bitmaps) - 1;
    memmove(b, b + 1, behind * sizeof(*b));
    h->ext.n_bitmaps--;
    return hds_settle(h, err);
}

int hds_bitmap_load(struct rhea_format *f, const char *name, uint8_t *bits,
                    size_t n, struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    struct hds_bitmap *b;
    RHEA_LOCKED(&h->blocks.lock);
    int ret = bitmap_need(h, name, true, &b, err);
    if (!ret)
        ret = bitmap_check_bytes(h, b, n, err);
    if (!ret && !b->bits)
        ret = hds_bitmap_read(h, b, err);
    if (!ret)
        memcpy(bits, b->bits, n);
    return ret;
}

int hds_bitmap_store(struct rhea_format *f, const char *name,
                     const uint8_t *bits, size_t n, struct rhea_error *err)
{
    struct hds *h = hds_of(f);
    struct hds_bitmap *b;
    RHEA_LOCKED(&h->blocks.lock);
    int ret = bitmap_need(h, name, true, &b, err);
    if (!ret)
        ret = bitmap_check_bytes(h, b, n, err);
    if (!ret)
        ret = bitmap_begin(h, err);
    if (ret)
        return ret;
    memcpy(b->bits, bits, n);
    return hds_settle(h, err);
}
