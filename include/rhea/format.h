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
    RHEA_EXTENT_ENCRYPTED,   /* as many bytes at HOST, but ops->read decodes
                                them */
};

/* A run of guest bytes that are mapped alike. */
struct rhea_extent {
    enum rhea_extent_kind kind;
    uint64_t length; /* guest bytes, never 0 */
    /* DATA: the run occupies [host, host + length) of STORAGE.
     * ZERO, UNALLOCATED with has_host: the same range is reserved for it but
     * its bytes mean nothing (preallocated zero clusters, subclusters).
     * COMPRESSED: host and stored_length are the stored form; such an extent
     * is at most one cluster.
     * ENCRYPTED: as DATA, but only ops->read can tell what the bytes mean. */
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

/*
 * A format's own facts, for `info`: a list that is read from front to back.
 * LIST and OBJECT open a level, which END closes; an element of a LIST has no
 * name. "refcount bits: 16" is one fact.
 */
struct rhea_fact {
    char *name;      /* as a person reads it: "refcount bits"; NULL: none */
    char *json_name; /* as a script does: "refcount-bits" */
    enum {
        RHEA_FACT_STRING,
        RHEA_FACT_NUMBER,
        RHEA_FACT_BOOL,
        RHEA_FACT_LIST,
        RHEA_FACT_OBJECT,
        RHEA_FACT_END,
    } type;
    char *string;
    uint64_t number; /* number or truth */
};

/* Grows; begin with all zero bytes. FAILED: memory ran out, so it is not all
 * there. */
struct rhea_facts {
    struct rhea_fact *items;
    size_t n;
    bool failed;
};

RHEA_API void rhea_facts_string(struct rhea_facts *facts, const char *name,
                                const char *json_name, const char *string);
RHEA_API void rhea_facts_number(struct rhea_facts *facts, const char *name,
                                const char *json_name, uint64_t number);
RHEA_API void rhea_facts_bool(struct rhea_facts *facts, const char *name,
                              const char *json_name, bool truth);
RHEA_API void rhea_facts_list(struct rhea_facts *facts, const char *name,
                              const char *json_name);
RHEA_API void rhea_facts_object(struct rhea_facts *facts, const char *name,
                                const char *json_name);
RHEA_API void rhea_facts_end(struct rhea_facts *facts);
/* The first fact of that JSON name on the outermost level; NULL: none. */
RHEA_API const struct rhea_fact *rhea_facts_find(const struct rhea_facts *facts,
                                                 const char *json_name);
RHEA_API void rhea_facts_free(struct rhea_facts *facts);

#define RHEA_BACKING_NAME_MAX 4095

/* What an open format says of itself. Strings belong to the format. */
struct rhea_format_info {
    uint64_t virtual_size;
    uint32_t cluster_size;        /* 0: none */
    uint32_t part_size;           /* a new cluster, with nothing below, can be
                                     written by such parts, and reads as zeroes
                                     where none was; 0: better all at once */
    const char *backing_file;     /* NULL: none */
    const char *backing_format;   /* NULL: not stated, so it is probed */
    uint64_t backing_file_offset; /* where the name stands in the file */

    /* What keeps an image from being plain clusters; see inplace.h. */
    uint32_t snapshots, bitmaps;
    bool encrypted, external_data, corrupt;
    bool dirty;      /* closed uncleanly; allocation counts may be off */
    bool extensions; /* parts whose meaning this program does not know */
    bool compressed_type_zstd;

