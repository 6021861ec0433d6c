/* SPDX-License-Identifier: MIT */
/*
 * Copying conversion: the guest bytes of one or more images into another
 * image, read, transformed and written by a pool of threads.
 */
#ifndef RHEA_CONVERT_H
#define RHEA_CONVERT_H

#include <rhea/image.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The largest run of zeroes that can be asked for, and the most threads. */
#define RHEA_CONVERT_SPARSE_MAX (16u << 20)
#define RHEA_CONVERT_WORKERS_MAX 16u

struct rhea_convert_options {
    /* The shortest run of zero bytes inside data that is left out rather than
     * written; a multiple of 512. 0: everything is written, zeroes too. */
    uint64_t sparse;
    /* Write clusters compressed; the target's format must be able to. */
    bool compress;
    /* Wherever nothing is written the target reads as zeroes: it is new, and
     * has no backing file. */
    bool target_is_zero;
    /* Where the target's file can share blocks with a source's, do that in
     * place of reading and writing: zeroes in the data are then not looked for.
     * Not with SALVAGED or COMPRESS. */
    bool clone;
    /* Let writes overtake each other. Otherwise the target is written from
     * its start to its end, unless it is compressed. */
    bool any_order;
    unsigned workers; /* 0: as many as suit the machine */
    uint64_t rate;    /* bytes of data a second; 0: as fast as it goes */
    /* What cannot be read of the sources becomes zeroes, sector by sector, and
     * is told of, from any thread. NULL: it ends the conversion. */
    void (*salvaged)(void *opaque, uint64_t offset,
                     const struct rhea_error *err);
    void *salvaged_opaque;
    const struct rhea_progress *progress; /* bytes of the guest */
    /* Progress counts only the data there is to copy; the sources' maps are
     * looked through for that first. */
    bool count_data;
};

/* Where the guest's bytes went; may be NULL. */
struct rhea_convert_result {
    uint64_t written; /* as data */
    uint64_t cloned;  /* of that, by sharing blocks */
    uint64_t zeroes;  /* left out, or written as zeroes without data */
    uint64_t backing; /* left to the target's backing file */
};

/*
 * Copy the contents of N_SOURCES images, one after the other, into TARGET,
 * which must be at least as large; each begins at a multiple of 512. What lies
 * past their end in TARGET is not touched. Where TARGET has a backing image,
 * what that already holds is not copied; for this its chain is compared by
 * file with the chain of a single source, and by contents where no file of
 * that chain is the same. The caller flushes. Sources and target stay the
 * caller's. -ECANCELED when progress says so; TARGET is then incomplete, as
 * after any failure.
 */
RHEA_API int rhea_convert_copy(struct rhea_image *const *sources,
                               size_t n_sources, struct rhea_image *target,
                               const struct rhea_convert_options *options,
                               struct rhea_convert_result *result,
                               struct rhea_error *err);

/*
 * Refuse a conversion that would overwrite what it reads: whether FILENAME,
 * where it exists, is the file of any image in the chain of SOURCE.
 */
RHEA_API int rhea_convert_check_target(struct rhea_image *source,
                                       const char *filename,
                                       struct rhea_error *err);

struct rhea_commit_options {
    uint64_t rate; /* bytes a second; 0: as fast as it goes */
    bool empty;    /* unallocate everything in the top image afterwards, where
                      its format can */
    const struct rhea_progress *progress; /* bytes of the guest */
};

/*
 * Write what TOP and the images between have into BASE, which is below TOP in
 * its chain; BASE grows where TOP is larger. Both are open for writing (see
 * rhea_image_allow_write). Durable when it returns. What the guest sees of TOP
 * is the same at every moment, also when it fails, is cancelled (-ECANCELED) or
 * crashes, and doing it again then completes it. Images between TOP and BASE
 * are useless afterwards, but through TOP.
 */
RHEA_API int rhea_convert_commit(struct rhea_image *top,
                                 struct rhea_image *base,
                                 const struct rhea_commit_options *options,
                                 struct rhea_error *err);

struct rhea_rebase_options {
    const char *file;   /* what the header is to say; NULL: no backing file */
    const char *format; /* NULL: unstated */
    bool unsafe;        /* only change the header, whatever that shows */
    bool compress;      /* what must be copied */
    const struct rhea_progress *progress; /* bytes of the guest */
};

/*
 * Let IMAGE, which is open for writing, have BACKING (NULL: none) as its
 * backing image, without a change of what the guest sees: where both differ,
 * IMAGE takes the bytes from its present one. That holds at every moment, also
 * when it fails, is cancelled (-ECANCELED) or crashes. IMAGE is then to be
 * closed: it still reads through its old chain. Unsafe, BACKING is not looked
 * at.
 */
RHEA_API int rhea_convert_rebase(struct rhea_image *image,
                                 struct rhea_image *backing,
                                 const struct rhea_rebase_options *options,
                                 struct rhea_error *err);

/*
 * How large a file of FORMAT would be that is created with OPTIONS and holds
 * what SOURCE holds, or SIZE bytes of nothing where SOURCE is NULL. With a
 * backing_file among the options, all of SOURCE counts: how much of it the
 * backing file has is not looked at.
 */
RHEA_API int rhea_convert_measure(struct rhea_image *source, uint64_t size,
                                  const char *format,
                                  const struct rhea_option *options, size_t n,
                                  struct rhea_measured *out,
                                  struct rhea_error *err);

#ifdef __cplusplus
}
#endif

#endif
