/* SPDX-License-Identifier: MIT */
/* VMDKs in memory, with grains and tables so small that few bytes have many of
 * them. */
#ifndef VMDK_LIB_H
#define VMDK_LIB_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format/vmdk/header.h"
#include "format/vmdk/sesparse.h"
#include "format/vmdk/vmdk.h"
#include "lib/test.h"
#include "storage/memory.h"

enum {
    VMDK_TEST_GRAIN = 8,    /* sectors */
    VMDK_TEST_ENTRIES = 16, /* of a table */
    VMDK_TEST_TEXT = 4,     /* sectors of a descriptor inside */
};

struct vmdk_shape {
    enum vmdk_kind kind;
    bool parent, zero_grains;
    bool tables;    /* all are there from the start, in both copies */
    bool long_text; /* the descriptor has more than one sector */
};

static inline void vmdk_put(struct rhea_storage *s, const void *buf, size_t len,
                            uint64_t offset)
{
    struct rhea_error e;
    if (!CHECK_OK(rhea_storage_write(s, buf, len, offset, &e), &e))
        exit(99);
}

static inline struct rhea_storage *vmdk_memory(void)
{
    struct rhea_error e;
    struct rhea_storage *s;
    if (!CHECK_OK(rhea_memory_open(&s, INT64_MAX, &e), &e))
        exit(99);
    return s;
}

static inline void vmdk_put_text(struct rhea_storage *s, uint64_t offset,
                                 uint64_t size, const struct vmdk_shape *shape)
{
    char text[1100], comment[700] = "";
    static const char *const kinds[][2] = {
        [VMDK_FLAT] = {"monolithicFlat", "FLAT"},
        [VMDK_HOSTED] = {"monolithicSparse", "SPARSE"},
        [VMDK_COWD] = {"vmfsSparse", "VMFSSPARSE"},
        [VMDK_SESPARSE] = {"seSparse", "SESPARSE"},
    };
    if (shape->long_text) {
        memset(comment, '#', sizeof(comment) - 2);
        comment[sizeof(comment) - 2] = '\n';
    }
    int n = snprintf(
        text, sizeof(text),
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=%s\n"
        "createType=\"%s\"\n%s\n# Extent description\nRW %" PRIu64
        " %s \"extent\"\n\n%s#DDB\nddb.geometry.cylinders = \"1\"\n"
        "ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n"
        "ddb.adapterType = \"ide\"\n",
        shape->parent ? "87654321" : "ffffffff", kinds[shape->kind][0],
        shape->parent ? "parentFileNameHint=\"base.vmdk\"\n" : "",
        size / VMDK_SECTOR, kinds[shape->kind][1], comment);
    vmdk_put(s, text, (size_t)n, offset);
}

/* A directory at sector AT whose tables follow it, a sector each. */
static inline void vmdk_put_directory(struct rhea_storage *s, uint64_t at,
                                      uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint8_t entry[4];
        store_le32(entry, (uint32_t)(at + 1 + i));
        vmdk_put(s, entry, sizeof(entry), at * VMDK_SECTOR + 4 * i);
    }
}

