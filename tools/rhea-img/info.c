/* SPDX-License-Identifier: MIT */
/* rhea-img info */
#include <errno.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "tool.h"

struct info_arguments {
    struct tool_image image;
    bool json, chain;
};

/* All that is printed of one image. */
struct info_view {
    struct rhea_image *image;
    struct rhea_format_info info;
    const char *format;
    uint64_t disk_size;
    bool has_disk_size;
    char *backing_path; /* NULL: none, or its name cannot be made out */
    struct rhea_facts facts;
    struct rhea_snapshot *snapshots;
    size_t n_snapshots;
};

static int info_view_init(struct info_view *v, struct rhea_image *image,
                          struct rhea_error *err)
{
    const struct rhea_format_ops *ops = rhea_image_format(image)->ops;
    int ret = 0;

    memset(v, 0, sizeof(*v));
    v->image = image;
    rhea_image_info(image, &v->info);
    v->format = rhea_image_driver(image);
    v->has_disk_size = rhea_image_disk_size(image, &v->disk_size) == 0;
    if (v->info.backing_file)
        v->backing_path = rhea_image_backing_path(image);
    if (ops->facts)
        ret = ops->facts(rhea_image_format(image), &v->facts, err);
    if (ret == 0)
        ret = rhea_image_snapshot_list(image, &v->snapshots, &v->n_snapshots,
                                       err);
    if (ret == 0 && v->facts.failed)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    return ret;
}

static void info_print_backing(const struct info_view *v)
{
    char *file = tool_printable(v->info.backing_file);
    char *path = tool_printable(v->backing_path ? v->backing_path : "");

    printf("backing file: %s", file);
    if (!v->backing_path)
        printf(" (cannot determine actual path)");
    else if (strcmp(path, file))
        printf(" (actual path: %s)", path);
    putchar('\n');
    free(file);
    free(path);
    if (!v->info.backing_format)
        return;
    char *format = tool_printable(v->info.backing_format);
    printf("backing file format: %s\n", format);
    free(format);
}

static void info_print_human(const struct info_view *v)
{
    printf("image: %s\nfile format: %s\nvirtual size: %s (%ju bytes)\n",
           rhea_image_filename(v->image), v->format,
           tool_format_size(v->info.virtual_size).text,
           (uintmax_t)v->info.virtual_size);
    if (v->has_disk_size)
        printf("disk size: %s\n", tool_format_size(v->disk_size).text);
    else
        printf("disk size: unavailable\n");
    if (v->info.encrypted)
        printf("encrypted: yes\n");
    if (v->info.cluster_size)
        printf("cluster_size: %u\n", v->info.cluster_size);
    if (v->info.dirty)
        printf("cleanly shut down: no\n");
    if (v->info.backing_file)
        info_print_backing(v);
    tool_snapshots_print(v->snapshots, v->n_snapshots);
    if (v->facts.n)
        printf("Format specific information:\n");
    tool_facts_print(&v->facts);
}

/* The value of the fact at *AT, which then is behind it. */
static json_t *info_json_fact(const struct rhea_facts *facts, size_t *at)
{
    const struct rhea_fact *fact = &facts->items[(*at)++];
    json_t *value;

    switch (fact->type) {
    case RHEA_FACT_STRING:
        return tool_json_string(fact->string);
    case RHEA_FACT_NUMBER:
        return json_integer((json_int_t)fact->number);
    case RHEA_FACT_BOOL:
        return json_boolean(fact->number);
    default:
        break;
    }
    value = fact->type == RHEA_FACT_LIST ? json_array() : json_object();
    while (*at < facts->n && facts->items[*at].type != RHEA_FACT_END) {
        const char *name = facts->items[*at].json_name;
        json_t *member = info_json_fact(facts, at);

        if (fact->type == RHEA_FACT_LIST)
            json_array_append_new(value, member);
        else
            json_object_set_new(value, name, member);
    }
    ++*at;
    return value;
}

static json_t *info_json_facts(const struct info_view *v)
{
    json_t *object = json_object(), *data = json_object();

    json_object_set_new(object, "type", json_string(v->format));
    for (size_t i = 0; i < v->facts.n;) {
        const char *name = v->facts.items[i].json_name;

        json_object_set_new(data, name, info_json_fact(&v->facts, &i));
    }
    json_object_set_new(object, "data", data);
    return object;
}

static json_t *info_json(const struct info_view *v)
{
    json_t *o = json_object();

    if (v->info.backing_format)
        json_object_set_new(o, "backing-filename-format",
                            tool_json_string(v->info.backing_format));
    json_object_set_new(o, "virtual-size",
                        json_integer((json_int_t)v->info.virtual_size));
    json_object_set_new(o, "filename",
                        tool_json_string(rhea_image_filename(v->image)));
    if (v->info.cluster_size)
        json_object_set_new(o, "cluster-size",
                            json_integer(v->info.cluster_size));
    json_object_set_new(o, "format", json_string(v->format));
    if (v->has_disk_size)
        json_object_set_new(o, "actual-size",
                            json_integer((json_int_t)v->disk_size));
    if (v->facts.n)
        json_object_set_new(o, "format-specific", info_json_facts(v));
    if (v->info.encrypted)
        json_object_set_new(o, "encrypted", json_true());
    if (v->n_snapshots)
        json_object_set_new(o, "snapshots",
                            tool_snapshots_json(v->snapshots, v->n_snapshots));
    if (v->backing_path)
        json_object_set_new(o, "full-backing-filename",
                            tool_json_string(v->backing_path));
    if (v->info.backing_file)
        json_object_set_new(o, "backing-filename",
                            tool_json_string(v->info.backing_file));
    json_object_set_new(o, "dirty-flag", json_boolean(v->info.dirty));
    return o;
}

