/* SPDX-License-Identifier: MIT */
/*
 * A VMDK's descriptor: lines of text, in a file of its own or in a sparse
 * extent (Virtual Disk Format 5.0, "The Descriptor File"). Names are compared
 * without regard to case; of lines of the same name the first one counts.
 */
#ifndef RHEA_FORMAT_VMDK_DESCRIPTOR_H
#define RHEA_FORMAT_VMDK_DESCRIPTOR_H

#include <rhea/storage.h>

enum {
    DESCRIPTOR_MAX = 1 << 20, /* bytes; 4096 extents take a fifth of it */
    DESCRIPTOR_SECTORS = 20,  /* of an embedded one, as everybody does */
    DESCRIPTOR_NO_CID = -1,   /* as 32 bits: no parent */
};

enum descriptor_access {
    DESCRIPTOR_RW,
    DESCRIPTOR_RDONLY,
    DESCRIPTOR_NOACCESS,
};

/* Lines of VirtualBox's. */
#define VMDK_UUID_IMAGE "ddb.uuid.image"
#define VMDK_UUID_MODIFIED "ddb.uuid.modification"
#define VMDK_UUID_PARENT "ddb.uuid.parent"
#define VMDK_UUID_PARENT_MODIFIED "ddb.uuid.parentmodification"
#define VMDK_UUID_NONE "00000000-0000-0000-0000-000000000000"

/* One line of the extents. */
struct descriptor_extent {
    enum descriptor_access access;
    uint64_t sectors;
    char type[16];   /* upper case: "FLAT" */
    char *name;      /* NULL: none */
    uint64_t offset; /* sectors */
};

struct descriptor {
    char *text; /* NUL at its end; NULL: there is none */
    size_t length;
    uint64_t offset, room; /* where it stands in the image's file, and how many
                              bytes it may have there */

    uint32_t cid, parent_cid;
    bool has_cid;      /* there is a line that says it; else it is 0 */
    char *create_type; /* NULL: not stated */
    char *parent;      /* parentFileNameHint; NULL: none */
    struct descriptor_extent *extents;
    size_t n_extents;
};

/* Whether text that begins so is a descriptor. */
bool descriptor_probe(const char *text, size_t len);
/* The text at OFFSET of FILE, LEN bytes at most, is read and parsed. */
int descriptor_read(struct descriptor *d, struct rhea_storage *file,
                    uint64_t offset, uint64_t len, struct rhea_error *err);
/* Parse d->text. */
int descriptor_parse(struct descriptor *d, struct rhea_error *err);
/* Safe on all zero bytes. */
void descriptor_finish(struct descriptor *d);

/* The value of NAME, malloc'd; NULL: no such line, or out of memory. */
char *descriptor_get(const struct descriptor *d, const char *name);
/* Where the value of NAME stands, without quotes; false: no such line. */
bool descriptor_find(const struct descriptor *d, const char *name,
                     size_t *offset, size_t *len);
/* The text with extent number LAST (from 0) of SECTORS, what extents follow it
 * dropped, and lines MORE, each with its end, behind it; malloc'd. */
char *descriptor_resize(const struct descriptor *d, size_t last,
                        uint64_t sectors, const char *more);

#endif
