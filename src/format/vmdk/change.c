/* SPDX-License-Identifier: MIT */
/* Changes of a whole image: who its parent is, and emptying it. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/vmdk/edit.h"
#include "format/vmdk/sesparse.h"

static int change_check(const struct vmdk *v, struct rhea_error *err)
{
    if (!(v->flags & RHEA_FORMAT_WRITE))
        return rhea_error_set(err, EACCES,
                              "the image is open for reading only");
    return 0;
}

/* --- Parent --- */

/* A parent shows only through extents that have not all bytes. */
static int backing_check(const struct vmdk *v, const char *file,
                         const char *format, struct rhea_format *parent,
                         struct rhea_error *err)
{
    if (!file)
        return 0;
    for (size_t i = 0; i < v->n_extents; i++)
        if (!v->extents[i].has_blocks)
            return rhea_error_set(err, ENOTSUP,
                                  "an image with flat extents cannot have a "
                                  "parent");
    if (format && strcmp(format, "vmdk") != 0)
        return rhea_error_set(err, EINVAL,
                              "the parent of a VMDK is another one, not a "
                              "%.100s image",
                              format);
    if (strpbrk(file, "\"\n\r"))
        return rhea_error_set(err, EINVAL,
                              "the parent's name cannot have quotes or line "
                              "ends in it");
    if (!parent)
        return rhea_error_set(err, EINVAL,
                              "the parent '%.300s' cannot be opened, and its "
                              "content id has to be recorded",
                              file);
    return 0;
}

/* VirtualBox's lines for the same, where TEXT has them; PARENT NULL: none. */
static int backing_uuids(char **text, struct rhea_format *parent,
                         struct rhea_error *err)
{
    static const char *const lines[][2] = {
        {VMDK_UUID_PARENT, VMDK_UUID_IMAGE},
        {VMDK_UUID_PARENT_MODIFIED, VMDK_UUID_MODIFIED},
    };
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(lines); i++) {
        const struct descriptor d = {.text = *text, .length = strlen(*text)};
        size_t at, len;
        if (!descriptor_find(&d, lines[i][0], &at, &len))
            continue;
        RHEA_AUTO_FREE char *value =
            parent ? descriptor_get(&vmdk_of(parent)->descriptor, lines[i][1])
                   : NULL;
        int ret = vmdk_edit_line(text, lines[i][0],
                                 value ? value : VMDK_UUID_NONE, NULL, err);
        if (ret)
            return ret;
    }
    return 0;
}

int vmdk_set_backing(struct rhea_format *f, const char *file,
                     const char *format, struct rhea_format *parent,
                     struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    uint32_t cid = (uint32_t)DESCRIPTOR_NO_CID;
    char text_cid[9];
    file = file && *file ? file : NULL;
    int ret = change_check(v, err);
    if (!ret)
        ret = backing_check(v, file, format, parent, err);
    if (!ret && file)
        ret = vmdk_content_id(parent, &cid, err);
    if (ret)
        return ret;
    snprintf(text_cid, sizeof(text_cid), "%08" PRIx32, cid);
    RHEA_AUTO_FREE char *name = file ? strdup(file) : NULL;
    RHEA_LOCKED(&v->lock);
    RHEA_AUTO_FREE char *text = strdup(v->descriptor.text);
    if (!text || (file && !name))
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = vmdk_edit_line(&text, "parentCID", text_cid, "CID", err);
    if (!ret)
        ret = vmdk_edit_line(&text, "parentFileNameHint", file, "createType",
                             err);
    if (!ret)
        ret = backing_uuids(&text, file ? parent : NULL, err);
    if (!ret)
        ret = vmdk_edit_store(v, rhea_steal(text), err);
    if (ret)
        return ret;
    free(v->parent);
    v->parent = rhea_steal(name);
    for (size_t i = 0; i < v->n_extents; i++)
        v->extents[i].blocks.child = v->parent;
    return 0;
}

/* --- Emptying --- */

enum { EMPTY_STEP = 4096 };

