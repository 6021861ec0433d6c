/* SPDX-License-Identifier: MIT */
#include "gdb/tracer.h"

#include <errno.h>

#include "base/checked.h"

int tracer_init(struct tracer *t, struct machine *machine,
                const struct description *description, const char *path,
                uint64_t limit, struct rhea_error *err)
{
    int ret;

    *t = (struct tracer){
        .machine = machine, .way = &way_stub, .link = {.fd = -1}};
    ret = experiment_create(&t->experiment, err);
    if (ret == 0)
        ret = frames_create(&t->frames, path, limit, err);
    if (ret == 0)
        ret = tracer_describe(t, description, err);
    if (ret == 0)
        ret = hit_init(&t->hit, t->frames, t->experiment, err);
    if (ret < 0)
        tracer_finish(t);
    return ret;
}

int tracer_describe(struct tracer *t, const struct description *d,
                    struct rhea_error *err)
{
    char *text = strdup(d->text);

    if (!text)
        return rhea_error_errno(err, ENOMEM, "cannot keep a description");
    free(t->experiment->description);
    t->experiment->description = text;
    t->experiment->layout = d->layout;
    return frames_publish(t->frames, t->experiment, err);
}

void tracer_finish(struct tracer *t)
{
    link_close(&t->link);
    hit_finish(&t->hit);
    frames_close(t->frames);
    experiment_destroy(t->experiment);
    breaks_finish(&t->breaks);
    *t = (struct tracer){.link = {.fd = -1}};
}

bool tracer_is_running(const struct tracer *t)
{
    return frames_is_running(frames_control(t->frames));
}

/* --- tracepoints in and out ---------------------------------------------- */

static bool is_inserted(const struct tracer *t, const struct tracepoint *p)
{
    return t->inserted[p->slot / 8] >> (p->slot % 8) & 1;
}

/* Data is watched by the stub, whichever way the rest goes. */
static int put_in(struct tracer *t, const struct tracepoint *p,
                  struct rhea_error *err)
{
    const struct watch *w = &p->watch;

    if (w->len)
        return breaks_trace(&t->breaks, w->kind, w->address, w->len, err);
    return t->way->insert(t, p, err);
}

static void pull_out(struct tracer *t, const struct tracepoint *p)
{
    if (p->watch.len)
        breaks_untrace(&t->breaks, p->watch.kind, p->watch.address);
    else
        t->way->remove(t, p);
}

static int insert(struct tracer *t, const struct tracepoint *p,
                  struct rhea_error *err)
{
    int ret = is_inserted(t, p) ? 0 : put_in(t, p, err);

    if (ret == 0)
        t->inserted[p->slot / 8] |= (uint8_t)(1u << (p->slot % 8));
    return ret;
}

static void take_out(struct tracer *t, const struct tracepoint *p)
{
    if (!is_inserted(t, p))
        return;
    pull_out(t, p);
    t->inserted[p->slot / 8] &= (uint8_t) ~(1u << (p->slot % 8));
}

static int load(struct tracer *t, struct rhea_error *err)
{
    int ret = t->way->load ? t->way->load(t, err) : 0;

    t->loaded |= ret == 0;
    return ret;
}

static void unload(struct tracer *t)
{
    if (t->loaded && t->way->unload)
        t->way->unload(t);
    t->loaded = false;
}

static void take_all_out(struct tracer *t)
{
    unload(t);
    for (size_t i = 0; i < t->experiment->n_points; i++)
        take_out(t, t->experiment->points[i]);
    t->active = false;
    t->n_stepping = 0;
}

/* Make the stub have what is wanted; what it refuses ends tracing, or does not
 * let it begin. */
static int sync(struct tracer *t, struct rhea_error *err)
{
    return breaks_sync(&t->breaks, t->machine->stub, NULL, err);
}

void tracer_clear(struct tracer *t)
{
    tracer_stop(t, FRAMES_STOPPED);
    take_all_out(t);
    experiment_clear(t->experiment);
    frames_clear(t->frames);
    (void)frames_publish(t->frames, t->experiment, NULL);
    t->n_counted = 0;
}

