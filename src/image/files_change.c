/* SPDX-License-Identifier: MIT */
/* Replacing and removing files that an image is made of. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "image/files.h"
#include "storage/file.h"

/* The path, links followed, of file NAME, which is there and may be changed. */
static int change_locate(const struct image_files *files, const char *name,
                         char **path, struct rhea_error *err)
{
    if (!(files->flags & RHEA_IMAGE_WRITE))
        return rhea_error_set(err, EBADF, "the image is open read-only");
    int ret = name ? files_check_name(files, name, err) : 0;
    if (ret)
        return ret;
    if (!files->beside || !files->local)
        return rhea_error_set(err, ENOTSUP,
                              "files of an image can only be exchanged where "
                              "it is in a folder of this system");
    RHEA_AUTO_FREE char *there =
        name ? files_path(files, name) : strdup(files->beside);
    if (!there)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (name)
        ret = files_check_inside(files, there, name, err);
    if (ret)
        return ret;
    *path = realpath(there, NULL);
    return *path ? 0
                 : rhea_error_errno(err, errno, "cannot find '%.300s'", there);
}

static int replace_write(int fd, const void *data, size_t len)
{
    const uint8_t *p = data;
    while (len) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno != EINTR)
            return errno;
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

/* FD is a new file that is to take the place of PATH. Returns an errno. */
static int replace_fill(const struct image_files *files, int fd,
                        const char *path, const void *data, size_t len)
{
    struct stat st;
    if (stat(path, &st) || fchmod(fd, st.st_mode & 07777))
        return errno;
    /* Not everybody may give a file away; then it is the user's. */
    if (fchown(fd, st.st_uid, st.st_gid))
        errno = 0;
    int code = replace_write(fd, data, len);
    if (!code && !(files->flags & RHEA_IMAGE_NO_FLUSH) && fsync(fd))
        code = errno;
    return code;
}

/*
 * The new contents are a file of their own, durable before the name is given
 * to it: at any time the name leads to the old ones or to the new ones, whole.
 */
int files_replace(void *opaque, const char *name, const void *data, size_t len,
                  struct rhea_error *err)
{
    const struct image_files *files = files_of(opaque);
    RHEA_AUTO_FREE char *path = NULL;
    RHEA_AUTO_FREE char *new_path = NULL;
    int ret = change_locate(files, name, &path, err);
    if (ret)
        return ret;
    if (asprintf(&new_path, "%s.XXXXXX", path) < 0) {
        new_path = NULL;
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    int fd = mkostemp(new_path, O_CLOEXEC);
    if (fd < 0)
        return rhea_error_errno(err, errno,
                                "cannot make a new file beside '%.300s'", path);
    int code = replace_fill(files, fd, path, data, len);
    if (close(fd) && !code)
        code = errno;
    if (!code && rename(new_path, path))
        code = errno;
    if (code) {
        unlink(new_path);
        return rhea_error_errno(err, code, "could not replace '%.300s'", path);
    }
    if (!(files->flags & RHEA_IMAGE_NO_FLUSH))
        file_flush_folder(path);
    return 0;
}

int files_remove(void *opaque, const char *name, struct rhea_error *err)
{
    const struct image_files *files = files_of(opaque);
    RHEA_AUTO_FREE char *real = NULL;
    int ret = change_locate(files, name, &real, err);
    if (ret)
        return ret;
    /* Of a link, the link. */
    RHEA_AUTO_FREE char *path = files_path(files, name);
    if (!path || unlink(path))
        ret = rhea_error_errno(err, path ? errno : ENOMEM,
                               "could not remove '%.300s'", name);
    return ret;
}
