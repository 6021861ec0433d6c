/* SPDX-License-Identifier: MIT */
/*
 * A storage knows bytes: a file, a block of memory, or another storage with
 * faults or a recorder in front. It knows nothing of what the bytes mean.
 *
 * Offsets and lengths are bytes. Every call is synchronous and safe from many
 * threads at once, except close, which must be the last. All functions return
 * 0 or a negative errno and fill the error (see base.h).
 *
 * Durability: a write is durable once a flush that began after it returned has
 * returned 0. Between flushes any subset of the writes may survive a crash, in
 * any order, each torn at 512-byte sectors. After a failed flush nothing is
 * known of the writes before it, and the caller must not flush again to find
 * out: it stops.
 */
#ifndef RHEA_STORAGE_H
#define RHEA_STORAGE_H

#include <rhea/base.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rhea_storage;

/* The permissions QEMU shares images by; bits of its byte-range locks. */
enum {
    RHEA_LOCK_READ = 1 << 0,      /* "consistent read" */
    RHEA_LOCK_WRITE = 1 << 1,     /* changes what a reader sees */
    RHEA_LOCK_UNCHANGED = 1 << 2, /* writes that change nothing visible */
    RHEA_LOCK_RESIZE = 1 << 3,    /* changes the size of the file */
    RHEA_LOCK_ALL = 0xf,
};

/*
 * What a kind of storage provides. Called with arguments already checked:
 * LEN > 0, OFFSET + LEN does not overflow INT64_MAX.
 */
struct rhea_storage_ops {
    const char *name;

    /* Read up to LEN bytes; returns the count, which is short only at the end
     * of the storage (0 at or past it), or a negative errno. */
    int64_t (*pread)(struct rhea_storage *s, void *buf, size_t len,
                     uint64_t offset, struct rhea_error *err);
    /* Write all of it, growing the storage where it can grow. */
    int (*pwrite)(struct rhea_storage *s, const void *buf, size_t len,
                  uint64_t offset, struct rhea_error *err);
    int (*flush)(struct rhea_storage *s, struct rhea_error *err);
    int (*size)(struct rhea_storage *s, uint64_t *size, struct rhea_error *err);
    int (*truncate)(struct rhea_storage *s, uint64_t size,
                    struct rhea_error *err);
    /* Make the range read as zeroes, growing the storage if need be. With
     * PUNCH, give its blocks back where that is possible. */
    int (*zero)(struct rhea_storage *s, uint64_t offset, uint64_t len,
                bool punch, struct rhea_error *err);
    /* The bytes are needed no more: what can be given back of them is, and
     * reads as zeroes from then on. NULL: zero, with PUNCH, does it. */
    int (*discard)(struct rhea_storage *s, uint64_t offset, uint64_t len,
                   struct rhea_error *err);
    /* Reserve blocks for the range, so that writing it cannot fail for lack
     * of space. Changes no byte inside the storage; the storage grows with
     * zeroes to the end of the range. -ENOSPC when there is no room, and then
     * the size is as before. */
    int (*allocate)(struct rhea_storage *s, uint64_t offset, uint64_t len,
                    struct rhea_error *err);
    /* The range takes the bytes that FROM has from FROM_OFFSET on, zeroes past
     * its end, as if they were read and written, but shares its blocks where
     * both are whole ones; the rest is copied. -ENOTSUP where S can share
     * none with FROM. LEN may be 0, which asks only whether it can: -ENOTSUP
     * is never the answer after that. NULL: it cannot. */
    int (*clone)(struct rhea_storage *s, uint64_t offset,
                 struct rhea_storage *from, uint64_t from_offset, uint64_t len,
                 struct rhea_error *err);
    /* Whether the bytes at OFFSET are a hole, and for how many bytes that
     * holds (at least 1, at most LEN). A storage that cannot tell says
     * "no hole". OFFSET is inside the storage. NULL: cannot tell. */
    int (*extent)(struct rhea_storage *s, uint64_t offset, uint64_t len,
                  bool *hole, uint64_t *run, struct rhea_error *err);
    /* The range will be read soon; a hint, which may do nothing. NULL: it
     * does nothing. */
    void (*prefetch)(struct rhea_storage *s, uint64_t offset, uint64_t len);
    /* What was written to the range may go to the disk now, so that the next
     * flush has less to wait for; a hint, which promises nothing. NULL: it does
     * nothing. */
    void (*writeback)(struct rhea_storage *s, uint64_t offset, uint64_t len);
    /* Take the locks for using PERM while letting others use SHARED (bits
     * RHEA_LOCK_*); replaces what was held. -EBUSY names the conflict.
     * NULL: this storage cannot be shared. */
    int (*lock)(struct rhea_storage *s, unsigned perm, unsigned shared,
                struct rhea_error *err);
    /* The storage that S stands in front of and that holds its bytes. NULL: it
     * holds them itself. */
    struct rhea_storage *(*inner)(const struct rhea_storage *s);
    /* Whatever stands over S has come to the point NAME, one of QEMU's
     * blkdebug events; it may be made to wait there. NULL: nobody cares. */
    void (*event)(struct rhea_storage *s, const char *name);
    /* Release everything; S itself too. */
    void (*close)(struct rhea_storage *s);
};