    /* Not 0: guest bytes can only be written compressed, each whole cluster
     * once, in the guest's order; see ops->pack. So many bytes are the longest
     * stored form of a cluster. */
    size_t packed_max;
};

/* An internal snapshot. Strings are malloc'd; rhea_snapshots_free. */
struct rhea_snapshot {
    char *id, *name;
    uint64_t disk_size;     /* virtual size when it was taken */
    uint64_t vm_state_size; /* bytes of VM state kept with it */
    int64_t date;           /* seconds since 1970 */
    uint32_t date_nsec;
    uint64_t vm_clock_nsec; /* how long the guest had run */
    uint64_t icount;        /* instructions run; UINT64_MAX: not recorded */
};
RHEA_API void rhea_snapshots_free(struct rhea_snapshot *snapshots, size_t n);

/* A persistent dirty bitmap: a bit for each GRANULARITY bytes of the guest. */
struct rhea_bitmap {
    char *name;           /* malloc'd; rhea_bitmaps_free */
    uint64_t granularity; /* bytes, a power of two from 512 to 2 GiB */
    bool enabled;         /* follows guest writes ("auto") */
    bool in_use;          /* was not closed cleanly: its bits mean nothing */
};
RHEA_API void rhea_bitmaps_free(struct rhea_bitmap *bitmaps, size_t n);

/* The most bytes of bits that are held in memory for one bitmap. */
#define RHEA_BITMAP_BYTES_MAX (512U << 20)

/* What a check found. Counts are of clusters unless named otherwise. */
struct rhea_check {
    uint64_t corruptions, leaks, errors; /* errors: could not be checked */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters,
        compressed_clusters;
    uint64_t lost;      /* not allocated ones: what entries lead to that cannot
                           be right, and that a repair drops */
    uint64_t image_end; /* end of the last cluster in use */
    /* Told of every finding, one sentence; may be NULL. */
    void (*finding)(void *opaque, bool is_error, const char *text);
    void *opaque;
    const struct rhea_progress *progress;
};

enum { RHEA_FIX_LEAKS = 1 << 0, RHEA_FIX_ERRORS = 1 << 1 };

/*
 * The other files of an image: those that it is made of besides its own, and
 * its parent. All names come from an image, so they are not trusted.
 */
struct rhea_files {
    /* Open file NAME, which is relative to the image's folder and must not
     * lead out of it; one that is absolute, or another system's, is looked for
     * there by its last part. WRITE: for writing too, where the image is.
     * Locked as the image is; closed after the format is, by whoever owns the
     * image. */
    int (*open)(void *opaque, const char *name, bool write,
                struct rhea_storage **out, struct rhea_error *err);
    /* The same of a file that is made, or emptied where it is there. */
    int (*create)(void *opaque, const char *name, struct rhea_storage **out,
                  struct rhea_error *err);
    /*
     * Which file is meant by N names, best first, that an image has for its
     * parent. They may be of another system: "C:\\vm\\base.vhd",
     * ".\\base.vhd", "\\\\server\\vm\\base.vhd", "file:///vm/base.vhd"; what
     * cannot be meant on this one is looked for in the image's folder, then in
     * the one above "Snapshots". *OUT, malloc'd, is for
     * rhea_format_info.backing_file: the first that is there or, where none is,
     * what the first name means.
     */
    int (*find_parent)(void *opaque, const char *const *names, size_t n,
                       char **out, struct rhea_error *err);
    /* Search the image's folder and, where it is called "Snapshots", the one
     * above it, for a file that ACCEPT returns 1 for; a negative return ends
     * the search. *OUT as above; NULL: there is none. */
    int (*search)(void *opaque,
                  int (*accept)(void *accept_opaque, struct rhea_storage *file),
                  void *accept_opaque, char **out, struct rhea_error *err);
    /* Replace all that file NAME, which is there, holds; NULL: the image's own
     * file. At any time, and after a crash, it is the old or the new; durable
     * when it returns 0. It is another file then: a storage that is open goes
     * on to show the old one. */
    int (*replace)(void *opaque, const char *name, const void *data, size_t len,
                   struct rhea_error *err);
    /* Remove file NAME, which may be open. */
    int (*remove)(void *opaque, const char *name, struct rhea_error *err);
    void *opaque;
};

struct rhea_create {
    uint64_t size;
    const char *backing_file;          /* NULL: none */
    const char *backing_format;        /* NULL: not stated */
    const struct rhea_option *options; /* the format's own, unknown ones are
                                          an error */
    size_t n_options;
    struct rhea_storage *data_file; /* for option data_file: opened, and never
                                       emptied; NULL: none */
    const char *name; /* of the image's own file, without its folder; NULL: it
                         is in none */
    const struct rhea_files
        *files;                 /* to make others; NULL: there can be none */
    struct rhea_format *parent; /* the backing image, whose identity the new
                                   one may have to record; open for reading
                                   without its guest bytes (NO_IO). NULL:
                                   none, or it could not be opened */
    const struct rhea_progress *progress; /* of preallocation; may be NULL */
};

/* How to open an image. */
struct rhea_format_open {
    struct rhea_storage *storage; /* stays the caller's, outlives the format */
    unsigned flags;               /* RHEA_FORMAT_* */
    /* The format's own, such as raw's "offset" or "encrypt.key-secret";
     * unknown ones are an error. */
    const struct rhea_option *options;
    size_t n_options;
    /* Open another file that this image keeps its data in, which the caller
     * then owns and which outlives the format. DEFAULT_NAME is what the image
     * says, NULL where it says nothing; what the user said goes first. NULL
     * function: such images cannot be opened. */
    int (*open_data_file)(void *opaque, const char *default_name,
                          struct rhea_storage **out, struct rhea_error *err);
    void *opaque;
    /* Other files; outlives the format. NULL: there are none. */
    const struct rhea_files *files;
};

/* What is to be known of contents for which space is measured. */
struct rhea_measure {
    uint64_t size; /* virtual size of the image to be */
    /* The next run at OFFSET: whether it needs data clusters (else it reads as
     * zeroes or is left to the backing file). NULL: no contents. */
    int (*next)(void *opaque, uint64_t offset, bool *data, uint64_t *length,
                struct rhea_error *err);
    void *opaque;
    const struct rhea_option *options; /* creation options */
    size_t n_options;
    const struct rhea_bitmap *bitmaps; /* those of the source; NULL: there is
                                          none that could have any */
    size_t n_bitmaps;
};
struct rhea_measured {
    uint64_t required;        /* bytes of a file that holds those contents */
    uint64_t fully_allocated; /* bytes of a file in which all is allocated */
    uint64_t bitmaps;         /* more bytes, to hold the bitmaps too */
    bool has_bitmaps;         /* the format could hold them */
};

/* How to change the virtual size. */
struct rhea_resize {
    uint64_t size;
    const char *preallocation; /* of what is added: "off", "metadata",
                                  "falloc", "full"; NULL: "off" */
    bool shrink;               /* the loss of what lies behind is accepted */
    bool hide_below;           /* what lies below the image goes on behind its
                                  old end and must not show */
    const struct rhea_progress *progress;
};

enum {
    RHEA_FORMAT_WRITE = 1 << 0,
    RHEA_FORMAT_CHECK = 1 << 1, /* opened to be checked: be lenient, repair
                                   nothing by opening */
    RHEA_FORMAT_NO_IO = 1 << 2, /* guest bytes will not be asked for: no secret
                                   and no data file is needed */
};

/*
 * What a format provides. A format's file ends with its table. Members that
 * may be NULL say so. All may be called from many threads at once, save open
 * and close.
 */
struct rhea_format_ops {
    const char *name;
    const struct rhea_option_help *create_options; /* ends with name NULL */
    /* Those options of opening that decide which guest bytes there are, so that
     * the image's name has to keep them; ends with NULL. NULL: none. */
    const char *const *strong_options;

