/* SPDX-License-Identifier: MIT */
/*
 * Reading the log (2.3): a ring of entries, each a few sectors that have to be
 * in the file. An entry is whole or it is not; one that goes on where another
 * one ends, with the next number, belongs to the same sequence; the last one of
 * a sequence names the first one that has to be replayed, its tail. The newest
 * sequence that holds its own tail is the active one.
 *
 * A log can be 4 GiB large and hostile. The sectors inside of an entry do not
 * begin as entries do, so entries that are well formed do not overlap and each
 * sector is looked at twice at most; where a sequence is not whole, none is
 * that begins further on in it.
 *
 * Order of a replay's writes: FileWriteGuid, flush; all sectors, in the log's
 * order; the file's length; flush; then the headers without the log's GUID,
 * flush. Until then every crash finds the log as it was, and replays it again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/crc32c.h"
#include "format/vhdx/vhdx.h"

/* More than any image needs: twice its largest disk. */
#define FILE_MAX (2 * VHDX_MAX_SIZE)

/* An entry that is whole. */
struct log_entry {
    uint32_t at, length, tail, n_descriptors;
    uint64_t number, flushed, last;
};

/* One sector at a time. */
struct log_reader {
    const struct vhdx *v;
    uint8_t sector[VHDX_LOG_SECTOR];
};

static uint32_t log_after(const struct vhdx *v, uint32_t at, uint32_t length)
{
    return (uint32_t)(((uint64_t)at + length) % v->header.log_length);
}

static int log_read(struct log_reader *r, uint32_t at, struct rhea_error *err)
{
    return rhea_storage_read_padded(r->v->base.storage, r->sector,
                                    VHDX_LOG_SECTOR,
                                    r->v->header.log_offset + at, err);
}

/* How many sectors N descriptors take, the head included. */
static uint64_t log_descriptor_sectors(uint32_t n)
{
    return div_up(VHDX_LOG_HEAD + (uint64_t)n * VHDX_DESC_BYTES,
                  VHDX_LOG_SECTOR);
}

static bool log_is_head(const struct log_reader *r)
{
    return load_le32(r->sector) == VHDX_E_SIGNATURE &&
           uuid_equal(r->sector + VHDX_E_GUID, r->v->header.log_guid);
}

/* The head is in r->sector. */
static bool log_parse_head(const struct log_reader *r, uint32_t at,
                           struct log_entry *e)
{
    const uint8_t *b = r->sector;
    *e = (struct log_entry){
        .at = at,
        .length = load_le32(b + VHDX_E_LENGTH),
        .tail = load_le32(b + VHDX_E_TAIL),
        .n_descriptors = load_le32(b + VHDX_E_COUNT),
        .number = load_le64(b + VHDX_E_SEQUENCE),
        .flushed = load_le64(b + VHDX_E_FLUSHED),
        .last = load_le64(b + VHDX_E_LAST),
    };
    return log_is_head(r) && e->number && e->length &&
           e->length <= r->v->header.log_length &&
           is_aligned(e->length, VHDX_LOG_SECTOR) &&
           e->tail < r->v->header.log_length &&
           is_aligned(e->tail, VHDX_LOG_SECTOR) &&
           log_descriptor_sectors(e->n_descriptors) <=
               e->length / VHDX_LOG_SECTOR;
}

enum descriptor { DESCRIPTOR_BAD, DESCRIPTOR_DATA, DESCRIPTOR_ZERO };

static enum descriptor descriptor_kind(const uint8_t *d, uint64_t number)
{
    if (load_le64(d + VHDX_D_SEQUENCE) != number ||
        !is_aligned(load_le64(d + VHDX_D_OFFSET), VHDX_LOG_SECTOR))
        return DESCRIPTOR_BAD;
    if (load_le32(d) == VHDX_D_DATA)
        return DESCRIPTOR_DATA;
    return load_le32(d) == VHDX_D_ZERO &&
                   is_aligned(load_le64(d + VHDX_D_ZERO_LENGTH),
                              VHDX_LOG_SECTOR)
               ? DESCRIPTOR_ZERO
               : DESCRIPTOR_BAD;
}

