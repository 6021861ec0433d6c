/* SPDX-License-Identifier: MIT */
#include "gdb/description.h"

#include <errno.h>
#include <expat.h>

#include "base/cleanup.h"

struct found {
    char name[24];
    unsigned size;
};

struct loader {
    struct description *d;
    int (*fetch)(void *opaque, const char *annex, char **text, size_t *len,
                 struct rhea_error *err);
    void *opaque;
    struct rhea_error *err;
    int ret; /* the first failure */
    unsigned files, next;
    bool in_architecture;
    /* Registers come in any order; their offsets follow their numbers. */
    struct found registers[EXPERIMENT_MAX_REGISTERS];
};

static int load_file(struct loader *l, const char *annex);

static const char *attribute(const XML_Char **attributes, const char *name)
{
    for (; attributes[0]; attributes += 2)
        if (!strcmp(attributes[0], name))
            return attributes[1];
    return NULL;
}

static unsigned number_of(const char *text, unsigned otherwise)
{
    return text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

static int add_register(struct loader *l, const XML_Char **attributes)
{
    const char *name = attribute(attributes, "name");
    unsigned n = number_of(attribute(attributes, "regnum"), l->next);
    unsigned bits = number_of(attribute(attributes, "bitsize"), 0);

    if (!name || n >= EXPERIMENT_MAX_REGISTERS || bits == 0 || bits % 8 ||
        bits / 8 > EXPERIMENT_MAX_REGISTER || l->registers[n].size)
        return rhea_error_set(l->err, EPROTO,
                              "the target description has a register %s "
                              "(number %u, %u bits) that cannot be handled",
                              name ? name : "without a name", n, bits);
    snprintf(l->registers[n].name, sizeof(l->registers[n].name), "%s", name);
    l->registers[n].size = bits / 8;
    l->next = n + 1;
    return 0;
}

static void XMLCALL start_element(void *opaque, const XML_Char *name,
                                  const XML_Char **attributes)
{
    struct loader *l = opaque;
    const char *href;

    if (l->ret < 0)
        return;
    l->in_architecture = !strcmp(name, "architecture");
    if (!strcmp(name, "reg")) {
        l->ret = add_register(l, attributes);
    } else if (!strcmp(name, "xi:include")) {
        href = attribute(attributes, "href");
        l->ret = href ? load_file(l, href) : 0;
    }
}

static void XMLCALL end_element(void *opaque, const XML_Char *name)
{
    struct loader *l = opaque;

    (void)name;
    l->in_architecture = false;
}

static void XMLCALL text(void *opaque, const XML_Char *s, int len)
{
    struct loader *l = opaque;
    size_t used = strlen(l->d->architecture);

    if (l->in_architecture)
        snprintf(l->d->architecture + used, sizeof(l->d->architecture) - used,
                 "%.*s", len, s);
}

/* --- in one piece -------------------------------------------------------- */

static const char *behind(const char *p, const char *text)
{
    const char *found = p ? strstr(p, text) : NULL;

    return found ? found + strlen(text) : NULL;
}

static int write_file(struct loader *l, const char *annex, bool inner,
                      FILE *out);

/* `<xi:include href="NAME"/>` at P; what stands behind it. */
static const char *write_include(struct loader *l, const char *p, FILE *out)
{
    const char *end = behind(p, ">"), *href = behind(p, "href=\"");
    char name[128];
    size_t len = href ? strcspn(href, "\"") : sizeof(name);

    if (!end || !href || href > end || len >= sizeof(name))
        return NULL;
    memcpy(name, href, len);
    name[len] = 0;
    return write_file(l, name, true, out) < 0 ? NULL : end;
}

/* A file with those that it includes in their place. INNER: without what stands
 * at the top of a file. */
static int write_file(struct loader *l, const char *annex, bool inner,
                      FILE *out)
{
    RHEA_AUTO_FREE char *bytes = NULL;
    const char *p, *include;
    size_t len;
    int ret;

    if (++l->files > 2 * DESCRIPTION_MAX_FILES)
        return -EPROTO;
    ret = l->fetch(l->opaque, annex, &bytes, &len, NULL);
    if (ret < 0)
        return ret;
    p = bytes;
    if (inner && (include = behind(p, "?>")))
        p = include;
    if (inner && (include = behind(behind(p, "<!DOCTYPE"), ">")))
        p = include;
    while ((include = strstr(p, "<xi:include"))) {
        fwrite(p, 1, (size_t)(include - p), out);
        p = write_include(l, include, out);
        if (!p)
            return -EPROTO;
    }
    fputs(p, out);
    return 0;
}

static int write_all(struct loader *l)
{
    size_t len;
    FILE *out = open_memstream(&l->d->text, &len);
    int ret;

    if (!out)
        return rhea_error_errno(l->err, errno, "cannot keep a description");
    ret = write_file(l, "target.xml", false, out);
    if (fclose(out) != 0 || ret < 0)
        return rhea_error_set(l->err, EPROTO,
                              "the target description includes what cannot be "
                              "read");
    return 0;
}

void description_finish(struct description *d)
{
    free(d->text);
    *d = (struct description){0};
}

/* --- parsing ------------------------------------------------------------- */

static int load_file(struct loader *l, const char *annex)
{
    RHEA_AUTO_FREE char *bytes = NULL;
    XML_Parser parser;
    size_t len;
    int ret;

    if (++l->files > DESCRIPTION_MAX_FILES)
        return rhea_error_set(l->err, EPROTO,
                              "the target description includes too many files");
    ret = l->fetch(l->opaque, annex, &bytes, &len, l->err);
    if (ret < 0)
        return ret;
    parser = XML_ParserCreate(NULL);
    if (!parser)
        return rhea_error_errno(l->err, ENOMEM, "cannot read %s", annex);
    XML_SetUserData(parser, l);
    XML_SetElementHandler(parser, start_element, end_element);
    XML_SetCharacterDataHandler(parser, text);
    if (XML_Parse(parser, bytes, (int)len, 1) == XML_STATUS_ERROR &&
        l->ret == 0)
        l->ret = rhea_error_set(l->err, EPROTO,
                                "the target description's %s: line %lu: %s",
                                annex, XML_GetCurrentLineNumber(parser),
                                XML_ErrorString(XML_GetErrorCode(parser)));
    XML_ParserFree(parser);
    return l->ret;
}

static int lay_out(struct loader *l)
{
    unsigned offset = 0;
    int ret = 0;

    for (unsigned n = 0; n < EXPERIMENT_MAX_REGISTERS && ret == 0; n++) {
        const struct found *r = &l->registers[n];

        if (!r->size)
            continue;
        ret = layout_add(&l->d->layout, n, r->name, offset, r->size, l->err);
        offset += r->size;
    }
    if (ret == 0 && l->d->layout.pc < 0)
        ret = rhea_error_set(l->err, EPROTO,
                             "the target description has no program counter");
    return ret;
}

int description_load(struct description *d,
                     int (*fetch)(void *opaque, const char *annex, char **text,
                                  size_t *len, struct rhea_error *err),
                     void *opaque, struct rhea_error *err)
{
    struct rhea_error scratch;
    struct loader *l = calloc(1, sizeof(*l));
    int ret;

    if (!l)
        return rhea_error_errno(err, ENOMEM, "cannot read a description");
    *d = (struct description){.layout = {.pc = -1}};
    l->d = d;
    l->fetch = fetch;
    l->opaque = opaque;
    l->err = err ? err : &scratch;
    ret = load_file(l, "target.xml");
    if (ret == 0)
        ret = lay_out(l);
    if (ret == 0)
        ret = write_all(l);
    free(l);
    if (ret < 0)
        description_finish(d);
    return ret;
}
