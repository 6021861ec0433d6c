/* SPDX-License-Identifier: MIT */
/* Hits: conditions, counters, what gets into frames. */
#include "gdb/hit.h"

#include "base/byteorder.h"
#include "gdb/payload.h"
#include "lib/test.h"

/* --- a machine ----------------------------------------------------------- */

/* Registers 0 to 3 of 8 bytes, 4 of 16, 5 of 4, and 6 that is never at hand.
 * Memory is at 0x10000 up to 0x12000 and from 0x13000 to 0x14000: each byte is
 * the second of its address, but a string at 0x10100. */
static const char layout_text[] =
    "reg 0:0:8:rax\nreg 1:8:8:rsp\nreg 2:10:8:rip\n"
    "reg 3:18:8:rbx\nreg 4:20:10:xmm0\n"
    "reg 5:30:4:eflags\nreg 6:34:4:gone\n";

static uint64_t rax;

static bool get_register(void *opaque, unsigned n, void *bytes)
{
    (void)opaque;
    if (n == 6)
        return false;
    memset(bytes, 0x50 + (int)n, n == 4 ? 16 : n == 5 ? 4 : 8);
    if (n == 0)
        store_le64(bytes, rax);
    if (n == 1)
        store_le64(bytes, 0x11ff8);
    return true;
}

static size_t read_memory(void *opaque, uint64_t address, void *buf, size_t len)
{
    static const char text[] = "a string";
    uint8_t *p = buf;

    (void)opaque;
    CHECK(len && address / 4096 == (address + len - 1) / 4096);
    if (address < 0x10000 || address >= 0x14000 || address / 4096 == 0x12)
        return 0;
    for (size_t i = 0; i < len; i++) {
        uint64_t a = address + i;

        p[i] = (uint8_t)(a >> 8);
        if (a >= 0x10100 && a < 0x10100 + sizeof(text))
            p[i] = (uint8_t)text[a - 0x10100];
    }
    return len;
}

static const struct hit_machine machine = {
    .get_register = get_register, .read = read_memory, .pc = 0x1000, .cpu = 2};

/* --- an experiment that runs --------------------------------------------- */

struct bed {
    struct experiment *e;
    struct frames *f;
    struct hit hit;
};

static void bed_init(struct bed *b, const char *text)
{
    struct rhea_error err;

    unlink(test_path("hits"));
    CHECK_OK(experiment_create(&b->e, &err), &err);
    CHECK_OK(experiment_load(b->e, layout_text, strlen(layout_text), &err),
             &err);
    CHECK_OK(experiment_load(b->e, text, strlen(text), &err), &err);
    CHECK_OK(frames_create(&b->f, test_path("hits"), 4 << 20, &err), &err);
    CHECK_OK(frames_publish(b->f, b->e, &err), &err);
    CHECK_OK(frames_start(b->f, b->e, &err), &err);
    CHECK_OK(hit_init(&b->hit, b->f, b->e, &err), &err);
}

static void bed_finish(struct bed *b)
{
    hit_finish(&b->hit);
    frames_close(b->f);
    experiment_destroy(b->e);
}

static enum hit_result run(struct bed *b, unsigned i)
{
    return hit_run(&b->hit, b->e->points[i], &machine);
}

/* The blocks of frame N in words. */
static const char *frame_text(struct bed *b, uint64_t n)
{
    static char text[4096];
    struct frames_frame frame;
    struct payload p;
    struct payload_block k;
    size_t used = 0;

    text[0] = 0;
    if (!frames_get(b->f, n, &frame))
        return "none";
    p = payload_of(&frame, &b->e->layout);
    while (payload_next(&p, &k)) {
        int more = 0;
        char *at = text + used;
        size_t room = sizeof(text) - used;

        if (k.kind == 'M')
            more = snprintf(at, room, "M%" PRIx64 "+%zx=%02x..%02x ", k.address,
                            k.len, k.bytes[0], k.bytes[k.len - 1]);
        else if (k.kind == 'V')
            more = snprintf(at, room, "V%u=%" PRId64 " ", k.number, k.value);
        else
            for (unsigned i = 0; i < 7; i++) {
                const uint8_t *bytes = payload_register(&k, &b->e->layout, i);

                if (bytes)
                    more += snprintf(at + more, room - (size_t)more,
                                     "R%u=%02x ", i, bytes[0]);
            }
        used += (size_t)more;
    }
    CHECK(p.at == p.end);
    return text;
}

/* --- tests --------------------------------------------------------------- */

