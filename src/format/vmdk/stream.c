/* SPDX-License-Identifier: MIT */
/*
 * Writing streams. The file only ever gets longer: grains one after the other,
 * behind them the grain table that they are in, at last the grain directory,
 * the footer and the end marker ("Stream-Optimized Compressed"). One table is
 * in memory; when a grain of another one comes, it is written, and where it is
 * needed again it is read and later written anew. So grains that come in the
 * guest's order make the stream that VMware's programs want, which refuse
 * others; other orders are written, too.
 *
 * Order of writes:
 *   - Before the first write to an empty stream its end is cut off; flush.
 *     Until it is ended, the file is one that was cut off, and says so.
 *   - The first write to another one: the header, which points to the footer,
 *     is made to point to the directory itself; flush. What follows the
 *     directory is written over.
 *   - Ending it (on flush and on closing): the table in memory, the directory;
 *     flush; the footer, the end marker; flush; the header points to the footer
 *     again; flush. What counts is the footer, where the header points to it
 *     all the time, and else the header, one sector; until that is written the
 *     old directory counts, which with all it leads to is whole.
 */
#include "format/vmdk/stream.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/header.h"

enum {
    STREAM_DIRECTORY_MAX = 4 << 20, /* of memory: 32 TiB of 64 KiB grains */
    STREAM_ENTRIES_MAX = 64 << 10,
};
#define STREAM_NO_TABLE UINT64_MAX

struct vmdk_stream {
    /* As it stands at the file's start, as far as that counts: a footer takes
     * precedence. */
    uint8_t header[HOSTED_HEADER_BYTES];
    uint8_t *directory, *table; /* as in the file */
    uint64_t directory_sectors, table_sectors;
    uint64_t index;   /* of the table; STREAM_NO_TABLE: none */
    bool table_dirty; /* not in the file yet */
    bool open;        /* something was written since the stream was ended */
    uint64_t next;    /* offset in the file */
};

static void stream_marker(uint8_t *p, uint32_t type, uint64_t sectors)
{
    memset(p, 0, VMDK_SECTOR);
    store_le64(p + MARKER_SECTORS, sectors);
    store_le32(p + MARKER_TYPE, type);
}

int stream_write_tail(struct rhea_storage *storage, const uint8_t *header,
                      const uint8_t *directory, uint64_t sectors, uint64_t at,
                      uint64_t *directory_at, uint64_t *end,
                      struct rhea_error *err)
{
    uint8_t p[3 * VMDK_SECTOR], *footer = p + VMDK_SECTOR;
    *directory_at = at + VMDK_SECTOR;
    uint64_t footer_at = *directory_at + sectors * VMDK_SECTOR;
    stream_marker(p, MARKER_DIRECTORY, sectors);
    int ret = rhea_storage_write(storage, p, VMDK_SECTOR, at, err);
    if (!ret)
        ret = rhea_storage_write(storage, directory,
                                 (size_t)(sectors * VMDK_SECTOR), *directory_at,
                                 err);
    if (!ret)
        ret = rhea_storage_flush(storage, err);
    if (ret)
        return ret;
    stream_marker(p, MARKER_FOOTER, 1);
    memcpy(footer, header, VMDK_SECTOR);
    store_le64(footer + HOSTED_H_DIRECTORY, *directory_at / VMDK_SECTOR);
    stream_marker(p + (size_t)2 * VMDK_SECTOR, MARKER_END, 0);
    *end = footer_at + sizeof(p);
    ret = rhea_storage_write(storage, p, sizeof(p), footer_at, err);
    return ret ? ret : rhea_storage_flush(storage, err);
}

/* --- Beginning --- */

int vmdk_stream_check(const struct vmdk_extent *x, struct rhea_error *err)
{
    uint64_t bytes = x->h.n_tables * sizeof(uint32_t);
    if (x->h.markers && bytes <= STREAM_DIRECTORY_MAX &&
        x->h.table_entries <= STREAM_ENTRIES_MAX)
        return 0;
    return rhea_error_set(err, ENOTSUP,
                          "a compressed extent without markers, or so large a "
                          "one, can only be read");
}

void vmdk_stream_free(struct vmdk_extent *x)
{
    if (!x->stream)
        return;
    free(x->stream->directory);
    free(x->stream->table);
    free(x->stream);
    x->stream = NULL;
}

