/* SPDX-License-Identifier: MIT */
/* An image's parent among the files of its folder, which it knows by its
 * contents. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "image/files.h"
#include "storage/file.h"

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

int files_search(void *opaque,
                 int (*accept)(void *accept_opaque, struct rhea_storage *file),
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