/* Descriptor sector INDEX, in r->sector: false where one of its descriptors is
 * none. Those of data are counted. */
static bool log_check_descriptors(const struct log_reader *r,
                                  const struct log_entry *e, uint64_t index,
                                  uint64_t *n_data)
{
    uint64_t end = VHDX_LOG_HEAD + (uint64_t)e->n_descriptors * VHDX_DESC_BYTES;
    uint64_t begin = index * VHDX_LOG_SECTOR;
    for (uint64_t at = index ? 0 : VHDX_LOG_HEAD;
         at < VHDX_LOG_SECTOR && begin + at < end; at += VHDX_DESC_BYTES) {
        enum descriptor kind = descriptor_kind(r->sector + at, e->number);
        if (kind == DESCRIPTOR_BAD)
            return false;
        *n_data += kind == DESCRIPTOR_DATA;
    }
    return true;
}

static bool log_check_data(const struct log_reader *r,
                           const struct log_entry *e)
{
    uint64_t number = (uint64_t)load_le32(r->sector + VHDX_S_SEQUENCE_HIGH)
                          << 32 |
                      load_le32(r->sector + VHDX_S_SEQUENCE_LOW);
    return load_le32(r->sector) == VHDX_S_SIGNATURE && number == e->number;
}

/* 1: there is a whole entry at AT, 0: there is none. r->sector is the sector at
 * AT then, if that is not an entry's first. */
static int log_entry_check(struct log_reader *r, uint32_t at,
                           struct log_entry *e, struct rhea_error *err)
{
    static const uint8_t zero[4];
    int ret = log_read(r, at, err);
    if (ret || !log_parse_head(r, at, e))
        return ret;
    uint32_t checksum = load_le32(r->sector + VHDX_E_CHECKSUM);
    memcpy(r->sector + VHDX_E_CHECKSUM, zero, sizeof(zero));
    uint64_t descriptors = log_descriptor_sectors(e->n_descriptors);
    uint64_t n_data = 0;
    uint32_t crc = 0;
    for (uint64_t i = 0; i < e->length / VHDX_LOG_SECTOR; i++) {
        if (i)
            ret = log_read(
                r, log_after(r->v, at, (uint32_t)i * VHDX_LOG_SECTOR), err);
        if (ret)
            return ret;
        if (i < descriptors ? !log_check_descriptors(r, e, i, &n_data)
                            : !log_check_data(r, e))
            return 0;
        crc = crc32c(crc, r->sector, VHDX_LOG_SECTOR);
    }
    return crc == checksum &&
           n_data + descriptors == e->length / VHDX_LOG_SECTOR;
}

/* How many entries from the one at PLACE on lead up to LAST; 0: PLACE is none
 * of the sequence's, which begins at FIRST and is of N entries. */
static int log_count_from(struct log_reader *r, uint32_t first, uint32_t n,
                          uint32_t place, uint32_t *count,
                          struct rhea_error *err)
{
    uint32_t at = first;
    *count = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct log_entry e;
        if (at == place) {
            *count = n - i;
            return 0;
        }
        int ret = log_read(r, at, err);
        if (ret)
            return ret;
        if (!log_parse_head(r, at, &e))
            return rhea_error_set(err, EIO, "the log changes while it is read");
        at = log_after(r->v, at, e.length);
    }
    return 0;
}

/* The sequence that begins at AT: *BYTES is how many it takes, 0: none begins
 * there. */
static int log_sequence(struct log_reader *r, uint32_t at,
                        struct vhdx_sequence *s, uint64_t *bytes,
                        struct rhea_error *err)
{
    struct log_entry e = {0}, last = {0};
    uint32_t next = at, n = 0;
    *bytes = 0;
    for (;;) {
        int ret = log_entry_check(r, next, &e, err);
        if (ret < 0)
            return ret;
        if (!ret || (n && e.number != last.number + 1) ||
            *bytes + e.length > r->v->header.log_length)
            break;
        last = e;
        n++;
        *bytes += e.length;
        next = log_after(r->v, next, e.length);
    }
    *s = (struct vhdx_sequence){
        .tail = last.tail,
        .number = last.number,
        .flushed = last.flushed,
        .last = last.last,
    };
    return n ? log_count_from(r, at, n, last.tail, &s->n, err) : 0;
}

