/* SPDX-License-Identifier: MIT */
#include "convert/step.h"

#include "base/checked.h"
#include "convert/window.h"

enum {
    STEP_LOOKS = 64,    /* runs that one step takes up: others wait meanwhile */
    CLONE_BLOCK = 4096, /* what file systems share is no smaller */
    CLONE_MAX = 256 << 20, /* in one step, for progress and cancelling */
};

void steps_init(struct steps *s, struct convert_source *source,
                struct rhea_image *target, unsigned unit,
                const struct rhea_convert_options *options)
{
    *s = (struct steps){
        .source = source,
        .target = target,
        .options = options,
        .unit = unit,
        .clone = options->clone && !options->compress && !options->salvaged &&
                 (unit % CLONE_BLOCK == 0 || CLONE_BLOCK % unit == 0),
    };
    if (s->clone)
        s->unit = RHEA_MAX(unit, (unsigned)CLONE_BLOCK);
}

/* Whether the target can share RUN's blocks. */
static bool steps_can_clone(struct steps *s, const struct convert_run *run)
{
    if (!s->clone || !run->storage || run->host % CLONE_BLOCK ||
        (run->kind != CONVERT_DATA && run->kind != CONVERT_ZERO))
        return false;
    if (s->asked != run->storage) {
        s->asked = run->storage;
        s->can = rhea_image_clone(s->target, 0, run->storage, 0, 0, NULL) == 0;
    }
    return s->can;
}

/* What RUN is when it is a step of its own, or the beginning of one. */
static int steps_kind(struct steps *s, const struct convert_run *run)
{
    if (run->kind == CONVERT_BACKING)
        return STEP_BACKING;
    /* A short hole may be shared with the data behind it. */
    if ((run->kind == CONVERT_DATA || run->length < s->unit) &&
        steps_can_clone(s, run))
        return STEP_CLONE;
    return run->kind == CONVERT_ZERO && s->options->sparse ? STEP_ZERO
                                                           : STEP_WINDOW;
}

static int steps_look(struct steps *s, uint64_t offset, struct convert_run *run,
                      struct rhea_error *err)
{
    int ret = convert_source_map(s->source, offset, s->source->size - offset,
                                 run, err);
    if (ret < 0 && s->options->salvaged) {
        /* A window finds out what of it can be read. */
        *run = (struct convert_run){.kind = CONVERT_DATA,
                                    .length = WINDOW_UNIT_MIN};
        return 0;
    }
    return ret;
}

/* Take up what of RUN goes on where STEP ends; false: that is the end. */
static bool steps_append(struct steps *s, struct step *step,
                         const struct convert_run *run)
{
    uint64_t rest = align_up(step->length, s->unit) - step->length;

    if (step->kind != STEP_CLONE) {
        if (steps_kind(s, run) != (int)step->kind)
            return false;
        step->length += run->length;
        return true;
    }
    if (!steps_can_clone(s, run) || run->storage != step->storage ||
        run->host != step->host + step->length || step->length >= CLONE_MAX)
        return false;
    /* Of a long hole no more than what fills the unit up. */
    if (run->kind == CONVERT_ZERO && run->length >= rest + s->unit) {
        step->length += rest;
        return false;
    }
    step->length += run->length;
    return true;
}

/* The longest step from OFFSET that needs no reading, in whole units; *STEP is
 * a window of no length where there is none. */
static int steps_find_run(struct steps *s, uint64_t offset, struct step *step,
                          struct rhea_error *err)
{
    uint64_t end = s->source->size, shortest;
    struct convert_run run;
    unsigned looks = 0;

    *step = (struct step){.offset = offset};
    do {
        int ret = steps_look(s, offset + step->length, &run, err);

        if (ret < 0)
            return ret;
        if (looks == 0) {
            step->kind = steps_kind(s, &run);
            step->storage = run.storage;
            step->host = run.host;
        }
    } while (step->kind != STEP_WINDOW && steps_append(s, step, &run) &&
             offset + step->length < end && ++looks < STEP_LOOKS);

    /* The end of the image may be no whole unit. */
    if (offset + step->length < end || step->kind == STEP_CLONE)
        step->length -= step->length % s->unit;
    /* Where nothing is shared, a window takes short runs along. */
    shortest = s->can ? s->unit : WINDOW_SIZE;
    if (step->length < shortest)
        *step = (struct step){.offset = offset};
    return 0;
}

/* How long the window at OFFSET is where what comes after it may be shared. */
static int steps_limit_window(struct steps *s, struct step *step,
                              struct rhea_error *err)
{
    uint64_t at = step->offset, end = step->offset + step->length;
    struct convert_run run;

    while (at < end) {
        int ret = steps_look(s, at, &run, err);

        if (ret < 0)
            return ret;
        if (at > step->offset && run.length >= s->unit &&
            steps_kind(s, &run) != STEP_WINDOW)
            end = at;
        else
            at = align_up(at + run.length, s->unit);
    }
    step->length = end - step->offset;
    return 0;
}

int steps_find(struct steps *s, uint64_t offset, struct step *step,
               struct rhea_error *err)
{
    int ret = steps_find_run(s, offset, step, err);

    if (ret < 0 || step->length)
        return ret;
    /* Up to the next multiple, also after a run that ended off one. */
    step->length = WINDOW_SIZE - offset % WINDOW_SIZE;
    step->length = RHEA_MIN(step->length, s->source->size - offset);
    return s->can ? steps_limit_window(s, step, err) : 0;
}
