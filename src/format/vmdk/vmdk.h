/* SPDX-License-Identifier: MIT */
/*
 * What the VMDK driver's files share. See vmdk.c for the format.
 *
 * Locking: the lock of an extent's blocks guards its tables; the image's LOCK
 * guards the descriptor and the grains kept decompressed. An extent's lock is
 * taken first. Neither is held over guest data.
 */
#ifndef RHEA_FORMAT_VMDK_H
#define RHEA_FORMAT_VMDK_H

#include <pthread.h>
#include <rhea/format.h>
#include <stdatomic.h>

#include "format/blocks.h"
#include "format/table.h"
#include "format/vmdk/descriptor.h"

enum {
    VMDK_SECTOR = 512,
    VMDK_GRAIN_MAX = 1 << 30, /* bytes; QEMU's limit, too */
    /* A compressed grain is decoded as a whole. VMware's are 64 KiB. */
    VMDK_PACKED_GRAIN_MAX = 2 << 20,
    VMDK_TABLE_ENTRIES_MAX = 1 << 20,
    VMDK_COWD_TABLE_ENTRIES = 4096,
    VMDK_EXTENTS_MAX = 4096,
};

/* Grain table entries, those of the hosted formats. */
enum { VMDK_GTE_NONE = 0, VMDK_GTE_ZERO = 1 };

enum vmdk_kind {
    VMDK_FLAT,     /* the guest's bytes from FLAT_OFFSET of the file on */
    VMDK_ZERO,     /* no file */
    VMDK_HOSTED,   /* a sparse extent as Workstation and others make it */
    VMDK_COWD,     /* the same of ESX: vmfsSparse */
    VMDK_SESPARSE, /* the same of ESXi 6.5 and later */
};

/* The areas of an SESparse extent, in the order of its header. */
enum sesparse_part {
    PART_VOLATILE, /* the header that changes */
    PART_JOURNAL_HEADER,
    PART_JOURNAL,
    PART_DIRECTORY,
    PART_TABLES,
    PART_BITMAP,
    PART_BACK_MAP,
    PART_GRAINS,
    SESPARSE_PARTS,
};

struct vmdk_area {
    uint64_t at, size;
};

/* What a sparse extent's header says, checked; offsets and sizes in bytes. */
struct vmdk_header {
    enum vmdk_kind kind;
    uint32_t version, flags;
    uint64_t capacity;      /* guest bytes */
    uint64_t grain_size;    /* a power of two */
    uint32_t table_entries; /* of a grain table */
    uint64_t n_tables;      /* entries of the grain directory */
    unsigned entry_size;    /* of directory and tables: 4 or 8 */
    uint64_t directory;     /* the grain directory */
    uint64_t redundant;     /* its copy; 0: none */
    bool one_directory;     /* the header has two, but one is nowhere */
    uint64_t descriptor, descriptor_size; /* 0: none */
    uint64_t overhead;                    /* end of the metadata in front */
    uint64_t at; /* where this header stands: 0, or a footer */
    bool zero_grains, compressed, markers;
    bool unclean; /* it was not closed */
    bool footer;  /* the first header points to it */
    bool cut_off; /* it has to, and there is none: nobody knows where the
                     directory is. Only for a check */
    uint64_t free_sector; /* COWD: where the next grain goes */
    /* The rest is of SESPARSE. */
    struct vmdk_area parts[SESPARSE_PARTS];
    uint64_t free_table; /* grain tables from this one on are not used */
    bool journal;        /* has to be replayed */
    bool unknown;        /* it has a mark that nobody has explained */
};

struct vmdk;

struct vmdk_extent {
    struct vmdk *image;
    enum vmdk_kind kind;
    struct rhea_storage *file; /* NULL: none */
    const char *type;          /* as in the descriptor; NULL: the image's own
                                  file */
    uint64_t start, size;      /* guest bytes */
    bool writable;
    char *made_as; /* the name of a file that was made just now; see resize.h */

    uint64_t flat_offset;      /* FLAT: where it begins in the file, */
    uint64_t run_from, run_to; /* and the run that was looked up last */
    bool run_is_hole;

    struct vmdk_header h; /* the rest is of sparse extents */
    struct blocks blocks;
    struct table table;
    bool has_blocks;            /* both are set up */
    bool marked;                /* as not closed, by us */
    struct vmdk_stream *stream; /* of a compressed one; NULL: nothing was
                                   written yet */
    struct sesparse *se;        /* SESPARSE */
    uint64_t file_size;
    /* Holes of the file that were found last, in each copy of the tables. */
    struct {
        uint64_t from, to;
    } holes[2];
    unsigned next_hole; /* to be replaced */
};

struct vmdk {
    struct rhea_format base;
    unsigned flags; /* RHEA_FORMAT_* */
    const struct rhea_files *files;

    struct descriptor descriptor;
    struct vmdk_extent *extents;
    size_t n_extents;
    bool read_only; /* for the reason of ... */
    char why_read_only[160];

