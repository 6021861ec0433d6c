/* SPDX-License-Identifier: MIT */
#include "gdb/tfile.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"

/* Of each, so that a line of a trace file is not too long for gdb (source.h).
 */
enum { MOST_OF_NOTE = 100 };

static void put_some(struct packet_text *t, const char *text, size_t most)
{
    if (text)
        packet_put_hex(t, text, RHEA_MIN(strlen(text), most));
}

static void put_text(struct packet_text *t, const char *text)
{
    put_some(t, text, SIZE_MAX);
}

static void put_status(struct frames *f, const struct experiment *e,
                       const char *way, size_t most, struct packet_text *out)
{
    static const char *const stops[] = {
        [FRAMES_NEVER_RUN] = "tnotrun",
        [FRAMES_STOPPED] = "tstop",
        [FRAMES_FULL] = "tfull",
        [FRAMES_DISCONNECTED] = "tdisconnected",
        [FRAMES_PASS_COUNT] = "tpasscount",
        [FRAMES_ERROR] = "terror",
        [FRAMES_CRASHED] = "tunknown",
    };
    const struct frames_control *c = frames_control(f);
    const char *note = e->notes[NOTE_START];
    bool running = frames_is_running(c);

    packet_printf(out, "%d", running);
    if (!running) {
        packet_printf(
            out, ";%s:", stops[RHEA_MIN(c->stop, (uint32_t)FRAMES_CRASHED)]);
        if (c->stop == FRAMES_ERROR)
            put_text(out, c->reason);
        if (c->stop == FRAMES_STOPPED)
            put_some(out, e->notes[NOTE_STOP], most);
        /* Without it gdb 13 has no text, not even an empty one, and crashes
         * when it saves that. */
        if (c->stop == FRAMES_ERROR || c->stop == FRAMES_STOPPED)
            packet_puts(out, ":");
        packet_printf(out, "%x", c->stop_point);
    }
    packet_printf(out,
                  ";tframes:%" PRIx64 ";tcreated:%" PRIx64 ";tsize:%" PRIx64
                  ";tfree:%" PRIx64 ";circular:%d;disconn:%d;starttime:%" PRIx64
                  ";stoptime:%" PRIx64 ";username:",
                  frames_count(f), frames_created(f), c->limit,
                  c->limit - RHEA_MIN(c->used, c->limit), c->circular != 0,
                  c->disconnected != 0, c->start, c->end);
    put_some(out, e->notes[NOTE_USER], most);
    packet_puts(out, ";notes:");
    put_some(out, note, most);
    if (way) {
        put_text(out, note && *note ? " [way: " : "[way: ");
        put_text(out, way);
        put_text(out, "]");
    }
    packet_puts(out, ":");
}

void tfile_put_status(struct frames *f, const struct experiment *e,
                      const char *way, struct packet_text *out)
{
    put_status(f, e, way, SIZE_MAX, out);
}

/* --- frames -------------------------------------------------------------- */

static size_t block_size(const struct payload_block *b,
                         const struct layout *layout)
{
    switch (b->kind) {
    case 'R':
        return 1 + (size_t)layout->bytes;
    case 'M':
        return PAYLOAD_MEMORY_HEAD + b->len;
    default:
        return PAYLOAD_VARIABLE;
    }
}

size_t tfile_frame_size(const struct frames_frame *frame,
                        const struct layout *layout)
{
    struct payload p = payload_of(frame, layout);
    struct payload_block b;
    size_t size = TFILE_FRAME_HEAD;

    while (payload_next(&p, &b))
        size += block_size(&b, layout);
    return size;
}

static void put_registers(const struct frames_frame *frame,
                          const struct payload_block *b,
                          const struct layout *layout, uint8_t *out)
{
    const struct layout_register *pc = &layout->registers[layout->pc];
    uint8_t value[8];

    out[0] = 'R';
    memset(out + 1, 0, layout->bytes);
    store_le64(value, frame->entry.pc);
    memcpy(out + 1 + pc->offset, value, RHEA_MIN(pc->size, sizeof(value)));
    for (unsigned n = 0; n < layout->n; n++) {
        const uint8_t *from = payload_register(b, layout, n);

        if (from)
            memcpy(out + 1 + layout->registers[n].offset, from,
                   layout->registers[n].size);
    }
}