    /* How sure it is, 0 to 100, that these first LEN bytes (at least 2048, or
     * the whole file) begin an image of this format. */
    int (*probe)(const uint8_t *head, size_t len);
    /* The same by the last sector, or less, of a file of FILE_SIZE bytes, where
     * no format but raw knows its head. NULL: cannot tell. */
    int (*probe_tail)(const uint8_t *tail, size_t len, uint64_t file_size);
    /* Where an image may be a folder: the file in it that is opened in its
     * place. NULL: it is none. */
    const char *bundle_file;

    /* Validates everything a later call relies on. */
    int (*open)(struct rhea_format **out, const struct rhea_format_open *how,
                struct rhea_error *err);
    /* Write back what is cached, mark the image cleanly closed, release all
     * but the storage. Returns the first error, having released anyway. */
    int (*close)(struct rhea_format *f, struct rhea_error *err);

    void (*info)(struct rhea_format *f, struct rhea_format_info *info);
    /* Add what `info` tells in "format-specific"; in the order in which
     * qemu-img prints it. NULL: nothing. */
    int (*facts)(struct rhea_format *f, struct rhea_facts *facts,
                 struct rhea_error *err);

    /* How guest bytes from OFFSET are mapped: the longest run of one kind and
     * contiguous host range the format finds cheaply, at most LEN. */
    int (*map)(struct rhea_format *f, uint64_t offset, uint64_t len,
               struct rhea_extent *extent, struct rhea_error *err);

