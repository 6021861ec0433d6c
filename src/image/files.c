/* SPDX-License-Identifier: MIT */
/*
 * The files that an image names: those that it is made of, and its parent.
 *
 * An image from a stranger may name anything. What it is made of lies in its
 * own folder or below, links followed, or is refused: it may be written to.
 * What another system, or this one in another folder, has called such a file is
 * looked for in the image's folder. A parent is only read, and its name is
 * followed as any backing file's is, if this system can have such a name; what
 * another system has called it is looked for in the image's own folder.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "image/files.h"
#include "storage/file.h"

enum { FILES_MAX = 4096 /* that one image may be made of */ };

bool files_name_stays(const char *name)
{
    if (*name == '/' || !*name)
        return false;
    for (const char *p = name; *p; p += strcspn(p, "/"), p += *p == '/')
        if (p[0] == '.' && p[1] == '.' && (p[2] == '/' || !p[2]))
            return false;
    return true;
}

/* NAME as the end of a URL: no part of it means anything but itself. */
static char *files_encode(const char *name)
{
    static const char hex[] = "0123456789ABCDEF";
    char *out = malloc(3 * strlen(name) + 1), *at = out;
    for (; out && *name; name++) {
        unsigned char c = (unsigned char)*name;
        if (isalnum(c) || strchr("-._~/", c)) {
            *at++ = *name;
        } else {
            *at++ = '%';
            *at++ = hex[c >> 4];
            *at++ = hex[c & 15];
        }
    }
    if (out)
        *at = 0;
    return out;
}

char *files_path(const struct image_files *files, const char *name)
{
    const char *beside = files->beside;
    char *path = NULL;
    if (*name == '/')
        return strdup(name);
    RHEA_AUTO_FREE char *encoded = files->local ? NULL : files_encode(name);
    if (!files->local && !encoded)
        return NULL;
    size_t end = files->local ? strlen(beside) : strcspn(beside, "?#");
    while (end && beside[end - 1] != '/')
        end--;
    /* No name may look like a protocol. */
    bool odd = files->local && storage_name_protocol(end ? beside : name);
    return asprintf(&path, "%s%.*s%s", odd ? "./" : "", (int)end, beside,
                    encoded ? encoded : name) < 0
               ? NULL
               : path;
}

/* Whether REAL, a path without links, is in the image's folder or below. */
static int files_check_real(const struct image_files *files, const char *real,
                            const char *name, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *start = files_path(files, ".");
    RHEA_AUTO_FREE char *folder = start ? realpath(start, NULL) : NULL;
    if (!folder)
        return rhea_error_errno(
            err, errno, "cannot find the folder of '%.300s'", files->beside);
    size_t n = strlen(folder);
    if (strncmp(real, folder, n) == 0 && (!real[n] || real[n] == '/' || n == 1))
        return 0;
    return rhea_error_set(err, EACCES,
                          "the image refers to '%.300s', which leads to "
                          "'%.300s', outside of the image's folder",
                          name, real);
}

int files_check_inside(const struct image_files *files, const char *path,
                       const char *name, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *real = realpath(path, NULL);
    if (!real)
        return rhea_error_errno(err, errno, "cannot open '%.300s'", path);
    return files_check_real(files, real, name, err);
}

/* The same of a file that is not there yet: its folder has to be, and a link
 * that leads to where nothing is may lead anywhere. */
static int files_check_new(const struct image_files *files, const char *path,
                           const char *name, struct rhea_error *err)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    RHEA_AUTO_FREE char *folder =
        slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    if (!folder)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (lstat(path, &st) == 0)
        return rhea_error_set(err, EACCES,
                              "cannot make '%.300s': it is a link that leads "
                              "to nothing",
                              path);
    return files_check_inside(files, folder, name, err);
}

static int files_check_count(const struct image_files *files,
                             struct rhea_error *err)
{
    return files->n_opened < FILES_MAX
               ? 0
               : rhea_error_set(err, EMFILE,
                                "the image is made of more than %d files",
                                FILES_MAX);
}

int files_check_name(const struct image_files *files, const char *name,
                     struct rhea_error *err)
{
    if (!files->beside)
        return rhea_error_set(err, EINVAL,
                              "the image refers to another file, '%.300s', but "
                              "is in no folder",
                              name);
    if (!files_name_stays(name))
        return rhea_error_set(err, EACCES,
                              "the image refers to '%.300s', which is not in "
                              "its own folder: put it there, and its name into "
                              "the image without a folder",
                              name);
    return files_check_count(files, err);
}

