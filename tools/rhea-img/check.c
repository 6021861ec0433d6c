/* SPDX-License-Identifier: MIT */
/* rhea-img check */
#include "base/checked.h"
#include "tool.h"

enum {
    CHECK_FAILED = 1,
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_UNSUPPORTED = 63,
};

struct check_arguments {
    struct tool_image image;
    unsigned fix;
    bool quiet, json;
    struct tool_progress progress;
};

static void check_finding(void *opaque, bool is_error, const char *text)
{
    (void)opaque;
    tool_finding(is_error, text);
}

static void check_add(json_t *object, const char *key, uint64_t n)
{
    json_object_set_new(object, key, json_integer((json_int_t)n));
}

/* Keys whose number is zero are left out, as qemu-img does. */
static void check_add_some(json_t *object, const char *key, uint64_t n)
{
    if (n)
        check_add(object, key, n);
}

static int check_print_json(const struct check_arguments *a, const char *format,
                            const struct rhea_check *r)
{
    json_t *object = json_object();

    check_add_some(object, "image-end-offset", r->image_end);
    check_add_some(object, "compressed-clusters", r->compressed_clusters);
    check_add_some(object, "corruptions", r->corruptions);
    check_add_some(object, "total-clusters", r->total_clusters);
    check_add(object, "check-errors", r->errors);
    check_add_some(object, "leaks", r->leaks);
    check_add_some(object, "allocated-clusters", r->allocated_clusters);
    check_add_some(object, "corruptions-fixed", r->corruptions_fixed);
    check_add_some(object, "leaks-fixed", r->leaks_fixed);
    check_add_some(object, "fragmented-clusters", r->fragmented_clusters);
    json_object_set_new(object, "filename", tool_json_string(a->image.name));
    json_object_set_new(object, "format", json_string(format));
    return tool_json_print(object);
}

static double check_percent(uint64_t part, uint64_t whole)
{
    return (double)part * 100.0 / (double)whole;
}

static void check_print_human(const struct rhea_check *r)
{
    if (!r->corruptions && !r->leaks && !r->errors)
        printf("No errors were found on the image.\n");
    if (r->corruptions)
        printf("\n%ju errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may "
               "corrupt it.\n",
               (uintmax_t)r->corruptions);
    if (r->leaks)
        printf("\n%ju leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               (uintmax_t)r->leaks);
    if (r->errors)
        printf("\n%ju internal errors have occurred during the check.\n",
               (uintmax_t)r->errors);
    if (r->total_clusters && r->allocated_clusters)
        printf("%ju/%ju = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% "
               "compressed clusters\n",
               (uintmax_t)r->allocated_clusters, (uintmax_t)r->total_clusters,
               check_percent(r->allocated_clusters, r->total_clusters),
               check_percent(r->fragmented_clusters, r->allocated_clusters),
               check_percent(r->compressed_clusters, r->allocated_clusters));
    if (r->image_end)
        printf("Image end offset: %ju\n", (uintmax_t)r->image_end);
}

static int check_once(struct check_arguments *a, struct rhea_image *image,
                      unsigned fix, struct rhea_check *result,
                      struct rhea_error *err)
{
    struct rhea_progress progress = {
        .report = tool_progress_report,
        .opaque = &a->progress,
    };
    int ret;

    *result = (struct rhea_check){
        .finding = check_finding,
        .progress = &progress,
    };
    ret = rhea_image_check(image, fix, result, err);
    result->progress = NULL;
    tool_progress_finish(&a->progress, ret == 0);
    return ret;
}

/* Check, repair, and check once more what was repaired. */
static int check_image(struct check_arguments *a, struct rhea_image *image,
                       struct rhea_check *result, struct rhea_error *err)
{
    uint64_t leaks, corruptions;
    int ret = check_once(a, image, a->fix, result, err);

    if (ret < 0 || (!result->leaks_fixed && !result->corruptions_fixed))
        return ret;
    leaks = result->leaks_fixed;
    corruptions = result->corruptions_fixed;
    if (!a->quiet && !a->json)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %ju leaked clusters\n    %ju corruptions\n\n"
               "Double checking the fixed image now...\n",
               (uintmax_t)leaks, (uintmax_t)corruptions);
    fflush(stdout);
    ret = check_once(a, image, 0, result, err);
    result->leaks_fixed = leaks;
    result->corruptions_fixed = corruptions;
    return ret;
}

static int check_verdict(const struct rhea_check *r)
{
    if (r->errors)
        return CHECK_FAILED;
    if (r->corruptions)
        return CHECK_CORRUPT;
    return r->leaks ? CHECK_LEAKS : 0;
}

