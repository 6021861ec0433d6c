/* SPDX-License-Identifier: MIT */
/*
 * Opening: the descriptor, in a file of its own or inside a sparse extent, and
 * the extents that it names. In a file with one sparse extent and a descriptor
 * inside, the extent is the file itself, whatever name stands there: such files
 * get renamed.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/option.h"
#include "format/vmdk/sesparse.h"
#include "format/vmdk/stream.h"

enum {
    OPEN_PAGE = 16 << 10,     /* of the tables' cache */
    OPEN_CACHE = 8 << 20,     /* of all extents */
    OPEN_CACHE_MAX = 4 << 20, /* of one: a mapped TiB of grains of 64 KiB
                                 has tables of 64 MiB */
    OPEN_CACHE_MIN = 64 << 10,
};

static bool open_for_guest(const struct vmdk *v)
{
    return !(v->flags & (RHEA_FORMAT_CHECK | RHEA_FORMAT_NO_IO));
}

/* What is broken is to be reported, not refused. */
static bool open_for_check(const struct vmdk *v)
{
    return (v->flags & (RHEA_FORMAT_CHECK | RHEA_FORMAT_NO_IO)) ==
           RHEA_FORMAT_CHECK;
}

/* --- Extents --- */

/* Why a sparse extent cannot be written to, or even read. */
static int open_check_header(struct vmdk *v, const struct vmdk_header *h,
                             struct rhea_error *err)
{
    const char *why = h->kind == VMDK_SESPARSE ? sesparse_why_not(h) : NULL;
    if (h->journal && open_for_guest(v))
        return rhea_error_set(err, ENOTSUP,
                              "the extent (SESparse) was not closed, and its "
                              "journal has writes that are not in their place "
                              "yet. Its form is not public: have the ESXi host "
                              "open and close the disk");
    if (why) {
        v->read_only = true;
        snprintf(v->why_read_only, sizeof(v->why_read_only), "%s", why);
    }
    return 0;
}

static const struct blocks_ops *open_ops(const struct vmdk_header *h)
{
    if (h->kind == VMDK_SESPARSE)
        return &sesparse_ops;
    return h->zero_grains ? &vmdk_zeroed_ops : &vmdk_sparse_ops;
}

/* X has its header, FILE, START and SIZE. */
static int open_sparse(struct vmdk_extent *x, struct rhea_error *err)
{
    struct vmdk *v = x->image;
    uint64_t size;
    int ret = vmdk_header_read(x->file, open_for_check(v), &x->h, err);
    if (!ret)
        ret = open_check_header(v, &x->h, err);
    if (!ret)
        ret = rhea_storage_size(x->file, &x->file_size, err);
    if (ret)
        return ret;
    if (!x->h.capacity)
        return rhea_error_set(err, EINVAL,
                              "the extent has only a descriptor, and no bytes "
                              "of the disk");
    x->kind = x->h.kind;
    if (x->h.compressed && x->writable)
        ret = vmdk_stream_check(x, err);
    if (ret)
        return ret;
    x->size = x->size ? x->size : x->h.capacity;
    if (x->size > x->h.capacity)
        return rhea_error_set(err, EINVAL,
                              "the descriptor says that the extent has "
                              "%" PRIu64 " bytes, the extent that it has "
                              "%" PRIu64,
                              x->size, x->h.capacity);
    size =
        RHEA_MAX((uint64_t)OPEN_CACHE / v->n_extents, (uint64_t)OPEN_CACHE_MIN);
    const struct table_how how = {
        .page_bytes = OPEN_PAGE,
        .cache_bytes = (size_t)RHEA_MIN(size, (uint64_t)OPEN_CACHE_MAX),
    };
    ret = table_init(&x->table, x->file, &how, err);
    if (!ret && x->kind == VMDK_HOSTED && !x->h.cut_off &&
        !(v->flags & RHEA_FORMAT_NO_IO))
        ret = vmdk_check_directory(x, err);
    if (!ret && x->kind == VMDK_SESPARSE)
        ret = sesparse_init(x, err);
    if (ret)
        return ret;
    blocks_init(&x->blocks, open_ops(&x->h), &v->base);
    x->has_blocks = true;
    x->blocks.storage = x->file;
    x->blocks.start = x->start;
    x->blocks.size = x->size;
    x->blocks.block_size = x->blocks.unit = (uint32_t)x->h.grain_size;
    return 0;
}

