/* SPDX-License-Identifier: MIT */
/* Sizes, option lists, and other arguments that several commands take. */
#include <errno.h>

#include "base/checked.h"
#include "common/common.h"
#include "format/option.h"
#include "storage/driver.h"

int tool_get_size(const char *what, const char *text, uint64_t *size)
{
    struct rhea_error err;
    int ret = option_parse_size(text, size, &err);

    if (ret == 0 && *size > INT64_MAX)
        ret = rhea_error_set(&err, ERANGE, "'%s' is too large", text);
    if (ret < 0)
        tool_error("%s: %s", what, err.text);
    return ret;
}

int tool_get_output(const char *text, bool *json)
{
    *json = !strcmp(text, "json");
    if (*json || !strcmp(text, "human"))
        return 0;
    tool_error("--output is either human or json, not '%s'", text);
    return -EINVAL;
}

int tool_get_cache(const char *text, bool *direct, bool *unsafe)
{
    static const struct {
        const char *name;
        bool direct, unsafe;
    } modes[] = {
        {"none", true, false},          {"off", true, false},
        {"directsync", true, false},    {"writeback", false, false},
        {"writethrough", false, false}, {"unsafe", false, true},
    };
    size_t i;

    for (i = 0; i < RHEA_ARRAY_SIZE(modes); i++) {
        if (strcmp(modes[i].name, text))
            continue;
        *direct = modes[i].direct;
        *unsafe = modes[i].unsafe;
        return 0;
    }
    tool_error("there is no cache mode '%s'", text);
    return -EINVAL;
}

void tool_options_set(struct tool_options *o, const char *name,
                      const char *value)
{
    size_t i;

    for (i = 0; i < o->n; i++) {
        if (strcmp(o->items[i].name, name))
            continue;
        free((char *)o->items[i].value);
        o->items[i].value = tool_strdup(value);
        return;
    }
    o->items = tool_realloc(o->items, (o->n + 1) * sizeof(*o->items));
    o->items[o->n].name = tool_strdup(name);
    o->items[o->n].value = tool_strdup(value);
    o->n++;
}

/* Copy one entry of LIST into ENTRY, undoing ",,"; returns what follows. */
static const char *options_entry(const char *list, char *entry)
{
    for (; *list; list++) {
        if (*list == ',' && *++list != ',') {
            *entry = '\0';
            return list;
        }
        *entry++ = *list;
    }
    *entry = '\0';
    return list;
}

int tool_options_add(struct tool_options *o, const char *list)
{
    return tool_options_add_first(o, list, NULL);
}

int tool_options_add_first(struct tool_options *o, const char *list,
                           const char *first)
{
    size_t len = strlen(list);
    char *entry = tool_realloc(NULL, len + 1);
    const char *rest = list;
    bool bad = false;

    do {
        rest = options_entry(rest, entry);
        char *value = strchr(entry, '=');

        if (!*entry || value == entry) {
            bad = true;
        } else if (value) {
            *value = '\0';
            tool_options_set(o, entry, value + 1);
        } else if (first) {
            tool_options_set(o, first, entry);
        } else if (!strcmp(entry, "help") || !strcmp(entry, "?")) {
            o->help = true;
        } else {
            tool_options_set(o, entry, "on");
        }
        first = NULL;
    } while (*rest && !bad);
    /* A comma at the end that is not the second of two. */
    if (!bad && len && *rest == '\0') {
        size_t commas = 0;

        while (commas < len && list[len - 1 - commas] == ',')
            commas++;
        bad = commas % 2;
    }
    free(entry);
    if (bad) {
        tool_error("'%s' is no list of options such as NAME=VALUE,NAME=VALUE",
                   list);
        return -EINVAL;
    }
    return 0;
}

const char *tool_options_get(const struct tool_options *o, const char *name)
{
    size_t i;

    for (i = 0; i < o->n; i++) {
        if (!strcmp(o->items[i].name, name))
            return o->items[i].value;
    }
    return NULL;
}

char *tool_options_take(struct tool_options *o, const char *name)
{
    char *value;
    size_t i;

    for (i = 0; i < o->n; i++) {
        if (strcmp(o->items[i].name, name))
            continue;
        value = (char *)o->items[i].value;
        free((char *)o->items[i].name);
        o->n--;
        memmove(o->items + i, o->items + i + 1, (o->n - i) * sizeof(*o->items));
        return value;
    }
    return NULL;
}

void tool_options_finish(struct tool_options *o)
{
    size_t i;

    for (i = 0; i < o->n; i++) {
        free((char *)o->items[i].name);
        free((char *)o->items[i].value);
    }
    free(o->items);
    memset(o, 0, sizeof(*o));
}

static int options_compare(const void *a, const void *b)
{
    const struct rhea_option_help *x = a, *y = b;

    return strcmp(x->name, y->name);
}

static bool options_named(const char *const *names, const char *name)
{
    for (; *names; names++) {
        if (!strcmp(*names, name))
            return true;
    }
    return false;
}

/* A list of options while it is put together. */
struct options_list {
    struct rhea_option_help items[64];
    size_t n;
};

static void options_add(struct options_list *list,
                        const struct rhea_option_help *o,
                        const char *const *only)
{
    for (; o && o->name; o++) {
        if (list->n < RHEA_ARRAY_SIZE(list->items) &&
            (!only || options_named(only, o->name)))
            list->items[list->n++] = *o;
    }
}

static void options_print(struct options_list *list)
{
    qsort(list->items, list->n, sizeof(list->items[0]), options_compare);
    for (size_t i = 0; i < list->n; i++) {
        const struct rhea_option_help *o = &list->items[i];
        char head[64];

        snprintf(head, sizeof(head), "  %s=<%s>", o->name, o->type);
        printf("%-24s - %s\n", head, o->text);
    }
}

int tool_options_help(const char *format, const char *filename,
                      const char *const *only)
{
    const struct rhea_format_ops *ops = rhea_format_find(format);
    struct options_list list = {.n = 0};

    if (!ops || !ops->create) {
        tool_error(ops ? "%s images cannot be created"
                       : "there is no format '%s'",
                   format);
        return 1;
    }
    options_add(&list, ops->create_options, only);
    if (filename) {
        options_add(&list, storage_create_options(filename), only);
        printf("Supported options:\n");
    } else {
        printf("Supported %s options:\n", ops->name);
    }
    options_print(&list);
    if (!filename && !only)
        printf("\nFiles have options of their own: name the file to see these "
               "too.\n");
    return tool_finish_output(0, 1);
}

int tool_options_help_amend(const char *format)
{
    const struct rhea_format_ops *ops = rhea_format_find(format);
    struct options_list list = {.n = 0};

    if (!ops || !ops->amend) {
        tool_error(ops ? "options of %s images cannot be changed"
                       : "there is no format '%s'",
                   format);
        return 1;
    }
    printf("Amend options for '%s':\n", ops->name);
    options_add(&list, ops->amend_options, NULL);
    options_print(&list);
    return tool_finish_output(0, 1);
}
