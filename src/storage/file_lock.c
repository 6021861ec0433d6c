/* SPDX-License-Identifier: MIT */
/*
 * The byte-range locks by which QEMU's programs share an image, as in QEMU
 * block/file-posix.c: whoever uses a permission holds a shared lock on byte
 * 100 + its bit, whoever lets no other use it holds one on byte 200 + its bit.
 * Nobody ever holds an exclusive lock; to ask for one (F_OFD_GETLK) tells
 * whether any other program holds the byte.
 *
 * First lock, then look: of two programs that start at once at least one sees
 * the other. Locks belong to the open file description, so that other
 * descriptors of this file in the process do not drop them.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "storage/file.h"

enum { USED_BASE = 100, UNSHARED_BASE = 200, N_BITS = 4 };

static struct flock lock_range(short type, off_t byte)
{
    return (struct flock){
        .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

/* Set one byte's lock; 0 or errno. */
static int lock_set(struct file *f, short type, off_t byte)
{
    struct flock range = lock_range(type, byte);
    int ret;
    do {
        ret = fcntl(f->fd, F_OFD_SETLK, &range);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? errno : 0;
}

/* Take the bytes of WANT that are not in *HELD. */
static int lock_add(struct file *f, off_t base, unsigned want, unsigned *held)
{
    for (unsigned i = 0; i < N_BITS; i++) {
        unsigned bit = 1u << i;
        if (!(want & bit) || (*held & bit))
            continue;
        int code = lock_set(f, F_RDLCK, base + (off_t)i);
        if (code)
            return code;
        *held |= bit;
    }
    return 0;
}

/* Give back the bytes of *HELD that are not in WANT. */
static void lock_drop(struct file *f, off_t base, unsigned want, unsigned *held)
{
    for (unsigned i = 0; i < N_BITS; i++) {
        unsigned bit = 1u << i;
        if (!(*held & bit) || (want & bit))
            continue;
        if (lock_set(f, F_UNLCK, base + (off_t)i) == 0)
            *held &= ~bit;
    }
}

/* The first of BITS whose byte another program holds, as *FOUND, else 0. */
static int lock_probe(struct file *f, off_t base, unsigned bits,
                      unsigned *found)
{
    *found = 0;
    for (unsigned i = 0; i < N_BITS; i++) {
        if (!(bits & (1u << i)))
            continue;
        struct flock range = lock_range(F_WRLCK, base + (off_t)i);
        if (fcntl(f->fd, F_OFD_GETLK, &range) < 0)
            return errno;
        if (range.l_type != F_UNLCK) {
            *found = 1u << i;
            return 0;
        }
    }
    return 0;
}

static const char *lock_verb(unsigned bit)
{
    return bit == RHEA_LOCK_READ        ? "read"
           : bit == RHEA_LOCK_WRITE     ? "write"
           : bit == RHEA_LOCK_UNCHANGED ? "write"
                                        : "resize";
}

static int lock_fail(const struct file *f, int code, struct rhea_error *err)
{
    if (code == EAGAIN || code == EACCES)
        return rhea_error_set(
            err, EBUSY,
            "'%s' is in use by another program, which has locked it",
            f->head.path);
    if (code == EINVAL || code == ENOLCK || code == EOPNOTSUPP)
        return rhea_error_set(err, ENOLCK,
                              "'%s' cannot be locked: its file system keeps no "
                              "byte-range locks, so another program could be "
                              "using it",
                              f->head.path);
    return rhea_error_errno(err, code, "could not lock '%s'", f->head.path);
}

/* Whether using PERM and sharing SHARED goes with what all others do. */
static int lock_check(struct file *f, unsigned perm, unsigned shared,
                      struct rhea_error *err)
{
    unsigned bit;
    int code = lock_probe(f, UNSHARED_BASE, perm, &bit);
    if (!code && bit)
        return rhea_error_set(err, EBUSY,
                              "'%s' is in use by another program, which does "
                              "not let others %s it",
                              f->head.path, lock_verb(bit));
    if (!code)
        code = lock_probe(f, USED_BASE, RHEA_LOCK_ALL & ~shared, &bit);
    if (!code && bit)
        return rhea_error_set(err, EBUSY,
                              "'%s' is in use by another program, which may "
                              "%s it",
                              f->head.path, lock_verb(bit));
    return code ? lock_fail(f, code, err) : 0;
}

int file_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
              struct rhea_error *err)
{
    struct file *f = (struct file *)s;
    unsigned unshared = RHEA_LOCK_ALL & ~shared;
    if (f->no_lock)
        return 0;
    pthread_rwlock_wrlock(&f->resize_lock);
    unsigned old_perm = f->locked_perm, old_unshared = f->locked_unshared;

    int code = lock_add(f, USED_BASE, perm, &f->locked_perm);
    if (!code)
        code = lock_add(f, UNSHARED_BASE, unshared, &f->locked_unshared);
    int ret = code ? lock_fail(f, code, err) : lock_check(f, perm, shared, err);
    lock_drop(f, USED_BASE, ret ? old_perm : perm, &f->locked_perm);
    lock_drop(f, UNSHARED_BASE, ret ? old_unshared : unshared,
              &f->locked_unshared);
    pthread_rwlock_unlock(&f->resize_lock);
    return ret;
}
