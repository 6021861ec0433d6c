/* SPDX-License-Identifier: MIT */
#include "subject.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "storage/memory.h"

void subject_die(const char *what, const struct rhea_error *err)
{
    printf("%s: %s\n", what, err->text);
    exit(2);
}

/* Whether DIGEST is new; it is not afterwards. */
static bool digests_add(struct digests *d, uint64_t digest)
{
    for (size_t i = 0; i < d->n; i++) {
        if (d->items[i] == digest)
            return false;
    }
    if (d->n == d->size) {
        d->size = d->size ? d->size * 2 : 1024;
        d->items = reallocarray(d->items, d->size, sizeof(*d->items));
        if (!d->items)
            exit(2);
    }
    d->items[d->n++] = digest;
    return true;
}

void subject_add_option(struct subject *s, char *text)
{
    char *equals = strchr(text, '=');
    if (!equals || s->n_options == RHEA_ARRAY_SIZE(s->options))
        exit(2);
    *equals = 0;
    s->options[s->n_options++] = (struct rhea_option){text, equals + 1};
}

bool subject_init(struct subject *s, char **args)
{
    char *folder = strdup(args[0]);
    char *slash = folder ? strrchr(folder, '/') : NULL;
    if (!slash)
        exit(2);
    *slash = 0;
    s->image = args[0];
    s->target = args[2];
    s->judge = (struct judge){.folder = folder,
                              .source = args[1],
                              .guest = args[3],
                              .guest_format = args[4],
                              .qemu_opens_source = args[5][0] == '1'};

    struct rhea_storage *file;
    struct rhea_error err;
    if (rhea_file_open(&file, s->image, 0, &err) ||
        memory_snapshot(&s->initial, file, &err))
        subject_die("cannot read the image", &err);
    rhea_storage_close(file);

    judge_init(&s->judge, "crashed.state");
    if (!judge_source(&s->judge, s->initial)) {
        printf("the source does not pass: %s\n", s->judge.why);
        return false;
    }
    return true;
}

void subject_finish(struct subject *s)
{
    judge_finish(&s->judge);
    rhea_storage_close(s->initial);
    free((char *)s->judge.folder);
    free(s->states.items);
    free(s->finished.items);
}

bool subject_fail(struct subject *s, const char *name, const char *why)
{
    s->failures++;
    if (!s->silent)
        printf("%s: %s: %s\n", s->image, name, why);
    return false;
}

int subject_convert(const struct subject *s, struct rhea_storage *storage,
                    struct rhea_inplace_plan *plan,
                    enum rhea_inplace_outcome *outcome, struct rhea_error *err)
{
    const struct rhea_inplace_options options = {.target_format = s->target,
                                                 .options = s->options,
                                                 .n_options = s->n_options,
                                                 .allow_loss = ~0u};
    return rhea_inplace_convert_storage(storage, s->image, &options, plan,
                                        outcome, err);
}

bool subject_judge(struct subject *s, const char *name,
                   struct rhea_storage *state, bool *fresh)
{
    bool is_new = digests_add(&s->states, memory_digest(state));
    if (fresh)
        *fresh = is_new;
    if (!is_new || judge_state(&s->judge, state))
        return true;
    return subject_fail(s, name, s->judge.why);
}

/* A storage that the conversion has finished. */
static bool subject_judge_finished(struct subject *s, const char *name,
                                   struct rhea_storage *done)
{
    uint64_t digest = memory_digest(done);
    if (!digests_add(&s->finished, digest))
        return true;
    if (!judge_finished(&s->judge, done, s->target))
        return subject_fail(s, name, s->judge.why);

    struct rhea_inplace_plan plan;
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;
    if (subject_convert(s, done, &plan, &outcome, &err))
        return subject_fail(s, name, err.text);
    if (plan.action != RHEA_INPLACE_NOTHING || memory_digest(done) != digest)
        return subject_fail(s, name, "a further run found something to do");
    return true;
}

bool subject_complete(struct subject *s, const char *name,
                      struct rhea_storage *state, struct record_log *log)
{
    struct rhea_storage *storage, *top;
    struct rhea_inplace_plan plan;
    enum rhea_inplace_outcome outcome;
    struct rhea_error err;

    if (memory_clone(&storage, state, &err))
        subject_die("out of memory", &err);
    top = storage;
    if (log && record_open(&top, storage, log, &err))
        subject_die("out of memory", &err);
    bool good;
    if (subject_convert(s, top, &plan, &outcome, &err))
        good = subject_fail(s, name, err.text);
    else if (outcome != RHEA_INPLACE_DONE)
        good = subject_fail(s, name, "a second run did not finish");
    else
        good = subject_judge_finished(s, name, storage);
    rhea_storage_close(top);
    return good;
}
