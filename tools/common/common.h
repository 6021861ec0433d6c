/* SPDX-License-Identifier: MIT */
/* What the programs share: messages, arguments, opening images, output. */
#ifndef RHEA_TOOLS_COMMON_H
#define RHEA_TOOLS_COMMON_H

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rhea/image.h>

/* message.c: all end up on standard error. */

/* The name this program was called by, without its folder. A program that is
 * called as QEMU's of the same purpose is calls itself that. */
extern const char *tool_name;
void tool_set_name(const char *argv0, const char *own, const char *qemu);
/* "rhea-img 0.1.0", or the same as QEMU's program says it. */
void tool_print_version(void);
/* "rhea-img: <fmt>\n" */
void tool_error(const char *fmt, ...) RHEA_PRINTF(1, 2);
void tool_error_list(const char *fmt, va_list ap) RHEA_PRINTF(1, 0);
/* "ERROR <text>\n", as `check` and QEMU's programs say what an image has. */
void tool_finding(bool is_error, const char *text);
/* TEXT, malloc'd, without control characters: names and comments come from
 * images, and a terminal would obey them. */
char *tool_printable(const char *text);
/* ERR about FILENAME, which is named where ERR does not. Returns CODE. */
int tool_fail(const char *filename, const struct rhea_error *err, int code);
/* Memory that the command line needs; ends the program when there is none. */
void *tool_realloc(void *p, size_t size);
char *tool_strdup(const char *s);

/* open.c: images as command lines name them. */

struct tool_image {
    const char *name;   /* of a file, or with IMAGE_OPTS all that it takes */
    const char *format; /* NULL: probe */
    bool image_opts;
    const char *cache; /* a mode of -t or -T; NULL: the default */
    unsigned flags;    /* RHEA_IMAGE_* */
};
/* Open; on failure print why and return a negative errno. */
int tool_image_open(const struct tool_image *what, struct rhea_image **image);
/* The same of what --image-opts names: "driver=qcow2,file.filename=..." */
int tool_image_open_options(const char *text, unsigned flags,
                            struct rhea_image **image);
/* Whether an image can be opened as NAME: a format's or a storage's. */
bool tool_is_driver(const char *name);
/* What --object says, "secret,id=..." or JSON; prints why it cannot be had. */
int tool_object_add(const char *text);

/* options.c: arguments. */

/* "64k", "1.5G", "0x200"; the message calls it WHAT. */
int tool_get_size(const char *what, const char *text, uint64_t *size);
/* "human" or "json". */
int tool_get_output(const char *text, bool *json);
/* A cache mode of -t or -T; tells whether it asks for direct I/O, and whether
 * flushes are to be left out. */
int tool_get_cache(const char *text, bool *direct, bool *unsafe);

/* What -o gave, in order; a name given again replaces its value. */
struct tool_options {
    struct rhea_option *items;
    size_t n;
    bool help; /* "help" or "?" was among them */
};

/* Add "a=b,c=d,..."; ",," is a comma inside a value. */
int tool_options_add(struct tool_options *o, const char *list);
/* The same, where a first entry without a name is the value of FIRST. */
int tool_options_add_first(struct tool_options *o, const char *list,
                           const char *first);
void tool_options_set(struct tool_options *o, const char *name,
                      const char *value);
/* NULL: not given. */
const char *tool_options_get(const struct tool_options *o, const char *name);
/* The same, and take it out; malloc'd. */
char *tool_options_take(struct tool_options *o, const char *name);
void tool_options_finish(struct tool_options *o);
/* What `-o help` prints: a format's creation options and, where FILENAME is not
 * NULL, those of the file; or those of them that ONLY names (ends with NULL).
 * Returns the exit code. */
int tool_options_help(const char *format, const char *filename,
                      const char *const *only);
/* The same of `amend -o help`. */
int tool_options_help_amend(const char *format);

/* facts.c: one a line, indented under a heading of the caller's. */
void tool_facts_print(const struct rhea_facts *facts);

/* output.c */

/* "1.5 GiB", three significant digits as qemu-img prints them. */
struct tool_size {
    char text[32];
};
struct tool_size tool_format_size(uint64_t bytes);
/* A JSON string, also of what is not UTF-8. */
json_t *tool_json_string(const char *s);
/* Print, release; an exit code. */
int tool_json_print(json_t *value);
/* Whether everything printed has arrived; else a message and CODE. */
int tool_finish_output(int exit_code, int code);

/* progress.c: a line that is written over and over. */
struct tool_progress {
    FILE *stream;
    bool enabled;
    bool phases; /* each phase is named and has a line of its own, if it takes
                    long enough to be read */
    double step; /* percent between two lines */
    const char *phase;
    double started; /* when the phase did, in seconds */
    double shown;   /* percent; below 0: nothing yet */
};
void tool_progress_report(void *progress, const char *phase, uint64_t done,
                          uint64_t total);
/* End the line, at 100 percent where COMPLETE. */
void tool_progress_finish(struct tool_progress *p, bool complete);

/* snapshot.c: internal snapshots. */

/* The list as `info` and `snapshot -l` print it; nothing where there is none.
 */
void tool_snapshots_print(const struct rhea_snapshot *list, size_t n);
json_t *tool_snapshots_json(const struct rhea_snapshot *list, size_t n);
/* The id of the first snapshot of that name, malloc'd; NULL, and a message:
 * there is none. */
char *tool_snapshot_by_name(struct rhea_image *image, const char *name);
/* Make IMAGE, which is open read-only, show the snapshot that TEXT names: an id
 * or name, or "snapshot.id=...,snapshot.name=...". Prints why it cannot. */
int tool_snapshot_load(struct rhea_image *image, const char *text);

/* signals.c */

/* From here on SIGUSR1 makes the next report of progress a line on standard
 * error, where none is shown anyway. */
void tool_signals_progress(void);
/* Whether it came since the last call. */
bool tool_signals_progress_asked(void);
/* From here on SIGINT, SIGTERM and SIGHUP only set a flag. */
void tool_signals_catch(void);
/* The signal that came, 0: none. */
int tool_signals_caught(void);
/* For struct rhea_progress. */
bool tool_signals_cancelled(void *opaque);

#endif
