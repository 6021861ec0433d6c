/* SPDX-License-Identifier: MIT */
/*
 * File names, read as QEMU reads them: what has a colon before its first slash
 * begins with a protocol; a relative backing name is relative to the folder of
 * the image that has it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "image/internal.h"
#include "image/path.h"

/* FOLDER_LENGTH bytes of FOLDER, then NAME. */
static char *name_join(const char *folder, size_t folder_length,
                       const char *name)
{
    size_t rest = strlen(name) + 1;
    char *path = malloc(folder_length + rest);
    if (path) {
        memcpy(path, folder, folder_length);
        memcpy(path + folder_length, name, rest);
    }
    return path;
}

char *image_name_combine(const char *overlay, const char *backing)
{
    const char *slash = strrchr(overlay, '/');
    if (!slash || *backing == '/' || storage_name_protocol(backing))
        return strdup(backing);
    return name_join(overlay, (size_t)(slash - overlay) + 1, backing);
}

char *image_name_below(const struct rhea_image *image, const char *backing,
                       struct rhea_error *err)
{
    const char *folder = image->description.folder;
    bool alone = *backing == '/' || storage_name_protocol(backing);
    char *name = NULL;
    if (!alone && !folder) {
        rhea_error_set(err, EINVAL,
                       "'%.200s' is relative to an image that is in no folder",
                       backing);
        return NULL;
    }
    name = alone ? strdup(backing) : image_name_combine(folder, backing);
    if (!name)
        rhea_error_set(err, ENOMEM, "out of memory");
    return name;
}

char *image_resolve_path(const char *overlay, const char *name)
{
    if (strncmp(name, "file:", 5) != 0)
        return image_name_combine(overlay, name);
    name += 5;
    /* What follows is a path, whatever it looks like. */
    return storage_name_protocol(name) ? name_join("./", 2, name)
                                       : strdup(name);
}

/* The names of all formats: "qcow2, qed, raw". */
static const char *image_format_names(char *buf, size_t len)
{
    size_t at = 0;
    buf[0] = 0;
    for (size_t i = 0; rhea_formats[i] && at < len; i++) {
        int n = snprintf(buf + at, len - at, "%s%s", i ? ", " : "",
                         rhea_formats[i]->name);
        at += n > 0 ? (size_t)n : 0;
    }
    return buf;
}

const struct rhea_format_ops *image_format_find(const char *name,
                                                struct rhea_error *err)
{
    const struct rhea_format_ops *ops = rhea_format_find(name);
    char names[256];
    if (!ops)
        rhea_error_set(err, EINVAL, "unknown format '%.100s' (there are %s)",
                       name, image_format_names(names, sizeof(names)));
    return ops;
}