static void frames_hold_what_is_collected(void)
{
    struct bed b;
    struct frames_frame frame;

    bed_init(&b, "tp T1:1000:E:0:0\n"
                 "tp A1:1000:R71\n" /* 0, 4, 5, 6 */
                 "tp A1:1000:M-1,10200,10\n"
                 "tp A1:1000:M1,fffffffffffffff8,10\n"
                 "tp A1:1000:X9,240001030030001027\n");
    rax = 0x77;
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_STR(frame_text(&b, 0), "R0=77 R4=54 R5=55 M10200+10=02..02 "
                                 "M11ff0+10=1f..1f M10300+10=03..03 ");
    CHECK(frames_get(b.f, 0, &frame));
    CHECK_EQ(frame.entry.pc, 0x1000);
    CHECK_EQ(frame.entry.cpu, 2);
    CHECK_EQ(frame.entry.number, 1);
    CHECK_EQ(frames_point(b.f, 0)->hits, 1);
    CHECK_EQ(frames_point(b.f, 0)->usage, frames_control(b.f)->used);
    bed_finish(&b);
}

static void memory_that_is_not_there_is_left_out(void)
{
    struct bed b;

    bed_init(&b, "tp T1:1000:E:0:0\n"
                 "tp A1:1000:M-1,ff00,200\n"
                 "tp A1:1000:M-1,11f00,1200\n"
                 "tp A1:1000:M-1,fffffffffffffff0,20\n");
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_STR(frame_text(&b, 0), "M10000+100=00..00 M11f00+100=1f..1f "
                                 "M13000+100=30..30 ");
    bed_finish(&b);
}

static void strings_end_at_their_zero(void)
{
    struct bed b;

    /* const32 address, const16 length, tracenz, end */
    bed_init(&b, "tp T1:1000:E:0:0\n"
                 "tp A1:1000:Xa,24000101002303e82f27\n"
                 "tp A1:1000:Xa,2400010100230004"
                 "2f27\n"
                 "tp A1:1000:Xa,2400011f802303e82f27\n"
                 "tp A1:1000:Xa,24000120002303e82f27\n");
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_STR(frame_text(&b, 0), "M10100+9=61..00 M10100+4=61..74 "
                                 "M11f80+80=1f..1f ");
    bed_finish(&b);
}

static void large_pieces_become_several_blocks(void)
{
    struct bed b;

    bed_init(&b, "tp T1:1000:E:0:0\ntp A1:1000:M-1,13000,1000\n"
                 "tp A1:1000:M-1,0,14000\n");
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_STR(frame_text(&b, 0), "M13000+1000=30..3f M10000+2000=00..1f "
                                 "M13000+1000=30..3f ");
    bed_finish(&b);
}

static void conditions_decide(void)
{
    struct bed b;

    /* reg 0, end */
    bed_init(&b, "tp T1:1000:E:0:0:X4,26000027\ntp A1:1000:R1\n");
    rax = 0;
    CHECK_EQ(run(&b, 0), HIT_IGNORED);
    rax = 5;
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_EQ(frames_point(b.f, 0)->tests, 2);
    CHECK_EQ(frames_point(b.f, 0)->hits, 1);
    CHECK_EQ(frames_count(b.f), 1);
    bed_finish(&b);
}

static void unreadable_conditions_are_false_and_counted(void)
{
    struct bed b;

    /* const8 0, ref8, end; const8 0, ref8 as an action; reg 4 is too wide */
    bed_init(&b, "tp T1:1000:E:0:0:X4,22001727\n"
                 "tp T2:1000:E:0:0\ntp A2:1000:X4,22001727\ntp A2:1000:R1\n"
                 "tp T3:1000:E:0:0:X4,26000427\n");
    CHECK_EQ(run(&b, 0), HIT_IGNORED);
    CHECK_EQ(run(&b, 1), HIT_STORED);
    CHECK_EQ(run(&b, 2), HIT_IGNORED);
    CHECK_EQ(frames_point(b.f, 0)->faults, 1);
    CHECK_EQ(frames_point(b.f, 1)->faults, 1);
    CHECK_EQ(frames_point(b.f, 2)->faults, 1);
    CHECK(frames_is_running(frames_control(b.f)));
    bed_finish(&b);
}

static void faulty_expressions_stop_tracing(void)
{
    struct bed b;

    /* const8 1, const8 0, div, end */
    bed_init(&b, "tp T7:1000:E:0:0\ntp A7:1000:X6,220122000527\n");
    CHECK_EQ(run(&b, 0), HIT_STOPPED);
    CHECK_EQ(frames_control(b.f)->stop, FRAMES_ERROR);
    CHECK_EQ(frames_control(b.f)->stop_point, 7);
    CHECK_STR(frames_control(b.f)->reason, "division by zero");
    CHECK_EQ(frames_point(b.f, 0)->hits, 0);
    CHECK_EQ(frames_count(b.f), 0);
    CHECK_EQ(run(&b, 0), HIT_IGNORED);
    bed_finish(&b);
}

static void disabled_ones_are_passed_by(void)
{
    struct bed b;

    bed_init(&b, "tp T1:1000:D:0:0\n");
    CHECK_EQ(run(&b, 0), HIT_IGNORED);
    frames_point(b.f, 0)->enabled = 1;
    CHECK_EQ(run(&b, 0), HIT_STORED);
    frames_stop(b.f, FRAMES_STOPPED, 0, NULL);
    CHECK_EQ(run(&b, 0), HIT_IGNORED);
    bed_finish(&b);
}

