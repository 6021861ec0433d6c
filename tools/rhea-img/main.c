/* SPDX-License-Identifier: MIT */
/* rhea-img: look at, check, create and convert disk images. */
#include <stdarg.h>

#include "base/checked.h"
#include "tool.h"

/* clang-format off: a line each, in the order in which they are listed */
static const struct tool_command *const main_commands[] = {
    &tool_amend,   &tool_bench,   &tool_bitmap,  &tool_check,
    &tool_commit,  &tool_compare, &tool_convert, &tool_convert_inplace,
    &tool_create,  &tool_dd,      &tool_info,    &tool_map,
    &tool_measure, &tool_rebase,  &tool_resize,  &tool_snapshot,
};
/* clang-format on */

int tool_usage(const struct tool_command *command, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tool_error_list(fmt, ap);
    va_end(ap);
    tool_error("`%s %s --help` lists the options", tool_name, command->name);
    return command->usage_code;
}

static int main_help_command(const struct tool_command *command)
{
    printf("usage: %s %s %s\n\n%s.\n\n%s", tool_name, command->name,
           command->usage, command->summary, command->help);
    return tool_finish_output(0, 1);
}

int tool_other_option(const struct tool_command *command, int c, char **argv)
{
    const char *given = argv[optind - 1];

    if (c == 'h')
        return main_help_command(command);
    if (c == ':')
        return tool_usage(command, "%s: %s needs an argument", command->name,
                          given);
    if (c == TOOL_OPT_UNSUPPORTED)
        return tool_usage(command, "%s: %s is not supported", command->name,
                          given);
    if (optopt > 0 && optopt < TOOL_OPT_OUTPUT)
        return tool_usage(command, "%s: there is no option -%c", command->name,
                          optopt);
    return tool_usage(command, "%s: there is no option %s", command->name,
                      given);
}

static const struct tool_command *main_find(const char *name)
{
    size_t i;

    for (i = 0; i < RHEA_ARRAY_SIZE(main_commands); i++) {
        if (!strcmp(main_commands[i]->name, name))
            return main_commands[i];
    }
    return NULL;
}

static int main_help(void)
{
    const struct rhea_format_ops *const *format;
    size_t i;

    printf("usage: %s COMMAND [OPTION...] FILE...\n\n"
           "Look at, check, create and convert disk images.\n\n",
           tool_name);
    for (i = 0; i < RHEA_ARRAY_SIZE(main_commands); i++)
        printf("  %-16s %s\n", main_commands[i]->name,
               main_commands[i]->summary);
    printf("  %-16s %s\n\nFormats:", "help [COMMAND]",
           "Tell what there is, or a command's options");
    for (format = rhea_formats; *format; format++)
        printf(" %s", (*format)->name);
    printf("\n");
    return tool_finish_output(0, 1);
}

static int main_version(void)
{
    printf("%s %s\n", tool_name, rhea_version());
    return tool_finish_output(0, 1);
}

static void main_hint(void)
{
    tool_error("`%s help` lists the commands", tool_name);
}

static int main_unknown(const char *name)
{
    tool_error("there is no command %s", name);
    main_hint();
    return 1;
}

int main(int argc, char **argv)
{
    const struct tool_command *command;
    const char *name = argc > 1 ? argv[1] : NULL;

    tool_set_name(argc ? argv[0] : NULL, "rhea-img", "qemu-img");
    if (!name) {
        tool_error("which command?");
        main_hint();
        return 1;
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V"))
        return main_version();
    if (!strcmp(name, "--help") || !strcmp(name, "-h") ||
        (!strcmp(name, "help") && argc == 2))
        return main_help();
    if (!strcmp(name, "help")) {
        command = main_find(argv[2]);
        return command ? main_help_command(command) : main_unknown(argv[2]);
    }
    command = main_find(name);
    if (!command)
        return main_unknown(name);
    opterr = 0;
    tool_signals_progress();
    return command->run(argc - 1, argv + 1);
}
