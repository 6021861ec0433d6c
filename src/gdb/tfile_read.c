/* SPDX-License-Identifier: MIT */
#include "gdb/tfile_read.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "gdb/description.h"
#include "gdb/tfile.h"

enum {
    MAX_COUNTERS = EXPERIMENT_MAX_POINTS,
    MAX_DESCRIPTION = 1 << 20, /* bytes */
};

static int no_memory(struct rhea_error *err)
{
    return rhea_error_errno(err, ENOMEM, "cannot read a trace file");
}

/* --- the head ------------------------------------------------------------ */

/* While the head is read. */
struct head {
    struct tfile *t;
    char *line;
    size_t line_room, read;
    FILE *description;
    char *description_text;
    size_t description_len, described;
    uint64_t registers; /* bytes of an R block; 0: not said */
};

/* A line without its newline, with a zero behind; *LEN 0 is the head's end. */
static int read_line(struct head *h, size_t *len, struct rhea_error *err)
{
    size_t n = 0;
    int c;

    while ((c = getc(h->t->file)) != EOF && c != '\n') {
        if (n + 1 >= h->line_room) {
            size_t room = RHEA_MAX(2 * h->line_room, (size_t)4096);
            char *line = realloc(h->line, room);

            if (!line)
                return no_memory(err);
            h->line = line;
            h->line_room = room;
        }
        h->line[n++] = (char)c;
        if (n > TFILE_MAX_LINE || ++h->read > TFILE_MAX_HEAD)
            return rhea_error_set(err, E2BIG,
                                  "the head of the trace file is longer than "
                                  "it can be");
    }
    if (c == EOF)
        return rhea_error_set(err, EINVAL,
                              "the trace file ends in the middle of its head");
    if (n)
        h->line[n] = 0;
    *len = n;
    return 0;
}

/* `<number>:<address>:<hits>:<usage>`; others have more or less behind. */
static void load_counter(struct tfile *t, struct packet_cursor c)
{
    struct tfile_counter counter = {0}, *grown;
    uint64_t number;

    if (!packet_number(&c, &number) || number > INT32_MAX ||
        !packet_skip(&c, ":") || !packet_number(&c, &counter.address) ||
        !packet_skip(&c, ":") || !packet_number(&c, &counter.hits))
        return;
    counter.number = (unsigned)number;
    if (packet_skip(&c, ":"))
        (void)packet_number(&c, &counter.usage);
    if (t->n_counters == MAX_COUNTERS)
        return;
    grown = realloc(t->counters, (t->n_counters + 1) * sizeof(counter));
    if (!grown)
        return;
    t->counters = grown;
    t->counters[t->n_counters++] = counter;
}

static void load_description(struct head *h, const char *line, size_t len)
{
    h->described += len + 1;
    if (!h->description || h->described > MAX_DESCRIPTION)
        return;
    fwrite(line, 1, len, h->description);
    fputc('\n', h->description);
}

static int load_line(struct head *h, const char *line, size_t len,
                     struct rhea_error *err)
{
    struct tfile *t = h->t;
    struct packet_cursor c = packet_cursor(line, len);
    struct rhea_error bad;
    int ret;

    if (packet_skip(&c, "R ")) {
        (void)packet_number(&c, &h->registers);
        return 0;
    }
    if (packet_skip(&c, "status ")) {
        free(t->status);
        t->status = strndup(c.at, (size_t)(c.end - c.at));
        return t->status ? 0 : no_memory(err);
    }
    if (packet_skip(&c, "tp V")) {
        load_counter(t, c);
        return 0;
    }
    if (packet_skip(&c, "tdesc ")) {
        load_description(h, c.at, (size_t)(c.end - c.at));
        return 0;
    }
    if (len >= 4 && (!memcmp(line, "reg ", 4) || !memcmp(line, "note", 4)))
        return 0; /* ours, and not of these files */
    ret = experiment_load_line(t->experiment, line, len, &bad);
    if (ret == 0 || ret == -ENOTSUP)
        return 0;
    if (ret == -ENOMEM)
        return no_memory(err);
    if (!t->n_bad++)
        snprintf(t->bad, sizeof(t->bad), "%.290s", bad.text);
    return 0;
}

