/* SPDX-License-Identifier: MIT */
/* Local files and block devices. */
#include "storage/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/memory.h"

/* No kernel moves more in one call. */
#define IO_MAX ((size_t)1 << 30)

int file_fail(const struct file *f, int code, const char *verb, uint64_t offset,
              uint64_t len, struct rhea_error *err)
{
    return rhea_error_errno(err, code,
                            "could not %s %" PRIu64 " bytes at offset %" PRIu64
                            " of '%s'",
                            verb, len, offset, f->head.path);
}

int64_t file_read_cached(struct file *f, void *buf, size_t len, uint64_t offset,
                         struct rhea_error *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(f->fd, (uint8_t *)buf + done,
                          RHEA_MIN(len - done, IO_MAX), (off_t)(offset + done));
        if (n == 0)
            break;
        if (n > 0)
            done += (size_t)n;
        else if (errno != EINTR)
            return file_fail(f, errno, "read", offset, len, err);
    }
    return (int64_t)done;
}

int file_write_cached(struct file *f, const void *buf, size_t len,
                      uint64_t offset, struct rhea_error *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n =
            pwrite(f->fd, (const uint8_t *)buf + done,
                   RHEA_MIN(len - done, IO_MAX), (off_t)(offset + done));
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            return file_fail(f, n == 0 ? EIO : errno, "write", offset, len,
                             err);
    }
    return 0;
}

static int64_t file_pread(struct rhea_storage *s, void *buf, size_t len,
                          uint64_t offset, struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    if (f->direct_fd >= 0)
        return file_direct_read(f, buf, len, offset, err);
    return file_read_cached(f, buf, len, offset, err);
}

static int file_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                       uint64_t offset, struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    if (f->direct_fd >= 0)
        return file_direct_write(f, buf, len, offset, err);
    pthread_rwlock_rdlock(&f->resize_lock);
    int ret = file_write_cached(f, buf, len, offset, err);
    pthread_rwlock_unlock(&f->resize_lock);
    return ret;
}

/* Not every file system can flush a folder; those that cannot need not. */
void file_flush_folder(const char *path)
{
    RHEA_AUTO_FREE char *folder = strdup(path);
    if (!folder)
        return;
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = 0;
    RHEA_AUTO_CLOSE int fd =
        open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        fsync(fd);
}

/* fdatasync is promised to keep the size only where reading the data needs it;
 * fsync keeps a smaller one too. */
static int file_flush(struct rhea_storage *s, struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    if (f->no_flush)
        return 0;
    int code = atomic_load(&f->flush_failed);
    if (code)
        /* The kernel reports lost writes once and then forgets them. */
        return rhea_error_errno(err, code,
                                "an earlier flush of '%s' has failed", s->path);

    bool resized = atomic_exchange(&f->resized, false);
    int ret;
    do {
        ret = resized ? fsync(f->fd) : fdatasync(f->fd);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0) {
        code = errno;
        atomic_store(&f->flush_failed, code);
        return rhea_error_errno(
            err, code, "could not flush '%s' to stable storage", s->path);
    }
    if (f->created) {
        file_flush_folder(s->path);
        f->created = false;
    }
    return 0;
}

int file_size(struct rhea_storage *s, uint64_t *size, struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    struct stat st = {0};
    off_t end = -1;
    if (!f->regular)
        end = lseek(f->fd, 0, SEEK_END);
    else if (fstat(f->fd, &st) == 0)
        end = st.st_size;
    if (end < 0)
        return rhea_error_errno(err, errno,
                                "could not find out the size of '%s'", s->path);
    *size = (uint64_t)end;
    return 0;
}

static void file_close(struct rhea_storage *s)
{
    struct file *f = (struct file *)s;
    if (f->direct_fd >= 0)
        close(f->direct_fd);
    if (f->fd >= 0)
        close(f->fd);
    pthread_rwlock_destroy(&f->resize_lock);
    free(s->path);
    free(f);
}

/* Open the descriptor of all but bulk data, and look at what it is.
 * O_NONBLOCK, so that a FIFO is refused instead of waited for. */
