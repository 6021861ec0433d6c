/* SPDX-License-Identifier: MIT */
/* rhea-img convert */
#include <errno.h>
#include <sys/stat.h>

#include <rhea/convert.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "tool.h"

struct convert_arguments {
    const char *source_format, *target_format;
    char **source_names;
    size_t n_sources;
    const char *target_name;
    const char *snapshot; /* NULL: the sources as they are */
    struct tool_options options;
    char *backing_file, *backing_format;
    struct rhea_convert_options how;
    bool quiet, keep_target, no_lock, target_is_zero;
    bool direct_source, direct_target, unsafe;
    bool bitmaps, skip_broken_bitmaps;
    bool offload, salvage, explicit_sparse, image_opts, target_image_opts;
    struct tool_progress progress;
};

struct convert {
    struct convert_arguments *arguments;
    struct rhea_image **sources;
    size_t n_sources; /* open */
    struct rhea_image *target;
    uint64_t size;
};

static int convert_open_sources(struct convert *c)
{
    const struct convert_arguments *a = c->arguments;
    unsigned flags = (a->no_lock ? RHEA_IMAGE_NO_LOCK : 0) |
                     (a->direct_source ? RHEA_IMAGE_DIRECT : 0);
    struct rhea_error err;

    c->sources = tool_realloc(NULL, a->n_sources * sizeof(struct rhea_image *));
    for (; c->n_sources < a->n_sources; c->n_sources++) {
        const char *name = a->source_names[c->n_sources];
        struct rhea_image *image;

        if (tool_image_open(
                &(struct tool_image){
                    .name = name,
                    .format = a->source_format,
                    .image_opts = a->image_opts,
                    .flags = flags,
                },
                &image) < 0)
            return 1;
        c->sources[c->n_sources] = image;
        if (a->snapshot && tool_snapshot_load(image, a->snapshot) < 0) {
            c->n_sources++;
            return 1;
        }
        c->size += align_up(rhea_image_size(image), 512);
        if (!a->target_image_opts &&
            rhea_convert_check_target(image, a->target_name, &err) < 0) {
            c->n_sources++;
            return tool_fail(a->target_name, &err, 1);
        }
    }
    return 0;
}

/* The backing file that the new image will have is not to be overwritten
 * either. */
static int convert_check_backing(const struct convert_arguments *a)
{
    struct stat target, backing;

    if (!a->backing_file || stat(a->target_name, &target) < 0 ||
        stat(a->backing_file, &backing) < 0)
        return 0;
    if (target.st_dev != backing.st_dev || target.st_ino != backing.st_ino)
        return 0;
    tool_error("%s is to be the backing file of the new image; it would be "
               "overwritten",
               a->target_name);
    return 1;
}

static int convert_create_target(struct convert *c)
{
    struct convert_arguments *a = c->arguments;
    struct rhea_error err;
    struct rhea_create how = {
        .size = c->size,
        .backing_file = a->backing_file,
        .backing_format = a->backing_format,
        .options = a->options.items,
        .n_options = a->options.n,
    };

    if (convert_check_backing(a))
        return 1;
    if (rhea_image_create(a->target_name, a->target_format, &how, false, &err) <
        0)
        return tool_fail(a->target_name, &err, 1);
    return 0;
}

/* The secrets by which the new image was encrypted open it, too. */
static void convert_add_secrets(const struct convert_arguments *a,
                                struct tool_options *to)
{
    static const char suffix[] = "key-secret";
    size_t i, len;

    for (i = 0; i < a->options.n; i++) {
        const struct rhea_option *o = &a->options.items[i];

        len = strlen(o->name);
        if (len >= sizeof(suffix) - 1 &&
            !strcmp(o->name + len - (sizeof(suffix) - 1), suffix))
            tool_options_set(to, o->name, o->value);
    }
}