/* What the file has. */
static int stream_load(struct vmdk_extent *x, struct rhea_error *err)
{
    struct vmdk_stream *s = calloc(1, sizeof(*s));
    if (!s)
        return rhea_error_set(err, ENOMEM, "out of memory");
    x->stream = s;
    s->index = STREAM_NO_TABLE;
    s->directory_sectors =
        div_up(x->h.n_tables * sizeof(uint32_t), VMDK_SECTOR);
    s->table_sectors =
        div_up((uint64_t)x->h.table_entries * sizeof(uint32_t), VMDK_SECTOR);
    s->directory = calloc(s->directory_sectors, VMDK_SECTOR);
    s->table = calloc(s->table_sectors, VMDK_SECTOR);
    if (!s->directory || !s->table)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret =
        rhea_storage_read(x->file, s->header, sizeof(s->header), x->h.at, err);
    if (x->h.footer)
        store_le64(s->header + HOSTED_H_DIRECTORY, HOSTED_AT_END);
    store_le64(s->header + HOSTED_H_DESCRIPTOR, x->h.descriptor / VMDK_SECTOR);
    store_le64(s->header + HOSTED_H_DESCRIPTOR_SIZE,
               x->h.descriptor_size / VMDK_SECTOR);
    if (!ret && !x->h.cut_off)
        ret = rhea_storage_read(x->file, s->directory,
                                (size_t)x->h.n_tables * sizeof(uint32_t),
                                x->h.directory, err);
    return ret;
}

static bool stream_is_empty(const struct vmdk_stream *s)
{
    size_t n = (size_t)s->directory_sectors * VMDK_SECTOR;
    return s->directory[0] == 0 &&
           !memcmp(s->directory, s->directory + 1, n - 1);
}

static int stream_write_header(struct vmdk_extent *x, uint64_t directory,
                               struct rhea_error *err)
{
    struct vmdk_stream *s = x->stream;
    if (load_le64(s->header + HOSTED_H_DIRECTORY) == directory)
        return 0;
    store_le64(s->header + HOSTED_H_DIRECTORY, directory);
    int ret = rhea_storage_write(x->file, s->header, sizeof(s->header), 0, err);
    return ret ? ret : rhea_storage_flush(x->file, err);
}

/* Before something is appended. */
static int stream_open(struct vmdk_extent *x, struct rhea_error *err)
{
    int ret = vmdk_renew_identity(&x->image->base, err);
    if (!ret && !x->stream)
        ret = stream_load(x, err);
    if (ret)
        return ret;
    struct vmdk_stream *s = x->stream;
    bool footer = load_le64(s->header + HOSTED_H_DIRECTORY) == HOSTED_AT_END;
    if (footer && stream_is_empty(s) && x->h.directory > x->h.overhead) {
        s->next = x->h.overhead;
        ret = rhea_storage_truncate(x->file, s->next, err);
        if (!ret)
            ret = rhea_storage_flush(x->file, err);
    } else if (footer) {
        s->next = x->h.directory + s->directory_sectors * VMDK_SECTOR;
        ret = stream_write_header(x, x->h.directory / VMDK_SECTOR, err);
    } else {
        s->next = align_up(RHEA_MAX(x->file_size, x->h.overhead), VMDK_SECTOR);
    }
    s->open = !ret;
    return ret;
}

static int stream_begin(struct vmdk_extent *x, struct rhea_error *err)
{
    if (x->h.cut_off && !x->stream)
        return rhea_error_set(err, EIO, "the extent is cut off");
    if (x->blocks.failed)
        return rhea_error_set(err, EIO,
                              "an earlier write to the image failed, and its "
                              "state is not known");
    if (x->stream && x->stream->open)
        return 0;
    int ret = stream_open(x, err);
    /* Whether the header says the one or the other is not known. */
    x->blocks.failed = ret;
    return ret;
}

/* --- Appending --- */

static int stream_append(struct vmdk_extent *x, const void *buf, size_t len,
                         struct rhea_error *err)
{
    struct vmdk_stream *s = x->stream;
    if ((s->next + len) / VMDK_SECTOR > UINT32_MAX)
        return rhea_error_set(err, EFBIG,
                              "the stream would have more than 2 TiB, which "
                              "its tables cannot tell of");
    int ret = rhea_storage_write(x->file, buf, len, s->next, err);
    if (ret)
        return ret;
    s->next += len;
    x->file_size = s->next;
    return 0;
}

static int stream_put_table(struct vmdk_extent *x, struct rhea_error *err)
{
    struct vmdk_stream *s = x->stream;
    uint8_t marker[VMDK_SECTOR];
    if (!s->table_dirty)
        return 0;
    stream_marker(marker, MARKER_TABLE, s->table_sectors);
    int ret = stream_append(x, marker, sizeof(marker), err);
    uint64_t at = s->next;
    if (!ret)
        ret = stream_append(x, s->table, (size_t)s->table_sectors * VMDK_SECTOR,
                            err);
    if (ret)
        return ret;
    store_le32(s->directory + s->index * sizeof(uint32_t),
               (uint32_t)(at / VMDK_SECTOR));
    s->table_dirty = false;
    /* It may have looked there when there was nothing. */
    table_drop(&x->table);
    return 0;
}

