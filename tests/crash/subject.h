/* SPDX-License-Identifier: MIT */
/*
 * The image that is converted, and what is found of the conversion: shared by
 * the programs that crash it and that make its storage fail.
 */
#ifndef RHEA_CRASH_SUBJECT_H
#define RHEA_CRASH_SUBJECT_H

#include <rhea/inplace.h>

#include "judge.h"
#include "storage/record.h"

struct digests {
    uint64_t *items;
    size_t n, size;
};

struct subject {
    const char *image, *target;
    struct rhea_option options[8];
    size_t n_options;
    struct rhea_storage *initial; /* the image, in memory */
    struct judge judge;
    struct digests states;   /* that were judged */
    struct digests finished; /* that were judged as finished images */
    unsigned failures;
    bool silent; /* failures are what is looked for */
};

/* End the program: the test itself does not work. */
void subject_die(const char *what, const struct rhea_error *err)
    __attribute__((noreturn));

/* NAME=VALUE, for the conversion. */
void subject_add_option(struct subject *s, char *text);
/* ARGS: IMAGE SOURCE TARGET GUEST GUEST-FORMAT QEMU-OPENS(0|1). False where
 * the image cannot be judged. Life: subject_init, use, subject_finish. */
#define SUBJECT_ARGS 6
bool subject_init(struct subject *s, char **args);
void subject_finish(struct subject *s);

/* Note that NAME failed, and return false. */
bool subject_fail(struct subject *s, const char *name, const char *why);

int subject_convert(const struct subject *s, struct rhea_storage *storage,
                    struct rhea_inplace_plan *plan,
                    enum rhea_inplace_outcome *outcome, struct rhea_error *err);

/* Judge a state (by QEMU). *FRESH: it had not been judged before; NULL: no
 * matter. */
bool subject_judge(struct subject *s, const char *name,
                   struct rhea_storage *state, bool *fresh);
/* Convert a copy of STATE, which must finish, and judge the result. The run is
 * logged in LOG, unless NULL. */
bool subject_complete(struct subject *s, const char *name,
                      struct rhea_storage *state, struct record_log *log);

#endif