static int fetch_description(void *opaque, const char *annex, char **text,
                             size_t *len, struct rhea_error *err)
{
    const char *description = opaque;

    if (strcmp(annex, "target.xml") != 0)
        return rhea_error_set(err, ENOENT, "%s is not in the trace file",
                              annex);
    *text = strdup(description);
    *len = strlen(description);
    return *text ? 0 : no_memory(err);
}

/* Registers by their names, where the description is of so many bytes. */
static bool lay_out_named(struct head *h)
{
    struct description d = {.layout.pc = -1};
    bool good = h->description_text &&
                description_load(&d, fetch_description, h->description_text,
                                 NULL) == 0 &&
                d.layout.bytes == h->registers;

    if (good)
        h->t->experiment->layout = d.layout;
    description_finish(&d);
    return good;
}

/* Pieces of what is in an R block: as many as it takes, 8 bytes each, or more
 * where there would be too many. */
static int lay_out_raw(struct head *h, struct rhea_error *err)
{
    struct layout *l = &h->t->experiment->layout;
    unsigned piece = 8, left = (unsigned)h->registers, n = 0;
    int ret = 0;

    while (left > piece * EXPERIMENT_MAX_REGISTERS)
        piece *= 2;
    while (left && ret == 0) {
        unsigned size = RHEA_MIN(left, piece);
        char name[24];

        snprintf(name, sizeof(name), "bytes_%u", l->bytes);
        ret = layout_add(l, n++, name, l->bytes, size, err);
        left -= size;
    }
    return ret;
}

static int lay_out(struct head *h, struct rhea_error *err)
{
    struct tfile *t = h->t;

    if (h->description && fclose(h->description) != 0)
        h->described = SIZE_MAX;
    h->description = NULL;
    if (h->registers > EXPERIMENT_MAX_G)
        return rhea_error_set(err, E2BIG,
                              "the trace file has registers of %" PRIu64
                              " bytes, more than can be handled",
                              h->registers);
    t->named =
        h->described && h->described <= MAX_DESCRIPTION && lay_out_named(h);
    return t->named ? 0 : lay_out_raw(h, err);
}

static int read_head(struct head *h, struct rhea_error *err)
{
    char magic[TFILE_MAGIC_BYTES];
    size_t len = 1;
    int ret = 0;

    if (fread(magic, sizeof(magic), 1, h->t->file) != 1 ||
        memcmp(magic, TFILE_MAGIC, sizeof(magic)) != 0)
        return rhea_error_set(err, EINVAL, "this is no trace file");
    while (ret == 0 && len) {
        ret = read_line(h, &len, err);
        if (ret == 0 && len)
            ret = load_line(h, h->line, len, err);
    }
    if (ret == 0)
        ret = lay_out(h, err);
    h->t->start = ftello(h->t->file);
    return ret;
}

int tfile_open(struct tfile *t, FILE *file, struct rhea_error *err)
{
    struct head h = {.t = t};
    int ret;

    *t = (struct tfile){.file = file};
    ret = experiment_create(&t->experiment, err);
    if (ret == 0) {
        experiment_set_foreign(t->experiment);
        h.description = open_memstream(&h.description_text, &h.description_len);
        ret = read_head(&h, err);
    }
    if (h.description)
        fclose(h.description);
    free(h.description_text);
    free(h.line);
    if (ret < 0)
        tfile_close(t);
    return ret;
}

void tfile_close(struct tfile *t)
{
    experiment_destroy(t->experiment);
    if (t->file)
        fclose(t->file);
    free(t->status);
    free(t->counters);
    free(t->in);
    free(t->out);
    *t = (struct tfile){0};
}

