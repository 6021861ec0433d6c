/* SPDX-License-Identifier: MIT */
/*
 * Reading DiskDescriptor.xml, with expat.
 *
 * It comes from anybody: its size, depth, values and lists are bounded, and a
 * document type with declarations of its own, as entities need it, is refused.
 * Elements that are not known are left alone.
 */
#include "format/parallels/prl_xml.h"

#include <errno.h>
#include <expat.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum { XML_DEPTH_MAX = 16, XML_PATH_MAX = 256 };

struct parser {
    XML_Parser xml;
    struct prl_disk *d;
    char path[XML_PATH_MAX]; /* of the element, without the root: "A/B" */
    unsigned depth;
    size_t path_at[XML_DEPTH_MAX];
    size_t start[XML_DEPTH_MAX], content[XML_DEPTH_MAX];
    char value[PRL_VALUE_MAX + 1]; /* of the element that is open */
    size_t value_len;
    bool value_cut; /* it is longer than that */
    size_t n_images;
    int code; /* errno of what is wrong; 0: nothing so far */
    struct rhea_error *err;
};

static void parse_fail(struct parser *p, int code, const char *fmt, ...)
    RHEA_PRINTF(3, 4);

static void parse_fail(struct parser *p, int code, const char *fmt, ...)
{
    char text[512];
    va_list args;
    if (p->code)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    p->code = code;
    rhea_error_set(p->err, code, "%s", text);
    XML_StopParser(p->xml, XML_FALSE);
}

/* --- Values --- */

static bool text_is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The value without white space around it. */
static const char *parse_trimmed(struct parser *p)
{
    char *v = p->value;
    if (p->value_cut)
        parse_fail(p, EFBIG,
                   "the disk descriptor has a value of more than %d "
                   "bytes",
                   PRL_VALUE_MAX);
    p->value[p->value_len] = 0;
    while (p->value_len && text_is_space(v[p->value_len - 1]))
        v[--p->value_len] = 0;
    while (text_is_space(*v))
        v++;
    return v;
}

static void parse_number(struct parser *p, uint64_t *out)
{
    const char *v = parse_trimmed(p);
    uint64_t n = 0;
    bool good = *v;
    for (; good && *v; v++) {
        good = *v >= '0' && *v <= '9' && mul_u64(n, 10, &n) &&
               add_u64(n, (uint64_t)(*v - '0'), &n);
    }
    if (!good || n > INT64_MAX / PRL_SECTOR)
        parse_fail(p, EINVAL, "invalid disk descriptor: %s is '%.100s'",
                   p->path, parse_trimmed(p));
    *out = n;
}

static void parse_guid(struct parser *p, uint8_t *out)
{
    if (!uuid_parse(parse_trimmed(p), out))
        parse_fail(p, EINVAL, "invalid disk descriptor: %s is '%.100s'",
                   p->path, parse_trimmed(p));
}

static void parse_string(struct parser *p, char **out)
{
    free(*out);
    *out = strdup(parse_trimmed(p));
    if (!*out)
        parse_fail(p, ENOMEM, "out of memory");
}

/* "2026-01-31 12:00:00", in UTC. What is none is not a fault. */
static void parse_date(struct parser *p, int64_t *out)
{
    struct tm tm = {0};
    const char *end = strptime(parse_trimmed(p), "%Y-%m-%d %H:%M:%S", &tm);
    if (end && !*end)
        *out = timegm(&tm);
}

/* --- Elements --- */

/* Room for one more in a list that grows by doubling. */
static bool parse_grow(struct parser *p, void **items, size_t n, size_t bytes,
                       size_t max, const char *what)
{
    if (n >= max) {
        parse_fail(p, EFBIG, "the disk descriptor has more than %zu %s", max,
                   what);
        return false;
    }
    if (n == 0 || (n >= 4 && (n & (n - 1)) == 0)) {
        void *grown = reallocarray(*items, n ? 2 * n : 4, bytes);
        if (!grown) {
            parse_fail(p, ENOMEM, "out of memory");
            return false;
        }
        *items = grown;
    }
    memset((char *)*items + n * bytes, 0, bytes);
    return true;
}