static int open_flat(struct vmdk_extent *x, struct rhea_error *err)
{
    uint64_t file_size;
    int ret = rhea_storage_size(x->file, &file_size, err);
    if (ret || range_inside(x->flat_offset, x->size, file_size) ||
        !open_for_guest(x->image))
        return ret;
    return rhea_error_set(err, EINVAL,
                          "the file is cut off: the descriptor has %" PRIu64
                          " bytes in it from %" PRIu64 " on, and it ends at "
                          "%" PRIu64,
                          x->size, x->flat_offset, file_size);
}

/* The type in a descriptor's line. */
static int open_type(const struct descriptor_extent *line,
                     struct vmdk_extent *x, struct rhea_error *err)
{
    static const struct {
        const char *name;
        enum vmdk_kind kind;
    } types[] = {
        {"FLAT", VMDK_FLAT},         {"VMFS", VMDK_FLAT},
        {"SPARSE", VMDK_HOSTED},     {"VMFSSPARSE", VMDK_COWD},
        {"SESPARSE", VMDK_SESPARSE}, {"ZERO", VMDK_ZERO},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(types); i++) {
        if (strcmp(line->type, types[i].name) != 0)
            continue;
        x->type = types[i].name;
        /* Nobody may see what is there. */
        x->kind =
            line->access == DESCRIPTOR_NOACCESS ? VMDK_ZERO : types[i].kind;
        return 0;
    }
    return rhea_error_set(err, ENOTSUP,
                          "the image has an extent of type %s, which is not "
                          "supported",
                          line->type);
}

int vmdk_extent_open(struct vmdk *v, const struct descriptor_extent *line,
                     struct rhea_storage *file, struct vmdk_extent *x,
                     struct rhea_error *err)
{
    bool write = v->flags & RHEA_FORMAT_WRITE && line->access == DESCRIPTOR_RW;
    x->size = line->sectors * VMDK_SECTOR;
    x->flat_offset = line->offset * VMDK_SECTOR;
    x->writable = write;
    int ret = open_type(line, x, err);
    if (ret || x->kind == VMDK_ZERO)
        return ret;
    x->file = file;
    if (!file && (!line->name || !*line->name))
        return rhea_error_set(
            err, EINVAL, "an extent of type %s has no file's name", line->type);
    if (!file && !v->files)
        return rhea_error_set(err, EINVAL,
                              "the image has an extent in file '%.200s', and "
                              "there can be no other files",
                              line->name);
    if (!file)
        ret =
            v->files->open(v->files->opaque, line->name, write, &x->file, err);
    if (!ret)
        ret = vmdk_is_sparse(x->kind) ? open_sparse(x, err) : open_flat(x, err);
    return ret && line->name
               ? rhea_error_prefix(err, "extent '%.200s'", line->name)
               : ret;
}

/* All extents of the descriptor; the first is in file FIRST, NULL: in one of
 * its own. */
static int open_lines(struct vmdk *v, struct rhea_storage *first,
                      struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    if (!d->n_extents)
        return rhea_error_set(err, EINVAL, "the descriptor names no extents");
    v->extents = calloc(d->n_extents, sizeof(*v->extents));
    if (!v->extents)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->n_extents = d->n_extents;
    for (size_t i = 0; i < d->n_extents; i++) {
        struct vmdk_extent *x = &v->extents[i];
        x->image = v;
        x->start = v->base.size;
        int ret = vmdk_extent_open(v, &d->extents[i], i ? NULL : first, x, err);
        if (ret)
            return ret;
        if (!add_u64(v->base.size, x->size, &v->base.size) ||
            v->base.size > INT64_MAX)
            return rhea_error_set(err, EINVAL,
                                  "the image's extents together are too large");
    }
    return 0;
}

