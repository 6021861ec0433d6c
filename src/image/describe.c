/* SPDX-License-Identifier: MIT */
/*
 * How an image that is open is called: by a plain name where that alone would
 * open the same again, else by json:{...} with all the options that decide
 * which bytes there are. As in QEMU, so that a name that one program prints
 * opens the image with the other.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "image/node.h"

/* The members of an object in the order in which QEMU prints them; others
 * stand at the end. '#' is a number. */
static const char *const describe_order[] = {
    "inject-error.#.state",
    "opt-write-zero",
    "inject-error.#.immediately",
    "password-secret",
    "port",
    "server.to",
    "url",
    "read-zeroes",
    "cookie-secret",
    "set-state.#.event",
    "server.path",
    "server.port",
    "server.host",
    "inject-error.#.once",
    "proxy-username",
    "max-write-zero",
    "offset",
    "image",
    "data-file",
    "backing",
    "max-transfer",
    "host",
    "encrypt.key-secret",
    "force_size_calc",
    "children",
    "driver",
    "path",
    "x-image",
    "proxy-password-secret",
    "config",
    "filename",
    "inject-error.#.iotype",
    "size",
    "username",
    "set-state.#.new_state",
    "inject-error.#.event",
    "inject-error.#.errno",
    "export",
    "server.type",
    "opt-discard",
    "set-state.#.state",
    "cookie",
    "tls-creds",
    "inject-error.#.sector",
    "tls-hostname",
    "sslverify",
    "file",
    "key-secret",
    "max-discard",
    "align",
};

static bool describe_matches(const char *pattern, const char *name)
{
    for (; *pattern && *name; pattern++) {
        if (*pattern == '#' && isdigit((unsigned char)*name))
            name += strspn(name, "0123456789");
        else if (*pattern == *name)
            name++;
        else
            return false;
    }
    return !*pattern && !*name;
}

static size_t describe_rank(const char *name)
{
    size_t i = 0;
    while (i < RHEA_ARRAY_SIZE(describe_order) &&
           !describe_matches(describe_order[i], name))
        i++;
    return i;
}

struct describe_member {
    const char *name;
    size_t rank, at;
};

static int describe_compare(const void *a, const void *b)
{
    const struct describe_member *x = a, *y = b;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static json_t *describe_sort(json_t *object);

/* The same of any value. */
static json_t *describe_sort_value(json_t *value)
{
    if (json_is_object(value))
        return describe_sort(value);
    if (!json_is_array(value))
        return json_incref(value);
    json_t *sorted = json_array();
    for (size_t i = 0; sorted && i < json_array_size(value); i++)
        if (json_array_append_new(
                sorted, describe_sort_value(json_array_get(value, i))))
            return json_decref(sorted), NULL;
    return sorted;
}

/* The same members in QEMU's order; a new object, NULL: out of memory. */
static json_t *describe_sort(json_t *object)
{
    size_t n = json_object_size(object), i = 0;
    RHEA_AUTO_FREE struct describe_member *members =
        calloc(n + 1, sizeof(*members));
    json_t *sorted = json_object(), *value;
    const char *key;

    if (!members || !sorted)
        return json_decref(sorted), NULL;
    json_object_foreach(object, key, value)
    {
        members[i] = (struct describe_member){key, describe_rank(key), i};
        i++;
    }
    qsort(members, n, sizeof(*members), describe_compare);
    for (i = 0; i < n; i++) {
        value = json_object_get(object, members[i].name);
        json_t *below = describe_sort_value(value);
        if (!below || json_object_set_new(sorted, members[i].name, below))
            return json_decref(sorted), NULL;
    }
    return sorted;
}

void node_description_finish(struct node_description *d)
{
    free(d->plain);
    free(d->folder);
    json_decref(d->full);
    memset(d, 0, sizeof(*d));
}

int node_description_copy(struct node_description *d,
                          const struct node_description *from,
                          struct rhea_error *err)
{
    *d = (struct node_description){
        .plain = from->plain ? strdup(from->plain) : NULL,
        .full = json_incref(from->full),
        .folder = from->folder ? strdup(from->folder) : NULL,
        .is_protocol = from->is_protocol,
    };
    if (!d->plain == !from->plain && !d->folder == !from->folder)
        return 0;
    node_description_finish(d);
    return rhea_error_set(err, ENOMEM, "out of memory");
}

char *node_description_name(const struct node_description *d)
{
    if (d->plain)
        return strdup(d->plain);
    json_t *sorted = describe_sort(d->full);
    char *text =
        sorted ? json_dumps(sorted, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    json_decref(sorted);
    char *name = NULL;
    if (text && asprintf(&name, "json:%s", text) < 0)
        name = NULL;
    free(text);
    return name;
}

/* A JSON string, also of what is not UTF-8. */
static json_t *describe_string(const char *s)
{
    json_t *value = json_string(s);
    return value ? value : json_string("?");
}

static json_t *describe_value(const struct storage_option *o)
{
    switch (o->type) {
    case STORAGE_OPTION_NUMBER:
        return json_integer(strtoll(o->value, NULL, 10));
    case STORAGE_OPTION_BOOL:
        return json_boolean(strcmp(o->value, "true") == 0);
    case STORAGE_OPTION_NULL:
        return json_null();
    case STORAGE_OPTION_STRING:
        break;
    }
    return describe_string(o->value);
}

static bool describe_is_strong(const char *name, const char *const *strong)
{
    if (strcmp(name, "filename") == 0)
        return true;
    for (; strong && *strong; strong++) {
        size_t len = strlen(*strong);
        bool prefix = len && (*strong)[len - 1] == '.';
        if (prefix ? strncmp(name, *strong, len) == 0
                   : strcmp(name, *strong) == 0)
            return true;
    }
    return false;
}

int node_describe(struct node_description *d, const char *driver,
                  const struct storage_options *options,
                  const char *const *strong, bool *others,
                  struct rhea_error *err)
{
    *others = false;
    d->full = json_object();
    bool failed =
        !d->full || json_object_set_new(d->full, "driver", json_string(driver));
    for (size_t i = 0; !failed && i < options->n; i++) {
        const struct storage_option *o = &options->items[i];
        if (!describe_is_strong(o->name, strong))
            continue;
        failed = json_object_set_new(d->full, o->name, describe_value(o));
        *others |= strcmp(o->name, "filename") != 0;
    }
    return failed ? rhea_error_set(err, ENOMEM, "out of memory") : 0;
}

int node_describe_child(struct node_description *d, const char *name,
                        const struct node_description *child,
                        struct rhea_error *err)
{
    json_t *value = child ? json_incref(child->full) : json_null();
    const char *dot = strchr(name, '.');
    if (!dot)
        return json_object_set_new(d->full, name, value)
                   ? rhea_error_set(err, ENOMEM, "out of memory")
                   : 0;
    RHEA_AUTO_FREE char *list_name = strndup(name, (size_t)(dot - name));
    json_t *list = list_name ? json_object_get(d->full, list_name) : NULL;
    if (list_name && !list) {
        list = json_array();
        if (json_object_set_new(d->full, list_name, list))
            list = NULL;
    }
    if (json_array_append_new(list, value))
        return rhea_error_set(err, ENOMEM, "out of memory");
    return 0;
}
