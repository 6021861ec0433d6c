/* SPDX-License-Identifier: MIT */
/*
 * A format knows what bytes mean: it turns guest offsets into extents of
 * storages. It owns no file descriptor, walks no backing chain and takes no
 * file lock: that is the image's (image.h).
 *
 * All sizes and offsets are bytes. "Guest" is what the virtual machine sees,
 * "host" is where it lives in the storage.
 */
#ifndef RHEA_FORMAT_H
#define RHEA_FORMAT_H

#include <rhea/storage.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rhea_format;

enum rhea_extent_kind {
    RHEA_EXTENT_UNALLOCATED, /* the backing image shows through, else zeroes */
    RHEA_EXTENT_ZERO,        /* reads as zeroes, whatever the backing holds */
    RHEA_EXTENT_DATA,        /* guest bytes, as they are, at HOST */
    RHEA_EXTENT_COMPRESSED,  /* stored in another form at HOST: ops->read */
};

/* A run of guest bytes that are mapped alike. */
struct rhea_extent {
    enum rhea_extent_kind kind;
    uint64_t length; /* guest bytes, never 0 */
    /* DATA: the run occupies [host, host + length) of STORAGE.
     * ZERO, UNALLOCATED with has_host: the same range is reserved for it but
     * its bytes mean nothing (preallocated zero clusters, subclusters).
     * COMPRESSED: host and stored_length are the stored form; such an extent
     * is at most one cluster. */
    bool has_host;
    uint64_t host;
    uint64_t stored_length;
    struct rhea_storage *storage; /* the image's own file, unless it keeps its
                                     data in another */
};

/* What a host range that an image refers to is used for. */
enum rhea_use {
    RHEA_USE_HEADER,     /* header, extensions, backing file name */
    RHEA_USE_TABLE,      /* any mapping or allocation table */
    RHEA_USE_DATA,       /* a whole data cluster */
    RHEA_USE_COMPRESSED, /* may share clusters with other compressed data */
    RHEA_USE_OTHER,      /* snapshots' and bitmaps' own clusters, ... */
};

/* Called once for every reference; stop on a negative return. */
typedef int rhea_use_fn(void *opaque, enum rhea_use use, uint64_t host,
                        uint64_t length, struct rhea_error *err);

/* One line of a format's own facts, for `info`: "refcount bits: 16". */
struct rhea_fact {
    const char *name;      /* as a person reads it: "refcount bits" */
    const char *json_name; /* as a script does: "refcount-bits" */
    enum { RHEA_FACT_STRING, RHEA_FACT_NUMBER, RHEA_FACT_BOOL } type;
    const char *string; /* constant, or owned by the format */
    uint64_t number;    /* number or truth */
};

#define RHEA_FACTS_MAX 16
#define RHEA_BACKING_NAME_MAX 4095

/* What an open format says of itself. Strings belong to the format. */
struct rhea_format_info {
    uint64_t virtual_size;
    uint32_t cluster_size;        /* 0: none */
    const char *backing_file;     /* NULL: none */
    const char *backing_format;   /* NULL: not stated, so it is probed */
    uint64_t backing_file_offset; /* where the name stands in the file */

    /* What keeps an image from being plain clusters; see inplace.h. */
    uint32_t snapshots, bitmaps;
    bool encrypted, external_data, corrupt;
    bool dirty;      /* closed uncleanly; allocation counts may be off */
    bool extensions; /* parts whose meaning this program does not know */
    bool compressed_type_zstd;

    struct rhea_fact facts[RHEA_FACTS_MAX];
    unsigned n_facts;
};

/* What a check found. Counts are of clusters unless named otherwise. */
struct rhea_check {
    uint64_t corruptions, leaks, errors; /* errors: could not be checked */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters,
        compressed_clusters;
    uint64_t image_end; /* end of the last cluster in use */
    /* Told of every finding, one sentence; may be NULL. */
    void (*finding)(void *opaque, bool is_error, const char *text);
    void *opaque;
    const struct rhea_progress *progress;
};

enum { RHEA_FIX_LEAKS = 1 << 0, RHEA_FIX_ERRORS = 1 << 1 };

/* One creation option as the user gave it. */
struct rhea_option {
    const char *name, *value;
};

/* What creation options a format has, for `-o help`. */
struct rhea_option_help {
    const char *name, *type, *text;
};