static inline struct rhea_storage *
vmdk_make_hosted(uint64_t size, const struct vmdk_shape *shape)
{
    struct rhea_error e;
    uint8_t p[VMDK_SECTOR] = {0};
    struct rhea_storage *s = vmdk_memory();
    uint64_t n =
        div_up(size / VMDK_SECTOR, VMDK_TEST_GRAIN * VMDK_TEST_ENTRIES);
    uint64_t copy = shape->tables ? 1 + n : 1, first = 1 + VMDK_TEST_TEXT;
    uint64_t overhead = align_up(first + 2 * copy, VMDK_TEST_GRAIN);
    store_le32(p + HOSTED_H_MAGIC, HOSTED_MAGIC);
    store_le32(p + HOSTED_H_VERSION, shape->zero_grains ? 2 : 1);
    store_le32(p + HOSTED_H_FLAGS,
               HOSTED_F_NEWLINES | HOSTED_F_REDUNDANT |
                   (shape->zero_grains ? HOSTED_F_ZERO_GRAINS : 0));
    store_le64(p + HOSTED_H_CAPACITY, size / VMDK_SECTOR);
    store_le64(p + HOSTED_H_GRAIN_SIZE, VMDK_TEST_GRAIN);
    store_le64(p + HOSTED_H_DESCRIPTOR, 1);
    store_le64(p + HOSTED_H_DESCRIPTOR_SIZE, VMDK_TEST_TEXT);
    store_le32(p + HOSTED_H_TABLE_ENTRIES, VMDK_TEST_ENTRIES);
    store_le64(p + HOSTED_H_REDUNDANT, first);
    store_le64(p + HOSTED_H_DIRECTORY, first + copy);
    store_le64(p + HOSTED_H_OVERHEAD, overhead);
    memcpy(p + HOSTED_H_NEWLINES, HOSTED_NEWLINES, 4);
    vmdk_put(s, p, sizeof(p), 0);
    vmdk_put_text(s, VMDK_SECTOR, size, shape);
    CHECK_OK(rhea_storage_truncate(s, overhead * VMDK_SECTOR, &e), &e);
    if (shape->tables) {
        vmdk_put_directory(s, first, n);
        vmdk_put_directory(s, first + copy, n);
    }
    return s;
}

/* The extent alone; its descriptor is vmdk_put_text's. */
static inline struct rhea_storage *vmdk_make_cowd(uint64_t size)
{
    struct rhea_error e;
    uint8_t p[COWD_HEADER_BYTES] = {0};
    struct rhea_storage *s = vmdk_memory();
    store_le32(p + COWD_H_MAGIC, COWD_MAGIC);
    store_le32(p + COWD_H_VERSION, 1);
    store_le32(p + COWD_H_FLAGS, COWD_FLAGS);
    store_le32(p + COWD_H_CAPACITY, (uint32_t)(size / VMDK_SECTOR));
    store_le32(p + COWD_H_GRAIN_SIZE, 1);
    store_le32(p + COWD_H_DIRECTORY, 4);
    store_le32(p + COWD_H_N_TABLES,
               (uint32_t)div_up(size / VMDK_SECTOR, VMDK_COWD_TABLE_ENTRIES));
    store_le32(p + COWD_H_FREE_SECTOR, 5);
    vmdk_put(s, p, sizeof(p), 0);
    CHECK_OK(rhea_storage_truncate(s, 5 * VMDK_SECTOR, &e), &e);
    return s;
}

static inline void vmdk_put_number(struct rhea_storage *s, uint64_t value,
                                   uint64_t offset)
{
    uint8_t p[8];
    store_le64(p, value);
    vmdk_put(s, p, sizeof(p), offset);
}

/* How an SESparse extent is before the test. */
enum vmdk_test_back {
    VMDK_TEST_EMPTY,
    VMDK_TEST_PLACE,
    VMDK_TEST_INDEX,
    VMDK_TEST_FULL, /* as EMPTY, and the file has nearly all that it may */
};
enum { VMDK_TEST_PLACES = 100, VMDK_TEST_ROOM = 6 /* behind the file */ };

/* The one grain that it has where BACK is not EMPTY: entry 2000 of grain table
 * 2, which is the first one of the file, so that the back map shows by what it
 * numbers tables. */
static inline void vmdk_put_sesparse_grain(struct rhea_storage *s,
                                           const struct vmdk_area *parts,
                                           enum vmdk_test_back back)
{
    const uint64_t index = 2, entry = 2000;
    uint64_t owner = (back == VMDK_TEST_INDEX ? index : 0) * 4096 + entry;
    vmdk_put_number(s, 1, VMDK_SECTOR + SESPARSE_V_FREE_TABLE);
    vmdk_put_number(s, sesparse_entry(SESPARSE_UNMAPPED, 0),
                    parts[PART_DIRECTORY].at * VMDK_SECTOR + index * 8);
    vmdk_put_number(s, sesparse_entry(SESPARSE_GRAIN, 0),
                    parts[PART_TABLES].at * VMDK_SECTOR + entry * 8);
    vmdk_put_number(s, 1, parts[PART_BITMAP].at * VMDK_SECTOR);
    vmdk_put_number(s, sesparse_entry(SESPARSE_UNMAPPED, owner),
                    parts[PART_BACK_MAP].at * VMDK_SECTOR);
    vmdk_put_number(s, 77, parts[PART_GRAINS].at * VMDK_SECTOR);
}

