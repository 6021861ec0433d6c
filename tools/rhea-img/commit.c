/* SPDX-License-Identifier: MIT */
/* rhea-img commit */
#include <errno.h>

#include <rhea/convert.h>

#include "tool.h"

struct commit_arguments {
    struct tool_image top;
    const char *base; /* NULL: the backing file */
    uint64_t rate;
    bool drop, quiet;
    struct tool_progress progress;
};

/* Where the contents are to go; NULL after a message. */
static struct rhea_image *commit_find_base(const struct commit_arguments *a,
                                           struct rhea_image *top)
{
    struct rhea_image *base = a->base ? rhea_image_find_backing(top, a->base)
                                      : rhea_image_backing(top);

    if (!base && a->base)
        tool_error("%s: no image of its backing chain is %s", a->top.name,
                   a->base);
    else if (!base)
        tool_error("%s has no backing file to commit to", a->top.name);
    return base;
}

static int commit_images(struct commit_arguments *a, struct rhea_image *top,
                         struct rhea_image *base)
{
    struct rhea_progress progress = {
        .report = tool_progress_report,
        .cancelled = tool_signals_cancelled,
        .opaque = &a->progress,
    };
    struct rhea_commit_options how = {
        .rate = a->rate,
        .empty = !a->drop,
        .progress = &progress,
    };
    struct rhea_error err;
    int ret;

    if (rhea_image_allow_write(base, &err) < 0)
        return tool_fail(rhea_image_filename(base), &err, 1);
    tool_signals_catch();
    tool_progress_report(&a->progress, "committing", 0, 1);
    ret = rhea_convert_commit(top, base, &how, &err);
    tool_progress_finish(&a->progress, ret == 0);
    if (ret == -ECANCELED && tool_signals_caught())
        tool_error("stopped; %s still has its contents, and the same command "
                   "goes on",
                   a->top.name);
    else if (ret < 0)
        tool_error("%s", err.text);
    return ret < 0;
}

static int commit_do(struct commit_arguments *a)
{
    struct rhea_image *top, *base;
    struct rhea_error err;
    int code = 1;

    a->top.flags = RHEA_IMAGE_WRITE;
    if (tool_image_open(&a->top, &top) < 0)
        return 1;
    base = commit_find_base(a, top);
    if (base)
        code = commit_images(a, top, base);
    if (rhea_image_close(top, &err) < 0 && code == 0)
        code = tool_fail(a->top.name, &err, 1);
    if (code == 0 && !a->quiet)
        printf("Image committed.\n");
    return tool_finish_output(code, 1);
}

static int commit_parse(struct commit_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:t:b:dpqr:", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 't':
            a->top.cache = optarg;
            break;
        case 'b':
            a->base = optarg;
            a->drop = true;
            break;
        case 'd':
            a->drop = true;
            break;
        case 'p':
            a->progress.enabled = true;
            break;
        case 'q':
            a->quiet = true;
            break;
        case 'r':
            if (tool_get_size("rate limit", optarg, &a->rate) < 0)
                return 1;
            break;
        default:
            code = tool_image_option(&tool_commit, &a->top, c, argv);
            if (code >= 0)
                return code;
        }
    }
    code = tool_only_file(&tool_commit, argc, argv, &a->top.name);
    if (code >= 0)
        return code;
    if (a->quiet)
        a->progress.enabled = false;
    return -1;
}

static int commit_run(int argc, char **argv)
{
    struct commit_arguments a = {.progress = {.stream = stdout, .step = 1}};
    int code = commit_parse(&a, argc, argv);

    return code < 0 ? commit_do(&a) : code;
}

const struct tool_command tool_commit = {
    .name = "commit",
    .summary = "Write an image's changes into its backing file",
    .usage = "[-f FORMAT] [-b BASE] [-d] [-r RATE] [-t CACHE] [-p] [-q]\n"
             "                       [--object OBJECT] [--image-opts] FILE",
    .help =
        "  -f FORMAT        of the image; else it is found out\n"
        "  -b BASE          the image of its chain to write into; the backing\n"
        "                   file, if not given. Implies -d\n"
        "  -d               do not empty the image afterwards\n"
        "  -r RATE          at most so many bytes a second\n"
        "  -t CACHE         of the image; none: past the page cache\n"
        "  -p               show progress\n"
        "  -q               print only errors\n"
        "  --object OBJECT  such as a secret that the image needs\n"
        "  --image-opts     FILE is a list of options, NAME=VALUE,...\n",
    .run = commit_run,
    .usage_code = 1,
};
