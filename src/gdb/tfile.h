/* SPDX-License-Identifier: MIT */
/*
 * gdb's trace files (gdb's manual, "Trace File Format"), which `tsave` writes
 * and `target tfile` opens: a head of lines of text, an empty line, frames.
 *
 * A frame there always has all registers, or none: what was not collected is
 * zero in it, and gdb shows it so. The file of frames.h knows better.
 */
#ifndef RHEA_GDB_TFILE_H
#define RHEA_GDB_TFILE_H

#include "gdb/payload.h"

#define TFILE_MAGIC "\x7fTRACE0\n"

enum {
    TFILE_MAGIC_BYTES = 8,
    TFILE_FRAME_HEAD = 2 + 4, /* the tracepoint's number, bytes that follow */
};

/* The answer to qTStatus, without the T, which is also a line of the head. WAY
 * (NULL: none) is told behind the notes. */
void tfile_put_status(struct frames *f, const struct experiment *e,
                      const char *way, struct packet_text *out);
/* The bytes of a frame with its head. */
size_t tfile_frame_size(const struct frames_frame *frame,
                        const struct layout *layout);
/* Those bytes, tfile_frame_size of them, at OUT. */
void tfile_put_frame(const struct frames_frame *frame,
                     const struct layout *layout, uint8_t *out);
/* Save all that is in F. The file is there whole, or not at all. */
int tfile_save(struct frames *f, const struct experiment *e, const char *path,
               struct rhea_error *err);

#endif