static void the_pass_count_is_exact(void)
{
    struct bed b;

    bed_init(&b, "tp T1:1000:E:0:3\n");
    for (int i = 0; i < 3; i++)
        CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK(!frames_is_running(frames_control(b.f)));
    CHECK_EQ(run(&b, 0), HIT_IGNORED);
    CHECK_EQ(frames_control(b.f)->stop, FRAMES_PASS_COUNT);
    CHECK_EQ(frames_control(b.f)->stop_point, 1);
    CHECK_EQ(frames_count(b.f), 3);
    bed_finish(&b);
}

static void steps_have_actions_of_their_own(void)
{
    struct bed b;
    struct frames_frame frame;

    bed_init(&b, "tp T1:1000:E:2:1\ntp A1:1000:R1\ntp S1:1000:R2\n");
    rax = 1;
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_EQ(hit_step(&b.hit, b.e->points[0], false, &machine), HIT_STORED);
    CHECK(frames_is_running(frames_control(b.f)));
    CHECK_EQ(hit_step(&b.hit, b.e->points[0], true, &machine), HIT_STORED);
    CHECK_EQ(frames_control(b.f)->stop, FRAMES_PASS_COUNT);
    CHECK_EQ(hit_step(&b.hit, b.e->points[0], true, &machine), HIT_STOPPED);
    CHECK_STR(frame_text(&b, 0), "R0=01 ");
    CHECK_STR(frame_text(&b, 1), "R1=f8 ");
    CHECK(frames_get(b.f, 2, &frame));
    CHECK_EQ(frame.entry.flags, FRAMES_STEP);
    bed_finish(&b);
}

static void variables_live_over_hits(void)
{
    struct bed b;

    /* $v = $v + 1, recorded; $trace_cpu */
    bed_init(&b, "tsv 5:a:0:76\ntp T1:1000:E:0:0\n"
                 "tp A1:1000:Xd,2c00052201022d00052e000527\n"
                 "tp A1:1000:X4,2e000227\n"
                 "tp T2:1000:E:0:0\ntp A2:1000:X7,22012d0002"
                 "2727\n");
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_EQ(run(&b, 0), HIT_STORED);
    CHECK_STR(frame_text(&b, 0), "V5=11 V2=2 ");
    CHECK_STR(frame_text(&b, 1), "V5=12 V2=2 ");
    CHECK_EQ(frames_variable(b.f, 5)->value, 12);
    /* The machine's own cannot be set. */
    CHECK_EQ(run(&b, 1), HIT_STOPPED);
    bed_finish(&b);
}

static void a_frame_is_bounded(void)
{
    struct bed b;
    char text[4000] = "tp T1:1000:E:0:0\n";

    for (int i = 0; i < 100; i++)
        strncat(text, "tp A1:1000:M-1,10000,14000\n",
                sizeof(text) - strlen(text) - 1);
    bed_init(&b, text);
    CHECK_EQ(run(&b, 0), HIT_STOPPED);
    CHECK_EQ(frames_control(b.f)->stop, FRAMES_ERROR);
    CHECK_EQ(frames_count(b.f), 0);
    bed_finish(&b);
}

static void conditions_and_prints_of_breakpoints(void)
{
    struct bed b;
    struct expression x = {0};
    char buf[64];
    uint64_t value;
    /* "%s %d", 0x10100, rax */
    uint8_t code[] = {0x26, 0, 0, 0x24, 0,   1,   1,   0,   0x22, 0, 0x22, 0,
                      0x34, 2, 0, 6,    '%', 's', ' ', '%', 'd',  0, 0x27};

    bed_init(&b, "");
    rax = 42;
    x.code = code;
    x.len = sizeof(code);
    CHECK_OK(ax_verify(code, sizeof(code), &x.facts, NULL), NULL);
    CHECK_EQ(hit_print(&b.hit, &x, &machine, buf, sizeof(buf)), AX_OK);
    CHECK_STR(buf, "a string 42");
    CHECK_EQ(hit_print(&b.hit, &x, &machine, buf, 5), AX_OK);
    CHECK_STR(buf, "a st");
    x.code = (uint8_t[]){0x26, 0, 0, 0x27};
    x.len = 4;
    CHECK_EQ(hit_evaluate(&b.hit, &x, &machine, &value), AX_OK);
    CHECK_EQ(value, 42);
    bed_finish(&b);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(frames_hold_what_is_collected);
    TEST(memory_that_is_not_there_is_left_out);
    TEST(strings_end_at_their_zero);
    TEST(large_pieces_become_several_blocks);
    TEST(conditions_decide);
    TEST(unreadable_conditions_are_false_and_counted);
    TEST(faulty_expressions_stop_tracing);
    TEST(disabled_ones_are_passed_by);
    TEST(the_pass_count_is_exact);
    TEST(steps_have_actions_of_their_own);
    TEST(variables_live_over_hits);
    TEST(a_frame_is_bounded);
    TEST(conditions_and_prints_of_breakpoints);
    return test_finish();
}
