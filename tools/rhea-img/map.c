/* SPDX-License-Identifier: MIT */
/* rhea-img map */
#include <errno.h>

#include "base/checked.h"
#include "tool.h"

struct map_arguments {
    struct tool_image image;
    uint64_t start, length;
    bool json;
};

/* One line of the output. */
struct map_entry {
    uint64_t start, length, offset;
    const char *file; /* where OFFSET is */
    unsigned depth;
    bool present, zero, data, compressed, has_offset;
};

struct map {
    const struct map_arguments *arguments;
    struct rhea_image *image;
    bool sparse[RHEA_CHAIN_MAX];
    struct map_entry entry; /* gathered, not printed yet */
    uint64_t n_printed;
};

struct map_use {
    uint64_t used, enough; /* bytes */
    uint64_t cluster_size;
    uint64_t compressed_end; /* of the last cluster with compressed data */
};

static int map_count_use(void *opaque, enum rhea_use use, uint64_t host,
                         uint64_t length, struct rhea_error *err)
{
    struct map_use *use_of = opaque;

    (void)err;
    if (use == RHEA_USE_COMPRESSED) {
        /* Those that share a cluster come one after the other. */
        uint64_t end = align_up(host + length, use_of->cluster_size);

        host = align_down(host, use_of->cluster_size);
        if (host < use_of->compressed_end && end >= use_of->compressed_end)
            host = use_of->compressed_end;
        use_of->compressed_end = end;
        length = end - host;
    }
    use_of->used += length;
    return use_of->used >= use_of->enough ? -ECANCELED : 0;
}

/*
 * Whether IMAGE may have data clusters that are holes of the file:
 * preallocated, and never written. Only QCOW2 preallocates, and fixed VHD,
 * which has no clusters. QCOW2's and the file's blocks are compared as roughly
 * as QEMU does it, so that both tell the same of an image.
 */
static bool map_is_sparse(struct rhea_image *image)
{
    struct rhea_storage *storage = rhea_image_storage(image);
    uint64_t size, disk_size, device, inode, real;
    struct map_use use = {0};
    struct rhea_format *format = rhea_image_format(image);
    struct rhea_format_info info;

    rhea_image_info(image, &info);
    if (!strcmp(format->ops->name, "vpc"))
        return !info.cluster_size;
    if (strcmp(format->ops->name, "qcow2") ||
        rhea_storage_size(storage, &size, NULL) < 0 ||
        rhea_file_stat(storage, &disk_size, &device, &inode) < 0)
        return false;
    use.cluster_size = info.cluster_size;
    real = disk_size / info.cluster_size;
    use.enough = RHEA_MAX(real * 10 / 9, real + 2) * info.cluster_size;
    /* Few files are so much larger than their blocks. Of these count what is
     * in use: the rest may be holes that no cluster ever was in. */
    return align_up(size, info.cluster_size) >= use.enough &&
           format->ops->walk(format, map_count_use, &use, NULL) == -ECANCELED &&
           use.used >= use.enough;
}

static void map_set_place(struct map_entry *e, struct rhea_image *image,
                          const struct rhea_extent *x)
{
    /* Of these, what is there is not what the guest sees. */
    if (!x->has_host || x->kind == RHEA_EXTENT_COMPRESSED ||
        x->kind == RHEA_EXTENT_ENCRYPTED)
        return;
    e->has_offset = true;
    e->offset = x->host;
    e->file = x->storage && x->storage->path ? x->storage->path
                                             : rhea_image_filename(image);
}

/*
 * What nobody in the chain has reads as zeroes because of the deepest image
 * that reaches so far: its backing file ends before, or it has none.
 */
static int map_find_depth(struct map *m, struct map_entry *e,
                          struct rhea_error *err)
{
    struct rhea_image *image = m->image, *below;
    struct rhea_format *format;
    struct rhea_extent x;
    int ret;