int tfile_rewind(struct tfile *t, struct rhea_error *err)
{
    t->cut = false;
    t->n_odd = 0;
    if (fseeko(t->file, t->start, SEEK_SET) < 0)
        return rhea_error_errno(err, errno, "cannot read a trace file");
    return 0;
}

/* --- frames -------------------------------------------------------------- */

/* The head of a frame; 0 at the end, which is a number of 0. */
static int read_frame_head(struct tfile *t, unsigned *number, uint32_t *size,
                           struct rhea_error *err)
{
    uint8_t head[TFILE_FRAME_HEAD];
    size_t n = fread(head, 1, sizeof(head), t->file);

    if (ferror(t->file))
        return rhea_error_errno(err, EIO, "cannot read a trace file");
    if (n < 2 || load_le16(head) == 0) {
        t->cut |= n < 2;
        return 0;
    }
    if (n < sizeof(head)) {
        t->cut = true;
        return 0;
    }
    *number = load_le16(head);
    *size = load_le32(head + 2);
    if (*size > TFILE_MAX_FRAME)
        return rhea_error_set(err, E2BIG,
                              "a frame of the trace file is of %" PRIu32
                              " bytes, more than can be handled",
                              *size);
    return 1;
}

int tfile_skip(struct tfile *t, struct rhea_error *err)
{
    unsigned number;
    uint32_t size;
    int ret = read_frame_head(t, &number, &size, err);

    if (ret <= 0)
        return ret;
    while (size) { /* a seek goes past the end without a word */
        char buf[4096];
        size_t n = fread(buf, 1, RHEA_MIN((size_t)size, sizeof(buf)), t->file);

        if (!n) {
            t->cut = true;
            return 0;
        }
        size -= (uint32_t)n;
    }
    return 1;
}

/* Read as it comes, so that memory is taken only for what is there. */
static int read_bytes(struct tfile *t, size_t size, struct rhea_error *err)
{
    size_t n = 0;

    while (n < size) {
        size_t room = RHEA_MIN(size, RHEA_MAX(2 * n, (size_t)65536)), got;

        if (room > t->in_room) {
            uint8_t *grown = realloc(t->in, room);

            if (!grown)
                return no_memory(err);
            t->in = grown;
            t->in_room = room;
        }
        got = fread(t->in + n, 1, room - n, t->file);
        n += got;
        if (!got) {
            t->cut = true;
            return 0;
        }
    }
    return 1;
}

/* The tracepoint that made a frame: of those of its number the one at PC. */
static const struct tracepoint *find_point(const struct experiment *e,
                                           unsigned number, uint64_t pc)
{
    const struct tracepoint *t = experiment_find(e, number, pc);

    for (size_t i = 0; !t && i < e->n_points; i++)
        if (e->points[i]->number == number)
            t = e->points[i];
    return t;
}

/* Which registers were collected at PC, as far as one can know. */
static struct register_set collected(const struct tfile *t, unsigned number,
                                     bool has_pc, uint64_t pc)
{
    const struct tracepoint *p = find_point(t->experiment, number, pc);
    struct register_set set;

    if (!p || !t->named) {
        memset(&set, 0xff, sizeof(set));
        return set;
    }
    if (has_pc && p->step_count && p->address != pc)
        return p->step_actions.registers;
    return p->actions.registers;
}

static uint64_t pc_of(const struct layout *l, const uint8_t *registers)
{
    const struct layout_register *pc = &l->registers[l->pc];
    uint8_t value[8] = {0};

    memcpy(value, registers + pc->offset, RHEA_MIN(pc->size, sizeof(value)));
    return load_le64(value);
}

