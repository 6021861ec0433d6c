/* SPDX-License-Identifier: MIT */
/* A file's size, and which of its blocks exist. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/file.h"

#define CHUNK ((size_t)256 << 10)

static const uint8_t *space_zeroes(void)
{
    static uint8_t zeroes[CHUNK]; /* not const: stays out of the program */
    return zeroes;
}

/* The fallocate of MODE; 0 or errno. EOPNOTSUPP is remembered as MISSING. */
static int space_fallocate(struct file *f, int mode, unsigned missing,
                           uint64_t offset, uint64_t len)
{
    int ret;
    if (atomic_load(&f->missing) & missing)
        return EOPNOTSUPP;
    do {
        ret = fallocate(f->fd, mode, (off_t)offset, (off_t)len);
    } while (ret < 0 && errno == EINTR);
    if (ret == 0)
        return 0;
    if (errno == EOPNOTSUPP || errno == ENOSYS) {
        atomic_fetch_or(&f->missing, missing);
        return EOPNOTSUPP;
    }
    /* A block device's whole blocks only: not a property of the device. */
    if (errno == EINVAL && !f->regular)
        return EOPNOTSUPP;
    return errno;
}

/* Set the size of a regular file; 0 or errno. */
static int space_resize(struct file *f, uint64_t size)
{
    int ret;
    do {
        ret = ftruncate(f->fd, (off_t)size);
    } while (ret < 0 && errno == EINTR);
    atomic_store(&f->resized, true);
    return ret < 0 ? errno : 0;
}

int file_truncate(struct rhea_storage *s, uint64_t size, struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    if (!f->regular) {
        uint64_t now;
        int ret = file_size(s, &now, err);
        if (ret || now == size)
            return ret;
        return rhea_error_set(err, EOPNOTSUPP,
                              "'%s' is a device of %" PRIu64
                              " bytes and cannot be resized",
                              s->path, now);
    }
    pthread_rwlock_wrlock(&f->resize_lock);
    int code = space_resize(f, size);
    pthread_rwlock_unlock(&f->resize_lock);
    if (code)
        return rhea_error_errno(err, code,
                                "could not resize '%s' to %" PRIu64 " bytes",
                                s->path, size);
    return 0;
}

enum space_kind { SPACE_HOLE, SPACE_DATA, SPACE_UNKNOWN };

/* What is at OFFSET, for *RUN bytes, at most LEN. What lies past the end is a
 * hole. lseek moves the offset that all threads share, but nobody uses it. */
static enum space_kind space_look(struct file *f, uint64_t offset, uint64_t len,
                                  uint64_t *run)
{
    *run = len;
    if (!f->regular)
        return SPACE_UNKNOWN;
    off_t data = lseek(f->fd, (off_t)offset, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? SPACE_HOLE : SPACE_UNKNOWN;
    if ((uint64_t)data > offset) {
        *run = RHEA_MIN(len, (uint64_t)data - offset);
        return SPACE_HOLE;
    }
    off_t hole = lseek(f->fd, (off_t)offset, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= offset)
        return SPACE_UNKNOWN;
    *run = RHEA_MIN(len, (uint64_t)hole - offset);
    return SPACE_DATA;
}

int file_extent(struct rhea_storage *s, uint64_t offset, uint64_t len,
                bool *hole, uint64_t *run, struct rhea_error *err)
{
    (void)err;
    *hole = space_look((struct file *)s, offset, len, run) == SPACE_HOLE;
    return 0;
}

/* Write zeroes over what is not a hole. */
static int space_write_zeroes(struct file *f, uint64_t offset, uint64_t len,
                              struct rhea_error *err)
{
    while (len) {
        uint64_t run;
        if (space_look(f, offset, RHEA_MIN(len, (uint64_t)CHUNK), &run) !=
            SPACE_HOLE) {
            int ret =
                file_write_cached(f, space_zeroes(), (size_t)run, offset, err);
            if (ret)
                return ret;
        }
        offset += run;
        len -= run;
    }
    return 0;
}

/* Zero what is inside the file. */
static int space_zero_inside(struct file *f, uint64_t offset, uint64_t len,
                             bool punch, struct rhea_error *err)
{
    int code = EOPNOTSUPP;
    if (punch)
        code = space_fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               FILE_NO_PUNCH, offset, len);
    if (code == EOPNOTSUPP)
        code = space_fallocate(f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                               FILE_NO_ZERO_RANGE, offset, len);
    if (code == EOPNOTSUPP)
        return space_write_zeroes(f, offset, len, err);
    return code ? file_fail(f, code, "zero", offset, len, err) : 0;
}

