/* SPDX-License-Identifier: MIT */
/* rhea-img amend */
#include <errno.h>

#include "tool.h"

struct amend_arguments {
    struct tool_image image; /* name NULL: only help is asked for */
    struct tool_options options;
    bool given, force, quiet;
    struct tool_progress progress;
};

static int amend_image(struct amend_arguments *a, struct rhea_image *image)
{
    struct rhea_progress progress = {
        .report = tool_progress_report,
        .cancelled = tool_signals_cancelled,
        .opaque = &a->progress,
    };
    struct rhea_error err;
    int ret;

    if (a->options.help)
        return tool_options_help_amend(rhea_image_format(image)->ops->name);
    tool_signals_catch();
    tool_progress_report(&a->progress, "amending", 0, 1);
    ret = rhea_image_amend(image, a->options.items, a->options.n, a->force,
                           &progress, &err);
    tool_progress_finish(&a->progress, ret == 0);
    return ret < 0 ? tool_fail(a->image.name, &err, 1) : 0;
}

static int amend_do(struct amend_arguments *a)
{
    struct rhea_image *image;
    struct rhea_error err;
    int code;

    if (a->options.help && a->image.format)
        return tool_options_help_amend(a->image.format);
    if (!a->image.name)
        return tool_usage(&tool_amend, "amend: exactly one file is needed");
    a->image.flags = RHEA_IMAGE_WRITE;
    if (tool_image_open(&a->image, &image) < 0)
        return 1;
    code = amend_image(a, image);
    if (rhea_image_close(image, &err) < 0 && code == 0)
        code = tool_fail(a->image.name, &err, 1);
    return tool_finish_output(code, 1);
}

static int amend_option(struct amend_arguments *a, int c, char **argv)
{
    switch (c) {
    case 'o':
        a->given = true;
        return tool_options_add(&a->options, optarg) < 0 ? 1 : -1;
    case 't':
        a->image.cache = optarg;
        return -1;
    case 'p':
        a->progress.enabled = true;
        return -1;
    case 'q':
        a->quiet = true;
        return -1;
    case TOOL_OPT_FORCE:
        a->force = true;
        return -1;
    default:
        return tool_image_option(&tool_amend, &a->image, c, argv);
    }
}

static int amend_parse(struct amend_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"force", no_argument, NULL, TOOL_OPT_FORCE},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":ho:f:t:pq", long_options, NULL)) !=
           -1) {
        code = amend_option(a, c, argv);
        if (code >= 0)
            return code;
    }
    if (!a->given)
        return tool_usage(&tool_amend, "amend: what is to change? Say -o");
    if (optind == argc - 1)
        a->image.name = argv[optind];
    if (a->quiet)
        a->progress.enabled = false;
    return -1;
}

static int amend_run(int argc, char **argv)
{
    struct amend_arguments a = {.progress = {.stream = stdout, .step = 1}};
    int code = amend_parse(&a, argc, argv);

    if (code < 0)
        code = amend_do(&a);
    tool_options_finish(&a.options);
    return code;
}

const struct tool_command tool_amend = {
    .name = "amend",
    .summary = "Change creation options of an image",
    .usage = "-o OPTIONS [-f FORMAT] [-t CACHE] [--force] [-p] [-q]\n"
             "                       [--object OBJECT] [--image-opts] FILE",
    .help = "  -o a=b,..        what is to change; `-o help` lists what can\n"
            "  -f FORMAT        of the image; else it is found out\n"
            "  -t CACHE         of the image; none: past the page cache\n"
            "  --force          also what may make the image useless, such as "
            "erasing its\n"
            "                   last passphrase\n"
            "  -p               show progress\n"
            "  -q               print only errors\n"
            "  --object OBJECT  such as a secret that the image needs\n"
            "  --image-opts     FILE is a list of options, NAME=VALUE,...\n",
    .run = amend_run,
    .usage_code = 1,
};
