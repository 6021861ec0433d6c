/* SPDX-License-Identifier: MIT */
/*
 * Conversion between image formats in the file itself, without copying guest
 * data. docs/in-place.md states the crash model and why it holds.
 */
#ifndef RHEA_INPLACE_H
#define RHEA_INPLACE_H

#include <rhea/format.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Things of the source that the user agrees to lose. */
enum {
    RHEA_LOSS_SNAPSHOTS = 1 << 0,
    RHEA_LOSS_BITMAPS = 1 << 1,
    RHEA_LOSS_EXTENSIONS = 1 << 2,     /* of unknown meaning */
    RHEA_LOSS_BACKING_FORMAT = 1 << 3, /* its name; it is probed afterwards */
};

/* The bit for a name ("snapshots"), 0 when there is none; the name of a bit. */
RHEA_API unsigned rhea_loss_find(const char *name);
RHEA_API const char *rhea_loss_name(unsigned bit);

enum rhea_inplace_action {
    RHEA_INPLACE_CONVERT, /* the source's format becomes the target's */
    RHEA_INPLACE_FINISH,  /* it already has; space is still to be tidied */
    RHEA_INPLACE_NOTHING, /* it already has, and nothing is left to do */
};

/* What a conversion will do, or has done. Bytes unless named otherwise. */
struct rhea_inplace_plan {
    enum rhea_inplace_action action;
    const char *source, *target; /* format names */
    uint64_t virtual_size;
    uint64_t source_cluster_size, target_cluster_size;
    uint64_t file_size;       /* before */
    uint64_t final_file_size; /* after */
    uint64_t kept;            /* guest data that stays where it is */
    uint64_t rewritten;       /* guest data written anew before the switch */
    uint64_t filled;          /* of kept clusters: parts written in place */
    uint64_t blank;           /* zeroes that get clusters of their own, as holes
                              of the file */
    uint64_t tables;          /* the target's tables and header */
    uint64_t moved;           /* at most: data moved while tidying up */
    uint64_t written;         /* at most: all writes together */
    uint64_t extra;           /* the file's growth at its peak */
    unsigned losses;          /* RHEA_LOSS_* that apply */
    uint32_t snapshots, bitmaps;    /* how many of them are lost */
    bool unverified_backing_format; /* named format that is not recorded and
                                       could not be looked at */
    char details[256];              /* "refcount_bits=16 l1_size=..." */
};

struct rhea_inplace_options {
    const char *source_format; /* NULL: probe */
    const char *target_format;
    const struct rhea_option *options; /* target's: cluster_size, ... */
    size_t n_options;
    unsigned allow_loss; /* RHEA_LOSS_* */
    bool dry_run;        /* plan only; not a byte is written */
    const struct rhea_progress *progress;
    /* Called with the plan before anything is written; may be NULL. */
    void (*planned)(void *opaque, const struct rhea_inplace_plan *plan);
    void *opaque;
};

/* What the file is after a failure. */
enum rhea_inplace_outcome {
    RHEA_INPLACE_UNTOUCHED, /* the source, byte for byte */
    RHEA_INPLACE_SOURCE,    /* still a whole image of the source format */
    RHEA_INPLACE_EITHER,    /* whole, of one format or the other */
    RHEA_INPLACE_TARGET,    /* a whole image of the target format, in which
                               some space is left to be tidied */
    RHEA_INPLACE_DONE,
};

/*
 * Convert FILENAME, or finish what an earlier call began. The file is locked
 * against every other user, QEMU included, for the whole time. PLAN and
 * OUTCOME may be NULL; OUTCOME is set in every case.
 */
RHEA_API int rhea_inplace_convert(const char *filename,
                                  const struct rhea_inplace_options *options,
                                  struct rhea_inplace_plan *plan,
                                  enum rhea_inplace_outcome *outcome,
                                  struct rhea_error *err);

/* The same over an open, writable storage that the caller has locked and
 * keeps. FILENAME is for messages and relative backing names. */
RHEA_API int rhea_inplace_convert_storage(
    struct rhea_storage *storage, const char *filename,
    const struct rhea_inplace_options *options, struct rhea_inplace_plan *plan,
    enum rhea_inplace_outcome *outcome, struct rhea_error *err);

#ifdef __cplusplus
}
#endif

#endif
