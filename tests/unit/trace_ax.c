/* SPDX-License-Identifier: MIT */
/* Agent expressions: every opcode, what is refused, formats. */
#include "base/byteorder.h"
#include "gdb/ax.h"
#include "gdb/ax_code.h"
#include "lib/test.h"

/* --- a machine ----------------------------------------------------------- */

static int64_t variables[4];
static char log_text[1024]; /* what was recorded and printed */

static void note(const char *fmt, ...) RHEA_PRINTF(1, 2);
static void note(const char *fmt, ...)
{
    size_t used = strlen(log_text);
    va_list args;

    va_start(args, fmt);
    vsnprintf(log_text + used, sizeof(log_text) - used, fmt, args);
    va_end(args);
}

static bool get_register(void *opaque, unsigned n, uint64_t *value)
{
    (void)opaque;
    *value = 0x1000 + n;
    return n < 16;
}

/* Memory is at 0x1000 to 0x1fff; each byte is the low byte of its address. */
static bool read_memory(void *opaque, uint64_t address, void *buf, size_t len)
{
    (void)opaque;
    if (address < 0x1000 || address + len > 0x2000)
        return false;
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = (uint8_t)(address + i);
    return true;
}

static bool get_variable(void *opaque, unsigned n, int64_t *value)
{
    (void)opaque;
    if (n >= 4)
        return false;
    *value = variables[n];
    return true;
}

static bool set_variable(void *opaque, unsigned n, int64_t value)
{
    (void)opaque;
    if (n >= 4)
        return false;
    variables[n] = value;
    return true;
}

static bool record_memory(void *opaque, uint64_t address, uint64_t len)
{
    (void)opaque;
    note("M%" PRIx64 ",%" PRIx64 ";", address, len);
    return len != 0xdead;
}

static bool record_string(void *opaque, uint64_t address, uint64_t len)
{
    (void)opaque;
    note("S%" PRIx64 ",%" PRIx64 ";", address, len);
    return true;
}

static bool record_variable(void *opaque, unsigned n)
{
    (void)opaque;
    note("V%u;", n);
    return true;
}

static bool print(void *opaque, const char *format, unsigned n_arguments,
                  const uint64_t *arguments)
{
    (void)opaque;
    note("P%s", format);
    for (unsigned i = 0; i < n_arguments; i++)
        note(",%" PRIx64, arguments[i]);
    note(";");
    return true;
}

static const struct ax_machine machine = {
    get_register,  read_memory,   get_variable,    set_variable,
    record_memory, record_string, record_variable, print};

/* --- helpers ------------------------------------------------------------- */

#define CODE(...)                                                              \
    ((const uint8_t[]){__VA_ARGS__}), sizeof((uint8_t[]){__VA_ARGS__})

static enum ax_status run(const uint8_t *code, size_t len, uint64_t *value)
{
    struct rhea_error err;

    log_text[0] = 0;
    if (!CHECK_OK(ax_verify(code, len, NULL, &err), &err))
        return AX_EMPTY;
    return ax_run(code, len, &machine, NULL, value);
}

static void check_value(const uint8_t *code, size_t len, uint64_t want)
{
    uint64_t value = ~want;

    CHECK_EQ(run(code, len, &value), AX_OK);
    CHECK_EQ(value, want);
}

/* A and B are the operands of OPCODE. */
static void check_binary(uint8_t opcode, uint64_t a, uint64_t b, uint64_t want)
{
    uint8_t code[20] = {AX_CONST64};

    store_be64(code + 1, a);
    code[9] = AX_CONST64;
    store_be64(code + 10, b);
    code[18] = opcode;
    code[19] = AX_END;
    check_value(code, sizeof(code), want);
}

static void check_status(const uint8_t *code, size_t len, enum ax_status want)
{
    uint64_t value;

    CHECK_EQ(run(code, len, &value), want);
}

