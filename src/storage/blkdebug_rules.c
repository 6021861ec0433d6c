/* SPDX-License-Identifier: MIT */
/* The rules of a blkdebug storage, from options or a file. */
#include "storage/blkdebug_rules.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

enum { RULES_MAX = STORAGE_OPTIONS_MAX, RULES_LINE_MAX = 1024 };

static const char *const event_names[] = {
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
};

const char *blkdebug_event_find(const char *name)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(event_names); i++)
        if (strcmp(event_names[i], name) == 0)
            return event_names[i];
    return NULL;
}

static unsigned rules_io(const char *name)
{
    static const char *const names[] = {"read",    "write", "write-zeroes",
                                        "discard", "flush", "block-status"};
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(names); i++)
        if (strcmp(names[i], name) == 0)
            return 1U << i;
    return 0;
}

int blkdebug_rules_add(struct blkdebug_rules *rules,
                       const struct blkdebug_rule *rule, struct rhea_error *err)
{
    struct blkdebug_rule *more = NULL;
    if (rules->n < RULES_MAX)
        more = realloc(rules->items, (rules->n + 1) * sizeof(*more));
    if (!more) {
        free(rule->tag);
        return rhea_error_set(err, ENOMEM, "no memory for more rules");
    }
    rules->items = more;
    rules->items[rules->n++] = *rule;
    return 0;
}

void blkdebug_rules_remove(struct blkdebug_rules *rules, size_t index)
{
    free(rules->items[index].tag);
    rules->n--;
    memmove(rules->items + index, rules->items + index + 1,
            (rules->n - index) * sizeof(*rules->items));
}

void blkdebug_rules_finish(struct blkdebug_rules *rules)
{
    while (rules->n)
        blkdebug_rules_remove(rules, rules->n - 1);
    free(rules->items);
    *rules = (struct blkdebug_rules){.n = 0};
}

static int rules_take_inject(struct blkdebug_rule *rule,
                             const struct storage_options *o,
                             struct rhea_error *err)
{
    uint64_t number = EIO, sector = UINT64_MAX;
    bool immediately;
    int ret = storage_options_size(o, "errno", &number, err);
    if (!ret && number > 4095)
        ret = rhea_error_set(err, EINVAL, "errno is at most 4095");
    if (!ret)
        ret = storage_options_size(o, "sector", &sector, err);
    if (!ret && sector != UINT64_MAX && sector > INT64_MAX / 512)
        ret = rhea_error_set(err, EINVAL, "there is no such sector");
    if (!ret)
        ret = storage_options_bool(o, "once", &rule->once, err);
    /* Whether the request fails before or after others were let run first:
     * requests are threads here, so nobody can tell. */
    if (!ret)
        ret = storage_options_bool(o, "immediately", &immediately, err);
    if (ret)
        return ret;
    const char *io = storage_options_get(o, "iotype");
    rule->error = (int)number;
    rule->offset = sector == UINT64_MAX ? UINT64_MAX : sector * 512;
    rule->io = io ? rules_io(io)
                  : BLKDEBUG_READ | BLKDEBUG_WRITE | BLKDEBUG_WRITE_ZEROES |
                        BLKDEBUG_DISCARD | BLKDEBUG_FLUSH;
    if (!rule->io)
        return rhea_error_set(err, EINVAL, "there is no iotype '%s'", io);
    return 0;
}

/* What O says, which are the options of one rule of KIND. */
static int rules_take_one(struct blkdebug_rules *rules, const char *kind,
                          const struct storage_options *o,
                          struct rhea_error *err)
{
    struct blkdebug_rule rule = {.action = BLKDEBUG_INJECT};
    const char *event = storage_options_get(o, "event");
    if (!event)
        return rhea_error_set(err, EINVAL, "%s: which event?", kind);
    rule.event = blkdebug_event_find(event);
    if (!rule.event)
        return rhea_error_set(err, EINVAL, "%s: there is no event '%s'", kind,
                              event);
    int ret = storage_options_size(o, "state", &rule.state, err);
    if (!ret && strcmp(kind, "set-state") == 0) {
        rule.action = BLKDEBUG_SET_STATE;
        ret = storage_options_size(o, "new_state", &rule.new_state, err);
    } else if (!ret) {
        ret = rules_take_inject(&rule, o, err);
    }
    const char *unused = storage_options_unused(o);
    if (!ret && unused)
        ret = rhea_error_set(err, EINVAL, "there is no option '%s'", unused);
    if (ret)
        return rhea_error_prefix(err, "%s", kind);
    return blkdebug_rules_add(rules, &rule, err);
}

