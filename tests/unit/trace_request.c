/* SPDX-License-Identifier: MIT */
/* Packets that make the guest run. */
#include "gdb/session_request.h"
#include "lib/test.h"

static struct request r;

static void parse(const char *packet)
{
    request_parse(&r, packet, strlen(packet), "p1.2");
}

/* What is sent when the guest is resumed for the same request again. */
static void check_again(const char *packet, const char *again)
{
    parse(packet);
    CHECK_STR(r.text, packet);
    request_was_sent(&r);
    CHECK_STR(r.text, again);
    request_was_sent(&r);
    CHECK_STR(r.text, again);
}

static void signals_and_jumps_happen_once(void)
{
    check_again("c", "c");
    check_again("c401000", "c");
    check_again("C05", "c");
    check_again("S0b;401000", "s");
    check_again("s", "s");
    check_again("vCont;c", "vCont;c");
    check_again("vCont;C06:p1.2;c:p1.-1", "vCont;c:p1.2;c:p1.-1");
    check_again("vCont;S1e:p1.2;c", "vCont;s:p1.2;c");
    check_again("vCont;C0f", "vCont;c");
    check_again("vCont;r401000,401010:p1.2;c:p1.-1",
                "vCont;r401000,401010:p1.2;c:p1.-1");
    check_again("vRun;2f62696e", "c");
}

static void the_thread_that_steps_is_found(void)
{
    parse("vCont;c:p1.1;s:p1.03;c");
    CHECK_STR(r.stepping, "p1.3");
    parse("vCont;s");
    CHECK_STR(r.stepping, "p1.2");
    parse("vCont;S05:4");
    CHECK_STR(r.stepping, "4");
    parse("vCont;c");
    CHECK_STR(r.stepping, "");
    parse("s401000");
    CHECK_STR(r.stepping, "p1.2");
    parse("bs");
    CHECK(r.reverse && !r.ranged);
}

static void ranges_are_found(void)
{
    parse("vCont;r401000,401010:p1.7;c");
    CHECK(r.ranged);
    CHECK_STR(r.stepping, "p1.7");
    CHECK_EQ(r.low, 0x401000);
    CHECK_EQ(r.high, 0x401010);
    parse("vCont;r4010:p1.7");
    CHECK(!r.ranged);
    CHECK_STR(r.stepping, "p1.7");
}

static void threads_that_run_are_known(void)
{
    parse("vCont;s:p1.2");
    CHECK(request_resumes(&r, "p1.2"));
    CHECK(!request_resumes(&r, "p1.3"));
    parse("vCont;s:p1.2;c:p1.-1");
    CHECK(request_resumes(&r, "p1.3"));
    parse("vCont;s:p1.2;c:p1.4");
    CHECK(request_resumes(&r, "p1.4"));
    CHECK(!request_resumes(&r, "p1.3"));
    parse("c");
    CHECK(request_resumes(&r, "p1.9"));
    parse("s");
    CHECK(!request_resumes(&r, "p1.9"));
}

static void nonsense_is_no_harm(void)
{
    static const char *const packets[] = {
        "vCont;",       "vCont;;;", "vCont;:", "vCont;s:",
        "vCont;r",      "vCont;r:", "vCont;C", "vCont;C:;",
        "vCont;S05:p1", "C",        "S",       "vCont;\x01:2"};
    char longest[20000];

    for (size_t i = 0; i < sizeof(packets) / sizeof(packets[0]); i++) {
        parse(packets[i]);
        (void)request_resumes(&r, "p1.2");
        request_was_sent(&r);
        (void)request_resumes(&r, "p1.2");
    }
    memset(longest, ';', sizeof(longest));
    memcpy(longest, "vCont", 5);
    request_parse(&r, longest, sizeof(longest), "p1.2");
    request_was_sent(&r);
    CHECK(strlen(r.text) < sizeof(r.text));
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(signals_and_jumps_happen_once);
    TEST(the_thread_that_steps_is_found);
    TEST(ranges_are_found);
    TEST(threads_that_run_are_known);
    TEST(nonsense_is_no_harm);
    return test_finish();
}
