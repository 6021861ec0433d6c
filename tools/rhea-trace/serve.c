/* SPDX-License-Identifier: MIT */
/* rhea-trace without a command: stand between gdb and QEMU. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <unistd.h>

#include "base/size.h"
#include "trace.h"

enum { DEFAULT_BUFFER = 64 << 20 };

struct serve {
    struct session_how how;
    struct launch launch;
    char file[512];
    const char *listen;
    bool own_file;
    bool quiet;
};

static volatile sig_atomic_t stop;

static void note_signal(int number)
{
    stop = number;
}

/* They are blocked but while the session waits. */
static void catch_signals(sigset_t *waiting)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = note_signal};
    sigset_t block;

    sigemptyset(&block);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        sigaction(signals[i], &action, NULL);
        sigaddset(&block, signals[i]);
    }
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &block, waiting);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigdelset(waiting, signals[i]);
}

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
        "  -s, --stub ADDRESS    QEMU's stub (its -gdb or -s)\n"
        "  -f, --file FILE       where trace frames are kept; must not exist\n"
        "  -b, --buffer SIZE     room for trace frames (64M)\n"
        "  -w, --way WAY         how hits are noticed: auto, stub or hardware\n"
        "  -t, --timeout SECONDS how long the stub may take to answer (30)\n"
        "  -q, --quiet           do not tell where gdb can connect\n"
        "  -h, --help            tell what there is\n"
        "  -V, --version         tell the version\n",
        tool_name, tool_name);
}

static int set_way(struct serve *v, const char *name)
{
    static const char *const names[] = {"auto", "stub", "hardware"};

    for (unsigned i = 0; i < 3; i++) {
        if (!strcmp(name, names[i])) {
            v->how.way = (enum session_way)i;
            return 0;
        }
    }
    tool_error("there is no way %s: say auto, stub or hardware", name);
    return -EINVAL;
}

static int set_timeout(struct serve *v, const char *text)
{
    char *end;
    double seconds = strtod(text, &end);

    if (*end || !*text || !(seconds > 0) || seconds > 1e6) {
        tool_error("--timeout %s is no number of seconds", text);
        return -EINVAL;
    }
    v->how.timeout = (int)(seconds * 1000);
    return 0;
}

static int set_size(struct serve *v, const char *text)
{
    struct rhea_error err;

    if (size_parse(text, &v->how.limit, &err) < 0) {
        tool_error("--buffer %s: %s", text, err.text);
        return -EINVAL;
    }
    return 0;
}

/* 1: the program is to end well. */
static int set_option(struct serve *v, int c, char **argv)
{
    switch (c) {
    case 'l':
        v->listen = optarg;
        return 0;
    case 's':
        v->how.stub = optarg;
        return 0;
    case 'f':
        snprintf(v->file, sizeof(v->file), "%s", optarg);
        return 0;
    case 'b':
        return set_size(v, optarg);
    case 'w':
        return set_way(v, optarg);
    case 't':
        return set_timeout(v, optarg);
    case 'q':
        v->quiet = true;
        return 0;
    case 'h':
        help();
        return 1;
    case 'V':
        tool_print_version();
        return 1;
    case ':':
        tool_error("%s needs an argument", argv[optind - 1]);
        return -EINVAL;
    default:
        tool_error("there is no option %s", argv[optind - 1]);
        return -EINVAL;
    }
}

static int set_options(struct serve *v, int argc, char **argv)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'},
        {"stub", required_argument, NULL, 's'},
        {"file", required_argument, NULL, 'f'},
        {"buffer", required_argument, NULL, 'b'},
        {"way", required_argument, NULL, 'w'},
        {"timeout", required_argument, NULL, 't'},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0},
    };
    int c, ret = 0;

    opterr = 0;
    while (ret == 0 && (c = getopt_long(argc, argv, "+:l:s:f:b:w:t:qhV",
                                        options, NULL)) != -1)
        ret = set_option(v, c, argv);
    if (ret == 0 && !v->how.stub == (optind == argc)) {
        tool_error("say either --stub ADDRESS or -- and QEMU's command line");
        ret = -EINVAL;
    }
    return ret;
}

static void ready(void *opaque, const char *address)
{
    const struct serve *v = opaque;

    if (!v->quiet)
        fprintf(stderr, "%s: gdb can connect: target remote %s\n", tool_name,
                address);
}

/* QEMU, if it is ours, and where things are. */
static int prepare(struct serve *v, char **qemu, struct rhea_error *err)
{
    int ret = launch_folder(&v->launch, err);

    if (ret == 0 && !v->how.stub) {
        ret = launch_start(&v->launch, qemu, err);
        if (ret == 0)
            ret = launch_wait(&v->launch, err);
        v->how.stub = v->launch.stub;
        v->how.child = v->launch.pid;
    }
    v->how.resume = !v->launch.wait;
    v->how.listen = v->listen             ? v->listen
                    : v->launch.listen[0] ? v->launch.listen
                                          : ":1234";
    v->own_file = !v->file[0];
    if (v->own_file)
        snprintf(v->file, sizeof(v->file), "%s/frames", v->launch.folder);
    v->how.file = v->file;
    return ret;
}

/* Frames that nobody asked to keep stay where they may be somebody's. */
static void tidy(const struct serve *v, uint64_t n_frames)
{
    if (v->own_file && n_frames)
        tool_error("%" PRIu64 " trace frames are in %s", n_frames, v->file);
    else if (v->own_file)
        unlink(v->file);
}

static int serve(struct serve *v, struct rhea_error *err)
{
    struct session s;
    uint64_t n;
    int ret = session_open(&s, &v->how, err);

    if (ret < 0)
        return ret;
    ret = session_serve(&s, err);
    n = frames_count(s.tracer.frames);
    session_close(&s);
    tidy(v, n);
    return ret;
}

int serve_main(int argc, char **argv)
{
    struct serve v = {.how = {.limit = DEFAULT_BUFFER,
                              .timeout = STUB_TIMEOUT,
                              .stop = &stop}};
    struct rhea_error err = {0};
    sigset_t waiting;
    int ret = set_options(&v, argc, argv), code;

    if (ret != 0)
        return ret < 0 ? 2 : 0;
    catch_signals(&waiting);
    v.how.signals = &waiting;
    v.how.ready = ready;
    v.how.opaque = &v;
    ret = prepare(&v, argv + optind, &err);
    if (ret == 0)
        ret = serve(&v, &err);
    if (ret < 0 && ret != -EINTR)
        tool_error("%s", err.text);
    code = launch_finish(&v.launch, ret < 0);
    if (ret == -EINTR)
        return 128 + stop;
    return ret < 0 ? 1 : code;
}