static int convert_open_described(struct convert *c, unsigned flags)
{
    const struct convert_arguments *a = c->arguments;
    const struct rhea_format_ops *ops;

    if (tool_image_open_options(a->target_name, flags, &c->target) < 0)
        return 1;
    ops = rhea_image_format(c->target)->ops;
    if (!ops->write || (a->how.compress && !ops->write_compressed)) {
        tool_error("%s images cannot %s", ops->name,
                   ops->write ? "hold compressed data" : "be written");
        return 1;
    }
    return 0;
}

static int convert_open_target(struct convert *c)
{
    const struct convert_arguments *a = c->arguments;
    unsigned flags = RHEA_IMAGE_WRITE |
                     (a->direct_target ? RHEA_IMAGE_DIRECT : 0) |
                     (a->unsafe ? RHEA_IMAGE_NO_FLUSH : 0);
    struct tool_options options = {0};
    struct rhea_error err;
    int ret;

    if (a->target_image_opts)
        return convert_open_described(c, flags);
    tool_options_set(&options, "driver", a->target_format);
    convert_add_secrets(a, &options);
    ret = rhea_image_open_named(&c->target, a->target_name, options.items,
                                options.n, flags, &err);
    tool_options_finish(&options);
    return ret < 0 ? tool_fail(a->target_name, &err, 1) : 0;
}

/* From any thread: a line at a time. */
static void convert_salvaged(void *opaque, uint64_t offset,
                             const struct rhea_error *err)
{
    const struct convert_arguments *a = opaque;

    if (!a->quiet)
        tool_error("warning: zeroes at offset %ju take the place of what "
                   "cannot be read: %s",
                   (uintmax_t)offset, err->text);
}

/* Not where the user wants the bytes looked at, or the target to have space of
 * its own. */
static bool convert_may_clone(const struct convert_arguments *a)
{
    const char *space = tool_options_get(&a->options, "preallocation");

    return !a->explicit_sparse && !a->salvage && !a->how.compress &&
           !(space && (!strcmp(space, "falloc") || !strcmp(space, "full")));
}

static int convert_copy(struct convert *c)
{
    struct convert_arguments *a = c->arguments;
    struct rhea_progress progress = {
        .report = tool_progress_report,
        .opaque = &a->progress,
    };
    struct rhea_convert_options how = a->how;
    struct rhea_error err;
    int ret;

    /* A new file is all holes, whatever its format makes of them. */
    how.target_is_zero = a->target_is_zero;
    if (!a->keep_target && !rhea_image_backing(c->target) &&
        rhea_file_is_regular(rhea_image_storage(c->target)))
        how.target_is_zero = true;
    how.clone = convert_may_clone(a);
    how.progress = &progress;
    how.count_data = a->progress.enabled;
    if (a->salvage) {
        how.salvaged = convert_salvaged;
        how.salvaged_opaque = a;
    }
    tool_progress_report(&a->progress, "copying", 0, c->size);
    ret = rhea_convert_copy(c->sources, c->n_sources, c->target, &how, NULL,
                            &err);
    if (ret == 0 && !a->unsafe)
        ret = rhea_image_flush(c->target, &err);
    tool_progress_finish(&a->progress, ret == 0);
    if (ret < 0)
        tool_error("%s", err.text);
    return ret < 0;
}

static int convert_finish(struct convert *c, int code)
{
    struct rhea_error err;
    size_t i;

    if (rhea_image_close(c->target, &err) < 0 && code == 0)
        code = tool_fail(c->arguments->target_name, &err, 1);
    for (i = 0; i < c->n_sources; i++)
        rhea_image_close(c->sources[i], NULL);
    free(c->sources);
    return code;
}

static int convert_do(struct convert_arguments *a)
{
    struct convert c = {.arguments = a};
    int code = convert_open_sources(&c);

    if (!code && a->bitmaps)
        code = tool_bitmaps_check(c.sources[0], NULL, a->skip_broken_bitmaps);
    if (!code && !a->keep_target)
        code = convert_create_target(&c);
    if (!code)
        code = convert_open_target(&c);
    if (!code && a->bitmaps)
        code =
            tool_bitmaps_check(c.sources[0], c.target, a->skip_broken_bitmaps);
    if (!code)
        code = convert_copy(&c);
    if (!code && a->bitmaps)
        code =
            tool_bitmaps_copy(c.sources[0], c.target, a->skip_broken_bitmaps);
    code = convert_finish(&c, code);
    return tool_finish_output(code, 1);
}

