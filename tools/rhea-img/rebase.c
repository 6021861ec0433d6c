/* SPDX-License-Identifier: MIT */
/* rhea-img rebase */
#include <errno.h>

#include <rhea/convert.h>

#include "tool.h"

struct rebase_arguments {
    struct tool_image image;
    const char *backing, *backing_format, *backing_cache;
    bool unsafe, compress, no_lock;
    struct tool_progress progress;
};

static int rebase_open_backing(const struct rebase_arguments *a,
                               struct rhea_image *image,
                               struct rhea_image **backing)
{
    bool direct = false, unsafe;
    struct rhea_error err;
    unsigned flags;

    *backing = NULL;
    if (a->unsafe || !*a->backing)
        return 0;
    if (a->backing_cache &&
        tool_get_cache(a->backing_cache, &direct, &unsafe) < 0)
        return 1;
    flags = (direct ? RHEA_IMAGE_DIRECT : 0) |
            (a->no_lock ? RHEA_IMAGE_NO_LOCK : 0);
    if (rhea_image_open_below(backing, image, a->backing, a->backing_format,
                              flags, &err) == 0)
        return 0;
    rhea_error_prefix(&err, "the new backing file");
    return tool_fail(a->backing, &err, 1);
}

static int rebase_image(struct rebase_arguments *a, struct rhea_image *image,
                        struct rhea_image *backing)
{
    struct rhea_progress progress = {
        .report = tool_progress_report,
        .cancelled = tool_signals_cancelled,
        .opaque = &a->progress,
    };
    struct rhea_rebase_options how = {
        .file = a->backing && *a->backing ? a->backing : NULL,
        .unsafe = a->unsafe,
        .compress = a->compress,
        .progress = &progress,
    };
    struct rhea_error err;
    int ret;

    if (how.file)
        how.format = a->backing_format;
    tool_signals_catch();
    tool_progress_report(&a->progress, "rebasing", 0, 1);
    ret = rhea_convert_rebase(image, backing, &how, &err);
    tool_progress_finish(&a->progress, ret == 0);
    if (ret == -ECANCELED && tool_signals_caught())
        tool_error("stopped; %s has its contents and its backing file as "
                   "before",
                   a->image.name);
    else if (ret < 0)
        tool_fail(a->image.name, &err, 1);
    return ret < 0;
}

static int rebase_do(struct rebase_arguments *a)
{
    struct rhea_image *image, *backing = NULL;
    struct rhea_error err;
    int code;

    a->image.flags = RHEA_IMAGE_WRITE | (a->unsafe ? RHEA_IMAGE_NO_BACKING : 0);
    if (tool_image_open(&a->image, &image) < 0)
        return 1;
    code = rebase_open_backing(a, image, &backing);
    if (!code)
        code = rebase_image(a, image, backing);
    if (rhea_image_close(image, &err) < 0 && code == 0)
        code = tool_fail(a->image.name, &err, 1);
    rhea_image_close(backing, NULL);
    return tool_finish_output(code, 1);
}

static int rebase_check(const struct rebase_arguments *a)
{
    if (!a->unsafe && !a->backing)
        return tool_usage(&tool_rebase,
                          "rebase: say which backing file the image is to "
                          "have (-b), or -u with none");
    if (a->backing_format && !tool_is_driver(a->backing_format)) {
        tool_error("there is no format '%s'", a->backing_format);
        return 1;
    }
    if (a->backing && *a->backing && !a->backing_format) {
        tool_error("a backing file is given, but not its format: say -F");
        return 1;
    }
    return -1;
}

static int rebase_option(struct rebase_arguments *a, int c, char **argv)
{
    switch (c) {
    case 'F':
        a->backing_format = optarg;
        return -1;
    case 'b':
        a->backing = optarg;
        return -1;
    case 'u':
        a->unsafe = true;
        return -1;
    case 'p':
        a->progress.enabled = true;
        return -1;
    case 't':
        a->image.cache = optarg;
        return -1;
    case 'T':
        a->backing_cache = optarg;
        return -1;
    case 'U':
        a->no_lock = true;
        return -1;
    case 'c':
        a->compress = true;
        return -1;
    default:
        return tool_image_option(&tool_rebase, &a->image, c, argv);
    }
}

static int rebase_parse(struct rebase_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"force-share", no_argument, NULL, 'U'},
        {"compress", no_argument, NULL, 'c'},
        {0},
    };
    bool quiet = false;
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:F:b:upt:T:qUc", long_options,
                            NULL)) != -1) {
        if (c == 'q') {
            quiet = true;
            continue;
        }
        code = rebase_option(a, c, argv);
        if (code >= 0)
            return code;
    }
    code = tool_only_file(&tool_rebase, argc, argv, &a->image.name);
    if (code >= 0)
        return code;
    if (quiet)
        a->progress.enabled = false;
    return rebase_check(a);
}

static int rebase_run(int argc, char **argv)
{
    struct rebase_arguments a = {.progress = {.stream = stdout, .step = 2}};
    int code = rebase_parse(&a, argc, argv);

    return code < 0 ? rebase_do(&a) : code;
}

const struct tool_command tool_rebase = {
    .name = "rebase",
    .summary = "Give an image another backing file",
    .usage = "[-f FORMAT] -b BACKING_FILE [-F FORMAT] [-u] [-c] [-t CACHE]\n"
             "                       [-T CACHE] [-p] [-q] [-U] "
             "[--object OBJECT]\n"
             "                       [--image-opts] FILE",
    .help =
        "  -f FORMAT          of the image; else it is found out\n"
        "  -b FILE            the new backing file; '' is none. What differs\n"
        "                     from the old one is copied into the image\n"
        "  -F FORMAT          of the new backing file\n"
        "  -u                 only change the name: the old backing file was\n"
        "                     moved, or changed its format\n"
        "  -c, --compress     compress what is copied\n"
        "  -t CACHE           of the image; none: past the page cache\n"
        "  -T CACHE           of the new backing file\n"
        "  -p                 show progress\n"
        "  -q                 print only errors\n"
        "  -U, --force-share  even if the new backing file is in use\n"
        "  --object OBJECT    such as a secret that the image needs\n"
        "  --image-opts       FILE is a list of options, NAME=VALUE,...\n",
    .run = rebase_run,
    .usage_code = 1,
};
