/* SPDX-License-Identifier: MIT */
/*
 * Reads and writes past the page cache.
 *
 * Whole blocks go through the O_DIRECT descriptor, by way of an aligned buffer
 * where the caller's is not aligned. A write's unaligned edges go through the
 * ordinary descriptor, so that the kernel merges them with their block: it
 * writes such a page back before the next direct read of it and drops it
 * before the next direct write. Unlike a read-modify-write of our own this
 * leaves the file's size at the exact byte, at every moment.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/file.h"

#define BOUNCE_MAX ((size_t)1 << 20)

/* A block past the cache; the count or a negative errno. */
static ssize_t direct_pread(struct file *f, void *buf, size_t len,
                            uint64_t offset)
{
    ssize_t n;
    do {
        n = pread(f->direct_fd, buf, len, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* Whether BUF can be handed to the kernel for LEN bytes at OFFSET. */
static bool direct_aligned(const void *buf, size_t len, uint64_t offset)
{
    return is_aligned((uintptr_t)buf | len | offset, FILE_DIRECT_ALIGN);
}

static void *direct_bounce(size_t len)
{
    return aligned_alloc(
        FILE_DIRECT_ALIGN,
        RHEA_MIN(align_up(len, FILE_DIRECT_ALIGN) + FILE_DIRECT_ALIGN,
                 BOUNCE_MAX));
}

int64_t file_direct_read(struct file *f, void *buf, size_t len, uint64_t offset,
                         struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *bounce = NULL;
    if (!direct_aligned(buf, len, offset)) {
        bounce = direct_bounce(len);
        if (!bounce)
            return rhea_error_set(err, ENOMEM, "out of memory");
    }

    size_t done = 0;
    while (done < len) {
        uint64_t start = align_down(offset + done, FILE_DIRECT_ALIGN);
        size_t skip = (size_t)(offset + done - start);
        size_t want = RHEA_MIN(skip + len - done, BOUNCE_MAX);
        uint8_t *to = bounce ? bounce : (uint8_t *)buf + done;
        ssize_t n =
            direct_pread(f, to, align_up(want, FILE_DIRECT_ALIGN), start);
        if (n < 0)
            return file_fail(f, (int)-n, "read", offset, len, err);
        size_t got = RHEA_MIN((size_t)n, want);
        if (got <= skip)
            break;
        if (bounce)
            memcpy((uint8_t *)buf + done, bounce + skip, got - skip);
        done += got - skip;
        /* A part of a block is the end of the file. */
        if (!is_aligned((uint64_t)n, FILE_DIRECT_ALIGN))
            break;
    }
    return (int64_t)done;
}

/* OFFSET and LEN are whole blocks. */
static int direct_write_blocks(struct file *f, const uint8_t *buf, size_t len,
                               uint64_t offset, struct rhea_error *err)
{
    RHEA_AUTO_FREE uint8_t *bounce = NULL;
    if (!direct_aligned(buf, len, offset)) {
        bounce = direct_bounce(len);
        if (!bounce)
            return rhea_error_set(err, ENOMEM, "out of memory");
    }

    size_t done = 0;
    while (done < len) {
        size_t want = RHEA_MIN(len - done, BOUNCE_MAX);
        if (bounce)
            memcpy(bounce, buf + done, want);
        ssize_t n = pwrite(f->direct_fd, bounce ? bounce : buf + done, want,
                           (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return file_fail(f, errno, "write", offset, len, err);
        /* Cut short by a full disk; the rest goes on at a block's beginning,
         * where the next call says why. */
        size_t whole = (size_t)align_down((uint64_t)n, FILE_DIRECT_ALIGN);
        if (whole == 0)
            return file_fail(f, EIO, "write", offset, len, err);
        done += whole;
    }
    return 0;
}

int file_direct_write(struct file *f, const void *buf, size_t len,
                      uint64_t offset, struct rhea_error *err)
{
    const uint8_t *p = buf;
    uint64_t body = align_up(offset, FILE_DIRECT_ALIGN);
    uint64_t tail = align_down(offset + len, FILE_DIRECT_ALIGN);
    if (body >= tail)
        body = tail = offset + len;
    size_t head_len = (size_t)(body - offset), body_len = (size_t)(tail - body);
    size_t tail_len = len - head_len - body_len;

    /* An edge must not be merged while another thread writes its block
     * directly. */
    if (head_len || tail_len)
        pthread_rwlock_wrlock(&f->resize_lock);
    else
        pthread_rwlock_rdlock(&f->resize_lock);
    int ret = 0;
    if (head_len)
        ret = file_write_cached(f, p, head_len, offset, err);
    if (!ret && body_len)
        ret = direct_write_blocks(f, p + head_len, body_len, body, err);
    if (!ret && tail_len)
        ret =
            file_write_cached(f, p + head_len + body_len, tail_len, tail, err);
    pthread_rwlock_unlock(&f->resize_lock);
    return ret;
}
