/* SPDX-License-Identifier: MIT */
/* The stream of a CTF trace (CTF 1.8, sections 5 and 6). Integers are
 * little-endian and nothing is aligned to more than bytes. */
#include "gdb/ctf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"

#define CTF_MAGIC UINT32_C(0xc1fc1fc1)

enum {
    PACKET_HEAD = 4 + 4 + 4 * 8, /* header and context */
    PACKET_FULL = 1 << 20,       /* bytes after which another one begins */
};

struct writer {
    struct recorded *r;
    struct ctf_facts *facts;
    struct ctf_shape *shapes;
    size_t n_shapes, last_shape;
    FILE *stream;
    uint8_t *packet;
    size_t len, room;
    uint64_t begin, end; /* times of the packet's first and last event */
    bool failed;         /* want of memory */
};

/* --- bytes --------------------------------------------------------------- */

static uint8_t *reserve(struct writer *w, size_t len)
{
    if (len > w->room - w->len) {
        size_t room = 2 * (w->len + len);
        uint8_t *packet = w->failed ? NULL : realloc(w->packet, room);

        if (!packet) {
            w->failed = true;
            return NULL;
        }
        w->packet = packet;
        w->room = room;
    }
    w->len += len;
    return w->packet + w->len - len;
}

static void put_bytes(struct writer *w, const void *bytes, size_t len)
{
    uint8_t *at = len ? reserve(w, len) : NULL;

    if (at)
        memcpy(at, bytes, len);
}

static void put_u16(struct writer *w, uint16_t value)
{
    uint8_t bytes[2];

    store_le16(bytes, value);
    put_bytes(w, bytes, sizeof(bytes));
}

static void put_u32(struct writer *w, uint32_t value)
{
    uint8_t bytes[4];

    store_le32(bytes, value);
    put_bytes(w, bytes, sizeof(bytes));
}

static void put_u64(struct writer *w, uint64_t value)
{
    uint8_t bytes[8];

    store_le64(bytes, value);
    put_bytes(w, bytes, sizeof(bytes));
}

/* --- shapes -------------------------------------------------------------- */

static int shape_of(const struct writer *w, const struct recorded_frame *f,
                    struct ctf_shape *s, struct rhea_error *err)
{
    struct payload p = payload_of(&f->frame, recorded_layout(w->r));
    struct payload_block b;
    bool has_registers = false;

    *s = (struct ctf_shape){0};
    s->number = f->frame.entry.number;
    s->step = f->step;
    s->has_pc = f->has_pc;
    while (payload_next(&p, &b)) {
        if ((b.kind == 'V' && s->n_variables == CTF_MAX_VARIABLES) ||
            (b.kind == 'M' && s->n_blocks == CTF_MAX_BLOCKS))
            return rhea_error_set(err, E2BIG,
                                  "frame %" PRIu64 " has more than %d trace "
                                  "state variables, or %d blocks of memory",
                                  f->index, CTF_MAX_VARIABLES, CTF_MAX_BLOCKS);
        if (b.kind == 'V') {
            s->variables[s->n_variables++] =
                (uint16_t)RHEA_MIN(b.number, (unsigned)UINT16_MAX);
        } else if (b.kind == 'M') {
            s->n_blocks++;
        } else if (!has_registers) {
            memcpy(s->mask, b.mask, b.mask_bytes);
            has_registers = true;
        }
    }
    return 0;
}

/* Its number; n_shapes where it is new. */
static size_t find_shape(struct writer *w, const struct ctf_shape *s)
{
    if (w->last_shape < w->n_shapes &&
        !memcmp(&w->shapes[w->last_shape], s, sizeof(*s)))
        return w->last_shape;
    for (size_t i = 0; i < w->n_shapes; i++)
        if (!memcmp(&w->shapes[i], s, sizeof(*s)))
            return w->last_shape = i;
    return w->n_shapes;
}

/* The first time through all frames. */
static int find_shapes(struct writer *w, struct rhea_error *err)
{
    struct recorded_frame f;
    struct ctf_shape s;
    int ret;

    *w->facts = (struct ctf_facts){.has_time = true, .has_cpu = true};
    while ((ret = recorded_next(w->r, &f, err)) > 0) {
        ret = shape_of(w, &f, &s, err);
        if (ret < 0)
            return ret;
        w->facts->frames++;
        w->facts->has_time &= f.has_time;
        w->facts->has_cpu &= f.has_cpu;
        if (find_shape(w, &s) < w->n_shapes)
            continue;
        if (w->n_shapes == CTF_MAX_SHAPES)
            return rhea_error_set(err, E2BIG,
                                  "the frames differ too much in what they "
                                  "have: more than %d kinds",
                                  CTF_MAX_SHAPES);
        w->shapes[w->n_shapes++] = s;
    }
    return ret;
}

/* --- events -------------------------------------------------------------- */

static void put_blocks(struct writer *w, const struct recorded_frame *f,
                       char kind)
{
    struct payload p = payload_of(&f->frame, recorded_layout(w->r));
    struct payload_block b;

    while (payload_next(&p, &b)) {
        if (b.kind != kind)
            continue;
        if (kind == 'V') {
            put_u64(w, (uint64_t)b.value);
        } else if (kind == 'R') {
            put_bytes(w, b.bytes, b.len);
            return;
        } else {
            put_u64(w, b.address);
            put_u16(w, (uint16_t)b.len);
            put_bytes(w, b.bytes, b.len);
        }
    }
}

