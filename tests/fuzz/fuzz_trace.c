/* SPDX-License-Identifier: MIT */
/*
 * rhea-trace's parsers. The first byte of an input says which: P packets as
 * they come from a socket, A an agent expression, which is run too, E the text
 * of an experiment, B a breakpoint of gdb's, 0x7f gdb's trace file (that is how
 * these begin).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gdb/breaks.h"
#include "gdb/ctf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_REQUIRE(cond)                                                     \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #cond); \
            abort();                                                           \
        }                                                                      \
    } while (0)

/* --- packets ------------------------------------------------------------- */

/* All events and payloads as one text. */
static void read_all(const uint8_t *data, size_t size, size_t piece, bool runs,
                     struct packet_text *out)
{
    struct packet_reader r;

    FUZZ_REQUIRE(packet_reader_init(&r, runs, NULL) == 0);
    while (size) {
        size_t n = piece < size ? piece : size, left = n;
        const uint8_t *at = data;
        enum packet_event event;

        while ((event = packet_read(&r, &at, &left)) != PACKET_NONE) {
            packet_printf(out, "%d", event);
            FUZZ_REQUIRE(r.len <= PACKET_MAX && r.data[r.len] == 0);
            if (event == PACKET_DATA)
                packet_put(out, r.data, r.len);
        }
        FUZZ_REQUIRE(!left);
        data += n;
        size -= n;
    }
    packet_reader_finish(&r);
}

static void fuzz_packets(const uint8_t *data, size_t size)
{
    for (unsigned runs = 0; runs < 2; runs++) {
        struct packet_text whole = {0}, torn = {0};

        read_all(data, size, size + 1, runs, &whole);
        read_all(data, size, 1, runs, &torn);
        FUZZ_REQUIRE(whole.len == torn.len);
        FUZZ_REQUIRE(!whole.len || !memcmp(whole.data, torn.data, whole.len));
        packet_text_finish(&whole);
        packet_text_finish(&torn);
    }
}

/* --- expressions --------------------------------------------------------- */

static bool get_register(void *opaque, unsigned n, uint64_t *value)
{
    (void)opaque;
    *value = n * UINT64_C(0x123456789);
    return n % 5 != 4;
}

static bool read_memory(void *opaque, uint64_t address, void *buf, size_t len)
{
    (void)opaque;
    memset(buf, (int)(address & 255), len);
    return address % 7 != 6;
}

static bool get_variable(void *opaque, unsigned n, int64_t *value)
{
    *value = *(int64_t *)opaque;
    return n < 9;
}

static bool set_variable(void *opaque, unsigned n, int64_t value)
{
    *(int64_t *)opaque = value;
    return n < 9;
}

static bool record(void *opaque, uint64_t address, uint64_t len)
{
    (void)opaque;
    return (address ^ len) % 11 != 10;
}

static bool record_variable(void *opaque, unsigned n)
{
    (void)opaque;
    return n != 3;
}

static size_t string(void *opaque, uint64_t address, char *buf, size_t room)
{
    (void)opaque;
    memset(buf, 's', room);
    return (size_t)(address % (room + 1));
}

static bool print(void *opaque, const char *format, unsigned n,
                  const uint64_t *arguments)
{
    char buf[100];

    FUZZ_REQUIRE(ax_format(buf, sizeof(buf), format, n, arguments, string,
                           opaque) < sizeof(buf));
    return true;
}

static const struct ax_machine machine = {
    get_register, read_memory, get_variable,    set_variable,
    record,       record,      record_variable, print};

static void fuzz_expression(const uint8_t *data, size_t size)
{
    struct ax_facts facts;
    int64_t variable = 3;
    uint64_t value;

    if (ax_verify(data, size, &facts, NULL) < 0)
        return;
    FUZZ_REQUIRE(facts.max_height <= AX_STACK);
    (void)ax_run(data, size, &machine, &variable, &value);
    (void)ax_run(data, size, &machine, &variable, NULL);
}

/* --- experiments and breakpoints ----------------------------------------- */

static char *save(const struct experiment *e)
{
    char *text = NULL;
    size_t len;
    FILE *file = open_memstream(&text, &len);

    FUZZ_REQUIRE(file && experiment_save(e, file) == 0);
    FUZZ_REQUIRE(fclose(file) == 0 && text);
    return text;
}

