/* SPDX-License-Identifier: MIT */
/*
 * The files that an image names: those that it is made of, and its parent.
 *
 * An image from a stranger may name anything. What it is made of lies in its
 * own folder or below, links followed, or is refused: it may be written to.
 * What another system, or this one in another folder, has called such a file is
 * looked for in the image's folder. A
 * parent is only read, and its name is followed as any backing file's is, if
 * this system can have such a name; what another system has called it is
 * looked for in the image's own folder.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/internal.h"
#include "storage/file.h"

enum {
    FILES_MAX = 4096,        /* that one image may be made of */
    FILES_SEARCH_MAX = 8192, /* that are looked at in one folder */
};

static struct image_files *files_of(void *opaque)
{
    return opaque;
}

/* Whether no component of a relative name leads upwards. */
static bool files_name_stays(const char *name)
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

/* NAME in the folder of BESIDE, such that nothing of it looks like a protocol
 * unless BESIDE has one. */
static char *files_path(const struct image_files *files, const char *name)
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

/* Whether PATH, links followed, is in the image's folder or below. */
static int files_check_inside(const struct image_files *files, const char *path,
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

static int files_check_name(const struct image_files *files, const char *name,
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

/* --- Replacing and removing --- */

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
static int files_replace(void *opaque, const char *name, const void *data,
                         size_t len, struct rhea_error *err)
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

static int files_remove(void *opaque, const char *name, struct rhea_error *err)
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

/* --- Parents --- */

static bool parent_is_foreign(const char *name)
{
    return strchr(name, '\\') ||
           /* NOLINTNEXTLINE(clang-analyzer-core.*): a string ends behind 0 */
           (isalpha((unsigned char)name[0]) && name[1] == ':' && name[2]);
}

/* The path of "file://HOST/PATH", which is percent-encoded; NULL: it is none.
 */
static char *parent_of_url(const char *url)
{
    const char *p =
        strncmp(url, "file://", 7) == 0 ? strchr(url + 7, '/') : NULL;
    char *path = p ? malloc(strlen(p) + 1) : NULL;
    size_t n = 0;
    for (; path && *p; p++) {
        unsigned byte;
        if (p[0] == '%' && isxdigit((unsigned char)p[1]) &&
            isxdigit((unsigned char)p[2]) && sscanf(p + 1, "%2x", &byte) == 1 &&
            byte) {
            path[n++] = (char)byte;
            p += 2;
        } else {
            path[n++] = *p;
        }
    }
    if (path)
        path[n] = 0;
    return path;
}

static const char *parent_last_part(const char *name)
{
    for (const char *p = name; *p; p++)
        if (*p == '/' || *p == '\\' || (*p == ':' && p == name + 1))
            name = p[1] ? p + 1 : name;
    return name;
}

/* A name relative to the image's folder, which stays in it, malloc'd. */
static char *parent_beside(const char *name)
{
    const char *last = parent_last_part(name);
    char *path = NULL;
    bool odd = storage_name_protocol(last);
    if (strcmp(last, "..") == 0)
        last = "";
    return asprintf(&path, "%s%s", odd ? "./" : "", last) < 0 ? NULL : path;
}

/* Windows' relative names with their folders: ".\a\b" is "a/b". NULL where
 * NAME is none, or leads upwards. */
static char *parent_relative(const char *name)
{
    if (*name == '\\' || (*name && name[1] == ':'))
        return NULL;
    while (name[0] == '.' && name[1] == '\\')
        name += 2;
    char *path = strdup(name);
    for (char *p = path; p && *p; p++)
        if (*p == '\\')
            *p = '/';
    if (path && (!files_name_stays(path) || storage_name_protocol(path))) {
        free(path);
        path = NULL;
    }
    return path;
}

/* What cannot be looked at from here, such as a server's, is taken to be
 * there. */
static bool parent_is_there(const struct image_files *files, const char *name)
{
    if (storage_name_protocol(name))
        return storage_driver_of_name(name);
    RHEA_AUTO_FREE char *path = files->beside ? files_path(files, name) : NULL;
    return path && access(path, F_OK) == 0;
}

/* The one file of the image's folder that is called NAME but for upper and
 * lower case, which Windows does not tell apart; malloc'd, NULL: there is none,
 * or more than one. */
static char *parent_other_case(const struct image_files *files,
                               const char *name)
{
    bool may = files->beside && files->local && !strchr(name, '/') &&
               strcmp(name, "..") != 0;
    RHEA_AUTO_FREE char *folder = may ? files_path(files, ".") : NULL;
    DIR *dir = folder ? opendir(folder) : NULL;
    const struct dirent *entry;
    char *found = NULL;
    unsigned n = 0, n_found = 0;
    while (dir && n++ < FILES_SEARCH_MAX && (entry = readdir(dir)))
        if (strcasecmp(entry->d_name, name) == 0 && !n_found++)
            found = strdup(entry->d_name);
    if (dir)
        closedir(dir);
    if (n_found == 1)
        return found;
    free(found);
    return NULL;
}

/* Put into OUT what NAME can mean, best first; returns how many, NULL among
 * them where memory ran out. An empty one means nothing. */
static unsigned parent_meanings(const char *name, char *out[2])
{
    RHEA_AUTO_FREE char *decoded = parent_of_url(name);
    unsigned n = 0;
    if (decoded)
        name = decoded;
    if (!parent_is_foreign(name))
        out[n++] = strdup(name);
    else if ((out[n] = parent_relative(name)))
        n++;
    out[n++] = parent_beside(name);
    return n;
}

/* FIRST stays where nothing is there; both are malloc'd. */
static void parent_try(const struct image_files *files, const char *name,
                       char **found, char **first)
{
    char *meant[2];
    unsigned n = parent_meanings(name, meant);
    for (unsigned i = 0; i < n; i++) {
        if (meant[i] && *meant[i] && !*found &&
            parent_is_there(files, meant[i]))
            *found = rhea_steal(meant[i]);
        else if (meant[i] && *meant[i] && !*first)
            *first = rhea_steal(meant[i]);
        else
            free(meant[i]);
    }
}

/* Whether the image is in a folder "Snapshots", where VirtualBox has the
 * children of what is in the folder above. */
static bool files_in_snapshots(const struct image_files *files)
{
    RHEA_AUTO_FREE char *start =
        files->beside && files->local ? files_path(files, ".") : NULL;
    RHEA_AUTO_FREE char *real = start ? realpath(start, NULL) : NULL;
    const char *last = real ? strrchr(real, '/') : NULL;
    return last && strcmp(last, "/Snapshots") == 0;
}

/* An absolute name, of before a virtual machine was moved, in the folder above;
 * malloc'd, NULL: nothing is there. */
static char *parent_above(const struct image_files *files, const char *name)
{
    RHEA_AUTO_FREE char *decoded = parent_of_url(name);
    RHEA_AUTO_FREE char *beside = parent_beside(decoded ? decoded : name);
    char *above = NULL;
    if (!beside || !*beside || asprintf(&above, "../%s", beside) < 0)
        return NULL;
    if (parent_is_there(files, above))
        return above;
    free(above);
    return NULL;
}

static int files_find_parent(void *opaque, const char *const *names, size_t n,
                             char **out, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *first = NULL;
    *out = NULL;
    for (size_t i = 0; i < n && !*out; i++)
        if (*names[i])
            parent_try(files_of(opaque), names[i], out, &first);
    for (size_t i = 0; i < n && !*out; i++)
        if (parent_is_foreign(names[i]))
            *out =
                parent_other_case(files_of(opaque), parent_last_part(names[i]));
    bool above = !*out && files_in_snapshots(files_of(opaque));
    for (size_t i = 0; i < n && above && !*out; i++)
        *out = parent_above(files_of(opaque), names[i]);
    if (!*out)
        *out = rhea_steal(first);
    return *out ? 0
                : rhea_error_set(err, EINVAL,
                                 "the image does not say which its parent is");
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

/* What cannot be looked at from here is taken to be there. */
static bool open_is_there(const struct image_files *files, const char *name)
{
    RHEA_AUTO_FREE char *path =
        files->beside && files->local ? files_path(files, name) : NULL;
    return !path || access(path, F_OK) == 0;
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

/* What another system has called NAME, or this one before the image was moved,
 * in the image's folder; malloc'd, NULL: nothing is there. */
static char *open_moved(const struct image_files *files, const char *name)
{
    if (*name != '/' && !parent_is_foreign(name))
        return parent_other_case(files, name);
    char *meant[] = {parent_relative(name), parent_beside(name)};
    char *found = NULL;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(meant); i++) {
        if (!found && meant[i] && *meant[i] && open_is_there(files, meant[i]))
            found = rhea_steal(meant[i]);
        free(meant[i]);
    }
    return found ? found : parent_other_case(files, parent_last_part(name));
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
                     : *name && !open_is_there(files, name))
        moved = open_moved(files, name);
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

/* --- Searching --- */

struct files_search {
    const struct image_files *files;
    int (*accept)(void *opaque, struct rhea_storage *file);
    void *opaque;
};

/* 1: it is it. A file that cannot be read is not it. */
static int search_try(const struct files_search *s, const char *path)
{
    struct rhea_storage *storage;
    struct stat st, own;
    if (stat(path, &st) || !S_ISREG(st.st_mode))
        return 0;
    if (stat(s->files->beside, &own) == 0 && own.st_dev == st.st_dev &&
        own.st_ino == st.st_ino)
        return 0;
    if (rhea_file_open(&storage, path, 0, NULL))
        return 0;
    int ret = s->accept(s->opaque, storage);
    rhea_storage_close(storage);
    return ret;
}

/* PREFIX: the folder, relative to the image's: "" or "../". */
static int search_folder(const struct files_search *s, const char *prefix,
                         char **out, struct rhea_error *err)
{
    RHEA_AUTO_FREE char *dot = NULL;
    if (asprintf(&dot, "%s.", prefix) < 0)
        return rhea_error_set(err, ENOMEM, "out of memory");
    RHEA_AUTO_FREE char *folder = files_path(s->files, dot);
    DIR *dir = folder ? opendir(folder) : NULL;
    if (!dir)
        return 0;
    int ret = 0;
    const struct dirent *entry;
    for (unsigned n = 0; !ret && n < FILES_SEARCH_MAX && (entry = readdir(dir));
         n++) {
        RHEA_AUTO_FREE char *name = NULL;
        RHEA_AUTO_FREE char *path = NULL;
        /* A colon would make it a protocol's name. */
        const char *safe =
            !*prefix && storage_name_protocol(entry->d_name) ? "./" : prefix;
        if (asprintf(&name, "%s%s", safe, entry->d_name) >= 0)
            path = files_path(s->files, name);
        if (!path)
            ret = rhea_error_set(err, ENOMEM, "out of memory");
        else
            ret = search_try(s, path);
        if (ret == 1)
            *out = rhea_steal(name);
    }
    closedir(dir);
    return ret;
}

static int files_search(void *opaque,
                        int (*accept)(void *accept_opaque,
                                      struct rhea_storage *file),
                        void *accept_opaque, char **out, struct rhea_error *err)
{
    const struct image_files *files = files_of(opaque);
    const struct files_search s = {files, accept, accept_opaque};
    *out = NULL;
    if (!files->beside || !files->local)
        return 0;
    int ret = search_folder(&s, "", out, err);
    if (ret)
        return ret < 0 ? ret : 0;
    if (files_in_snapshots(files))
        ret = search_folder(&s, "../", out, err);
    return ret < 0 ? ret : 0;
}

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
