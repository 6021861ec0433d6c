/* SPDX-License-Identifier: MIT */
/* rhea-trace record: trace without gdb's prompt, and save what comes of it. */
#include "record.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "gdb/status.h"
#include "gdb/tfile.h"

enum { LOOK = 10000 /* microseconds between two looks at how it goes */ };

/* Why it is over. */
enum outcome {
    OUTCOME_NONE,  /* a signal, or the guest's end */
    OUTCOME_GDB,   /* gdb has failed */
    OUTCOME_ENDED, /* tracing has, by itself */
    OUTCOME_TIME,
};

struct record {
    struct run run;
    struct record_wish wish;
    struct record_place common; /* for all places: --collect before any --at */
    const char *output;
    bool quiet;
    double seconds; /* 0: no matter */
    struct record_gdb gdb;
    /* The thread that waits for the end. */
    pthread_t watcher;
    const struct frames_control *control;
    int over;    /* atomic: it need not look any more */
    int outcome; /* atomic, enum outcome */
};

static const char default_output[] = "trace.tf";

static void help(void)
{
    printf(
        "usage: %s record --at PLACE [--collect EXPRESSION]... [OPTION...]\n"
        "           {--stub ADDRESS | -- qemu-system-x86_64 ARGUMENT...}\n\n"
        "Trace a guest and save the trace, for `report` and for gdb.\n\n"
        "  -p, --at PLACE        a symbol, FILE:LINE or *ADDRESS; may be said\n"
        "                        again\n"
        "  -c, --collect WHAT    what to record there (before any --at:\n"
        "                        everywhere), as gdb's `collect` takes it;\n"
        "                        /s in front records a string\n"
        "  -i, --condition EXPRESSION  only where it is true\n"
        "  -n, --count N         end when a place was passed so often\n"
        "  -d, --for SECONDS     end then\n"
        "  -o, --output FILE     gdb's trace file (%s, if there is none)\n"
        "  -y, --symbols FILE    where names come from: the guest's ELF file\n"
        "  -g, --gdb PROGRAM     what resolves names and expressions (gdb)\n"
        "  -e, --gdb-command COMMAND  for gdb, before places are looked for\n"
        "%s"
        "  -q, --quiet           do not tell what was recorded\n"
        "  -h, --help            tell what there is\n"
        "  -V, --version         tell the version\n\n"
        "The time and the processor's number are always recorded. gdb is not\n"
        "needed where places are addresses and WHAT is $regs, a register, or\n"
        "memory: ADDRESS,LENGTH, $REGISTER,LENGTH, $REGISTER+OFFSET,LENGTH.\n",
        tool_name, default_output, run_help);
}

/* --- options ------------------------------------------------------------- */

/* Lines of a script must stay lines. */
static int check_text(const char *option, const char *text)
{
    for (const char *p = text; *p; p++) {
        if ((unsigned char)*p < ' ') {
            tool_error("%s: a control character cannot be in it", option);
            return -EINVAL;
        }
    }
    if (*text)
        return 0;
    tool_error("%s is empty", option);
    return -EINVAL;
}

static int too_many(const char *option)
{
    tool_error("%s more than %d times", option, RECORD_MAX);
    return -EINVAL;
}

static struct record_place *current(struct record *r)
{
    return r->wish.n ? &r->wish.places[r->wish.n - 1] : &r->common;
}

static int add_place(struct record *r, const char *text)
{
    struct record_wish *w = &r->wish;

    if (w->n == RECORD_MAX)
        return too_many("--at");
    w->places[w->n] = r->common;
    w->places[w->n++].at = text;
    return check_text("--at", text);
}

static int add_collect(struct record *r, const char *text)
{
    struct record_place *p = current(r);

    if (p->n == RECORD_MAX)
        return too_many("--collect");
    p->collect[p->n++] = text;
    return check_text("--collect", text);
}

static int add_command(struct record *r, const char *text)
{
    if (r->wish.n_commands == RECORD_MAX)
        return too_many("--gdb-command");
    r->wish.commands[r->wish.n_commands++] = text;
    return check_text("--gdb-command", text);
}

static int set_condition(struct record *r, const char *text)
{
    current(r)->condition = text;
    return check_text("--condition", text);
}

static int set_count(struct record *r, const char *text)
{
    char *end;

    errno = 0;
    r->wish.count = strtoull(text, &end, 10);
    if (!errno && *text >= '0' && *text <= '9' && !*end && r->wish.count &&
        r->wish.count <= INT32_MAX) /* as far as gdb counts */
        return 0;
    tool_error("--count %s: say a number from 1 to %d", text, INT32_MAX);
    return -EINVAL;
}

