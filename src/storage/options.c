/* SPDX-License-Identifier: MIT */
/* Lists of a node's options. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "storage/driver.h"

static struct storage_option *options_find(const struct storage_options *o,
                                           const char *name)
{
    for (size_t i = 0; i < o->n; i++)
        if (strcmp(o->items[i].name, name) == 0)
            return &o->items[i];
    return NULL;
}

static int options_append(struct storage_options *o, const char *name,
                          struct rhea_error *err)
{
    if (o->n >= STORAGE_OPTIONS_MAX)
        return rhea_error_set(err, E2BIG, "there are more than %d options",
                              STORAGE_OPTIONS_MAX);
    if (strlen(name) > STORAGE_OPTION_NAME_MAX)
        return rhea_error_set(err, ENAMETOOLONG,
                              "the option '%.100s...' has too long a name",
                              name);
    struct storage_option *items =
        realloc(o->items, (o->n + 1) * sizeof(*items));
    if (!items)
        return rhea_error_set(err, ENOMEM, "out of memory");
    o->items = items;
    items[o->n] = (struct storage_option){.name = strdup(name)};
    if (!items[o->n].name)
        return rhea_error_set(err, ENOMEM, "out of memory");
    o->n++;
    return 0;
}

int storage_options_set(struct storage_options *o, const char *name,
                        const char *value, enum storage_option_type type,
                        struct rhea_error *err)
{
    char *copy = strdup(value);
    if (!copy)
        return rhea_error_set(err, ENOMEM, "out of memory");
    struct storage_option *item = options_find(o, name);
    if (!item) {
        int ret = options_append(o, name, err);
        if (ret) {
            free(copy);
            return ret;
        }
        item = &o->items[o->n - 1];
    }
    free(item->value);
    item->value = copy;
    item->type = type;
    return 0;
}

const char *storage_options_peek(const struct storage_options *o,
                                 const char *name)
{
    const struct storage_option *item = options_find(o, name);
    return item ? item->value : NULL;
}

const char *storage_options_get(const struct storage_options *o,
                                const char *name)
{
    struct storage_option *item = options_find(o, name);
    if (!item)
        return NULL;
    item->used = true;
    return item->value;
}

bool storage_options_has_prefix(const struct storage_options *o,
                                const char *prefix)
{
    for (size_t i = 0; i < o->n; i++)
        if (strncmp(o->items[i].name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

int storage_options_bool(const struct storage_options *o, const char *name,
                         bool *value, struct rhea_error *err)
{
    static const char *const words[][2] = {
        {"on", "off"}, {"yes", "no"}, {"true", "false"}, {"y", "n"}};
    const char *text = storage_options_get(o, name);
    if (!text)
        return 0;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(words); i++)
        for (int no = 0; no < 2; no++)
            if (strcmp(text, words[i][no]) == 0) {
                *value = !no;
                return 0;
            }
    return rhea_error_set(err, EINVAL, "option %s is 'on' or 'off', not '%s'",
                          name, text);
}

int storage_options_size(const struct storage_options *o, const char *name,
                         uint64_t *value, struct rhea_error *err)
{
    const char *text = storage_options_get(o, name);
    int ret = text ? size_parse(text, value, err) : 0;
    return ret ? rhea_error_prefix(err, "option %s", name) : 0;
}

int storage_options_extract(const struct storage_options *from,
                            const char *prefix, struct storage_options *to,
                            struct rhea_error *err)
{
    size_t len = strlen(prefix);
    for (size_t i = 0; i < from->n; i++) {
        struct storage_option *item = &from->items[i];
        if (strncmp(item->name, prefix, len) != 0)
            continue;
        int ret = storage_options_set(to, item->name + len, item->value,
                                      item->type, err);
        if (ret)
            return ret;
        item->used = true;
    }
    return 0;
}

int storage_options_copy(const struct storage_options *from,
                         struct storage_options *to, struct rhea_error *err)
{
    int ret = 0;
    for (size_t i = 0; !ret && i < from->n; i++)
        ret = storage_options_set(to, from->items[i].name, from->items[i].value,
                                  from->items[i].type, err);
    return ret;
}

static void option_finish(struct storage_option *item)
{
    /* It may be a password. */
    if (item->value)
        explicit_bzero(item->value, strlen(item->value));
    free(item->name);
    free(item->value);
}

void storage_options_remove(struct storage_options *o, const char *name)
{
    struct storage_option *item = options_find(o, name);
    if (!item)
        return;
    option_finish(item);
    o->n--;
    memmove(item, item + 1, (size_t)(o->items + o->n - item) * sizeof(*item));
}

const char *storage_options_unused(const struct storage_options *o)
{
    for (size_t i = 0; i < o->n; i++)
        if (!o->items[i].used)
            return o->items[i].name;
    return NULL;
}

void storage_options_finish(struct storage_options *o)
{
    for (size_t i = 0; i < o->n; i++)
        option_finish(&o->items[i]);
    free(o->items);
    memset(o, 0, sizeof(*o));
}