static void put_event(struct writer *w, const struct recorded_frame *f,
                      size_t shape, uint64_t time)
{
    put_u32(w, (uint32_t)shape);
    put_u64(w, time);
    if (w->facts->has_cpu)
        put_u32(w, f->cpu);
    put_u64(w, f->index);
    if (f->has_pc)
        put_u64(w, f->frame.entry.pc);
    put_blocks(w, f, 'R');
    put_blocks(w, f, 'V');
    put_blocks(w, f, 'M');
}

static int flush_packet(struct writer *w, struct rhea_error *err)
{
    uint8_t *at = w->packet;

    if (w->failed)
        return rhea_error_errno(err, ENOMEM, "cannot write the trace");
    store_le32(at, CTF_MAGIC);
    store_le32(at + 4, 0);
    store_le64(at + 8, w->begin);
    store_le64(at + 16, w->end);
    store_le64(at + 24, 8 * (uint64_t)w->len); /* bits */
    store_le64(at + 32, 8 * (uint64_t)w->len);
    if (fwrite(w->packet, w->len, 1, w->stream) != 1)
        return rhea_error_errno(err, errno, "cannot write the trace");
    w->len = PACKET_HEAD;
    return 0;
}

/* Time of the frames of several processors may go back a little, and a
 * stream's may not: such an event gets the time of the one before. */
static int put_frames(struct writer *w, struct rhea_error *err)
{
    struct recorded_frame f;
    struct ctf_shape s;
    int ret;

    w->len = 0;
    if (!reserve(w, PACKET_HEAD))
        return rhea_error_errno(err, ENOMEM, "cannot write the trace");
    while ((ret = recorded_next(w->r, &f, err)) > 0) {
        size_t shape;

        ret = shape_of(w, &f, &s, err);
        if (ret < 0)
            return ret;
        shape = find_shape(w, &s);
        if (shape == w->n_shapes)
            return rhea_error_set(err, EBUSY,
                                  "the trace changes while it is read");
        w->end = RHEA_MAX(w->end, w->facts->has_time ? f.time : f.index);
        if (w->len == PACKET_HEAD)
            w->begin = w->end;
        put_event(w, &f, shape, w->end);
        if (w->len >= PACKET_FULL && (ret = flush_packet(w, err)) < 0)
            return ret;
    }
    if (ret == 0 && (w->len > PACKET_HEAD || !w->facts->frames))
        ret = flush_packet(w, err);
    return ret;
}

/* --- files --------------------------------------------------------------- */

static FILE *create(const char *folder, const char *name,
                    struct rhea_error *err)
{
    RHEA_AUTO_FREE char *path = NULL;
    FILE *file;

    if (asprintf(&path, "%s/%s", folder, name) < 0) {
        rhea_error_errno(err, ENOMEM, "cannot write the trace");
        return NULL;
    }
    file = fopen(path, "wxe");
    if (!file)
        rhea_error_errno(err, errno, "cannot make %s", path);
    return file;
}

static int finish(FILE *file, int ret, struct rhea_error *err)
{
    bool bad = ferror(file);

    if ((fclose(file) != 0 || bad) && ret == 0)
        return rhea_error_errno(err, errno ? errno : EIO,
                                "cannot write the trace");
    return ret;
}

static void remove_file(const char *folder, const char *name)
{
    RHEA_AUTO_FREE char *path = NULL;

    if (asprintf(&path, "%s/%s", folder, name) >= 0)
        unlink(path);
}

static int write_both(struct writer *w, const char *folder,
                      struct rhea_error *err)
{
    FILE *metadata = create(folder, "metadata", err);
    int ret;

    if (!metadata)
        return -EIO;
    ret =
        ctf_put_metadata(w->r, w->facts, w->shapes, w->n_shapes, metadata, err);
    ret = finish(metadata, ret, err);
    if (ret == 0) {
        w->stream = create(folder, "frames", err);
        ret = w->stream ? 0 : -EIO;
    }
    if (ret == 0)
        ret = recorded_rewind(w->r, err);
    if (w->stream)
        ret = finish(w->stream, ret == 0 ? put_frames(w, err) : ret, err);
    return ret;
}

int ctf_write(struct recorded *r, const char *folder, struct ctf_facts *facts,
              struct rhea_error *err)
{
    struct writer w = {.r = r, .facts = facts};
    int ret;

    w.shapes = calloc(CTF_MAX_SHAPES, sizeof(*w.shapes));
    ret = w.shapes ? find_shapes(&w, err)
                   : rhea_error_errno(err, ENOMEM, "cannot write the trace");
    if (ret == 0 && mkdir(folder, 0777) < 0)
        ret = rhea_error_errno(err, errno, "cannot make the folder %s", folder);
    if (ret == 0) {
        ret = write_both(&w, folder, err);
        if (ret < 0) {
            remove_file(folder, "metadata");
            remove_file(folder, "frames");
            rmdir(folder);
        }
    }
    free(w.packet);
    free(w.shapes);
    return ret;
}
