/* SPDX-License-Identifier: MIT */
/*
 * More extents, where a type of image has no large ones. They are made before
 * the descriptor names them, each durable, in files that were not there.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/create.h"
#include "format/vmdk/resize.h"

enum { MORE_DIGITS = 8 }; /* of a number in a name, at most */

/* How the names of extents are made: "disk-s" 003 ".vmdk". */
struct more_names {
    char *like; /* malloc'd */
    int before; /* characters before the number */
    int digits;
    const char *after;
    unsigned number; /* of the one that was made last */
};

static int more_check_encoding(const struct vmdk *v, const char *name,
                               struct rhea_error *err)
{
    RHEA_AUTO_FREE char *encoding = descriptor_get(&v->descriptor, "encoding");
    bool ascii = true;
    for (const char *p = name; *p; p++)
        ascii &= (unsigned char)*p < 0x80;
    if (ascii || !encoding || strcasecmp(encoding, "UTF-8") == 0)
        return 0;
    return rhea_error_set(err, ENOTSUP,
                          "the descriptor has the names of extents in encoding "
                          "%.40s, in which no others can be written",
                          encoding);
}

static int more_names_init(struct more_names *names, const struct vmdk *v,
                           const struct new_type *type, struct rhea_error *err)
{
    const struct descriptor *d = &v->descriptor;
    const char *last = d->extents[d->n_extents - 1].name;
    int ret = more_check_encoding(v, last, err);
    names->like = ret ? NULL : strdup(last);
    if (!names->like)
        return ret ? ret : rhea_error_set(err, ENOMEM, "out of memory");
    const char *slash = strrchr(names->like, '/');
    const char *dot = strrchr(slash ? slash : names->like, '.');
    names->after = dot ? dot : names->like + strlen(names->like);
    const char *first = names->after;
    while (first > names->like && isdigit((unsigned char)first[-1]) &&
           names->after - first < MORE_DIGITS)
        first--;
    names->before = (int)(first - names->like);
    names->digits = (int)(names->after - first);
    names->number = names->digits ? (unsigned)strtoul(first, NULL, 10)
                                  : (unsigned)d->n_extents;
    if (names->digits)
        return 0;
    /* "disk.vmdk" is followed by "disk-s002.vmdk". */
    char *like = NULL;
    if (asprintf(&like, "%.*s-%c%s", names->before, names->like, type->letter,
                 names->after) < 0)
        return rhea_error_set(err, ENOMEM, "out of memory");
    names->after = like + names->before + 2;
    free(names->like);
    names->like = like;
    names->before += 2;
    names->digits = 3;
    return 0;
}

/* The next name of which there is no file, malloc'd. What a crash left behind,
 * and what is somebody else's, stays. */
static int more_next_name(struct more_names *names, const struct vmdk *v,
                          char **out, struct rhea_error *err)
{
    for (unsigned i = 0; i < VMDK_EXTENTS_MAX; i++) {
        struct rhea_storage *there;
        char *name = NULL;
        if (asprintf(&name, "%.*s%0*u%s", names->before, names->like,
                     names->digits, ++names->number, names->after) < 0)
            return rhea_error_set(err, ENOMEM, "out of memory");
        int ret = v->files->open(v->files->opaque, name, false, &there, NULL);
        if (ret == -ENOENT) {
            *out = name;
            return 0;
        }
        free(name);
    }
    return rhea_error_set(err, EEXIST,
                          "there are files already of all names that a new "
                          "extent could have");
}

/* --- */