int tracer_start(struct tracer *t, struct rhea_error *err)
{
    int ret = frames_publish(t->frames, t->experiment, err);

    for (size_t i = 0; i < t->experiment->n_points && ret == 0; i++)
        if (t->experiment->points[i]->enabled)
            ret = insert(t, t->experiment->points[i], err);
    if (ret == 0)
        ret = sync(t, err);
    if (ret == 0)
        ret = load(t, err);
    if (ret == 0)
        ret = frames_start(t->frames, t->experiment, err);
    if (ret < 0) {
        take_all_out(t);
        (void)sync(t, NULL);
        return ret;
    }
    t->active = true;
    t->n_counted = 0;
    memset(t->returning, 0, sizeof(t->returning));
    return 0;
}

void tracer_stop(struct tracer *t, enum frames_stop reason)
{
    frames_stop(t->frames, reason, 0, NULL);
    tracer_settle(t);
}

void tracer_settle(struct tracer *t)
{
    if (t->active && !tracer_is_running(t))
        take_all_out(t);
}

/* The plugin is not reloaded: QEMU 7.2 stands still for good where it is asked
 * for something while it goes back to where it was (it plays what it recorded).
 */
void tracer_suspend(struct tracer *t, bool suspend)
{
    __atomic_store_n(&frames_control(t->frames)->paused, suspend,
                     __ATOMIC_RELEASE);
    for (size_t i = 0; i < t->experiment->n_points; i++) {
        const struct tracepoint *p = t->experiment->points[i];

        if (!is_inserted(t, p))
            continue;
        if (suspend)
            pull_out(t, p);
        else if (put_in(t, p, NULL) < 0)
            tracer_stop(t, FRAMES_STOPPED); /* want of memory */
    }
}

int tracer_install(struct tracer *t, struct tracepoint *p,
                   struct rhea_error *err)
{
    int ret;

    if (!tracer_is_running(t))
        return 0;
    ret = experiment_has_variables(t->experiment, p, err);
    if (ret == 0)
        ret = frames_publish(t->frames, t->experiment, err);
    if (ret == 0 && p->enabled)
        ret = insert(t, p, err);
    if (ret == 0)
        ret = sync(t, err);
    if (ret == 0)
        ret = load(t, err);
    if (ret < 0) {
        take_out(t, p);
        (void)sync(t, NULL);
    }
    return ret;
}

int tracer_enable(struct tracer *t, struct tracepoint *p, bool on,
                  struct rhea_error *err)
{
    int ret = 0;

    if (on && tracer_is_running(t))
        ret = insert(t, p, err);
    else if (!on)
        take_out(t, p);
    if (ret == 0)
        ret = sync(t, err);
    if (ret < 0) {
        take_out(t, p);
        return ret;
    }
    __atomic_store_n(&frames_point(t->frames, p->slot)->enabled, on,
                     __ATOMIC_RELAXED);
    return 0;
}

/* --- hits ---------------------------------------------------------------- */

static struct counted *find_counted(const struct tracer *t, const char *thread)
{
    for (size_t i = 0; i < t->n_counted; i++)
        if (!strcmp(t->counted[i].thread, thread))
            return (struct counted *)&t->counted[i];
    return NULL;
}

bool tracer_is_counted(const struct tracer *t, const char *thread, uint64_t *pc)
{
    const struct counted *c = find_counted(t, thread);

    if (c)
        *pc = c->pc;
    return c != NULL;
}

void tracer_departed(struct tracer *t, const char *thread)
{
    struct counted *c = thread ? find_counted(t, thread) : NULL;

    if (!thread)
        t->n_counted = 0;
    else if (c)
        *c = t->counted[--t->n_counted];
}

void tracer_stand(struct tracer *t, uint64_t pc)
{
    const char *thread = t->machine->thread;
    struct counted *c = find_counted(t, thread);

    if (!c && t->n_counted < TRACER_MAX_THREADS) {
        c = &t->counted[t->n_counted++];
        snprintf(c->thread, sizeof(c->thread), "%s", thread);
    }
    if (c)
        c->pc = pc;
}

static void note_stepping(struct tracer *t, const struct tracepoint *p)
{
    struct stepping *s = &t->stepping[t->n_stepping];

    if (t->n_stepping == TRACER_MAX_THREADS)
        return;
    *s = (struct stepping){.point = p, .left = p->step_count};
    snprintf(s->thread, sizeof(s->thread), "%s", t->machine->thread);
    t->n_stepping++;
}

void tracer_interrupted(struct tracer *t, const struct machine_place *from)
{
    t->returning[t->next_returning++ % TRACER_MAX_RETURNING] =
        (struct returning){*from, true};
}

