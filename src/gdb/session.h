/* SPDX-License-Identifier: MIT */
/*
 * gdb on one side, the stub on the other, and tracing in between. Packets that
 * are not about tracing pass through; while the guest runs, stops that are only
 * tracepoints' are handled here and gdb hears nothing of them.
 *
 * One thread does it all. The guest is either stopped, and then gdb's packets
 * are answered one after the other; or it runs (session_run.c), and then
 * whatever comes first is waited for: a stop, gdb's interrupt, another gdb.
 *
 * Life: session_open, session_serve, session_close.
 */
#ifndef RHEA_GDB_SESSION_H
#define RHEA_GDB_SESSION_H

#include <signal.h>

#include "gdb/session_request.h"
#include "gdb/tracer.h"
#include "gdb/view.h"

enum session_way {
    SESSION_AUTO,
    SESSION_STUB,
    SESSION_HARDWARE,
    SESSION_PLUGIN
};

/* The registers that gdb is to see. */
enum session_arch {
    SESSION_ARCH_AUTO, /* as the processor's mode is when gdb comes */
    SESSION_ARCH_X86_64,
    SESSION_ARCH_I386,
    SESSION_ARCH_I8086,
};

struct session_how {
    const char *stub;   /* its address */
    const char *listen; /* for gdb */
    const char *file;   /* of trace frames, which must not be there */
    uint64_t limit;     /* bytes of frames */
    enum session_way way;
    const char *plugin; /* socket of our plugin in QEMU; NULL: it is asked
                           where a plugin listens that was told nothing */
    enum session_arch arch;
    pid_t child; /* QEMU, where it is ours: ends with us and we with it;
                    0: none */
    bool resume; /* let the guest run until gdb comes */
    int timeout; /* ms, of the stub's answers */
    /* Serving ends when it becomes true, set by a handler of signals that are
     * blocked but while we wait, when SIGNALS is the mask. */
    const volatile sig_atomic_t *stop;
    const sigset_t *signals;
    /* Told once, when gdb can connect. */
    void (*ready)(void *opaque, const char *address);
    void *opaque;
};

enum { SESSION_MAX_WATCHES = 64 };

struct session {
    struct session_how how;
    struct stub stub;
    struct description description; /* the stub's */
    struct view view;               /* what gdb sees instead */
    struct machine machine;
    struct tracer tracer;
    char no_plugin[256]; /* why not, where it could be */
    int listener;
    char address[256]; /* where we listen */
    struct wire gdb;   /* fd -1: none is connected */
    int turned_away;   /* the last gdb that came too late; -1: none */
    bool is_qemu, is_kvm;
    unsigned gdb_serial; /* of that connection */
    unsigned n_uploads;  /* how often it has asked for all tracepoints */
    uint64_t process;    /* the one whose breakpoints are ours, where the stub
                            has several; 0: not known */
    bool packet_waits;   /* a packet of gdb's came while the guest ran, and is
                            in gdb.in */
    bool refused;        /* the stub did not let it run, and answered this */
    char refusal[256];
    bool leaving;     /* gdb has detached: its connection ends */
    bool was_running; /* without gdb, the guest is to run */
    int64_t frame;    /* the one gdb looks at; -1: none, the guest */
    struct packet_text reply;
    /* Text of answers that come in pieces (qTfP and so on). */
    char *lines, *next_line;
    /* Where qTBuffer went on, see session_export.c. */
    struct {
        uint64_t frame, offset; /* the frame, and where it begins */
        uint64_t run;
    } export;
    /* A tracepoint that gdb defines again, see session_trace.c. */
    struct {
        bool on;
        unsigned number;
        uint64_t address;
    } again;
    /* Read-only regions that gdb told of (QTro). */
    struct {
        uint64_t start, end;
    } read_only[256];
    unsigned n_read_only;
    /* What the monitor was told to watch, see session_watch.c. */
    struct session_watch {
        unsigned number; /* of the tracepoint */
        struct watch watch;
    } watches[SESSION_MAX_WATCHES];
    unsigned n_watches;
};

int session_open(struct session *s, const struct session_how *how,
                 struct rhea_error *err);
/* Until the stub is gone (0), a signal (-EINTR) or a failure. */
int session_serve(struct session *s, struct rhea_error *err);
/* Serving has ended by a signal: let a guest that is not ours run on, without
 * anything of us in it. */
void session_leave(struct session *s);
void session_close(struct session *s);

/* --- between the parts --------------------------------------------------- */

/* What a handler of a packet gets: what stands behind its name; PACKET is the
 * whole. It puts its answer into s->reply and returns 0, or has none (1). */
typedef int session_handler(struct session *s, struct packet_cursor rest,
                            const char *packet, size_t len,
                            struct rhea_error *err);

struct session_packet {
    const char *name;
    bool exact; /* nothing may follow */
    session_handler *handle;
};

extern const struct session_packet session_trace_packets[];
extern const struct session_packet session_look_packets[];
extern const struct session_packet session_view_packets[];

/* Pass a packet on and its answer back. */
int session_forward(struct session *s, const char *packet, size_t len,
                    struct rhea_error *err);
/* Answer with what PART, `OFFSET,LENGTH`, asks of a text: `m` and a part, or
 * `l` and the last one. */
int session_put_part(struct session *s, const char *text, size_t len,
                     struct packet_cursor part, struct rhea_error *err);
/* Answers. An error's text is what gdb shows. */
int session_ok(struct session *s);
int session_refuse(struct session *s, const struct rhea_error *err);

/* Let it run as PACKET says, until it has stopped so that gdb is to know, or
 * another gdb has come, or the one that was there is gone (s->gdb_serial and
 * s->gdb.fd). The stop is s->stub.stop, where it was not refused. */
int session_run(struct session *s, const char *packet, size_t len,
                struct rhea_error *err);
/* Whether a thread belongs to another process than the one that is traced, a
 * child of it say: its breakpoints and stops are between gdb and the stub. */
bool session_is_foreign(const struct session *s, const char *thread);
/* Somebody connects to our socket: it is gdb, or, where there is one already, a
 * gdb that is told so. */
int session_accept(struct session *s);
void session_turn_away(struct session *s);

/* session_watch.c: `monitor rhea COMMAND`; what it says goes to OUT. And have
 * tracepoints watch what they were told to. */
void session_watch(struct session *s, const char *command, FILE *out);
int session_apply_watches(struct session *s, struct rhea_error *err);

/* session_view.c: decide which registers gdb is to see. The guest is stopped.
 */
int session_choose_view(struct session *s, struct rhea_error *err);

/* --- handlers in other files ---------------------------------------------- */

/* session_look.c: QTFrame, qTV, qXfer:traceframe-info. */
session_handler session_find_frame, session_variable_value, session_frame_info;
/* session_export.c: qTBuffer, QTSave. */
session_handler session_buffer, session_save;

#endif