static void start_storage(struct parser *p)
{
    struct prl_disk *d = p->d;
    void *items = d->storages;
    if (parse_grow(p, &items, d->n_storages, sizeof(*d->storages),
                   PRL_STORAGES_MAX, "storages"))
        d->n_storages++;
    d->storages = items;
}

static void start_image(struct parser *p)
{
    struct prl_storage *s = &p->d->storages[p->d->n_storages - 1];
    void *items = s->images;
    if (p->n_images++ >= PRL_IMAGES_MAX) {
        parse_fail(p, EFBIG, "the disk descriptor has more than %d images",
                   PRL_IMAGES_MAX);
        return;
    }
    if (parse_grow(p, &items, s->n_images, sizeof(*s->images), PRL_SHOTS_MAX,
                   "images of one storage"))
        s->n_images++;
    s->images = items;
}

static void start_shot(struct parser *p)
{
    struct prl_disk *d = p->d;
    void *items = d->shots;
    if (parse_grow(p, &items, d->n_shots, sizeof(*d->shots), PRL_SHOTS_MAX,
                   "snapshots"))
        d->n_shots++;
    d->shots = items;
}

#define STORAGE "StorageData/Storage"
#define IMAGE STORAGE "/Image"
#define SHOT "Snapshots/Shot"

static void end_parameter(struct parser *p, const char *name,
                          struct text_range content)
{
    struct prl_disk *d = p->d;
    uint8_t engine[UUID_BYTES];
    if (strcmp(name, "Disk_size") == 0) {
        parse_number(p, &d->size);
        d->size_text = content;
    } else if (strcmp(name, "Cylinders") == 0) {
        d->cylinders_text = content;
    } else if (strcmp(name, "Heads") == 0) {
        parse_number(p, &d->heads);
    } else if (strcmp(name, "Sectors") == 0) {
        parse_number(p, &d->sectors);
    } else if (strcmp(name, "Padding") == 0) {
        parse_number(p, &d->padding);
    } else if (strcmp(name, "LogicSectorSize") == 0) {
        parse_number(p, &d->logical_sector);
    } else if (strcmp(name, "PhysicalSectorSize") == 0) {
        parse_number(p, &d->physical_sector);
    } else if (strcmp(name, "UID") == 0) {
        parse_string(p, &d->uid);
    } else if (strcmp(name, "Name") == 0) {
        parse_string(p, &d->name);
    } else if (strcmp(name, "Encryption/Engine") == 0) {
        const char *v = parse_trimmed(p);
        d->encrypted |= *v && !(uuid_parse(v, engine) && uuid_is_null(engine));
    }
}

static void end_image(struct parser *p, const char *name,
                      struct text_range content)
{
    struct prl_storage *s = &p->d->storages[p->d->n_storages - 1];
    struct prl_image *i = &s->images[s->n_images - 1];
    if (strcmp(name, "GUID") == 0) {
        parse_guid(p, i->guid);
        i->guid_text = content;
    } else if (strcmp(name, "File") == 0) {
        parse_string(p, &i->file);
        i->file_text = content;
    } else if (strcmp(name, "Type") == 0) {
        const char *v = parse_trimmed(p);
        i->plain = strcmp(v, "Plain") == 0;
        i->type_text = content;
        if (!i->plain && strcmp(v, "Compressed") != 0)
            parse_fail(p, ENOTSUP, "images of type '%.100s' are not known", v);
    }
}

static void end_storage(struct parser *p, const char *name,
                        struct text_range content)
{
    struct prl_storage *s = &p->d->storages[p->d->n_storages - 1];
    if (strcmp(name, "Start") == 0) {
        parse_number(p, &s->start);
    } else if (strcmp(name, "End") == 0) {
        parse_number(p, &s->end);
        s->end_text = content;
    } else if (strcmp(name, "Blocksize") == 0) {
        parse_number(p, &s->block);
    }
}

