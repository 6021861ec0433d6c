/* SPDX-License-Identifier: MIT */
/*
 * Errors and progress, shared by every Rhea library.
 *
 * The error rule: a function that can fail returns 0 (or a count) on success
 * and a negative errno on failure, and fills the caller's error object with a
 * sentence that a user can act on. Whoever finds the fault fills it in; whoever
 * knows what the user asked for adds that in front (rhea_error_prefix); only a
 * program prints it, once.
 */
#ifndef RHEA_BASE_H
#define RHEA_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RHEA_API __attribute__((visibility("default")))
#define RHEA_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/*
 * An error. Lives in the caller's frame; owns nothing; need not be
 * initialised. Its contents are defined only after a call has failed.
 */
struct rhea_error {
    int code;        /* positive errno */
    char text[1024]; /* one sentence, no newline, no program name */
};

/* Fill ERR (may be NULL) and return -CODE. CODE is a positive errno. */
RHEA_API int rhea_error_set(struct rhea_error *err, int code, const char *fmt,
                            ...) RHEA_PRINTF(3, 4);

/* As rhea_error_set, with ": " and the system's words for CODE at the end. */
RHEA_API int rhea_error_errno(struct rhea_error *err, int code, const char *fmt,
                              ...) RHEA_PRINTF(3, 4);

/* Put "<fmt>: " in front of the text; returns -err->code (or -EINVAL). */
RHEA_API int rhea_error_prefix(struct rhea_error *err, const char *fmt, ...)
    RHEA_PRINTF(2, 3);

/*
 * FN is told, a line at a time, what a user should know although the call that
 * comes across it does not fail: what was found and mended of an image that had
 * not been closed cleanly. From any thread. NULL, as at first: nobody is.
 */
typedef void rhea_notice_fn(bool is_error, const char *text);
RHEA_API void rhea_set_notice(rhea_notice_fn *fn);

/* One option as the user gave it. */
struct rhea_option {
    const char *name, *value;
};

/* What option there is, for `-o help`. */
struct rhea_option_help {
    const char *name, *type, *text;
};

/*
 * Long work reports through this. Every member may be NULL. Called on the
 * thread that asked for the work.
 */
struct rhea_progress {
    /* DONE of TOTAL units (bytes, unless the caller says otherwise). PHASE is
     * a short constant name. */
    void (*report)(void *opaque, const char *phase, uint64_t done,
                   uint64_t total);
    /* True once the user wants to stop; the work then returns -ECANCELED at
     * the next point where stopping is safe. */
    bool (*cancelled)(void *opaque);
    void *opaque;
};

/* Both take a NULL progress. */
RHEA_API void rhea_progress_report(const struct rhea_progress *progress,
                                   const char *phase, uint64_t done,
                                   uint64_t total);
RHEA_API bool rhea_progress_cancelled(const struct rhea_progress *progress);

/* The library's version, "0.1.0". */
RHEA_API const char *rhea_version(void);

#ifdef __cplusplus
}
#endif

#endif
