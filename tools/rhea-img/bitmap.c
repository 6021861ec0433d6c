/* SPDX-License-Identifier: MIT */
/* rhea-img bitmap */
#include <errno.h>

#include "base/checked.h"
#include "tool.h"

enum bitmap_verb {
    BITMAP_ADD,
    BITMAP_REMOVE,
    BITMAP_CLEAR,
    BITMAP_ENABLE,
    BITMAP_DISABLE,
    BITMAP_MERGE,
};

struct bitmap_action {
    enum bitmap_verb verb;
    const char *source; /* MERGE: the other bitmap */
};

struct bitmap_arguments {
    struct tool_image image, source;
    const char *name;
    uint64_t granularity;
    struct bitmap_action *actions; /* in the order in which they were given */
    size_t n_actions;
};

static bool bitmap_wants(const struct bitmap_arguments *a,
                         enum bitmap_verb verb)
{
    for (size_t i = 0; i < a->n_actions; i++)
        if (a->actions[i].verb == verb)
            return true;
    return false;
}

static void bitmap_add_action(struct bitmap_arguments *a, enum bitmap_verb verb,
                              const char *source)
{
    a->actions =
        tool_realloc(a->actions, (a->n_actions + 1) * sizeof(*a->actions));
    a->actions[a->n_actions++] = (struct bitmap_action){verb, source};
}

static int bitmap_act(const struct bitmap_arguments *a,
                      const struct bitmap_action *action,
                      struct rhea_image *image, struct rhea_image *source,
                      struct rhea_error *err)
{
    struct rhea_bitmap new = {.granularity = a->granularity, .enabled = true};

    switch (action->verb) {
    case BITMAP_ADD: {
        int ret;

        new.name = tool_strdup(a->name);
        ret = rhea_image_bitmap_add(image, &new, err);
        free(new.name);
        return ret;
    }
    case BITMAP_REMOVE:
        return rhea_image_bitmap_remove(image, a->name, err);
    case BITMAP_CLEAR:
        return rhea_image_bitmap_clear(image, a->name, err);
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        return rhea_image_bitmap_enable(image, a->name,
                                        action->verb == BITMAP_ENABLE, err);
    case BITMAP_MERGE:
    default:
        return rhea_image_bitmap_merge(image, a->name, source, action->source,
                                       err);
    }
}

static int bitmap_do(const struct bitmap_arguments *a)
{
    static const char *const names[] = {
        [BITMAP_ADD] = "add",         [BITMAP_REMOVE] = "remove",
        [BITMAP_CLEAR] = "clear",     [BITMAP_ENABLE] = "enable",
        [BITMAP_DISABLE] = "disable", [BITMAP_MERGE] = "merge",
    };
    struct rhea_image *image, *source = NULL;
    struct rhea_error err;
    int code = 0;

    if (tool_image_open(&a->image, &image) < 0)
        return 1;
    if (a->source.name && tool_image_open(&a->source, &source) < 0) {
        rhea_image_close(image, NULL);
        return 1;
    }
    for (size_t i = 0; code == 0 && i < a->n_actions; i++) {
        const struct bitmap_action *action = &a->actions[i];

        if (bitmap_act(a, action, image, source ? source : image, &err) < 0) {
            tool_error("cannot %s bitmap '%s': %s", names[action->verb],
                       a->name, err.text);
            code = 1;
        }
    }
    rhea_image_close(source, NULL);
    if (rhea_image_close(image, &err) < 0)
        code = tool_fail(a->image.name, &err, 1);
    return code;
}