/* Where nothing begins at AT: how far it goes on so, at least a sector. */
static int log_skip(struct log_reader *r, uint32_t at, bool *torn,
                    uint64_t *bytes, struct rhea_error *err)
{
    bool hole;
    *bytes = VHDX_LOG_SECTOR;
    int ret = log_read(r, at, err);
    if (ret)
        return ret;
    *torn |= log_is_head(r);
    uint64_t offset = r->v->header.log_offset + at;
    uint64_t run, size, left = r->v->header.log_length - at;
    ret = rhea_storage_size(r->v->base.storage, &size, err);
    if (ret)
        return ret;
    if (offset >= size) {
        *bytes = left;
    } else if (rhea_storage_extent(r->v->base.storage, offset,
                                   RHEA_MIN(left, size - offset), &hole, &run,
                                   NULL) == 0 &&
               hole && run > VHDX_LOG_SECTOR) {
        *bytes = align_down(run, VHDX_LOG_SECTOR);
    }
    return 0;
}

/* The file is as long as the log has found it. */
static int log_check_size(const struct vhdx *v, struct vhdx_sequence *s,
                          struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(v->base.storage, &size, err);
    if (ret)
        return ret;
    if (s->flushed > size)
        return rhea_error_set(err, EINVAL,
                              "this VHDX image was cut off: it has %" PRIu64
                              " bytes, and had %" PRIu64,
                              size, s->flushed);
    if (s->last > FILE_MAX)
        return rhea_error_set(err, EINVAL,
                              "the log of this VHDX image is damaged: a file "
                              "of %" PRIu64 " bytes",
                              s->last);
    s->last = align_up(s->last, VHDX_MIB);
    s->limit = RHEA_MAX(s->last, size);
    return 0;
}

int vhdx_log_find(struct vhdx *v, struct vhdx_sequence *found,
                  struct rhea_error *err)
{
    struct log_reader r = {.v = v};
    struct vhdx_sequence s;
    uint64_t bytes;
    *found = (struct vhdx_sequence){0};
    for (uint64_t at = 0; at < v->header.log_length; at += bytes) {
        int ret = log_sequence(&r, (uint32_t)at, &s, &bytes, err);
        if (!ret && !bytes)
            ret = log_skip(&r, (uint32_t)at, &found->torn, &bytes, err);
        else if (!ret && s.n && (!found->n || s.number > found->number))
            *found = s;
        else
            found->torn = true;
        if (ret)
            return ret;
    }
    return found->n ? log_check_size(v, found, err) : 0;
}

/* --- Replaying --- */

/* What a log may change lies behind the headers, outside of the log itself, and
 * not further than the file is to reach. */
static int update_check(const struct vhdx *v, const struct vhdx_sequence *s,
                        const struct vhdx_update *u, struct rhea_error *err)
{
    uint64_t log = v->header.log_offset, end;
    if (add_u64(u->offset, u->length, &end) && end <= s->limit &&
        u->offset >= VHDX_REGIONS_1 &&
        (end <= log || u->offset >= log + v->header.log_length))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "the log of this VHDX image is damaged: it changes "
                          "%" PRIu64 " bytes at offset %" PRIu64,
                          u->length, u->offset);
}

struct log_walk {
    struct log_reader reader; /* of descriptors */
    struct log_reader data;
    struct vhdx *v;
    const struct vhdx_sequence *s;
    vhdx_update_fn *fn;
    void *opaque;
    uint64_t order;
};

