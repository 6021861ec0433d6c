/* SPDX-License-Identifier: MIT */
/* Sharing blocks of another storage, and what stands in where that is not
 * possible. */
#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/file.h"

enum { CLONE_BUFFER = 1 << 20 };

int storage_clone_by_copy(struct rhea_storage *s, uint64_t offset,
                          struct rhea_storage *from, uint64_t from_offset,
                          uint64_t len, struct rhea_error *err)
{
    size_t size = (size_t)RHEA_MIN(len, (uint64_t)CLONE_BUFFER);
    if (!len)
        return 0;
    RHEA_AUTO_FREE uint8_t *buf = aligned_alloc(
        FILE_DIRECT_ALIGN, (size_t)align_up(size, FILE_DIRECT_ALIGN));
    if (!buf)
        return rhea_error_set(err, ENOMEM, "out of memory");
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, (uint64_t)size);
        int ret = rhea_storage_read_padded(from, buf, n, from_offset, err);
        if (!ret)
            ret = s->ops->pwrite(s, buf, n, offset, err);
        if (ret)
            return ret;
        offset += n;
        from_offset += n;
        len -= n;
    }
    return 0;
}

/* 0 or an errno. */
static int clone_range(const struct file *f, uint64_t offset,
                       const struct file *from, uint64_t from_offset,
                       uint64_t len)
{
    struct file_clone_range range = {
        .src_fd = from->fd,
        .src_offset = from_offset,
        .src_length = len,
        .dest_offset = offset,
    };
    int ret;
    do {
        ret = ioctl(f->fd, FICLONERANGE, &range);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? errno : 0;
}

/* A range that begins at the end of its file has no bytes: the kernel looks at
 * everything else, and does nothing. */
static int clone_ask(struct file *f, struct file *from, struct rhea_error *err)
{
    uint64_t end;
    int ret = file_size(&from->head, &end, err);
    if (ret)
        return ret;
    int code = clone_range(f, 0, from, end, 0);
    return code ? rhea_error_errno(err, ENOTSUP,
                                   "'%s' cannot share blocks with '%s'",
                                   f->head.path, from->head.path)
                : 0;
}

int file_clone(struct rhea_storage *s, uint64_t offset,
               struct rhea_storage *from, uint64_t from_offset, uint64_t len,
               struct rhea_error *err)
{
    struct file *f = (struct file *)s, *source = (struct file *)from;
    if (from->ops != &file_storage_ops || !f->regular || !source->regular)
        return rhea_error_errno(
            err, ENOTSUP, "'%s' can share blocks with files only", s->path);
    if (!len)
        return clone_ask(f, source, err);

    atomic_store(&f->resized, true);
    pthread_rwlock_rdlock(&f->resize_lock);
    int code = clone_range(f, offset, source, from_offset, len);
    pthread_rwlock_unlock(&f->resize_lock);
    if (code == ENOSPC || code == EDQUOT || code == EIO || code == EFBIG)
        return file_fail(f, code, "clone", offset, len, err);
    /* Not whole blocks, or too many shares of one: those are copied. */
    return code ? storage_clone_by_copy(s, offset, from, from_offset, len, err)
                : 0;
}
