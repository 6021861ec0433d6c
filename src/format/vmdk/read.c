/* SPDX-License-Identifier: MIT */
/*
 * Compressed grains: a marker with the guest's sector and the length, then a
 * zlib stream ("Compressed Grain Marker"; RFC 1951 is what it names, RFC 1950
 * is what everybody writes). Extents without markers have only a length in
 * front, or nothing in those that QEMU reads. The last grain of an image may
 * hold less than a grain.
 */
#include <errno.h>
#include <inttypes.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/header.h"
#include "format/vmdk/vmdk.h"

/* Small reads come back to the same grain. */
enum { PACKED_SLOTS = 8 };

struct vmdk_packed {
    struct packed_slot {
        const struct rhea_storage *file;
        uint64_t host, age;
        uint8_t *data; /* a grain; NULL: empty */
    } slots[PACKED_SLOTS];
    uint64_t clock;
};

static bool packed_find(struct vmdk *v, const struct rhea_extent *e, size_t in,
                        void *buf, size_t len)
{
    RHEA_LOCKED(&v->lock);
    for (unsigned i = 0; v->packed && i < PACKED_SLOTS; i++) {
        struct packed_slot *slot = &v->packed->slots[i];
        if (!slot->data || slot->host != e->host || slot->file != e->storage)
            continue;
        memcpy(buf, slot->data + in, len);
        slot->age = ++v->packed->clock;
        return true;
    }
    return false;
}

/* Keep DATA, which it takes over, in the place of what was used longest ago. */
static void packed_keep(struct vmdk *v, const struct rhea_extent *e,
                        uint8_t *data)
{
    RHEA_LOCKED(&v->lock);
    if (!v->packed)
        v->packed = calloc(1, sizeof(*v->packed));
    if (!v->packed) {
        free(data);
        return;
    }
    struct packed_slot *oldest = v->packed->slots;
    for (unsigned i = 1; i < PACKED_SLOTS; i++)
        if (v->packed->slots[i].age < oldest->age)
            oldest = &v->packed->slots[i];
    free(oldest->data);
    *oldest =
        (struct packed_slot){e->storage, e->host, ++v->packed->clock, data};
}

void vmdk_packed_finish(struct vmdk *v)
{
    for (unsigned i = 0; v->packed && i < PACKED_SLOTS; i++)
        free(v->packed->slots[i].data);
    free(v->packed);
    v->packed = NULL;
}

/* Whether a zlib stream (RFC 1950) begins so. */
static bool packed_is_zlib(const uint8_t *p)
{
    return (p[0] & 15) == 8 && (p[0] << 8 | p[1]) % 31 == 0;
}

/* The compressed bytes of the grain stored in IN[0..LEN): they begin at *FROM,
 * *N of them, which may be more than IN has. */
static int packed_parse(const struct vmdk_extent *x, uint64_t offset,
                        const uint8_t *in, size_t len, size_t *from, size_t *n,
                        struct rhea_error *err)
{
    if (!x->h.markers) {
        *from = packed_is_zlib(in + 4) || !packed_is_zlib(in) ? 4 : 0;
        *n = *from ? load_le32(in) : len;
        return 0;
    }
    uint64_t sector = load_le64(in + MARKER_SECTORS);
    uint64_t own = offset / VMDK_SECTOR;
    *from = MARKER_GRAIN_BYTES;
    *n = load_le32(in + MARKER_SIZE);
    /* Counted from the extent's beginning; QEMU counts from the image's. */
    if (sector == own || sector == own + x->start / VMDK_SECTOR)
        return 0;
    return rhea_error_set(err, EIO,
                          "the image is damaged: what should be the grain of "
                          "guest sector %" PRIu64 " says that it is sector "
                          "%" PRIu64 "'s",
                          own, sector);
}

static int packed_inflate(const uint8_t *in, size_t n, uint8_t *out,
                          size_t room, size_t least)
{
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    size_t got = 0;
    if (!d)
        return -ENOMEM;
    enum libdeflate_result r =
        packed_is_zlib(in)
            ? libdeflate_zlib_decompress(d, in, n, out, room, &got)
            : libdeflate_deflate_decompress(d, in, n, out, room, &got);
    libdeflate_free_decompressor(d);
    return r == LIBDEFLATE_SUCCESS && got >= least ? 0 : -EIO;
}

int vmdk_packed_load(const struct vmdk_extent *x, uint64_t offset,
                     const struct rhea_extent *e, uint8_t *out, size_t least,
                     struct rhea_error *err)
{
    size_t max = (size_t)x->h.grain_size * 2, from, n;
    size_t len = (size_t)RHEA_MAX(RHEA_MIN(e->stored_length, max),
                                  (uint64_t)VMDK_SECTOR);
    RHEA_AUTO_FREE uint8_t *in = malloc(max);
    if (!in)
        return rhea_error_set(err, ENOMEM, "out of memory");
    rhea_storage_event(e->storage, "read_compressed");
    int ret = rhea_storage_read_padded(e->storage, in, len, e->host, err);
    if (!ret)
        ret = packed_parse(x, offset, in, len, &from, &n, err);
    if (ret)
        return ret;
    bool fits = n > 2 && n <= max - from;
    if (fits && from + n > len)
        ret = rhea_storage_read_padded(e->storage, in + len, from + n - len,
                                       e->host + len, err);
    if (ret)
        return ret;
    if (fits)
        ret = packed_inflate(in + from, n, out, (size_t)x->h.grain_size, least);
    if (ret == -ENOMEM)
        return rhea_error_set(err, ENOMEM, "out of memory");
    return fits && !ret
               ? 0
               : rhea_error_set(err, EIO,
                                "the compressed grain of guest sector "
                                "%" PRIu64 " cannot be decompressed: it is "
                                "damaged",
                                (x->start + offset) / VMDK_SECTOR);
}

int vmdk_read(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
              struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    struct rhea_extent e;
    int ret = vmdk_map(f, offset, len, &e, err);
    if (ret)
        return ret;
    struct vmdk_extent *x = vmdk_find_extent(v, offset);
    if (e.kind != RHEA_EXTENT_COMPRESSED || e.length < len)
        return rhea_error_set(err, EINVAL,
                              "%zu bytes at guest offset %" PRIu64
                              " are not inside one compressed grain",
                              len, offset);
    size_t in = (size_t)((offset - x->start) % x->h.grain_size);
    uint64_t start = offset - x->start - in;
    size_t least = (size_t)RHEA_MIN(x->h.grain_size, x->size - start);
    if (packed_find(v, &e, in, buf, len))
        return 0;
    if (len == x->h.grain_size)
        return vmdk_packed_load(x, start, &e, buf, least, err);
    RHEA_AUTO_FREE uint8_t *data = malloc((size_t)x->h.grain_size);
    if (!data)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = vmdk_packed_load(x, start, &e, data, least, err);
    if (ret)
        return ret;
    memcpy(buf, data + in, len);
    packed_keep(v, &e, rhea_steal(data));
    return 0;
}