static int check_open_image(struct check_arguments *a, struct rhea_image *image)
{
    struct rhea_format *format = rhea_image_format(image);
    struct rhea_check result;
    struct rhea_error err;
    int code;

    if (!format->ops->check) {
        /* Scripts look for these words. */
        tool_error("This image format does not support checks");
        return CHECK_UNSUPPORTED;
    }
    if (check_image(a, image, &result, &err) < 0) {
        rhea_error_prefix(&err, "the check could not be completed");
        return tool_fail(a->image.name, &err, CHECK_FAILED);
    }
    if (a->json)
        code = a->quiet ? 0 : check_print_json(a, format->ops->name, &result);
    else
        code = 0;
    if (!a->json && !a->quiet)
        check_print_human(&result);
    if (code == 0)
        code = tool_finish_output(0, CHECK_FAILED);
    if (code == 0 && result.errors)
        tool_error("%s: some of the image could not be checked", a->image.name);
    return code ? code : check_verdict(&result);
}

static int check_parse(struct check_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"repair", required_argument, NULL, 'r'},
        {"output", required_argument, NULL, TOOL_OPT_OUTPUT},
        {"force-share", no_argument, NULL, 'U'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:r:T:qUp", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 'r':
            if (!strcmp(optarg, "leaks"))
                a->fix = RHEA_FIX_LEAKS;
            else if (!strcmp(optarg, "all"))
                a->fix = RHEA_FIX_LEAKS | RHEA_FIX_ERRORS;
            else
                return tool_usage(&tool_check,
                                  "check: -r is either leaks or all, not '%s'",
                                  optarg);
            break;
        case 'T':
            a->image.cache = optarg;
            break;
        case TOOL_OPT_OUTPUT:
            if (tool_get_output(optarg, &a->json) < 0)
                return 1;
            break;
        case 'q':
            a->quiet = true;
            break;
        case 'p':
            a->progress.enabled = true;
            break;
        default:
            code = tool_image_option(&tool_check, &a->image, c, argv);
            if (code >= 0)
                return code;
        }
    }
    code = tool_only_file(&tool_check, argc, argv, &a->image.name);
    if (code >= 0)
        return code;
    if (a->fix && (a->image.flags & RHEA_IMAGE_NO_LOCK))
        return tool_usage(&tool_check,
                          "check: -r and -U exclude each other: what is in use "
                          "cannot be repaired");
    if (a->quiet)
        a->progress.enabled = false;
    return -1;
}

static int check_run(int argc, char **argv)
{
    struct check_arguments a = {
        .image.flags = RHEA_IMAGE_CHECK | RHEA_IMAGE_NO_BACKING,
        .progress = {.stream = stderr, .phases = true, .step = 1},
    };
    struct rhea_error err;
    struct rhea_image *image;
    int code = check_parse(&a, argc, argv);

    if (code >= 0)
        return code;
    if (a.fix)
        a.image.flags |= RHEA_IMAGE_WRITE;
    if (tool_image_open(&a.image, &image) < 0)
        return CHECK_FAILED;
    code = check_open_image(&a, image);
    if (rhea_image_close(image, &err) < 0 &&
        (code == 0 || code == CHECK_LEAKS || code == CHECK_CORRUPT))
        code = tool_fail(a.image.name, &err, CHECK_FAILED);
    return code;
}

const struct tool_command tool_check = {
    .name = "check",
    .summary = "Check an image for leaks and corruption, and repair it",
    .usage = "[-q] [-f FORMAT] [--output=human|json] [-r leaks|all]\n"
             "                      [-T CACHE] [-U] [-p] [--object OBJECT] "
             "[--image-opts]\n"
             "                      FILE",
    .help =
        "  -f, --format=FORMAT      of the image; else it is found out\n"
        "      --output=human|json  how the result is printed\n"
        "  -r, --repair=leaks|all   repair what was found\n"
        "  -U, --force-share        even if the image is in use\n"
        "      --image-opts         FILE is a list of options\n"
        "      --object=OBJECT      secret,id=ID,file=FILE and such\n"
        "  -T CACHE                 none: past the page cache\n"
        "  -p                       show progress\n"
        "  -q                       print only errors and findings\n"
        "\nExit codes, of the state after repairing: 0 no errors, 1 the check\n"
        "failed, 2 corrupt, 3 leaked clusters, 63 the format has no check.\n",
    .run = check_run,
    .usage_code = CHECK_FAILED,
};
