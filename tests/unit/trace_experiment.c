/* SPDX-License-Identifier: MIT */
/* Tracepoints as gdb defines them, and as text. */
#include <errno.h>

#include "gdb/experiment.h"
#include "gdb/source.h"
#include "lib/test.h"

static struct experiment *new_experiment(void)
{
    struct experiment *e = NULL;
    struct rhea_error err;

    CHECK_OK(experiment_create(&e, &err), &err);
    return e;
}

static int define(struct experiment *e, const char *packet,
                  struct rhea_error *err)
{
    bool more;

    return experiment_define(e, packet_cursor(packet, strlen(packet)), NULL,
                             &more, err);
}

static int source(struct experiment *e, const char *packet,
                  struct rhea_error *err)
{
    return experiment_source(e, packet_cursor(packet, strlen(packet)), err);
}

static int variable(struct experiment *e, const char *packet,
                    struct rhea_error *err)
{
    return experiment_variable(e, packet_cursor(packet, strlen(packet)), NULL,
                               err);
}

static char *text_of(const struct experiment *e)
{
    char *text = NULL;
    size_t len;
    FILE *file = open_memstream(&text, &len);

    CHECK_EQ(experiment_save(e, file), 0);
    if (fclose(file) != 0 || !text)
        exit(99);
    return text;
}

/* As gdb 13 sends it for a condition, a pass count, actions, while-stepping. */
static void define_one(struct experiment *e)
{
    struct rhea_error err;

    CHECK_OK(define(e, "2:ffffffff81000010:E:3:5:X4,26000027-", &err), &err);
    CHECK_OK(define(e, "-2:ffffffff81000010:R800000000003FF-", &err), &err);
    CHECK_OK(define(e,
                    "-2:ffffffff81000010:M-1,ffff8000,10M7,"
                    "fffffffffffffff8,20X6,220030010227-",
                    &err),
             &err);
    CHECK_OK(define(e, "-2:ffffffff81000010:SR01X4,2c000127", &err), &err);
    CHECK_OK(source(e, "2:ffffffff81000010:at:0:3:666f6f", &err), &err);
    CHECK_OK(source(e, "2:ffffffff81000010:cmd:0:6:636f6c", &err), &err);
    CHECK_OK(source(e, "2:ffffffff81000010:cmd:3:6:6c6563", &err), &err);
    CHECK_OK(source(e, "2:ffffffff81000010:cmd:0:3:656e64", &err), &err);
}

static void tracepoints_are_defined_by_packets(void)
{
    struct experiment *e = new_experiment();
    struct tracepoint *t;

    define_one(e);
    t = experiment_find(e, 2, 0xffffffff81000010);
    if (!CHECK(t != NULL))
        return;
    CHECK(t->enabled && t->kind == POINT_TRAP);
    CHECK_EQ(t->step_count, 3);
    CHECK_EQ(t->pass_count, 5);
    CHECK_EQ(t->condition.len, 4);
    CHECK_EQ(t->actions.n, 4);
    CHECK_EQ(t->actions.registers.bits[0], 0x800000000003ff);
    CHECK_EQ(t->actions.list[1].kind, ACTION_MEMORY);
    CHECK_EQ(t->actions.list[1].base, -1);
    CHECK_EQ(t->actions.list[1].size, 16);
    CHECK_EQ(t->actions.list[2].base, 7);
    CHECK_EQ(t->actions.list[2].offset, -8);
    CHECK(t->actions.list[3].expression.facts.records);
    CHECK_EQ(t->step_actions.n, 2);
    CHECK_EQ(t->n_sources, 3);
    CHECK_STR(t->sources[1].text, "collec");
    CHECK_STR(t->sources[2].text, "end");
    CHECK(experiment_find(e, 2, 0x10) == NULL);
    experiment_destroy(e);
}

