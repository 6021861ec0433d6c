/* SPDX-License-Identifier: MIT */
/* Images and objects as command lines name them. */
#include <errno.h>

#include <rhea/secret.h>

#include "common/common.h"
#include "storage/driver.h"

int tool_image_open_options(const char *text, unsigned flags,
                            struct rhea_image **image)
{
    struct tool_options options = {0};
    struct rhea_error err;
    int ret = tool_options_add_first(&options, text, "file");

    if (ret == 0) {
        ret = rhea_image_open_options(image, options.items, options.n, flags,
                                      &err);
        if (ret < 0)
            tool_fail(text, &err, 1);
    }
    tool_options_finish(&options);
    return ret;
}

int tool_image_open(const struct tool_image *what, struct rhea_image **image)
{
    unsigned flags = what->flags;
    bool direct = false, unsafe = false;
    struct rhea_error err;
    int ret;

    if (what->cache && tool_get_cache(what->cache, &direct, &unsafe) < 0)
        return -EINVAL;
    flags |= direct ? RHEA_IMAGE_DIRECT : 0;
    flags |= unsafe ? RHEA_IMAGE_NO_FLUSH : 0;
    if (what->image_opts && what->format) {
        tool_error("--image-opts and a format exclude each other: say "
                   "driver=%s among the options",
                   what->format);
        return -EINVAL;
    }
    if (what->image_opts)
        return tool_image_open_options(what->name, flags, image);
    ret = rhea_image_open(image, what->name, what->format, flags, &err);
    if (ret < 0)
        tool_fail(what->name, &err, 1);
    return ret;
}

bool tool_is_driver(const char *name)
{
    return rhea_format_find(name) || storage_driver_find(name);
}

/* What {"qom-type": "secret", ...} says. */
static int object_from_json(const char *text, struct tool_options *options)
{
    json_error_t where;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &where), *value;
    const char *key;
    int ret = 0;

    if (!json_is_object(object)) {
        tool_error("--object: this is not a JSON object: %s",
                   object ? "it is of another type" : where.text);
        json_decref(object);
        return -EINVAL;
    }
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value)) {
            tool_error("--object: %s is a string", key);
            ret = -EINVAL;
            break;
        }
        tool_options_set(options, key, json_string_value(value));
    }
    json_decref(object);
    return ret;
}

int tool_object_add(const char *text)
{
    struct tool_options options = {0};
    struct rhea_error err;
    int ret = *text == '{' ? object_from_json(text, &options)
                           : tool_options_add_first(&options, text, "qom-type");

    if (ret == 0) {
        const char *type = tool_options_get(&options, "qom-type");

        if (!type || strcmp(type, "secret")) {
            tool_error("--object: only secrets are known (secret,id=...), not "
                       "%s",
                       type ? type : "an object without a type");
            ret = -EINVAL;
        }
    }
    if (ret == 0) {
        ret = rhea_secret_add(options.items, options.n, &err);
        if (ret < 0)
            tool_error("--object: %s", err.text);
    }
    tool_options_finish(&options);
    return ret;
}