/* 1: the program is to end well. */
static int set_option(struct record *r, int c, char **argv)
{
    int ret;

    switch (c) {
    case 'p':
        return add_place(r, optarg);
    case 'c':
        return add_collect(r, optarg);
    case 'i':
        return set_condition(r, optarg);
    case 'n':
        return set_count(r, optarg);
    case 'd':
        return run_get_seconds("--for", optarg, &r->seconds);
    case 'o':
        r->output = optarg;
        return check_text("--output", optarg);
    case 'y':
        r->wish.symbols = optarg;
        return check_text("--symbols", optarg);
    case 'g':
        r->wish.gdb = optarg;
        return check_text("--gdb", optarg);
    case 'e':
        return add_command(r, optarg);
    case 'q':
        r->quiet = true;
        return 0;
    default:
        ret = run_option(&r->run, c, optarg);
        return ret == -ENOENT ? trace_other_option(c, argv, help) : ret;
    }
}

/* The guest's program says whether registers have 32 bits; what the processor
 * does just now need not. */
static void choose_arch(struct record *r)
{
    FILE *file = fopen(r->wish.symbols, "re");
    unsigned char magic[5];

    if (file && fread(magic, sizeof(magic), 1, file) == 1 &&
        !memcmp(magic,
                "\x7f"
                "ELF",
                4))
        r->run.how.arch =
            magic[4] == 1 ? SESSION_ARCH_I386 : SESSION_ARCH_X86_64;
    if (file)
        fclose(file);
}

/* Not only when all has been recorded. */
static int check_folder(const char *output)
{
    RHEA_AUTO_FREE char *folder = strdup(output);
    char *slash = folder ? strrchr(folder, '/') : NULL;

    if (slash)
        slash[1] = 0;
    if (access(slash ? folder : ".", W_OK | X_OK) == 0)
        return 0;
    tool_error("--output %s: no file can be made there: %s", output,
               strerror(errno));
    return -EINVAL;
}

static int check(struct record *r, int argc, char **argv)
{
    if (!r->wish.n) {
        tool_error("say with --at where to record");
        return -EINVAL;
    }
    if (run_check_qemu(&r->run, argc, argv) < 0)
        return -EINVAL;
    if (r->wish.symbols && access(r->wish.symbols, R_OK) < 0) {
        tool_error("--symbols %s: %s", r->wish.symbols, strerror(errno));
        return -EINVAL;
    }
    if (!r->output && access(default_output, F_OK) == 0) {
        tool_error("%s is there already: say with --output where to save the "
                   "trace",
                   default_output);
        return -EINVAL;
    }
    if (!r->output)
        r->output = default_output;
    if (check_folder(r->output) < 0)
        return -EINVAL;
    if (r->wish.symbols && r->run.how.arch == SESSION_ARCH_AUTO)
        choose_arch(r);
    return 0;
}