/* The one extent that is the image's own file. */
static int open_single(struct vmdk *v, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    v->extents = calloc(1, sizeof(*v->extents));
    if (!v->extents)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->n_extents = 1;
    struct vmdk_extent *x = v->extents;
    *x = (struct vmdk_extent){
        .image = v,
        .file = v->base.storage,
        .writable = v->flags & RHEA_FORMAT_WRITE && !v->lone &&
                    !(d->n_extents && d->extents->access != DESCRIPTOR_RW),
    };
    int ret = open_sparse(x, err);
    v->base.size = x->size;
    return ret;
}

/* --- An extent's file alone --- */

struct open_owner {
    const char *name; /* of the extent's file */
    bool child;       /* the descriptor that was found is a child's */
};

static const char *open_last_part(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    return slash ? slash + 1 : path;
}

/* Whether FILE is a descriptor that names the extent. */
static int open_is_owner(void *opaque, struct rhea_storage *file)
{
    struct open_owner *owner = opaque;
    struct descriptor d = {0};
    uint64_t size;
    bool found = false;
    if (rhea_storage_size(file, &size, NULL) == 0 && size <= DESCRIPTOR_MAX &&
        descriptor_read(&d, file, 0, size, NULL) == 0)
        for (size_t i = 0; i < d.n_extents && !found; i++)
            found = d.extents[i].name &&
                    strcmp(open_last_part(d.extents[i].name), owner->name) == 0;
    owner->child =
        found && (d.parent || d.parent_cid != (uint32_t)DESCRIPTOR_NO_CID);
    descriptor_finish(&d);
    return found;
}

/*
 * A file of an image that has its descriptor elsewhere. What it says of the
 * guest can be read, unless it is a child's: what shows through from below
 * would read as zeroes.
 */
static int open_lone(struct vmdk *v, enum vmdk_kind kind,
                     struct rhea_error *err)
{
    struct open_owner owner = {.name = open_last_part(v->base.storage->path)};
    RHEA_AUTO_FREE char *found = NULL;
    if (v->files && v->files->search && owner.name) {
        int ret = v->files->search(v->files->opaque, open_is_owner, &owner,
                                   &found, err);
        if (ret)
            return ret;
    }
    if (found && (owner.child || (v->flags & RHEA_FORMAT_WRITE)))
        return rhea_error_set(err, EINVAL,
                              "it is only an extent of the image '%.300s': "
                              "open that",
                              found);
    if (kind != VMDK_HOSTED)
        return rhea_error_set(err, EINVAL,
                              "it is the extent of a snapshot, and no "
                              "descriptor beside it says over what: make one "
                              "(createType, parentFileNameHint, and a line "
                              "with its size, type and name)");
    v->lone = true;
    v->read_only = true;
    snprintf(v->why_read_only, sizeof(v->why_read_only),
             "it is an extent without a descriptor");
    return open_single(v, err);
}

/* --- Both ways --- */

/* An extent that may have the descriptor inside. */
static int open_inside(struct vmdk *v, enum vmdk_kind kind,
                       struct rhea_error *err)
{
    struct vmdk_header h;
    struct rhea_storage *file = v->base.storage;
    char first = 0;
    if (kind != VMDK_HOSTED)
        return open_lone(v, kind, err);
    int ret = vmdk_header_read(file, open_for_check(v), &h, err);
    if (!ret && h.descriptor)
        ret = rhea_storage_read_padded(file, &first, 1, h.descriptor, err);
    if (ret)
        return ret;
    /* QEMU leaves the room for one in every extent. */
    if (!first)
        return open_lone(v, kind, err);
    ret = descriptor_read(&v->descriptor, file, h.descriptor, h.descriptor_size,
                          err);
    if (ret)
        return ret;
    if (!h.capacity)
        return open_lines(v, NULL, err);
    return v->descriptor.n_extents > 1 ? open_lines(v, file, err)
                                       : open_single(v, err);
}