/* Refuse what contradicts itself; -1 to go on, else the exit code. */
static int bitmap_check(const struct bitmap_arguments *a)
{
    if (!a->n_actions)
        return tool_usage(&tool_bitmap,
                          "bitmap: say what to do: --add, --remove, --clear, "
                          "--enable, --disable or --merge");
    if (a->granularity && !bitmap_wants(a, BITMAP_ADD))
        return tool_usage(&tool_bitmap,
                          "bitmap: -g is the granularity of a new bitmap: say "
                          "--add");
    if (a->source.format && !a->source.name)
        return tool_usage(&tool_bitmap,
                          "bitmap: -F is the format of a file to merge from: "
                          "say -b");
    if (a->source.name && !bitmap_wants(a, BITMAP_MERGE))
        return tool_usage(&tool_bitmap,
                          "bitmap: -b is a file to merge from: say --merge");
    return -1;
}

static int bitmap_parse(struct bitmap_arguments *a, int argc, char **argv)
{
    enum { OPT_VERB = 1000 };
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"add", no_argument, NULL, OPT_VERB + BITMAP_ADD},
        {"remove", no_argument, NULL, OPT_VERB + BITMAP_REMOVE},
        {"clear", no_argument, NULL, OPT_VERB + BITMAP_CLEAR},
        {"enable", no_argument, NULL, OPT_VERB + BITMAP_ENABLE},
        {"disable", no_argument, NULL, OPT_VERB + BITMAP_DISABLE},
        {"merge", required_argument, NULL, OPT_VERB + BITMAP_MERGE},
        {"granularity", required_argument, NULL, 'g'},
        {"source-file", required_argument, NULL, 'b'},
        {"source-format", required_argument, NULL, 'F'},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":b:f:F:g:h", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 'b':
            a->source.name = optarg;
            break;
        case 'F':
            a->source.format = optarg;
            break;
        case 'g':
            if (tool_get_size("granularity", optarg, &a->granularity) < 0)
                return 1;
            break;
        default:
            if (c >= OPT_VERB && c <= OPT_VERB + BITMAP_MERGE) {
                bitmap_add_action(a, (enum bitmap_verb)(c - OPT_VERB), optarg);
                break;
            }
            code = tool_image_option(&tool_bitmap, &a->image, c, argv);
            if (code >= 0)
                return code;
        }
    }
    code = bitmap_check(a);
    if (code >= 0)
        return code;
    if (argc - optind != 2)
        return tool_usage(&tool_bitmap,
                          "bitmap: one file and the name of a bitmap are "
                          "needed");
    a->image.name = argv[optind];
    a->name = argv[optind + 1];
    return -1;
}

static int bitmap_run(int argc, char **argv)
{
    struct bitmap_arguments a = {
        .image.flags = RHEA_IMAGE_WRITE | RHEA_IMAGE_NO_BACKING,
        .source.flags = RHEA_IMAGE_NO_BACKING,
    };
    int code = bitmap_parse(&a, argc, argv);

    if (code < 0)
        code = bitmap_do(&a);
    free(a.actions);
    return code;
}

const struct tool_command tool_bitmap = {
    .name = "bitmap",
    .summary = "Add, change and remove an image's persistent bitmaps",
    .usage = "(--add [-g SIZE] | --remove | --clear | --enable |\n"
             "                       --disable | --merge BITMAP)... "
             "[-b FILE [-F FORMAT]]\n"
             "                       [-f FORMAT] [--object OBJECT] "
             "[--image-opts] FILE BITMAP",
    .help =
        "  --add              make the bitmap, which follows writes from then "
        "on\n"
        "  -g SIZE            what one bit stands for (the cluster size, from "
        "4k\n"
        "                     to 64k)\n"
        "  --remove           forget it\n"
        "  --clear            set all its bits to 0\n"
        "  --enable           let it follow writes\n"
        "  --disable          leave it as it is from then on\n"
        "  --merge BITMAP     set what that bitmap has set, too\n"
        "  -b FILE            of the bitmap to merge; else the same file\n"
        "  -F FORMAT          of that file; else it is found out\n"
        "  -f FORMAT          of FILE; else it is found out\n"
        "  --object OBJECT    a secret that the image needs\n"
        "  --image-opts       FILE is a list of options\n"
        "Several of these are done in the order in which they are given.\n",
    .run = bitmap_run,
    .usage_code = 1,
};