    /* As map, and where the extent is DATA its host range is given to nobody
     * else until release is called, which the same thread does before it calls
     * anything else of this format. NULL: while the image is open, clusters
     * that were given back are not used again. */
    int (*map_hold)(struct rhea_format *f, uint64_t offset, uint64_t len,
                    struct rhea_extent *extent, struct rhea_error *err);
    void (*release)(struct rhea_format *f);

    /* Decode guest bytes inside one COMPRESSED or ENCRYPTED extent. NULL: has
     * none. */
    int (*read)(struct rhea_format *f, uint64_t offset, void *buf, size_t len,
                struct rhea_error *err);

    /* Write guest bytes, allocating as needed. Bytes of a newly allocated
     * cluster that are not written take what lies below (f->below). NULL:
     * read-only format. */
    int (*write)(struct rhea_format *f, uint64_t offset, const void *buf,
                 size_t len, struct rhea_error *err);
    /* As write, of bytes that FROM, another storage, has at FROM_OFFSET, as
     * they are; in the same order of writes. OFFSET and LEN are multiples of
     * the cluster size, if there is one, and of 4096. -ENOTSUP, before anything
     * has changed, where the image keeps them in another form, or its storage
     * cannot share blocks with FROM. LEN may be 0, which asks only that; other
     * calls may be made once it is 0. NULL: no cluster lies at a multiple of
     * 4096. */
    int (*clone)(struct rhea_format *f, uint64_t offset,
                 struct rhea_storage *from, uint64_t from_offset, uint64_t len,
                 struct rhea_error *err);
    /* Make guest bytes read as zeroes; with UNMAP give clusters back. NULL:
     * the image writes zeroes instead. */
    int (*write_zeroes)(struct rhea_format *f, uint64_t offset, uint64_t len,
                        bool unmap, struct rhea_error *err);
    /* The guest needs these bytes no more: what can be given back of them is,
     * and reads as zeroes from then on; the rest stays. NULL: nothing can. */
    int (*discard)(struct rhea_format *f, uint64_t offset, uint64_t len,
                   struct rhea_error *err);
    /* Write one whole, so far unallocated cluster (or the image's last part)
     * compressed. NULL: cannot. */
    int (*write_compressed)(struct rhea_format *f, uint64_t offset,
                            const void *buf, size_t len,
                            struct rhea_error *err);
    /* The same in two steps, where info has packed_max: PACK turns a cluster
     * into its stored form, of *N bytes, for which PACKED has room; clusters
     * may be packed side by side and in any order. WRITE_PACKED puts it into
     * the image. */
    int (*pack)(struct rhea_format *f, uint64_t offset, const void *buf,
                size_t len, void *packed, size_t *n, struct rhea_error *err);
    int (*write_packed)(struct rhea_format *f, uint64_t offset,
                        const void *packed, size_t n, struct rhea_error *err);
    /* All that was written is durable afterwards. */
    int (*flush)(struct rhea_format *f, struct rhea_error *err);

    /* Check, and repair what FIX (RHEA_FIX_*) says. NULL: cannot. Returns 0
     * when the check itself could be carried out. */
    int (*check)(struct rhea_format *f, unsigned fix, struct rhea_check *check,
                 struct rhea_error *err);
    /* It counts rhea_check.lost, so that a look before a repair tells whether
     * that would drop nearly all. */
    bool counts_lost;

    /* Report every host range the image refers to, also those no guest offset
     * leads to. NULL: not convertible in place. */
    int (*walk)(struct rhea_format *f, rhea_use_fn *fn, void *opaque,
                struct rhea_error *err);

