/* SPDX-License-Identifier: MIT */
/*
 * What the files of the QCOW driver (version 1) share. See qcow1.c for the
 * format.
 *
 * Locking: blocks.lock guards the cache of tables and the header's fields that
 * can change. It is never held over guest data.
 */
#ifndef RHEA_FORMAT_QCOW1_H
#define RHEA_FORMAT_QCOW1_H

#include <rhea/format.h>

#include "format/blocks.h"
#include "format/deflate.h"
#include "format/sector_crypt.h"
#include "format/table.h"

#define QCOW1_MAGIC 0x514649fbu /* "QFI\xfb", big endian */

enum {
    QCOW1_SECTOR = 512,
    QCOW1_MIN_CLUSTER_BITS = 9,
    QCOW1_MAX_CLUSTER_BITS = 16,
    /* Entries of an L2 table: 512 bytes to 64 KiB. */
    QCOW1_MIN_L2_BITS = 6,
    QCOW1_MAX_L2_BITS = 13,
    QCOW1_BACKING_NAME_MAX = 1023,
    QCOW1_ENTRY = sizeof(uint64_t),
};

/* Byte offsets of the header's fields. */
enum {
    QCOW1_H_MAGIC = 0,
    QCOW1_H_VERSION = 4,
    QCOW1_H_BACKING_OFFSET = 8,
    QCOW1_H_BACKING_SIZE = 16,
    QCOW1_H_MTIME = 20,
    QCOW1_H_SIZE = 24,
    QCOW1_H_CLUSTER_BITS = 32,
    QCOW1_H_L2_BITS = 33,
    QCOW1_H_CRYPT = 36,
    QCOW1_H_L1_OFFSET = 40,
    QCOW1_HEADER = 48,
};

#define QCOW1_COMPRESSED (UINT64_C(1) << 63)

struct qcow1 {
    struct rhea_format base;
    unsigned cluster_bits, l2_bits;
    uint32_t cluster_size;
    uint32_t crypt_method; /* 0, 1: AES */
    uint32_t mtime;
    uint64_t l2_bytes;
    uint64_t l1_offset, l1_size; /* in the file; entries */
    uint64_t backing_offset;
    uint32_t backing_length; /* by the header; what is behind a NUL counts */
    char *backing_file;      /* NULL: none */
    uint64_t file_size;      /* when it was opened */
    bool repairable;         /* the file is open for writing */

    struct table tables;
    struct blocks blocks;
    struct sector_crypt crypt;
    struct crypto_cipher *aes; /* NULL: not encrypted, or locked */
    struct deflate_pool deflate;
};

extern const struct rhea_format_ops rhea_format_qcow;

static inline struct qcow1 *qcow1_of(struct rhea_format *f)
{
    return (struct qcow1 *)f;
}

static inline uint64_t qcow1_l1_entries(const struct qcow1 *q, uint64_t size)
{
    unsigned shift = q->cluster_bits + q->l2_bits;
    return (size >> shift) + ((size & ((UINT64_C(1) << shift) - 1)) != 0);
}

static inline uint64_t qcow1_l1_end(const struct qcow1 *q)
{
    return q->l1_offset + q->l1_size * QCOW1_ENTRY;
}

/* Where the file ends, as far as clusters may lie. */
static inline uint64_t qcow1_file_end(const struct qcow1 *q)
{
    return q->blocks.file_end > q->file_size ? q->blocks.file_end
                                             : q->file_size;
}

/* Where a compressed cluster is stored. */
struct qcow1_packed {
    uint64_t host, length;
};
struct qcow1_packed qcow1_unpack(const struct qcow1 *q, uint64_t entry);
/* Whether an entry that is not 0 makes sense. */
bool qcow1_entry_valid(const struct qcow1 *q, uint64_t cluster, uint64_t entry);

/* --- qcow1_table.c; with the lock held --- */

int qcow1_table_init(struct qcow1 *q, struct rhea_error *err);
/* The L1 table's entry for a cluster, whatever it says; and whether a table can
 * be there. */
int qcow1_l1_raw(struct qcow1 *q, uint64_t cluster, uint64_t *table,
                 struct rhea_error *err);
bool qcow1_table_valid(const struct qcow1 *q, uint64_t table);
int qcow1_l1_get(struct qcow1 *q, uint64_t cluster, uint64_t *table,
                 struct rhea_error *err);
int qcow1_l1_set(struct qcow1 *q, uint64_t cluster, uint64_t table,
                 struct rhea_error *err);
/* Set COUNT entries from CLUSTER on, of one table that is there: to ENTRY, and
 * from there on by STEP. */
int qcow1_l2_set(struct qcow1 *q, uint64_t cluster, uint64_t count,
                 uint64_t entry, uint64_t step, struct rhea_error *err);
/* The entry of one cluster. */
int qcow1_entry_get(struct qcow1 *q, uint64_t cluster, uint64_t *entry,
                    struct rhea_error *err);
/* How many clusters from CLUSTER on are in its table. */
uint64_t qcow1_table_left(const struct qcow1 *q, uint64_t cluster);
int qcow1_map_locked(struct blocks *b, uint64_t offset, uint64_t len,
                     struct rhea_extent *extent, struct rhea_error *err);

/* --- qcow1_data.c --- */

int qcow1_read(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
               struct rhea_error *err);
int qcow1_write_compressed(struct rhea_format *f, uint64_t offset,
                           const void *buf, size_t len, struct rhea_error *err);

/* --- qcow1_write.c --- */

extern const struct blocks_ops qcow1_blocks_ops, qcow1_crypt_blocks_ops;
/* See to it that the clusters from CLUSTER on, as far as one table goes, have
 * it. */
int qcow1_need_table(struct qcow1 *q, uint64_t cluster, struct rhea_error *err);

/* --- qcow1_check.c, qcow1_create.c, qcow1_change.c --- */

int qcow1_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                struct rhea_error *err);
/* With the lock held, nothing dirty: of what nobody uses, the end of the file
 * is cut off, and the rest becomes holes, where the file system can. Where the
 * image is damaged, nothing is done. */
int qcow1_give_back(struct qcow1 *q, struct rhea_error *err);
extern const struct rhea_option_help qcow1_create_options[];
int qcow1_create(struct rhea_storage *storage, const struct rhea_create *how,
                 struct rhea_error *err);
int qcow1_measure(const struct rhea_measure *what, struct rhea_measured *out,
                  struct rhea_error *err);
int qcow1_set_backing(struct rhea_format *f, const char *file,
                      const char *format, struct rhea_format *parent,
                      struct rhea_error *err);
int qcow1_resize(struct rhea_format *f, const struct rhea_resize *how,
                 struct rhea_error *err);
int qcow1_make_empty(struct rhea_format *f, struct rhea_error *err);

#endif
