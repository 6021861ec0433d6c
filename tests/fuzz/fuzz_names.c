/* SPDX-License-Identifier: MIT */
/*
 * Names of images: URIs, json:{...}, lists of options as after --image-opts,
 * and what --object takes. Nothing outside of this process is opened: only
 * what consists of drivers that need no file is put together, too.
 *
 * An input's first byte says what follows: 'n' a name, 'o' a list of options,
 * 's' an object.
 */
#include <string.h>

#include <rhea/image.h>
#include <rhea/secret.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "common/common.h"
#include "fuzz.h"
#include "image/node.h"
#include "storage/driver.h"
#include "storage/uri.h"

/* --- names of drivers ---------------------------------------------------- */

/* Every option of A is in B and says the same. */
static void names_require_same(const struct storage_options *a,
                               const struct storage_options *b,
                               const char *name)
{
    for (size_t i = 0; i < a->n; i++) {
        const char *value = storage_options_peek(b, a->items[i].name);

        FUZZ_REQUIRE(value && !strcmp(value, a->items[i].value),
                     "'%s': option %s is not '%s' but '%s'", name,
                     a->items[i].name, a->items[i].value,
                     value ? value : "not there");
    }
}

/* A name that a driver makes of options means these options. (A file has many
 * names.) */
static void names_plain(const struct storage_driver *driver,
                        const struct storage_options *options)
{
    struct storage_options again = {0};
    char *plain = NULL;

    if (driver->plain_name && driver != &storage_driver_file &&
        driver != &storage_driver_host_device)
        plain = driver->plain_name(options, NULL);

    if (plain) {
        struct rhea_error err;

        FUZZ_REQUIRE(storage_driver_of_name(plain) == driver,
                     "'%s' is not one of %s", plain, driver->name);
        FUZZ_REQUIRE(!driver->parse(plain, &again, &err), "'%s': %s", plain,
                     err.text);
        names_require_same(options, &again, plain);
        names_require_same(&again, options, plain);
    }
    storage_options_finish(&again);
    free(plain);
}

static void names_driver(const char *name)
{
    const struct storage_driver *driver = storage_driver_of_name(name);
    struct storage_options options = {0};

    if (driver && driver->parse && !driver->parse(name, &options, NULL))
        names_plain(driver, &options);
    storage_options_finish(&options);
}

static void names_uri(const char *name)
{
    struct uri uri;

    if (uri_parse(&uri, name, NULL))
        return;
    FUZZ_REQUIRE(uri.scheme && uri.host && uri.port && uri.path, "'%s'", name);
    for (unsigned i = 0; i < uri.n_query; i++)
        FUZZ_REQUIRE(uri.query[i].name && uri.query[i].value, "'%s'", name);
    uri_finish(&uri);
}

static void names_encode(const char *text)
{
    static const char head[] = "x://host/";
    RHEA_AUTO_FREE char *code = uri_encode(text);
    RHEA_AUTO_FREE char *whole = NULL;
    struct uri uri;
    struct rhea_error err;

    FUZZ_REQUIRE(code && asprintf(&whole, "%s%s", head, code) > 0, "memory");
    FUZZ_REQUIRE(!uri_parse(&uri, whole, &err), "'%s': %s", whole, err.text);
    FUZZ_REQUIRE(!strcmp(uri.path, text), "'%s' is '%s'", text, uri.path);
    uri_finish(&uri);
}

/* --- options ------------------------------------------------------------- */

static bool names_ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);

    return n >= m && !strcmp(name + n - m, end);
}

/* Whether an option leads out of this process, or makes it wait. */
static bool names_is_outside(const struct storage_option *o)
{
    static const char *const inside[] = {
        "raw", "qcow2", "qed", "luks", "null-co", "null-aio", "blkdebug"};

    if (names_ends_with(o->name, "driver")) {
        for (size_t i = 0; i < RHEA_ARRAY_SIZE(inside); i++)
            if (!strcmp(o->value, inside[i]))
                return false;
        return true;
    }
    return names_ends_with(o->name, "filename") ||
           names_ends_with(o->name, "config") ||
           names_ends_with(o->name, "latency-ns") ||
           names_ends_with(o->name, "file") ||
           names_ends_with(o->name, "image") ||
           names_ends_with(o->name, "backing");
}