static void check_refused(const uint8_t *code, size_t len, const char *why)
{
    struct rhea_error err;

    err.text[0] = 0;
    CHECK(ax_verify(code, len, NULL, &err) < 0);
    CHECK_CONTAINS(err.text, why);
}

/* --- tests --------------------------------------------------------------- */

static void arithmetic_wraps_at_64_bits(void)
{
    check_binary(AX_ADD, 2, 3, 5);
    check_binary(AX_ADD, UINT64_MAX, 2, 1);
    check_binary(AX_SUB, 2, 3, UINT64_MAX);
    check_binary(AX_MUL, UINT64_C(1) << 63, 3, UINT64_C(1) << 63);
    check_binary(AX_DIV_SIGNED, -7, 2, -3);
    check_binary(AX_DIV_SIGNED, UINT64_C(1) << 63, -1, UINT64_C(1) << 63);
    check_binary(AX_DIV_UNSIGNED, -7, 2, 0x7ffffffffffffffc);
    check_binary(AX_REM_SIGNED, -7, 2, -1);
    check_binary(AX_REM_SIGNED, UINT64_C(1) << 63, -1, 0);
    check_binary(AX_REM_UNSIGNED, -7, 10, 9);
}

static void division_by_zero_is_an_error(void)
{
    for (uint8_t opcode = AX_DIV_SIGNED; opcode <= AX_REM_UNSIGNED; opcode++)
        check_status(CODE(AX_CONST8, 1, AX_CONST8, 0, opcode, AX_END),
                     AX_DIVIDE_BY_ZERO);
}

static void bits_and_comparisons(void)
{
    check_binary(AX_LSH, 3, 4, 48);
    check_binary(AX_LSH, 3, 64, 0);
    check_binary(AX_RSH_SIGNED, -16, 2, -4);
    check_binary(AX_RSH_SIGNED, -16, 100, -1);
    check_binary(AX_RSH_UNSIGNED, -16, 60, 15);
    check_binary(AX_RSH_UNSIGNED, -16, -1, 0);
    check_binary(AX_BIT_AND, 12, 10, 8);
    check_binary(AX_BIT_OR, 12, 10, 14);
    check_binary(AX_BIT_XOR, 12, 10, 6);
    check_binary(AX_EQUAL, 7, 7, 1);
    check_binary(AX_EQUAL, 7, 8, 0);
    check_binary(AX_LESS_SIGNED, -1, 1, 1);
    check_binary(AX_LESS_UNSIGNED, -1, 1, 0);
    check_value(CODE(AX_CONST8, 0, AX_LOG_NOT, AX_END), 1);
    check_value(CODE(AX_CONST8, 9, AX_LOG_NOT, AX_END), 0);
    check_value(CODE(AX_CONST8, 1, AX_BIT_NOT, AX_END), ~UINT64_C(1));
}

static void extensions_know_every_width(void)
{
    for (unsigned n = 1; n <= 64; n++) {
        uint8_t code[12] = {AX_CONST64};
        uint64_t top = UINT64_C(1) << (n - 1);

        store_be64(code + 1, 0xa5a5a5a5a5a5a5a5);
        code[9] = AX_ZERO_EXT;
        code[10] = (uint8_t)n;
        code[11] = AX_END;
        check_value(code, 12, 0xa5a5a5a5a5a5a5a5 & (top * 2 - 1));
        store_be64(code + 1, top);
        code[9] = AX_EXT;
        check_value(code, 12, -top);
        store_be64(code + 1, (top - 1) | ~(top * 2 - 1));
        check_value(code, 12, top - 1);
    }
    check_value(CODE(AX_CONST8, 0x81, AX_EXT, 200, AX_END), 0x81);
    check_value(CODE(AX_CONST8, 0x81, AX_ZERO_EXT, 0, AX_END), 0);
}