/* The head of every storage; a kind's own struct begins with it. */
struct rhea_storage {
    const struct rhea_storage_ops *ops;
    char *path; /* owned, for messages; may be NULL */
    bool writable;
};

enum {
    RHEA_FILE_WRITE = 1 << 0,    /* open for writing too */
    RHEA_FILE_CREATE = 1 << 1,   /* create; an existing file is truncated only
                                    once the lock on it is held */
    RHEA_FILE_DIRECT = 1 << 2,   /* past the page cache */
    RHEA_FILE_NO_FLUSH = 1 << 3, /* flush does nothing: for a new file that is
                                    thrown away if its writing is cut short */
};

/*
 * A local file or block device. Takes no lock: see rhea_storage_lock. The lock
 * is QEMU's: shared record locks on bytes 100 + bit for each permission used
 * and 200 + bit for each one not shared (QEMU block/file-posix.c).
 */
RHEA_API int rhea_file_open(struct rhea_storage **out, const char *path,
                            unsigned flags, struct rhea_error *err);
/* Whether it is, or stands in front of, a regular file, which can grow and
 * shrink. */
RHEA_API bool rhea_file_is_regular(const struct rhea_storage *s);
/* Bytes its blocks occupy (st_blocks * 512), and device/inode identity.
 * -EINVAL: it is no file. */
RHEA_API int rhea_file_stat(const struct rhea_storage *s, uint64_t *disk_size,
                            uint64_t *device, uint64_t *inode);

/* When its bytes were changed last, in seconds since 1970. -EINVAL: it is no
 * file. */
RHEA_API int rhea_file_mtime(const struct rhea_storage *s, int64_t *seconds);

/* A growable block of memory, for tests and fuzzing. LIMIT: -ENOSPC past it. */
RHEA_API int rhea_memory_open(struct rhea_storage **out, uint64_t limit,
                              struct rhea_error *err);

/* The calls the rest of the project makes: they check the arguments. */

/* Read all of LEN; -EIO "past the end of the file" where there is less. */
RHEA_API int rhea_storage_read(struct rhea_storage *s, void *buf, size_t len,
                               uint64_t offset, struct rhea_error *err);
/* Read all of LEN; what lies past the end reads as zeroes. For the places
 * where a format's own writers leave the last cluster short. */
RHEA_API int rhea_storage_read_padded(struct rhea_storage *s, void *buf,
                                      size_t len, uint64_t offset,
                                      struct rhea_error *err);
RHEA_API int rhea_storage_write(struct rhea_storage *s, const void *buf,
                                size_t len, uint64_t offset,
                                struct rhea_error *err);
RHEA_API int rhea_storage_flush(struct rhea_storage *s, struct rhea_error *err);
RHEA_API int rhea_storage_size(struct rhea_storage *s, uint64_t *size,
                               struct rhea_error *err);
RHEA_API int rhea_storage_truncate(struct rhea_storage *s, uint64_t size,
                                   struct rhea_error *err);
RHEA_API int rhea_storage_zero(struct rhea_storage *s, uint64_t offset,
                               uint64_t len, bool punch,
                               struct rhea_error *err);
RHEA_API int rhea_storage_discard(struct rhea_storage *s, uint64_t offset,
                                  uint64_t len, struct rhea_error *err);
RHEA_API int rhea_storage_allocate(struct rhea_storage *s, uint64_t offset,
                                   uint64_t len, struct rhea_error *err);
RHEA_API int rhea_storage_clone(struct rhea_storage *s, uint64_t offset,
                                struct rhea_storage *from, uint64_t from_offset,
                                uint64_t len, struct rhea_error *err);
RHEA_API int rhea_storage_extent(struct rhea_storage *s, uint64_t offset,
                                 uint64_t len, bool *hole, uint64_t *run,
                                 struct rhea_error *err);
RHEA_API int rhea_storage_lock(struct rhea_storage *s, unsigned perm,
                               unsigned shared, struct rhea_error *err);
RHEA_API void rhea_storage_prefetch(struct rhea_storage *s, uint64_t offset,
                                    uint64_t len);
RHEA_API void rhea_storage_writeback(struct rhea_storage *s, uint64_t offset,
                                     uint64_t len);
/* For formats, at the points that have a name; see the operation. */
static inline void rhea_storage_event(struct rhea_storage *s, const char *name)
{
    if (s->ops->event)
        s->ops->event(s, name);
}
/* NULL is fine. */
RHEA_API void rhea_storage_close(struct rhea_storage *s);

#ifdef __cplusplus
}
#endif

#endif
