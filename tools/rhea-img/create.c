/* SPDX-License-Identifier: MIT */
/* rhea-img create */
#include <errno.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "storage/driver.h"
#include "tool.h"

struct create_arguments {
    const char *format, *filename;
    struct tool_options options; /* the format's own, in the end */
    char *backing_file, *backing_format;
    uint64_t size; /* UINT64_MAX: the backing image's */
    bool quiet, unsafe;
    struct tool_progress progress;
};

/* One word of the line that says what is made. qemu-img's order and defaults,
 * for scripts read that line. */
struct create_word {
    const char *name;
    const char *initial; /* shown where it is not given; NULL: nothing is */
    bool is_size;
};

static const struct create_word create_words_qcow2[] = {
    {"cluster_size", "65536", true},
    {"extended_l2", "off", false},
    {"preallocation", NULL, false},
    {"compression_type", "zlib", false},
    {"size", NULL, true},
    {"compat", NULL, false},
    {"data_file", NULL, false},
    {"data_file_raw", NULL, false},
    {"backing_file", NULL, false},
    {"backing_fmt", NULL, false},
    {"lazy_refcounts", "off", false},
    {"refcount_bits", "16", true},
    {0},
};

static const struct create_word create_words_qed[] = {
    {"size", NULL, true},         {"backing_file", NULL, false},
    {"backing_fmt", NULL, false}, {"cluster_size", "65536", true},
    {"table_size", NULL, true},   {0},
};

static const struct create_word create_words_vhdx[] = {
    {"size", NULL, true},
    {"backing_file", NULL, false},
    {"backing_fmt", NULL, false},
    {"log_size", "1048576", true},
    {"block_size", "0", true},
    {"subformat", NULL, false},
    {"block_state_zero", NULL, false},
    {0},
};

static const struct create_word create_words_parallels[] = {
    {"size", NULL, true},
    {"cluster_size", "1048576", true},
    {"bundle", NULL, false},
    {"type", NULL, false},
    {"split", NULL, true},
    {"extended", NULL, false},
    {0},
};

/* Raw, and any format that has no line of its own above. */
static const struct create_word create_words_other[] = {
    {"size", NULL, true},
    {"backing_file", NULL, false},
    {"backing_fmt", NULL, false},
    {0},
};

static const struct create_word *create_words(const char *format)
{
    if (!strcmp(format, "qcow2"))
        return create_words_qcow2;
    if (!strcmp(format, "qed"))
        return create_words_qed;
    if (!strcmp(format, "vhdx"))
        return create_words_vhdx;
    if (!strcmp(format, "parallels"))
        return create_words_parallels;
    return create_words_other;
}

static void create_print_word(const struct create_word *word, const char *value)
{
    uint64_t number;

    if (word->is_size && option_parse_size(value, &number, NULL) == 0) {
        printf(" %s=%ju", word->name, (uintmax_t)number);
        return;
    }
    printf(" %s=", word->name);
    for (; *value; value++) {
        if (*value == ',')
            putchar(',');
        putchar(*value);
    }
}

static void create_announce(const struct create_arguments *a)
{
    const struct create_word *words = create_words(a->format), *word;
    const struct rhea_option_help *file = storage_create_options(a->filename);
    size_t i;

    printf("Formatting '%s', fmt=%s", a->filename, a->format);
    for (word = words; word->name; word++) {
        const char *value = tool_options_get(&a->options, word->name);

        if (!strcmp(word->name, "size"))
            printf(" size=%ju", (uintmax_t)a->size);
        else if (!strcmp(word->name, "backing_file"))
            value = a->backing_file;
        else if (!strcmp(word->name, "backing_fmt"))
            value = a->backing_format;
        if (!value)
            value = word->initial;
        if (value)
            create_print_word(word, value);
    }
    for (i = 0; i < a->options.n; i++) {
        const char *name = a->options.items[i].name;
        const struct create_word given = {
            name, NULL, option_is_listed(file, name) && strcmp(name, "nocow")};

        for (word = words; word->name; word++) {
            if (!strcmp(word->name, given.name))
                break;
        }
        if (!word->name)
            create_print_word(&given, a->options.items[i].value);
    }
    putchar('\n');
    fflush(stdout);
}