/* D is a descriptor; *DATA_AT is where the next data sector is. */
static int walk_descriptor(struct log_walk *w, const struct log_entry *e,
                           const uint8_t *d, uint32_t *data_at,
                           struct rhea_error *err)
{
    struct vhdx_update u = {
        .offset = load_le64(d + VHDX_D_OFFSET),
        .length = load_le64(d + VHDX_D_ZERO_LENGTH),
        .order = w->order++,
    };
    enum descriptor kind = descriptor_kind(d, e->number);
    if (kind == DESCRIPTOR_BAD)
        return rhea_error_set(err, EIO, "the log changes while it is read");
    if (kind == DESCRIPTOR_DATA) {
        uint8_t *b = w->data.sector;
        int ret = log_read(&w->data, *data_at, err);
        if (ret)
            return ret;
        memcpy(b, d + VHDX_D_LEADING, VHDX_S_DATA);
        memcpy(b + VHDX_S_SEQUENCE_LOW, d + VHDX_D_TRAILING, 4);
        u.length = VHDX_LOG_SECTOR;
        u.data = b;
        u.data_at = w->v->header.log_offset + *data_at;
        *data_at = log_after(w->v, *data_at, VHDX_LOG_SECTOR);
    }
    int ret = update_check(w->v, w->s, &u, err);
    return ret || !u.length ? ret : w->fn(w->opaque, &u, err);
}

static int walk_entry(struct log_walk *w, uint32_t at, uint32_t *next,
                      struct rhea_error *err)
{
    struct log_entry e;
    int ret = log_read(&w->reader, at, err);
    if (ret)
        return ret;
    if (!log_parse_head(&w->reader, at, &e))
        return rhea_error_set(err, EIO, "the log changes while it is read");
    *next = log_after(w->v, at, e.length);
    uint64_t sectors = log_descriptor_sectors(e.n_descriptors);
    uint32_t data_at =
        log_after(w->v, at, (uint32_t)(sectors * VHDX_LOG_SECTOR));
    for (uint64_t i = 0; i < e.n_descriptors && !ret; i++) {
        uint64_t place = VHDX_LOG_HEAD + i * VHDX_DESC_BYTES;
        uint32_t skip = (uint32_t)(place % VHDX_LOG_SECTOR);
        if (skip == 0)
            ret =
                log_read(&w->reader, log_after(w->v, at, (uint32_t)place), err);
        if (!ret)
            ret =
                walk_descriptor(w, &e, w->reader.sector + skip, &data_at, err);
    }
    return ret;
}

int vhdx_log_walk(struct vhdx *v, const struct vhdx_sequence *s,
                  vhdx_update_fn *fn, void *opaque, struct rhea_error *err)
{
    struct log_walk w = {
        .reader = {.v = v},
        .data = {.v = v},
        .v = v,
        .s = s,
        .fn = fn,
        .opaque = opaque,
    };
    uint32_t at = s->tail;
    int ret = 0;
    for (uint32_t i = 0; i < s->n && !ret; i++)
        ret = walk_entry(&w, at, &at, err);
    return ret;
}

static int replay_update(void *opaque, const struct vhdx_update *u,
                         struct rhea_error *err)
{
    struct vhdx *v = opaque;
    return u->data ? rhea_storage_write(v->base.storage, u->data,
                                        (size_t)u->length, u->offset, err)
                   : rhea_storage_zero(v->base.storage, u->offset, u->length,
                                       false, err);
}

static int replay_check(void *opaque, const struct vhdx_update *u,
                        struct rhea_error *err)
{
    (void)opaque;
    (void)u;
    (void)err;
    return 0;
}

static int replay_length(struct vhdx *v, const struct vhdx_sequence *s,
                         struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(v->base.storage, &size, err);
    if (!ret && size < s->last)
        ret = rhea_storage_truncate(v->base.storage, s->last, err);
    return ret;
}

int vhdx_log_replay(struct vhdx *v, const struct vhdx_sequence *s,
                    struct rhea_error *err)
{
    /* All of it is looked at before any of it is done. */
    int ret = vhdx_log_walk(v, s, replay_check, v, err);
    if (!ret)
        ret = vhdx_begin(v, false, err);
    if (!ret)
        ret = vhdx_log_walk(v, s, replay_update, v, err);
    if (!ret)
        ret = replay_length(v, s, err);
    if (!ret)
        ret = rhea_storage_flush(v->base.storage, err);
    if (ret)
        return ret;
    memset(v->header.log_guid, 0, UUID_BYTES);
    return vhdx_headers_write(v, err);
}
