/* SPDX-License-Identifier: MIT */
/*
 * Where things stand in a VHDX file: [MS-VHDX], whose sections are named. All
 * integers are little endian, all offsets and lengths bytes unless they say
 * otherwise. Every structure but the headers begins at a multiple of 1 MiB.
 */
#ifndef RHEA_FORMAT_VHDX_LAYOUT_H
#define RHEA_FORMAT_VHDX_LAYOUT_H

#define VHDX_MIB (1u << 20)
#define VHDX_MAX_SIZE (UINT64_C(64) << 40) /* 2.6.2.2 */

/* The header section (2.2), 1 MiB. */
enum {
    VHDX_SECTION_END = 1 << 20,
    VHDX_CREATOR = 8,
    VHDX_CREATOR_BYTES = 512,
    VHDX_HEADER_1 = 64 << 10,
    VHDX_HEADER_2 = 128 << 10,
    VHDX_HEADER_BYTES = 4 << 10,
    VHDX_REGIONS_1 = 192 << 10,
    VHDX_REGIONS_2 = 256 << 10,
    VHDX_REGIONS_BYTES = 64 << 10,
};
#define VHDX_SIGNATURE UINT64_C(0x656c696678646876) /* "vhdxfile" */
#define VHDX_H_SIGNATURE 0x64616568u                /* "head" */
#define VHDX_R_SIGNATURE 0x69676572u                /* "regi" */

/* Each of the two headers (2.2.2). */
enum {
    VHDX_H_CHECKSUM = 4,
    VHDX_H_SEQUENCE = 8,
    VHDX_H_FILE_WRITE = 16,
    VHDX_H_DATA_WRITE = 32,
    VHDX_H_LOG_GUID = 48,
    VHDX_H_LOG_VERSION = 64,
    VHDX_H_VERSION = 66,
    VHDX_H_LOG_LENGTH = 68,
    VHDX_H_LOG_OFFSET = 72,
};

/* Each copy of the region table (2.2.3): a head, then entries. */
enum {
    VHDX_R_CHECKSUM = 4,
    VHDX_R_COUNT = 8,
    VHDX_R_ENTRIES = 16,
    VHDX_R_MAX = 2047,
    VHDX_RE_GUID = 0,
    VHDX_RE_OFFSET = 16,
    VHDX_RE_LENGTH = 24,
    VHDX_RE_REQUIRED = 28,
    VHDX_RE_BYTES = 32,
};

/* The metadata table (2.6.1), 64 KiB: a head, then entries; offsets count from
 * the region's beginning. */
enum {
    VHDX_M_COUNT = 10,
    VHDX_M_ENTRIES = 32,
    VHDX_M_MAX = 2047,
    VHDX_M_TABLE_BYTES = 64 << 10,
    VHDX_ME_GUID = 0,
    VHDX_ME_OFFSET = 16,
    VHDX_ME_LENGTH = 20,
    VHDX_ME_FLAGS = 24,
    VHDX_ME_BYTES = 32,
    VHDX_ITEM_MAX = 1 << 20,
};
#define VHDX_M_SIGNATURE UINT64_C(0x617461646174656d) /* "metadata" */
enum {
    VHDX_ME_USER = 1,
    VHDX_ME_VIRTUAL_DISK = 2,
    VHDX_ME_REQUIRED = 4,
};

/* File parameters (2.6.2.1). */
enum {
    VHDX_P_BLOCK_SIZE = 0,
    VHDX_P_FLAGS = 4,
    VHDX_P_BYTES = 8,
    VHDX_P_FIXED = 1, /* "LeaveBlockAllocated" */
    VHDX_P_PARENT = 2,
    VHDX_BLOCK_MIN = 1 << 20,
    VHDX_BLOCK_MAX = 256 << 20,
};

/* The parent locator (2.6.2.6): a head, then entries; offsets count from its
 * beginning. */
enum {
    VHDX_L_TYPE = 0,
    VHDX_L_COUNT = 18,
    VHDX_L_ENTRIES = 20,
    VHDX_LE_KEY = 0,
    VHDX_LE_VALUE = 4,
    VHDX_LE_KEY_LENGTH = 8,
    VHDX_LE_VALUE_LENGTH = 10,
    VHDX_LE_BYTES = 12,
};

/* An entry of the block allocation table (2.5.1): a state and an offset. */
#define VHDX_BAT_STATE UINT64_C(7)
#define VHDX_BAT_OFFSET UINT64_C(0xfffffffffff00000)
enum {
    VHDX_NOT_PRESENT = 0, /* the parent shows through */
    VHDX_UNDEFINED = 1,
    VHDX_ZERO = 2,
    VHDX_UNMAPPED = 3,
    VHDX_UNMAPPED_OLD = 5, /* of version 0.95 of the description */
    VHDX_FULLY_PRESENT = 6,
    VHDX_PARTIALLY_PRESENT = 7, /* a sector bitmap says which sectors are */
};
/* A sector bitmap block (2.4) is 1 MiB and has a bit for each of these. */
#define VHDX_BITMAP_BYTES VHDX_MIB
#define VHDX_BITMAP_SECTORS (UINT64_C(1) << 23)

#define VHDX_E_SIGNATURE 0x65676f6cu /* "loge" */
#define VHDX_D_DATA 0x63736564u      /* "desc" */
#define VHDX_D_ZERO 0x6f72657au      /* "zero" */
#define VHDX_S_SIGNATURE 0x61746164u /* "data" */
/* The log (2.3), a ring of sectors; an entry's head and its descriptors, then
 * its data sectors. */
enum {
    VHDX_LOG_SECTOR = 4 << 10,
    VHDX_LOG_MIN = 1 << 20,
    VHDX_E_CHECKSUM = 4,
    VHDX_E_LENGTH = 8,
    VHDX_E_TAIL = 12,
    VHDX_E_SEQUENCE = 16,
    VHDX_E_COUNT = 24,
    VHDX_E_GUID = 32,
    VHDX_E_FLUSHED = 48,
    VHDX_E_LAST = 56,
    VHDX_LOG_HEAD = 64,
    VHDX_DESC_BYTES = 32,
    VHDX_D_TRAILING = 4,
    VHDX_D_LEADING = 8,     /* of a data descriptor */
    VHDX_D_ZERO_LENGTH = 8, /* of a zero descriptor */
    VHDX_D_OFFSET = 16,
    VHDX_D_SEQUENCE = 24,
    VHDX_S_SEQUENCE_HIGH = 4,
    VHDX_S_DATA = 8,
    VHDX_S_SEQUENCE_LOW = 4092,
};

#endif