/* The files seen so far, by what they are, to notice a chain that loops. */
struct info_seen {
    struct {
        uint64_t device, inode;
    } files[RHEA_CHAIN_MAX];
    unsigned n;
};

static int info_remember(struct info_seen *seen, struct rhea_image *image)
{
    uint64_t size, device, inode;
    unsigned i;

    if (rhea_file_stat(rhea_image_storage(image), &size, &device, &inode) < 0)
        return 0;
    for (i = 0; i < seen->n; i++) {
        if (seen->files[i].device == device && seen->files[i].inode == inode) {
            tool_error("%s: the backing files form a loop",
                       rhea_image_filename(image));
            return -ELOOP;
        }
    }
    if (seen->n == RHEA_CHAIN_MAX) {
        tool_error("%s: the chain has more than %d images",
                   rhea_image_filename(image), RHEA_CHAIN_MAX);
        return -ELOOP;
    }
    seen->files[seen->n].device = device;
    seen->files[seen->n].inode = inode;
    seen->n++;
    return 0;
}

/* One image of the chain; *NEXT and *NEXT_FORMAT name the one below it. */
static int info_one(const struct info_arguments *a, const char *filename,
                    const char *format, bool print, struct info_seen *seen,
                    json_t *array, char **next, char **next_format)
{
    struct tool_image what = a->image;
    struct rhea_image *image;
    struct rhea_error err;
    struct info_view v;

    what.name = filename;
    what.format = format;
    what.image_opts = a->image.image_opts && !json_array_size(array);
    if (tool_image_open(&what, &image) < 0)
        return 1;
    if (a->chain && info_remember(seen, image) < 0) {
        rhea_image_close(image, NULL);
        return 1;
    }
    if (info_view_init(&v, image, &err) < 0) {
        tool_fail(filename, &err, 1);
        rhea_facts_free(&v.facts);
        rhea_snapshots_free(v.snapshots, v.n_snapshots);
        free(v.backing_path);
        rhea_image_close(image, NULL);
        return 1;
    }
    json_array_append_new(array, info_json(&v));
    if (print) {
        if (json_array_size(array) > 1)
            putchar('\n');
        info_print_human(&v);
    }
    rhea_facts_free(&v.facts);
    rhea_snapshots_free(v.snapshots, v.n_snapshots);
    *next = v.backing_path;
    *next_format =
        v.info.backing_format ? tool_strdup(v.info.backing_format) : NULL;
    rhea_image_close(image, NULL);
    return 0;
}

static int info_walk(const struct info_arguments *a, bool print, json_t *array)
{
    char *name = tool_strdup(a->image.name);
    char *format = a->image.format ? tool_strdup(a->image.format) : NULL;
    struct info_seen seen = {.n = 0};
    int code = 0;

    while (name && code == 0) {
        char *next = NULL, *next_format = NULL;

        code =
            info_one(a, name, format, print, &seen, array, &next, &next_format);
        free(name);
        free(format);
        name = next;
        format = next_format;
        if (!a->chain)
            break;
    }
    free(name);
    free(format);
    return code;
}

static int info_do(const struct info_arguments *a)
{
    json_t *array = json_array();
    int code = 0;

    /* Nothing is told of a chain that has no end. */
    if (a->json || a->chain)
        code = info_walk(a, false, array);
    if (code == 0 && a->json) {
        code = tool_json_print(
            json_incref(a->chain ? array : json_array_get(array, 0)));
    } else if (code == 0) {
        json_array_clear(array);
        code = info_walk(a, true, array);
    }
    json_decref(array);
    return code ? code : tool_finish_output(0, 1);
}

static int info_parse(struct info_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"output", required_argument, NULL, TOOL_OPT_OUTPUT},
        {"backing-chain", no_argument, NULL, TOOL_OPT_BACKING_CHAIN},
        {"force-share", no_argument, NULL, 'U'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:U", long_options, NULL)) != -1) {
        switch (c) {
        case TOOL_OPT_OUTPUT:
            if (tool_get_output(optarg, &a->json) < 0)
                return 1;
            break;
        case TOOL_OPT_BACKING_CHAIN:
            a->chain = true;
            break;
        default:
            code = tool_image_option(&tool_info, &a->image, c, argv);
            if (code >= 0)
                return code;
        }
    }
    return tool_only_file(&tool_info, argc, argv, &a->image.name);
}

static int info_run(int argc, char **argv)
{
    struct info_arguments a = {
        .image.flags =
            RHEA_IMAGE_NO_BACKING | RHEA_IMAGE_CHECK | RHEA_IMAGE_NO_IO,
    };
    int code = info_parse(&a, argc, argv);

    return code < 0 ? info_do(&a) : code;
}

const struct tool_command tool_info = {
    .name = "info",
    .summary = "Tell what an image is",
    .usage = "[-f FORMAT] [--output=human|json] [--backing-chain] [-U]\n"
             "                     [--object OBJECT] [--image-opts] FILE",
    .help = "  -f, --format=FORMAT      of the image; else it is found out\n"
            "      --output=human|json  how the result is printed\n"
            "      --backing-chain      tell of all images of the chain\n"
            "  -U, --force-share        even if the image is in use\n"
            "      --image-opts         FILE is a list of options\n"
            "      --object=OBJECT      secret,id=ID,file=FILE and such\n",
    .run = info_run,
    .usage_code = 1,
};