static int files_keep(struct image_files *files, struct rhea_storage *storage,
                      struct rhea_error *err)
{
    struct rhea_storage **opened = reallocarray(
        files->opened, files->n_opened + 1, sizeof(struct rhea_storage *));
    if (!opened) {
        rhea_storage_close(storage);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    files->opened = opened;
    opened[files->n_opened++] = storage;
    return 0;
}

/* FLAGS as for image_lock. */
static int files_open_path(struct image_files *files, const char *path,
                           unsigned flags, struct rhea_storage **out,
                           struct rhea_error *err)
{
    struct storage_options options = {0};
    struct node_opening opening = {0};
    struct node_description description = {0};
    int ret = node_open_storage(out, &description, path, &options, flags,
                                &opening, err);
    storage_options_finish(&options);
    node_description_finish(&description);
    if (ret)
        return ret;
    ret = image_lock(*out, flags & ~NODE_CREATE, err);
    if (ret) {
        rhea_storage_close(*out);
        return ret;
    }
    return files_keep(files, *out, err);
}

static int files_note_made(struct image_files *files, const char *path,
                           struct rhea_error *err)
{
    char **made = reallocarray(files->made, files->n_made + 1, sizeof(char *));
    char *copy = strdup(path);
    if (made)
        files->made = made;
    if (!made || !copy) {
        free(copy);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    made[files->n_made++] = copy;
    return 0;
}

/* The lock is held before the first byte is lost. */
static int files_create(void *opaque, const char *name,
                        struct rhea_storage **out, struct rhea_error *err)
{
    struct image_files *files = files_of(opaque);
    int ret = files_check_name(files, name, err);
    if (ret)
        return ret;
    RHEA_AUTO_FREE char *path = files_path(files, name);
    if (!path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    bool existed = !files->local || access(path, F_OK) == 0;
    if (files->local)
        ret = existed ? files_check_inside(files, path, name, err)
                      : files_check_new(files, path, name, err);
    if (!ret)
        ret = files_open_path(files, path,
                              files->flags | RHEA_IMAGE_WRITE |
                                  RHEA_IMAGE_EXCLUSIVE | NODE_CREATE,
                              out, err);
    /* Somebody who has locked it has made it, too. */
    if (!existed && ret != -EBUSY && access(path, F_OK) == 0) {
        int noted = files_note_made(files, path, err);
        ret = ret ? ret : noted;
    }
    return ret ? ret : rhea_storage_truncate(*out, 0, err);
}

/* --- Opening --- */

/* An absolute name that leads to the image's folder, where it is of this
 * system. */
static bool open_is_own(const struct image_files *files, const char *name)
{
    RHEA_AUTO_FREE char *real = *name == '/' && files->beside && files->local
                                    ? realpath(name, NULL)
                                    : NULL;
    return real && files_check_real(files, real, name, NULL) == 0;
}

/* Whether another name has led to the file that was opened last. */
static bool open_is_twice(const struct image_files *files)
{
    uint64_t size, device, inode, other_device, other_inode;
    size_t last = files->n_opened - 1;
    if (rhea_file_stat(files->opened[last], &size, &device, &inode))
        return false;
    for (size_t i = 0; i < last; i++)
        if (rhea_file_stat(files->opened[i], &size, &other_device,
                           &other_inode) == 0 &&
            other_device == device && other_inode == inode)
            return true;
    return false;
}

static int files_open_name(struct image_files *files, const char *name,
                           bool write, struct rhea_storage **out,
                           struct rhea_error *err)
{
    unsigned flags = files->flags;
    int ret = open_is_own(files, name) ? files_check_count(files, err)
                                       : files_check_name(files, name, err);
    if (ret)
        return ret;
    RHEA_AUTO_FREE char *path = files_path(files, name);
    if (!path)
        return rhea_error_set(err, ENOMEM, "out of memory");
    if (files->local)
        ret = files_check_inside(files, path, name, err);
    if (!write)
        flags &= ~RHEA_IMAGE_WRITE;
    return ret ? ret : files_open_path(files, path, flags, out, err);
}

static int files_open(void *opaque, const char *name, bool write,
                      struct rhea_storage **out, struct rhea_error *err)
{
    struct image_files *files = files_of(opaque);
    RHEA_AUTO_FREE char *moved = NULL;
    if (*name == '/' ? !open_is_own(files, name)
                     : *name && !files_is_there(files, name))
        moved = files_moved(files, name);
    int ret = files_open_name(files, moved ? moved : name, write, out, err);
    /* Only the folders told them apart. */
    if (!ret && moved && open_is_twice(files))
        ret = rhea_error_set(err, EINVAL,
                             "the image refers to '%.300s', which was looked "
                             "for in its own folder; but '%.300s' there is "
                             "another part of it already",
                             name, moved);
    return ret;
}

/* --- Life --- */

struct image_files *image_files_new(const char *beside, unsigned flags,
                                    struct rhea_error *err)
{
    struct image_files *files = calloc(1, sizeof(*files));
    if (files && beside) {
        const struct storage_driver *driver = storage_driver_of_name(beside);
        /* "file:" is no part of a path, and what nobody knows is one. */
        files->local = !driver || driver == &storage_driver_file;
        files->beside = strdup(driver == &storage_driver_file
                                   ? beside + storage_name_protocol(beside)
                                   : beside);
    }
    if (!files || (beside && !files->beside)) {
        image_files_close(files, false);
        rhea_error_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    files->flags =
        flags & (RHEA_IMAGE_WRITE | RHEA_IMAGE_NO_LOCK | RHEA_IMAGE_EXCLUSIVE |
                 RHEA_IMAGE_DIRECT | RHEA_IMAGE_NO_FLUSH);
    files->ops = (struct rhea_files){
        .open = files_open,
        .create = files_create,
        .find_parent = files_find_parent,
        .search = files_search,
        .replace = files_replace,
        .remove = files_remove,
        .opaque = files,
    };
    return files;
}

void image_files_close(struct image_files *files, bool undo)
{
    if (!files)
        return;
    for (size_t i = 0; i < files->n_opened; i++)
        rhea_storage_close(files->opened[i]);
    for (size_t i = 0; i < files->n_made; i++) {
        if (undo)
            unlink(files->made[i]);
        free(files->made[i]);
    }
    free(files->opened);
    free(files->made);
    free(files->beside);
    free(files);
}