static void end_shot(struct parser *p, const char *name,
                     struct text_range content)
{
    struct prl_shot *s = &p->d->shots[p->d->n_shots - 1];
    if (strcmp(name, "GUID") == 0) {
        parse_guid(p, s->guid);
        s->guid_text = content;
    } else if (strcmp(name, "ParentGUID") == 0) {
        parse_guid(p, s->parent);
        s->parent_text = content;
    } else if (strcmp(name, "Name") == 0) {
        parse_string(p, &s->name);
    } else if (strcmp(name, "DateTime") == 0) {
        parse_date(p, &s->date);
    } else if (strcmp(name, "Temporary") == 0) {
        s->temporary = true;
    }
}

/* What follows PREFIX in the path of an element right below it. */
static const char *path_below(const struct parser *p, const char *prefix)
{
    size_t n = strlen(prefix);
    return strncmp(p->path, prefix, n) == 0 && p->path[n] == '/'
               ? p->path + n + 1
               : NULL;
}

static void end_element(struct parser *p, struct text_range content,
                        struct text_range whole)
{
    struct prl_disk *d = p->d;
    const char *name;
    if ((name = path_below(p, "Disk_Parameters"))) {
        end_parameter(p, name, content);
    } else if ((name = path_below(p, IMAGE))) {
        end_image(p, name, content);
    } else if (strcmp(p->path, IMAGE) == 0) {
        struct prl_storage *s = &d->storages[d->n_storages - 1];
        s->images[s->n_images - 1].whole = whole;
    } else if ((name = path_below(p, STORAGE))) {
        end_storage(p, name, content);
    } else if (strcmp(p->path, STORAGE) == 0) {
        d->storages[d->n_storages - 1].whole = whole;
    } else if ((name = path_below(p, SHOT))) {
        end_shot(p, name, content);
    } else if (strcmp(p->path, SHOT) == 0) {
        d->shots[d->n_shots - 1].whole = whole;
        d->shots[d->n_shots - 1].content = content;
    } else if (strcmp(p->path, "Snapshots/TopGUID") == 0) {
        parse_guid(p, d->top);
        d->has_top = true;
    } else if (strcmp(p->path, "Snapshots") == 0) {
        d->snapshots = content;
    }
}

/* --- expat's calls --- */

static void XMLCALL on_start(void *opaque, const XML_Char *name,
                             const XML_Char **attributes)
{
    struct parser *p = opaque;
    size_t at = strlen(p->path), len = strlen(name);
    (void)attributes;
    if (p->code)
        return;
    if (p->depth == 0 && strcmp(name, "Parallels_disk_image") != 0) {
        parse_fail(p, EINVAL, "not a disk descriptor of Parallels'");
        return;
    }
    if (p->depth >= XML_DEPTH_MAX || at + len + 2 > sizeof(p->path)) {
        parse_fail(p, EFBIG, "the disk descriptor is nested too deeply");
        return;
    }
    XML_Index start = XML_GetCurrentByteIndex(p->xml);
    p->start[p->depth] = (size_t)start;
    p->content[p->depth] =
        (size_t)start + (size_t)XML_GetCurrentByteCount(p->xml);
    p->path_at[p->depth] = at;
    if (p->depth++)
        snprintf(p->path + at, sizeof(p->path) - at, "%s%s", at ? "/" : "",
                 name);
    p->value_len = 0;
    p->value_cut = false;
    if (strcmp(p->path, STORAGE) == 0)
        start_storage(p);
    else if (strcmp(p->path, IMAGE) == 0)
        start_image(p);
    else if (strcmp(p->path, SHOT) == 0)
        start_shot(p);
}