static int stream_need_table(struct vmdk_extent *x, uint64_t index,
                             struct rhea_error *err)
{
    struct vmdk_stream *s = x->stream;
    if (s->index == index)
        return 0;
    int ret = stream_put_table(x, err);
    if (ret)
        return ret;
    size_t bytes = (size_t)x->h.table_entries * sizeof(uint32_t);
    uint64_t at = (uint64_t)load_le32(s->directory + index * sizeof(uint32_t)) *
                  VMDK_SECTOR;
    s->index = STREAM_NO_TABLE;
    memset(s->table, 0, (size_t)s->table_sectors * VMDK_SECTOR);
    ret = at ? rhea_storage_read(x->file, s->table, bytes, at, err) : 0;
    if (!ret)
        s->index = index;
    return ret;
}

bool vmdk_stream_table(const struct vmdk_extent *x, uint64_t index,
                       const uint8_t **entries, uint64_t *table)
{
    const struct vmdk_stream *s = x->stream;
    *entries = s->index == index ? s->table : NULL;
    *table = (uint64_t)load_le32(s->directory + index * sizeof(uint32_t)) *
             VMDK_SECTOR;
    return *entries;
}

/* The entry of GRAIN, in the table in memory. */
static int stream_entry(struct vmdk_extent *x, uint64_t grain, uint8_t **entry,
                        struct rhea_error *err)
{
    int ret = stream_begin(x, err);
    if (!ret)
        ret = stream_need_table(x, grain / x->h.table_entries, err);
    if (ret)
        return ret;
    *entry = x->stream->table + grain % x->h.table_entries * sizeof(uint32_t);
    uint32_t old = load_le32(*entry);
    if (old == VMDK_GTE_NONE || (old == VMDK_GTE_ZERO && x->h.zero_grains))
        return 0;
    return rhea_error_set(err, EEXIST,
                          "guest offset %" PRIu64 " of the stream was written "
                          "already, and streams are written only once: convert "
                          "the image to another type to write to it",
                          x->start + grain * x->h.grain_size);
}

static int stream_add(struct vmdk_extent *x, uint64_t grain, const void *packed,
                      size_t n, struct rhea_error *err)
{
    uint8_t *entry;
    RHEA_LOCKED(&x->blocks.lock);
    int ret = stream_entry(x, grain, &entry, err);
    if (ret)
        return ret;
    uint32_t sector = (uint32_t)(x->stream->next / VMDK_SECTOR);
    rhea_storage_event(x->file, "write_compressed");
    ret = stream_append(x, packed, n, err);
    if (ret)
        return ret;
    store_le32(entry, sector);
    x->stream->table_dirty = true;
    return 0;
}

/* --- Of one that was cut off --- */

int vmdk_stream_restart(struct vmdk_extent *x, uint64_t end,
                        struct rhea_error *err)
{
    int ret = vmdk_renew_identity(&x->image->base, err);
    if (!ret)
        ret = stream_load(x, err);
    if (!ret)
        ret = rhea_storage_truncate(x->file, end, err);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    x->blocks.failed |= ret != 0;
    if (ret)
        return ret;
    x->stream->next = x->file_size = end;
    x->stream->open = true;
    return 0;
}

int vmdk_stream_enter(struct vmdk_extent *x, uint64_t grain, uint64_t host,
                      struct rhea_error *err)
{
    int ret = stream_need_table(x, grain / x->h.table_entries, err);
    if (ret)
        return ret;
    store_le32(x->stream->table + grain % x->h.table_entries * sizeof(uint32_t),
               (uint32_t)(host / VMDK_SECTOR));
    x->stream->table_dirty = true;
    return 0;
}

/* --- Ending --- */

int vmdk_stream_finish(struct vmdk_extent *x, struct rhea_error *err)
{
    struct vmdk_stream *s = x->stream;
    uint64_t directory;
    if (!s || !s->open)
        return x->blocks.failed ? stream_begin(x, err) : 0;
    int ret = stream_put_table(x, err);
    if (!ret)
        ret = stream_write_tail(x->file, s->header, s->directory,
                                s->directory_sectors, s->next, &directory,
                                &s->next, err);
    if (!ret)
        ret = stream_write_header(x, HOSTED_AT_END, err);
    x->blocks.failed = ret;
    if (ret)
        return ret;
    x->h.directory = directory;
    x->h.cut_off = false;
    x->file_size = s->next;
    s->open = false;
    table_drop(&x->table);
    return 0;
}

