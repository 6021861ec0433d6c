/* SPDX-License-Identifier: MIT */
/* Our plugin for QEMU: where it is, and whether a QEMU takes it. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "trace.h"

static const char plugin_name[] = "librhea-trace-plugin.so";

bool plugin_find(char *path, size_t room)
{
    const char *told = getenv("RHEA_TRACE_PLUGIN");
    int n = told && *told
                ? snprintf(path, room, "%s", told)
                : snprintf(path, room, "%s/%s", PLUGIN_FOLDER, plugin_name);

    return n > 0 && (size_t)n < room && access(path, R_OK) == 0;
}

/* QEMU itself: whatever else begins with such a name, a script say, may do more
 * when it is started than tell what it knows. */
static bool is_qemu(const char *program)
{
    const char *slash = strrchr(program, '/');

    return !strncmp(slash ? slash + 1 : program, "qemu-system-", 12);
}

/* Whether the arguments are for translated code, and do not load the plugin
 * themselves. */
static bool wants_translation(char **argv)
{
    for (; *argv; argv++) {
        const char *a = *argv, *value = argv[1] ? argv[1] : "";

        a += a[0] == '-' && a[1] == '-';
        if (!strcmp(a, "-enable-kvm"))
            return false;
        if ((!strcmp(a, "-accel") || !strcmp(a, "-machine") ||
             !strcmp(a, "-M")) &&
            (strstr(value, "kvm") || strstr(value, "xen")))
            return false;
        if (!strcmp(a, "-plugin") && strstr(value, plugin_name))
            return false;
    }
    return true;
}

static pid_t start_help(const char *program, int out)
{
    pid_t pid = fork();
    sigset_t none;

    if (pid != 0)
        return pid;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(out, STDOUT_FILENO) >= 0)
        execlp(program, program, "-help", (char *)NULL);
    _exit(127);
}

/* Whether QEMU was built for plugins: `-help` then tells of the option. */
static bool takes_plugins(const char *program)
{
    RHEA_AUTO_FREE char *line = NULL;
    size_t room = 0;
    bool found = false;
    int ends[2];
    FILE *in;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    pid = start_help(program, ends[1]);
    close(ends[1]);
    in = fdopen(ends[0], "r");
    while (in && getline(&line, &room, in) > 0)
        found |= !strncmp(line, "-plugin", 7);
    if (in)
        fclose(in);
    else
        close(ends[0]);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return found;
}

bool plugin_suits(char **argv)
{
    char path[4096];

    if (!is_qemu(argv[0]) || !wants_translation(argv))
        return false;
    if (plugin_find(path, sizeof(path)))
        return takes_plugins(argv[0]);
    tool_error("%s is not there: breakpoints are used in the plugin's place, "
               "at each of which the guest stops",
               path);
    return false;
}