/* An R block, with its mask; where the output ends. */
static uint8_t *put_registers(const struct tfile *t, const uint8_t *registers,
                              const struct register_set *set, uint8_t *out)
{
    const struct layout *l = &t->experiment->layout;
    unsigned mask_bytes = (l->n + 7) / 8;
    uint8_t *mask = out + 2;

    out[0] = 'R';
    out[1] = (uint8_t)mask_bytes;
    memset(mask, 0, mask_bytes);
    out = mask + mask_bytes;
    for (unsigned n = 0; n < l->n; n++) {
        const struct layout_register *r = &l->registers[n];

        if (!r->size || !register_set_has(set, n))
            continue;
        mask[n / 8] |= (uint8_t)(1u << (n % 8));
        memcpy(out, registers + r->offset, r->size);
        out += r->size;
    }
    return out;
}

/* The length of the block at P; 0 where it is none that is whole. */
static size_t block_length(const struct tfile *t, const uint8_t *p, size_t left)
{
    size_t len = 0;

    if (p[0] == 'R')
        len = 1 + (size_t)t->experiment->layout.bytes;
    else if (p[0] == 'M' && left >= PAYLOAD_MEMORY_HEAD)
        len = PAYLOAD_MEMORY_HEAD + (size_t)load_le16(p + 9);
    else if (p[0] == 'V')
        len = PAYLOAD_VARIABLE;
    return len <= left ? len : 0;
}

/* gdb looks at the first R block only, and so do we. */
static const uint8_t *find_registers(const struct tfile *t, size_t size)
{
    size_t at = 0, len;

    while (at < size && (len = block_length(t, t->in + at, size - at)) > 0) {
        if (t->in[at] == 'R')
            return t->in + at + 1;
        at += len;
    }
    return NULL;
}

static bool is_only_place(const struct experiment *e,
                          const struct tracepoint *p)
{
    for (size_t i = 0; i < e->n_points; i++)
        if (e->points[i] != p && e->points[i]->number == p->number)
            return false;
    return !p->step_count;
}

/* The program counter: a register, or where the tracepoint is. */
static bool find_pc(const struct tfile *t, unsigned number,
                    const uint8_t *registers, uint64_t *pc)
{
    const struct tracepoint *p;

    *pc = 0;
    if (registers && t->experiment->layout.pc >= 0) {
        *pc = pc_of(&t->experiment->layout, registers);
        return true;
    }
    p = find_point(t->experiment, number, 0);
    if (!p || !is_only_place(t->experiment, p))
        return false;
    *pc = p->address;
    return true;
}

/* The blocks in our form. */
static size_t convert(struct tfile *t, size_t size, const uint8_t *registers,
                      const struct register_set *set)
{
    uint8_t *out = t->out;
    size_t at = 0, len = 0;

    while (at < size && (len = block_length(t, t->in + at, size - at)) > 0) {
        if (t->in[at] == 'R' && t->in + at + 1 == registers) {
            out = put_registers(t, registers, set, out);
        } else if (t->in[at] != 'R') {
            memcpy(out, t->in + at, len);
            out += len;
        }
        at += len;
    }
    t->n_odd += at < size;
    return (size_t)(out - t->out);
}

int tfile_next(struct tfile *t, struct frames_frame *frame, bool *has_pc,
               struct rhea_error *err)
{
    size_t room;
    const uint8_t *registers;
    struct register_set set;
    unsigned number;
    uint32_t size;
    int ret = read_frame_head(t, &number, &size, err);

    if (ret > 0)
        ret = read_bytes(t, size, err);
    if (ret <= 0)
        return ret;
    room = size + 2 + (size_t)PAYLOAD_MASK;
    if (room > t->out_room) {
        uint8_t *grown = realloc(t->out, room);

        if (!grown)
            return no_memory(err);
        t->out = grown;
        t->out_room = room;
    }
    *frame = (struct frames_frame){.entry.number = number, .payload = t->out};
    registers = find_registers(t, size);
    *has_pc = find_pc(t, number, registers, &frame->entry.pc);
    set = collected(t, number, *has_pc, frame->entry.pc);
    frame->head.size = (uint32_t)convert(t, size, registers, &set);
    return 1;
}
