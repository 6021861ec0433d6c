/* SPDX-License-Identifier: MIT */
/*
 * Tables in a file, through a bounded write-back cache of pages.
 *
 * A page is PAGE_BYTES of the file from a multiple of PAGE_BYTES on. What was
 * changed stays in the cache until it is written back, all at once, by sectors,
 * and no sector that was not changed is written. So a page may well hold guest
 * bytes besides, which nobody asks the cache for; but all changes of a table go
 * through the cache, and a table is only put where it has never looked or where
 * there were zeroes. Bytes past the end of the file are zeroes.
 *
 * Order of writes (table_write_back): flush, then the dirty sectors. Whatever
 * was written to the storage before an entry was set is durable before the
 * entry is in the file. So an entry may be set as soon as what it refers to has
 * been written. A format with a log does it by itself, see table_write_fn.
 *
 * Not safe from many threads: the format holds a lock over every call.
 */
#ifndef RHEA_FORMAT_TABLE_H
#define RHEA_FORMAT_TABLE_H

#include <rhea/storage.h>

struct table;

/* In the place of "flush, write": make all that is dirty (table_next_dirty)
 * durable, or at least written behind a flush, in the format's own way. */
typedef int table_write_fn(void *opaque, struct table *t,
                           struct rhea_error *err);

enum {
    TABLE_WAYS = 4,
    TABLE_PAGE_SECTORS = 128, /* at most */
};

struct table_page {
    uint64_t offset; /* in the file; TABLE_NO_PAGE: empty */
    uint64_t used;   /* when, in lookups */
    uint8_t *bytes;  /* as in the file */
    uint64_t dirty[TABLE_PAGE_SECTORS / 64]; /* a bit a sector: not written */
    bool is_dirty;
};
#define TABLE_NO_PAGE UINT64_MAX

struct table {
    struct rhea_storage *storage;
    uint32_t page_bytes, sector; /* powers of two */
    struct table_page *pages;    /* n_sets times TABLE_WAYS */
    size_t n_sets, n_dirty;
    uint64_t clock;
    uint64_t data_from, data_to; /* no hole when it was last asked for: tmpfs
                                    looks through all of a run to find its end,
                                    and would for each page of a table */
    bool failed; /* a write or flush failed: what the file holds is not known,
                    so nothing more is written */
    table_write_fn *write; /* NULL: flush, write */
    void *opaque;
};

struct table_how {
    uint32_t page_bytes;   /* at least a sector, at most TABLE_PAGE_SECTORS */
    uint32_t sector;       /* 0: 512 */
    size_t cache_bytes;    /* at most; memory is taken as pages are used */
    table_write_fn *write; /* NULL: flush, write */
    void *opaque;
};

int table_init(struct table *t, struct rhea_storage *storage,
               const struct table_how *how, struct rhea_error *err);
/* Drops what is dirty. Safe on all zero bytes. */
void table_finish(struct table *t);

/* The bytes at OFFSET of the file, *LEN of them up to the page's end. They are
 * valid until the next call. */
int table_get(struct table *t, uint64_t offset, const uint8_t **bytes,
              uint32_t *len, struct rhea_error *err);
/* The same to be changed: the first LEN, inside one page, become dirty. */
int table_change(struct table *t, uint64_t offset, uint32_t len,
                 uint8_t **bytes, struct rhea_error *err);
/* The same, of LEN bytes that the caller overwrites, each of them: *N are those
 * inside this page, which is not read where they are all of it. */
int table_overwrite(struct table *t, uint64_t offset, uint64_t len,
                    uint8_t **bytes, uint32_t *n, struct rhea_error *err);
/* See above. Nothing where nothing is dirty. */
int table_write_back(struct table *t, struct rhea_error *err);
/* Forget all; nothing may be dirty. */
void table_drop(struct table *t);

/* For table_write_fn: what happens where there is none. */
int table_write_plain(struct table *t, struct rhea_error *err);
/* For table_write_fn: the next run of dirty sectors from *CURSOR on, which
 * begins as 0. False: no more. */
bool table_next_dirty(const struct table *t, size_t *cursor, uint64_t *offset,
                      const uint8_t **bytes, uint32_t *len);

/* How many bytes from OFFSET on are known to be zero without reading them, at
 * most LEN: a hole of the file, or its end, up to the next dirty page. */
uint64_t table_zero_run(struct table *t, uint64_t offset, uint64_t len);

#endif
