/* SPDX-License-Identifier: MIT */
/*
 * What the VDI driver's files share. See vdi.c for the format.
 *
 * Locking: blocks.lock guards the table's cache, the header and COUNT. It is
 * never held over guest data, save when a block that lay unused is emptied.
 */
#ifndef RHEA_FORMAT_VDI_H
#define RHEA_FORMAT_VDI_H

#include <rhea/format.h>

#include "base/bitmap.h"
#include "base/uuid.h"
#include "format/blocks.h"
#include "format/table.h"

#define VDI_SIGNATURE 0xbeda107fu

enum {
    VDI_SECTOR = 512,   /* the header lies in the first one */
    VDI_SMALLEST = 420, /* and takes at least so much */
    VDI_DEFAULT_BLOCK = 1 << 20,
    VDI_ALIGN = 1 << 20, /* of table and data, in new images */
    VDI_COMMENT = 256,
};

enum vdi_type { VDI_DYNAMIC = 1, VDI_FIXED, VDI_UNDO, VDI_DIFFERENCING };

/* Entries of the table that are no blocks: what is below shows through, or
 * zeroes where there is nothing; and zeroes in any case. */
#define VDI_FREE UINT32_MAX
#define VDI_ZERO (UINT32_MAX - 1)

enum vdi_uuid {
    VDI_IMAGE,
    VDI_MODIFIED,
    VDI_PARENT,
    VDI_PARENT_MODIFIED, /* not in version 0 */
    VDI_UUIDS,
};

/* Where a version of the header has its fields, bytes from the file's start;
 * 0: nowhere. */
struct vdi_layout {
    uint16_t size; /* where the header ends */
    uint16_t type, flags, comment, table, data, disk_size, block_size, extra,
        blocks, count, uuid[VDI_UUIDS];
};

/* The header, as it is and as it is in the file; vdi_head_store brings the
 * latter up to date. */
struct vdi_head {
    uint8_t raw[VDI_SECTOR];
    const struct vdi_layout *at;
    uint32_t version;
    enum vdi_type type;
    uint32_t flags;
    uint64_t table, data; /* offsets in the file */
    uint64_t disk_size;   /* bytes */
    uint32_t block_size, extra;
    uint32_t blocks; /* entries of the table */
    uint32_t count;  /* of blocks in the file: the number of the next one */
    uint8_t uuid[VDI_UUIDS][UUID_BYTES];
};

struct vdi {
    struct rhea_format base;
    struct vdi_head head;
    uint64_t stride;    /* bytes of the file that a block takes */
    uint64_t file_size; /* when it was opened */
    char *parent;       /* its name; NULL: has none */
    const struct rhea_files *files;
    struct table table;
    struct blocks blocks;
    uint32_t count;     /* as head.count is to be, before entries are written */
    struct bitmap used; /* blocks in the file, where there are gaps */
    bool has_gaps;
    uint32_t next_gap; /* none is before it */
    bool renewed;      /* has taken its new identity */
    bool repairable;   /* the file is open for writing */
};

extern const struct rhea_format_ops rhea_format_vdi;

static inline bool vdi_is_block(uint32_t entry)
{
    return entry < VDI_ZERO;
}

/* Where block NUMBER of the file has its guest bytes. */
static inline uint64_t vdi_host(const struct vdi *v, uint32_t number)
{
    return v->head.data + number * v->stride + v->head.extra;
}

/* The end of the last of COUNT blocks in the file. */
static inline uint64_t vdi_end(const struct vdi *v, uint64_t count)
{
    return v->head.data + count * v->stride;
}

/* --- vdi_header.c --- */

bool vdi_head_is(const uint8_t *raw, size_t len);
/* Read and check all but what depends on the file's size. */
int vdi_head_read(struct vdi_head *h, struct rhea_storage *storage,
                  struct rhea_error *err);
/* A new one, all zeroes but for its layout. */
void vdi_head_init(struct vdi_head *h);
void vdi_head_store(struct vdi_head *h);
int vdi_head_write(struct vdi_head *h, struct rhea_storage *storage,
                   struct rhea_error *err);
