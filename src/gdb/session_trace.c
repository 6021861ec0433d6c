/* SPDX-License-Identifier: MIT */
/* Packets that define tracepoints, start and stop tracing, and ask how it goes
 * (gdb's manual, "Tracepoint Packets"). */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/session.h"
#include "gdb/tfile.h"

/* Most handlers need none of their other arguments. */
#define HANDLER(name)                                                          \
    static int name(struct session *s, struct packet_cursor rest,              \
                    const char *packet, size_t len, struct rhea_error *err)
#define UNUSED_REST                                                            \
    (void)rest;                                                                \
    (void)packet;                                                              \
    (void)len;                                                                 \
    (void)err
#define UNUSED_PACKET                                                          \
    (void)packet;                                                              \
    (void)len;                                                                 \
    (void)err

static int malformed(struct rhea_error *err, const char *what)
{
    return rhea_error_set(err, EINVAL, "%s cannot be understood", what);
}

/* --- definitions --------------------------------------------------------- */

HANDLER(init)
{
    UNUSED_REST;
    s->frame = -1;
    s->again.on = false;
    s->n_read_only = 0;
    tracer_clear(&s->tracer);
    return session_ok(s);
}

/* When the guest gets a library or gdb more symbols, gdb sends all tracepoints
 * once more, also those that run already. An error would keep it from
 * continuing; they are as they were. */
static bool is_defined_again(struct session *s, struct packet_cursor c)
{
    bool goes_on = packet_skip(&c, "-");
    uint64_t number, address;

    if (!packet_number(&c, &number) || number > INT32_MAX ||
        !packet_skip(&c, ":") || !packet_number(&c, &address))
        return false;
    if (!goes_on) {
        s->again.on =
            tracer_is_running(&s->tracer) &&
            experiment_find(s->tracer.experiment, (unsigned)number, address);
        s->again.number = (unsigned)number;
        s->again.address = address;
    }
    return s->again.on && s->again.number == number &&
           s->again.address == address;
}

/* Tracepoints that cannot be inserted while tracing runs are gone again, so
 * that gdb may define them anew. */
HANDLER(define)
{
    struct experiment *e = s->tracer.experiment;
    struct tracepoint *t;
    size_t n = e->n_points;
    bool more;
    int ret;

    (void)packet;
    (void)len;
    if (is_defined_again(s, rest))
        return session_ok(s);
    ret = experiment_define(e, rest, &t, &more, err);
    if (ret == 0 && !more)
        ret = session_apply_watches(s, err);
    if (ret == 0 && !more)
        ret = tracer_install(&s->tracer, t, err);
    if (ret < 0 && e->n_points > n)
        experiment_drop_last(e);
    return ret < 0 ? ret : session_ok(s);
}

HANDLER(source)
{
    int ret = experiment_source(s->tracer.experiment, rest, err);

    UNUSED_PACKET;
    return ret < 0 ? ret : session_ok(s);
}

HANDLER(variable)
{
    struct tracer *t = &s->tracer;
    struct variable *v;
    int ret = experiment_variable(t->experiment, rest, &v, err);

    UNUSED_PACKET;
    if (ret == 0 && !v->builtin)
        frames_variable(t->frames, v->number)->value = v->initial;
    if (ret == 0 && tracer_is_running(t))
        ret = frames_publish(t->frames, t->experiment, err);
    return ret < 0 ? ret : session_ok(s);
}

static int enable(struct session *s, struct packet_cursor rest, bool on,
                  struct rhea_error *err)
{
    struct tracepoint *t;
    uint64_t number, address;
    int ret;

    if (!packet_number(&rest, &number) || !packet_skip(&rest, ":") ||
        !packet_number(&rest, &address))
        return malformed(err, "which tracepoint to enable or disable");
    t = experiment_find(s->tracer.experiment, (unsigned)number, address);
    if (!t)
        return rhea_error_set(
            err, ENOENT, "there is no tracepoint %" PRIu64 " at 0x%" PRIx64,
            number, address);
    ret = tracer_enable(&s->tracer, t, on, err);
    return ret < 0 ? ret : session_ok(s);
}

HANDLER(enable_point)
{
    UNUSED_PACKET;
    return enable(s, rest, true, err);
}

HANDLER(disable_point)
{
    UNUSED_PACKET;
    return enable(s, rest, false, err);
}

