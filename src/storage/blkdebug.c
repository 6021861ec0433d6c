/* SPDX-License-Identifier: MIT */
/* See blkdebug.h. */
#include "storage/blkdebug.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "storage/blkdebug_internal.h"

static const struct rhea_storage_ops blkdebug_ops;

/* Under the lock. The rules of the event that is NAME; *STOP is the tag of a
 * breakpoint, which is thereby gone. */
static void event_rules(struct blkdebug *b, const char *name, char **stop)
{
    uint64_t state = b->state;
    bool armed = false;
    for (size_t i = 0; i < b->rules.n;) {
        struct blkdebug_rule *r = &b->rules.items[i++];
        if (strcmp(r->event, name) != 0 || (r->state && r->state != b->state))
            continue;
        if (r->action == BLKDEBUG_SET_STATE) {
            state = r->new_state;
        } else if (r->action == BLKDEBUG_BREAK && !*stop) {
            *stop = rhea_steal(r->tag);
            blkdebug_rules_remove(&b->rules, --i);
        } else if (r->action == BLKDEBUG_INJECT) {
            /* Those that another event has armed are so no more. */
            for (size_t j = 0; !armed && j < b->rules.n; j++)
                b->rules.items[j].armed = false;
            r->armed = armed = true;
        }
    }
    b->state = state;
}

void blkdebug_event(struct rhea_storage *s, const char *name)
{
    struct blkdebug *b = (struct blkdebug *)s;
    struct blkdebug_stop stop = {.tag = NULL};
    RHEA_LOCKED(&b->lock);
    event_rules(b, name, &stop.tag);
    if (!stop.tag)
        return;
    stop.next = b->stops;
    b->stops = &stop;
    pthread_cond_broadcast(&b->changed);
    while (!stop.go)
        pthread_cond_wait(&b->changed, &b->lock);
    struct blkdebug_stop **at = &b->stops;
    while (*at != &stop)
        at = &(*at)->next;
    *at = stop.next;
    free(stop.tag);
}

int blkdebug_check(struct blkdebug *b, unsigned io, uint64_t offset,
                   uint64_t len, struct rhea_error *err)
{
    RHEA_LOCKED(&b->lock);
    for (size_t i = 0; i < b->rules.n; i++) {
        struct blkdebug_rule *r = &b->rules.items[i];
        if (r->action != BLKDEBUG_INJECT || !r->armed || !(r->io & io))
            continue;
        if (r->offset != UINT64_MAX &&
            (r->offset < offset || r->offset - offset >= len))
            continue;
        int error = r->error;
        if (!error)
            return 0;
        if (r->once)
            blkdebug_rules_remove(&b->rules, i);
        return rhea_error_errno(err, error, "blkdebug on '%s'",
                                storage_name(b->w.inner));
    }
    return 0;
}

struct rhea_storage *blkdebug_find(struct rhea_storage *s)
{
    while (s && s->ops != &blkdebug_ops)
        s = s->ops->inner ? s->ops->inner(s) : NULL;
    return s;
}

int blkdebug_break(struct rhea_storage *s, const char *event, const char *tag)
{
    struct blkdebug *b = (struct blkdebug *)s;
    struct blkdebug_rule rule = {.action = BLKDEBUG_BREAK,
                                 .event = blkdebug_event_find(event)};
    if (!rule.event)
        return -ENOENT;
    rule.tag = strdup(tag);
    if (!rule.tag)
        return -ENOMEM;
    RHEA_LOCKED(&b->lock);
    return blkdebug_rules_add(&b->rules, &rule, NULL);
}

/* Under the lock. TAG NULL: all. */
static bool stops_go(struct blkdebug *b, const char *tag, bool all)
{
    bool found = false;
    for (struct blkdebug_stop *stop = b->stops; stop; stop = stop->next) {
        if (stop->go || (tag && strcmp(stop->tag, tag) != 0))
            continue;
        stop->go = true;
        found = true;
        if (!all)
            break;
    }
    pthread_cond_broadcast(&b->changed);
    return found;
}

static bool breaks_remove(struct blkdebug *b, const char *tag)
{
    bool found = false;
    for (size_t i = b->rules.n; i-- > 0;) {
        struct blkdebug_rule *r = &b->rules.items[i];
        if (r->action != BLKDEBUG_BREAK || (tag && strcmp(r->tag, tag) != 0))
            continue;
        blkdebug_rules_remove(&b->rules, i);
        found = true;
    }
    return found;
}

int blkdebug_remove_break(struct rhea_storage *s, const char *tag)
{
    struct blkdebug *b = (struct blkdebug *)s;
    RHEA_LOCKED(&b->lock);
    bool removed = breaks_remove(b, tag), gone = stops_go(b, tag, true);
    return removed || gone ? 0 : -ENOENT;
}

int blkdebug_resume(struct rhea_storage *s, const char *tag)
{
    struct blkdebug *b = (struct blkdebug *)s;
    RHEA_LOCKED(&b->lock);
    return stops_go(b, tag, false) ? 0 : -ENOENT;
}