static void constants_are_big_endian(void)
{
    check_value(CODE(AX_CONST8, 0xff, AX_END), 0xff);
    check_value(CODE(AX_CONST16, 0xff, 1, AX_END), 0xff01);
    check_value(CODE(AX_CONST32, 0xff, 1, 2, 3, AX_END), 0xff010203);
    check_value(CODE(AX_CONST64, 0xff, 1, 2, 3, 4, 5, 6, 7, AX_END),
                0xff01020304050607);
}

static void registers_and_memory_are_read(void)
{
    check_value(CODE(AX_REG, 0, 7, AX_END), 0x1007);
    check_status(CODE(AX_REG, 0, 16, AX_END), AX_NO_REGISTER);
    check_value(CODE(AX_CONST16, 0x11, 0x23, AX_REF8, AX_END), 0x23);
    check_value(CODE(AX_CONST16, 0x11, 0x23, AX_REF16, AX_END), 0x2423);
    check_value(CODE(AX_CONST16, 0x11, 0x23, AX_REF32, AX_END), 0x26252423);
    check_value(CODE(AX_CONST16, 0x11, 0x23, AX_REF64, AX_END),
                0x2a29282726252423);
    check_status(CODE(AX_CONST16, 0x1f, 0xff, AX_REF16, AX_END), AX_MEMORY);
}

static void the_stack_is_shuffled(void)
{
    check_value(CODE(AX_CONST8, 1, AX_CONST8, 2, AX_SWAP, AX_SUB, AX_END), 1);
    check_value(CODE(AX_CONST8, 3, AX_DUP, AX_MUL, AX_END), 9);
    check_value(CODE(AX_CONST8, 1, AX_CONST8, 2, AX_POP, AX_END), 1);
    check_value(CODE(AX_CONST8, 1, AX_CONST8, 2, AX_PICK, 1, AX_END), 1);
    check_value(CODE(AX_CONST8, 1, AX_CONST8, 2, AX_PICK, 0, AX_END), 2);
    /* rot: a b c => c a b */
    check_value(CODE(AX_CONST8, 1, AX_CONST8, 2, AX_CONST8, 3, AX_ROT, AX_END),
                2);
    check_value(
        CODE(AX_CONST8, 1, AX_CONST8, 2, AX_CONST8, 3, AX_ROT, AX_POP, AX_END),
        1);
    check_value(CODE(AX_CONST8, 1, AX_CONST8, 2, AX_CONST8, 3, AX_ROT, AX_POP,
                     AX_POP, AX_END),
                3);
}

static void jumps_go_where_they_say(void)
{
    /* 5 if the constant is not 0, else 6 */
    check_value(CODE(AX_CONST8, 1, AX_IF_GOTO, 0, 10, AX_CONST8, 6, AX_GOTO, 0,
                     12, AX_CONST8, 5, AX_END),
                5);
    check_value(CODE(AX_CONST8, 0, AX_IF_GOTO, 0, 10, AX_CONST8, 6, AX_GOTO, 0,
                     12, AX_CONST8, 5, AX_END),
                6);
    /* 10 + 9 + ... + 1 */
    variables[0] = 10;
    variables[1] = 0;
    check_value(CODE(AX_GETV, 0, 0, AX_GETV, 0, 1, AX_ADD, AX_SETV, 0, 1,
                     AX_POP, AX_GETV, 0, 0, AX_CONST8, 1, AX_SUB, AX_SETV, 0, 0,
                     AX_IF_GOTO, 0, 0, AX_GETV, 0, 1, AX_END),
                55);
}

static void endless_loops_end(void)
{
    check_status(CODE(AX_GOTO, 0, 0), AX_TOO_LONG);
    check_status(CODE(AX_CONST8, 1, AX_IF_GOTO, 0, 0, AX_CONST8, 1, AX_END),
                 AX_TOO_LONG);
}

