/* SPDX-License-Identifier: MIT */
/* Names of the form json:{...}, which are options written down as JSON. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "image/node.h"

bool node_name_is_json(const char *name)
{
    return strncmp(name, "json:", 5) == 0;
}

/* QEMU's JSON may have its strings in single quotes: make them double ones. */
static char *json_double_quotes(const char *text)
{
    char *copy = malloc(2 * strlen(text) + 1), *p = copy;
    char quote = 0;
    for (; copy && *text; text++) {
        if (*text == '\\' && quote && text[1]) {
            if (text[1] != '\'')
                *p++ = '\\';
            *p++ = *++text;
            continue;
        }
        if (quote == '\'' && *text == '"')
            *p++ = '\\';
        if (!quote && (*text == '"' || *text == '\''))
            quote = *text;
        else if (quote == *text)
            quote = 0;
        else {
            *p++ = *text;
            continue;
        }
        *p++ = '"';
    }
    if (copy)
        *p = 0;
    return copy;
}

static int json_flatten(const char *name, json_t *value, unsigned depth,
                        struct storage_options *options,
                        struct rhea_error *err);

static int json_flatten_child(const char *name, const char *key, json_t *value,
                              unsigned depth, struct storage_options *options,
                              struct rhea_error *err)
{
    char path[STORAGE_OPTION_NAME_MAX + 1];
    int n = snprintf(path, sizeof(path), "%s%s%s", name, *name ? "." : "", key);
    if (n < 0 || (size_t)n >= sizeof(path))
        return rhea_error_set(err, ENAMETOOLONG,
                              "'%.100s': an option has too long a name", key);
    return json_flatten(path, value, depth, options, err);
}

static int json_set(const char *name, const char *value,
                    enum storage_option_type type,
                    struct storage_options *options, struct rhea_error *err)
{
    if (storage_options_peek(options, name))
        return 0;
    return storage_options_set(options, name, value, type, err);
}

static int json_flatten_array(const char *name, json_t *value, unsigned depth,
                              struct storage_options *options,
                              struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; !ret && i < json_array_size(value); i++) {
        char key[24];
        snprintf(key, sizeof(key), "%zu", i);
        ret = json_flatten_child(name, key, json_array_get(value, i), depth,
                                 options, err);
    }
    return ret;
}

static int json_flatten(const char *name, json_t *value, unsigned depth,
                        struct storage_options *options, struct rhea_error *err)
{
    char number[64];
    const char *key;
    json_t *member;
    int ret = 0;

    if (depth > NODE_DEPTH_MAX)
        return rhea_error_set(err, EINVAL,
                              "more than %d levels are nested in json:{...}",
                              NODE_DEPTH_MAX);
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        json_object_foreach(value, key, member)
        {
            ret =
                json_flatten_child(name, key, member, depth + 1, options, err);
            if (ret)
                break;
        }
        return ret;
    case JSON_ARRAY:
        return json_flatten_array(name, value, depth + 1, options, err);
    case JSON_STRING:
        return json_set(name, json_string_value(value), STORAGE_OPTION_STRING,
                        options, err);
    case JSON_INTEGER:
        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT,
                 json_integer_value(value));
        return json_set(name, number, STORAGE_OPTION_NUMBER, options, err);
    case JSON_REAL:
        snprintf(number, sizeof(number), "%.15g", json_real_value(value));
        return json_set(name, number, STORAGE_OPTION_STRING, options, err);
    case JSON_TRUE:
        return json_set(name, "true", STORAGE_OPTION_BOOL, options, err);
    case JSON_FALSE:
        return json_set(name, "false", STORAGE_OPTION_BOOL, options, err);
    case JSON_NULL:
        break;
    }
    return json_set(name, "", STORAGE_OPTION_NULL, options, err);
}

int node_parse_json(const char *name, struct storage_options *options,
                    struct rhea_error *err)
{
    if (strlen(name) > NODE_NAME_MAX)
        return rhea_error_set(err, ENAMETOOLONG, "json:{...} is too long");
    RHEA_AUTO_FREE char *text = json_double_quotes(name + 5);
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    json_error_t where;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return rhea_error_set(err, EINVAL,
                              "'%.200s' is not JSON: %s at character %d", name,
                              where.text, where.position + 5);
    int ret;
    if (json_is_object(root))
        ret = json_flatten("", root, 0, options, err);
    else
        ret = rhea_error_set(err, EINVAL,
                             "'%.200s' is not the description of an image: "
                             "json:{\"driver\": ...}",
                             name);
    json_decref(root);
    return ret;
}