/* `collect *(char (*)[64]) $rdi`, and what only begins like it. */
static void a_register_s_memory_needs_no_expression(void)
{
    static const struct {
        const char *text;
        uint64_t size; /* 0: it is no memory to us */
        uint64_t offset;
    } cases[] = {
        {"X7,26000522400c27", 64, 0},
        {"X9,260005164022400c27", 64, 0},
        {"X8,2600052301000c27", 256, 0},
        {"Xa,26000524001000000c27", 1 << 20, 0},
        {"Xa,260005220c0222400c27", 64, 12},
        {"X13,260005164025fffffffffffffff80222400c27", 64, (uint64_t)-8},
        {"Xa,26000524001000010c27", 0, 0},
        {"X9,26000522400c220027", 0, 0},
        {"X9,260005162022400c27", 0, 0},
        {"Xa,260005220c0322400c27", 0, 0},
        {"X7,26000522402f27", 0, 0},
    };
    enum { N = sizeof(cases) / sizeof(cases[0]) };
    struct experiment *e = new_experiment();
    struct rhea_error err = {0};
    const struct tracepoint *t;

    CHECK_OK(define(e, "3:1000:E:0:0-", &err), &err);
    for (size_t i = 0; i < N; i++) {
        char packet[80];

        snprintf(packet, sizeof(packet), "-3:1000:%s-", cases[i].text);
        CHECK_OK(define(e, packet, &err), &err);
    }
    t = experiment_find(e, 3, 0x1000);
    if (!CHECK(t != NULL) || !CHECK_EQ(t->actions.n, N))
        return;
    for (size_t i = 0; i < N; i++) {
        const struct action *a = &t->actions.list[i];

        CHECK_EQ(a->kind, cases[i].size ? ACTION_MEMORY : ACTION_EXPRESSION);
        CHECK_STR(a->text, cases[i].text);
        if (cases[i].size) {
            CHECK_EQ(a->base, 5);
            CHECK_EQ(a->offset, cases[i].offset);
            CHECK_EQ(a->size, cases[i].size);
        }
    }
    experiment_destroy(e);
}

static void text_holds_everything(void)
{
    struct experiment *e = new_experiment(), *f = new_experiment();
    char *text, *again;
    struct rhea_error err;

    CHECK_OK(layout_add(&e->layout, 0, "rax", 0, 8, &err), &err);
    CHECK_OK(layout_add(&e->layout, 16, "rip", 8, 8, &err), &err);
    CHECK_EQ(e->layout.pc, 16);
    define_one(e);
    CHECK_OK(define(e, "3:400:D:0:0:F5", &err), &err);
    CHECK_OK(define(e, "4:400:E:0:0:S", &err), &err);
    CHECK_OK(variable(e, "3:fffffffffffffffe:0:74", &err), &err);
    e->points[1]->watch = (struct watch){UINT64_C(0xffffffff82000000), 8, 2};
    text = text_of(e);
    CHECK_CONTAINS(text, "watch 3:400:2:ffffffff82000000:8\n");
    CHECK_CONTAINS(text, "reg 10:8:8:rip\n");
    CHECK_CONTAINS(text, "tsv 1:0:1:74726163655f74696d657374616d70\n");
    CHECK_CONTAINS(text, "tsv 3:fffffffffffffffe:0:74\n");
    CHECK_CONTAINS(text, "tp T2:ffffffff81000010:E:3:5:X4,26000027\n");
    CHECK_CONTAINS(text, "tp A2:ffffffff81000010:R800000000003FF\n");
    CHECK_CONTAINS(text, "tp S2:ffffffff81000010:X4,2c000127\n");
    CHECK_CONTAINS(text, "tp Z2:ffffffff81000010:cmd:0:6:636f6c6c6563\n");
    CHECK_CONTAINS(text, "tp T3:400:D:0:0:F5\n");
    CHECK_CONTAINS(text, "tp T4:400:E:0:0:S\n");
    CHECK_OK(experiment_load(f, text, strlen(text), &err), &err);
    again = text_of(f);
    CHECK_STR(again, text);
    CHECK_EQ(f->n_points, 3);
    CHECK_EQ(f->points[2]->slot, 2);
    CHECK_EQ(f->points[1]->watch.len, 8);
    CHECK_EQ(f->layout.pc, 16);
    free(text);
    free(again);
    experiment_destroy(e);
    experiment_destroy(f);
}

/* What is left of a source in a trace file, pieces with a `|` in between. */
static const char *in_trace_file(const char *kind, const char *text)
{
    static char out[4096];
    struct source s = {(char *)kind, (char *)text};
    struct source_piece p = source_begin(&s, true);
    size_t n = 0;

    out[0] = 0;
    while (source_next(&p))
        n += (size_t)snprintf(out + n, sizeof(out) - n, "%s%s%.*s",
                              n ? "|" : "", p.verb, (int)p.len, p.text);
    return out;
}

