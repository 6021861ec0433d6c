/* SPDX-License-Identifier: MIT */
/* rhea-trace without a command: stand between gdb and QEMU. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <unistd.h>

#include "trace.h"

struct serve {
    struct run run;
    const char *listen;
    bool quiet;
};

static void help(void)
{
    printf(
        "usage: %s [OPTION...] --stub ADDRESS\n"
        "       %s [OPTION...] -- qemu-system-x86_64 ARGUMENT...\n\n"
        "Stand between gdb and QEMU, and give gdb tracepoints.\n"
        "gdb connects with `target remote ADDRESS`.\n\n"
        "  -l, --listen ADDRESS  where gdb connects: HOST:PORT, :PORT or a\n"
        "                        socket's path (:1234, or what -s and -gdb of\n"
        "                        QEMU say)\n"
        "%s"
        "  -q, --quiet           do not tell where gdb can connect\n"
        "  -h, --help            tell what there is\n"
        "  -V, --version         tell the version\n",
        tool_name, tool_name, run_help);
}

/* 1: the program is to end well. */
static int set_option(struct serve *v, int c, char **argv)
{
    int ret;

    switch (c) {
    case 'l':
        v->listen = optarg;
        return 0;
    case 'q':
        v->quiet = true;
        return 0;
    default:
        ret = run_option(&v->run, c, optarg);
        return ret == -ENOENT ? trace_other_option(c, argv, help) : ret;
    }
}

static int set_options(struct serve *v, int argc, char **argv)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        RUN_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    int c, ret = 0;

    opterr = 0;
    while (ret == 0 && (c = getopt_long(argc, argv, "+:l:qhV" RUN_LETTERS,
                                        options, NULL)) != -1)
        ret = set_option(v, c, argv);
    if (ret == 0)
        ret = run_check_qemu(&v->run, argc, argv);
    return ret;
}

static void ready(void *opaque, const char *address)
{
    const struct serve *v = opaque;

    if (!v->quiet)
        fprintf(stderr, "%s: gdb can connect: target remote %s\n", tool_name,
                address);
}

/* Frames that nobody asked to keep stay where they may be somebody's. */
static void tidy(const struct run *r, uint64_t n_frames)
{
    if (r->own_file && n_frames)
        tool_error("%" PRIu64 " trace frames are in %s", n_frames, r->file);
    else if (r->own_file)
        unlink(r->file);
}

static int serve(struct serve *v, struct rhea_error *err)
{
    const struct launch *l = &v->run.launch;
    struct session s;
    uint64_t n;
    int ret;

    v->run.how.resume = !l->wait;
    v->run.how.listen = v->listen      ? v->listen
                        : l->listen[0] ? l->listen
                                       : ":1234";
    v->run.how.ready = ready;
    v->run.how.opaque = v;
    ret = session_open(&s, &v->run.how, err);
    /* The stub itself, say, which is told :1234 more often than not. */
    if (ret == -EADDRINUSE && !v->listen) {
        struct rhea_error why = *err;

        return rhea_error_set(err, EADDRINUSE,
                              "%s: say with --listen where gdb is to connect",
                              why.text);
    }
    if (ret < 0)
        return ret;
    if (!v->quiet)
        run_tell_way(&v->run, &s);
    ret = session_serve(&s, err);
    if (ret == -EINTR)
        session_leave(&s);
    n = frames_count(s.tracer.frames);
    session_close(&s);
    tidy(&v->run, n);
    return ret;
}

int serve_main(int argc, char **argv)
{
    struct rhea_error err = {0};
    struct serve v = {0};
    int ret;

    run_init(&v.run);
    ret = set_options(&v, argc, argv);
    if (ret != 0)
        return ret < 0 ? 2 : 0;
    ret = run_prepare(&v.run, argv + optind, &err);
    if (ret == 0)
        ret = serve(&v, &err);
    return run_finish(&v.run, ret, &err);
}
