/* SPDX-License-Identifier: MIT */
/*
 * DiskDescriptor.xml: what a bundle is made of (docs/interop/prl-xml.txt in
 * QEMU, "spec").
 *
 * The text is kept as it was. A change cuts it open where it has to and leaves
 * all else alone, since Parallels' programs keep there what is not described.
 *
 * Life: zeroed, prl_parse, prl_finish (safe on all zero bytes).
 */
#ifndef RHEA_FORMAT_PARALLELS_PRL_XML_H
#define RHEA_FORMAT_PARALLELS_PRL_XML_H

#include <rhea/format.h>

#include "base/uuid.h"

#define PRL_FILE "DiskDescriptor.xml"
/* The image that the guest writes to, unless TopGUID says another. */
#define PRL_TOP "5fbaabe3-6958-40ff-92a7-860e329aab41"

enum {
    PRL_BYTES_MAX = 4 << 20,
    PRL_STORAGES_MAX = 1024,
    PRL_SHOTS_MAX = 512,
    PRL_IMAGES_MAX = 8192, /* of all storages */
    PRL_DEPTH_MAX = 256,   /* of snapshots over each other */
    PRL_VALUE_MAX = 4096,
    PRL_SECTOR = 512,
};

/* Bytes of the text; both 0: it is not there. */
struct text_range {
    size_t from, to;
};

/* A file of a storage. */
struct prl_image {
    uint8_t guid[UUID_BYTES];
    bool plain; /* else it grows ("Compressed") */
    char *file;
    struct text_range whole, guid_text, type_text, file_text;
};

/* A range of the disk, with a file for each snapshot. */
struct prl_storage {
    uint64_t start, end; /* sectors */
    uint64_t block;      /* sectors of a cluster */
    struct prl_image *images;
    size_t n_images;
    struct text_range whole, end_text;
};

struct prl_shot {
    uint8_t guid[UUID_BYTES], parent[UUID_BYTES];
    char *name; /* NULL: none; not of Parallels' making */
    int64_t date;
    bool temporary; /* nobody's, until it can be merged */
    struct text_range whole, content, guid_text, parent_text;
};

struct prl_disk {
    char *text;
    size_t len;
    bool editable; /* in an encoding that has ASCII */
    uint64_t size; /* sectors */
    uint64_t heads, sectors, logical_sector, physical_sector, padding;
    char *uid, *name; /* NULL: not stated */
    bool encrypted;
    uint8_t top[UUID_BYTES];
    bool has_top;                 /* it is stated */
    struct prl_storage *storages; /* in order */
    size_t n_storages;
    struct prl_shot *shots;
    size_t n_shots;
    struct text_range root, snapshots, size_text, cylinders_text;
};

int prl_parse(struct prl_disk *d, const char *text, size_t len,
              struct rhea_error *err);
/* The same of what is in FILE. */
int prl_read(struct prl_disk *d, struct rhea_storage *file,
             struct rhea_error *err);
void prl_finish(struct prl_disk *d);
/* How sure it is, 0 to 100, that a text begins so. */
int prl_probe(const uint8_t *head, size_t len);

/* NULL: there is none. */
struct prl_shot *prl_shot_find(const struct prl_disk *d, const uint8_t *guid);
struct prl_image *prl_image_find(const struct prl_storage *s,
                                 const uint8_t *guid);
/* How many shots have GUID as their parent. */
size_t prl_children(const struct prl_disk *d, const uint8_t *guid);
/* The last part of a file's name, whatever system it is of. */
const char *prl_last_part(const char *file);

/* --- prl_edit.c --- */

/* Changes of one text; offsets are those of the text as it is. Begin with all
 * zero bytes; prl_edit_finish. */
struct prl_edit {
    struct prl_edit_item {
        size_t from, to;
        char *text;
    } * items;
    size_t n;
    bool failed;
};

void prl_edit_replace(struct prl_edit *e, struct text_range range,
                      const char *text);
void prl_edit_insert(struct prl_edit *e, size_t at, const char *text);
/* With the white space in front of it. */
void prl_edit_remove(struct prl_edit *e, const struct prl_disk *d,
                     struct text_range range);
/* The text as changed, malloc'd. */
int prl_edit_apply(const struct prl_edit *e, const struct prl_disk *d,
                   char **text, size_t *len, struct rhea_error *err);
void prl_edit_finish(struct prl_edit *e);

/* "{guid}" */
enum { PRL_GUID_TEXT = UUID_TEXT + 2 };
void prl_guid_text(const uint8_t *guid, char text[PRL_GUID_TEXT]);
/* TEXT as it can stand in an element, malloc'd; NULL: out of memory. Control
 * characters, which cannot, become spaces. */
char *prl_xml_escape(const char *text);
/* Elements, malloc'd, indented as Parallels writes them: an Image; a Shot, with
 * MORE in it; what a Shot has of a snapshot's name and date. */
char *prl_xml_image(const uint8_t *guid, bool plain, const char *file);
char *prl_xml_shot(const uint8_t *guid, const uint8_t *parent,
                   const char *more);
char *prl_xml_shot_name(const char *name, int64_t date);

/* What a new descriptor says. */
struct prl_new {
    uint64_t size, block, part; /* sectors; PART: of each storage */
    bool plain;
    /* The file of storage N, malloc'd. */
    char *(*file)(void *opaque, uint64_t n);
    void *opaque;
    const char *name;
};
/* A descriptor of a disk with one image for each storage, malloc'd. */
int prl_write_new(const struct prl_new *what, char **text, size_t *len,
                  struct rhea_error *err);

#endif