bool tracer_returns(struct tracer *t)
{
    struct machine_place at = machine_place(t->machine);

    for (unsigned i = 0; i < TRACER_MAX_RETURNING; i++) {
        struct returning *r = &t->returning[i];

        if (r->valid && machine_same_place(&r->place, &at)) {
            r->valid = false;
            return true;
        }
    }
    return false;
}

void tracer_arrive(struct tracer *t, uint64_t pc)
{
    struct hit_machine m = machine_for_hit(t->machine, pc);
    uint64_t counted;
    bool any = false;

    if (!t->active || !t->way->counts_stops ||
        (tracer_is_counted(t, t->machine->thread, &counted) && counted == pc))
        return;
    for (size_t i = 0; i < t->experiment->n_points; i++) {
        const struct tracepoint *p = t->experiment->points[i];

        if (p->address != pc || p->watch.len || !is_inserted(t, p))
            continue;
        any = true;
        if (hit_run(&t->hit, p, &m) == HIT_STORED && p->step_count)
            note_stepping(t, p);
    }
    if (any)
        tracer_stand(t, pc);
}

bool tracer_touch(struct tracer *t, enum break_type type, uint64_t address,
                  uint64_t pc)
{
    struct hit_machine m = machine_for_hit(t->machine, pc);
    bool any = false;

    for (size_t i = 0; i < t->experiment->n_points && t->active; i++) {
        const struct tracepoint *p = t->experiment->points[i];

        if (!p->watch.len || p->watch.kind != type ||
            p->watch.address != address || !is_inserted(t, p))
            continue;
        any = true;
        if (hit_run(&t->hit, p, &m) == HIT_STORED && p->step_count)
            note_stepping(t, p);
    }
    return any;
}

bool tracer_is_stepping(const struct tracer *t, const char *thread)
{
    for (size_t i = 0; i < t->n_stepping; i++)
        if (!strcmp(t->stepping[i].thread, thread))
            return true;
    return false;
}

void tracer_step(struct tracer *t, uint64_t pc)
{
    struct hit_machine m = machine_for_hit(t->machine, pc);
    size_t kept = 0;

    for (size_t i = 0; i < t->n_stepping; i++) {
        struct stepping s = t->stepping[i];

        if (!strcmp(s.thread, t->machine->thread)) {
            s.left--;
            if (hit_step(&t->hit, s.point, s.left == 0, &m) != HIT_STORED)
                s.left = 0;
        }
        if (s.left)
            t->stepping[kept++] = s;
    }
    t->n_stepping = kept;
}

/* --- ways ---------------------------------------------------------------- */

static int stub_insert(struct tracer *t, const struct tracepoint *p,
                       struct rhea_error *err)
{
    return breaks_trace(&t->breaks, BREAK_SOFTWARE, p->address, 1, err);
}

static void stub_remove(struct tracer *t, const struct tracepoint *p)
{
    breaks_untrace(&t->breaks, BREAK_SOFTWARE, p->address);
}

const struct way way_stub = {
    .name = "stub",
    .text = "breakpoints of QEMU's stub",
    .insert = stub_insert,
    .remove = stub_remove,
    .counts_stops = true,
};

/* The processor's debug registers, which watchpoints use as well. */
enum { HARDWARE_BREAKS = 4 };

static int hardware_insert(struct tracer *t, const struct tracepoint *p,
                           struct rhea_error *err)
{
    struct rhea_error why = {0};

    if (breaks_find(&t->breaks, BREAK_HARDWARE, p->address) ||
        breaks_count_hardware(&t->breaks) < HARDWARE_BREAKS)
        return breaks_trace(&t->breaks, BREAK_HARDWARE, p->address, 1, err);
    if (probe_software(&t->probe, &why) < 0)
        return rhea_error_set(err, ENOSPC,
                              "the processor has %d hardware breakpoints, "
                              "which are all in use; and breakpoints in memory "
                              "do not work here: %s",
                              HARDWARE_BREAKS, why.text);
    return breaks_trace(&t->breaks, BREAK_SOFTWARE, p->address, 1, err);
}

static void hardware_remove(struct tracer *t, const struct tracepoint *p)
{
    const struct breakpoint *b =
        breaks_find(&t->breaks, BREAK_HARDWARE, p->address);

    breaks_untrace(&t->breaks, b && b->traced ? BREAK_HARDWARE : BREAK_SOFTWARE,
                   p->address);
}

const struct way way_hardware = {
    .name = "hardware",
    .text = "hardware breakpoints, past the fourth in memory, under KVM",
    .insert = hardware_insert,
    .remove = hardware_remove,
    .counts_stops = true,
};