static void XMLCALL on_end(void *opaque, const XML_Char *name)
{
    struct parser *p = opaque;
    (void)name;
    if (p->code || !p->depth)
        return;
    unsigned level = p->depth - 1;
    size_t at = (size_t)XML_GetCurrentByteIndex(p->xml);
    struct text_range content = {p->content[level], at};
    struct text_range whole = {p->start[level],
                               at + (size_t)XML_GetCurrentByteCount(p->xml)};
    /* "<a/>" ends where it starts, and has no place for a content. */
    if (at < p->content[level]) {
        content = (struct text_range){0};
        whole.to = p->content[level];
    }
    if (level)
        end_element(p, content, whole);
    else
        p->d->root = content;
    p->path[p->path_at[level]] = 0;
    p->depth--;
    p->value_len = 0;
    p->value_cut = false;
}

static void XMLCALL on_text(void *opaque, const XML_Char *s, int len)
{
    struct parser *p = opaque;
    if (p->code)
        return;
    if (p->value_len + (size_t)len > PRL_VALUE_MAX) {
        p->value_cut = true; /* which matters to those that are read */
        return;
    }
    memcpy(p->value + p->value_len, s, (size_t)len);
    p->value_len += (size_t)len;
}

static void XMLCALL on_doctype(void *opaque, const XML_Char *name,
                               const XML_Char *system, const XML_Char *public,
                               int has_internal_subset)
{
    (void)name;
    (void)system;
    (void)public;
    if (has_internal_subset)
        parse_fail(opaque, EINVAL,
                   "the disk descriptor declares entities, which it has no use "
                   "for");
}

/* --- Whether it holds --- */

struct prl_shot *prl_shot_find(const struct prl_disk *d, const uint8_t *guid)
{
    for (size_t i = 0; i < d->n_shots; i++)
        if (uuid_equal(d->shots[i].guid, guid))
            return &d->shots[i];
    return NULL;
}

struct prl_image *prl_image_find(const struct prl_storage *s,
                                 const uint8_t *guid)
{
    for (size_t i = 0; i < s->n_images; i++)
        if (uuid_equal(s->images[i].guid, guid))
            return &s->images[i];
    return NULL;
}

size_t prl_children(const struct prl_disk *d, const uint8_t *guid)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_shots; i++)
        n += uuid_equal(d->shots[i].parent, guid);
    return n;
}

static int check_storage(const struct prl_storage *s, struct rhea_error *err)
{
    if (s->end <= s->start)
        return rhea_error_set(err, EINVAL,
                              "invalid disk descriptor: a storage from sector "
                              "%" PRIu64 " to %" PRIu64,
                              s->start, s->end);
    for (size_t i = 0; i < s->n_images; i++) {
        const struct prl_image *image = &s->images[i];
        if (!image->file || !*image->file || !image->guid_text.to)
            return rhea_error_set(err, EINVAL,
                                  "invalid disk descriptor: an image without a "
                                  "GUID or a file");
        if (prl_image_find(s, image->guid) != image)
            return rhea_error_set(err, EINVAL,
                                  "invalid disk descriptor: two images of one "
                                  "GUID in a storage");
    }
    return 0;
}

