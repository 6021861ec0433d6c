/* SPDX-License-Identifier: MIT */
/*
 * The headers of sparse extents. Whatever a later call relies on is checked
 * here: sizes that agree, tables that the file has room for.
 */
#include "format/vmdk/header.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vmdk/sesparse.h"

/* How much of a file's end is looked through for a footer. It should be the
 * last sector but one; some transfers pad files. */
enum { FOOTER_SEARCH = 64 << 10 };

bool vmdk_header_kind(const uint8_t *head, size_t len, enum vmdk_kind *kind)
{
    if (len < VMDK_SECTOR)
        return false;
    if (load_le32(head) == HOSTED_MAGIC)
        *kind = VMDK_HOSTED;
    else if (load_le32(head) == COWD_MAGIC)
        *kind = VMDK_COWD;
    else if (load_le64(head) == SESPARSE_MAGIC)
        *kind = VMDK_SESPARSE;
    else
        return false;
    return true;
}

bool vmdk_header_bytes(uint64_t sectors, uint64_t *bytes)
{
    if (sectors > INT64_MAX / VMDK_SECTOR)
        return false;
    *bytes = sectors * VMDK_SECTOR;
    return true;
}

int vmdk_header_bad(struct rhea_error *err, const char *what, uint64_t value)
{
    return rhea_error_set(err, EINVAL,
                          "the extent's header is damaged: %s is %" PRIu64,
                          what, value);
}

int vmdk_header_check_sizes(struct vmdk_header *h, struct rhea_error *err)
{
    uint64_t max = h->compressed ? VMDK_PACKED_GRAIN_MAX : VMDK_GRAIN_MAX;
    if (!is_power_of_2(h->grain_size) || h->grain_size > max)
        return vmdk_header_bad(err, "the size of a grain", h->grain_size);
    if (!h->table_entries || h->table_entries > VMDK_TABLE_ENTRIES_MAX)
        return vmdk_header_bad(err, "the number of entries in a grain table",
                               h->table_entries);
    if (!h->capacity)
        return vmdk_header_bad(err, "the capacity", h->capacity);
    h->n_tables = div_up(h->capacity, h->grain_size * h->table_entries);
    return 0;
}

bool vmdk_header_directory_fits(const struct vmdk_header *h, uint64_t at,
                                uint64_t file_size)
{
    uint64_t bytes;
    return at && mul_u64(h->n_tables, h->entry_size, &bytes) &&
           range_inside(at, bytes, file_size);
}

bool vmdk_header_in_directory(const struct vmdk_header *h, uint64_t at,
                              uint64_t offset)
{
    return at && offset >= at && offset - at < h->n_tables * h->entry_size;
}

/* --- Hosted --- */

/* The fields that the file's size has no part in. */
static int hosted_parse(const uint8_t *p, struct vmdk_header *h,
                        struct rhea_error *err)
{
    *h = (struct vmdk_header){
        .kind = VMDK_HOSTED,
        .version = load_le32(p + HOSTED_H_VERSION),
        .flags = load_le32(p + HOSTED_H_FLAGS),
        .table_entries = load_le32(p + HOSTED_H_TABLE_ENTRIES),
        .entry_size = sizeof(uint32_t),
        .unclean = p[HOSTED_H_UNCLEAN],
    };
    if (h->version < 1 || h->version > 3)
        return rhea_error_set(err, ENOTSUP,
                              "the extent's format has version %" PRIu32
                              "; known are 1 to 3",
                              h->version);
    if (h->flags & HOSTED_F_MUST_KNOW &
        ~(uint32_t)(HOSTED_F_COMPRESSED | HOSTED_F_MARKERS))
        return rhea_error_set(err, ENOTSUP,
                              "the extent uses features (flags 0x%" PRIx32
                              ") that this program does not know",
                              h->flags);
    if ((h->flags & HOSTED_F_NEWLINES) &&
        memcmp(p + HOSTED_H_NEWLINES, HOSTED_NEWLINES, 4) != 0)
        return rhea_error_set(err, EINVAL,
                              "the extent was damaged by a transfer as text: "
                              "copy it again, as binary");
    h->compressed = h->flags & HOSTED_F_COMPRESSED;
    h->markers = h->compressed && (h->flags & HOSTED_F_MARKERS);
    h->zero_grains = h->flags & HOSTED_F_ZERO_GRAINS;
    uint32_t method = load_le16(p + HOSTED_H_COMPRESSION);
    if (h->compressed && method != HOSTED_DEFLATE)
        return rhea_error_set(err, ENOTSUP,
                              "the extent is compressed by method %" PRIu32
                              ", which is not known",
                              method);
    if (!vmdk_header_bytes(load_le64(p + HOSTED_H_CAPACITY), &h->capacity))
        return vmdk_header_bad(err, "the capacity in sectors",
                               load_le64(p + HOSTED_H_CAPACITY));
    if (!vmdk_header_bytes(load_le64(p + HOSTED_H_DESCRIPTOR),
                           &h->descriptor) ||
        !vmdk_header_bytes(load_le64(p + HOSTED_H_DESCRIPTOR_SIZE),
                           &h->descriptor_size))
        return vmdk_header_bad(err, "the descriptor's sector",
                               load_le64(p + HOSTED_H_DESCRIPTOR));
    if (!h->descriptor || !h->descriptor_size)
        h->descriptor = h->descriptor_size = 0;
    return 0;
}