    e->depth = 0;
    while ((below = rhea_image_backing(image)) &&
           e->start < rhea_image_size(below)) {
        e->length = RHEA_MIN(e->length, rhea_image_size(below) - e->start);
        e->depth++;
        image = below;
    }
    /* There may be room for it already, as for the rest of a subcluster. */
    format = rhea_image_format(image);
    ret = format->ops->map(format, e->start, e->length, &x, err);
    if (ret < 0)
        return ret;
    e->length = RHEA_MIN(e->length, x.length);
    map_set_place(e, image, &x);
    return 0;
}

static int map_find_hole(struct map_entry *e, const struct rhea_extent *x,
                         struct rhea_error *err)
{
    uint64_t size, run;
    bool hole;
    int ret = rhea_storage_size(x->storage, &size, err);

    if (ret < 0)
        return ret;
    if (x->host >= size) {
        e->zero = true;
        return 0;
    }
    ret = rhea_storage_extent(x->storage, x->host,
                              RHEA_MIN(e->length, size - x->host), &hole, &run,
                              err);
    if (ret < 0)
        return ret;
    e->length = RHEA_MIN(e->length, run);
    e->zero = hole;
    return 0;
}

static int map_look(struct map *m, uint64_t start, uint64_t length,
                    struct map_entry *e, struct rhea_error *err)
{
    struct rhea_image_extent found;
    const struct rhea_extent *x = &found.extent;
    int ret = rhea_image_map(m->image, start, length, &found, err);

    if (ret < 0)
        return ret;
    *e = (struct map_entry){
        .start = start,
        .length = x->length,
        .depth = found.depth,
        .present = x->kind != RHEA_EXTENT_UNALLOCATED,
        .zero =
            x->kind == RHEA_EXTENT_ZERO || x->kind == RHEA_EXTENT_UNALLOCATED,
        .data = x->kind == RHEA_EXTENT_DATA ||
                x->kind == RHEA_EXTENT_COMPRESSED ||
                x->kind == RHEA_EXTENT_ENCRYPTED,
        .compressed = x->kind == RHEA_EXTENT_COMPRESSED,
    };
    if (!e->present)
        return map_find_depth(m, e, err);
    map_set_place(e, found.image, x);
    /* QEMU tells of holes of a VMDK's flat extents that they are data, too. */
    if (x->kind == RHEA_EXTENT_ZERO && x->has_host &&
        strcmp(rhea_image_format(found.image)->ops->name, "vmdk") == 0)
        e->data = true;
    if (x->kind == RHEA_EXTENT_DATA && x->storage && m->sparse[found.depth])
        return map_find_hole(e, x, err);
    return 0;
}

static bool map_joins(const struct map_entry *a, const struct map_entry *b)
{
    if (a->zero != b->zero || a->data != b->data || a->depth != b->depth ||
        a->present != b->present || a->compressed != b->compressed ||
        a->has_offset != b->has_offset)
        return false;
    return !a->has_offset ||
           (!strcmp(a->file, b->file) && a->offset + a->length == b->offset);
}

static const char *map_truth(bool b)
{
    return b ? "true" : "false";
}

static void map_print_json(const struct map *m, const struct map_entry *e)
{
    printf("%s{ \"start\": %ju, \"length\": %ju, \"depth\": %u, "
           "\"present\": %s, \"zero\": %s, \"data\": %s, \"compressed\": %s",
           m->n_printed ? ",\n" : "[", (uintmax_t)e->start,
           (uintmax_t)e->length, e->depth, map_truth(e->present),
           map_truth(e->zero), map_truth(e->data), map_truth(e->compressed));
    if (e->has_offset)
        printf(", \"offset\": %ju", (uintmax_t)e->offset);
    putchar('}');
}

static int map_print(struct map *m)
{
    const struct map_entry *e = &m->entry;

    if (!e->length)
        return 0;
    if (m->arguments->json) {
        map_print_json(m, e);
        m->n_printed++;
        return 0;
    }
    if (!e->data || e->zero)
        return 0;
    if (!e->has_offset) {
        tool_error("%s has clusters without a place of their own (compressed "
                   "ones); only --output=json can show them",
                   m->arguments->image.name);
        return -1;
    }
    printf("%#-16jx%#-16jx%#-16jx%s\n", (uintmax_t)e->start,
           (uintmax_t)e->length, (uintmax_t)e->offset, e->file);
    return 0;
}