/* Move what -o says of all formats to its own place. */
static void convert_sort_options(struct convert_arguments *a)
{
    char *value;

    /* The size is that of what is copied. */
    free(tool_options_take(&a->options, "size"));
    value = tool_options_take(&a->options, "backing_file");
    if (value) {
        free(a->backing_file);
        a->backing_file = value;
    }
    value = tool_options_take(&a->options, "backing_fmt");
    if (value) {
        free(a->backing_format);
        a->backing_format = value;
    }
}

static int convert_check_target_format(const struct convert_arguments *a)
{
    const struct rhea_format_ops *ops = rhea_format_find(a->target_format);
    const char *preallocation = tool_options_get(&a->options, "preallocation");

    if (!ops) {
        tool_error("there is no format '%s'", a->target_format);
        return 1;
    }
    if (!ops->write || (!a->keep_target && !ops->create)) {
        tool_error("%s images cannot be written", ops->name);
        return 1;
    }
    if (a->how.compress && !ops->write_compressed) {
        tool_error("%s images cannot hold compressed data", ops->name);
        return 1;
    }
    if (a->bitmaps && !ops->bitmap_add) {
        tool_error("%s images cannot hold bitmaps", ops->name);
        return 1;
    }
    if (a->how.compress && preallocation && strcmp(preallocation, "off")) {
        tool_error("compressed data cannot be preallocated: leave out -c or "
                   "preallocation=%s",
                   preallocation);
        return 1;
    }
    return 0;
}

/* What -C, which leaves the copying to the kernel, does not go with. */
static int convert_check_offload(const struct convert_arguments *a)
{
    const char *with = a->how.compress      ? "-c"
                       : a->explicit_sparse ? "-S"
                       : a->salvage         ? "--salvage"
                                            : NULL;

    if (!a->offload || !with)
        return 0;
    tool_error("-C copies without looking at the data, and %s looks at it",
               with);
    return 1;
}

/* Refuse what contradicts itself, before any file is opened. */
static int convert_check(const struct convert_arguments *a)
{
    if (a->source_format && !tool_is_driver(a->source_format)) {
        tool_error("there is no format '%s'", a->source_format);
        return 1;
    }
    if (a->backing_file && !a->backing_format && !a->keep_target) {
        tool_error("a backing file is given, but not its format: say -F");
        return 1;
    }
    if (a->backing_format && !a->backing_file && !a->keep_target) {
        tool_error("a backing format is given, but no backing file: say -B");
        return 1;
    }
    if (a->snapshot && a->n_sources > 1) {
        tool_error("-l speaks of one source, and there are several");
        return 1;
    }
    if (a->skip_broken_bitmaps && !a->bitmaps) {
        tool_error("--skip-broken-bitmaps speaks of bitmaps to copy: say "
                   "--bitmaps");
        return 1;
    }
    if (a->bitmaps && a->n_sources > 1) {
        tool_error("--bitmaps speaks of one source, and there are several");
        return 1;
    }
    if (a->backing_file && a->n_sources > 1) {
        tool_error("several images joined cannot have a backing file");
        return 1;
    }
    if (a->backing_format && !tool_is_driver(a->backing_format)) {
        tool_error("there is no format '%s'", a->backing_format);
        return 1;
    }
    if (a->target_is_zero && !a->keep_target) {
        tool_error("--target-is-zero speaks of an existing target: say -n");
        return 1;
    }
    if (a->target_is_zero && a->backing_file) {
        tool_error("a target with a backing file is not all zero");
        return 1;
    }
    if (convert_check_offload(a))
        return 1;
    if (a->target_image_opts && (!a->keep_target || a->target_format)) {
        tool_error("--target-image-opts speaks of an existing target and its "
                   "format: say -n, and not -O");
        return 1;
    }
    return a->target_image_opts ? 0 : convert_check_target_format(a);
}