static void gdb_takes_sources_from_a_trace_file(void)
{
    char text[2048], want[2048], name[600];

    CHECK_STR(in_trace_file("at", "main"), "main");
    CHECK_STR(in_trace_file("cond", "a == 3, b"), "a == 3, b");
    CHECK_STR(in_trace_file("cmd", "while-stepping 3"), "while-stepping 3");
    CHECK_STR(in_trace_file("cmd", "end"), "end");
    CHECK_STR(in_trace_file("cmd", "  collect $regs,b"), "collect $regs,b");
    CHECK_STR(in_trace_file("cmd", "collect/s word"), "collect word");
    CHECK_STR(in_trace_file("cmd", "  col /s80 word, c"), "collect word, c");
    CHECK_STR(in_trace_file("cmd", "collect /s(char *) p"),
              "collect (char *) p");
    CHECK_STR(in_trace_file("cmd", "commands/s x"), "commands/s x");
    CHECK_STR(in_trace_file("cmd", "teval $a = \"/s\""), "teval $a = \"/s\"");
    /* Lists are parted where nothing is open. */
    memset(name, 'n', 300);
    name[300] = 0;
    snprintf(text, sizeof(text), "collect f(1,%s), \"a,b(\", x, %s,y", name,
             name);
    snprintf(want, sizeof(want), "collect f(1,%s), \"a,b(\", x|collect %s,y",
             name, name);
    CHECK_STR(in_trace_file("cmd", text), want);
    /* And what is too long by itself is left out. */
    memset(name, 'n', 500);
    name[500] = 0;
    CHECK_STR(in_trace_file("cond", name), "");
    snprintf(text, sizeof(text), "teval a,%s,,b", name);
    CHECK_STR(in_trace_file("cmd", text), "teval a|teval b");
}

static void damaged_watches_are_refused(void)
{
    static const char *const lines[] = {
        "watch 9:400:2:1000:8",    "watch 3:400:5:1000:8",
        "watch 3:400:1:1000:8",    "watch 3:400:2:1000:0",
        "watch 3:400:2:1000:1001", "watch 3:400:2:1000",
        "watch 3:400:2:1000:8:",
    };
    struct experiment *e = new_experiment();
    struct rhea_error err;

    CHECK_OK(define(e, "3:400:D:0:0", &err), &err);
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        CHECK(experiment_load_line(e, lines[i], strlen(lines[i]), &err) < 0);
    CHECK_EQ(e->points[0]->watch.len, 0);
    experiment_destroy(e);
}

static void refused_packets_say_why(void)
{
    struct experiment *e = new_experiment();
    struct rhea_error err;
    static const struct {
        const char *packet;
        int code;
        const char *why;
    } cases[] = {
        {"2:100:E:0:0", EEXIST, "is there already"},
        {"-2:200:R1", ENOENT, "no tracepoint"},
        {"2", EINVAL, "number"},
        {"3:100:X:0:0", EINVAL, "cannot be understood"},
        {"3:100:E:0:0:Q", EINVAL, "field"},
        {"3:100:E:0:0junk", EINVAL, "end of a tracepoint"},
        {"3:100:E:0:0:X1,2", EINVAL, "agent expression"},
        {"3:100:E:0:0:X1,0127", EINVAL, "0x01"},
        {"3:100:E:0:0:X1,27", EINVAL, "no value"},
        {"3:100:E:0:0:X5,22010d0127", EINVAL, "records"},
        {"3:100:E:0:0:Xffffff,", E2BIG, "bytes"},
        {"-2:100:R", EINVAL, "mask"},
        {"-2:100:R1"
         "0000000000000000000000000000000000000000000000000000000"
         "000000000",
         EINVAL, "register 256"},
        {"-2:100:Q", EINVAL, "action 'Q'"},
        {"-2:100:M1", EINVAL, "memory"},
        {"-2:100:M300,0,1", EINVAL, "register 768"},
        {"-2:100:M-1,0,1000000", E2BIG, "more than"},
        {"-2:100:Xb,22002200340000020000"
         "27",
         EINVAL, "prints"},
    };

    CHECK_OK(define(e, "2:100:E:0:0", &err), &err);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        err.text[0] = 0;
        CHECK_EQ(define(e, cases[i].packet, &err), -cases[i].code);
        CHECK_CONTAINS(err.text, cases[i].why);
        CHECK_EQ(e->n_points, 1);
        CHECK_EQ(e->points[0]->actions.n, 0);
    }
    CHECK_EQ(source(e, "9:100:at:0:1:61", &err), -ENOENT);
    CHECK_EQ(source(e, "2:100:at:0:1:6", &err), -EINVAL);
    CHECK_EQ(source(e, "2:100:at:5:1:61", &err), -EINVAL);
    CHECK_EQ(source(e, "2:100:at:0:1:6100", &err), -EINVAL);
    CHECK_EQ(variable(e, "0:0:0:61", &err), -ENOSPC);
    CHECK_EQ(variable(e, "400:0:0:61", &err), -ENOSPC);
    CHECK_EQ(variable(e, "1:0:0:61", &err), -EEXIST);
    CHECK_EQ(variable(e, "5:0:0", &err), -EINVAL);
    experiment_destroy(e);
}

