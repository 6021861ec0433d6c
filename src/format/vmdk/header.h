/* SPDX-License-Identifier: MIT */
/* Where the fields of the headers of sparse extents stand. */
#ifndef RHEA_FORMAT_VMDK_HEADER_H
#define RHEA_FORMAT_VMDK_HEADER_H

#include <stdbool.h>
#include <stdint.h>

/* "Hosted Sparse Extent Header": "KDMV", little endian, packed. */
#define HOSTED_MAGIC 0x564d444bu
enum {
    HOSTED_H_MAGIC = 0,
    HOSTED_H_VERSION = 4,
    HOSTED_H_FLAGS = 8,
    HOSTED_H_CAPACITY = 12,
    HOSTED_H_GRAIN_SIZE = 20,
    HOSTED_H_DESCRIPTOR = 28,
    HOSTED_H_DESCRIPTOR_SIZE = 36,
    HOSTED_H_TABLE_ENTRIES = 44,
    HOSTED_H_REDUNDANT = 48,
    HOSTED_H_DIRECTORY = 56,
    HOSTED_H_OVERHEAD = 64,
    HOSTED_H_UNCLEAN = 72,
    HOSTED_H_NEWLINES = 73,
    HOSTED_H_COMPRESSION = 77,
    HOSTED_HEADER_BYTES = 512,
};
#define HOSTED_NEWLINES "\n \r\n"
/* Those from bit 16 on a reader has to know. */
#define HOSTED_F_MUST_KNOW 0xffff0000u
#define HOSTED_AT_END UINT64_MAX /* the directory's place is in a footer */
enum {
    HOSTED_F_NEWLINES = 1 << 0,
    HOSTED_F_REDUNDANT = 1 << 1,
    HOSTED_F_ZERO_GRAINS = 1 << 2,
    HOSTED_F_COMPRESSED = 1 << 16,
    HOSTED_F_MARKERS = 1 << 17,
    HOSTED_DEFLATE = 1,
};

/* "Stream-Optimized Compressed": a marker is a sector. */
enum {
    MARKER_SECTORS = 0, /* 64 bits: of what follows; of a grain, its number of
                           the guest's first sector */
    MARKER_SIZE = 8,    /* 32 bits: of a compressed grain, else 0 */
    MARKER_TYPE = 12,
    MARKER_GRAIN_BYTES = 12, /* in front of compressed data */
    MARKER_END = 0,
    MARKER_TABLE = 1,
    MARKER_DIRECTORY = 2,
    MARKER_FOOTER = 3,
};

/* "ESXi Host Sparse Extents": "COWD". */
#define COWD_MAGIC 0x44574f43u
enum {
    COWD_H_MAGIC = 0,
    COWD_H_VERSION = 4,
    COWD_H_FLAGS = 8,
    COWD_H_CAPACITY = 12,
    COWD_H_GRAIN_SIZE = 16,
    COWD_H_DIRECTORY = 20,
    COWD_H_N_TABLES = 24,
    COWD_H_FREE_SECTOR = 28,
    COWD_H_CYLINDERS = 32,
    COWD_H_HEADS = 36,
    COWD_H_SECTORS = 40,
    COWD_H_UNCLEAN = 1648,
    COWD_HEADER_BYTES = 2048,
    COWD_FLAGS = 3, /* always */
};

/* SESparse has no public description; this is what QEMU's block/vmdk.c and the
 * log of ESXi call its fields. All are 64 bits; areas are <offset : size> in
 * sectors. */
#define SESPARSE_MAGIC 0xcafebabeu
#define SESPARSE_VOLATILE_MAGIC 0xcafecafeu
#define SESPARSE_JOURNAL_MAGIC 0xdeafc0deu
enum {
    SESPARSE_H_MAGIC = 0,
    SESPARSE_H_VERSION = 8, /* major in the upper half */
    SESPARSE_H_CAPACITY = 16,
    SESPARSE_H_GRAIN_SIZE = 24,
    SESPARSE_H_TABLE_SIZE = 32,
    SESPARSE_H_FLAGS = 40,
    SESPARSE_H_RESERVED = 48, /* four of them */
    SESPARSE_H_PARTS = 80,    /* in the order of enum sesparse_part */
    SESPARSE_HEADER_BYTES = 512,
    SESPARSE_VERSION_MAJOR = 2,
    SESPARSE_VERSION_MINOR = 1,
    /* Some images have this in the first of them, and read as all others. */
    SESPARSE_RESERVED_SEEN = 0x200,
};
/* Of the volatile header. */
enum {
    SESPARSE_V_MAGIC = 0,
    SESPARSE_V_FREE_TABLE = 8, /* the number of the next one */
    SESPARSE_V_TRANSACTION = 16,
    SESPARSE_V_REPLAY = 24,
};
/* Of the journal's header, as far as the one image shows it that is public. */
enum {
    SESPARSE_J_MAGIC = 0,
    SESPARSE_J_TRANSACTION = 8, /* that of the volatile header */
    SESPARSE_J_ONE = 16,        /* always 1 */
};

/* --- header.c, for the files that parse headers --- */
struct vmdk_header;
struct rhea_error;
/* A number of sectors as bytes; false: more than any file has. */
bool vmdk_header_bytes(uint64_t sectors, uint64_t *bytes);
int vmdk_header_bad(struct rhea_error *err, const char *what, uint64_t value);
/* What all kinds have; sizes are set. */
int vmdk_header_check_sizes(struct vmdk_header *h, struct rhea_error *err);
bool vmdk_header_directory_fits(const struct vmdk_header *h, uint64_t at,
                                uint64_t file_size);
/* Whether the directory AT, 0: there is none, has byte OFFSET of the file. */
bool vmdk_header_in_directory(const struct vmdk_header *h, uint64_t at,
                              uint64_t offset);

#endif
