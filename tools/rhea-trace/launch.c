/* SPDX-License-Identifier: MIT */
/* QEMU, started by us. */
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "trace.h"

enum { START_TIMEOUT = 30000 /* ms */ };

int launch_folder(struct launch *l, struct rhea_error *err)
{
    const char *base = getenv("TMPDIR");

    snprintf(l->folder, sizeof(l->folder), "%s/rhea-trace-XXXXXX",
             base && *base ? base : "/tmp");
    if (!mkdtemp(l->folder)) {
        int code = errno;

        rhea_error_errno(err, code, "cannot make a folder %s", l->folder);
        l->folder[0] = 0;
        return -code;
    }
    snprintf(l->stub, sizeof(l->stub), "%s/stub", l->folder);
    snprintf(l->socket, sizeof(l->socket), "%s/plugin", l->folder);
    return 0;
}

/* `tcp::1234,server=on,wait=off` or `tcp:HOST:PORT` or `unix:PATH,...`: where
 * gdb is to connect. */
static int take_listen(struct launch *l, const char *device,
                       struct rhea_error *err)
{
    size_t len = strcspn(device, ",");

    if ((strncmp(device, "tcp:", 4) != 0 && strncmp(device, "unix:", 5) != 0) ||
        len >= sizeof(l->listen))
        return rhea_error_set(err, EINVAL,
                              "-gdb %s: say tcp:HOST:PORT or unix:PATH, for "
                              "rhea-trace listens there in QEMU's place",
                              device);
    snprintf(l->listen, sizeof(l->listen), "%.*s", (int)len, device);
    return 0;
}

/* Append a path with its commas doubled, as QEMU wants them. */
static void put_path(char *text, size_t room, const char *path)
{
    size_t n = strlen(text);

    for (; *path && n + 2 < room; path++) {
        text[n++] = *path;
        if (*path == ',')
            text[n++] = ',';
    }
    text[n] = 0;
}

/* `FILE,socket=PATH`. TEXT is empty. */
static int make_plugin(const struct launch *l, char *text, size_t room,
                       struct rhea_error *err)
{
    char path[2048];

    if (!plugin_find(path, sizeof(path)))
        return rhea_error_set(err, ENOENT,
                              "%s: the plugin for QEMU is not there", path);
    put_path(text, room, path);
    snprintf(text + strlen(text), room - strlen(text), ",socket=");
    put_path(text, room, l->socket);
    return 0;
}

/* QEMU's arguments without those about gdb, and with ours. PLUGIN is a value of
 * -plugin, or empty. Freed with free. */
static char **make_arguments(struct launch *l, char **argv, char *device,
                             char *plugin, struct rhea_error *err)
{
    static char option[] = "-gdb", plugin_option[] = "-plugin";
    size_t n = 0, kept = 0;
    char **out;
    int ret = 0;

    while (argv[n])
        n++;
    out = tool_realloc(NULL, (n + 5) * sizeof(*out));
    for (size_t i = 0; i < n && ret == 0; i++) {
        const char *a = argv[i];

        a += a[0] == '-' && a[1] == '-'; /* QEMU takes two dashes as one */
        if (!strcmp(a, "-s")) {
            snprintf(l->listen, sizeof(l->listen), ":1234");
        } else if (!strcmp(a, "-gdb") && argv[i + 1]) {
            ret = take_listen(l, argv[++i], err);
        } else if (!strcmp(a, "-daemonize")) {
            ret = rhea_error_set(err, EINVAL,
                                 "QEMU cannot be started with -daemonize here: "
                                 "start it yourself, and say --stub");
        } else {
            l->wait |= !strcmp(a, "-S");
            out[kept++] = argv[i];
        }
    }
    if (ret < 0) {
        free(out);
        return NULL;
    }
    out[kept++] = option;
    out[kept++] = device;
    if (plugin[0]) {
        out[kept++] = plugin_option;
        out[kept++] = plugin;
    }
    out[kept] = NULL;
    return out;
}

int launch_start(struct launch *l, char **argv, struct rhea_error *err)
{
    RHEA_AUTO_FREE char **arguments = NULL;
    char device[400], plugin[8192] = "";
    sigset_t none;

    if (l->plugin && make_plugin(l, plugin, sizeof(plugin), err) < 0)
        return -ENOENT;
    snprintf(device, sizeof(device), "unix:%s,server=on,wait=off", l->stub);
    arguments = make_arguments(l, argv, device, plugin, err);
    if (!arguments)
        return -EINVAL;
    fflush(NULL);
    l->pid = fork();
    if (l->pid < 0) {
        l->pid = 0;
        return rhea_error_errno(err, errno, "cannot start %s", argv[0]);
    }
    if (l->pid == 0) {
        /* Should we be killed, it would stop at the next breakpoint for good.
         */
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execvp(arguments[0], arguments);
        fprintf(stderr, "%s: cannot run %s: %s\n", tool_name, arguments[0],
                strerror(errno));
        _exit(127);
    }
    return 0;
}

static bool has_ended(const struct launch *l)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)l->pid, &info, WEXITED | WNOHANG | WNOWAIT) <
               0 ||
           info.si_pid == l->pid;
}

int launch_wait(struct launch *l, struct rhea_error *err)
{
    int64_t until = wire_now() + START_TIMEOUT;
    struct stat st;

    while (stat(l->stub, &st) < 0) {
        if (has_ended(l))
            return rhea_error_set(err, ECHILD, "QEMU did not start");
        if (wire_now() > until)
            return rhea_error_set(err, ETIMEDOUT,
                                  "QEMU does not open its stub for gdb");
        usleep(2000);
    }
    return 0;
}

/* QEMU may have to write much before it ends, so it is given time; but where it
 * does not end at all, whoever tells us once more means it. */
static int wait_for_end(pid_t pid)
{
    const struct timespec pause = {0, 50000000};
    sigset_t again;
    int status = 0;
    pid_t got;

    sigemptyset(&again);
    sigaddset(&again, SIGINT);
    sigaddset(&again, SIGTERM);
    sigaddset(&again, SIGHUP);
    while ((got = waitpid(pid, &status, WNOHANG)) == 0 ||
           (got < 0 && errno == EINTR))
        if (sigtimedwait(&again, NULL, &pause) > 0)
            kill(pid, SIGKILL);
    return status;
}

int launch_finish(struct launch *l, bool end)
{
    int status, code = 0;

    if (l->pid) {
        if (end)
            kill(l->pid, SIGTERM);
        status = wait_for_end(l->pid);
        code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    if (l->stub[0])
        unlink(l->stub);
    if (l->socket[0])
        unlink(l->socket);
    if (l->folder[0])
        rmdir(l->folder); /* it stays where frames are in it */
    *l = (struct launch){0};
    return code;
}