static int more_make(struct resize *r, const struct new_image *n,
                     struct more_names *names, uint64_t start, uint64_t size,
                     FILE *lines, struct rhea_error *err)
{
    struct vmdk *v = r->v;
    struct vmdk_extent *x = &v->extents[v->n_extents + r->n_more];
    struct descriptor_extent line = {.access = DESCRIPTOR_RW,
                                     .sectors = size / VMDK_SECTOR};
    struct rhea_storage *file;
    int ret = more_next_name(names, v, &line.name, err);
    if (ret)
        return ret;
    ret = v->files->create(v->files->opaque, line.name, &file, err);
    if (!ret)
        ret = new_extent(file, n, size, NULL, err);
    *x = (struct vmdk_extent){.image = v, .start = start};
    snprintf(line.type, sizeof(line.type), "%s", n->type->line);
    if (!ret)
        ret = vmdk_extent_open(v, &line, file, x, err);
    if (!ret) {
        vmdk_extent_ready(x);
        x->made_as = rhea_steal(line.name);
        r->n_more++;
        fprintf(lines, "RW %" PRIu64 " %s \"%s\"%s\n", line.sectors, line.type,
                x->made_as, n->type->kind == VMDK_FLAT ? " 0" : "");
    } else {
        vmdk_extent_finish(x);
        v->files->remove(v->files->opaque, line.name, NULL);
    }
    free(line.name);
    if (!ret && x->has_blocks && r->how->hide_below)
        ret = blocks_hide(&x->blocks, 0, size, true, err);
    return ret;
}

/* Room for N more in memory; locks do not move. */
static int more_reserve(struct vmdk *v, uint64_t n, struct rhea_error *err)
{
    if (v->n_extents + n > VMDK_EXTENTS_MAX)
        return rhea_error_set(err, EFBIG,
                              "the image would have more than %d extents",
                              VMDK_EXTENTS_MAX);
    struct vmdk_extent *x = reallocarray(v->extents, (size_t)(v->n_extents + n),
                                         sizeof(*v->extents));
    if (!x)
        return rhea_error_set(err, ENOMEM, "out of memory");
    v->extents = x;
    for (size_t i = 0; i < v->n_extents; i++)
        if (x[i].has_blocks) {
            pthread_mutex_init(&x[i].blocks.lock, NULL);
            pthread_cond_init(&x[i].blocks.landed, NULL);
        }
    return 0;
}

static int more_run(struct resize *r, uint64_t start, FILE *lines,
                    struct rhea_error *err)
{
    struct vmdk *v = r->v;
    const struct new_image n = {
        .type = new_find_type(v->descriptor.create_type),
        .zero_grains = vmdk_resize_last(r)->h.zero_grains,
        .preallocation = r->mode,
        .size = r->size,
    };
    struct more_names names = {0};
    int ret = n.type && v->descriptor.n_extents == v->n_extents
                  ? more_names_init(&names, v, n.type, err)
                  : rhea_error_set(err, ENOTSUP,
                                   "the image has no extents that others "
                                   "could follow");
    if (!ret)
        ret = more_reserve(v, div_up(r->size - start, r->split), err);
    while (!ret && start < r->size) {
        uint64_t size = RHEA_MIN(r->size - start, r->split);
        ret = more_make(r, &n, &names, start, size, lines, err);
        start += size;
    }
    free(names.like);
    return ret;
}

int vmdk_resize_more(struct resize *r, struct rhea_error *err)
{
    const struct rhea_files *files = r->v->files;
    uint64_t start = vmdk_resize_last(r)->start + r->last_size;
    size_t len;
    if (start >= r->size)
        return 0;
    if (!files || !files->open || !files->create || !files->remove)
        return rhea_error_set(err, ENOTSUP,
                              "the image needs more files, and so must be in a "
                              "folder");
    FILE *lines = open_memstream(&r->lines, &len);
    if (!lines)
        return rhea_error_set(err, ENOMEM, "out of memory");
    int ret = more_run(r, start, lines, err);
    if (fclose(lines) && !ret)
        ret = rhea_error_set(err, ENOMEM, "out of memory");
    return ret;
}

void vmdk_resize_finish_more(struct resize *r, bool keep)
{
    struct vmdk *v = r->v;
    for (size_t i = 0; i < r->n_more; i++) {
        struct vmdk_extent *x = &v->extents[v->n_extents + i];
        if (!keep) {
            vmdk_extent_finish(x);
            v->files->remove(v->files->opaque, x->made_as, NULL);
        }
        free(x->made_as);
        x->made_as = NULL;
    }
    if (keep)
        v->n_extents += r->n_more;
    r->n_more = 0;
}
