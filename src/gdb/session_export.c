/* SPDX-License-Identifier: MIT */
/* Frames for gdb's trace files: gdb fetches them (qTBuffer), or has them saved
 * here (QTSave). */
#include <errno.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/session.h"
#include "gdb/tfile.h"

/* gdb asks for the bytes of all frames in a row, from 0 on. Where the last
 * answer ended is kept; anywhere else is found by going through all frames. */
static bool seek(struct session *s, uint64_t offset, struct frames_frame *frame)
{
    const struct layout *l = &s->tracer.experiment->layout;
    struct frames *f = s->tracer.frames;

    if (s->export.offset > offset || s->export.run != frames_control(f)->run) {
        s->export.frame = s->export.offset = 0;
        s->export.run = frames_control(f)->run;
    }
    while (frames_get(f, s->export.frame, frame)) {
        uint64_t size = tfile_frame_size(frame, l);

        if (offset < s->export.offset + size)
            return true;
        s->export.offset += size;
        s->export.frame++;
    }
    return false;
}

int session_buffer(struct session *s, struct packet_cursor rest,
                   const char *packet, size_t len, struct rhea_error *err)
{
    const struct layout *l = &s->tracer.experiment->layout;
    size_t room = s->stub.packet_size / 2 - 8;
    struct frames_frame frame;
    uint64_t offset, size;

    (void)packet;
    (void)len;
    if (!packet_number(&rest, &offset) || !packet_skip(&rest, ",") ||
        !packet_number(&rest, &size))
        return rhea_error_set(err, EINVAL,
                              "a part of the trace buffer cannot be "
                              "understood");
    size = RHEA_MIN(size, (uint64_t)room);
    while (size && seek(s, offset, &frame)) {
        size_t whole = tfile_frame_size(&frame, l), skip, n;
        RHEA_AUTO_FREE uint8_t *bytes = malloc(whole);

        if (!bytes)
            return rhea_error_errno(err, ENOMEM, "cannot give a trace frame");
        tfile_put_frame(&frame, l, bytes);
        skip = (size_t)(offset - s->export.offset);
        n = RHEA_MIN(whole - skip, (size_t)size);
        packet_put_hex(&s->reply, bytes + skip, n);
        offset += n;
        size -= n;
    }
    if (!s->reply.len)
        packet_puts(&s->reply, "l");
    return 0;
}

int session_save(struct session *s, struct packet_cursor rest,
                 const char *packet, size_t len, struct rhea_error *err)
{
    char path[4096];
    size_t n;
    int ret;

    (void)packet;
    (void)len;
    if (!packet_bytes(&rest, path, sizeof(path) - 1, &n) ||
        !packet_at_end(&rest) || !n || memchr(path, 0, n))
        return rhea_error_set(err, EINVAL,
                              "a file's name cannot be "
                              "understood");
    path[n] = 0;
    ret = tfile_save(s->tracer.frames, s->tracer.experiment, path, err);
    return ret < 0 ? ret : session_ok(s);
}
