/* SPDX-License-Identifier: MIT */
/* Changing DiskDescriptor.xml, and writing new ones. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/parallels/prl_xml.h"

static void prl_edit_add(struct prl_edit *e, size_t from, size_t to,
                         const char *text)
{
    struct prl_edit_item *items =
        reallocarray(e->items, e->n + 1, sizeof(*items));
    char *copy = strdup(text);
    if (items)
        e->items = items;
    if (!items || !copy) {
        free(copy);
        e->failed = true;
        return;
    }
    items[e->n++] =
        (struct prl_edit_item){.from = from, .to = to, .text = copy};
}

void prl_edit_replace(struct prl_edit *e, struct text_range range,
                      const char *text)
{
    if (range.to)
        prl_edit_add(e, range.from, range.to, text);
}

void prl_edit_insert(struct prl_edit *e, size_t at, const char *text)
{
    prl_edit_add(e, at, at, text);
}

void prl_edit_remove(struct prl_edit *e, const struct prl_disk *d,
                     struct text_range range)
{
    while (range.from && strchr(" \t\r\n", d->text[range.from - 1]))
        range.from--;
    prl_edit_add(e, range.from, range.to, "");
}

/* In the order of the text; what is at one place stays in the order in which it
 * was asked for. */
static void prl_edit_sort(struct prl_edit_item *items, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        struct prl_edit_item item = items[i];
        size_t k = i;
        for (; k && items[k - 1].from > item.from; k--)
            items[k] = items[k - 1];
        items[k] = item;
    }
}

int prl_edit_apply(const struct prl_edit *e, const struct prl_disk *d,
                   char **text, size_t *len, struct rhea_error *err)
{
    size_t at = 0, bytes = d->len + 1;
    FILE *out;
    if (!d->editable)
        return rhea_error_set(err, ENOTSUP,
                              "the disk descriptor is in an encoding in which "
                              "it can only be read");
    if (e->failed)
        return rhea_error_set(err, ENOMEM, "out of memory");
    prl_edit_sort(e->items, e->n);
    for (size_t i = 0; i < e->n; i++)
        bytes += strlen(e->items[i].text);
    *text = malloc(bytes);
    out = *text ? fmemopen(*text, bytes, "w") : NULL;
    if (!out) {
        free(*text);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < e->n; i++) {
        const struct prl_edit_item *item = &e->items[i];
        /* A removed element may end where the next one's space begins. */
        size_t from = RHEA_MAX(at, item->from);
        fwrite(d->text + at, 1, from - at, out);
        fputs(item->text, out);
        at = RHEA_MAX(at, item->to);
    }
    fwrite(d->text + at, 1, d->len - at, out);
    *len = (size_t)ftell(out);
    fclose(out);
    return 0;
}

void prl_edit_finish(struct prl_edit *e)
{
    for (size_t i = 0; i < e->n; i++)
        free(e->items[i].text);
    free(e->items);
    *e = (struct prl_edit){0};
}

void prl_guid_text(const uint8_t *guid, char text[PRL_GUID_TEXT])
{
    char plain[UUID_TEXT];
    uuid_text(guid, plain);
    snprintf(text, PRL_GUID_TEXT, "{%s}", plain);
}

char *prl_xml_escape(const char *text)
{
    char *out = malloc(6 * strlen(text) + 1), *at = out;
    for (; out && *text; text++) {
        const char *as = *text == '&'   ? "&amp;"
                         : *text == '<' ? "&lt;"
                         : *text == '>' ? "&gt;"
                                        : NULL;
        if (as)
            at = stpcpy(at, as);
        else
            *at++ = (unsigned char)*text < ' ' ? ' ' : *text;
    }
    if (out)
        *at = 0;
    return out;
}

char *prl_xml_image(const uint8_t *guid, bool plain, const char *file)
{
    char braced[PRL_GUID_TEXT];
    RHEA_AUTO_FREE char *escaped = prl_xml_escape(file);
    char *text = NULL;
    prl_guid_text(guid, braced);
    return escaped && asprintf(&text,
                               "\n            <Image>\n"
                               "                <GUID>%s</GUID>\n"
                               "                <Type>%s</Type>\n"
                               "                <File>%s</File>\n"
                               "            </Image>",
                               braced, plain ? "Plain" : "Compressed",
                               escaped) >= 0
               ? text
               : NULL;
}

