/* SPDX-License-Identifier: MIT */
/* rhea-img convert --bitmaps */
#include "tool.h"

static int bitmaps_list(struct rhea_image *image, struct rhea_bitmap **list,
                        size_t *n)
{
    struct rhea_error err;

    if (rhea_image_bitmap_list(image, list, n, &err) == 0)
        return 0;
    return tool_fail(rhea_image_filename(image), &err, 1);
}

int tool_bitmaps_check(struct rhea_image *source, struct rhea_image *target,
                       bool skip_broken)
{
    struct rhea_bitmap *list;
    size_t n;
    int code;

    if (target) {
        code = bitmaps_list(target, &list, &n);
        if (code)
            return code;
        rhea_bitmaps_free(list, n);
    }
    code = bitmaps_list(source, &list, &n);
    for (size_t i = 0; !code && !skip_broken && i < n; i++) {
        if (!list[i].in_use)
            continue;
        tool_error("bitmap '%s' is in use or was not saved, so that its bits "
                   "mean nothing; leave it out with --skip-broken-bitmaps, or "
                   "remove it with `%s bitmap --remove`",
                   list[i].name, tool_name);
        code = 1;
    }
    rhea_bitmaps_free(list, n);
    return code;
}

int tool_bitmaps_copy(struct rhea_image *source, struct rhea_image *target,
                      bool skip_broken)
{
    struct rhea_bitmap *list;
    size_t n;
    int code = bitmaps_list(source, &list, &n);

    for (size_t i = 0; !code && i < n; i++) {
        struct rhea_error err;

        if (list[i].in_use && skip_broken) {
            tool_error("warning: bitmap '%s' is in use or was not saved; it is "
                       "left out",
                       list[i].name);
        } else if (rhea_image_bitmap_copy(target, source, &list[i], &err) < 0) {
            tool_error("cannot copy bitmap '%s': %s", list[i].name, err.text);
            code = 1;
        }
    }
    rhea_bitmaps_free(list, n);
    return code;
}