/* Hold the resize lock: for writing where END lies past the end. */
static int space_lock(struct file *f, uint64_t end, uint64_t *size,
                      struct rhea_error *err)
{
    pthread_rwlock_rdlock(&f->resize_lock);
    int ret = file_size(&f->head, size, err);
    if (!ret && end > *size) {
        pthread_rwlock_unlock(&f->resize_lock);
        pthread_rwlock_wrlock(&f->resize_lock);
        ret = file_size(&f->head, size, err);
    }
    if (ret)
        pthread_rwlock_unlock(&f->resize_lock);
    return ret;
}

int file_zero(struct rhea_storage *s, uint64_t offset, uint64_t len, bool punch,
              struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    uint64_t size, end = offset + len;
    int ret = space_lock(f, end, &size, err);
    if (ret)
        return ret;
    if (!f->regular && end > size) {
        ret = file_fail(f, ENOSPC, "zero", offset, len, err);
    } else {
        if (offset < size)
            ret = space_zero_inside(f, offset, RHEA_MIN(end, size) - offset,
                                    punch, err);
        int code = !ret && end > size ? space_resize(f, end) : 0;
        if (code)
            ret = file_fail(f, code, "zero", offset, len, err);
    }
    pthread_rwlock_unlock(&f->resize_lock);
    return ret;
}

/*
 * Whether NEED more bytes can be had at all. fallocate would find out, too, but
 * only after it has taken all that is left from everybody else.
 */
static bool space_has_room(struct file *f, uint64_t need)
{
    struct statvfs fs;
    uint64_t room;
    if (fstatvfs(f->fd, &fs) < 0 || fs.f_blocks == 0 ||
        !mul_u64(fs.f_bfree, fs.f_frsize, &room))
        return true;
    return need <= room;
}

/*
 * Without fallocate: write the bytes that are there over themselves, for that
 * gives them blocks. A file system that cannot tell its holes says that all is
 * data, hence only a file with as many blocks as bytes is believed to have
 * none. Nobody else writes meanwhile: the resize lock is held.
 */
static int space_rewrite(struct file *f, uint64_t offset, uint64_t len,
                         struct rhea_error *err)
{
    struct stat st;
    bool full = fstat(f->fd, &st) == 0 && st.st_blocks >= st.st_size / 512;
    RHEA_AUTO_FREE uint8_t *buf = malloc(CHUNK);
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (len) {
        uint64_t run;
        enum space_kind kind =
            space_look(f, offset, RHEA_MIN(len, (uint64_t)CHUNK), &run);
        if (kind != SPACE_DATA || !full) {
            int64_t n = file_read_cached(f, buf, (size_t)run, offset, err);
            if (n < 0)
                return (int)n;
            /* Shrunk by another program; nothing is left to reserve. */
            if (n == 0)
                return 0;
            run = (uint64_t)n;
            int ret = file_write_cached(f, buf, (size_t)run, offset, err);
            if (ret)
                return ret;
        }
        offset += run;
        len -= run;
    }
    return 0;
}

/* Past the end zeroes are written, even where there is nothing yet. */
static int space_append(struct file *f, uint64_t offset, uint64_t len,
                        struct rhea_error *err)
{
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, (uint64_t)CHUNK);
        int ret = file_write_cached(f, space_zeroes(), n, offset, err);
        if (ret)
            return ret;
        offset += n;
        len -= n;
    }
    return 0;
}

static int space_allocate(struct file *f, uint64_t offset, uint64_t len,
                          uint64_t size, struct rhea_error *err)
{
    uint64_t end = offset + len, inside = 0;
    if (offset < size)
        inside = RHEA_MIN(end, size) - offset;
    if (!space_has_room(f, len - inside))
        return file_fail(f, ENOSPC, "reserve", offset, len, err);

    atomic_store(&f->resized, true);
    int code = space_fallocate(f, 0, FILE_NO_ALLOCATE, offset, len);
    if (code == EOPNOTSUPP) {
        int ret = inside ? space_rewrite(f, offset, inside, err) : 0;
        if (!ret && len > inside)
            ret = space_append(f, offset + inside, len - inside, err);
        return ret;
    }
    return code ? file_fail(f, code, "reserve", offset, len, err) : 0;
}

int file_allocate(struct rhea_storage *s, uint64_t offset, uint64_t len,
                  struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    uint64_t before, after;
    pthread_rwlock_wrlock(&f->resize_lock);
    int ret = file_size(s, &before, err);
    if (!ret && !f->regular) {
        if (offset + len > before)
            ret = file_fail(f, ENOSPC, "reserve", offset, len, err);
    } else if (!ret) {
        ret = space_allocate(f, offset, len, before, err);
        /* It may have come some of the way. Should this fail, the first error
         * is still the one to tell. */
        if (ret && file_size(s, &after, NULL) == 0 && after > before)
            space_resize(f, before);
    }
    pthread_rwlock_unlock(&f->resize_lock);
    return ret;
}