static void variables_are_read_and_set(void)
{
    variables[2] = -5;
    check_value(CODE(AX_GETV, 0, 2, AX_END), -5);
    check_value(CODE(AX_CONST8, 9, AX_SETV, 0, 2, AX_END), 9);
    CHECK_EQ(variables[2], 9);
    check_status(CODE(AX_GETV, 0, 9, AX_END), AX_NO_VARIABLE);
    check_status(CODE(AX_CONST8, 9, AX_SETV, 1, 0, AX_END), AX_NO_VARIABLE);
}

static void records_are_asked_for(void)
{
    struct ax_facts facts;
    const uint8_t code[] = {AX_CONST8, 16,         AX_TRACE_QUICK,
                            4,         AX_TRACE16, 1,
                            2,         AX_CONST8,  7,
                            AX_TRACE,  AX_TRACEV,  0,
                            3,         AX_CONST8,  1,
                            AX_CONST8, 5,          AX_TRACENZ,
                            AX_REG,    0,          3,
                            AX_END};

    CHECK_OK(ax_verify(code, sizeof(code), &facts, NULL), NULL);
    CHECK(facts.records && !facts.prints && !facts.loops);
    CHECK(facts.registers[0] == 8);
    CHECK_EQ(facts.max_height, 2);
    CHECK_EQ(facts.end_height, 1);
    log_text[0] = 0;
    CHECK_EQ(ax_run(code, sizeof(code), &machine, NULL, NULL), AX_OK);
    CHECK_STR(log_text, "M10,4;M10,102;M10,7;V3;S1,5;");
    check_status(CODE(AX_CONST8, 1, AX_CONST16, 0xde, 0xad, AX_TRACE, AX_CONST8,
                      1, AX_END),
                 AX_FULL);
}

static void printf_gets_its_arguments_in_order(void)
{
    /* Pushed: 2, 1 (the first), channel, function. */
    CHECK_EQ(run(CODE(AX_CONST8, 2, AX_CONST8, 1, AX_CONST8, 0, AX_CONST8, 0,
                      AX_PRINTF, 2, 0, 6, '%', 'd', ' ', '%', 'd', 0, AX_END),
                 NULL),
             AX_OK);
    CHECK_STR(log_text, "P%d %d,1,2;");
}

static void an_expression_without_a_value_has_none(void)
{
    check_status(CODE(AX_END), AX_EMPTY);
    CHECK_EQ(run(CODE(AX_END), NULL), AX_OK);
}

static void bad_expressions_are_refused(void)
{
    check_refused(CODE(AX_CONST8, 1), "past its end");
    check_refused(NULL, 0, "past its end");
    check_refused(CODE(AX_CONST8), "cut off");
    check_refused(CODE(AX_CONST64, 1, 2, 3, 4, 5, 6, 7), "cut off");
    check_refused(CODE(AX_ADD, AX_END), "takes 2 values and finds 0");
    check_refused(CODE(AX_CONST8, 1, AX_PICK, 1, AX_END), "takes 2");
    check_refused(CODE(AX_GOTO, 0, 9, AX_END), "past its end");
    check_refused(CODE(AX_GOTO, 0, 1, AX_END), "opcode 0x00");
    /* Into an operand that would be an opcode. */
    check_refused(CODE(AX_CONST8, AX_END, AX_IF_GOTO, 0, 1, AX_END), "middle");
    check_refused(CODE(AX_CONST8, 1, AX_IF_GOTO, 0, 7, AX_CONST8, 1, AX_END),
                  "is reached with");
    check_refused(CODE(AX_REG, 1, 0, AX_END), "register 256");
    check_refused(CODE(AX_CONST8, 0, AX_DUP, AX_PRINTF, 0, 0, 2, 'x', 'y'),
                  "has no end");
    check_refused(CODE(AX_CONST8, 0, AX_DUP, AX_PRINTF, 0, 0xff, 2, 'x', 0),
                  "has no end");
    for (unsigned opcode = 0; opcode < 256; opcode++) {
        if (opcode < AX_N_OPCODES && ax_shapes[opcode].name)
            continue;
        check_refused(CODE((uint8_t)opcode, AX_END), "cannot be run here");
    }
}

