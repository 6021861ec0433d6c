/* SPDX-License-Identifier: MIT */
/* Standing between gdb and QEMU: what all commands that do so share. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/size.h"
#include "trace.h"

enum { DEFAULT_BUFFER = 64 << 20 };

static volatile sig_atomic_t stop;
static sigset_t waiting;

static void note_signal(int number)
{
    stop = number;
}

/* They are blocked but while the session waits. */
static void catch_signals(void)
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
    sigprocmask(SIG_BLOCK, &block, &waiting);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigdelset(&waiting, signals[i]);
}

int run_signal(void)
{
    return stop;
}

void run_init(struct run *r)
{
    *r = (struct run){.how = {.limit = DEFAULT_BUFFER,
                              .timeout = STUB_TIMEOUT,
                              .stop = &stop,
                              .signals = &waiting}};
}

/* --- options ------------------------------------------------------------- */

const char run_help[] =
    "  -s, --stub ADDRESS    QEMU's stub (its -gdb or -s)\n"
    "  -f, --file FILE       where trace frames are kept; must not exist\n"
    "  -b, --buffer SIZE     room for trace frames (64M)\n"
    "  -w, --way WAY         how hits are noticed: auto, stub, hardware, "
    "plugin\n"
    "  -u, --plugin PATH     the socket of the plugin in QEMU, where it was "
    "told one\n"
    "  -a, --arch ARCH       the registers that gdb gets: auto (by the mode "
    "of\n"
    "                        the processor when gdb comes), x86-64, i386, "
    "i8086\n"
    "  -t, --timeout SECONDS how long the stub may take to answer (30)\n";

static int set_way(struct run *r, const char *name)
{
    static const char *const names[] = {"auto", "stub", "hardware", "plugin"};

    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(names); i++) {
        if (!strcmp(name, names[i])) {
            r->how.way = (enum session_way)i;
            return 0;
        }
    }
    tool_error("there is no way %s: say auto, stub, hardware or plugin", name);
    return -EINVAL;
}

static int set_arch(struct run *r, const char *name)
{
    static const char *const names[] = {"auto", "x86-64", "i386", "i8086"};

    for (unsigned i = 0; i < 4; i++) {
        if (!strcmp(name, names[i])) {
            r->how.arch = (enum session_arch)i;
            return 0;
        }
    }
    tool_error("there is no architecture %s: say auto, x86-64, i386 or i8086",
               name);
    return -EINVAL;
}

int run_get_seconds(const char *option, const char *text, double *seconds)
{
    char *end;

    *seconds = strtod(text, &end);
    if (*end || !*text || !(*seconds > 0) || *seconds > 1e6) {
        tool_error("%s %s is no number of seconds", option, text);
        return -EINVAL;
    }
    return 0;
}

static int set_timeout(struct run *r, const char *text)
{
    double seconds;
    int ret = run_get_seconds("--timeout", text, &seconds);

    if (ret == 0)
        r->how.timeout = (int)(seconds * 1000);
    return ret;
}

static int set_size(struct run *r, const char *text)
{
    struct rhea_error err;

    if (size_parse(text, &r->how.limit, &err) < 0) {
        tool_error("--buffer %s: %s", text, err.text);
        return -EINVAL;
    }
    return 0;
}

int run_option(struct run *r, int c, const char *text)
{
    switch (c) {
    case 's':
        r->how.stub = text;
        return 0;
    case 'f':
        snprintf(r->file, sizeof(r->file), "%s", text);
        return 0;
    case 'b':
        return set_size(r, text);
    case 'w':
        return set_way(r, text);
    case 'u':
        r->how.plugin = text;
        return 0;
    case 'a':
        return set_arch(r, text);
    case 't':
        return set_timeout(r, text);
    default:
        return -ENOENT;
    }
}

/* A mistyped command is not to be started. */
static bool is_command_line(char **argv, int first)
{
    const char *slash = strrchr(argv[first], '/');

    return !strcmp(argv[first - 1], "--") || slash ||
           !strncmp(argv[first], "qemu", 4);
}

int run_check_qemu(const struct run *r, int argc, char **argv)
{
    if (!r->how.stub == (optind == argc)) {
        tool_error("say either --stub ADDRESS or -- and QEMU's command line");
        return -EINVAL;
    }
    if (optind < argc && !is_command_line(argv, optind)) {
        tool_error("there is no command %s: say record, report, or -- and "
                   "QEMU's command line",
                   argv[optind]);
        return -EINVAL;
    }
    return 0;
}

int trace_other_option(int c, char **argv, void (*help)(void))
{
    switch (c) {
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

/* --- life ---------------------------------------------------------------- */

int run_prepare(struct run *r, char **qemu, struct rhea_error *err)
{
    bool told = r->how.plugin != NULL;
    int ret;

    catch_signals();
    ret = launch_folder(&r->launch, err);
    if (ret == 0 && !r->how.stub) {
        r->launch.plugin = r->how.way == SESSION_PLUGIN ||
                           (r->how.way == SESSION_AUTO && plugin_suits(qemu));
        ret = launch_start(&r->launch, qemu, err);
        if (ret == 0)
            ret = launch_wait(&r->launch, err);
        r->how.stub = r->launch.stub;
        r->how.child = r->launch.pid;
        if (r->launch.plugin)
            r->how.plugin = r->launch.socket;
    }
    /* Whoever says where the plugin is does not want to do without. */
    if (told && !r->launch.plugin && r->how.way == SESSION_AUTO)
        r->how.way = SESSION_PLUGIN;
    r->own_file = !r->file[0];
    if (r->own_file)
        snprintf(r->file, sizeof(r->file), "%s/frames", r->launch.folder);
    r->how.file = r->file;
    return ret;
}

void run_tell_way(const struct run *r, const struct session *s)
{
    char path[2048];

    /* That ours has none, plugin_suits has told. */
    if (!s->no_plugin[0] || (r->launch.pid && !r->launch.plugin))
        return;
    fprintf(stderr, "%s: each hit will stop the guest for a moment: %s\n",
            tool_name, s->no_plugin);
    if (!r->launch.pid && plugin_find(path, sizeof(path)))
        fprintf(stderr, "%s: a QEMU loads the plugin that is told -plugin %s\n",
                tool_name, path);
}

int run_finish(struct run *r, int ret, const struct rhea_error *err)
{
    int code;

    if (ret < 0 && ret != -EINTR)
        tool_error("%s", err->text);
    code = launch_finish(&r->launch, ret < 0);
    if (ret == -EINTR)
        return 128 + stop;
    return ret < 0 ? 1 : code;
}
