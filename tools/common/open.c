/* SPDX-License-Identifier: MIT */
/* Images as command lines name them. */
#include <errno.h>

#include "common/common.h"

int tool_image_open(const struct tool_image *what, struct rhea_image **image)
{
    unsigned flags = what->flags;
    bool direct = false, unsafe = false;
    struct rhea_error err;
    int ret;

    if (what->cache && tool_get_cache(what->cache, &direct, &unsafe) < 0)
        return -EINVAL;
    if (direct)
        flags |= RHEA_IMAGE_DIRECT;
    if (what->image_opts) {
        tool_error("--image-opts is not supported");
        return -ENOTSUP;
    }
    ret = rhea_image_open(image, what->name, what->format, flags, &err);
    if (ret < 0)
        tool_fail(what->name, &err, 1);
    return ret;
}

int tool_object_add(const char *text)
{
    tool_error("--object %s is not supported", text);
    return -ENOTSUP;
}