/* `QTro:start,end:start,end`. What does not fit is read from frames only. */
HANDLER(read_only)
{
    s->n_read_only = 0;
    while (!packet_at_end(&rest)) {
        uint64_t start, end;

        if (!packet_skip(&rest, ":") || !packet_number(&rest, &start) ||
            !packet_skip(&rest, ",") || !packet_number(&rest, &end))
            return malformed(err, "a list of read-only memory");
        if (s->n_read_only < RHEA_ARRAY_SIZE(s->read_only)) {
            s->read_only[s->n_read_only].start = start;
            s->read_only[s->n_read_only].end = end;
            s->n_read_only++;
        }
    }
    UNUSED_PACKET;
    return session_ok(s);
}

/* --- going --------------------------------------------------------------- */

HANDLER(start)
{
    int ret = session_apply_watches(s, err);

    if (ret == 0)
        ret = tracer_start(&s->tracer, err);

    UNUSED_REST;
    s->frame = -1;
    return ret < 0 ? ret : session_ok(s);
}

HANDLER(stop)
{
    int ret;

    UNUSED_REST;
    tracer_stop(&s->tracer, FRAMES_STOPPED);
    ret = breaks_sync(&s->tracer.breaks, &s->stub, NULL, err);
    return ret < 0 ? ret : session_ok(s);
}

static bool parse_flag(struct packet_cursor *rest, bool *flag)
{
    uint64_t n;

    if (!packet_number(rest, &n) || !packet_at_end(rest))
        return false;
    *flag = n != 0;
    return true;
}

HANDLER(disconnected)
{
    bool on;

    UNUSED_PACKET;
    if (!parse_flag(&rest, &on))
        return malformed(err, "disconnected tracing");
    frames_control(s->tracer.frames)->disconnected = on;
    return session_ok(s);
}

HANDLER(circular)
{
    bool on;

    UNUSED_PACKET;
    if (!parse_flag(&rest, &on))
        return malformed(err, "a circular buffer");
    frames_set_circular(s->tracer.frames, on);
    return session_ok(s);
}

/* -1: whatever we like. */
HANDLER(buffer_size)
{
    int64_t size;
    int ret;

    UNUSED_PACKET;
    if (!packet_signed(&rest, &size) || !packet_at_end(&rest))
        return malformed(err, "the size of the trace buffer");
    if (size < 0)
        size = (int64_t)s->how.limit;
    if ((uint64_t)size == frames_control(s->tracer.frames)->limit)
        return session_ok(s);
    ret = frames_resize(s->tracer.frames, (uint64_t)size, err);
    if (ret == 0)
        s->frame = -1;
    return ret < 0 ? ret : session_ok(s);
}

/* `user:hex;notes:hex;tstop:hex;` */
HANDLER(notes)
{
    static const char *const names[NOTE_COUNT] = {"user:", "notes:", "tstop:"};
    RHEA_AUTO_FREE char *text = malloc(len);
    int ret = text ? 0 : rhea_error_errno(err, ENOMEM, "cannot keep a note");

    (void)packet;
    while (ret == 0 && !packet_at_end(&rest)) {
        unsigned i = 0;
        size_t n;

        while (i < NOTE_COUNT && !packet_skip(&rest, names[i]))
            i++;
        if (i == NOTE_COUNT || !packet_bytes(&rest, text, len, &n) ||
            !packet_skip(&rest, ";"))
            return malformed(err, "a note");
        ret = experiment_note(s->tracer.experiment, (enum experiment_note)i,
                              text, n, err);
    }
    if (ret == 0)
        ret = frames_publish(s->tracer.frames, s->tracer.experiment, err);
    return ret < 0 ? ret : session_ok(s);
}

/* --- how it goes --------------------------------------------------------- */

HANDLER(status)
{
    UNUSED_REST;
    tracer_settle(&s->tracer);
    packet_puts(&s->reply, "T");
    /* Before other stubs than QEMU's there is but one way. */
    tfile_put_status(s->tracer.frames, s->tracer.experiment,
                     s->is_qemu ? s->tracer.way->name : NULL, &s->reply);
    return 0;
}

