/* SPDX-License-Identifier: MIT */
/* rhea-img: look at, check, create and convert disk images. */
#include <stdarg.h>

#include "base/checked.h"
#include "storage/driver.h"
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
    if (optopt > 0 && optopt < TOOL_OPT_OUTPUT)
        return tool_usage(command, "%s: there is no option -%c", command->name,
                          optopt);
    return tool_usage(command, "%s: there is no option %s", command->name,
                      given);
}

int tool_image_option(const struct tool_command *command,
                      struct tool_image *image, int c, char **argv)
{
    switch (c) {
    case 'f':
        image->format = optarg;
        return -1;
    case 'U':
        image->flags |= RHEA_IMAGE_NO_LOCK;
        return -1;
    case TOOL_OPT_OBJECT:
        return tool_object_add(optarg) < 0 ? 1 : -1;
    case TOOL_OPT_IMAGE_OPTS:
        image->image_opts = true;
        return -1;
    default:
        return tool_other_option(command, c, argv);
    }
}

int tool_only_file(const struct tool_command *command, int argc, char **argv,
                   const char **file)
{
    if (optind != argc - 1)
        return tool_usage(command, "%s: exactly one file is needed",
                          command->name);
    *file = argv[optind];
    return -1;
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

/* A command's usage, which is several lines, on one. */
static void main_print_syntax(const struct tool_command *command)
{
    const char *p;

    printf("  %s ", command->name);
    for (p = command->usage; *p; p++) {
        if (*p != '\n') {
            putchar(*p);
            continue;
        }
        putchar(' ');
        p += strspn(p + 1, " ");
    }
    putchar('\n');
}

static void main_print_formats(void)
{
    const struct rhea_format_ops *const *format;
    size_t i;

    printf("\nSupported formats:");
    for (format = rhea_formats; *format; format++)
        printf(" %s", (*format)->name);
    for (i = 0; storage_drivers[i]; i++)
        printf(" %s", storage_drivers[i]->name);
    printf("\n");
}

/* Scripts look in here for what there is: for "--target-is-zero", or in the
 * line of formats. */
static int main_help(void)
{
    size_t i;

    printf("usage: %s [-T TRACE] COMMAND [OPTION...] FILE...\n\n"
           "Look at, check, create and convert disk images.\n\n",
           tool_name);
    for (i = 0; i < RHEA_ARRAY_SIZE(main_commands); i++)
        printf("  %-16s %s\n", main_commands[i]->name,
               main_commands[i]->summary);
    printf("  %-16s %s\n\n"
           "  -h, --help       Tell what there is\n"
           "  -V, --version    Tell the version\n"
           "  -T, --trace      Is taken from old scripts, and does nothing\n\n"
           "Command syntax:\n",
           "help [COMMAND]", "Tell what there is, or a command's options");
    for (i = 0; i < RHEA_ARRAY_SIZE(main_commands); i++)
        main_print_syntax(main_commands[i]);
    main_print_formats();
    return tool_finish_output(0, 1);
}

static int main_version(void)
{
    tool_print_version();
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

/* Options in front of the command; -1 to go on, else the exit code. */
static int main_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {"trace", required_argument, NULL, 'T'},
        {0},
    };
    int c;

    while ((c = getopt_long(argc, argv, "+:hVT:", options, NULL)) != -1) {
        switch (c) {
        case 'h':
            return main_help();
        case 'V':
            return main_version();
        case 'T':
            break;
        default:
            tool_error(c == ':' ? "%s needs an argument"
                                : "there is no option %s",
                       argv[optind - 1]);
            main_hint();
            return 1;
        }
    }
    return -1;
}

int main(int argc, char **argv)
{
    const struct tool_command *command;
    const char *name;
    int code;

    tool_set_name(argc ? argv[0] : NULL, "rhea-img", "qemu-img");
    opterr = 0;
    code = main_options(argc, argv);
    if (code >= 0)
        return code;
    argc -= optind;
    argv += optind;
    if (argc < 1) {
        tool_error("which command?");
        main_hint();
        return 1;
    }
    name = argv[0];
    if (!strcmp(name, "help") && argc == 1)
        return main_help();
    if (!strcmp(name, "help")) {
        command = main_find(argv[1]);
        return command ? main_help_command(command) : main_unknown(argv[1]);
    }
    command = main_find(name);
    if (!command)
        return main_unknown(name);
    tool_signals_progress();
    optind = 0;
    return command->run(argc, argv);
}