static int convert_get_sparse(struct convert_arguments *a, const char *text)
{
    if (tool_get_size("run of zeroes", text, &a->how.sparse) < 0)
        return 1;
    if (a->how.sparse % 512 || a->how.sparse > RHEA_CONVERT_SPARSE_MAX) {
        tool_error("-S is a multiple of 512, at most %u; 0 writes all zeroes",
                   RHEA_CONVERT_SPARSE_MAX);
        return 1;
    }
    return -1;
}

static int convert_get_workers(struct convert_arguments *a, const char *text)
{
    uint64_t n;

    if (tool_get_size("number of threads", text, &n) < 0)
        return 1;
    if (n < 1 || n > RHEA_CONVERT_WORKERS_MAX) {
        tool_error("-m is the number of threads, 1 to %u",
                   RHEA_CONVERT_WORKERS_MAX);
        return 1;
    }
    a->how.workers = (unsigned)n;
    return -1;
}

/* One option; -1 to go on, else the exit code. */
static int convert_option(struct convert_arguments *a, int c, char **argv)
{
    bool ignored;

    switch (c) {
    case 'f':
        a->source_format = optarg;
        return -1;
    case 'O':
        a->target_format = optarg;
        return -1;
    case 'B':
        free(a->backing_file);
        a->backing_file = tool_strdup(optarg);
        return -1;
    case 'F':
        free(a->backing_format);
        a->backing_format = tool_strdup(optarg);
        return -1;
    case 'o':
        return tool_options_add(&a->options, optarg) < 0 ? 1 : -1;
    case 'S':
        a->explicit_sparse = true;
        return convert_get_sparse(a, optarg);
    case 'm':
        return convert_get_workers(a, optarg);
    case 't':
        return tool_get_cache(optarg, &a->direct_target, &a->unsafe) < 0 ? 1
                                                                         : -1;
    case 'T':
        return tool_get_cache(optarg, &a->direct_source, &ignored) < 0 ? 1 : -1;
    case 'c':
        a->how.compress = true;
        return -1;
    case 'W':
        a->how.any_order = true;
        return -1;
    case 'p':
        a->progress.enabled = true;
        return -1;
    case 'q':
        a->quiet = true;
        return -1;
    case 'l':
        a->snapshot = optarg;
        return -1;
    case 'n':
        a->keep_target = true;
        return -1;
    case 'U':
        a->no_lock = true;
        return -1;
    case TOOL_OPT_OBJECT:
        return tool_object_add(optarg) < 0 ? 1 : -1;
    case TOOL_OPT_IMAGE_OPTS:
        a->image_opts = true;
        return -1;
    case TOOL_OPT_TARGET_IMAGE_OPTS:
        a->target_image_opts = true;
        return -1;
    case TOOL_OPT_TARGET_IS_ZERO:
        a->target_is_zero = true;
        return -1;
    case 'r':
        return tool_get_size("rate limit", optarg, &a->how.rate) < 0 ? 1 : -1;
    case 'C':
        a->offload = true;
        return -1;
    case TOOL_OPT_SALVAGE:
        a->salvage = true;
        return -1;
    case TOOL_OPT_BITMAPS:
        a->bitmaps = true;
        return -1;
    case TOOL_OPT_SKIP_BROKEN_BITMAPS:
        a->skip_broken_bitmaps = true;
        return -1;
    default:
        return tool_other_option(&tool_convert, c, argv);
    }
}