void blkdebug_resume_all(struct rhea_storage *s)
{
    struct blkdebug *b = (struct blkdebug *)s;
    RHEA_LOCKED(&b->lock);
    (void)breaks_remove(b, NULL);
    (void)stops_go(b, NULL, true);
}

bool blkdebug_stopped(struct rhea_storage *s, const char *tag)
{
    struct blkdebug *b = (struct blkdebug *)s;
    RHEA_LOCKED(&b->lock);
    for (struct blkdebug_stop *stop = b->stops; stop; stop = stop->next)
        if (!stop->go && strcmp(stop->tag, tag) == 0)
            return true;
    return false;
}

char *blkdebug_news(struct rhea_storage *s)
{
    struct blkdebug *b = (struct blkdebug *)s;
    RHEA_LOCKED(&b->lock);
    for (struct blkdebug_stop *stop = b->stops; stop; stop = stop->next) {
        if (stop->told)
            continue;
        stop->told = true;
        return strdup(stop->tag);
    }
    return NULL;
}

static int64_t blkdebug_pread(struct rhea_storage *s, void *buf, size_t len,
                              uint64_t offset, struct rhea_error *err)
{
    struct blkdebug *b = (struct blkdebug *)s;
    uint64_t unit = RHEA_MAX(b->align, 1);
    uint64_t step = b->max_transfer ? b->max_transfer : len;
    int64_t total = 0;
    while (len) {
        size_t n = (size_t)RHEA_MIN(len, step);
        uint64_t start = align_down(offset, unit);
        int ret = blkdebug_check(b, BLKDEBUG_READ, start,
                                 align_up(offset + n, unit) - start, err);
        if (ret)
            return ret;
        int64_t got = b->w.inner->ops->pread(b->w.inner, buf, n, offset, err);
        if (got < 0)
            return got;
        total += got;
        if ((size_t)got < n)
            break;
        buf = (uint8_t *)buf + n;
        offset += n;
        len -= n;
    }
    return total;
}

static int blkdebug_flush(struct rhea_storage *s, struct rhea_error *err)
{
    struct blkdebug *b = (struct blkdebug *)s;
    blkdebug_event(s, "flush_to_disk");
    int ret = blkdebug_check(b, BLKDEBUG_FLUSH, 0, 0, err);
    return ret ? ret : rhea_storage_flush(b->w.inner, err);
}

static int blkdebug_truncate(struct rhea_storage *s, uint64_t size,
                             struct rhea_error *err)
{
    return rhea_storage_truncate(storage_wrapper_inner(s), size, err);
}

static int blkdebug_allocate(struct rhea_storage *s, uint64_t offset,
                             uint64_t len, struct rhea_error *err)
{
    int ret = blkdebug_check((struct blkdebug *)s, BLKDEBUG_WRITE_ZEROES,
                             offset, len, err);
    if (ret)
        return ret;
    return rhea_storage_allocate(storage_wrapper_inner(s), offset, len, err);
}

static int blkdebug_extent(struct rhea_storage *s, uint64_t offset,
                           uint64_t len, bool *hole, uint64_t *run,
                           struct rhea_error *err)
{
    int ret = blkdebug_check((struct blkdebug *)s, BLKDEBUG_BLOCK_STATUS,
                             offset, len, err);
    return ret ? ret : storage_wrapper_extent(s, offset, len, hole, run, err);
}

static int blkdebug_lock(struct rhea_storage *s, unsigned perm, unsigned shared,
                         struct rhea_error *err)
{
    const struct blkdebug *b = (const struct blkdebug *)s;
    return storage_wrapper_lock(s, perm | b->take, shared & ~b->unshare, err);
}

static void blkdebug_close(struct rhea_storage *s)
{
    struct blkdebug *b = (struct blkdebug *)s;
    blkdebug_rules_finish(&b->rules);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->changed);
    storage_unwrap(&b->w);
}

static const struct rhea_storage_ops blkdebug_ops = {
    .name = "blkdebug",
    .pread = blkdebug_pread,
    .pwrite = blkdebug_pwrite,
    .flush = blkdebug_flush,
    .size = storage_wrapper_size,
    .truncate = blkdebug_truncate,
    .zero = blkdebug_zero,
    .discard = blkdebug_discard,
    .allocate = blkdebug_allocate,
    .extent = blkdebug_extent,
    .lock = blkdebug_lock,
    .event = blkdebug_event,
    .inner = storage_wrapper_inner,
    .close = blkdebug_close,
};

static int driver_parse(const char *name, struct storage_options *options,
                        struct rhea_error *err)
{
    const char *config = name + storage_name_protocol(name);
    const char *colon = strchr(config, ':');
    /* A name without "blkdebug:" is the child's. */
    if (storage_driver_of_name(name) != &storage_driver_blkdebug)
        return storage_options_set(options, "x-image", name,
                                   STORAGE_OPTION_STRING, err);
    if (!colon)
        return rhea_error_set(
            err, EINVAL, "'%s' is not of the form blkdebug:CONFIG:FILE", name);
    int ret = 0;
    if (colon > config) {
        RHEA_AUTO_FREE char *path = strndup(config, (size_t)(colon - config));
        if (!path)
            return rhea_error_set(err, ENOMEM, "out of memory");
        ret = storage_options_set(options, "config", path,
                                  STORAGE_OPTION_STRING, err);
    }
    if (!ret)
        ret = storage_options_set(options, "x-image", colon + 1,
                                  STORAGE_OPTION_STRING, err);
    return ret;
}