static void stacks_and_lengths_are_bounded(void)
{
    static uint8_t code[AX_MAX_LENGTH + 1];

    memset(code, AX_DUP, sizeof(code));
    code[0] = AX_CONST8;
    code[AX_STACK + 1] = AX_END;
    CHECK_OK(ax_verify(code, AX_STACK + 2, NULL, NULL), NULL);
    code[AX_STACK + 1] = AX_DUP;
    code[AX_STACK + 2] = AX_END;
    check_refused(code, AX_STACK + 3, "on the stack");
    check_refused(code, sizeof(code), "more than");
}

static size_t string(void *opaque, uint64_t address, char *buf, size_t room)
{
    (void)opaque;
    return (size_t)snprintf(buf, room, "s%" PRIu64, address) % room;
}

static void check_format(const char *format, uint64_t argument,
                         const char *want)
{
    char buf[100];
    uint64_t arguments[2] = {argument, 5};

    ax_format(buf, sizeof(buf), format, 2, arguments, string, NULL);
    CHECK_STR(buf, want);
}

static void formats_print_as_in_c(void)
{
    static const char *const formats[] = {
        "%d",      "%5d|",   "%-5d|", "%05d", "%+d", "% d",  "%.3d",
        "%8.3d|",  "%x",     "%#x",   "%X",   "%#X", "%o",   "%#o",
        "%u",      "%ld",    "%lld",  "%lx",  "%hd", "%hhd", "%hhx",
        "%#010lx", "%-#8x|", "%.0d",  "%zu",  "%i",  "%jd",
    };
    static const int64_t values[] = {0, 1, -1, 5, 255, -300, 70000, INT32_MIN};

    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        for (size_t j = 0; j < sizeof(values) / sizeof(values[0]); j++) {
            char want[100];
            /* The same formats for C, which takes the narrow ones as int. */
            bool wide = strpbrk(formats[i], "lzj");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            if (wide)
                snprintf(want, sizeof(want), formats[i], values[j]);
            else
                snprintf(want, sizeof(want), formats[i], (int)values[j]);
#pragma GCC diagnostic pop
            check_format(formats[i], (uint64_t)values[j], want);
        }
    }
    check_format("a%%b", 0, "a%b");
    check_format("%c%c", 'x', "x\x05");
    check_format("%s.", 7, "s7.");
    check_format("%6s.", 7, "    s7.");
    check_format("%-6s.", 7, "s7    .");
    check_format("%s", 0, "(null)");
    check_format("%p", 0x10, "0x10");
    check_format("%d %d %d", 1, "1 5 %d"); /* one too few */
    check_format("%n%q", 1, "%n%q");       /* never that */
    check_format("%", 1, "%");
    check_format("a\\n\\t\\\\\\\"%d\\q\\", 7, "a\n\t\\\"7\\q\\");
}

static void formatted_text_is_cut_off(void)
{
    char buf[8];
    uint64_t argument = 12345;

    CHECK_EQ(ax_format(buf, sizeof(buf), "%4000d", 1, &argument, string, NULL),
             7);
    CHECK_STR(buf, "       ");
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(arithmetic_wraps_at_64_bits);
    TEST(division_by_zero_is_an_error);
    TEST(bits_and_comparisons);
    TEST(extensions_know_every_width);
    TEST(constants_are_big_endian);
    TEST(registers_and_memory_are_read);
    TEST(the_stack_is_shuffled);
    TEST(jumps_go_where_they_say);
    TEST(endless_loops_end);
    TEST(variables_are_read_and_set);
    TEST(records_are_asked_for);
    TEST(printf_gets_its_arguments_in_order);
    TEST(an_expression_without_a_value_has_none);
    TEST(bad_expressions_are_refused);
    TEST(stacks_and_lengths_are_bounded);
    TEST(formats_print_as_in_c);
    TEST(formatted_text_is_cut_off);
    return test_finish();
}
