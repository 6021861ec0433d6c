/* SPDX-License-Identifier: MIT */
#include "gdb/recorded.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/tfile.h"

/* --- life ---------------------------------------------------------------- */

static int open_ring(struct recorded *r, const char *path,
                     struct rhea_error *err)
{
    RHEA_AUTO_FREE char *text = NULL;
    struct packet_text status = {0};
    uint64_t generation;
    size_t len;
    int ret = frames_open(&r->frames, path, &r->n_lost, err);

    if (ret == 0)
        ret = frames_text(r->frames, &text, &len, &generation, err);
    if (ret == 0)
        ret = experiment_create(&r->own, err);
    if (ret == 0)
        ret = experiment_load(r->own, text, len, err);
    if (ret < 0)
        return ret;
    r->is_ring = true;
    r->experiment = r->own;
    tfile_put_status(r->frames, r->own, NULL, &status);
    status_parse(&r->status, status.data ? status.data : "", status.len);
    packet_text_finish(&status);
    return 0;
}

static int open_tfile(struct recorded *r, FILE *file, struct rhea_error *err)
{
    const char *status;
    int ret = tfile_open(&r->tfile, file, err);

    if (ret < 0)
        return ret;
    r->experiment = r->tfile.experiment;
    status = r->tfile.status ? r->tfile.status : "";
    status_parse(&r->status, status, strlen(status));
    return 0;
}

static int find_variable(const struct experiment *e, const char *name)
{
    for (int i = 0; i < EXPERIMENT_MAX_VARIABLES; i++)
        if (e->variables[i] && e->variables[i]->builtin &&
            !strcmp(e->variables[i]->name, name))
            return i;
    return -1;
}

/* By what the file begins with. */
static int open_either(struct recorded *r, const char *path,
                       struct rhea_error *err)
{
    char magic[TFILE_MAGIC_BYTES];
    FILE *file = fopen(path, "re");
    size_t n;

    if (!file)
        return rhea_error_errno(err, errno, "cannot open it");
    n = fread(magic, 1, sizeof(magic), file);
    if (n == sizeof(magic) && load_le64(magic) == FRAMES_MAGIC) {
        fclose(file);
        return open_ring(r, path, err);
    }
    if (n != sizeof(magic) || memcmp(magic, TFILE_MAGIC, n) != 0) {
        fclose(file);
        return rhea_error_set(err, EINVAL,
                              "it is neither gdb's trace file nor a file of "
                              "trace frames");
    }
    rewind(file);
    return open_tfile(r, file, err);
}

int recorded_open(struct recorded *r, const char *path, struct rhea_error *err)
{
    int ret;

    *r = (struct recorded){.filter = {0, UINT64_MAX, -1}};
    ret = open_either(r, path, err);
    if (ret < 0) {
        recorded_close(r);
        return ret;
    }
    r->timestamp = find_variable(r->experiment, "trace_timestamp");
    r->cpu = find_variable(r->experiment, "trace_cpu");
    return 0;
}

void recorded_close(struct recorded *r)
{
    tfile_close(&r->tfile);
    frames_close(r->frames);
    experiment_destroy(r->own);
    *r = (struct recorded){0};
}

/* --- frames -------------------------------------------------------------- */

int recorded_rewind(struct recorded *r, struct rhea_error *err)
{
    r->next = 0;
    return r->is_ring ? 0 : tfile_rewind(&r->tfile, err);
}

static const struct tracepoint *find_point(const struct recorded *r,
                                           const struct recorded_frame *f)
{
    const struct experiment *e = r->experiment;
    const struct tracepoint *p =
        experiment_find(e, f->frame.entry.number, f->frame.entry.pc);

    for (size_t i = 0; !p && i < e->n_points; i++)
        if (e->points[i]->number == f->frame.entry.number)
            p = e->points[i];
    return p;
}

/* Time and processor, where they were collected. */
static void look_at_variables(const struct recorded *r,
                              struct recorded_frame *f)
{
    struct payload p = payload_of(&f->frame, recorded_layout(r));
    struct payload_block b;

