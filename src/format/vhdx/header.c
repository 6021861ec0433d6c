/* SPDX-License-Identifier: MIT */
/*
 * The two headers (2.2.2). The one with the higher sequence number is current;
 * to change it is to write the other one, with a number one higher, and to
 * flush. So one whole header survives every crash. Then the same is done once
 * more, so that a damaged sector takes nothing away.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/crc32c.h"
#include "format/vhdx/vhdx.h"

uint32_t vhdx_checksum(const uint8_t *bytes, size_t len, size_t at)
{
    static const uint8_t zero[4];
    uint32_t crc = crc32c(0, bytes, at);
    crc = crc32c(crc, zero, sizeof(zero));
    return crc32c(crc, bytes + at + 4, len - at - 4);
}

/* 1: it is whole, 0: it is not. */
static int header_read_one(const struct vhdx *v, uint64_t at,
                           struct vhdx_header *h, struct rhea_error *err)
{
    uint8_t b[VHDX_HEADER_BYTES];
    int ret = rhea_storage_read_padded(v->base.storage, b, sizeof(b), at, err);
    if (ret)
        return ret;
    if (load_le32(b) != VHDX_H_SIGNATURE ||
        load_le32(b + VHDX_H_CHECKSUM) !=
            vhdx_checksum(b, sizeof(b), VHDX_H_CHECKSUM))
        return 0;
    h->sequence = load_le64(b + VHDX_H_SEQUENCE);
    memcpy(h->file_write, b + VHDX_H_FILE_WRITE, UUID_BYTES);
    memcpy(h->data_write, b + VHDX_H_DATA_WRITE, UUID_BYTES);
    memcpy(h->log_guid, b + VHDX_H_LOG_GUID, UUID_BYTES);
    h->log_version = load_le16(b + VHDX_H_LOG_VERSION);
    h->version = load_le16(b + VHDX_H_VERSION);
    h->log_length = load_le32(b + VHDX_H_LOG_LENGTH);
    h->log_offset = load_le64(b + VHDX_H_LOG_OFFSET);
    return 1;
}

static int header_check(const struct vhdx_header *h, struct rhea_error *err)
{
    if (h->version != 1)
        return rhea_error_set(err, ENOTSUP,
                              "this VHDX image has version %u of the format; "
                              "this program knows version 1",
                              h->version);
    if (h->log_version != 0 && !uuid_is_null(h->log_guid))
        return rhea_error_set(err, ENOTSUP,
                              "the log of this VHDX image has version %u; this "
                              "program knows version 0",
                              h->log_version);
    if (!is_aligned(h->log_offset, VHDX_MIB) ||
        !is_aligned(h->log_length, VHDX_MIB) || h->log_offset > INT64_MAX ||
        (h->log_length && h->log_offset < VHDX_SECTION_END))
        return rhea_error_set(err, EINVAL,
                              "invalid VHDX header: a log of %" PRIu32
                              " bytes at offset %" PRIu64,
                              h->log_length, h->log_offset);
    return 0;
}

int vhdx_headers_read(struct vhdx *v, struct rhea_error *err)
{
    struct vhdx_header h[2] = {0};
    int first = header_read_one(v, VHDX_HEADER_1, &h[0], err);
    int second =
        first < 0 ? first : header_read_one(v, VHDX_HEADER_2, &h[1], err);
    if (first < 0 || second < 0)
        return first < 0 ? first : second;
    if (!first && !second)
        return rhea_error_set(err, EINVAL,
                              "both headers of this VHDX image are damaged");
    /* disk2vhd writes the same header twice. */
    if (first && second && h[0].sequence == h[1].sequence &&
        memcmp(&h[0], &h[1], sizeof(h[0])) != 0)
        return rhea_error_set(err, EINVAL,
                              "the two headers of this VHDX image have the "
                              "same number, %" PRIu64 ", but differ",
                              h[0].sequence);
    v->current = !first || (second && h[1].sequence > h[0].sequence);
    v->other_bad = !first || !second;
    v->header = h[v->current];
    return header_check(&v->header, err);
}

void vhdx_header_store(const struct vhdx_header *h,
                       uint8_t b[VHDX_HEADER_BYTES])
{
    memset(b, 0, VHDX_HEADER_BYTES);
    store_le32(b, VHDX_H_SIGNATURE);
    store_le64(b + VHDX_H_SEQUENCE, h->sequence);
    memcpy(b + VHDX_H_FILE_WRITE, h->file_write, UUID_BYTES);
    memcpy(b + VHDX_H_DATA_WRITE, h->data_write, UUID_BYTES);
    memcpy(b + VHDX_H_LOG_GUID, h->log_guid, UUID_BYTES);
    store_le16(b + VHDX_H_LOG_VERSION, h->log_version);
    store_le16(b + VHDX_H_VERSION, h->version);
    store_le32(b + VHDX_H_LOG_LENGTH, h->log_length);
    store_le64(b + VHDX_H_LOG_OFFSET, h->log_offset);
    store_le32(b + VHDX_H_CHECKSUM,
               vhdx_checksum(b, VHDX_HEADER_BYTES, VHDX_H_CHECKSUM));
}

int vhdx_headers_write(struct vhdx *v, struct rhea_error *err)
{
    uint8_t bytes[VHDX_HEADER_BYTES];
    for (unsigned i = 0; i < 2; i++) {
        v->header.sequence++;
        v->current = !v->current;
        vhdx_header_store(&v->header, bytes);
        int ret =
            rhea_storage_write(v->base.storage, bytes, sizeof(bytes),
                               v->current ? VHDX_HEADER_2 : VHDX_HEADER_1, err);
        if (!ret)
            ret = rhea_storage_flush(v->base.storage, err);
        if (ret) {
            v->blocks.failed = true;
            return ret;
        }
    }
    v->other_bad = false;
    return 0;
}

int vhdx_begin(struct vhdx *v, bool data, struct rhea_error *err)
{
    if (v->begun && (!data || v->data_begun))
        return 0;
    int ret = v->begun ? 0 : guid_new(v->header.file_write, err);
    if (!ret && data)
        ret = guid_new(v->header.data_write, err);
    if (!ret)
        ret = vhdx_headers_write(v, err);
    v->begun |= !ret;
    v->data_begun |= !ret && data;
    return ret;
}
