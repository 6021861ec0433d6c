/* SPDX-License-Identifier: MIT */
/* The parts of the file storage: file.c opens, reads and writes; file_space.c
 * resizes, reserves and zeroes; file_direct.c goes past the page cache;
 * file_lock.c shares the file with QEMU; clone.c shares
 * blocks with other files; file_create.c asks the file system for what a new
 * file is to be like; file_driver.c reads options. */
#ifndef RHEA_STORAGE_FILE_H
#define RHEA_STORAGE_FILE_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/driver.h"
#include "storage/internal.h"

/* Ways of fallocate that a file system may lack. */
enum {
    FILE_NO_ALLOCATE = 1 << 0,
    FILE_NO_PUNCH = 1 << 1,
    FILE_NO_ZERO_RANGE = 1 << 2,
};

/* O_DIRECT wants memory, offsets and lengths to be multiples of the device's
 * logical block, which is at most this. */
#define FILE_DIRECT_ALIGN 4096

struct file {
    struct rhea_storage head;
    int fd;        /* through the page cache; all but bulk data */
    int direct_fd; /* the same file with O_DIRECT, or -1 */
    bool regular;  /* else a block device */
    bool created;  /* its folder may have to be flushed too */
    bool no_flush; /* RHEA_FILE_NO_FLUSH */
    bool no_lock;  /* option locking=off */
    /* Held for reading by writers, for writing by whoever changes the size
     * in a way that depends on what it was. */
    pthread_rwlock_t resize_lock;
    atomic_bool resized;     /* since the last flush */
    atomic_int flush_failed; /* errno of the flush that failed */
    atomic_uint missing;     /* FILE_NO_*: found not to work here */
    unsigned locked_perm, locked_unshared; /* lock bytes held */
};

/* All of LEN, or up to the end of the file; through the page cache. */
int64_t file_read_cached(struct file *f, void *buf, size_t len, uint64_t offset,
                         struct rhea_error *err);
int file_write_cached(struct file *f, const void *buf, size_t len,
                      uint64_t offset, struct rhea_error *err);
int file_size(struct rhea_storage *s, uint64_t *size, struct rhea_error *err);
/* "could not VERB LEN bytes at offset OFFSET of 'path': <CODE's words>" */
int file_fail(const struct file *f, int code, const char *verb, uint64_t offset,
              uint64_t len, struct rhea_error *err);

int64_t file_direct_read(struct file *f, void *buf, size_t len, uint64_t offset,
                         struct rhea_error *err);
int file_direct_write(struct file *f, const void *buf, size_t len,
                      uint64_t offset, struct rhea_error *err);

int file_truncate(struct rhea_storage *s, uint64_t size,
                  struct rhea_error *err);
int file_zero(struct rhea_storage *s, uint64_t offset, uint64_t len, bool punch,
              struct rhea_error *err);
int file_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                  struct rhea_error *err);
int file_clone(struct rhea_storage *s, uint64_t offset,
               struct rhea_storage *from, uint64_t from_offset, uint64_t len,
               struct rhea_error *err);
int file_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                bool *hole, uint64_t *run, struct rhea_error *err);

/* For struct storage_driver. */
extern const struct rhea_option_help file_create_options[];
int file_prepare_new(struct rhea_storage *s, const struct storage_options *o,
                     struct rhea_error *err);

int file_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
              struct rhea_error *err);

/* Make names in the folder of PATH durable: of a new file, or of one that was
 * renamed. */
void file_flush_folder(const char *path);

#endif
