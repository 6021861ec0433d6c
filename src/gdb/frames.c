/* SPDX-License-Identifier: MIT */
/* Storing frames and finding them again. */
#include "gdb/frames.h"

#include <errno.h>
#include <time.h>

#include "base/checked.h"
#include "base/crc32c.h"
#include "gdb/frames_file.h"

_Static_assert(sizeof(struct frames_control) <= FRAMES_PAGE, "one page");
_Static_assert(FRAMES_OVERHEAD == 48, "nothing is padded");

/* --- the lock ------------------------------------------------------------ */

void frames_lock(struct frames *f)
{
    /* Its owner was killed. Whatever it was about to store is not in [first,
     * next); `used` and `position` move together with these, below. */
    if (!f->private && pthread_mutex_lock(&f->control->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&f->control->lock);
}

void frames_unlock(struct frames *f)
{
    if (!f->private)
        pthread_mutex_unlock(&f->control->lock);
}

static uint64_t now(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* --- storing ------------------------------------------------------------- */

uint32_t frames_check(uint64_t run, uint64_t n, const struct frames_entry *e,
                      const struct frames_head *h, uint32_t payload_check)
{
    const uint64_t fields[] = {
        run,     n,
        e->pc,   e->position,
        h->time, (uint64_t)e->number << 32 | (uint64_t)e->cpu << 16 | e->flags,
        h->size,
    };

    return crc32c(payload_check, fields, sizeof(fields));
}

static uint64_t cost_of(uint64_t payload)
{
    return FRAMES_OVERHEAD + align_up(payload, 8);
}

bool frames_look(const struct frames *f, uint64_t n, struct frames_frame *frame)
{
    const uint8_t *at;
    uint64_t offset;

    frame->entry = f->entries[n % f->n_entries];
    offset = frame->entry.position % f->data_bytes;
    at = f->data + offset;
    if (!is_aligned(offset, 8))
        return false;
    memcpy(&frame->head, at, sizeof(frame->head));
    frame->payload = at + sizeof(frame->head);
    return frame->head.size <= FRAMES_MAX_PAYLOAD &&
           sizeof(frame->head) + frame->head.size <= f->data_bytes;
}

/* VALUE modulo SIZE. *LAP is the multiple of SIZE that was below it the last
 * time and mostly still is; a division would take longer than all else here. */
static uint64_t wrap(uint64_t value, uint64_t size, uint64_t *lap)
{
    if (value - *lap >= size)
        *lap = value - value % size;
    return value - *lap;
}

/* What the oldest frame takes, by where the next one begins: its own bytes have
 * not been looked at for long and would have to come from afar. */
static uint64_t cost_of_first(struct frames *f)
{
    const struct frames_control *c = f->control;
    uint64_t at = wrap(c->first, f->n_entries, &f->lap_first);
    uint64_t next = at + 1 < f->n_entries ? at + 1 : 0;
    uint64_t end =
        c->first + 1 < c->next ? f->entries[next].position : c->position;

    return end - f->entries[at].position + sizeof(struct frames_entry);
}

/* Drop the oldest frame. */
static void drop_first(struct frames *f)
{
    struct frames_control *c = f->control;
    uint64_t cost = RHEA_MIN(cost_of_first(f), c->used);

    __atomic_store_n(&c->used, c->used - cost, __ATOMIC_RELAXED);
    __atomic_store_n(&c->first, c->first + 1, __ATOMIC_RELEASE);
}

/* Whether a frame of COST bytes has room, once old ones have made it. */
static bool make_room(struct frames *f, uint64_t cost)
{
    struct frames_control *c = f->control;

    if (cost > c->limit)
        return false;
    while (c->used + cost > c->limit || c->next - c->first >= f->n_entries) {
        if (!c->circular)
            return false;
        drop_first(f);
    }
    /* What is stored now comes after `first` has moved. */
    __atomic_thread_fence(__ATOMIC_ACQ_REL);
    return true;
}

static void stop_locked(struct frames *f, enum frames_stop stop,
                        unsigned number, const char *reason)
{
    struct frames_control *c = f->control;

    if (!c->running)
        return;
    c->end = now(CLOCK_REALTIME) / 1000;
    c->stop = stop;
    c->stop_point = number;
    snprintf(c->reason, sizeof(c->reason), "%s", reason ? reason : "");
    __atomic_store_n(&c->running, 0, __ATOMIC_RELEASE);
}

void frames_stop(struct frames *f, enum frames_stop stop, unsigned number,
                 const char *reason)
{
    frames_lock(f);
    stop_locked(f, stop, number, reason);
    frames_unlock(f);
}

/* Ask for the memory that the next frame will be stored to, which is like this
 * one, so that it is there by then. */
static void fetch_ahead(const uint8_t *at, size_t len)
{
    enum { LINE = 64, MOST = 1024 };

    for (size_t i = 0; i < RHEA_MIN(len, (size_t)MOST); i += LINE)
        __builtin_prefetch(at + i, 1);
}

static void store(struct frames *f, const struct frames_hit *hit,
                  const void *payload, size_t len, uint32_t payload_check)
{
    struct frames_control *c = f->control;
    struct frames_entry *e =
        &f->entries[wrap(c->next, f->n_entries, &f->lap_next)];
    uint8_t *at = f->data + wrap(c->position, f->data_bytes, &f->lap_data);
    struct frames_point *point = &f->points[hit->slot];
    struct frames_head h = {
        .time = now(CLOCK_MONOTONIC), .frame = c->next, .size = (uint32_t)len};

    *e = (struct frames_entry){.pc = hit->pc,
                               .position = c->position,
                               .number = hit->number,
                               .cpu = hit->cpu,
                               .flags = hit->flags};
    h.check = frames_check(c->run, c->next, e, &h, payload_check);
    memcpy(at, &h, sizeof(h));
    if (len)
        memcpy(at + sizeof(h), payload, len);
    /* Killed between these, the bytes are lost to the buffer until it is
     * cleared, and no more. */
    c->used += cost_of(len);
    c->position += sizeof(h) + align_up(len, 8);
    __atomic_store_n(&c->next, c->next + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&point->usage, point->usage + cost_of(len),
                     __ATOMIC_RELAXED);
    fetch_ahead(at + sizeof(h) + align_up(len, 8), sizeof(h) + len);
}

bool frames_append(struct frames *f, const struct frames_hit *hit,
                   const void *payload, size_t len)
{
    struct frames_control *c = f->control;
    uint32_t check = crc32c(0, payload, len);
    bool stored = false;

    frames_lock(f);
    if (c->running && c->run == hit->run) {
        if (len > FRAMES_MAX_PAYLOAD)
            stop_locked(f, FRAMES_ERROR, hit->number,
                        "a frame would be larger than one can be");
        else if (frames_map_ring(f, NULL) < 0)
            stop_locked(f, FRAMES_ERROR, hit->number,
                        "the trace buffer cannot be mapped");
        else if (!make_room(f, cost_of(len)))
            stop_locked(f, FRAMES_FULL, 0, NULL);
        else
            stored = true;
    }
    if (stored)
        store(f, hit, payload, len, check);
    frames_unlock(f);
    return stored;
}

/* --- by whom it was made ------------------------------------------------- */

static void clear_locked(struct frames *f)
{
    struct frames_control *c = f->control;

    c->running = 0;
    c->first = c->next = c->used = c->position = 0;
    c->end = 0;
    c->stop_point = 0;
    c->reason[0] = 0;
}

void frames_clear(struct frames *f)
{
    frames_lock(f);
    clear_locked(f);
    f->control->stop = FRAMES_NEVER_RUN;
    f->control->start = 0;
    f->n_published = 0;
    frames_unlock(f);
}

void frames_set_circular(struct frames *f, bool circular)
{
    frames_lock(f);
    __atomic_store_n(&f->control->circular, circular, __ATOMIC_RELAXED);
    frames_unlock(f);
}

int frames_start(struct frames *f, const struct experiment *e,
                 struct rhea_error *err)
{
    struct frames_control *c = f->control;
    int ret;

    frames_lock(f);
    clear_locked(f);
    ret = frames_map_ring(f, err);
    if (ret == 0) {
        for (size_t i = 0; i < e->n_points; i++)
            f->points[i] =
                (struct frames_point){.enabled = e->points[i]->enabled};
        for (unsigned i = 0; i < EXPERIMENT_MAX_VARIABLES; i++)
            if (e->variables[i])
                f->variables[i].value = e->variables[i]->initial;
        c->run++;
        c->start = now(CLOCK_REALTIME) / 1000;
        c->start_monotonic = now(CLOCK_MONOTONIC);
        __atomic_store_n(&c->running, 1, __ATOMIC_RELEASE);
    }
    frames_unlock(f);
    return ret;
}

/* --- looking ------------------------------------------------------------- */

uint64_t frames_count(struct frames *f)
{
    uint64_t first = __atomic_load_n(&f->control->first, __ATOMIC_ACQUIRE);

    return __atomic_load_n(&f->control->next, __ATOMIC_ACQUIRE) - first;
}

uint64_t frames_created(struct frames *f)
{
    return __atomic_load_n(&f->control->next, __ATOMIC_ACQUIRE);
}

/* The frames that there are, with the ring mapped. */
static bool look_begin(struct frames *f, uint64_t *first, uint64_t *next)
{
    int ret;

    frames_lock(f);
    ret = f->private ? 0 : frames_map_ring(f, NULL);
    *first = f->control->first;
    *next = f->control->next;
    frames_unlock(f);
    return ret == 0;
}

bool frames_get(struct frames *f, uint64_t n, struct frames_frame *frame)
{
    uint64_t first, next;

    return look_begin(f, &first, &next) && n < next - first &&
           frames_look(f, first + n, frame);
}

static bool found(const struct frames_entry *e, const struct frames_search *s)
{
    switch (s->kind) {
    case FRAMES_BY_PC:
        return e->pc == s->low;
    case FRAMES_BY_NUMBER:
        return e->number == s->low;
    case FRAMES_BY_RANGE:
        return e->pc >= s->low && e->pc <= s->high;
    default:
        return e->pc < s->low || e->pc > s->high;
    }
}

/* The index alone is read, 24 bytes a frame one after the other: a million
 * frames take a few milliseconds. */
int64_t frames_find(struct frames *f, uint64_t n,
                    const struct frames_search *search)
{
    uint64_t first, next;

    if (!look_begin(f, &first, &next) || n >= next - first)
        return -1;
    for (uint64_t at = (first + n) % f->n_entries; n < next - first; n++) {
        if (found(&f->entries[at], search))
            return (int64_t)n;
        if (++at == f->n_entries)
            at = 0;
    }
    return -1;
}