/* Move what -o says of all formats to its own place. */
static int create_sort_options(struct create_arguments *a)
{
    char *value = tool_options_take(&a->options, "size");
    int ret = 0;

    if (value && a->size != UINT64_MAX) {
        tool_error("%s: the size is given twice", a->filename);
        ret = -EINVAL;
    } else if (value)
        ret = tool_get_size("image size", value, &a->size);
    free(value);
    value = tool_options_take(&a->options, "backing_file");
    if (value && !a->backing_file)
        a->backing_file = rhea_steal(value);
    free(value);
    value = tool_options_take(&a->options, "backing_fmt");
    if (value && !a->backing_format)
        a->backing_format = rhea_steal(value);
    free(value);
    if (a->backing_file && !*a->backing_file) {
        tool_error("%s: a backing file without a name; leave it out for none",
                   a->filename);
        ret = -EINVAL;
    }
    return ret;
}

/* Whether the format knows all that -o says; its values are its own. */
static int create_check_options(const struct create_arguments *a,
                                const struct rhea_format_ops *ops)
{
    const struct rhea_option_help *file = storage_create_options(a->filename);
    size_t i;

    for (i = 0; i < a->options.n; i++) {
        const char *name = a->options.items[i].name;

        if (option_is_listed(ops->create_options, name) ||
            option_is_listed(file, name))
            continue;
        tool_error("%s: %s images have no option '%s'", a->filename, ops->name,
                   name);
        return -EINVAL;
    }
    return 0;
}

/* Refuse what no format could make good. */
static int create_check(const struct create_arguments *a)
{
    const struct rhea_format_ops *ops = rhea_format_find(a->format);

    if (!ops) {
        tool_error("%s: there is no format '%s'", a->filename, a->format);
        return -EINVAL;
    }
    if (!ops->create) {
        tool_error("%s: %s images cannot be created", a->filename, a->format);
        return -EINVAL;
    }
    if (a->backing_file && !strcmp(a->format, "raw")) {
        tool_error("%s: raw images cannot have a backing file", a->filename);
        return -EINVAL;
    }
    if (a->backing_format && !a->backing_file) {
        tool_error("%s: a backing format is given, but no backing file",
                   a->filename);
        return -EINVAL;
    }
    if (a->backing_file && !strcmp(a->backing_file, a->filename)) {
        tool_error("%s: an image cannot be its own backing file", a->filename);
        return -EINVAL;
    }
    if (a->backing_file && !a->backing_format) {
        tool_error("%s: a backing file is given, but not its format: say -F",
                   a->filename);
        return -EINVAL;
    }
    if (a->backing_format && !tool_is_driver(a->backing_format)) {
        tool_error("%s: there is no format '%s'", a->filename,
                   a->backing_format);
        return -EINVAL;
    }
    return create_check_options(a, ops);
}

/* The backing file's name as seen from the current folder; malloc'd. */
static char *create_backing_path(const struct create_arguments *a)
{
    const char *slash = strrchr(a->filename, '/');
    size_t folder, size;
    char *path;

    if (!slash || a->backing_file[0] == '/' ||
        storage_name_protocol(a->backing_file))
        return tool_strdup(a->backing_file);
    folder = (size_t)(slash - a->filename) + 1;
    size = folder + strlen(a->backing_file) + 1;
    path = tool_realloc(NULL, size);
    snprintf(path, size, "%.*s%s", (int)folder, a->filename, a->backing_file);
    return path;
}

/* Look at the backing file before anything is announced, and take its size
 * where none is given. */