/* Blocks of memory and of variables are as ours. */
void tfile_put_frame(const struct frames_frame *frame,
                     const struct layout *layout, uint8_t *out)
{
    struct payload p = payload_of(frame, layout);
    struct payload_block b;
    const uint8_t *start = p.at;

    store_le16(out, (uint16_t)frame->entry.number);
    store_le32(out + 2,
               (uint32_t)(tfile_frame_size(frame, layout) - TFILE_FRAME_HEAD));
    out += TFILE_FRAME_HEAD;
    while (payload_next(&p, &b)) {
        if (b.kind == 'R')
            put_registers(frame, &b, layout, out);
        else
            memcpy(out, start, (size_t)(p.at - start));
        out += block_size(&b, layout);
        start = p.at;
    }
}

/* --- saving -------------------------------------------------------------- */

static void put_counters(struct frames *f, const struct experiment *e,
                         FILE *file)
{
    for (size_t i = 0; i < e->n_points; i++) {
        const struct tracepoint *t = e->points[i];
        const struct frames_point *p = frames_point(f, t->slot);

        fprintf(file, "tp V%x:%" PRIx64 ":%" PRIx64 ":%" PRIx64 "\n", t->number,
                t->address, p->hits, p->usage);
    }
}

/* Why writing has failed; positive. */
static int save_error(void)
{
    return errno ? errno : EIO;
}

/* Only what gdb understands: it stops at lines that it does not know. */
static int put_head(struct frames *f, const struct experiment *e, FILE *file)
{
    struct packet_text status = {0};

    fwrite(TFILE_MAGIC, TFILE_MAGIC_BYTES, 1, file);
    fprintf(file, "R %x\n", e->layout.bytes);
    put_status(f, e, NULL, MOST_OF_NOTE, &status);
    fprintf(file, "status %s\n", status.data ? status.data : "");
    packet_text_finish(&status);
    experiment_save_variables(e, file);
    experiment_save_points(e, true, file);
    put_counters(f, e, file);
    experiment_save_description(e, file);
    fputc('\n', file);
    return ferror(file) ? -save_error() : 0;
}

static int put_frames(struct frames *f, const struct experiment *e, FILE *file)
{
    RHEA_AUTO_FREE uint8_t *buf = NULL;
    size_t room = 0;
    uint32_t end = 0;
    struct frames_frame frame;

    for (uint64_t n = 0; frames_get(f, n, &frame); n++) {
        size_t size = tfile_frame_size(&frame, &e->layout);

        if (!buf || size > room) {
            uint8_t *grown = realloc(buf, 2 * size);

            if (!grown)
                return -ENOMEM;
            buf = grown;
            room = 2 * size;
        }
        tfile_put_frame(&frame, &e->layout, buf);
        if (fwrite(buf, size, 1, file) != 1)
            return -save_error();
    }
    return fwrite(&end, sizeof(end), 1, file) == 1 ? 0 : -save_error();
}

int tfile_save(struct frames *f, const struct experiment *e, const char *path,
               struct rhea_error *err)
{
    RHEA_AUTO_FREE char *temporary = NULL;
    FILE *file;
    int ret, fd;

    if (asprintf(&temporary, "%s.XXXXXX", path) < 0)
        return rhea_error_errno(err, ENOMEM, "cannot save %s", path);
    fd = mkstemp(temporary);
    file = fd < 0 ? NULL : fdopen(fd, "w");
    if (!file)
        return rhea_error_errno(err, errno, "cannot make %s", temporary);
    (void)fchmod(fd, 0644);
    errno = 0;
    ret = put_head(f, e, file);
    if (ret == 0)
        ret = put_frames(f, e, file);
    if (ret == 0 && (fflush(file) != 0 || fsync(fd) < 0))
        ret = -errno;
    if (fclose(file) != 0 && ret == 0)
        ret = -errno;
    if (ret == 0 && rename(temporary, path) < 0)
        ret = -errno;
    if (ret < 0) {
        unlink(temporary);
        return rhea_error_errno(err, -ret, "cannot save %s", path);
    }
    return 0;
}
