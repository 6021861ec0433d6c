/* SPDX-License-Identifier: MIT */
/*
 * What the QED driver's files share. See qed.c for the format.
 *
 * Locking: blocks.lock guards the tables and FEATURES. It is held over table
 * I/O and flushes, never over guest data.
 */
#ifndef RHEA_FORMAT_QED_H
#define RHEA_FORMAT_QED_H

#include <rhea/format.h>

#include "format/blocks.h"
#include "format/table.h"

#define QED_MAGIC 0x00444551u /* "QED\0", little endian */

enum {
    QED_MIN_CLUSTER = 4 << 10,
    QED_MAX_CLUSTER = 64 << 20,
    QED_DEFAULT_CLUSTER = 64 << 10,
    QED_MAX_TABLE = 16,
    QED_DEFAULT_TABLE = 4,
    /* What QEMU takes; longer names are read but not written. */
    QED_BACKING_NAME_MAX = 1023,
};

/* Byte offsets of the header's fields. */
enum {
    QED_H_MAGIC = 0,
    QED_H_CLUSTER_SIZE = 4,
    QED_H_TABLE_SIZE = 8,
    QED_H_HEADER_SIZE = 12,
    QED_H_FEATURES = 16,
    QED_H_COMPAT = 24,
    QED_H_AUTOCLEAR = 32,
    QED_H_L1_OFFSET = 40,
    QED_H_IMAGE_SIZE = 48,
    QED_H_BACKING_OFFSET = 56,
    QED_H_BACKING_SIZE = 60,
    QED_HEADER_LENGTH = 64,
};

/* Bits of the header's features. */
enum {
    QED_F_BACKING_FILE = 1,
    QED_F_NEED_CHECK = 2,
    QED_F_NO_PROBE = 4,
    QED_F_KNOWN = 7,
};

/* Entries of L2 tables that are not offsets. */
enum { QED_UNALLOCATED = 0, QED_ZERO = 1 };

/* Tables reach 1 GiB, so they are read and written in pages, of which at most
 * CACHE_BYTES are kept: with the default geometry they map 64 GiB. */
enum { QED_PAGE_MAX = 64 << 10, QED_CACHE_BYTES = 8 << 20 };

struct qed {
    struct rhea_format base;

    uint32_t cluster_size;
    unsigned cluster_bits;
    unsigned entry_bits; /* a table has 1 << entry_bits entries */
    uint64_t table_bytes;
    uint64_t header_bytes; /* of all header clusters */
    uint64_t features, compat, autoclear;
    uint64_t l1_offset;
    uint64_t backing_offset;
    char *backing_file; /* NULL: none */
    bool clear_flag;    /* at close; the flag is ours, or was checked */

    struct blocks blocks; /* file_end is in whole clusters */
    struct table tables;
};

extern const struct rhea_format_ops rhea_format_qed;

/* Whether [offset, offset + length) may hold a table or clusters. */
bool qed_range_valid(const struct qed *q, uint64_t offset, uint64_t length);
uint64_t qed_clusters(const struct qed *q);

/* --- qed_table.c; all with the lock held, unless they say otherwise --- */

/* What the tables say from a guest cluster on: either that COUNT entries have
 * no table, or COUNT entries, little endian, valid until the next call. */
struct qed_span {
    const uint64_t *entries; /* NULL: no table, or all of them 0 */
    uint64_t count;          /* never 0 */
};

int qed_span_get(struct qed *q, uint64_t cluster, uint64_t want,
                 struct qed_span *span, struct rhea_error *err);
/* The L1 table's entry of a guest cluster, in CPU order. */
int qed_l1_get(struct qed *q, uint64_t cluster, uint64_t *entry,
               struct rhea_error *err);
int qed_l1_set(struct qed *q, uint64_t cluster, uint64_t entry,
               struct rhea_error *err);
/* Set COUNT entries of guest clusters from CLUSTER on, whose L2 table exists
 * and which are in one table: to ENTRY, and from there on by STEP. */
int qed_l2_set(struct qed *q, uint64_t cluster, uint64_t count, uint64_t entry,
               uint64_t step, struct rhea_error *err);
/* How many guest clusters from CLUSTER on are in one L2 table. */
uint64_t qed_table_left(const struct qed *q, uint64_t cluster);

/* --- qed_scan.c --- */

/* A table read from end to end, past the cache, without its zero regions. */
struct qed_scan {
    struct qed *q;
    uint64_t table, position, end; /* bytes in the file */
    uint64_t *entries;             /* of this piece, little endian */
    uint32_t n_entries, capacity;
    bool was_zero;
};

int qed_scan_init(struct qed_scan *scan, struct qed *q, struct rhea_error *err);
void qed_scan_finish(struct qed_scan *scan);
void qed_scan_start(struct qed_scan *scan, uint64_t table);
/* The next piece; n_entries is 0 at the end. */
int qed_scan_next(struct qed_scan *scan, struct rhea_error *err);

int qed_walk(struct rhea_format *f, rhea_use_fn *fn, void *opaque,
             struct rhea_error *err);

/* --- qed_write.c --- */
extern const struct blocks_ops qed_blocks_ops;
/* Write the feature words of the header. */
int qed_write_features(struct qed *q, struct rhea_error *err);

/* --- qed_map.c --- */
/* As struct blocks_ops has it. */
int qed_map(struct blocks *b, uint64_t offset, uint64_t len,
            struct rhea_extent *extent, struct rhea_error *err);

/* --- qed_check.c, qed_create.c --- */
int qed_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err);
int qed_create(struct rhea_storage *storage, const struct rhea_create *how,
               struct rhea_error *err);

/* --- qed_change.c --- */
int qed_set_backing(struct rhea_format *f, const char *file, const char *format,
                    struct rhea_format *parent, struct rhea_error *err);
int qed_make_empty(struct rhea_format *f, struct rhea_error *err);
int qed_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err);

#endif
