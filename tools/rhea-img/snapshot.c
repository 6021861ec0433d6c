/* SPDX-License-Identifier: MIT */
/* rhea-img snapshot */
#include <time.h>

#include "tool.h"

struct snapshot_arguments {
    struct tool_image image;
    int action; /* the option's letter; 0: none */
    const char *which;
    bool quiet;
};

static int snapshot_list(struct rhea_image *image)
{
    struct rhea_snapshot *list;
    struct rhea_error err;
    size_t n;

    if (rhea_image_snapshot_list(image, &list, &n, &err) < 0)
        return tool_fail(rhea_image_filename(image), &err, 1);
    tool_snapshots_print(list, n);
    rhea_snapshots_free(list, n);
    return 0;
}

static int snapshot_create(struct rhea_image *image, const char *name,
                           struct rhea_error *err)
{
    struct rhea_snapshot what = {.name = tool_strdup(name)};
    struct timespec now;
    int ret;

    clock_gettime(CLOCK_REALTIME, &now);
    what.date = now.tv_sec;
    what.date_nsec = (uint32_t)now.tv_nsec;
    ret = rhea_image_snapshot_create(image, &what, err);
    free(what.name);
    return ret;
}

/* As with qemu-img, an id is none here: a number that was mistyped deletes
 * nothing. */
static int snapshot_delete(struct rhea_image *image, const char *name)
{
    char *id = tool_snapshot_by_name(image, name);
    struct rhea_error err;
    int ret;

    if (!id)
        return 1;
    ret = rhea_image_snapshot_delete(image, id, &err);
    free(id);
    return ret < 0 ? tool_fail(rhea_image_filename(image), &err, 1) : 0;
}

static int snapshot_do(const struct snapshot_arguments *a)
{
    struct rhea_image *image;
    struct rhea_error err;
    int code = 0, ret = 0;

    if (tool_image_open(&a->image, &image) < 0)
        return 1;
    if (a->action == 'l')
        code = snapshot_list(image);
    else if (a->action == 'c')
        ret = snapshot_create(image, a->which, &err);
    else if (a->action == 'a')
        ret = rhea_image_snapshot_apply(image, a->which, &err);
    else if (a->action == 'd')
        code = snapshot_delete(image, a->which);
    if (ret < 0)
        code = tool_fail(a->image.name, &err, 1);
    if (rhea_image_close(image, &err) < 0 && !code)
        code = tool_fail(a->image.name, &err, 1);
    return tool_finish_output(code, 1);
}

static int snapshot_parse(struct snapshot_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"force-share", no_argument, NULL, 'U'},
        {0},
    };
    int c, code;

    a->image.flags = RHEA_IMAGE_WRITE | RHEA_IMAGE_NO_BACKING;
    while ((c = getopt_long(argc, argv, ":hla:c:d:qU", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 'l':
        case 'a':
        case 'c':
        case 'd':
            if (a->action)
                return tool_usage(&tool_snapshot,
                                  "snapshot: -l, -a, -c and -d exclude each "
                                  "other");
            a->action = c;
            a->which = optarg;
            break;
        case 'q':
            a->quiet = true;
            break;
        default:
            code = tool_image_option(&tool_snapshot, &a->image, c, argv);
            if (code >= 0)
                return code;
        }
    }
    code = tool_only_file(&tool_snapshot, argc, argv, &a->image.name);
    if (code >= 0)
        return code;
    if (a->action == 'l')
        a->image.flags &= ~(unsigned)RHEA_IMAGE_WRITE;
    return -1;
}

static int snapshot_run(int argc, char **argv)
{
    struct snapshot_arguments a = {0};
    int code = snapshot_parse(&a, argc, argv);

    return code < 0 ? snapshot_do(&a) : code;
}

const struct tool_command tool_snapshot = {
    .name = "snapshot",
    .summary = "List, make, apply or delete an image's internal snapshots",
    .usage = "[-q] [-U] [--object OBJECT] [--image-opts]\n"
             "                         [-l | -c NAME | -a NAME | -d NAME] FILE",
    .help = "  -l                 list them\n"
            "  -c NAME            make one\n"
            "  -a NAME            make the image what it was, by id or name\n"
            "  -d NAME            delete the first one of that name\n"
            "  -q                 print only errors\n"
            "  -U, --force-share  even if the image is in use; with -l only\n"
            "      --object=...   a secret that the image needs\n"
            "      --image-opts   FILE is a list of options\n",
    .run = snapshot_run,
    .usage_code = 1,
};