/* A file that is a descriptor. */
static int open_outside(struct vmdk *v, struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(v->base.storage, &size, err);
    if (!ret)
        ret = descriptor_read(&v->descriptor, v->base.storage, 0, size, err);
    if (ret)
        return ret;
    v->descriptor.room = DESCRIPTOR_MAX;
    return open_lines(v, NULL, err);
}

/* Whoever is made over the image could not tell that it has changed. */
static void open_check_cid(struct vmdk *v)
{
    if (!v->descriptor.text || v->descriptor.has_cid)
        return;
    v->read_only = true;
    snprintf(
        v->why_read_only, sizeof(v->why_read_only),
        "its descriptor has no line CID=, or nothing that can be a content "
        "id there");
}

/* Backup programs ask the change tracking file which parts have changed, and
 * would miss those that we write. */
static void open_check_tracking(struct vmdk *v)
{
    RHEA_AUTO_FREE char *path =
        descriptor_get(&v->descriptor, "changeTrackPath");
    if (!path || !*path)
        return;
    v->read_only = true;
    snprintf(v->why_read_only, sizeof(v->why_read_only),
             "its changes are tracked in '%.60s', which this program cannot "
             "keep up to date",
             path);
}

static int open_image(struct vmdk *v, struct rhea_error *err)
{
    uint8_t head[VMDK_SECTOR];
    enum vmdk_kind kind;
    int ret =
        rhea_storage_read_padded(v->base.storage, head, sizeof(head), 0, err);
    if (ret)
        return ret;
    ret = vmdk_header_kind(head, sizeof(head), &kind)
              ? open_inside(v, kind, err)
              : open_outside(v, err);
    if (!ret)
        ret = vmdk_find_parent(v, err);
    if (ret)
        return ret;
    open_check_cid(v);
    open_check_tracking(v);
    if (v->read_only && (v->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EACCES,
                              "the image can only be opened for reading: %s",
                              v->why_read_only);
    return 0;
}

void vmdk_extent_ready(struct vmdk_extent *x)
{
    if (x->se)
        x->blocks.file_end = sesparse_file_end(x);
    else if (x->has_blocks)
        x->blocks.file_end =
            div_up(x->file_size, x->h.grain_size) * x->h.grain_size;
    x->blocks.child = x->image->parent;
    x->blocks.writable = x->writable;
}

void vmdk_extent_finish(struct vmdk_extent *x)
{
    table_finish(&x->table);
    sesparse_finish(x);
    vmdk_stream_free(x);
    if (x->has_blocks)
        blocks_finish(&x->blocks);
}

static void open_free(struct vmdk *v)
{
    for (size_t i = 0; i < v->n_extents; i++)
        vmdk_extent_finish(&v->extents[i]);
    vmdk_packed_finish(v);
    pack_finish(v);
    descriptor_finish(&v->descriptor);
    pthread_mutex_destroy(&v->lock);
    free(v->extents);
    free(v->parent);
    free(v);
}

int vmdk_open(struct rhea_format **out, const struct rhea_format_open *how,
              struct rhea_error *err)
{
    int ret = option_none(how, "vmdk", err);
    if (ret)
        return ret;
    struct vmdk *v = calloc(1, sizeof(*v));
    if (!v)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->base.ops = &rhea_format_vmdk;
    v->base.storage = how->storage;
    v->flags = how->flags;
    v->files = how->files;
    pthread_mutex_init(&v->lock, NULL);
    ret = open_image(v, err);
    if (ret) {
        open_free(v);
        return ret;
    }
    for (size_t i = 0; i < v->n_extents; i++)
        vmdk_extent_ready(&v->extents[i]);
    *out = &v->base;
    return 0;
}

int vmdk_close(struct rhea_format *f, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    int ret = v->flags & RHEA_FORMAT_WRITE ? vmdk_flush(f, err) : 0;
    for (size_t i = 0; i < v->n_extents; i++) {
        int closed = v->extents[i].has_blocks
                         ? vmdk_sparse_close(&v->extents[i], ret ? NULL : err)
                         : 0;
        ret = ret ? ret : closed;
    }
    open_free(v);
    return ret;
}