static int hosted_parse_sizes(const uint8_t *p, struct vmdk_header *h,
                              bool check, uint64_t file_size,
                              struct rhea_error *err)
{
    uint64_t grain = load_le64(p + HOSTED_H_GRAIN_SIZE);
    if (!is_power_of_2(grain) || !vmdk_header_bytes(grain, &h->grain_size))
        return vmdk_header_bad(err, "the size of a grain in sectors", grain);
    int ret = vmdk_header_check_sizes(h, err);
    if (ret)
        return ret;
    if (!vmdk_header_bytes(load_le64(p + HOSTED_H_OVERHEAD), &h->overhead))
        return vmdk_header_bad(err, "the size of its metadata in sectors",
                               load_le64(p + HOSTED_H_OVERHEAD));
    if (h->overhead > file_size && !check)
        return rhea_error_set(err, EINVAL,
                              "the extent is cut off: it ends at %" PRIu64
                              " and should be at least %" PRIu64 " bytes long",
                              file_size, h->overhead);
    return 0;
}

/* Whether a directory may be AT, before END, and not where header or descriptor
 * are: what writes to it would go there. */
static bool hosted_directory_fits(const struct vmdk_header *h, uint64_t at,
                                  uint64_t end)
{
    uint64_t descriptor = h->descriptor;
    return vmdk_header_directory_fits(h, at, end) &&
           !(descriptor && (vmdk_header_in_directory(h, at, descriptor) ||
                            align_down(at, VMDK_SECTOR) == descriptor));
}

/* Where tables are, by a header that is the valid one; they end before END. */
static int hosted_parse_places(const uint8_t *p, struct vmdk_header *h,
                               bool check, uint64_t file_size, uint64_t end,
                               struct rhea_error *err)
{
    int ret = hosted_parse_sizes(p, h, check, file_size, err);
    if (ret)
        return ret;
    uint64_t directory = load_le64(p + HOSTED_H_DIRECTORY);
    uint64_t redundant =
        h->flags & HOSTED_F_REDUNDANT ? load_le64(p + HOSTED_H_REDUNDANT) : 0;
    bool good = vmdk_header_bytes(directory, &h->directory) &&
                hosted_directory_fits(h, h->directory, end);
    bool good_copy = vmdk_header_bytes(redundant, &h->redundant) &&
                     hosted_directory_fits(h, h->redundant, end);
    if (!good && !good_copy)
        return rhea_error_set(err, EINVAL,
                              "the extent has no room for a grain directory of "
                              "%" PRIu64 " entries at sector %" PRIu64,
                              h->n_tables, directory);
    h->one_directory = !good || (redundant && !good_copy);
    if (!good)
        h->directory = h->redundant;
    if (!good || !good_copy)
        h->redundant = 0;
    return 0;
}

static bool footer_is_zero(const uint8_t *p)
{
    return p[0] == 0 && memcmp(p, p + 1, VMDK_SECTOR - 1) == 0;
}

/* The footer in the last bytes, TAIL, of a file: a marker, a copy of the
 * header, an end marker, which is a sector of zeroes. More of those may follow,
 * but nothing else: what the guest wrote could look like a footer. */
static const uint8_t *footer_find(const uint8_t *tail, size_t len)
{
    size_t at = len - len % VMDK_SECTOR;
    while (at && footer_is_zero(tail + at - VMDK_SECTOR))
        at -= VMDK_SECTOR;
    if (at == len - len % VMDK_SECTOR || at < 2 * VMDK_SECTOR)
        return NULL;
    const uint8_t *footer = tail + at - VMDK_SECTOR;
    const uint8_t *marker = footer - VMDK_SECTOR;
    return load_le32(marker + MARKER_SIZE) == 0 &&
                   load_le32(marker + MARKER_TYPE) == MARKER_FOOTER &&
                   load_le32(footer) == HOSTED_MAGIC
               ? footer
               : NULL;
}

static int footer_read(struct rhea_storage *file, uint64_t file_size,
                       uint8_t *p, uint64_t *at, struct rhea_error *err)
{
    static const char missing[] =
        "the extent is cut off: its header says that a footer is at its end, "
        "and there is none. What there is of it, 'check -r all' makes readable";
    uint64_t end = align_down(file_size, VMDK_SECTOR);
    size_t len = (size_t)RHEA_MIN(end, (uint64_t)FOOTER_SEARCH);
    uint8_t *tail = malloc(len + 1);
    if (!tail)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = len ? rhea_storage_read(file, tail, len, end - len, err) : 0;
    const uint8_t *footer = ret ? NULL : footer_find(tail, len);
    if (footer) {
        memcpy(p, footer, HOSTED_HEADER_BYTES);
        *at = end - len + (uint64_t)(footer - tail);
    } else if (!ret) {
        ret = rhea_error_set(err, ENODATA, "%s", missing);
    }
    free(tail);
    return ret;
}

