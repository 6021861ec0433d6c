/* SPDX-License-Identifier: MIT */
/* A new image in memory over one that is open: what is written is gone when it
 * is closed. */
#include <errno.h>
#include <string.h>

#include "image/internal.h"

/* An empty image of SIZE bytes over something called NAME. */
static int overlay_create(struct rhea_storage **memory,
                          const struct rhea_format_ops *ops, const char *name,
                          uint64_t size, struct rhea_error *err)
{
    /* The name is for people only, for the image below is open already. */
    const struct rhea_create how = {
        .size = size,
        .backing_file = strlen(name) < 1000 ? name : "the image below",
        .backing_format = "raw"};
    int ret = rhea_memory_open(memory, INT64_MAX, err);
    if (ret)
        return ret;
    ret = ops->create(*memory, &how, err);
    if (ret)
        rhea_storage_close(*memory);
    return ret;
}

int rhea_image_open_overlay(struct rhea_image **out, struct rhea_image *below,
                            unsigned flags, struct rhea_error *err)
{
    const struct rhea_format_ops *ops = rhea_format_find("qcow2");
    struct rhea_storage *memory;
    struct rhea_image *image = NULL;
    int ret =
        ops ? 0 : rhea_error_set(err, ENOTSUP, "there is no qcow2 format");
    if (!ret)
        ret = overlay_create(&memory, ops, below->filename,
                             rhea_image_size(below), err);
    if (!ret)
        ret = rhea_image_open_storage(
            &image, memory, below->filename, ops->name,
            RHEA_IMAGE_WRITE | RHEA_IMAGE_NO_BACKING, err);
    if (!ret && flags & RHEA_IMAGE_COPY_ON_READ)
        ret = image_filter_add(image, IMAGE_FILTER_COPY_ON_READ, err);
    if (ret) {
        rhea_image_close(image, NULL);
        rhea_image_close(below, NULL);
        return ret;
    }
    image->blind = false;
    image->backing = below;
    image->format->below = image_read_below;
    image->format->below_opaque = below;
    *out = image;
    return 0;
}
