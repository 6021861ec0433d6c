/* SPDX-License-Identifier: MIT */
/* The table of commands: finding one, calling it, telling of it. */
#include <errno.h>

#include "base/checked.h"
#include "io.h"

static const struct io_command *const commands[] = {
    &io_abort,         &io_aio_flush,    &io_aio_read,      &io_aio_write,
    &io_alloc,         &io_break,        &io_close_command, &io_discard_command,
    &io_flush,         &io_help,         &io_info,          &io_length_command,
    &io_map,           &io_open_command, &io_quit,          &io_read_command,
    &io_readv,         &io_remove_break, &io_reopen,        &io_resume,
    &io_sigraise,      &io_sleep,        &io_truncate,      &io_wait_break,
    &io_write_command, &io_writev,
};

static const struct io_command *command_find(const char *name)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(commands); i++) {
        const struct io_command *c = commands[i];

        if (!strcmp(c->name, name) || (c->alias && !strcmp(c->alias, name)))
            return c;
    }
    return NULL;
}

static void command_print(const char *name, const struct io_command *c)
{
    printf("%s %s%s-- %s\n", name, c->args ? c->args : "", c->args ? " " : "",
           c->summary);
}

int io_usage(const struct io_command *command)
{
    command_print(command->name, command);
    return -EINVAL;
}

static int command_count_wrong(const struct io_command *c, int n)
{
    if (c->max < 0)
        tool_error("%s takes at least %d arguments, not %d", c->name, c->min,
                   n);
    else if (c->max == c->min)
        tool_error("%s takes %d arguments, not %d", c->name, c->min, n);
    else
        tool_error("%s takes %d to %d arguments, not %d", c->name, c->min,
                   c->max, n);
    return -EINVAL;
}

static int command_call(struct io *io, const struct io_command *c, int argc,
                        char **argv)
{
    if (!(c->flags & IO_NO_FILE) && !io->image) {
        /* Scripts look for these words. */
        fflush(stdout);
        fprintf(stderr, "no file open, try 'help open'\n");
        return -EINVAL;
    }
    if (argc - 1 < c->min || (c->max >= 0 && argc - 1 > c->max))
        return command_count_wrong(c, argc - 1);
    if (c->flags & IO_WRITES && io->how.read_only) {
        tool_error("'%s' is open for reading only",
                   rhea_image_filename(io->image));
        return -EACCES;
    }
    optind = 0;
    opterr = 0;
    return c->run(io, argc, argv);
}

#define IO_SPACES " \t"

/* Words stand between spaces; there are no quotes. */
static int command_split(char *line, char ***words)
{
    char *rest, *word;
    int n = 0;

    *words = tool_realloc(NULL, sizeof(**words));
    for (word = strtok_r(line, IO_SPACES, &rest); word;
         word = strtok_r(NULL, IO_SPACES, &rest)) {
        *words = tool_realloc(*words, (size_t)(n + 2) * sizeof(**words));
        (*words)[n++] = word;
    }
    (*words)[n] = NULL;
    return n;
}

int io_run(struct io *io, const char *line)
{
    char *copy = tool_strdup(line), **words;
    int n = command_split(copy, &words), ret = 0;

    if (n) {
        const struct io_command *c = command_find(words[0]);

        if (c) {
            if (!(c->flags & IO_BACKGROUND))
                io_aio_poll(io);
            ret = command_call(io, c, n, words);
        } else {
            tool_error("there is no command '%s'; `help` lists them", words[0]);
            ret = -EINVAL;
        }
    }
    free(words);
    free(copy);
    return ret;
}

static int help_run(struct io *io, int argc, char **argv)
{
    const struct io_command *c;

    (void)io;
    if (argc < 2) {
        for (size_t i = 0; i < RHEA_ARRAY_SIZE(commands); i++)
            command_print(commands[i]->name, commands[i]);
        printf("\n`help COMMAND` tells more of one.\n");
        return 0;
    }
    c = command_find(argv[1]);
    if (!c) {
        tool_error("there is no command '%s'", argv[1]);
        return -EINVAL;
    }
    command_print(argv[1], c);
    if (c->help)
        printf("\n%s\n", c->help);
    return 0;
}

const struct io_command io_help = {
    .name = "help",
    .alias = "?",
    .run = help_run,
    .max = 1,
    .flags = IO_NO_FILE,
    .args = "[command]",
    .summary = "tell what commands there are, or of one of them",
};
