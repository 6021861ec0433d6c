/* SPDX-License-Identifier: MIT */
/*
 * The format extension (spec, "Format Extension"): one cluster, with an MD5 of
 * itself and a list of features, of which dirty bitmaps are known.
 *
 * It is valid where the header says "v2.1". A program that does not know it
 * leaves another number, and then its bitmaps mean nothing any more: they are
 * listed as in use. The description lets such a program write on; whoever reads
 * bitmaps of an image that is marked as in use reads what is out of date, as
 * QEMU does.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/hds_extension.h"

static int ext_broken(struct hds *h, const char *fmt, ...) RHEA_PRINTF(2, 3);

/* Returns 0, so that whoever found the fault can return it. */
static int ext_broken(struct hds *h, const char *fmt, ...)
{
    va_list args;
    if (h->ext.broken)
        return 0;
    h->ext.broken = true;
    va_start(args, fmt);
    vsnprintf(h->ext.why, sizeof(h->ext.why), fmt, args);
    va_end(args);
    return 0;
}

int hds_extension_hash(struct hds *h, const uint8_t *head, size_t len,
                       bool from_file, uint8_t hash[EXT_HASH],
                       struct rhea_error *err)
{
    gcry_md_hd_t md;
    size_t piece = (size_t)RHEA_MIN(h->cluster_size, EXT_PIECE);
    int ret = gcrypt_begin(err);
    if (ret)
        return ret;
    gcry_error_t code = gcry_md_open(&md, GCRY_MD_MD5, 0);
    if (code)
        return gcrypt_error(err, "cannot compute an MD5", code);
    RHEA_AUTO_FREE uint8_t *buf = calloc(1, piece);
    if (!buf) {
        gcry_md_close(md);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    gcry_md_write(md, head + EXT_HEADER, len - EXT_HEADER);
    for (uint64_t at = len; !ret && at < h->cluster_size; at += piece) {
        size_t n = (size_t)RHEA_MIN(h->cluster_size - at, piece);
        if (from_file)
            ret = rhea_storage_read_padded(h->base.storage, buf, n,
                                           h->ext.offset + at, err);
        gcry_md_write(md, buf, n);
    }
    memcpy(hash, gcry_md_read(md, GCRY_MD_MD5), EXT_HASH);
    gcry_md_close(md);
    return ret;
}

/* --- Bitmaps --- */

static bool bitmap_is_known(const struct hds *h, const uint8_t *id)
{
    for (size_t i = 0; i < h->ext.n_bitmaps; i++)
        if (uuid_equal(h->ext.bitmaps[i].id, id))
            return true;
    return false;
}

/* Where bits can be: 0 and 1 say what they all are. */
static bool bitmap_entry_valid(const struct hds *h, uint64_t entry)
{
    return entry < 2 || (entry <= INT64_MAX / HDS_SECTOR &&
                         hds_host_valid(h, entry * HDS_SECTOR));
}

static int bitmap_take(struct hds *h, const struct hds_bitmap *b,
                       struct rhea_error *err)
{
    struct hds_bitmap *bitmaps =
        reallocarray(h->ext.bitmaps, h->ext.n_bitmaps + 1, sizeof(*bitmaps));
    if (!bitmaps)
        return rhea_error_set(err, ENOMEM, "out of memory");
    h->ext.bitmaps = bitmaps;
    bitmaps[h->ext.n_bitmaps++] = *b;
    return 0;
}

static int ext_bitmap(struct hds *h, const uint8_t *data, uint32_t len,
                      struct rhea_error *err)
{
    struct hds_bitmap b = {0};
    if (len < EXT_BITMAP)
        return ext_broken(h, "a bitmap of %" PRIu32 " bytes", len);
    uint64_t sectors = load_le64(data);
    memcpy(b.id, data + EXT_BITMAP_ID, UUID_BYTES);
    b.granularity = load_le32(data + EXT_BITMAP_GRANULARITY);
    b.l1_size = load_le32(data + EXT_BITMAP_L1_SIZE);
    if (sectors != h->base.size / HDS_SECTOR)
        return ext_broken(h,
                          "a bitmap of %" PRIu64 " sectors, but a disk of "
                          "%" PRIu64,
                          sectors, h->base.size / HDS_SECTOR);
    if (!is_power_of_2(b.granularity) || b.granularity > EXT_MAX_GRANULARITY)
        return ext_broken(h, "a bitmap with a bit for %" PRIu32 " sectors",
                          b.granularity);
    uint64_t bits = hds_bitmap_bits(h, b.granularity);
    if (b.l1_size != hds_bitmap_clusters(h, bits) ||
        8 * (uint64_t)b.l1_size > len - EXT_BITMAP)
        return ext_broken(
            h, "a bitmap whose table has %" PRIu32 " entries, not %" PRIu64,
            b.l1_size, hds_bitmap_clusters(h, bits));
    if (div_up(bits, 8) > RHEA_BITMAP_BYTES_MAX)
        return ext_broken(h, "a bitmap of %" PRIu64 " bits", bits);
    if (bitmap_is_known(h, b.id))
        return ext_broken(h, "two bitmaps of one name");
    RHEA_AUTO_FREE uint64_t *l1 = calloc(b.l1_size + 1ULL, sizeof(*l1));
    if (!l1)
        return rhea_error_set(err, ENOMEM, "out of memory");
    for (uint32_t i = 0; i < b.l1_size; i++) {
        l1[i] = load_le64(data + EXT_BITMAP + 8 * (size_t)i);
        if (!bitmap_entry_valid(h, l1[i]))
            return ext_broken(
                h, "bits of a bitmap at sector %" PRIu64 ", where none can be",
                l1[i]);
    }
    b.l1 = l1;
    int ret = bitmap_take(h, &b, err);
    if (!ret)
        l1 = NULL;
    return ret;
}

/* --- Features --- */

/* One that is not known here, all of it. */
static int ext_unknown(struct hds *h, const uint8_t *feature, size_t len,
                       struct rhea_error *err)
{
    uint64_t flags = load_le64(feature + EXT_FEATURE_FLAGS);
    h->ext.unknown = true;
    if (flags & EXT_NECESSARY)
        h->ext.necessary = true;
    if (!(flags & EXT_TRANSIT))
        return 0;
    uint8_t *kept = realloc(h->ext.kept, h->ext.kept_bytes + len);
    if (!kept)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(kept + h->ext.kept_bytes, feature, len);
    h->ext.kept = kept;
    h->ext.kept_bytes += len;
    return 0;
}

/* The features in the LEN bytes that begin the cluster. */
static int ext_features(struct hds *h, const uint8_t *head, size_t len,
                        struct rhea_error *err)
{
    size_t at = EXT_HEADER;
    for (;;) {
        if (len - at < EXT_FEATURE)
            return ext_broken(h, "its list of features has no end");
        const uint8_t *feature = head + at;
        uint64_t magic = load_le64(feature);
        uint32_t size = load_le32(feature + EXT_FEATURE_SIZE);
        if (magic == EXT_END)
            return 0;
        at += EXT_FEATURE;
        if (size > len - at)
            return ext_broken(h, "a feature of %" PRIu32 " bytes", size);
        size_t padded = RHEA_MIN(align_up(size, 8), len - at);
        int ret = magic == EXT_DIRTY_BITMAP
                      ? ext_bitmap(h, feature + EXT_FEATURE, size, err)
                      : ext_unknown(h, feature, EXT_FEATURE + padded, err);
        if (ret || h->ext.broken)
            return ret;
        at += padded;
    }
}

static int ext_parse(struct hds *h, struct rhea_error *err)
{
    size_t len = RHEA_MIN(h->cluster_size, EXT_MAX);
    uint8_t hash[EXT_HASH];
    if (h->cluster_size > EXT_CLUSTER_MAX)
        return ext_broken(h, "a cluster of %" PRIu32 " bytes is too large",
                          h->cluster_size);
    RHEA_AUTO_FREE uint8_t *head = malloc(len);
    if (!head)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = rhea_storage_read_padded(h->base.storage, head, len,
                                       h->ext.offset, err);
    if (ret)
        return ret;
    if (load_le64(head) != EXT_MAGIC)
        return ext_broken(h, "there is none where the header says");
    ret = hds_extension_hash(h, head, len, true, hash, err);
    if (ret)
        return ret;
    if (memcmp(hash, head + EXT_CHECKSUM, EXT_HASH) != 0)
        return ext_broken(h, "its checksum is wrong");
    return ext_features(h, head, len, err);
}

int hds_extension_read(struct hds *h, const uint8_t header[HDS_HEADER],
                       struct rhea_error *err)
{
    uint64_t sector = load_le64(header + HDS_H_EXT_OFF);
    if (!sector)
        return 0;
    h->ext.stale = load_le32(header + HDS_H_IN_USE) != HDS_CLOSED;
    h->ext.offset = HDS_SECTOR; /* somewhere */
    int ret = 0;
    if (sector > INT64_MAX / HDS_SECTOR ||
        !hds_host_valid(h, sector * HDS_SECTOR)) {
        ext_broken(h, "it cannot be at sector %" PRIu64, sector);
    } else {
        h->ext.offset = sector * HDS_SECTOR;
        ret = ext_parse(h, err);
    }
    /* QEMU writes to the image as if there were none, and over it. */
    if (h->ext.stale && h->ext.broken) {
        hds_extension_finish(&h->ext);
        h->ext.dead = true;
    }
    return ret;
}

static void ext_free_bitmaps(struct hds_extension *ext)
{
    for (size_t i = 0; i < ext->n_bitmaps; i++) {
        free(ext->bitmaps[i].l1);
        free(ext->bitmaps[i].bits);
    }
    free(ext->bitmaps);
}

void hds_extension_finish(struct hds_extension *ext)
{
    ext_free_bitmaps(ext);
    free(ext->kept);
    free(ext->spare);
    *ext = (struct hds_extension){0};
}

int hds_extension_check_write(const struct hds *h, struct rhea_error *err)
{
    const struct hds_extension *ext = &h->ext;
    if (ext->stale)
        return 0;
    if (ext->broken)
        return rhea_error_set(err, EIO,
                              "the image's format extension is damaged (%s); "
                              "'check -r all' drops it, with the bitmaps it "
                              "may have",
                              ext->why);
    if (ext->necessary)
        return rhea_error_set(err, ENOTSUP,
                              "the image's format extension has what this "
                              "program does not know and must not ignore; it "
                              "can only be read");
    return 0;
}

int hds_extension_each(const struct hds *h, hds_cluster_fn *fn, void *opaque,
                       struct rhea_error *err)
{
    const struct hds_extension *ext = &h->ext;
    int ret = 0;
    if (!ext->offset || ext->broken)
        return 0;
    ret = fn(opaque, ext->offset, err);
    for (size_t i = 0; !ret && i < ext->n_bitmaps; i++)
        for (uint32_t k = 0; !ret && k < ext->bitmaps[i].l1_size; k++)
            if (ext->bitmaps[i].l1[k] > 1)
                ret = fn(opaque, ext->bitmaps[i].l1[k] * HDS_SECTOR, err);
    return ret;
}