/* Whether it shows what is below, and so has to know what that is. */
bool vdi_head_is_child(const struct vdi_head *h);
const char *vdi_type_name(enum vdi_type type);

/* --- vdi_parent.c --- */

/* Find the file that HEAD's parent is; it is named so that opening fails where
 * there is none. */
int vdi_find_parent(const struct vdi_head *h, const struct rhea_files *files,
                    char **out, struct rhea_error *err);
/* Make HEAD that of a child of PARENT, which must be found again by FILES.
 * NULL: of nobody's. */
int vdi_head_set_parent(struct vdi_head *h, struct rhea_format *parent,
                        const char *name, const struct rhea_files *files,
                        struct rhea_error *err);
int vdi_check_parent(struct rhea_format *f, struct rhea_format *parent,
                     struct rhea_error *err);
int vdi_set_backing(struct rhea_format *f, const char *file, const char *format,
                    struct rhea_format *parent, struct rhea_error *err);
int vdi_renew_identity(struct rhea_format *f, struct rhea_error *err);

/* --- vdi_table.c --- */

/* Entries of the table, one after the other, past the cache. */
struct vdi_scan {
    struct vdi *v;
    uint32_t *entries; /* little endian */
    uint32_t first, n; /* what this piece holds; n is 0 at the end */
    bool hole;         /* all of them are 0, and there may be very many:
                          ENTRIES has none */
};
int vdi_scan_init(struct vdi_scan *s, struct vdi *v, struct rhea_error *err);
void vdi_scan_finish(struct vdi_scan *s);
int vdi_scan_next(struct vdi_scan *s, struct rhea_error *err);

/* How many blocks the file can hold, the last one as far as the guest needs
 * it. */
uint64_t vdi_room(const struct vdi *v);
/* Whether block NUMBER, of guest block INDEX, lies inside the file. */
bool vdi_is_inside(const struct vdi *v, uint32_t index, uint32_t number);
/* The rest with the lock held. */
int vdi_entry_get(struct vdi *v, uint32_t index, uint32_t *entry,
                  struct rhea_error *err);
int vdi_entry_set(struct vdi *v, uint32_t index, uint32_t entry,
                  struct rhea_error *err);
int vdi_table_init(struct vdi *v, struct rhea_error *err);
int vdi_map_locked(struct blocks *b, uint64_t offset, uint64_t len,
                   struct rhea_extent *extent, struct rhea_error *err);

/* --- vdi_write.c --- */

extern const struct blocks_ops vdi_blocks_ops;
/* Look through the table before the first change, and after one that gave
 * blocks other numbers; FILE_SIZE is up to date, and nothing dirty. */
int vdi_open_write(struct vdi *v, struct rhea_error *err);
/* Copy a whole block of the file to where another one is or will be. */
int vdi_copy_block(struct vdi *v, uint32_t from, uint32_t to,
                   struct rhea_error *err);

/* --- vdi_check.c, vdi_create.c, vdi_change.c --- */

int vdi_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
              struct rhea_error *err);
extern const struct rhea_option_help vdi_create_options[];
int vdi_create(struct rhea_storage *storage, const struct rhea_create *how,
               struct rhea_error *err);
int vdi_measure(const struct rhea_measure *what, struct rhea_measured *out,
                struct rhea_error *err);
int vdi_resize(struct rhea_format *f, const struct rhea_resize *how,
               struct rhea_error *err);
/* With the lock held, nothing in flight or dirty: the table's entries from
 * FIRST on are free; durable. */
int vdi_free_entries(struct vdi *v, uint32_t first, struct rhea_error *err);
/* --- vdi_amend.c, vdi_shrink.c --- */
extern const struct rhea_option_help vdi_amend_options[];
int vdi_amend(struct rhea_format *f, const struct rhea_option *options,
              size_t n, bool force, const struct rhea_progress *progress,
              struct rhea_error *err);
int vdi_shrink(struct vdi *v, uint64_t size, struct rhea_error *err);
int vdi_make_empty(struct rhea_format *f, struct rhea_error *err);

#endif
