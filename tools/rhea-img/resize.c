/* SPDX-License-Identifier: MIT */
/* rhea-img resize */
#include <errno.h>

#include "tool.h"

struct resize_arguments {
    struct tool_image image;
    const char *size;
    struct rhea_resize how;
    bool quiet;
    struct tool_progress progress;
};

/* The new size, which SIZE gives as it is or as a difference. */
static int resize_find_size(struct resize_arguments *a, uint64_t current)
{
    char sign = a->size[0] == '+' || a->size[0] == '-' ? a->size[0] : 0;
    uint64_t n;

    if (tool_get_size("image size", a->size + (sign != 0), &n) < 0)
        return -EINVAL;
    if ((sign == '+' && n > INT64_MAX - current) || n > INT64_MAX) {
        tool_error("%s: no image can be that large", a->image.name);
        return -EFBIG;
    }
    if ((sign == '-' && n >= current) || (!sign && !n)) {
        tool_error("%s: nothing would be left of the image", a->image.name);
        return -EINVAL;
    }
    a->how.size = sign == '+' ? current + n : sign == '-' ? current - n : n;
    if (a->how.size <= current && a->how.preallocation &&
        strcmp(a->how.preallocation, "off") != 0) {
        tool_error("%s: only what an image grows by can be preallocated",
                   a->image.name);
        return -EINVAL;
    }
    if (a->how.size < current && !a->how.shrink) {
        tool_error("%s: the image would lose all that lies behind its new "
                   "end; say --shrink if that is meant",
                   a->image.name);
        return -EINVAL;
    }
    return 0;
}

static int resize_do(struct resize_arguments *a)
{
    const struct rhea_progress progress = {
        .report = tool_progress_report,
        .opaque = &a->progress,
    };
    struct rhea_image *image;
    struct rhea_error err;
    int ret;

    a->how.progress = &progress;
    a->image.flags = RHEA_IMAGE_WRITE;
    if (tool_image_open(&a->image, &image) < 0)
        return 1;
    ret = resize_find_size(a, rhea_image_size(image));
    if (ret == 0) {
        ret = rhea_image_resize(image, &a->how, &err);
        tool_progress_finish(&a->progress, ret == 0);
        if (ret < 0)
            tool_fail(a->image.name, &err, 1);
    }
    if (rhea_image_close(image, &err) < 0 && ret == 0)
        ret = -tool_fail(a->image.name, &err, 1);
    if (ret == 0 && !a->quiet)
        printf("Image resized.\n");
    return tool_finish_output(ret != 0, 1);
}

static bool resize_is_mode(const char *word)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full"};
    size_t i;

    for (i = 0; i < sizeof(modes) / sizeof(*modes); i++)
        if (!strcmp(modes[i], word))
            return true;
    tool_error("preallocation is off, metadata, falloc or full, not '%s'",
               word);
    return false;
}

static int resize_parse(struct resize_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"preallocation", required_argument, NULL, TOOL_OPT_PREALLOCATION},
        {"shrink", no_argument, NULL, TOOL_OPT_SHRINK},
        {0},
    };
    int c, code;

    /* The size comes last and may look like an option: "-1G". */
    if (argc > 2)
        a->size = argv[--argc];
    while ((c = getopt_long(argc, argv, ":hf:pq", long_options, NULL)) != -1) {
        switch (c) {
        case 'p':
            a->progress.enabled = true;
            break;
        case 'q':
            a->quiet = true;
            break;
        case TOOL_OPT_PREALLOCATION:
            if (!resize_is_mode(optarg))
                return 1;
            a->how.preallocation = optarg;
            break;
        case TOOL_OPT_SHRINK:
            a->how.shrink = true;
            break;
        default:
            code = tool_image_option(&tool_resize, &a->image, c, argv);
            if (code >= 0)
                return code;
        }
    }
    if (!a->size || optind != argc - 1)
        return tool_usage(&tool_resize, "resize: one file and, behind it, a "
                                        "size are needed");
    a->image.name = argv[optind];
    if (a->quiet)
        a->progress.enabled = false;
    return -1;
}

static int resize_run(int argc, char **argv)
{
    struct resize_arguments a = {.progress = {.stream = stdout, .step = 1}};
    int code = resize_parse(&a, argc, argv);

    return code < 0 ? resize_do(&a) : code;
}

const struct tool_command tool_resize = {
    .name = "resize",
    .summary = "Make an image larger or smaller",
    .usage = "[-f FORMAT] [--shrink] [--preallocation=MODE] [-p] [-q]\n"
             "                       [--object OBJECT] [--image-opts] FILE "
             "[+|-]SIZE",
    .help =
        "  -f FORMAT             of the image; else it is found out\n"
        "  --shrink              SIZE is smaller, and what lies behind it may "
        "be lost\n"
        "  --preallocation=MODE  of what is added: off, metadata, falloc or "
        "full\n"
        "  -p                    show the progress of full preallocation\n"
        "  -q                    print only errors\n"
        "  --object OBJECT       such as a secret that the image needs\n"
        "  --image-opts          FILE is a list of options, NAME=VALUE,...\n"
        "\nSIZE is a number of bytes; k, M, G, T, P or E may follow it. With "
        "+ or -\nit is the difference to the present size.\n",
    .run = resize_run,
    .usage_code = 1,
};
