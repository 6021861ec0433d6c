/* SPDX-License-Identifier: MIT */
/* Inside of the files that an image names (files*.c). */
#ifndef RHEA_IMAGE_FILES_H
#define RHEA_IMAGE_FILES_H

#include "image/internal.h"

enum { FILES_SEARCH_MAX = 8192 /* that are looked at in one folder */ };

static inline struct image_files *files_of(void *opaque)
{
    return opaque;
}

/* files.c */
/* Whether no component of a relative name leads upwards. */
bool files_name_stays(const char *name);
/* NAME in the folder of BESIDE, such that nothing of it looks like a protocol
 * unless BESIDE has one. */
char *files_path(const struct image_files *files, const char *name);
/* Whether PATH, links followed, is in the image's folder or below. */
int files_check_inside(const struct image_files *files, const char *path,
                       const char *name, struct rhea_error *err);
/* Whether the image may be made of a file of that name, and of one more. */
int files_check_name(const struct image_files *files, const char *name,
                     struct rhea_error *err);

/* files_change.c: see struct rhea_files. */
int files_replace(void *opaque, const char *name, const void *data, size_t len,
                  struct rhea_error *err);
int files_remove(void *opaque, const char *name, struct rhea_error *err);

/* files_names.c */
int files_find_parent(void *opaque, const char *const *names, size_t n,
                      char **out, struct rhea_error *err);
/* Whether NAME is there. What cannot be looked at from here is taken to be. */
bool files_is_there(const struct image_files *files, const char *name);
/* What another system has called NAME, or this one before the image was moved,
 * in the image's folder; malloc'd, NULL: nothing is there. */
char *files_moved(const struct image_files *files, const char *name);
/* Whether the image is in a folder "Snapshots", where VirtualBox has the
 * children of what is in the folder above. */
bool files_in_snapshots(const struct image_files *files);

/* files_search.c */
int files_search(void *opaque,
                 int (*accept)(void *accept_opaque, struct rhea_storage *file),
                 void *accept_opaque, char **out, struct rhea_error *err);

#endif
