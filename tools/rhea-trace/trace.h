/* SPDX-License-Identifier: MIT */
/* What the parts of rhea-trace share. */
#ifndef RHEA_TRACE_TRACE_H
#define RHEA_TRACE_TRACE_H

#include <getopt.h>
#include <sys/types.h>

#include "common/common.h"
#include "gdb/session.h"

/* launch.c: QEMU as it is started by us. */
struct launch {
    pid_t pid;        /* 0: none */
    char folder[256]; /* of the stub's socket and of frames; "": none */
    char stub[300];   /* the stub's address */
    char listen[256]; /* where gdb was to connect by -s or -gdb; "": neither */
    bool wait;        /* -S: the guest waits for gdb */
    bool plugin;      /* QEMU is to load our plugin */
    char socket[300]; /* the plugin's */
};

/* A folder of our own for sockets and frames. */
int launch_folder(struct launch *l, struct rhea_error *err);
/* Start QEMU with ARGV, NULL at its end, its stub on a socket of ours. */
int launch_start(struct launch *l, char **argv, struct rhea_error *err);
/* Wait until the stub can be connected to. */
int launch_wait(struct launch *l, struct rhea_error *err);
/* Wait until QEMU has ended, which is told to if END says so; its exit code. */
int launch_finish(struct launch *l, bool end);

/* plugin.c: the file of our plugin for QEMU; false where there is none. */
bool plugin_find(char *path, size_t room);
/* Whether QEMU, started with ARGV, can load it and has use for it. */
bool plugin_suits(char **argv);

/* run.c: what all commands need that stand between gdb and QEMU. */
struct run {
    struct session_how how;
    struct launch launch;
    char file[512]; /* of frames */
    bool own_file;  /* nobody asked to keep it */
};

/* Options, all of which run_option takes. */
#define RUN_LETTERS "s:f:b:w:u:a:t:"
#define RUN_OPTIONS                                                            \
    {"stub", required_argument, NULL, 's'},                                    \
        {"file", required_argument, NULL, 'f'},                                \
        {"buffer", required_argument, NULL, 'b'},                              \
        {"way", required_argument, NULL, 'w'},                                 \
        {"plugin", required_argument, NULL, 'u'},                              \
        {"arch", required_argument, NULL, 'a'},                                \
    {                                                                          \
        "timeout", required_argument, NULL, 't'                                \
    }
extern const char run_help[];

void run_init(struct run *r);
/* Take an option; -ENOENT: it is none of these. Another negative errno where a
 * message was printed. */
int run_option(struct run *r, int c, const char *text);
/* Behind the options is QEMU's command line, where there is no stub. Prints
 * what is wrong. */
int run_check_qemu(const struct run *r, int argc, char **argv);
/* "1.5", for an option of that name. */
int run_get_seconds(const char *option, const char *text, double *seconds);
/* Catch signals; start QEMU, unless there is a stub; say where files are. */
int run_prepare(struct run *r, char **qemu, struct rhea_error *err);
/* The signal that came; 0: none. */
int run_signal(void);
/* Where hits are slow though they need not be, tell why. */
void run_tell_way(const struct run *r, const struct session *s);
/* Print ERR, end QEMU where RET is a failure or a signal; the exit code. */
int run_finish(struct run *r, int ret, const struct rhea_error *err);
/* What every command has, -h and -V: 1, the program is to end well. Else say
 * what is wrong with an option that getopt_long refused (`:`, `?`). */
int trace_other_option(int c, char **argv, void (*help)(void));

/* Commands: each gets its arguments from its own name on. */
int serve_main(int argc, char **argv);
int record_main(int argc, char **argv);
int report_main(int argc, char **argv);

#endif