/* The descriptor may grow up to what follows it. */
static void hosted_bound_descriptor(struct vmdk_header *h, uint64_t next)
{
    if (next > h->descriptor)
        h->descriptor_size = RHEA_MIN(h->descriptor_size, next - h->descriptor);
}

static int hosted_read(struct rhea_storage *file, uint64_t file_size,
                       bool check, uint8_t *p, struct vmdk_header *h,
                       struct rhea_error *err)
{
    int ret = hosted_parse(p, h, err);
    /* A descriptor and nothing else. */
    if (ret || (!h->capacity && h->descriptor))
        return ret;
    uint64_t descriptor = h->descriptor, size = h->descriptor_size, at = 0;
    uint64_t end = file_size;
    bool footer = load_le64(p + HOSTED_H_DIRECTORY) == HOSTED_AT_END;
    if (footer) {
        ret = footer_read(file, file_size, p, &at, err);
        /* A check can find the grains by their markers. */
        h->cut_off = ret == -ENODATA && check && h->markers;
        if (!ret)
            ret = hosted_parse(p, h, err);
        h->descriptor = descriptor;
        end = at - RHEA_MIN(at, (uint64_t)VMDK_SECTOR); /* with its marker */
    }
    if (h->cut_off)
        ret = hosted_parse_sizes(p, h, check, file_size, err);
    else if (!ret)
        ret = hosted_parse_places(p, h, check, file_size, end, err);
    h->footer = footer;
    h->at = at;
    h->descriptor = descriptor;
    h->descriptor_size = size;
    hosted_bound_descriptor(h, h->directory);
    hosted_bound_descriptor(h, h->redundant);
    hosted_bound_descriptor(h, h->overhead);
    return ret;
}

/* --- COWD --- */

/* A directory that has become larger is behind some of it. */
uint64_t vmdk_cowd_overhead(uint64_t directory, uint64_t n)
{
    return directory == COWD_HEADER_BYTES ? directory + n * sizeof(uint32_t)
                                          : COWD_HEADER_BYTES;
}

static int cowd_read(struct rhea_storage *file, uint64_t file_size,
                     struct vmdk_header *h, struct rhea_error *err)
{
    uint8_t p[COWD_HEADER_BYTES];
    int ret = rhea_storage_read(file, p, sizeof(p), 0, err);
    if (ret)
        return ret;
    *h = (struct vmdk_header){
        .kind = VMDK_COWD,
        .version = load_le32(p + COWD_H_VERSION),
        .flags = load_le32(p + COWD_H_FLAGS),
        .capacity = (uint64_t)load_le32(p + COWD_H_CAPACITY) * VMDK_SECTOR,
        .grain_size = (uint64_t)load_le32(p + COWD_H_GRAIN_SIZE) * VMDK_SECTOR,
        .table_entries = VMDK_COWD_TABLE_ENTRIES,
        .entry_size = sizeof(uint32_t),
        .directory = (uint64_t)load_le32(p + COWD_H_DIRECTORY) * VMDK_SECTOR,
        .free_sector = load_le32(p + COWD_H_FREE_SECTOR),
        .unclean = load_le32(p + COWD_H_UNCLEAN),
    };
    if (h->version != 1)
        return rhea_error_set(err, ENOTSUP,
                              "the extent's format (COWD) has version %" PRIu32
                              "; known is 1",
                              h->version);
    ret = vmdk_header_check_sizes(h, err);
    if (ret)
        return ret;
    uint32_t n = load_le32(p + COWD_H_N_TABLES);
    if (n < h->n_tables)
        return vmdk_header_bad(err, "the number of grain tables", n);
    if (!vmdk_header_directory_fits(h, h->directory, file_size))
        return vmdk_header_bad(err, "the grain directory's sector",
                               h->directory / VMDK_SECTOR);
    h->overhead = vmdk_cowd_overhead(h->directory, n);
    return 0;
}

int vmdk_header_read(struct rhea_storage *file, bool check,
                     struct vmdk_header *h, struct rhea_error *err)
{
    uint8_t p[VMDK_SECTOR];
    uint64_t file_size;
    enum vmdk_kind kind;
    int ret = rhea_storage_size(file, &file_size, err);
    if (!ret)
        ret = rhea_storage_read(file, p, sizeof(p), 0, err);
    if (ret)
        return ret;
    if (!vmdk_header_kind(p, sizeof(p), &kind))
        return rhea_error_set(err, EINVAL,
                              "it does not begin as a sparse extent does");
    if (kind == VMDK_HOSTED)
        return hosted_read(file, file_size, check, p, h, err);
    if (kind == VMDK_COWD)
        return cowd_read(file, file_size, h, err);
    return sesparse_header(file, file_size, p, h, err);
}