static int storage_compare(const void *a, const void *b)
{
    const struct prl_storage *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* All of the disk, and nothing twice. */
static int check_storages(struct prl_disk *d, struct rhea_error *err)
{
    uint64_t at = 0;
    if (d->n_storages)
        qsort(d->storages, d->n_storages, sizeof(*d->storages),
              storage_compare);
    for (size_t i = 0; i < d->n_storages; i++) {
        const struct prl_storage *s = &d->storages[i];
        int ret = check_storage(s, err);
        if (ret)
            return ret;
        if (s->start != at)
            return rhea_error_set(err, EINVAL,
                                  "invalid disk descriptor: storages %s at "
                                  "sector %" PRIu64,
                                  s->start < at ? "overlap" : "leave a gap",
                                  RHEA_MIN(at, s->start));
        at = s->end;
    }
    if (at != d->size || !d->n_storages)
        return rhea_error_set(err, EINVAL,
                              "invalid disk descriptor: a disk of %" PRIu64
                              " sectors, but storages up to %" PRIu64,
                              d->size, at);
    return 0;
}

static int name_compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* No file is two images, nor the descriptor: who deletes a snapshot removes its
 * files. */
static int check_names(const struct prl_disk *d, struct rhea_error *err)
{
    size_t n = 0;
    RHEA_AUTO_FREE const char **names =
        calloc(PRL_IMAGES_MAX + 1, sizeof(char *));
    if (!names)
        return rhea_error_set(err, ENOMEM, "out of memory");
    names[n++] = PRL_FILE;
    for (size_t i = 0; i < d->n_storages; i++)
        for (size_t k = 0; k < d->storages[i].n_images; k++)
            names[n++] = prl_last_part(d->storages[i].images[k].file);
    qsort(names, n, sizeof(*names), name_compare);
    for (size_t i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return rhea_error_set(err, EINVAL,
                                  "invalid disk descriptor: '%.200s' cannot be "
                                  "two of its files",
                                  names[i]);
    return 0;
}

/* Following parents from each shot ends. */
static int check_shots(const struct prl_disk *d, struct rhea_error *err)
{
    for (size_t i = 0; i < d->n_shots; i++) {
        const struct prl_shot *shot = &d->shots[i];
        if (!shot->guid_text.to || uuid_is_null(shot->guid) ||
            prl_shot_find(d, shot->guid) != shot)
            return rhea_error_set(err, EINVAL,
                                  "invalid disk descriptor: a snapshot without "
                                  "a GUID of its own");
        for (unsigned depth = 0; !uuid_is_null(shot->parent); depth++) {
            char name[UUID_TEXT];
            uuid_text(shot->parent, name);
            shot = prl_shot_find(d, shot->parent);
            if (!shot)
                return rhea_error_set(err, EINVAL,
                                      "invalid disk descriptor: snapshot {%s}, "
                                      "which others are made over, is missing",
                                      name);
            if (depth >= PRL_DEPTH_MAX)
                return rhea_error_set(err, ELOOP,
                                      "invalid disk descriptor: more than %d "
                                      "snapshots over each other, or a loop",
                                      PRL_DEPTH_MAX);
        }
    }
    return 0;
}

/* One image and no word of snapshots: it is the top. */
static int check_top(struct prl_disk *d, struct rhea_error *err)
{
    char name[UUID_TEXT];
    if (!d->has_top)
        uuid_parse(PRL_TOP, d->top);
    if (prl_shot_find(d, d->top))
        return 0;
    if (!d->n_shots && !d->has_top && d->storages[0].n_images == 1) {
        memcpy(d->top, d->storages[0].images[0].guid, UUID_BYTES);
        return 0;
    }
    uuid_text(d->top, name);
    return rhea_error_set(err, EINVAL,
                          "invalid disk descriptor: the image to write to, "
                          "{%s}, is not among the snapshots",
                          name);
}

static int prl_check(struct prl_disk *d, struct rhea_error *err)
{
    if (d->encrypted)
        return rhea_error_set(err, ENOTSUP,
                              "the disk is encrypted, in a way that is not "
                              "known");
    if (d->padding)
        return rhea_error_set(err, ENOTSUP,
                              "a disk with padding, which is not known");
    if (d->logical_sector && d->logical_sector != PRL_SECTOR)
        return rhea_error_set(err, ENOTSUP,
                              "a disk with logical sectors of %" PRIu64
                              " bytes, which is not known",
                              d->logical_sector);
    int ret = check_storages(d, err);
    if (!ret)
        ret = check_names(d, err);
    if (!ret)
        ret = check_shots(d, err);
    return ret ? ret : check_top(d, err);
}

/* --- The whole --- */

static int parse_text(struct prl_disk *d, struct rhea_error *err)
{
    RHEA_AUTO_FREE struct parser *p = calloc(1, sizeof(*p));
    if (p)
        p->xml = XML_ParserCreate(NULL);
    if (!p || !p->xml)
        return rhea_error_set(err, ENOMEM, "out of memory");
    p->d = d;
    p->err = err;
    XML_SetUserData(p->xml, p);
    XML_SetElementHandler(p->xml, on_start, on_end);
    XML_SetCharacterDataHandler(p->xml, on_text);
    XML_SetStartDoctypeDeclHandler(p->xml, on_doctype);
    int ret = 0;
    if (XML_Parse(p->xml, d->text, (int)d->len, 1) != XML_STATUS_OK) {
        ret = -p->code;
        if (!p->code)
            ret = rhea_error_set(
                err, EINVAL, "the disk descriptor is no XML: %s in line %lu",
                XML_ErrorString(XML_GetErrorCode(p->xml)),
                (unsigned long)XML_GetCurrentLineNumber(p->xml));
    }
    XML_ParserFree(p->xml);
    return ret;
}

int prl_parse(struct prl_disk *d, const char *text, size_t len,
              struct rhea_error *err)
{
    *d = (struct prl_disk){.len = len};
    d->text = malloc(len + 1);
    if (!d->text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    memcpy(d->text, text, len);
    d->text[len] = 0;
    /* UTF-16 has its NUL in the first character. */
    d->editable = len > 1 && d->text[0] && d->text[1] &&
                  ((uint8_t)d->text[0] == 0xef || d->text[0] > 0);
    int ret =
        len > PRL_BYTES_MAX
            ? rhea_error_set(err, EFBIG, "a disk descriptor of %zu bytes", len)
            : parse_text(d, err);
    if (!ret)
        ret = prl_check(d, err);
    if (ret)
        prl_finish(d);
    return ret;
}

int prl_read(struct prl_disk *d, struct rhea_storage *file,
             struct rhea_error *err)
{
    uint64_t size;
    int ret = rhea_storage_size(file, &size, err);
    if (ret)
        return ret;
    if (size > PRL_BYTES_MAX)
        return rhea_error_set(err, EFBIG,
                              "a disk descriptor of %" PRIu64 " bytes", size);
    RHEA_AUTO_FREE char *text = malloc((size_t)size + 1);
    if (!text)
        return rhea_error_set(err, ENOMEM, "out of memory");
    ret = rhea_storage_read(file, text, (size_t)size, 0, err);
    return ret ? ret : prl_parse(d, text, (size_t)size, err);
}

void prl_finish(struct prl_disk *d)
{
    for (size_t i = 0; i < d->n_storages; i++) {
        for (size_t k = 0; k < d->storages[i].n_images; k++)
            free(d->storages[i].images[k].file);
        free(d->storages[i].images);
    }
    for (size_t i = 0; i < d->n_shots; i++)
        free(d->shots[i].name);
    free(d->storages);
    free(d->shots);
    free(d->uid);
    free(d->name);
    free(d->text);
    *d = (struct prl_disk){0};
}

/* The same in UTF-16, ORDER 0 for the little end first. */
static bool probe_utf16(const uint8_t *head, size_t len, const char *text,
                        size_t n, unsigned order)
{
    for (size_t at = 2; at + 2 * n <= len; at += 2) {
        size_t i = 0;
        while (i < n && head[at + 2 * i + order] == (uint8_t)text[i] &&
               head[at + 2 * i + !order] == 0)
            i++;
        if (i == n)
            return true;
    }
    return false;
}

int prl_probe(const uint8_t *head, size_t len)
{
    static const char root[] = "<Parallels_disk_image";
    if (len < 3)
        return 0;
    if ((head[0] == 0xff && head[1] == 0xfe) ||
        (head[0] == 0xfe && head[1] == 0xff))
        return probe_utf16(head, len, root, sizeof(root) - 1, head[0] == 0xfe)
                   ? 100
                   : 0;
    if (memcmp(head, "\xef\xbb\xbf", 3) == 0) {
        head += 3;
        len -= 3;
    }
    while (len && text_is_space((char)*head)) {
        head++;
        len--;
    }
    return len && *head == '<' && memmem(head, len, root, sizeof(root) - 1)
               ? 100
               : 0;
}

const char *prl_last_part(const char *file)
{
    for (const char *p = file; *p; p++)
        if (*p == '/' || *p == '\\')
            file = p + 1;
    return file;
}