/* What was loaded is saved so that it can be loaded again, and is the same. */
static void fuzz_experiment(const uint8_t *data, size_t size)
{
    struct experiment *e, *f;
    char *text, *again;

    FUZZ_REQUIRE(experiment_create(&e, NULL) == 0);
    FUZZ_REQUIRE(experiment_create(&f, NULL) == 0);
    (void)experiment_load(e, (const char *)data, size, NULL);
    text = save(e);
    if (experiment_load(f, text, strlen(text), NULL) == 0) {
        again = save(f);
        FUZZ_REQUIRE(!strcmp(text, again));
        free(again);
    }
    free(text);
    experiment_destroy(e);
    experiment_destroy(f);
}

static void fuzz_breakpoint(const uint8_t *data, size_t size)
{
    struct breaks b = {0};
    struct packet_cursor c = packet_cursor(data, size);

    if (breaks_insert(&b, c, NULL) == 0) {
        FUZZ_REQUIRE(b.n == 1 && b.list[0].by_gdb);
        (void)breaks_insert(&b, c, NULL);
        FUZZ_REQUIRE(b.n == 1);
        (void)breaks_remove(&b, c, NULL);
    }
    breaks_finish(&b);
}

/* --- trace files --------------------------------------------------------- */

/* All blocks lie in the payload; what they add up to. */
static uint64_t walk(const struct recorded *r, const struct recorded_frame *f)
{
    struct payload p = payload_of(&f->frame, recorded_layout(r));
    struct payload_block b;
    uint64_t sum = 0;

    while (payload_next(&p, &b)) {
        for (size_t i = 0; i < b.len; i++)
            sum += b.bytes[i];
        for (unsigned n = 0; b.kind == 'R' && n < EXPERIMENT_MAX_REGISTERS; n++)
            if (payload_register(&b, recorded_layout(r), n))
                sum += *payload_register(&b, recorded_layout(r), n);
    }
    return sum;
}

static uint64_t walk_all(struct recorded *r, uint64_t *sum)
{
    struct recorded_frame f;
    uint64_t n = 0;

    *sum = 0;
    while (recorded_next(r, &f, NULL) > 0) {
        *sum += walk(r, &f);
        n++;
    }
    return n;
}

/* The second time is as the first, and a description of it can be written. */
static void fuzz_file(const uint8_t *data, size_t size)
{
    int fd = memfd_create("trace", 0);
    struct ctf_shape shape = {.has_pc = true, .n_variables = 2, .n_blocks = 2};
    struct ctf_facts facts = {.has_time = true};
    char path[40], text[600], *metadata = NULL;
    struct recorded r;
    uint64_t n, sum, again;
    size_t len;
    FILE *out;

    FUZZ_REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (recorded_open(&r, path, NULL) == 0) {
        n = walk_all(&r, &sum);
        for (unsigned i = 0; recorded_trouble(&r, i, text, sizeof(text)); i++)
            FUZZ_REQUIRE(text[0] && i < 5);
        status_describe(&r.status, text, sizeof(text));
        FUZZ_REQUIRE(recorded_rewind(&r, NULL) == 0);
        FUZZ_REQUIRE(walk_all(&r, &again) == n && again == sum);
        memset(shape.mask, 0xff, sizeof(shape.mask));
        shape.number =
            r.experiment->n_points ? r.experiment->points[0]->number : 1;
        out = open_memstream(&metadata, &len);
        FUZZ_REQUIRE(out);
        FUZZ_REQUIRE(ctf_put_metadata(&r, &facts, &shape, 1, out, NULL) == 0);
        FUZZ_REQUIRE(fclose(out) == 0);
        free(metadata);
        recorded_close(&r);
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    switch (data[0]) {
    case 'P':
        fuzz_packets(data + 1, size - 1);
        break;
    case 'A':
        fuzz_expression(data + 1, size - 1);
        break;
    case 0x7f:
        fuzz_file(data, size);
        break;
    case 'E':
        fuzz_experiment(data + 1, size - 1);
        break;
    default:
        fuzz_breakpoint(data + 1, size - 1);
        break;
    }
    return 0;
}
