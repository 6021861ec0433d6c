/* SPDX-License-Identifier: MIT */
/*
 * What a user may say: sizes and lists of options, and images created with
 * them. Whatever is created opens, has the size that was asked for, checks
 * clean and is empty; and the same options, given to a conversion in place, are
 * taken or refused, and then it changes nothing when dry.
 *
 * An input is three lines: a format, a size, and a list of options.
 */
#include <rhea/inplace.h>

#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "common/common.h"
#include "format/option.h"
#include "fuzz.h"
#include "guest.h"
#include "reader.h"
#include "storage/memory.h"

enum { LIMIT = 48 << 20, ROUNDING = 2 << 20 };

/* --- parsing ------------------------------------------------------------- */

static void options_size(const char *text, uint64_t *size)
{
    char again[32];
    uint64_t value;
    *size = 0;
    if (option_parse_size(text, size, NULL))
        return;
    FUZZ_REQUIRE(*text >= '0' && *text <= '9', "'%s' is a size", text);
    snprintf(again, sizeof(again), "%" PRIu64, *size);
    FUZZ_REQUIRE(!option_parse_size(again, &value, NULL) && value == *size,
                 "%s is not %" PRIu64, again, value);
}

/* Names are there once, and none is empty. */
static void options_check_list(const struct tool_options *o)
{
    for (size_t i = 0; i < o->n; i++) {
        FUZZ_REQUIRE(*o->items[i].name, "an option without a name");
        FUZZ_REQUIRE(tool_options_get(o, o->items[i].name) == o->items[i].value,
                     "option %s is there twice", o->items[i].name);
    }
}

/* --- creation ------------------------------------------------------------ */

static void options_check_image(const struct rhea_format_ops *format,
                                struct rhea_storage *s, uint64_t size)
{
    struct rhea_format *f;
    struct rhea_error err;
    int ret = rhea_format_open_over(format, &f, s, 0, &err);
    FUZZ_REQUIRE(!ret, "what was created does not open: %s", err.text);
    /* VHD rounds up to whole cylinders, or as a size rule says; VHDX to its
     * sectors. */
    bool rounds = !strcmp(format->name, "vpc") || !strcmp(format->name, "vhdx");
    uint64_t wanted = align_up(size, 512);
    FUZZ_REQUIRE(f->size >= wanted &&
                     f->size - wanted <= (rounds ? ROUNDING : 0),
                 "a disk of %" PRIu64 " bytes, not %" PRIu64, f->size, size);
    /* A disk of zeroes, which is what an empty model says, too. */
    struct guest g;
    guest_load(&g, f, false);
    FUZZ_REQUIRE(!g.broken, "what was created cannot be read");
    if (g.size)
        guest_zero(&g, 0, g.size);
    guest_compare(&g, f, "created");
    guest_finish(&g);
    format->close(f, NULL);
    if (!format->check)
        return;

    struct rhea_check found;
    FUZZ_REQUIRE(reader_check(format, s, 0, &found),
                 "what was created cannot be checked");
    FUZZ_REQUIRE(!found.corruptions && !found.errors && !found.leaks,
                 "%" PRIu64 " corruptions, %" PRIu64 " errors, %" PRIu64
                 " leaks in what was created",
                 found.corruptions, found.errors, found.leaks);
}

static void options_convert(const struct tool_options *o,
                            struct rhea_storage *s, const char *target)
{
    const struct rhea_inplace_options how = {.target_format = target,
                                             .options = o->items,
                                             .n_options = o->n,
                                             .dry_run = true};
    uint64_t digest = memory_digest(s);
    rhea_inplace_convert_storage(s, "image", &how, NULL, NULL, NULL);
    FUZZ_REQUIRE(memory_digest(s) == digest, "a dry run changes the file");
}

static void options_create(const struct rhea_format_ops *format, uint64_t size,
                           const struct tool_options *o)
{
    const struct rhea_create how = {
        .size = size, .options = o->items, .n_options = o->n};
    struct rhea_storage *s;
    FUZZ_REQUIRE(!rhea_memory_open(&s, LIMIT, NULL), "memory");
    if (format->create(s, &how, NULL) == 0)
        options_check_image(format, s, size);
    rhea_storage_close(s);

    /* An image for which the options were not made. */
    const struct rhea_create plain = {.size = size};
    FUZZ_REQUIRE(!rhea_memory_open(&s, LIMIT, NULL), "memory");
    if (format->create(s, &plain, NULL) == 0) {
        options_convert(o, s, "qcow2");
        options_convert(o, s, "qed");
    }
    rhea_storage_close(s);
}

/* A copy of the next line, malloc'd. */
static char *options_line(struct fuzz_input *in)
{
    const uint8_t *end = in->len ? memchr(in->data, '\n', in->len) : NULL;
    size_t n = end ? (size_t)(end - in->data) : in->len;
    char *line = strndup((const char *)in->data, n);
    FUZZ_REQUIRE(line, "memory");
    n += end ? 1 : 0;
    in->data += n;
    in->len -= n;
    return line;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input in = {data, size};
    RHEA_AUTO_FREE char *name = options_line(&in);
    RHEA_AUTO_FREE char *number = options_line(&in);
    RHEA_AUTO_FREE char *list = options_line(&in);
    const struct rhea_format_ops *format = rhea_format_find(name);
    struct tool_options o = {0};
    uint64_t bytes;
    options_size(number, &bytes);
    if (tool_options_add(&o, list) == 0) {
        options_check_list(&o);
        if (format && format->create)
            options_create(format, bytes, &o);
    }
    tool_options_finish(&o);
    return 0;
}
