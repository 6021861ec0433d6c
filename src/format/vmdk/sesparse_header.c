/* SPDX-License-Identifier: MIT */
/*
 * The two headers of an SESparse extent: one that never changes, and one that
 * says where the next grain table goes and whether the journal is to be
 * replayed.
 */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "format/vmdk/header.h"
#include "format/vmdk/sesparse.h"

static int header_version(const uint8_t *p, struct vmdk_header *h,
                          struct rhea_error *err)
{
    uint64_t version = load_le64(p + SESPARSE_H_VERSION);
    uint64_t unknown = load_le64(p + SESPARSE_H_FLAGS);
    uint64_t first = load_le64(p + SESPARSE_H_RESERVED);
    for (unsigned i = 1; i < 4; i++)
        unknown |= load_le64(p + SESPARSE_H_RESERVED + 8 * i);
    if (version >> 32 != SESPARSE_VERSION_MAJOR)
        return rhea_error_set(err, ENOTSUP,
                              "the extent's format (SESparse) has version "
                              "%" PRIu64 ".%" PRIu64 "; known is 2.1",
                              version >> 32, version & UINT32_MAX);
    if (unknown || (first && first != SESPARSE_RESERVED_SEEN))
        return rhea_error_set(err, ENOTSUP,
                              "the extent (SESparse) uses features that this "
                              "program does not know");
    h->version = (uint32_t)version;
    h->unknown = first || h->version != SESPARSE_VERSION_MINOR;
    return 0;
}

/* Sizes in sectors, and what follows from them. */
static int header_sizes(const uint8_t *p, struct vmdk_header *h,
                        struct rhea_error *err)
{
    uint64_t table;
    if (!vmdk_header_bytes(load_le64(p + SESPARSE_H_CAPACITY), &h->capacity) ||
        !vmdk_header_bytes(load_le64(p + SESPARSE_H_GRAIN_SIZE),
                           &h->grain_size) ||
        !vmdk_header_bytes(load_le64(p + SESPARSE_H_TABLE_SIZE), &table) ||
        table / h->entry_size > VMDK_TABLE_ENTRIES_MAX)
        return vmdk_header_bad(err, "a size in sectors",
                               load_le64(p + SESPARSE_H_CAPACITY));
    h->table_entries = (uint32_t)(table / h->entry_size);
    return vmdk_header_check_sizes(h, err);
}

/* The areas, <offset : size>. Those that a reader needs begin in the file. */
static int header_parts(const uint8_t *p, uint64_t file_size,
                        struct vmdk_header *h, struct rhea_error *err)
{
    static const char *const needed[SESPARSE_PARTS] = {
        [PART_VOLATILE] = "its second header's sector",
        [PART_DIRECTORY] = "the grain directory's sector",
        [PART_TABLES] = "the grain tables' sector",
        [PART_GRAINS] = "the grains' sector",
    };
    for (unsigned i = 0; i < SESPARSE_PARTS; i++) {
        const uint8_t *area = p + SESPARSE_H_PARTS + 16 * (size_t)i;
        struct vmdk_area *part = &h->parts[i];
        bool good = vmdk_header_bytes(load_le64(area), &part->at) &&
                    vmdk_header_bytes(load_le64(area + 8), &part->size) &&
                    part->at <= file_size;
        if (!good && needed[i])
            return vmdk_header_bad(err, needed[i], load_le64(area));
        if (!good)
            *part = (struct vmdk_area){0};
    }
    return 0;
}

static int header_volatile(struct rhea_storage *file, struct vmdk_header *h,
                           struct rhea_error *err)
{
    uint8_t sector[VMDK_SECTOR];
    int ret = rhea_storage_read(file, sector, sizeof(sector),
                                h->parts[PART_VOLATILE].at, err);
    if (ret)
        return ret;
    if (load_le64(sector + SESPARSE_V_MAGIC) != SESPARSE_VOLATILE_MAGIC)
        return vmdk_header_bad(err, "its second header's mark",
                               load_le64(sector + SESPARSE_V_MAGIC));
    h->free_table = load_le64(sector + SESPARSE_V_FREE_TABLE);
    h->journal = load_le64(sector + SESPARSE_V_REPLAY);
    return 0;
}