static int map_walk(struct map *m)
{
    uint64_t size = rhea_image_size(m->image), pos = m->arguments->start, end;
    struct rhea_error err;
    struct map_entry e;

    if (!add_u64(pos, m->arguments->length, &end) || end > size)
        end = size;
    for (; pos < end; pos += e.length) {
        if (map_look(m, pos, end - pos, &e, &err) < 0)
            return tool_fail(m->arguments->image.name, &err, -1);
        /* People are shown data only: everything else is alike. */
        if (!m->arguments->json && (!e.data || e.zero))
            e = (struct map_entry){
                .start = e.start, .length = e.length, .zero = true};
        if (m->entry.length && map_joins(&m->entry, &e)) {
            m->entry.length += e.length;
            continue;
        }
        if (map_print(m) < 0)
            return -1;
        m->entry = e;
    }
    return map_print(m);
}

static int map_do(const struct map_arguments *a)
{
    struct map m = {.arguments = a};
    struct rhea_image *image;
    unsigned depth = 0;
    int ret;

    if (tool_image_open(&a->image, &m.image) < 0)
        return 1;
    for (image = m.image; image && depth < RHEA_CHAIN_MAX;
         image = rhea_image_backing(image))
        m.sparse[depth++] = map_is_sparse(image);
    if (!a->json)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    ret = map_walk(&m);
    if (ret == 0 && a->json)
        printf(m.n_printed ? "]\n" : "[]\n");
    rhea_image_close(m.image, NULL);
    return tool_finish_output(ret < 0 ? 1 : 0, 1);
}

static int map_parse(struct map_arguments *a, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"output", required_argument, NULL, TOOL_OPT_OUTPUT},
        {"start-offset", required_argument, NULL, 's'},
        {"max-length", required_argument, NULL, 'l'},
        {"force-share", no_argument, NULL, 'U'},
        {"object", required_argument, NULL, TOOL_OPT_OBJECT},
        {"image-opts", no_argument, NULL, TOOL_OPT_IMAGE_OPTS},
        {0},
    };
    int c, code;

    while ((c = getopt_long(argc, argv, ":hf:s:l:U", long_options, NULL)) !=
           -1) {
        switch (c) {
        case 's':
            if (tool_get_size("start offset", optarg, &a->start) < 0)
                return 1;
            break;
        case 'l':
            if (tool_get_size("length", optarg, &a->length) < 0)
                return 1;
            break;
        case TOOL_OPT_OUTPUT:
            if (tool_get_output(optarg, &a->json) < 0)
                return 1;
            break;
        default:
            code = tool_image_option(&tool_map, &a->image, c, argv);
            if (code >= 0)
                return code;
        }
    }
    return tool_only_file(&tool_map, argc, argv, &a->image.name);
}

static int map_run(int argc, char **argv)
{
    struct map_arguments a = {.length = UINT64_MAX};
    int code = map_parse(&a, argc, argv);

    return code < 0 ? map_do(&a) : code;
}

const struct tool_command tool_map = {
    .name = "map",
    .summary = "Tell where an image keeps its contents",
    .usage = "[-f FORMAT] [--output=human|json] [-s OFFSET | "
             "--start-offset=OFFSET]\n"
             "                    [-l LENGTH | --max-length=LENGTH] [-U] "
             "[--object OBJECT]\n"
             "                    [--image-opts] FILE",
    .help = "  -f, --format=FORMAT        of the image; else it is found out\n"
            "      --output=human|json    how the result is printed\n"
            "  -s, --start-offset=OFFSET  where to begin (0)\n"
            "  -l, --max-length=LENGTH    how far to look (to the end)\n"
            "  -U, --force-share          even if the image is in use\n"
            "      --image-opts           FILE is a list of options\n"
            "      --object=OBJECT        secret,id=ID,file=FILE and such\n",
    .run = map_run,
    .usage_code = 1,
};