/* --- What the guest writes --- */

/* Whole grains of X, the image's last one perhaps a part. */
static int stream_check_range(const struct vmdk_extent *x, uint64_t at,
                              uint64_t len, struct rhea_error *err)
{
    uint64_t size = x->h.grain_size;
    if (at % size == 0 && (len % size == 0 || at + len == x->size))
        return 0;
    return rhea_error_set(err, EINVAL,
                          "%" PRIu64 " bytes at guest offset %" PRIu64
                          " are not whole grains of %" PRIu64
                          " bytes, and streams are written only by those: "
                          "convert the image to another type to write to it",
                          len, x->start + at, size);
}

static int stream_pack_add(struct vmdk_extent *x, uint64_t at,
                           const uint8_t *buf, size_t len, uint8_t *packed,
                           struct rhea_error *err)
{
    size_t n;
    int ret = pack_grain(x->image, at / VMDK_SECTOR, buf, len, x->h.grain_size,
                         packed, &n, err);
    return ret ? ret : stream_add(x, at / x->h.grain_size, packed, n, err);
}

int vmdk_stream_write(struct vmdk_extent *x, uint64_t at, const uint8_t *buf,
                      size_t len, struct rhea_error *err)
{
    int ret = stream_check_range(x, at, len, err);
    RHEA_AUTO_FREE uint8_t *packed = malloc(pack_max(x->h.grain_size));
    if (!ret && !packed)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    while (!ret && len) {
        size_t n = (size_t)RHEA_MIN(len, x->h.grain_size);
        ret = stream_pack_add(x, at, buf, n, packed, err);
        buf += n;
        at += n;
        len -= n;
    }
    return ret;
}

/* What is not there reads as zeroes, where nothing is below. */
int vmdk_stream_write_zeroes(struct vmdk_extent *x, uint64_t at, uint64_t len,
                             struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *zeroes = calloc(1, (size_t)x->h.grain_size);
    int ret = zeroes ? 0 : rhea_error_set(err, ENOMEM, "out of memory");
    while (!ret && len) {
        struct rhea_extent e;
        ret = blocks_map(&x->blocks, at, len, &e, err);
        if (ret)
            return ret;
        if (e.kind != RHEA_EXTENT_ZERO &&
            (e.kind != RHEA_EXTENT_UNALLOCATED || x->blocks.child)) {
            e.length = RHEA_MIN(e.length, x->h.grain_size);
            ret = vmdk_stream_write(x, at, zeroes, (size_t)e.length, err);
        }
        at += e.length;
        len -= e.length;
    }
    return ret;
}

/* The extent of a cluster at OFFSET that is written compressed. */
static int stream_find(struct rhea_format *f, uint64_t offset, size_t len,
                       struct vmdk_extent **x, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    if (!range_inside(offset, len, f->size) || !len)
        return rhea_error_set(
            err, EINVAL,
            "guest offset %" PRIu64 " lies past the end of the image", offset);
    *x = vmdk_find_extent(v, offset);
    if (!(*x)->h.compressed || !(*x)->writable)
        return rhea_error_set(err, ENOTSUP,
                              "only images of type streamOptimized can hold "
                              "compressed data");
    uint64_t at = offset - (*x)->start;
    if (len != RHEA_MIN((*x)->h.grain_size, (*x)->size - at))
        return rhea_error_set(err, EINVAL,
                              "%zu bytes at guest offset %" PRIu64
                              " are not a grain",
                              len, offset);
    return stream_check_range(*x, at, len, err);
}

int vmdk_write_compressed(struct rhea_format *f, uint64_t offset,
                          const void *buf, size_t len, struct rhea_error *err)
{
    struct vmdk_extent *x;
    int ret = stream_find(f, offset, len, &x, err);
    return ret ? ret : vmdk_stream_write(x, offset - x->start, buf, len, err);
}

int vmdk_pack(struct rhea_format *f, uint64_t offset, const void *buf,
              size_t len, void *packed, size_t *n, struct rhea_error *err)
{
    struct vmdk_extent *x;
    int ret = stream_find(f, offset, len, &x, err);
    return ret ? ret
               : pack_grain(vmdk_of(f), (offset - x->start) / VMDK_SECTOR, buf,
                            len, x->h.grain_size, packed, n, err);
}

int vmdk_write_packed(struct rhea_format *f, uint64_t offset,
                      const void *packed, size_t n, struct rhea_error *err)
{
    struct vmdk_extent *x = vmdk_find_extent(vmdk_of(f), offset);
    return stream_add(x, (offset - x->start) / x->h.grain_size, packed, n, err);
}