static void clearing_keeps_what_is_builtin(void)
{
    struct experiment *e = new_experiment();
    struct rhea_error err;

    define_one(e);
    CHECK_OK(variable(e, "3:7:0:74", &err), &err);
    CHECK_OK(variable(e, "1:0:1:74726163655f74696d657374616d70", &err), &err);
    experiment_clear(e);
    CHECK_EQ(e->n_points, 0);
    CHECK(e->variables[3] == NULL);
    CHECK(e->variables[VARIABLE_TIMESTAMP] && e->variables[VARIABLE_CPU]);
    define_one(e);
    experiment_drop_last(e);
    CHECK_EQ(e->n_points, 0);
    experiment_destroy(e);
}

static void tracepoints_are_bounded(void)
{
    struct experiment *e = new_experiment();
    struct rhea_error err;
    char packet[64];
    int ret = 0;

    for (unsigned i = 0; i <= EXPERIMENT_MAX_POINTS && ret == 0; i++) {
        snprintf(packet, sizeof(packet), "%x:100:E:0:0", i + 1);
        ret = define(e, packet, &err);
    }
    CHECK_EQ(ret, -ENOSPC);
    CHECK_EQ(e->n_points, EXPERIMENT_MAX_POINTS);
    for (unsigned i = 0; i <= EXPERIMENT_MAX_ACTIONS; i++)
        ret = define(e, "-2000:100:R1", &err);
    CHECK_EQ(ret, -ENOSPC);
    experiment_destroy(e);
}

static void layouts_do_not_overlap(void)
{
    struct layout l = {.pc = -1};
    struct rhea_error err;

    CHECK_OK(layout_add(&l, 0, "rax", 0, 8, &err), &err);
    CHECK_EQ(layout_add(&l, 1, "rbx", 7, 8, &err), -EINVAL);
    CHECK_EQ(layout_add(&l, 0, "rbx", 8, 8, &err), -EINVAL);
    CHECK_EQ(layout_add(&l, 256, "rbx", 8, 8, &err), -EINVAL);
    CHECK_EQ(layout_add(&l, 1, "rbx", 8, 65, &err), -EINVAL);
    CHECK_EQ(layout_add(&l, 1, "rbx", 8, 0, &err), -EINVAL);
    CHECK_EQ(layout_add(&l, 1, "rbx", EXPERIMENT_MAX_G - 7, 8, &err), -EINVAL);
    CHECK_OK(layout_add(&l, 1, "rbx", 8, 8, &err), &err);
    CHECK_EQ(l.bytes, 16);
    CHECK_EQ(layout_number(&l, "rbx"), 1);
    CHECK_EQ(layout_number(&l, "rcx"), -1);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(tracepoints_are_defined_by_packets);
    TEST(a_register_s_memory_needs_no_expression);
    TEST(text_holds_everything);
    TEST(gdb_takes_sources_from_a_trace_file);
    TEST(damaged_watches_are_refused);
    TEST(refused_packets_say_why);
    TEST(clearing_keeps_what_is_builtin);
    TEST(tracepoints_are_bounded);
    TEST(layouts_do_not_overlap);
    return test_finish();
}
