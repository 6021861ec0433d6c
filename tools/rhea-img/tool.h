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

/* The same, and where to find help; returns the command's usage code. */
int tool_usage(const struct tool_command *command, const char *fmt, ...)
    RHEA_PRINTF(2, 3);
/* For what getopt_long returned and a command does not handle: help, missing
 * arguments, unknown options. Returns the exit code. */
int tool_other_option(const struct tool_command *command, int c, char **argv);
#endif