/* An extent as ESXi makes it, of SIZE bytes, with its areas closer together,
 * and a journal of what is in its place. The descriptor is vmdk_put_text's. */
static inline struct rhea_storage *vmdk_make_sesparse(uint64_t size,
                                                      enum vmdk_test_back back)
{
    struct rhea_error e;
    struct rhea_storage *s = vmdk_memory();
    uint64_t grains = div_up(size, 4096), tables = div_up(grains, 4096);
    struct vmdk_area parts[SESPARSE_PARTS] = {
        [PART_VOLATILE].size = 1,
        [PART_JOURNAL_HEADER].size = 2,
        [PART_JOURNAL].size = 4,
        [PART_DIRECTORY].size = div_up(tables * 8, VMDK_SECTOR),
        [PART_TABLES].size = tables * 64,
        [PART_BITMAP].size = div_up(grains, (uint64_t)8 * VMDK_SECTOR),
        [PART_BACK_MAP].size = align_up(div_up(grains * 8, VMDK_SECTOR), 8),
        [PART_GRAINS].size = grains * 8,
    };
    uint64_t at = 1;
    if (back == VMDK_TEST_FULL)
        parts[PART_GRAINS].size = (uint64_t)VMDK_TEST_PLACES * 8;
    vmdk_put_number(s, SESPARSE_MAGIC, 0);
    vmdk_put_number(s, (uint64_t)2 << 32 | 1, SESPARSE_H_VERSION);
    vmdk_put_number(s, size / VMDK_SECTOR, SESPARSE_H_CAPACITY);
    vmdk_put_number(s, 8, SESPARSE_H_GRAIN_SIZE);
    vmdk_put_number(s, 64, SESPARSE_H_TABLE_SIZE);
    for (unsigned i = 0; i < SESPARSE_PARTS; i++) {
        parts[i].at = at;
        vmdk_put_number(s, at, SESPARSE_H_PARTS + 16 * i);
        vmdk_put_number(s, parts[i].size, SESPARSE_H_PARTS + 16 * i + 8);
        at += parts[i].size;
    }
    vmdk_put_number(s, SESPARSE_VOLATILE_MAGIC, VMDK_SECTOR);
    vmdk_put_number(s, SESPARSE_JOURNAL_MAGIC,
                    parts[PART_JOURNAL_HEADER].at * VMDK_SECTOR);
    vmdk_put_number(s, 0xc0ffee, parts[PART_JOURNAL].at * VMDK_SECTOR);
    CHECK_OK(rhea_storage_truncate(s, parts[PART_GRAINS].at * VMDK_SECTOR, &e),
             &e);
    if (back == VMDK_TEST_FULL) {
        uint64_t end = parts[PART_GRAINS].at * VMDK_SECTOR +
                       (VMDK_TEST_PLACES - VMDK_TEST_ROOM) * 4096;
        static char junk[60 << 10];
        memset(junk, 'j', sizeof(junk));
        vmdk_put(s, junk, sizeof(junk), parts[PART_GRAINS].at * VMDK_SECTOR);
        CHECK_OK(rhea_storage_truncate(s, end, &e), &e);
    } else if (back != VMDK_TEST_EMPTY) {
        vmdk_put_sesparse_grain(s, parts, back);
        CHECK_OK(rhea_storage_truncate(
                     s, parts[PART_GRAINS].at * VMDK_SECTOR + 4096, &e),
                 &e);
    }
    return s;
}

#endif
