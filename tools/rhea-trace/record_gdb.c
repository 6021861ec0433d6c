/* SPDX-License-Identifier: MIT */
/* gdb, run with a script that we write: a wish of the user's is a line of it,
 * so that the line which gdb refuses says which wish that was. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "record.h"

/* --- the script ---------------------------------------------------------- */

static const char preface[] = "set confirm off\n"
                              "set pagination off\n"
                              "set width 0\n"
                              "set debuginfod enabled off\n"
                              "set breakpoint pending off\n"
                              /* The guest's memory may not be loaded yet. */
                              "set trust-readonly-sections on\n";

/* What a line of the script is; LINE 0 writes it, else the line's text is
 * looked for. */
struct script {
    FILE *out; /* NULL: nothing is written */
    unsigned line, wanted;
    char what[300]; /* the wish at the line that is wanted */
};

static void put(struct script *s, const char *option, const char *wish,
                const char *fmt, ...) RHEA_PRINTF(4, 5);

static void put(struct script *s, const char *option, const char *wish,
                const char *fmt, ...)
{
    va_list args;

    s->line++;
    if (s->line == s->wanted)
        snprintf(s->what, sizeof(s->what), "%s%s%s", option, wish ? " " : "",
                 wish ? wish : "");
    if (!s->out)
        return;
    va_start(args, fmt);
    vfprintf(s->out, fmt, args);
    va_end(args);
    fputc('\n', s->out);
}

/* A number alone is an address, which gdb wants with a star. */
static const char *star(const char *at)
{
    return *at >= '0' && *at <= '9' && !strchr(at, ':') ? "*" : "";
}

static void put_place(struct script *s, const struct record_wish *w,
                      const struct record_place *p)
{
    put(s, "--at", p->at, "trace %s%s", star(p->at), p->at);
    if (p->condition)
        put(s, "--condition", p->condition, "condition $bpnum %s",
            p->condition);
    put(s, "--at", p->at, "actions");
    for (size_t i = 0; i < p->n; i++)
        put(s, "--collect", p->collect[i], "collect%s%s",
            p->collect[i][0] == '/' ? "" : " ", p->collect[i]);
    put(s, "--at", p->at, "collect $trace_timestamp, $trace_cpu");
    put(s, "--at", p->at, "end");
    if (w->count)
        put(s, "--count", NULL, "passcount %" PRIu64, w->count);
}

static void put_script(struct script *s, const struct record_wish *w,
                       const char *socket)
{
    for (const char *p = preface; *p; p++)
        s->line += *p == '\n';
    if (s->out)
        fputs(preface, s->out);
    if (w->symbols)
        put(s, "--symbols", w->symbols, "file %s", w->symbols);
    put(s, "connecting", NULL, "target remote %s", socket);
    for (size_t i = 0; i < w->n_commands; i++)
        put(s, "--gdb-command", w->commands[i], "%s", w->commands[i]);
    for (size_t i = 0; i < w->n; i++)
        put_place(s, w, &w->places[i]);
    put(s, "starting", NULL, "set disconnected-tracing on");
    put(s, "starting", NULL, "tstart");
    put(s, "leaving", NULL, "disconnect");
}

/* --- running it ---------------------------------------------------------- */

static void run(const struct record_gdb *g, const char *gdb)
{
    int log = open(g->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    sigset_t none;

    if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 ||
        dup2(log, 2) < 0)
        _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execlp(gdb, gdb, "-nx", "-batch", "-x", g->script, (char *)NULL);
    dprintf(2, "cannot run %s (%s): --gdb PROGRAM names another\n", gdb,
            strerror(errno));
    _exit(127);
}

int record_gdb_start(struct record_gdb *g, const struct record_wish *w,
                     const char *folder, const char *socket,
                     struct rhea_error *err)
{
    struct script s = {0};
    bool bad;

    snprintf(g->script, sizeof(g->script), "%s/script", folder);
    snprintf(g->log, sizeof(g->log), "%s/gdb.log", folder);
    s.out = fopen(g->script, "wxe");
    if (!s.out)
        return rhea_error_errno(err, errno, "cannot make %s", g->script);
    put_script(&s, w, socket);
    bad = ferror(s.out);
    if (fclose(s.out) != 0 || bad)
        return rhea_error_set(err, EIO, "cannot write %s", g->script);
    fflush(NULL);
    g->pid = fork();
    if (g->pid < 0) {
        g->pid = 0;
        return rhea_error_errno(err, errno, "cannot start gdb");
    }
    if (g->pid == 0)
        run(g, w->gdb ? w->gdb : "gdb");
    return 0;
}

/* `SCRIPT:LINE: Error in sourced command file:` and then the reason. */
static bool find_error(const struct record_gdb *g, unsigned *line, char *reason,
                       size_t room)
{
    RHEA_AUTO_FREE char *text = NULL;
    FILE *log = fopen(g->log, "re");
    size_t size = 0, len = strlen(g->script);
    bool found = false;

    reason[0] = 0;
    while (log && getline(&text, &size, log) > 0) {
        text[strcspn(text, "\n")] = 0;
        if (!strncmp(text, g->script, len) && text[len] == ':' &&
            strstr(text, "Error in sourced")) {
            *line = (unsigned)strtoul(text + len + 1, NULL, 10);
            found = true;
            reason[0] = 0;
        } else if (text[0] && (!found || !reason[0])) {
            snprintf(reason, room, "%s", text);
        }
    }
    if (log)
        fclose(log);
    return found;
}

int record_gdb_explain(const struct record_gdb *g, const struct record_wish *w,
                       struct rhea_error *err)
{
    struct script s = {0};
    char reason[400];

    if (!find_error(g, &s.wanted, reason, sizeof(reason)))
        return rhea_error_set(err, EIO, "gdb: %s",
                              reason[0] ? reason : "it has failed");
    put_script(&s, w, "");
    return rhea_error_set(err, EINVAL, "%s: %s%s", s.what, reason,
                          !w->symbols && strstr(reason, "ymbol table")
                              ? " (--symbols FILE names one)"
                              : "");
}

void record_gdb_finish(struct record_gdb *g)
{
    if (g->pid > 0) {
        kill(g->pid, SIGTERM);
        while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    if (g->script[0])
        unlink(g->script);
    if (g->log[0])
        unlink(g->log);
    *g = (struct record_gdb){0};
}
