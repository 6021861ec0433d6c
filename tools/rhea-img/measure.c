/* SPDX-License-Identifier: MIT */
/* rhea-img measure */
#include <errno.h>

#include <rhea/convert.h>

#include "tool.h"

struct measure_arguments {
    struct tool_image source; /* name NULL: none */
    const char *snapshot;
    const char *format;
    struct tool_options options;
    uint64_t size; /* UINT64_MAX: not given */
    bool json;
};

static int measure_print(const struct measure_arguments *a,
                         const struct rhea_measured *m)
{
    json_t *all;

    if (!a->json) {
        printf("required size: %ju\nfully allocated size: %ju\n",
               (uintmax_t)m->required, (uintmax_t)m->fully_allocated);
        if (m->has_bitmaps)
            printf("bitmaps size: %ju\n", (uintmax_t)m->bitmaps);
        return tool_finish_output(0, 1);
    }
    all = json_object();
    if (m->has_bitmaps)
        json_object_set_new(all, "bitmaps",
                            json_integer((json_int_t)m->bitmaps));
    json_object_set_new(all, "required", json_integer((json_int_t)m->required));
    json_object_set_new(all, "fully-allocated",
                        json_integer((json_int_t)m->fully_allocated));
    return tool_json_print(all);
}

/* "snapshot.id=X" and "snapshot.name=X" name one as well as X alone. */
static int measure_load_snapshot(const struct measure_arguments *a,
                                 struct rhea_image *image)
{
    struct rhea_format *f = rhea_image_format(image);
    const char *which = a->snapshot;
    struct rhea_error err;

    if (!which)
        return 0;
    if (!strncmp(which, "snapshot.id=", 12))
        which += 12;
    else if (!strncmp(which, "snapshot.name=", 14))
        which += 14;
    if (!f->ops->snapshot_load) {
        tool_error("%s: %s images have no snapshots", a->source.name,
                   f->ops->name);
        return -ENOTSUP;
    }
    if (f->ops->snapshot_load(f, which, &err) < 0)
        return -tool_fail(a->source.name, &err, 1);
    return 0;
}

static int measure_do(struct measure_arguments *a)
{
    struct rhea_image *image = NULL;
    struct rhea_measured measured = {0};
    struct rhea_error err;
    int ret = 0;

    if (!rhea_format_find(a->format)) {
        tool_error("there is no format '%s'", a->format);
        return 1;
    }
    if (a->source.name && tool_image_open(&a->source, &image) < 0)
        return 1;
    if (image)
        ret = measure_load_snapshot(a, image);
    if (ret == 0) {
        ret = rhea_convert_measure(image, a->size, a->format, a->options.items,
                                   a->options.n, &measured, &err);
        if (ret < 0)
            tool_error("%s", err.text);
    }
    rhea_image_close(image, NULL);
    return ret < 0 ? 1 : measure_print(a, &measured);
}

static int measure_check(const struct measure_arguments *a)
{
    if (!a->source.name &&
        (a->source.image_opts || a->source.format || a->snapshot))
        return tool_usage(&tool_measure, "measure: --image-opts, -f and -l are "
                                         "about a file, and none is given");
    if (a->source.name && a->size != UINT64_MAX)
        return tool_usage(&tool_measure,
                          "measure: it is either a file or --size");
    if (!a->source.name && a->size == UINT64_MAX)
        return tool_usage(&tool_measure,
                          "measure: either a file or --size is needed");
    return -1;
}

static int measure_option(struct measure_arguments *a, int c, char **argv)
{
    switch (c) {
    case 'O':
        a->format = optarg;
        return -1;
    case 'o':
        return tool_options_add(&a->options, optarg) < 0 ? 1 : -1;
    case 'l':
        a->snapshot = optarg;
        return -1;
    case TOOL_OPT_OUTPUT:
        return tool_get_output(optarg, &a->json) < 0 ? 1 : -1;
    case TOOL_OPT_SIZE:
        return tool_get_size("image size", optarg, &a->size) < 0 ? 1 : -1;
    default:
        return tool_image_option(&tool_measure, &a->source, c, argv);
    }
}

static int measure_parse(struct measure_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"output", required_argument, NULL, TOOL_OPT_OUTPUT},
        {"size", required_argument, NULL, TOOL_OPT_SIZE},
        {"force-share", no_argument, NULL, 'U'},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:O:o:l:U", long_options, NULL)) !=
           -1) {
        code = measure_option(a, c, argv);
        if (code >= 0)
            return code;
    }
    if (a->options.help)
        return tool_options_help(a->format, NULL, NULL);
    if (argc - optind > 1)
        return tool_usage(&tool_measure,
                          "measure: '%s' is one argument too many",
                          argv[optind + 1]);
    a->source.name = argc > optind ? argv[optind] : NULL;
    return measure_check(a);
}

static int measure_run(int argc, char **argv)
{
    struct measure_arguments a = {.format = "raw", .size = UINT64_MAX};
    int code = measure_parse(&a, argc, argv);

    if (code < 0)
        code = measure_do(&a);
    tool_options_finish(&a.options);
    return code;
}

const struct tool_command tool_measure = {
    .name = "measure",
    .summary = "Tell how large a file a conversion would make",
    .usage = "[-O FORMAT] [-o OPTIONS] [--output=human|json]\n"
             "                       {--size=SIZE | [-f FORMAT] [-l SNAPSHOT] "
             "[-U]\n"
             "                        [--object OBJECT] [--image-opts] FILE}",
    .help = "  -O FORMAT        of the file to be (raw)\n"
            "  -o a=b,..        its creation options; `-o help` lists them\n"
            "  --size=SIZE      of an empty image\n"
            "  -f FORMAT        of FILE; else it is found out\n"
            "  -l SNAPSHOT      measure what FILE held then, by id or name\n"
            "  -U               even if FILE is in use\n"
            "  --output=json    print JSON\n"
            "  --object OBJECT  such as a secret that FILE needs\n"
            "  --image-opts     FILE is a list of options, NAME=VALUE,...\n",
    .run = measure_run,
    .usage_code = 1,
};
