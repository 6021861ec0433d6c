/* SPDX-License-Identifier: MIT */
/* What the subcommands of rhea-img share. */
#ifndef RHEA_IMG_TOOL_H
#define RHEA_IMG_TOOL_H

#include <getopt.h>

#include "common/common.h"

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

extern const struct tool_command tool_amend;
extern const struct tool_command tool_bench;
extern const struct tool_command tool_bitmap;
extern const struct tool_command tool_check;
extern const struct tool_command tool_commit;
extern const struct tool_command tool_compare;
extern const struct tool_command tool_convert;
extern const struct tool_command tool_convert_inplace;
extern const struct tool_command tool_create;
extern const struct tool_command tool_dd;
extern const struct tool_command tool_info;
extern const struct tool_command tool_map;
extern const struct tool_command tool_measure;
extern const struct tool_command tool_rebase;
extern const struct tool_command tool_resize;
extern const struct tool_command tool_snapshot;

/* Numbers for long options that have no letter. */
enum {
    TOOL_OPT_OUTPUT = 256,
    TOOL_OPT_BACKING_CHAIN,
    TOOL_OPT_TARGET_IS_ZERO,
    TOOL_OPT_JSON,
    TOOL_OPT_ALLOW_LOSS,
    TOOL_OPT_OBJECT,
    TOOL_OPT_IMAGE_OPTS,
    TOOL_OPT_TARGET_IMAGE_OPTS,
    TOOL_OPT_SALVAGE,
    TOOL_OPT_FLUSH_INTERVAL,
    TOOL_OPT_NO_DRAIN,
    TOOL_OPT_PATTERN,
    TOOL_OPT_PREALLOCATION,
    TOOL_OPT_SHRINK,
    TOOL_OPT_SIZE,
    TOOL_OPT_FORCE,
    TOOL_OPT_BITMAPS,
    TOOL_OPT_SKIP_BROKEN_BITMAPS,
};

/* convert_bitmaps.c; all return an exit code. */
/* Whether SOURCE's bitmaps can be copied, save for broken ones that are to be
 * left out, and TARGET (NULL: not open yet) can have some. */
int tool_bitmaps_check(struct rhea_image *source, struct rhea_image *target,
                       bool skip_broken);
int tool_bitmaps_copy(struct rhea_image *source, struct rhea_image *target,
                      bool skip_broken);

/* The same, and where to find help; returns the command's usage code. */
int tool_usage(const struct tool_command *command, const char *fmt, ...)
    RHEA_PRINTF(2, 3);
/* For what getopt_long returned and a command does not handle: help, missing
 * arguments, unknown options. Returns the exit code. */
int tool_other_option(const struct tool_command *command, int c, char **argv);
/* For what most commands may be told of an image, and a command does not handle
 * itself: -f, -U, --object, --image-opts; the rest is tool_other_option's.
 * Returns the exit code, or -1 to go on. */
int tool_image_option(const struct tool_command *command,
                      struct tool_image *image, int c, char **argv);
/* The one file that is behind the options. The exit code, or -1 to go on. */
int tool_only_file(const struct tool_command *command, int argc, char **argv,
                   const char **file);

#endif