static int file_open_fd(struct file *f, unsigned flags, struct stat *st,
                        struct rhea_error *err)
{
    const char *path = f->head.path;
    int mode = (flags & RHEA_FILE_WRITE ? O_RDWR : O_RDONLY) |
               (flags & RHEA_FILE_CREATE ? O_CREAT : 0);
    do {
        f->fd = open(path, mode | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    } while (f->fd < 0 && errno == EINTR);
    if (f->fd < 0)
        return rhea_error_errno(err, errno, "could not %s '%s'",
                                flags & RHEA_FILE_CREATE ? "create" : "open",
                                path);
    if (fstat(f->fd, st) < 0)
        return rhea_error_errno(err, errno, "could not look at '%s'", path);
    if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
        return rhea_error_set(err, S_ISDIR(st->st_mode) ? EISDIR : EINVAL,
                              "'%s' is %s, not a file or a block device", path,
                              S_ISDIR(st->st_mode)    ? "a folder"
                              : S_ISCHR(st->st_mode)  ? "a character device"
                              : S_ISFIFO(st->st_mode) ? "a pipe"
                                                      : "something else");
    f->regular = S_ISREG(st->st_mode);
    int fl = fcntl(f->fd, F_GETFL);
    if (fl < 0 || fcntl(f->fd, F_SETFL, fl & ~O_NONBLOCK) < 0)
        return rhea_error_errno(err, errno, "could not set up '%s'", path);
    return 0;
}

/* A second descriptor of the same file, for bulk data. */
static int file_open_direct(struct file *f, unsigned flags,
                            const struct stat *st, struct rhea_error *err)
{
    int mode = flags & RHEA_FILE_WRITE ? O_RDWR : O_RDONLY;
    const char *path = f->head.path;
    do {
        f->direct_fd = open(path, mode | O_CLOEXEC | O_NOCTTY | O_DIRECT);
    } while (f->direct_fd < 0 && errno == EINTR);
    if (f->direct_fd < 0 && errno == EINVAL)
        return rhea_error_set(err, EINVAL,
                              "the file system of '%s' has no direct access "
                              "past the page cache",
                              path);
    struct stat again = {0};
    if (f->direct_fd < 0 || fstat(f->direct_fd, &again) < 0)
        return rhea_error_errno(err, errno,
                                "could not open '%s' for direct access", path);
    if (again.st_dev != st->st_dev || again.st_ino != st->st_ino)
        return rhea_error_set(err, EBUSY,
                              "'%s' was replaced while it was opened", path);
    return 0;
}

int rhea_file_open(struct rhea_storage **out, const char *path, unsigned flags,
                   struct rhea_error *err)
{
    if (flags & RHEA_FILE_CREATE)
        flags |= RHEA_FILE_WRITE;
    struct file *f = calloc(1, sizeof(*f));
    char *copy = strdup(path);
    if (!f || !copy) {
        free(f);
        free(copy);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    f->fd = f->direct_fd = -1;
    f->head.ops = &file_storage_ops;
    f->head.path = copy;
    f->head.writable = flags & RHEA_FILE_WRITE;
    f->created = flags & RHEA_FILE_CREATE;
    f->no_flush = flags & RHEA_FILE_NO_FLUSH;
    pthread_rwlock_init(&f->resize_lock, NULL);

    struct stat st = {0};
    int ret = file_open_fd(f, flags, &st, err);
    if (!ret && (flags & RHEA_FILE_DIRECT))
        ret = file_open_direct(f, flags, &st, err);
    if (ret) {
        file_close(&f->head);
        return ret;
    }
    *out = &f->head;
    return 0;
}

bool rhea_file_is_regular(const struct rhea_storage *s)
{
    s = storage_innermost(s);
    if (s->ops == &file_storage_ops)
        return ((const struct file *)s)->regular;
    return s->ops == &memory_storage_ops;
}

int rhea_file_stat(const struct rhea_storage *s, uint64_t *disk_size,
                   uint64_t *device, uint64_t *inode)
{
    s = storage_innermost(s);
    if (s->ops == &memory_storage_ops) {
        *disk_size = memory_resident(s);
        *device = 0;
        *inode = (uintptr_t)s;
        return 0;
    }
    struct stat st;
    if (s->ops != &file_storage_ops)
        return -EINVAL;
    if (fstat(((const struct file *)s)->fd, &st) < 0)
        return -errno;
    *disk_size = (uint64_t)st.st_blocks * 512;
    *device = st.st_dev;
    *inode = st.st_ino;
    return 0;
}

int rhea_file_mtime(const struct rhea_storage *s, int64_t *seconds)
{
    struct stat st;
    s = storage_innermost(s);
    if (s->ops != &file_storage_ops)
        return -EINVAL;
    if (fstat(((const struct file *)s)->fd, &st) < 0)
        return -errno;
    *seconds = st.st_mtime;
    return 0;
}

static void file_prefetch(struct rhea_storage *s, uint64_t offset, uint64_t len)
{
    struct file *f = (struct file *)s;
    if (f->direct_fd < 0)
        posix_fadvise(f->fd, (off_t)offset, (off_t)len, POSIX_FADV_WILLNEED);
}

static void file_writeback(struct rhea_storage *s, uint64_t offset,
                           uint64_t len)
{
    /* An error shows in the next flush. */
    sync_file_range(((struct file *)s)->fd, (off_t)offset, (off_t)len,
                    SYNC_FILE_RANGE_WRITE);
}

const struct rhea_storage_ops file_storage_ops = {
    .name = "file",
    .pread = file_pread,
    .pwrite = file_pwrite,
    .flush = file_flush,
    .size = file_size,
    .truncate = file_truncate,
    .zero = file_zero,
    .allocate = file_allocate,
    .clone = file_clone,
    .extent = file_extent,
    .prefetch = file_prefetch,
    .writeback = file_writeback,
    .lock = file_lock,
    .close = file_close,
};