int sesparse_header(struct rhea_storage *file, uint64_t file_size,
                    const uint8_t *p, struct vmdk_header *h,
                    struct rhea_error *err)
{
    *h = (struct vmdk_header){
        .kind = VMDK_SESPARSE,
        .entry_size = sizeof(uint64_t),
    };
    int ret = header_version(p, h, err);
    if (!ret)
        ret = header_sizes(p, h, err);
    if (!ret)
        ret = header_parts(p, file_size, h, err);
    if (ret)
        return ret;
    const struct vmdk_area *directory = &h->parts[PART_DIRECTORY];
    h->directory = directory->at;
    h->overhead = h->parts[PART_GRAINS].at;
    if (directory->size / h->entry_size < h->n_tables ||
        !vmdk_header_directory_fits(h, h->directory, file_size))
        return vmdk_header_bad(err, "the grain directory's size",
                               directory->size);
    return header_volatile(file, h, err);
}

/* In front of the grains, or where growing was cut short behind them. */
static bool header_part_outside(const struct vmdk_header *h,
                                const struct vmdk_area *a)
{
    const struct vmdk_area *grains = &h->parts[PART_GRAINS];
    uint64_t end, behind;
    if (a->at < VMDK_SECTOR || !a->size ||
        !add_u64(grains->at, grains->size, &behind) ||
        !add_u64(a->at, a->size, &end) || end > INT64_MAX)
        return false;
    return end <= grains->at || (grains->size && a->at >= behind);
}

/* Whether nothing is in two places. */
static bool header_parts_apart(const struct vmdk_header *h)
{
    for (unsigned i = 0; i < PART_GRAINS; i++) {
        const struct vmdk_area *a = &h->parts[i];
        if (!header_part_outside(h, a))
            return false;
        for (unsigned j = 0; j < i; j++) {
            const struct vmdk_area *b = &h->parts[j];
            if (a->at < b->at + b->size && b->at < a->at + a->size)
                return false;
        }
    }
    return true;
}

const char *sesparse_why_not(const struct vmdk_header *h)
{
    uint64_t grains = div_up(h->capacity, h->grain_size);
    if (h->journal)
        return "its journal has to be replayed, whose form is not public";
    if (h->unknown)
        return "its SESparse extent is of a version, or has a mark, of which "
               "nothing is known";
    if (h->grain_size != SESPARSE_GRAIN_BYTES ||
        h->table_entries != SESPARSE_TABLE_ENTRIES ||
        h->capacity > SESPARSE_SIZE_MAX)
        return "its SESparse extent has sizes that ESXi does not make";
    if (!header_parts_apart(h) ||
        h->parts[PART_TABLES].size / SESPARSE_TABLE_BYTES < h->n_tables ||
        h->parts[PART_BITMAP].size < div_up(grains, 8) ||
        h->parts[PART_BACK_MAP].size / sizeof(uint64_t) < grains)
        return "the parts of its SESparse extent are too small, or not apart";
    return NULL;
}

int sesparse_set_free(struct vmdk_extent *x, uint64_t table,
                      struct rhea_error *err)
{
    uint8_t sector[VMDK_SECTOR];
    uint64_t at = x->h.parts[PART_VOLATILE].at;
    int ret = rhea_storage_read(x->file, sector, sizeof(sector), at, err);
    if (ret)
        return ret;
    store_le64(sector + SESPARSE_V_FREE_TABLE, table);
    ret = rhea_storage_write(x->file, sector, sizeof(sector), at, err);
    if (!ret)
        x->h.free_table = table;
    return ret;
}