    char *parent;     /* what info gives out as backing file; NULL: none */
    bool lone;        /* an extent's file without a descriptor */
    bool replaced;    /* the descriptor's file: storage shows the old one */
    bool edit_failed; /* what the file has for a descriptor is not known */

    pthread_mutex_t lock;
    atomic_bool renewed;          /* the content id, since opening */
    struct vmdk_packed *packed;   /* see read.c */
    struct vmdk_compressor *idle; /* see pack.c */
};

extern const struct rhea_format_ops rhea_format_vmdk;

static inline struct vmdk *vmdk_of(struct rhea_format *f)
{
    return (struct vmdk *)f;
}

static inline bool vmdk_is_sparse(enum vmdk_kind kind)
{
    return kind == VMDK_HOSTED || kind == VMDK_COWD || kind == VMDK_SESPARSE;
}

/* The extent that holds guest offset OFFSET, which is inside the image. */
struct vmdk_extent *vmdk_find_extent(const struct vmdk *v, uint64_t offset);

/* --- header.c --- */

/* Whether a file that begins so is a sparse extent, and of which kind. */
bool vmdk_header_kind(const uint8_t *head, size_t len, enum vmdk_kind *kind);
/* Read and check. CHECK: be lenient, what is broken will be reported. */
int vmdk_header_read(struct rhea_storage *file, bool check,
                     struct vmdk_header *h, struct rhea_error *err);

/* Where guest data may be in a COWD extent with N tables. */
uint64_t vmdk_cowd_overhead(uint64_t directory, uint64_t n);

/* --- open.c --- */
int vmdk_open(struct rhea_format **out, const struct rhea_format_open *how,
              struct rhea_error *err);
int vmdk_close(struct rhea_format *f, struct rhea_error *err);
/* What LINE describes; FILE: what it is in, NULL: open it. X has IMAGE and
 * START. */
int vmdk_extent_open(struct vmdk *v, const struct descriptor_extent *line,
                     struct rhea_storage *file, struct vmdk_extent *x,
                     struct rhea_error *err);
/* Once it is known whether there is a parent. */
void vmdk_extent_ready(struct vmdk_extent *x);
/* Release all but the file. */
void vmdk_extent_finish(struct vmdk_extent *x);

/* --- map.c --- */
int vmdk_map(struct rhea_format *f, uint64_t offset, uint64_t len,
             struct rhea_extent *extent, struct rhea_error *err);
/* For struct blocks_ops. */
int vmdk_sparse_map(struct blocks *b, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err);

/* --- read.c --- */
int vmdk_read(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
              struct rhea_error *err);
/* The grain at OFFSET of X, which E says where to find and of which LEAST bytes
 * are the guest's, into OUT, which has room for a grain. */
int vmdk_packed_load(const struct vmdk_extent *x, uint64_t offset,
                     const struct rhea_extent *e, uint8_t *out, size_t least,
                     struct rhea_error *err);
void vmdk_packed_finish(struct vmdk *v);

/* --- write.c --- */
int vmdk_write(struct rhea_format *f, uint64_t offset, const void *buf,
               size_t len, struct rhea_error *err);
int vmdk_write_zeroes(struct rhea_format *f, uint64_t offset, uint64_t len,
                      bool unmap, struct rhea_error *err);
int vmdk_discard(struct rhea_format *f, uint64_t offset, uint64_t len,
                 struct rhea_error *err);
int vmdk_flush(struct rhea_format *f, struct rhea_error *err);

/* --- edit.c --- */
int vmdk_renew_identity(struct rhea_format *f, struct rhea_error *err);

/* --- change.c --- */
int vmdk_set_backing(struct rhea_format *f, const char *file,
                     const char *format, struct rhea_format *parent,
                     struct rhea_error *err);
int vmdk_make_empty(struct rhea_format *f, struct rhea_error *err);

/* --- resize.c --- */
int vmdk_resize(struct rhea_format *f, const struct rhea_resize *how,
                struct rhea_error *err);

/* --- amend.c --- */
extern const struct rhea_option_help vmdk_amend_options[];
int vmdk_amend(struct rhea_format *f, const struct rhea_option *options,
               size_t n, bool force, const struct rhea_progress *progress,
               struct rhea_error *err);

/* --- measure.c --- */
int vmdk_measure(const struct rhea_measure *what, struct rhea_measured *out,
                 struct rhea_error *err);

/* --- check.c --- */
int vmdk_check(struct rhea_format *f, unsigned fix, struct rhea_check *check,
               struct rhea_error *err);

/* --- facts.c --- */
int vmdk_facts(struct rhea_format *f, struct rhea_facts *facts,
               struct rhea_error *err);

/* --- parent.c --- */
int vmdk_check_parent(struct rhea_format *f, struct rhea_format *parent,
                      struct rhea_error *err);
/* By which children tell whether F has changed. F may be of any format. */
int vmdk_content_id(struct rhea_format *f, uint32_t *cid,
                    struct rhea_error *err);
/* What stands in the descriptor as parent, to what is opened. */
int vmdk_find_parent(struct vmdk *v, struct rhea_error *err);

#endif