    /* Write a new, empty image into an empty STORAGE. NULL: cannot. */
    int (*create)(struct rhea_storage *storage, const struct rhea_create *how,
                  struct rhea_error *err);
    /* Whether HOW asks for a folder, with BUNDLE_FILE as the image's own file.
     * NULL: never. */
    bool (*create_is_bundle)(const struct rhea_create *how);
    /* What creating such an image would take. NULL: not known. */
    int (*measure)(const struct rhea_measure *what, struct rhea_measured *out,
                   struct rhea_error *err);

    /* All that follow may be NULL: cannot. Those that change something are
     * durable when they return 0, and leave the image as it was when they fail
     * before they wrote. */
    int (*resize)(struct rhea_format *f, const struct rhea_resize *how,
                  struct rhea_error *err);
    /* Change creation options of an image that is there. AMEND_OPTIONS: those
     * that can be changed, ends with name NULL. */
    const struct rhea_option_help *amend_options;
    int (*amend)(struct rhea_format *f, const struct rhea_option *options,
                 size_t n, bool force, const struct rhea_progress *progress,
                 struct rhea_error *err);
    /* Name another backing file, NULL: none, and its format, NULL: unstated.
     * Changes no guest byte's mapping. PARENT as in struct rhea_create. */
    int (*set_backing)(struct rhea_format *f, const char *file,
                       const char *format, struct rhea_format *parent,
                       struct rhea_error *err);
    /* Whether PARENT, which is open below F, is the one that F was made over,
     * and as it was then. NULL: the format records no such thing. */
    int (*check_parent)(struct rhea_format *f, struct rhea_format *parent,
                        struct rhea_error *err);
    /* Take a new identity now, as the first guest write after opening does, so
     * that images made over F as it was can tell. Once: it stays until F is
     * closed. NULL: has none. */
    int (*renew_identity)(struct rhea_format *f, struct rhea_error *err);
    /* Unallocate everything, after commit. */
    int (*make_empty)(struct rhea_format *f, struct rhea_error *err);

    /* Internal snapshots. WHICH is an id or, where none matches, a name. */
    int (*snapshot_list)(struct rhea_format *f, struct rhea_snapshot **list,
                         size_t *n, struct rhea_error *err);
    /* WHAT's id and disk_size are the format's to choose. */
    int (*snapshot_create)(struct rhea_format *f,
                           const struct rhea_snapshot *what,
                           struct rhea_error *err);
    int (*snapshot_apply)(struct rhea_format *f, const char *which,
                          struct rhea_error *err);
    int (*snapshot_delete)(struct rhea_format *f, const char *which,
                           struct rhea_error *err);
    /* From now on F, which is open for reading, shows that snapshot. */
    int (*snapshot_load)(struct rhea_format *f, const char *which,
                         struct rhea_error *err);
    /* The VM state that belongs to the active state. A read past its end is an
     * error. */
    int (*vm_state_read)(struct rhea_format *f, uint64_t offset, void *buf,
                         size_t len, struct rhea_error *err);
    int (*vm_state_write)(struct rhea_format *f, uint64_t offset,
                          const void *buf, size_t len, struct rhea_error *err);

    /* Persistent bitmaps. */
    int (*bitmap_list)(struct rhea_format *f, struct rhea_bitmap **list,
                       size_t *n, struct rhea_error *err);
    int (*bitmap_add)(struct rhea_format *f, const struct rhea_bitmap *what,
                      struct rhea_error *err);
    int (*bitmap_remove)(struct rhea_format *f, const char *name,
                         struct rhea_error *err);
    int (*bitmap_enable)(struct rhea_format *f, const char *name, bool enabled,
                         struct rhea_error *err);
    /* All bits, least significant first in each byte, N bytes:
     * ceil(ceil(size / granularity) / 8), zero past the last bit. Store
     * replaces them all. Both refuse one that is in use. */
    int (*bitmap_load)(struct rhea_format *f, const char *name, uint8_t *bits,
                       size_t n, struct rhea_error *err);
    int (*bitmap_store)(struct rhea_format *f, const char *name,
                        const uint8_t *bits, size_t n, struct rhea_error *err);
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

/* Open an image that is nothing but STORAGE, without options. */
RHEA_API int rhea_format_open_over(const struct rhea_format_ops *ops,
                                   struct rhea_format **out,
                                   struct rhea_storage *storage, unsigned flags,
                                   struct rhea_error *err);

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