static int convert_parse(struct convert_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"force-share", no_argument, NULL, 'U'},
        {"target-is-zero", no_argument, NULL, TOOL_OPT_TARGET_IS_ZERO},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {"target-image-opts", no_argument, NULL, TOOL_OPT_TARGET_IMAGE_OPTS},
        {"salvage", no_argument, NULL, TOOL_OPT_SALVAGE},
        {"bitmaps", no_argument, NULL, TOOL_OPT_BITMAPS},
        {"skip-broken-bitmaps", no_argument, NULL,
         TOOL_OPT_SKIP_BROKEN_BITMAPS},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:O:B:CcF:o:l:S:pt:T:qnm:WUr:",
                            long_options, NULL)) != -1) {
        code = convert_option(a, c, argv);
        if (code >= 0)
            return code;
    }
    if (a->options.help)
        return tool_options_help(a->target_format ? a->target_format : "raw",
                                 argc - optind > 1 ? argv[argc - 1] : NULL,
                                 NULL);
    if (argc - optind < 2)
        return tool_usage(&tool_convert,
                          "convert: a source and a target file are needed");
    a->source_names = argv + optind;
    a->n_sources = (size_t)(argc - optind - 1);
    a->target_name = argv[argc - 1];
    if (a->quiet)
        a->progress.enabled = false;
    if (a->keep_target && a->options.n) {
        tool_error("-o says how to create the target, which -n is not to do");
        return 1;
    }
    convert_sort_options(a);
    if (!a->target_format && !a->target_image_opts)
        a->target_format = "raw";
    code = convert_check(a);
    return code ? code : -1;
}

static int convert_run(int argc, char **argv)
{
    struct convert_arguments a = {
        .how.sparse = 4096,
        .unsafe = true,
        .progress = {.stream = stdout, .step = 1},
    };
    int code = convert_parse(&a, argc, argv);

    if (code < 0)
        code = convert_do(&a);
    tool_options_finish(&a.options);
    free(a.backing_file);
    free(a.backing_format);
    return code;
}

const struct tool_command tool_convert = {
    .name = "convert",
    .summary = "Copy images into a new one, of another format perhaps",
    .usage =
        "[-f FORMAT] [-O FORMAT] [-o OPTIONS] [-B BACKING_FILE -F FORMAT]\n"
        "                        [-l SNAPSHOT] [-c] [-p] [-q] [-n] [-C] [-W] "
        "[-U] [-S SIZE]\n"
        "                        [-m THREADS] [-r RATE] [-t CACHE] [-T CACHE] "
        "[--target-is-zero]\n"
        "                        [--salvage] [--bitmaps "
        "[--skip-broken-bitmaps]]\n"
        "                        [--object OBJECT] [--image-opts] "
        "[--target-image-opts]\n"
        "                        SOURCE... TARGET",
    .help =
        "  -f FORMAT          of the sources; else it is found out\n"
        "  -O FORMAT          of the target (raw)\n"
        "  -o a=b,..          the target's options; `-o help` lists them\n"
        "  -B FILE            the target's backing file, which is not copied\n"
        "  -F FORMAT          of the backing file\n"
        "  -l SNAPSHOT        copy that internal snapshot: an id or name, or\n"
        "                     snapshot.id=ID,snapshot.name=NAME\n"
        "  -c                 compress\n"
        "  -S SIZE            leave out runs of zeroes at least this long "
        "(4k);\n"
        "                     0 writes them all; shares no blocks\n"
        "  -n                 write into an existing target\n"
        "  --target-is-zero   the existing target is known to be all zero\n"
        "  -m THREADS         1 to 16\n"
        "  -r RATE            at most so many bytes of data a second\n"
        "  --salvage          go on where a source cannot be read: those "
        "sectors\n"
        "                     become zeroes\n"
        "  --bitmaps          copy the source's persistent bitmaps, too\n"
        "  --skip-broken-bitmaps  save those that were not closed cleanly\n"
        "  -C                 accepted, and without effect\n"
        "  -W                 let writes overtake each other\n"
        "  -t CACHE           of the target (unsafe): all others make sure "
        "the\n"
        "                     copy is on the disk; none: past the page cache\n"
        "  -T CACHE           of the sources; none: past the page cache\n"
        "  -p                 show progress\n"
        "  -q                 print only errors\n"
        "  -U, --force-share  even if a source is in use\n"
        "  --image-opts       each SOURCE is a list of options\n"
        "  --target-image-opts  TARGET is; needs -n\n"
        "  --object=OBJECT    secret,id=ID,file=FILE and such\n",
    .run = convert_run,
    .usage_code = 1,
};