char *prl_xml_shot(const uint8_t *guid, const uint8_t *parent, const char *more)
{
    char own[PRL_GUID_TEXT], above[PRL_GUID_TEXT];
    char *text = NULL;
    prl_guid_text(guid, own);
    prl_guid_text(parent, above);
    return asprintf(&text,
                    "\n        <Shot>\n"
                    "            <GUID>%s</GUID>\n"
                    "            <ParentGUID>%s</ParentGUID>\n"
                    "        %s</Shot>",
                    own, above, more ? more : "") >= 0
               ? text
               : NULL;
}

char *prl_xml_shot_name(const char *name, int64_t date)
{
    RHEA_AUTO_FREE char *escaped = prl_xml_escape(name);
    char *text = NULL;
    char when[32] = "";
    time_t seconds = (time_t)date;
    struct tm tm;
    if (gmtime_r(&seconds, &tm))
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
    return escaped && asprintf(&text,
                               "    <Name>%s</Name>\n"
                               "            <DateTime>%s</DateTime>\n"
                               "        ",
                               escaped, when) >= 0
               ? text
               : NULL;
}

/* --- A new one --- */

static void new_parameters(FILE *out, const struct prl_new *what,
                           const uint8_t *uid, const char *name)
{
    char braced[PRL_GUID_TEXT];
    prl_guid_text(uid, braced);
    fprintf(out,
            "    <Disk_Parameters>\n"
            "        <Disk_size>%" PRIu64 "</Disk_size>\n"
            "        <Cylinders>%" PRIu64 "</Cylinders>\n"
            "        <PhysicalSectorSize>4096</PhysicalSectorSize>\n"
            "        <LogicSectorSize>512</LogicSectorSize>\n"
            "        <Heads>16</Heads>\n"
            "        <Sectors>32</Sectors>\n"
            "        <Padding>0</Padding>\n"
            "        <Encryption>\n"
            "            <Engine>{00000000-0000-0000-0000-000000000000}"
            "</Engine>\n"
            "            <Data></Data>\n"
            "            <Salt></Salt>\n"
            "        </Encryption>\n"
            "        <UID>%s</UID>\n"
            "        <Name>%s</Name>\n"
            "        <Miscellaneous>\n"
            "            <CompatLevel>level2</CompatLevel>\n"
            "            <Bootable>1</Bootable>\n"
            "            <ChangeState>0</ChangeState>\n"
            "            <SuspendState>0</SuspendState>\n"
            "        </Miscellaneous>\n"
            "    </Disk_Parameters>\n",
            what->size, what->size / (16 * 32), braced, name);
}

static int new_storages(FILE *out, const struct prl_new *what,
                        const uint8_t *top)
{
    uint64_t n = 0;
    fputs("    <StorageData>", out);
    for (uint64_t at = 0; at < what->size; at += what->part, n++) {
        RHEA_AUTO_FREE char *file = what->file(what->opaque, n);
        RHEA_AUTO_FREE char *image =
            file ? prl_xml_image(top, what->plain, file) : NULL;
        if (!image)
            return -ENOMEM;
        fprintf(out,
                "\n        <Storage>\n"
                "            <Start>%" PRIu64 "</Start>\n"
                "            <End>%" PRIu64 "</End>\n"
                "            <Blocksize>%" PRIu64 "</Blocksize>%s\n"
                "        </Storage>",
                at, at + RHEA_MIN(what->part, what->size - at), what->block,
                image);
    }
    fputs("\n    </StorageData>\n", out);
    return 0;
}

int prl_write_new(const struct prl_new *what, char **text, size_t *len,
                  struct rhea_error *err)
{
    static const uint8_t none[UUID_BYTES];
    uint8_t uid[UUID_BYTES], top[UUID_BYTES];
    RHEA_AUTO_FREE char *name = prl_xml_escape(what->name);
    int ret = uuid_new(uid, err);
    if (ret)
        return ret;
    uuid_parse(PRL_TOP, top);
    RHEA_AUTO_FREE char *shot = prl_xml_shot(top, none, NULL);
    *text = NULL;
    FILE *out = open_memstream(text, len);
    if (!name || !shot || !out) {
        if (out)
            fclose(out);
        free(*text);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    fputs("<?xml version='1.0' encoding='UTF-8'?>\n"
          "<Parallels_disk_image Version=\"1.0\">\n",
          out);
    new_parameters(out, what, uid, name);
    ret = new_storages(out, what, top);
    fprintf(out,
            "    <Snapshots>%s\n"
            "    </Snapshots>\n"
            "</Parallels_disk_image>\n",
            shot);
    if (fclose(out) || ret) {
        free(*text);
        return rhea_error_set(err, ENOMEM, "out of memory");
    }
    return 0;
}