static int set_options(struct record *r, int argc, char **argv)
{
    static const struct option options[] = {
        {"at", required_argument, NULL, 'p'},
        {"collect", required_argument, NULL, 'c'},
        {"condition", required_argument, NULL, 'i'},
        {"count", required_argument, NULL, 'n'},
        {"for", required_argument, NULL, 'd'},
        {"output", required_argument, NULL, 'o'},
        {"symbols", required_argument, NULL, 'y'},
        {"gdb", required_argument, NULL, 'g'},
        {"gdb-command", required_argument, NULL, 'e'},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        RUN_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    int c, ret = 0;

    opterr = 0;
    while (ret == 0 &&
           (c = getopt_long(argc, argv, "+:p:c:i:n:d:o:y:g:e:qhV" RUN_LETTERS,
                            options, NULL)) != -1)
        ret = set_option(r, c, argv);
    return ret ? ret : check(r, argc, argv);
}

/* --- waiting for the end ------------------------------------------------- */

static void finish(struct record *r, enum outcome outcome)
{
    __atomic_store_n(&r->outcome, outcome, __ATOMIC_RELEASE);
    kill(getpid(), SIGTERM); /* it is blocked in this thread */
}

/* Until gdb has gone; whether it has started tracing. */
static bool watch_gdb(struct record *r)
{
    int status;

    while (r->gdb.pid && !__atomic_load_n(&r->over, __ATOMIC_ACQUIRE)) {
        if (waitpid(r->gdb.pid, &status, WNOHANG) == r->gdb.pid) {
            r->gdb.pid = 0;
            return WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
        usleep(LOOK);
    }
    return !r->gdb.pid;
}

/* It lets the session serve, and ends it by the signal that users send. */
static void *watch(void *opaque)
{
    struct record *r = opaque;
    int64_t until;

    if (!watch_gdb(r)) {
        finish(r, OUTCOME_GDB);
        return NULL;
    }
    until =
        r->seconds > 0 ? wire_now() + (int64_t)(r->seconds * 1000) : INT64_MAX;
    while (!__atomic_load_n(&r->over, __ATOMIC_ACQUIRE)) {
        if (!frames_is_running(r->control)) {
            finish(r, OUTCOME_ENDED);
            break;
        }
        if (wire_now() >= until) {
            finish(r, OUTCOME_TIME);
            break;
        }
        usleep(LOOK);
    }
    return NULL;
}

/* --- recording ----------------------------------------------------------- */

/* Without gdb. */
static int start_own(struct record *r, struct session *s,
                     struct rhea_error *err)
{
    struct tracer *t = &s->tracer;
    int ret = session_choose_view(s, err);

    if (ret == 0)
        ret = record_define(&r->wish, t->experiment, err);
    if (ret == 0)
        ret = tracer_start(t, err);
    frames_control(t->frames)->disconnected = 1;
    s->was_running = true;
    return ret;
}

static int save(struct record *r, struct session *s, struct rhea_error *err)
{
    struct frames *f = s->tracer.frames;
    struct packet_text text = {0};
    struct status status;
    char words[600];
    int ret = tfile_save(f, s->tracer.experiment, r->output, err);

    if (ret < 0) {
        tool_error("the trace frames are in %s", r->run.file);
        r->run.own_file = false;
        return ret;
    }
    tfile_put_status(f, s->tracer.experiment, NULL, &text);
    status_parse(&status, text.data ? text.data : "", text.len);
    packet_text_finish(&text);
    status_describe(&status, words, sizeof(words));
    if (!r->quiet)
        fprintf(stderr, "%s: %" PRIu64 " frames in %s, %s\n", tool_name,
                frames_count(f), r->output, words);
    if (!strcmp(status.stop, "terror"))
        return rhea_error_set(err, EIO, "tracing %s", words);
    return 0;
}

static int serve(struct record *r, struct session *s, struct rhea_error *err)
{
    struct rhea_error failure;
    int ret = session_serve(s, &failure);
    enum outcome outcome;

    __atomic_store_n(&r->over, 1, __ATOMIC_RELEASE);
    pthread_join(r->watcher, NULL);
    outcome = (enum outcome)__atomic_load_n(&r->outcome, __ATOMIC_ACQUIRE);
    frames_stop(s->tracer.frames, FRAMES_STOPPED, 0, NULL);
    if (ret == -EINTR)
        session_leave(s);
    if (outcome == OUTCOME_GDB && ret == -EINTR)
        return record_gdb_explain(&r->gdb, &r->wish, err);
    if (ret < 0 && ret != -EINTR)
        tool_error("%s", failure.text);
    if (!frames_control(s->tracer.frames)->start)
        return rhea_error_set(err, EINTR, "it ended before tracing began");
    return save(r, s, err);
}

static int record(struct record *r, struct rhea_error *err)
{
    const char *folder = r->run.launch.folder;
    bool needs_gdb = record_needs_gdb(&r->wish);
    char socket[300];
    struct session s;
    int ret;

    snprintf(socket, sizeof(socket), "%s/gdb", folder);
    r->run.how.listen = socket;
    ret = session_open(&s, &r->run.how, err);
    if (ret < 0)
        return ret;
    if (!r->quiet)
        run_tell_way(&r->run, &s);
    if (needs_gdb)
        ret = record_gdb_start(&r->gdb, &r->wish, folder, socket, err);
    else
        ret = start_own(r, &s, err);
    if (ret == 0) {
        r->control = frames_control(s.tracer.frames);
        ret = -pthread_create(&r->watcher, NULL, watch, r);
        if (ret < 0)
            rhea_error_errno(err, -ret, "cannot start a thread");
    }
    if (ret == 0)
        ret = serve(r, &s, err);
    record_gdb_finish(&r->gdb);
    session_close(&s);
    if (r->run.own_file)
        unlink(r->run.file);
    return ret;
}

/* QEMU's arguments with -S, so that nothing is missed. */
static char **add_wait(char **qemu)
{
    static char wait[] = "-S";
    char **arguments;
    size_t n = 0;

    while (qemu[n])
        n++;
    arguments = tool_realloc(NULL, (n + 2) * sizeof(*arguments));
    arguments[0] = qemu[0];
    arguments[1] = wait;
    for (size_t i = 1; i <= n; i++)
        arguments[i + 1] = qemu[i];
    return arguments;
}

int record_main(int argc, char **argv)
{
    static struct record r; /* large */
    struct rhea_error err = {0};
    char **qemu = NULL;
    int ret;

    run_init(&r.run);
    ret = set_options(&r, argc, argv);
    if (ret != 0)
        return ret < 0 ? 2 : tool_finish_output(0, 1);
    if (optind < argc)
        qemu = add_wait(argv + optind);
    r.run.how.resume = !qemu;
    ret = run_prepare(&r.run, qemu, &err);
    if (ret == 0)
        ret = record(&r, &err);
    free(qemu);
    if (ret < 0)
        tool_error("%s", err.text);
    (void)launch_finish(&r.run.launch, true);
    return ret < 0 ? 1 : 0;
}