/* Hexadecimal, as gdb reads it and its manual says. */
HANDLER(point_status)
{
    const struct tracepoint *t;
    const struct frames_point *f;
    uint64_t number, address;

    UNUSED_PACKET;
    if (!packet_number(&rest, &number) || !packet_skip(&rest, ":") ||
        !packet_number(&rest, &address))
        return malformed(err, "a tracepoint");
    t = experiment_find(s->tracer.experiment, (unsigned)number, address);
    if (!t)
        return rhea_error_set(err, ENOENT, "there is no tracepoint %" PRIu64,
                              number);
    f = frames_point(s->tracer.frames, t->slot);
    packet_printf(&s->reply, "V%" PRIx64 ":%" PRIx64, f->hits, f->usage);
    return 0;
}

/* --- giving definitions back --------------------------------------------- */

static int next_line(struct session *s)
{
    size_t n;

    if (!s->next_line || !*s->next_line) {
        packet_puts(&s->reply, "l");
        return 0;
    }
    n = strcspn(s->next_line, "\n");
    packet_put(&s->reply, s->next_line, n);
    s->next_line += n;
    s->next_line += *s->next_line == '\n';
    return 0;
}

static int first_line(struct session *s, bool points, struct rhea_error *err)
{
    const struct experiment *e = s->tracer.experiment;
    size_t n;
    FILE *out;

    free(s->lines);
    s->lines = s->next_line = NULL;
    out = open_memstream(&s->lines, &n);
    if (!out)
        return rhea_error_errno(err, errno, "cannot list tracepoints");
    for (size_t i = 0; points && i < e->n_points; i++)
        experiment_save_point(e->points[i], s->n_uploads > 0, out);
    /* gdb puts each in front of those before it, so the last comes first. */
    for (unsigned i = EXPERIMENT_MAX_VARIABLES; !points && i-- > 0;) {
        if (!e->variables[i])
            continue;
        experiment_save_variable(e->variables[i], out);
        fputc('\n', out);
    }
    if (fclose(out) != 0)
        return rhea_error_errno(err, errno, "cannot list tracepoints");
    s->next_line = s->lines;
    return next_line(s);
}

/* gdb asks when it connects, and then to save a trace file of its own. */
HANDLER(first_point)
{
    int ret;

    UNUSED_REST;
    ret = first_line(s, true, err);
    s->n_uploads++;
    return ret;
}

HANDLER(first_variable)
{
    UNUSED_REST;
    return first_line(s, false, err);
}

HANDLER(more_lines)
{
    UNUSED_REST;
    return next_line(s);
}

/* The shortest instruction that a fast tracepoint can be at: any. */
HANDLER(min_fast_length)
{
    UNUSED_REST;
    packet_puts(&s->reply, "1");
    return 0;
}

/* Markers of static tracepoints are compiled into programs, and an agent inside
 * a program knows them. To offer the instruction at a place as one would be no
 * help: gdb 13 writes through a pointer that it has not set, and ends, when it
 * is told of a marker. What is refused here, gdb shows as the reason. */
HANDLER(markers)
{
    (void)s;
    UNUSED_REST;
    return rhea_error_set(err, ENOTSUP,
                          "a guest has no markers for static tracepoints; "
                          "'trace' and 'ftrace' take any place");
}

HANDLER(unknown)
{
    (void)s;
    UNUSED_REST;
    return 0;
}

/* Longer names stand before those that they begin with. */
const struct session_packet session_trace_packets[] = {
    {"QTDPsrc:", false, source},
    {"QTDP:", false, define},
    {"QTDV:", false, variable},
    {"QTinit", true, init},
    {"QTStart", true, start},
    {"QTStop", true, stop},
    {"QTEnable:", false, enable_point},
    {"QTDisable:", false, disable_point},
    {"QTro", false, read_only},
    {"QTDisconnected:", false, disconnected},
    {"QTBuffer:circular:", false, circular},
    {"QTBuffer:size:", false, buffer_size},
    {"QTNotes:", false, notes},
    {"QTFrame:", false, session_find_frame},
    {"QTSave:", false, session_save},
    {"qTStatus", true, status},
    {"qTP:", false, point_status},
    {"qTV:", false, session_variable_value},
    {"qTfP", true, first_point},
    {"qTsP", true, more_lines},
    {"qTfV", true, first_variable},
    {"qTsV", true, more_lines},
    {"qTBuffer:", false, session_buffer},
    {"qTMinFTPILen", true, min_fast_length},
    {"qTfSTM", true, markers},
    {"qTSTMat:", false, markers},
    {"qXfer:traceframe-info:read:", false, session_frame_info},
    /* Whatever else of tracing the stub may know is not to be mixed in. */
    {"QT", false, unknown},
    {NULL, false, NULL},
};
