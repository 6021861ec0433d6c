/* SPDX-License-Identifier: MIT */
/*
 * Fixed images: the guest's bytes, and behind them the only footer there is.
 *
 * Order of writes. Before the first change the footer gets a new time stamp, in
 * its place, which is one sector; flush. To grow, a new footer is written at
 * the new end; flush; the old one is overwritten with zeroes; flush. To shrink,
 * the new footer is written over what is to be lost; flush; the file is cut off
 * behind it.
 *   A crash may leave a file that has grown and not yet the footer at its end.
 * Then the old one is found where the last of the file's data end, with nothing
 * but a hole behind it (vpc_footer_search).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vpc/vpc.h"

enum {
    SEARCH_RUNS = 100000,     /* of the file, that are looked at */
    SEARCH_BYTES = 128 << 10, /* before the hole */
    FILL_BYTES = 1 << 20,
};

/* Where the hole begins that ends the file; its size where there is none. */
static int search_hole(struct rhea_storage *storage, uint64_t size,
                       uint64_t *end, struct rhea_error *err)
{
    *end = size;
    uint64_t data_end = 0;
    for (uint64_t at = 0, n = 0; at < size; n++) {
        bool hole;
        uint64_t run;
        int ret = rhea_storage_extent(storage, at, size - at, &hole, &run, err);
        if (ret || n == SEARCH_RUNS)
            return ret;
        at += run;
        if (!hole)
            data_end = at;
    }
    *end = data_end;
    return 0;
}

int vpc_footer_search(struct rhea_storage *storage, uint64_t size,
                      struct vpc_copy *copy, struct rhea_error *err)
{
    uint64_t end = 0;
    int ret = search_hole(storage, size, &end, err);
    if (ret || end == size)
        return ret;
    RHEA_AUTO_FREE uint8_t *buf = malloc(SEARCH_BYTES);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    end = align_down(end, VPC_SECTOR);
    uint64_t n = RHEA_MIN(end, SEARCH_BYTES);
    ret = rhea_storage_read(storage, buf, (size_t)n, end - n, err);
    for (uint64_t at = n; !ret && at >= VPC_FOOTER; at -= VPC_SECTOR) {
        const uint8_t *f = buf + at - VPC_FOOTER;
        uint64_t place = end - n + at - VPC_FOOTER;
        if (!vpc_footer_is_good(f) || load_be32(f + VPC_F_TYPE) != VPC_FIXED ||
            load_be64(f + VPC_F_SIZE) != place)
            continue;
        *copy = (struct vpc_copy){
            .state = VPC_GOOD, .at = place, .length = VPC_FOOTER};
        memcpy(copy->bytes, f, VPC_FOOTER);
        break;
    }
    return ret;
}