static int rules_take_kind(struct blkdebug_rules *rules, const char *kind,
                           const struct storage_options *options,
                           struct rhea_error *err)
{
    for (unsigned i = 0; i < RULES_MAX; i++) {
        struct storage_options one = {.n = 0};
        char prefix[32];
        snprintf(prefix, sizeof(prefix), "%s.%u.", kind, i);
        if (!storage_options_has_prefix(options, prefix))
            return 0;
        int ret = storage_options_extract(options, prefix, &one, err);
        if (!ret)
            ret = rules_take_one(rules, kind, &one, err);
        storage_options_finish(&one);
        if (ret)
            return ret;
    }
    return 0;
}

int blkdebug_rules_take(struct blkdebug_rules *rules,
                        const struct storage_options *options,
                        struct rhea_error *err)
{
    int ret = rules_take_kind(rules, "inject-error", options, err);
    return ret ? ret : rules_take_kind(rules, "set-state", options, err);
}

/* Without what is blank at both ends. */
static char *rules_trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    size_t len = strlen(text);
    while (len && isspace((unsigned char)text[len - 1]))
        text[--len] = '\0';
    return text;
}

/* One file while it is read. */
struct rules_file {
    struct blkdebug_rules *rules;
    char kind[32];                  /* "": before the first section */
    struct storage_options options; /* of the section so far */
};

static int rules_end_section(struct rules_file *f, struct rhea_error *err)
{
    int ret = 0;
    if (*f->kind)
        ret = rules_take_one(f->rules, f->kind, &f->options, err);
    storage_options_finish(&f->options);
    return ret;
}

/* "[KIND]" or "[KIND "NAME"]" */
static int rules_section(struct rules_file *f, const char *line,
                         struct rhea_error *err)
{
    size_t len = strcspn(line + 1, " ]");
    int ret = rules_end_section(f, err);
    if (ret)
        return ret;
    snprintf(f->kind, sizeof(f->kind), "%.*s", (int)RHEA_MIN(len, 31),
             line + 1);
    if (line[strlen(line) - 1] == ']' &&
        (strcmp(f->kind, "inject-error") == 0 ||
         strcmp(f->kind, "set-state") == 0))
        return 0;
    return rhea_error_set(
        err, EINVAL, "'%s' is neither [inject-error] nor [set-state]", line);
}

static int rules_line(struct rules_file *f, char *line, struct rhea_error *err)
{
    char *equals = strchr(line, '=');
    if (!*line || *line == '#')
        return 0;
    if (*line == '[')
        return rules_section(f, line, err);
    if (!equals || !*f->kind)
        return rhea_error_set(
            err, EINVAL, "'%s' is no option of a section: NAME = \"VALUE\"",
            line);
    *equals = '\0';
    char *value = rules_trim(equals + 1);
    size_t len = strlen(value);
    if (len >= 2 && *value == '"' && value[len - 1] == '"') {
        value[len - 1] = '\0';
        value++;
    }
    return storage_options_set(&f->options, rules_trim(line), value,
                               STORAGE_OPTION_STRING, err);
}

int blkdebug_rules_read(struct blkdebug_rules *rules, const char *filename,
                        struct rhea_error *err)
{
    struct rules_file f = {.rules = rules};
    char line[RULES_LINE_MAX];
    FILE *in = fopen(filename, "r");
    unsigned number = 0;
    int ret = 0;
    if (!in)
        return rhea_error_errno(err, errno, "cannot read '%s'", filename);
    while (!ret && fgets(line, sizeof(line), in)) {
        number++;
        ret = rules_line(&f, rules_trim(line), err);
        if (!ret && number > RULES_MAX * 16)
            ret = rhea_error_set(err, E2BIG, "there are too many lines");
    }
    if (!ret && ferror(in))
        ret = rhea_error_set(err, EIO, "it cannot be read");
    if (!ret)
        ret = rules_end_section(&f, err);
    storage_options_finish(&f.options);
    fclose(in);
    return ret ? rhea_error_prefix(err, "%s, line %u", filename, number) : 0;
}
