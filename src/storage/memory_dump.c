/* SPDX-License-Identifier: MIT */
/* What is told of, and made from, a memory storage's pages as a whole. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/memory_pages.h"

/* Pages written in one call. */
#define BATCH 256

uint64_t memory_digest(struct rhea_storage *s)
{
    struct memory *m = (struct memory *)s;
    pthread_rwlock_rdlock(&m->lock);
    uint64_t h = m->size * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (uint64_t at = memory_next_page(m, 0); at != UINT64_MAX;
         at = memory_next_page(m, at + MEMORY_PAGE)) {
        uint64_t digest = memory_page_digest(memory_find_page(m, at));
        if (digest == 1)
            continue;
        h = (h ^ at) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 29;
        h = (h ^ digest) * UINT64_C(0xc4ceb9fe1a85ec53);
        h ^= h >> 32;
    }
    pthread_rwlock_unlock(&m->lock);
    return h;
}

uint64_t memory_resident(const struct rhea_storage *s)
{
    struct memory *m = (struct memory *)s;
    uint64_t n = 0;
    pthread_rwlock_rdlock(&m->lock);
    for (uint64_t at = memory_next_page(m, 0); at != UINT64_MAX;
         at = memory_next_page(m, at + MEMORY_PAGE))
        n += MEMORY_PAGE;
    pthread_rwlock_unlock(&m->lock);
    return n;
}

/* Write N pages that follow each other at OFFSET; 0 or errno. */
static int dump_batch(int fd, struct iovec *pages, unsigned n, uint64_t offset)
{
    while (n) {
        ssize_t done = pwritev(fd, pages, (int)n, (off_t)offset);
        if (done <= 0) {
            if (done < 0 && errno == EINTR)
                continue;
            return done < 0 ? errno : EIO;
        }
        offset += (uint64_t)done;
        size_t left = (size_t)done;
        while (n && left >= pages->iov_len) {
            left -= pages->iov_len;
            pages++;
            n--;
        }
        if (n) {
            pages->iov_base = (uint8_t *)pages->iov_base + left;
            pages->iov_len -= left;
        }
    }
    return 0;
}

static int dump_pages(struct memory *m, int fd)
{
    struct iovec batch[BATCH];
    uint64_t at = memory_next_page(m, 0);
    while (at != UINT64_MAX) {
        unsigned n = 0;
        uint64_t begin = at;
        while (n < BATCH && at == begin + (uint64_t)n * MEMORY_PAGE) {
            struct page *page = memory_find_page(m, at);
            if (memory_page_digest(page) == 1)
                break;
            /* Bytes past the end are zeroes; the caller cuts them off. */
            batch[n++] = (struct iovec){page->data, MEMORY_PAGE};
            at = memory_next_page(m, at + MEMORY_PAGE);
        }
        int code = dump_batch(fd, batch, n, begin);
        if (code)
            return code;
        if (n == 0)
            at = memory_next_page(m, at + MEMORY_PAGE);
    }
    return 0;
}

int memory_dump(struct rhea_storage *s, const char *path,
                struct rhea_error *err)
{
    struct memory *m = (struct memory *)s;
    RHEA_AUTO_CLOSE int fd =
        open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return rhea_error_errno(err, errno, "could not create '%s'", path);
    pthread_rwlock_rdlock(&m->lock);
    int code = dump_pages(m, fd);
    if (!code && ftruncate(fd, (off_t)m->size) < 0)
        code = errno;
    pthread_rwlock_unlock(&m->lock);
    return code ? rhea_error_errno(err, code, "could not write '%s'", path) : 0;
}