uint64_t vmdk_directory_hole(struct vmdk_extent *x, uint64_t directory,
                             uint64_t index)
{
    uint64_t bytes = (x->h.n_tables - index) * x->h.entry_size;
    uint64_t at = directory + index * x->h.entry_size;
    bool hole;
    uint64_t run, size;
    /* Where this cannot be told, the entries are read. */
    if (at % EMPTY_STEP || rhea_storage_size(x->file, &size, NULL))
        return 0;
    /* A damaged directory may go on past the end of the file. */
    if (at >= size)
        return x->h.n_tables - index;
    bytes = RHEA_MIN(bytes, size - at);
    if (rhea_storage_extent(x->file, at, bytes, &hole, &run, NULL) || !hole)
        return 0;
    return RHEA_MIN(run, bytes) / x->h.entry_size;
}

/* One copy of the grain tables. Those in the metadata in front become all
 * zeroes, where they follow each other in one go; others are not needed any
 * more, which their directory says, in the cache. */
static int empty_tables(struct vmdk_extent *x, bool redundant,
                        struct rhea_error *err)
{
    uint64_t bytes = (uint64_t)x->h.table_entries * sizeof(uint32_t);
    uint64_t directory = redundant ? x->h.redundant : x->h.directory;
    uint64_t start = 0, end = 0, skip;
    int ret = table_write_back(&x->table, err);
    for (uint64_t i = 0; !ret && i <= x->h.n_tables; i += RHEA_MAX(skip, 1)) {
        uint64_t table = 0;
        skip = i < x->h.n_tables ? vmdk_directory_hole(x, directory, i) : 0;
        if (i < x->h.n_tables && !skip)
            ret = vmdk_table_find(x, i, redundant, &table, err);
        if (!ret && table && table + bytes > x->h.overhead) {
            ret = vmdk_sparse_set_directory(x, redundant, i, 0, err);
            table = 0;
        }
        if (ret || (table && table == end)) {
            end += bytes;
            continue;
        }
        if (start < end)
            ret = rhea_storage_zero(x->file, start, end - start, false, err);
        start = table;
        end = table ? table + bytes : 0;
    }
    return ret;
}

/* Where nothing of worth begins once all is empty. The header's word for where
 * its metadata ends does not go: a wrong one would cut off the rest of it. */
static uint64_t empty_end(const struct vmdk_extent *x)
{
    const struct vmdk_header *h = &x->h;
    uint64_t bytes = h->n_tables * h->entry_size;
    uint64_t end = RHEA_MAX(h->overhead, (uint64_t)VMDK_SECTOR);
    end = RHEA_MAX(end, h->directory + bytes);
    if (h->redundant)
        end = RHEA_MAX(end, h->redundant + bytes);
    end = RHEA_MAX(end, h->descriptor + h->descriptor_size);
    return div_up(end, h->grain_size) * h->grain_size;
}

/*
 * Order of writes: tables become zeroes, and others are dropped, in any order;
 * flush; the file is cut off. What they led to is in the parent already, so
 * that whatever of it survives a crash, the guest sees the same.
 */
static int empty_sparse(struct vmdk_extent *x, struct rhea_error *err)
{
    struct blocks *b = &x->blocks;
    RHEA_LOCKED(&b->lock);
    uint64_t end = empty_end(x);
    int ret = blocks_change_begin(b, err);
    if (ret)
        return ret;
    ret = blocks_begin(b, err);
    if (!ret)
        ret = empty_tables(x, false, err);
    if (!ret && x->h.redundant)
        ret = empty_tables(x, true, err);
    if (!ret)
        ret = table_write_back(&x->table, err);
    table_drop(&x->table);
    vmdk_forget_holes(x);
    if (!ret)
        ret = rhea_storage_flush(x->file, err);
    if (ret || end >= b->file_end)
        return blocks_change_end(b, ret, err);
    ret = rhea_storage_truncate(x->file, end, err);
    if (!ret)
        b->file_end = b->grown = x->file_size = end;
    return blocks_change_end(b, ret, err);
}

int vmdk_make_empty(struct rhea_format *f, struct rhea_error *err)
{
    struct vmdk *v = vmdk_of(f);
    int ret = change_check(v, err);
    for (size_t i = 0; !ret && i < v->n_extents; i++)
        if (!v->extents[i].has_blocks || !v->extents[i].writable ||
            v->extents[i].h.compressed)
            ret = rhea_error_set(err, ENOTSUP,
                                 "only images of sparse extents without "
                                 "compression can be emptied");
    for (size_t i = 0; !ret && i < v->n_extents; i++)
        ret = v->extents[i].se ? sesparse_empty(&v->extents[i], err)
                               : empty_sparse(&v->extents[i], err);
    return ret;
}