static int fixed_put_footer(struct vpc *v, uint64_t at, uint32_t length,
                            struct rhea_error *err)
{
    int ret = rhea_storage_write(v->base.storage, v->footer, length, at, err);
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

int vpc_put_footer_fixed(struct vpc *v, struct rhea_error *err)
{
    return fixed_put_footer(v, v->footer_at, v->found.tail.length, err);
}

/* A footer that is not one sector could be torn, and has no copy. */
int vpc_stamp_fixed(struct vpc *v, struct rhea_error *err)
{
    if (!is_aligned(v->footer_at, VPC_SECTOR))
        return 0;
    vpc_stamp(v);
    return vpc_put_footer_fixed(v, err);
}

int vpc_check_fixed(struct vpc *v, struct rhea_error *err)
{
    if (v->base.size > v->footer_at)
        return rhea_error_set(err, EINVAL,
                              "the disk has %" PRIu64
                              " bytes, of which the file has only %" PRIu64
                              ": it has been cut off",
                              v->base.size, v->footer_at);
    return 0;
}

/* What a crash has left behind the footer is cut off. */
int vpc_mend_fixed(struct vpc *v, struct rhea_error *err)
{
    uint64_t end = v->found.tail.at + v->found.tail.length;
    if (end == v->found.file_size)
        return 0;
    int ret = rhea_storage_truncate(v->base.storage, end, err);
    if (!ret)
        v->found.file_size = end;
    return ret ? ret : rhea_storage_flush(v->base.storage, err);
}

int vpc_map_fixed(struct vpc *v, uint64_t offset, uint64_t len,
                  struct rhea_extent *extent, struct rhea_error *err)
{
    if (offset >= v->base.size || len == 0)
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    len = RHEA_MIN(len, v->base.size - offset);
    *extent = (struct rhea_extent){
        .kind = RHEA_EXTENT_DATA,
        .length = len,
        .has_host = true,
        .host = offset,
        .stored_length = len,
        .storage = v->base.storage,
    };
    return 0;
}

static int fixed_begin(struct vpc *v, uint64_t offset, uint64_t len,
                       struct rhea_error *err)
{
    if (!range_inside(offset, len, v->base.size))
        return rhea_error_set(err, EINVAL,
                              "cannot write %" PRIu64
                              " bytes at guest offset %" PRIu64
                              ": past the end of the image",
                              len, offset);
    return vpc_renew_identity(&v->base, err);
}

int vpc_write_fixed(struct vpc *v, uint64_t offset, const void *buf, size_t len,
                    struct rhea_error *err)
{
    int ret = fixed_begin(v, offset, len, err);
    rhea_storage_event(v->base.storage, "write_aio");
    return ret ? ret
               : rhea_storage_write(v->base.storage, buf, len, offset, err);
}

int vpc_zero_fixed(struct vpc *v, uint64_t offset, uint64_t len, bool unmap,
                   struct rhea_error *err)
{
    int ret = fixed_begin(v, offset, len, err);
    return ret ? ret
               : rhea_storage_zero(v->base.storage, offset, len, unmap, err);
}

static int fixed_fill(struct vpc *v, uint64_t from, uint64_t to,
                      struct rhea_error *err)
{
    RHEA_AUTO_FREE void *zeroes = calloc(1, FILL_BYTES);
    if (!zeroes)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = 0;
    for (uint64_t at = from; at < to && !ret; at += FILL_BYTES)
        ret =
            rhea_storage_write(v->base.storage, zeroes,
                               (size_t)RHEA_MIN(to - at, FILL_BYTES), at, err);
    return ret;
}

/* The new footer is in its place: what is before it becomes zeroes, from the
 * old one on. */
static int fixed_grow(struct vpc *v, uint64_t old, uint64_t size,
                      const char *mode, struct rhea_error *err)
{
    uint64_t footer_end = RHEA_MIN(v->found.tail.at + VPC_FOOTER, size);
    int ret = 0;
    if (strcmp(mode, "full") == 0)
        return fixed_fill(v, old, size, err);
    if (strcmp(mode, "falloc") == 0)
        ret = rhea_storage_allocate(v->base.storage, old, size - old, err);
    return ret ? ret : fixed_fill(v, old, footer_end, err);
}

int vpc_resize_fixed(struct vpc *v, const struct rhea_resize *how,
                     struct rhea_error *err)
{
    const char *mode = how->preallocation ? how->preallocation : "off";
    uint64_t old = v->base.size, size = how->size;
    if (strcmp(mode, "off") != 0 && strcmp(mode, "falloc") != 0 &&
        strcmp(mode, "full") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "preallocation of a fixed VHD is 'off', 'falloc' "
                              "or 'full', not '%s'",
                              mode);
    RHEA_LOCKED(&v->blocks.lock);
    vpc_put_size(v, size);
    int ret = fixed_put_footer(v, size, VPC_FOOTER, err);
    if (!ret && size > old)
        ret = fixed_grow(v, old, size, mode, err);
    if (!ret)
        ret = rhea_storage_truncate(v->base.storage, size + VPC_FOOTER, err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    if (ret)
        return ret;
    v->footer_at = v->found.tail.at = size;
    v->found.tail.length = VPC_FOOTER;
    v->base.size = v->blocks.size = size;
    return 0;
}