struct rhea_create {
    uint64_t size;
    const char *backing_file;          /* NULL: none */
    const char *backing_format;        /* NULL: not stated */
    const struct rhea_option *options; /* the format's own, unknown ones are
                                          an error */
    size_t n_options;
};

enum {
    RHEA_FORMAT_WRITE = 1 << 0,
    RHEA_FORMAT_CHECK = 1 << 1, /* opened to be checked: be lenient, repair
                                   nothing by opening */
};

/*
 * What a format provides. A format's file ends with its table. Members that
 * may be NULL say so. All may be called from many threads at once, save open
 * and close.
 */
struct rhea_format_ops {
    const char *name;
    const struct rhea_option_help *create_options; /* ends with name NULL */

    /* How sure it is, 0 to 100, that these first LEN bytes (at least 2048, or
     * the whole file) begin an image of this format. */
    int (*probe)(const uint8_t *head, size_t len);

    /* Open over STORAGE, which stays the caller's and outlives the format.
     * Validates everything a later call relies on. */
    int (*open)(struct rhea_format **out, struct rhea_storage *storage,
                unsigned flags, struct rhea_error *err);
    /* Write back what is cached, mark the image cleanly closed, release all
     * but the storage. Returns the first error, having released anyway. */
    int (*close)(struct rhea_format *f, struct rhea_error *err);

    void (*info)(struct rhea_format *f, struct rhea_format_info *info);

    /* How guest bytes from OFFSET are mapped: the longest run of one kind and
     * contiguous host range the format finds cheaply, at most LEN. */
    int (*map)(struct rhea_format *f, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err);

    /* Decode guest bytes inside one COMPRESSED extent. NULL: has none. */
    int (*read)(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
                struct rhea_error *err);

    /* Write guest bytes, allocating as needed. Bytes of a newly allocated
     * cluster that are not written take what lies below (f->below). NULL:
     * read-only format. */
    int (*write)(struct rhea_format *f, uint64_t offset, const void *buf,
                 size_t len, struct rhea_error *err);
    /* Make guest bytes read as zeroes; with UNMAP give clusters back. NULL:
     * the image writes zeroes instead. */
    int (*write_zeroes)(struct rhea_format *f, uint64_t offset, uint64_t len,
                        bool unmap, struct rhea_error *err);
    /* Write one whole, so far unallocated cluster (or the image's last part)
     * compressed. NULL: cannot. */
    int (*write_compressed)(struct rhea_format *f, uint64_t offset,
                            const void *buf, size_t len,
                            struct rhea_error *err);
    /* All that was written is durable afterwards. */
    int (*flush)(struct rhea_format *f, struct rhea_error *err);

    /* Check, and repair what FIX (RHEA_FIX_*) says. NULL: cannot. Returns 0
     * when the check itself could be carried out. */
    int (*check)(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                 struct rhea_error *err);

    /* Report every host range the image refers to, also those no guest offset
     * leads to. NULL: not convertible in place. */
    int (*walk)(struct rhea_format *f, rhea_use_fn *fn, void *opaque,
                struct rhea_error *err);

    /* Write a new, empty image into an empty STORAGE. NULL: cannot. */
    int (*create)(struct rhea_storage *storage, const struct rhea_create *how,
                  struct rhea_error *err);
};

/* The head of every open format; a format's own struct begins with it. */
struct rhea_format {
    const struct rhea_format_ops *ops;
    struct rhea_storage *storage;
    uint64_t size; /* virtual size in bytes */
    /* Reads guest bytes from below this image (its backing chain), zeroes
     * where there is none or past its end. Set by the image after open; NULL:
     * zeroes. */
    int (*below)(void *opaque, uint64_t offset, void *buf, size_t len,
                 struct rhea_error *err);
    void *below_opaque;
};

/* All formats, in probe order; ends with NULL. */
RHEA_API extern const struct rhea_format_ops *const rhea_formats[];
/* By name; NULL when there is none. */
RHEA_API const struct rhea_format_ops *rhea_format_find(const char *name);
/* The best match for the beginning of a file; raw when nothing else fits. */
RHEA_API const struct rhea_format_ops *rhea_format_probe(const uint8_t *head,
                                                         size_t len);

#ifdef __cplusplus
}
#endif

#endif
