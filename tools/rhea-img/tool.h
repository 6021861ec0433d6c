/* SPDX-License-Identifier: MIT */
/* What the subcommands of rhea-img share. */
#ifndef RHEA_IMG_TOOL_H
#define RHEA_IMG_TOOL_H

#include <getopt.h>
#include <jansson.h>

#include <rhea/image.h>

/* A subcommand; its file ends with its table, main.c lists them. */
struct tool_command {
    const char *name;
    const char *summary; /* one line, for the list */
    const char *usage;   /* what follows the name on a command line */
    const char *help;    /* the options, one a line */
    /* Run with argv[0] = the name; returns the exit code. */
    int (*run)(int argc, char **argv);
    /* The exit code for a wrong command line. */
    int usage_code;
};

extern const struct tool_command tool_check, tool_compare, tool_convert,
    tool_convert_inplace, tool_create, tool_info, tool_map;

/* Numbers for long options that have no letter. */
enum {
    TOOL_OPT_OUTPUT = 256,
    TOOL_OPT_BACKING_CHAIN,
    TOOL_OPT_TARGET_IS_ZERO,
    TOOL_OPT_JSON,
    TOOL_OPT_ALLOW_LOSS,
    TOOL_OPT_UNSUPPORTED, /* qemu-img has it, this program does not */
};

/* main.c: messages. All end up on standard error. */

/* "rhea-img: <fmt>\n" */
void tool_error(const char *fmt, ...) RHEA_PRINTF(1, 2);
/* The same, and where to find help; returns the command's usage code. */
int tool_usage(const struct tool_command *command, const char *fmt, ...)
    RHEA_PRINTF(2, 3);
/* ERR about FILENAME, which is named where ERR does not. Returns CODE. */
int tool_fail(const char *filename, const struct rhea_error *err, int code);
/* For what getopt_long returned and a command does not handle: help, missing
 * arguments, unknown options. Returns the exit code. */
int tool_other_option(const struct tool_command *command, int c, char **argv);
/* Memory that the command line needs; ends the program when there is none. */
void *tool_realloc(void *p, size_t size);
char *tool_strdup(const char *s);

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
void tool_options_set(struct tool_options *o, const char *name,
                      const char *value);
/* NULL: not given. */
const char *tool_options_get(const struct tool_options *o, const char *name);
/* The same, and take it out; malloc'd. */
char *tool_options_take(struct tool_options *o, const char *name);
void tool_options_finish(struct tool_options *o);
/* What `-o help` prints: a format's creation options, or those of them that
 * ONLY names (ends with NULL). Returns the exit code. */
int tool_options_help(const char *format, const char *const *only);

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

/* signals.c: from here on SIGINT, SIGTERM and SIGHUP only set a flag. */
void tool_signals_catch(void);
/* The signal that came, 0: none. */
int tool_signals_caught(void);
/* For struct rhea_progress. */
bool tool_signals_cancelled(void *opaque);

#endif