/* A size that is 0 or a multiple of UNIT; ANY: of no power of 2, too. */
static int driver_limit(const struct storage_options *o, const char *name,
                        uint64_t unit, bool any, uint64_t *value,
                        struct rhea_error *err)
{
    int ret = storage_options_size(o, name, value, err);
    if (ret || !*value)
        return ret;
    if (*value < INT32_MAX && *value % unit == 0 &&
        (any || is_power_of_2(*value)))
        return 0;
    return rhea_error_set(err, EINVAL, "option %s cannot be %ju", name,
                          (uintmax_t)*value);
}

static int driver_limits(struct blkdebug *b, const struct storage_options *o,
                         struct rhea_error *err)
{
    int ret = driver_limit(o, "align", 1, false, &b->align, err);
    uint64_t unit = RHEA_MAX(b->align, 1);
    if (!ret)
        ret =
            driver_limit(o, "max-transfer", unit, true, &b->max_transfer, err);
    if (!ret)
        ret = driver_limit(o, "opt-write-zero", unit, true, &b->opt_write_zero,
                           err);
    if (!ret)
        ret =
            driver_limit(o, "max-write-zero", RHEA_MAX(unit, b->opt_write_zero),
                         true, &b->max_write_zero, err);
    if (!ret)
        ret = driver_limit(o, "opt-discard", unit, true, &b->opt_discard, err);
    if (!ret)
        ret = driver_limit(o, "max-discard", RHEA_MAX(unit, b->opt_discard),
                           true, &b->max_discard, err);
    return ret;
}

static int driver_permissions(const struct storage_options *o, const char *list,
                              unsigned *bits, struct rhea_error *err)
{
    static const struct {
        const char *name;
        unsigned bit;
    } known[] = {{"consistent-read", RHEA_LOCK_READ},
                 {"write", RHEA_LOCK_WRITE},
                 {"write-unchanged", RHEA_LOCK_UNCHANGED},
                 {"resize", RHEA_LOCK_RESIZE}};
    for (unsigned i = 0; i < 16; i++) {
        char name[64];
        size_t j = 0;
        snprintf(name, sizeof(name), "%s.%u", list, i);
        const char *value = storage_options_get(o, name);
        if (!value)
            return 0;
        while (j < RHEA_ARRAY_SIZE(known) && strcmp(known[j].name, value) != 0)
            j++;
        if (j == RHEA_ARRAY_SIZE(known))
            return rhea_error_set(err, EINVAL, "there is no permission '%s'",
                                  value);
        *bits |= known[j].bit;
    }
    return 0;
}

static int driver_configure(struct blkdebug *b, const struct storage_options *o,
                            struct rhea_error *err)
{
    const char *config = storage_options_get(o, "config");
    int ret = config ? blkdebug_rules_read(&b->rules, config, err) : 0;
    if (!ret)
        ret = blkdebug_rules_take(&b->rules, o, err);
    if (!ret)
        ret = driver_limits(b, o, err);
    if (!ret)
        ret = driver_permissions(o, "take-child-perms", &b->take, err);
    if (!ret)
        ret = driver_permissions(o, "unshare-child-perms", &b->unshare, err);
    return ret;
}

static int driver_open(struct rhea_storage **out,
                       const struct storage_open *how, struct rhea_error *err)
{
    const char *name = storage_options_get(how->options, "x-image");
    struct rhea_storage *image = NULL;
    struct blkdebug *b = calloc(1, sizeof(*b));
    if (!b)
        return rhea_error_set(err, ENOMEM, "out of memory");
    b->state = 1;
    int ret = driver_configure(b, how->options, err);
    if (!ret)
        ret = how->open_child(how->opaque, "image", name, &image, err);
    if (!ret)
        ret = storage_wrap(&b->w, &blkdebug_ops, image, err);
    if (ret) {
        rhea_storage_close(image);
        blkdebug_rules_finish(&b->rules);
        free(b);
        return ret;
    }
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    blkdebug_event(&b->w.head, "none");
    *out = &b->w.head;
    return 0;
}

static char *driver_plain_name(const struct storage_options *options,
                               const char *child)
{
    const char *config = storage_options_peek(options, "config");
    char *name = NULL;
    if (!child || storage_options_has_prefix(options, "inject-error.") ||
        storage_options_has_prefix(options, "set-state."))
        return NULL;
    if (asprintf(&name, "blkdebug:%s:%s", config ? config : "", child) < 0)
        return NULL;
    return name;
}

const struct storage_driver storage_driver_blkdebug = {
    .name = "blkdebug",
    .protocols = (const char *const[]){"blkdebug", NULL},
    .parse = driver_parse,
    .open = driver_open,
    .plain_name = driver_plain_name,
    .strong_options =
        (const char *const[]){"config", "inject-error.", "set-state.", NULL},
    .is_filter = true,
};