static void names_open(const struct storage_options *options)
{
    struct rhea_option *list;
    struct rhea_image *image;
    struct rhea_error err;
    uint8_t byte;

    for (size_t i = 0; i < options->n; i++)
        if (names_is_outside(&options->items[i]))
            return;
    list = calloc(options->n + 1, sizeof(*list));
    FUZZ_REQUIRE(list, "memory");
    for (size_t i = 0; i < options->n; i++)
        list[i] = (struct rhea_option){options->items[i].name,
                                       options->items[i].value};
    if (rhea_image_open_options(&image, list, options->n, 0, &err) == 0) {
        FUZZ_REQUIRE(rhea_image_size(image) <= INT64_MAX, "a disk of %" PRIu64,
                     rhea_image_size(image));
        if (rhea_image_size(image))
            rhea_image_read(image, &byte, 1, rhea_image_size(image) - 1, &err);
        rhea_image_close(image, NULL);
    }
    free(list);
}

/* JSON, and so a name that is JSON, has nothing else. */
static bool names_is_utf8(const struct storage_options *options)
{
    bool is = true;

    for (size_t i = 0; is && i < options->n; i++) {
        json_t *text =
            json_pack("[ss]", options->items[i].name, options->items[i].value);

        is = text != NULL;
        json_decref(text);
    }
    return is;
}

/* A node says how it is called so that the name leads to the same. */
static void names_describe(const struct storage_options *options)
{
    static const char *const strong[] = {"size", "offset", "server.", NULL};
    struct node_description d = {0};
    struct storage_options again = {0};
    struct rhea_error err;
    bool others;
    char *name = NULL;

    if (!storage_options_peek(options, "driver") || !names_is_utf8(options) ||
        node_describe(&d, "file", options, strong, &others, NULL)) {
        node_description_finish(&d);
        return;
    }
    free(d.plain);
    d.plain = NULL;
    name = node_description_name(&d);
    if (name && strlen(name) < NODE_NAME_MAX) {
        FUZZ_REQUIRE(!node_parse_json(name, &again, &err), "'%s': %s", name,
                     err.text);
        storage_options_remove(&again, "driver");
        names_require_same(&again, options, name);
    }
    free(name);
    storage_options_finish(&again);
    node_description_finish(&d);
}

static void names_json(const char *name)
{
    struct storage_options options = {0};

    if (node_name_is_json(name) && !node_parse_json(name, &options, NULL)) {
        FUZZ_REQUIRE(options.n <= STORAGE_OPTIONS_MAX, "%zu options",
                     options.n);
        names_describe(&options);
        names_open(&options);
    }
    storage_options_finish(&options);
}

static void names_list(const char *text)
{
    struct tool_options given = {0};
    struct storage_options options = {0};
    int ret = tool_options_add_first(&given, text, "file");

    for (size_t i = 0; !ret && i < given.n; i++)
        ret = storage_options_set(&options, given.items[i].name,
                                  given.items[i].value, STORAGE_OPTION_STRING,
                                  NULL);
    if (!ret) {
        names_describe(&options);
        names_open(&options);
    }
    storage_options_finish(&options);
    tool_options_finish(&given);
}

/* --- secrets ------------------------------------------------------------- */

static void names_object(const char *text)
{
    uint8_t *bytes;
    size_t len;

    /* Files of this system are not read. */
    if (strstr(text, "file") || strchr(text, '\\'))
        return;
    if (tool_object_add(text))
        return;
    if (rhea_secret_get("a", &bytes, &len, NULL) == 0) {
        FUZZ_REQUIRE(bytes[len] == 0, "no zero byte behind it");
        rhea_secret_free(bytes, len);
    }
    rhea_secret_remove("a");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    RHEA_AUTO_FREE char *text = NULL;

    if (!size)
        return 0;
    text = strndup((const char *)data + 1, size - 1);
    FUZZ_REQUIRE(text, "memory");
    switch (data[0]) {
    case 'n':
        names_driver(text);
        names_uri(text);
        names_encode(text);
        names_json(text);
        break;
    case 'o':
        names_list(text);
        break;
    case 's':
        names_object(text);
        break;
    default:
        break;
    }
    return 0;
}
