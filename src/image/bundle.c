/* SPDX-License-Identifier: MIT */
/* Images that are folders: a file in it stands for the whole. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "image/internal.h"

char *image_bundle_file(const char *path)
{
    struct stat st;
    if (stat(path, &st) || !S_ISDIR(st.st_mode))
        return NULL;
    for (size_t i = 0; rhea_formats[i]; i++) {
        const char *file = rhea_formats[i]->bundle_file;
        char *inside = NULL;
        if (!file || asprintf(&inside, "%s/%s", path, file) < 0)
            continue;
        if (access(inside, F_OK) == 0)
            return inside;
        free(inside);
    }
    return NULL;
}
