/* SPDX-License-Identifier: MIT */
/* rhea-io: read and write parts of disk images, by commands. */
#include <errno.h>
#include <signal.h>

#include "io.h"

enum { MAIN_OBJECT = 256, MAIN_IMAGE_OPTS };

static const struct option main_options[] = {
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {"cmd", required_argument, NULL, 'c'},
    {"format", required_argument, NULL, 'f'},
    {"read-only", no_argument, NULL, 'r'},
    {"snapshot", no_argument, NULL, 's'},
    {"nocache", no_argument, NULL, 'n'},
    {"copy-on-read", no_argument, NULL, 'C'},
    {"misalign", no_argument, NULL, 'm'},
    {"native-aio", no_argument, NULL, 'k'},
    {"aio", required_argument, NULL, 'i'},
    {"discard", required_argument, NULL, 'd'},
    {"cache", required_argument, NULL, 't'},
    {"trace", required_argument, NULL, 'T'},
    {"object", required_argument, NULL, MAIN_OBJECT},
    {"image-opts", no_argument, NULL, MAIN_IMAGE_OPTS},
    {"force-share", no_argument, NULL, 'U'},
    {NULL, 0, NULL, 0},
};

struct main_arguments {
    struct io_how how;
    const char **commands;
    size_t n_commands;
    bool misalign, help, version;
};

static void main_help(void)
{
    printf("usage: %s [OPTION...] [-c COMMAND]... [FILE]\n\n"
           "Read and write parts of disk images, by commands.\n\n"
           "  -c, --cmd COMMAND    run a command; without any they are read\n"
           "                       from standard input; `-c help` lists them\n"
           "  -f, --format FMT     the image's format; else it is probed\n"
           "  -r, --read-only      open for reading only\n"
           "  -s, --snapshot       forget what was written in the end\n"
           "  -C, --copy-on-read   copy what is read from a backing file\n"
           "  -U, --force-share    open even if it is in use\n"
           "  -t, --cache MODE     writethrough (the default), writeback,\n"
           "                       none, directsync or unsafe\n"
           "  -n, --nocache        the same as -t none\n"
           "  -d, --discard MODE   unmap (the default) or ignore\n"
           "  -m, --misalign       use buffers that are not aligned\n"
           "      --object DEF     define an object: secret,id=...\n"
           "      --image-opts     FILE is a list of options\n"
           "  -h, --help           print this help\n"
           "  -V, --version        print the version\n\n"
           "-i MODE, -k and -T TRACE are taken from old scripts, and do\n"
           "nothing.\n",
           tool_name);
}

static int main_hint(void)
{
    fprintf(stderr, "`%s --help` lists the options.\n", tool_name);
    return -EINVAL;
}

static int main_option(struct main_arguments *a, int c, char **argv)
{
    switch (c) {
    case 'c':
        a->commands = tool_realloc(a->commands,
                                   (a->n_commands + 1) * sizeof(*a->commands));
        a->commands[a->n_commands++] = optarg;
        return 0;
    case 'f':
        free(a->how.format);
        a->how.format = tool_strdup(optarg);
        return 0;
    case 'm':
        a->misalign = true;
        return 0;
    case 'h':
        a->help = true;
        return 0;
    case 'V':
        a->version = true;
        return 0;
    case 'T':
        return 0;
    case MAIN_OBJECT:
        return tool_object_add(optarg);
    case MAIN_IMAGE_OPTS:
        a->how.image_opts = true;
        return 0;
    case ':':
        tool_error("%s needs an argument", argv[optind - 1]);
        return main_hint();
    case '?':
        tool_error("there is no option %s", argv[optind - 1]);
        return main_hint();
    default:
        return io_how_option(&a->how, c, optarg);
    }
}

static int main_arguments(struct main_arguments *a, int argc, char **argv)
{
    int c, ret = 0;

    opterr = 0;
    while (ret == 0 && (c = getopt_long(argc, argv, ":hVc:d:f:rsnCmki:t:T:U",
                                        main_options, NULL)) != -1)
        ret = main_option(a, c, argv);
    if (ret < 0 || a->help || a->version)
        return ret;
    if (argc - optind > 1) {
        tool_error("only one file can be opened at a time");
        return main_hint();
    }
    if (a->how.format && a->how.image_opts) {
        tool_error("-f and --image-opts exclude each other: say driver=%s",
                   a->how.format);
        return -EINVAL;
    }
    if (optind < argc)
        a->how.name = tool_strdup(argv[optind]);
    return 0;
}

/* Commands from standard input. */
static int main_read(struct io *io)
{
    char *line = NULL;
    size_t size = 0;
    int ret = 0;

    while (!io->quit) {
        ssize_t n;

        printf("%s> ", tool_name);
        fflush(stdout);
        n = getline(&line, &size, stdin);
        if (n < 0)
            break;
        if (n && line[n - 1] == '\n')
            line[n - 1] = '\0';
        if (io_run(io, line) < 0)
            ret = 1;
    }
    free(line);
    return ret;
}

static int main_run(struct io *io, const struct main_arguments *a)
{
    int ret = 0;

    if (!a->n_commands)
        return main_read(io);
    for (size_t i = 0; i < a->n_commands && !io->quit; i++) {
        if (io_run(io, a->commands[i]) < 0)
            ret = 1;
    }
    return ret;
}

int main(int argc, char **argv)
{
    struct main_arguments a = {.n_commands = 0};
    struct io io = {.image = NULL};
    int ret;

    signal(SIGPIPE, SIG_IGN);
    tool_set_name(argc ? argv[0] : NULL, "rhea-io", "qemu-io");
    ret = main_arguments(&a, argc, argv) < 0;
    if (ret == 0 && a.help) {
        main_help();
    } else if (ret == 0 && a.version) {
        tool_print_version();
    } else if (ret == 0) {
        io.misalign = a.misalign;
        io.image_opts = a.how.image_opts;
        if (a.how.name)
            ret = io_open(&io, &a.how) < 0;
        if (ret == 0)
            ret = main_run(&io, &a);
        if (io_close(&io) < 0)
            ret = 1;
    }
    io_how_finish(&io.how);
    io_how_finish(&a.how);
    free(a.commands);
    return tool_finish_output(ret, 1);
}
