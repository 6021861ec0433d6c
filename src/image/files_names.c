/* SPDX-License-Identifier: MIT */
/*
 * What an image calls its parent and the files it is made of, where another
 * system has given the names, or this one before the image was moved.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/files.h"

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

bool files_in_snapshots(const struct image_files *files)
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

int files_find_parent(void *opaque, const char *const *names, size_t n,
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

bool files_is_there(const struct image_files *files, const char *name)
{
    RHEA_AUTO_FREE char *path =
        files->beside && files->local ? files_path(files, name) : NULL;
    return !path || access(path, F_OK) == 0;
}

char *files_moved(const struct image_files *files, const char *name)
{
    if (*name != '/' && !parent_is_foreign(name))
        return parent_other_case(files, name);
    char *meant[] = {parent_relative(name), parent_beside(name)};
    char *found = NULL;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(meant); i++) {
        if (!found && meant[i] && *meant[i] && files_is_there(files, meant[i]))
            found = rhea_steal(meant[i]);
        free(meant[i]);
    }
    return found ? found : parent_other_case(files, parent_last_part(name));
}