    while (payload_next(&p, &b)) {
        if (b.kind != 'V')
            continue;
        if ((int)b.number == r->timestamp && !f->has_time && b.value > 0 &&
            b.value < INT64_MAX / 1000) {
            f->has_time = true;
            f->time = (uint64_t)b.value * 1000;
        } else if ((int)b.number == r->cpu && !f->has_cpu && b.value >= 0 &&
                   b.value <= UINT16_MAX) {
            f->has_cpu = true;
            f->cpu = (unsigned)b.value;
        }
    }
}

static int next_of_ring(struct recorded *r, struct recorded_frame *f)
{
    const struct frames_control *c = frames_control(r->frames);

    if (!frames_get(r->frames, r->next, &f->frame))
        return 0;
    f->has_pc = f->has_cpu = f->has_time = true;
    f->cpu = f->frame.entry.cpu;
    f->time = c->start * 1000 + (f->frame.head.time - c->start_monotonic);
    f->step = f->frame.entry.flags & FRAMES_STEP;
    f->point = find_point(r, f);
    return 1;
}

static int next_of_tfile(struct recorded *r, struct recorded_frame *f,
                         struct rhea_error *err)
{
    int ret = tfile_next(&r->tfile, &f->frame, &f->has_pc, err);

    if (ret <= 0)
        return ret;
    f->point = find_point(r, f);
    f->step = f->point && f->point->step_count && f->has_pc &&
              f->frame.entry.pc != f->point->address;
    look_at_variables(r, f);
    return 1;
}

int recorded_next(struct recorded *r, struct recorded_frame *f,
                  struct rhea_error *err)
{
    const struct recorded_filter *want = &r->filter;
    int ret;

    while (!r->is_ring && r->next < want->first) {
        ret = tfile_skip(&r->tfile, err);
        if (ret <= 0)
            return ret;
        r->next++;
    }
    r->next = RHEA_MAX(r->next, want->first);
    do {
        *f = (struct recorded_frame){.index = r->next};
        if (r->next > want->last)
            return 0;
        ret = r->is_ring ? next_of_ring(r, f) : next_of_tfile(r, f, err);
        r->next++;
    } while (ret > 0 && want->tracepoint >= 0 &&
             f->frame.entry.number != want->tracepoint);
    return ret;
}

/* --- besides ------------------------------------------------------------- */

bool recorded_counters(const struct recorded *r, const struct tracepoint *p,
                       uint64_t *hits, uint64_t *usage)
{
    const struct tfile *t = &r->tfile;

    if (r->is_ring) {
        const struct frames_point *f = frames_point(r->frames, p->slot);

        *hits = f->hits;
        *usage = f->usage;
        return true;
    }
    for (size_t i = 0; i < t->n_counters; i++) {
        if (t->counters[i].number != p->number ||
            t->counters[i].address != p->address)
            continue;
        *hits = t->counters[i].hits;
        *usage = t->counters[i].usage;
        return true;
    }
    return false;
}

bool recorded_trouble(const struct recorded *r, unsigned n, char *buf,
                      size_t room)
{
    const struct tfile *t = &r->tfile;

    if (r->n_lost && n-- == 0)
        snprintf(buf, room,
                 "%" PRIu64 " frames are lost: they were not whole, as after "
                 "a crash",
                 r->n_lost);
    else if (t->n_bad && n-- == 0)
        snprintf(buf, room,
                 "%u lines of the head are left out, the first since %s",
                 t->n_bad, t->bad);
    else if (t->cut && n-- == 0)
        snprintf(buf, room, "the file ends in the middle of its frames");
    else if (t->n_odd && n-- == 0)
        snprintf(buf, room,
                 "%" PRIu64 " frames have data that cannot be understood",
                 t->n_odd);
    else
        return false;
    return true;
}

int recorded_save(struct recorded *r, const char *path, struct rhea_error *err)
{
    if (!r->is_ring)
        return rhea_error_set(err, EINVAL,
                              "this is a trace file of gdb's already: copy it");
    if (r->own->layout.pc < 0)
        return rhea_error_set(err, EINVAL,
                              "the program counter's register is not known, "
                              "and a trace file needs it");
    return tfile_save(r->frames, r->own, path, err);
}

const char *recorded_location(const struct tracepoint *p)
{
    for (size_t i = 0; p && i < p->n_sources; i++)
        if (!strcmp(p->sources[i].kind, "at"))
            return p->sources[i].text;
    return NULL;
}
