/* SPDX-License-Identifier: MIT */
/*
 * Command lines of rhea-io, on an image in memory. Lines that would end the
 * process, wait, read a file, open another image or ask for more memory than
 * a test should take are left out.
 *
 * An input's first line is the format of the image, the others are commands.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "fuzz.h"
#include "reader.h"
#include "rhea-io/io.h"

enum { DISK = 4 << 20, LARGEST = 16 << 20, LINES = 64 };

/* --- which lines --------------------------------------------------------- */

static bool io_is_unwanted(const char *word, unsigned index)
{
    static const char *const commands[] = {
        "abort", "sigraise", "sleep", "open", "o", "reopen", "wait_break"};
    uint64_t number;

    for (size_t i = 0; index == 0 && i < RHEA_ARRAY_SIZE(commands); i++)
        if (!strcmp(word, commands[i]))
            return true;
    /* -s may name a file. */
    if (index && *word == '-' && strchr(word, 's'))
        return true;
    return option_parse_size(word, &number, NULL) == 0 && number > LARGEST;
}

static bool io_is_wanted(const char *line)
{
    RHEA_AUTO_FREE char *copy = strdup(line);
    char *rest, *word;
    unsigned n = 0;

    FUZZ_REQUIRE(copy, "memory");
    for (word = strtok_r(copy, " \t", &rest); word;
         word = strtok_r(NULL, " \t", &rest))
        if (io_is_unwanted(word, n++))
            return false;
    return n && n < 32;
}

/* --- the image ----------------------------------------------------------- */

static struct rhea_image *io_image(const char *format,
                                   const struct rhea_format_ops **ops)
{
    const struct rhea_create how = {.size = DISK};
    struct rhea_image *image;
    struct rhea_storage *s;
    struct rhea_error err;

    *ops = rhea_format_find(format);
    if (!*ops || !(*ops)->create || !strcmp(format, "luks"))
        return NULL;
    FUZZ_REQUIRE(!rhea_memory_open(&s, INT64_MAX, NULL), "memory");
    if ((*ops)->create(s, &how, &err)) {
        rhea_storage_close(s);
        return NULL;
    }
    FUZZ_REQUIRE(!rhea_image_open_storage(&image, s, "image", format,
                                          RHEA_IMAGE_WRITE, &err),
                 "%s", err.text);
    return image;
}

/* All that was done leaves a sound image. */
static void io_check(const struct rhea_format_ops *ops,
                     struct rhea_image *image)
{
    struct rhea_check found = {0};
    struct rhea_error err;

    FUZZ_REQUIRE(!rhea_image_flush(image, &err), "%s", err.text);
    if (!ops->check)
        return;
    FUZZ_REQUIRE(!ops->check(rhea_image_format(image), 0, &found, &err), "%s",
                 err.text);
    FUZZ_REQUIRE(!found.corruptions && !found.errors,
                 "%" PRIu64 " corruptions, %" PRIu64 " errors",
                 found.corruptions, found.errors);
}

static void io_lines(const uint8_t *data, size_t size)
{
    RHEA_AUTO_FREE char *text = strndup((const char *)data, size);
    const struct rhea_format_ops *ops;
    struct io io = {.image = NULL};
    char *rest, *line;
    unsigned n = 0;

    FUZZ_REQUIRE(text, "memory");
    line = strtok_r(text, "\n", &rest);
    io.image = line ? io_image(line, &ops) : NULL;
    if (!io.image)
        return;
    while (n++ < LINES && !io.quit && (line = strtok_r(NULL, "\n", &rest)))
        if (io_is_wanted(line))
            io_run(&io, line);
    io_breaks_end(&io);
    io_aio_drain(&io);
    if (io.image)
        io_check(ops, io.image);
    FUZZ_REQUIRE(!io_close(&io), "closing");
    io_how_finish(&io.how);
}

/* What the commands print is nobody's; where the inputs are replayed, standard
 * output is the test's. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    int output = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);

    FUZZ_REQUIRE(nowhere >= 0 && output >= 0, "/dev/null");
    fflush(stdout);
    dup2(nowhere, STDOUT_FILENO);
    io_lines(data, size);
    fflush(stdout);
    dup2(output, STDOUT_FILENO);
    close(output);
    close(nowhere);
    return 0;
}
