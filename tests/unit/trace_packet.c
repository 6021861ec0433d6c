/* SPDX-License-Identifier: MIT */
/* Frames of the remote protocol. */
#include "gdb/packet.h"
#include "lib/test.h"

/* What comes out of BYTES when they come in pieces of PIECE: a letter an event,
 * and payloads. */
static void read_pieces(struct packet_reader *r, const char *bytes, size_t len,
                        size_t piece, struct packet_text *out)
{
    static const char letters[] = ".DNB+-i";

    while (len) {
        const uint8_t *at = (const uint8_t *)bytes;
        size_t n = piece < len ? piece : len, left = n;
        enum packet_event event;

        while ((event = packet_read(r, &at, &left)) != PACKET_NONE) {
            packet_put(out, &letters[event], 1);
            if (event == PACKET_DATA || event == PACKET_NOTICE) {
                CHECK_EQ(r->data[r->len], 0);
                packet_put(out, r->data, r->len);
            }
        }
        bytes += n;
        len -= n;
    }
}

static void check_bytes(const char *bytes, size_t len, bool runs,
                        const char *events)
{
    for (size_t piece = 1; piece <= len; piece++) {
        struct packet_reader r;
        struct packet_text out = {0};

        CHECK_OK(packet_reader_init(&r, runs, NULL), NULL);
        read_pieces(&r, bytes, len, piece, &out);
        CHECK_STR(out.data ? out.data : "", events);
        packet_text_finish(&out);
        packet_reader_finish(&r);
    }
}

static void packets_come_whole_however_torn(void)
{
    const char text[] = "junk+$OK#9a-\x03$#00+$qSupported:xmlRegisters=i386#77"
                        "%Stop:T05#99";

    check_bytes(text, sizeof(text) - 1, false, "+DOK-iD+BNStop:T05");
    check_bytes("$g#67$g#67", 10, false, "DgDg");
}

static void runs_are_expanded_for_servers_only(void)
{
    /* "0* " is 0000: a blank is 32, less 29. */
    check_bytes("$0* #7a", 7, true, "D0000");
    check_bytes("$0* #7a", 7, false, "D0* ");
    check_bytes("$*~x#20", 7, true, "D*~x"); /* nothing to repeat */
    check_bytes("$0*\x1d#77", 7, true, "B");
}

static void escapes_are_undone(void)
{
    /* } ] is } ^ 0x20. */
    check_bytes("$a}]b#9d", 8, false, "Da}b");
    check_bytes("$a}\x03#e1", 7, false, "Da#");
}

static void damaged_packets_are_told(void)
{
    check_bytes("$OK#9b$OK#9a", 12, false, "BDOK");
    check_bytes("$OK#zz", 6, false, "B");
    /* A packet that lost its end does not swallow the next one. */
    check_bytes("$qSup$OK#9a", 11, false, "DOK");
}

static void checks_can_be_left_out(void)
{
    struct packet_reader r;
    const uint8_t *at = (const uint8_t *)"$OK#00";
    size_t len = 6;

    CHECK_OK(packet_reader_init(&r, false, NULL), NULL);
    r.no_check = true;
    CHECK_EQ(packet_read(&r, &at, &len), PACKET_DATA);
    packet_reader_finish(&r);
}

static void payloads_are_bounded(void)
{
    struct packet_reader r;
    struct packet_text out = {0};
    char block[1000];

    CHECK_OK(packet_reader_init(&r, true, NULL), NULL);
    memset(block, 'x', sizeof(block));
    read_pieces(&r, "$", 1, 1, &out);
    for (int i = 0; i < 1000; i++)
        read_pieces(&r, block, sizeof(block), sizeof(block), &out);
    read_pieces(&r, "#00$OK#9a", 9, 9, &out);
    CHECK_STR(out.data, "BDOK");
    packet_text_finish(&out);
    packet_reader_finish(&r);
}

static void any_bytes_survive_a_frame(void)
{
    uint64_t seed = 1;

    for (unsigned round = 0; round < 300; round++) {
        uint8_t payload[700];
        size_t len = test_random(&seed) % sizeof(payload), left;
        struct packet_text t = {0};
        struct packet_reader r;
        const uint8_t *at;

        test_fill(payload, len, seed);
        packet_put_frame(&t, payload, len);
        CHECK_OK(packet_reader_init(&r, true, NULL), NULL);
        at = (const uint8_t *)t.data;
        left = t.len;
        CHECK_EQ(packet_read(&r, &at, &left), PACKET_DATA);
        CHECK_EQ(left, 0);
        CHECK_EQ(r.len, len);
        CHECK_MEM(r.data, payload, len);
        packet_reader_finish(&r);
        packet_text_finish(&t);
    }
}

static void text_is_parsed_from_the_left(void)
{
    struct packet_cursor c = packet_cursor("1f:-2,0g", 8);
    uint64_t n = 0;
    int64_t s = 0;
    uint8_t bytes[2];
    size_t len;

    CHECK(packet_number(&c, &n));
    CHECK_EQ(n, 0x1f);
    CHECK(!packet_skip(&c, ";"));
    CHECK(packet_skip(&c, ":"));
    CHECK(packet_signed(&c, &s));
    CHECK_EQ(s, -2);
    CHECK(packet_skip(&c, ","));
    CHECK(!packet_bytes(&c, bytes, 2, &len)); /* half a byte */
    c = packet_cursor("ffffffffffffffff1", 17);
    CHECK(!packet_number(&c, &n));
    c = packet_cursor("ffffffffffffffff", 16);
    CHECK(packet_number(&c, &n));
    CHECK_EQ(n, UINT64_MAX);
    c = packet_cursor("010203", 6);
    CHECK(!packet_bytes(&c, bytes, 2, &len)); /* no room */
    c = packet_cursor("0A02", 4);
    CHECK(packet_bytes(&c, bytes, 2, &len));
    CHECK_EQ(len, 2);
    CHECK_EQ(bytes[0], 10);
    CHECK(packet_at_end(&c));
}

static void text_has_a_bound(void)
{
    struct packet_text t = {0};

    for (int i = 0; i < 100000; i++)
        packet_printf(&t, "%d", i);
    CHECK(t.failed);
    packet_text_clear(&t);
    packet_puts(&t, "x");
    packet_put_hex(&t, "\x01\xff", 2);
    CHECK(!t.failed);
    CHECK_STR(t.data, "x01ff");
    packet_text_finish(&t);
}

int main(int argc, char **argv)
{
    test_init(argc, argv);
    TEST(packets_come_whole_however_torn);
    TEST(runs_are_expanded_for_servers_only);
    TEST(escapes_are_undone);
    TEST(damaged_packets_are_told);
    TEST(checks_can_be_left_out);
    TEST(payloads_are_bounded);
    TEST(any_bytes_survive_a_frame);
    TEST(text_is_parsed_from_the_left);
    TEST(text_has_a_bound);
    return test_finish();
}