static int create_look_below(struct create_arguments *a)
{
    struct rhea_image *backing;
    struct rhea_error err;
    char *path;
    int ret;

    if (!a->backing_file || a->unsafe) {
        if (a->size != UINT64_MAX)
            return 0;
        tool_error("%s: what size? There is no backing image to take it from",
                   a->filename);
        return -EINVAL;
    }
    path = create_backing_path(a);
    ret = rhea_image_open(&backing, path, a->backing_format, RHEA_IMAGE_NO_IO,
                          &err);
    if (ret < 0) {
        rhea_error_prefix(&err, "cannot use the backing image");
        tool_error("%s: %s", a->filename, err.text);
    } else {
        if (a->size == UINT64_MAX)
            a->size = rhea_image_size(backing);
        rhea_image_close(backing, NULL);
    }
    free(path);
    return ret;
}

static int create_do(struct create_arguments *a)
{
    const struct rhea_progress progress = {
        .report = tool_progress_report,
        .opaque = &a->progress,
    };
    struct rhea_error err;
    struct rhea_create how;
    int ret;

    if (create_sort_options(a) < 0 || create_check(a) < 0 ||
        create_look_below(a) < 0)
        return 1;
    if (!a->quiet)
        create_announce(a);
    else
        a->progress.enabled = false;
    how = (struct rhea_create){
        .size = a->size,
        .backing_file = a->backing_file,
        .backing_format = a->backing_format,
        .options = a->options.items,
        .n_options = a->options.n,
        .progress = &progress,
    };
    ret = rhea_image_create(a->filename, a->format, &how, a->unsafe, &err);
    tool_progress_finish(&a->progress, ret == 0);
    if (ret < 0)
        return tool_fail(a->filename, &err, 1);
    return tool_finish_output(0, 1);
}

static int create_parse(struct create_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {0},
    };
    int c;

    while ((c = getopt_long(argc, argv, ":hpqf:b:F:uo:", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 'p':
            a->progress.enabled = true;
            break;
        case 'q':
            a->quiet = true;
            break;
        case 'u':
            a->unsafe = true;
            break;
        case 'f':
            a->format = optarg;
            break;
        case 'b':
            free(a->backing_file);
            a->backing_file = tool_strdup(optarg);
            break;
        case 'F':
            free(a->backing_format);
            a->backing_format = tool_strdup(optarg);
            break;
        case 'o':
            if (tool_options_add(&a->options, optarg) < 0)
                return 1;
            break;
        case TOOL_OPT_OBJECT:
            if (tool_object_add(optarg) < 0)
                return 1;
            break;
        default:
            return tool_other_option(&tool_create, c, argv);
        }
    }
    if (a->options.help)
        return tool_options_help(a->format, optind < argc ? argv[optind] : NULL,
                                 NULL);
    if (optind >= argc)
        return tool_usage(&tool_create, "create: which file?");
    a->filename = argv[optind++];
    if (optind < argc &&
        tool_get_size("image size", argv[optind++], &a->size) < 0)
        return 1;
    if (optind < argc)
        return tool_usage(&tool_create, "create: '%s' is one argument too many",
                          argv[optind]);
    return -1;
}

static int create_run(int argc, char **argv)
{
    struct create_arguments a = {
        .format = "raw",
        .size = UINT64_MAX,
        .progress = {.stream = stdout, .step = 1},
    };
    int code = create_parse(&a, argc, argv);

    if (code < 0)
        code = create_do(&a);
    tool_options_finish(&a.options);
    free(a.backing_file);
    free(a.backing_format);
    return code;
}

const struct tool_command tool_create = {
    .name = "create",
    .summary = "Create an empty image",
    .usage = "[-p] [-q] [-f FORMAT] [-b BACKING_FILE -F BACKING_FORMAT] [-u]\n"
             "                       [-o OPTIONS] [--object OBJECT] FILE "
             "[SIZE]",
    .help = "  -f FORMAT  of the new image (raw)\n"
            "  -b FILE    its backing file; SIZE may then be left out\n"
            "  -F FORMAT  of the backing file\n"
            "  -u         do not open the backing file\n"
            "  -o a=b,..  the format's options; `-o help` lists them\n"
            "  -p         show the progress of full preallocation\n"
            "  -q         print only errors\n"
            "  --object=OBJECT  secret,id=ID,file=FILE and such\n"
            "\nSIZE is a number of bytes; k, M, G, T, P or E may follow it.\n",
    .run = create_run,
    .usage_code = 1,
};
