/* SPDX-License-Identifier: MIT */
#include "gdb/status.h"

#include <inttypes.h>

#include "base/checked.h"
#include "gdb/packet.h"

/* Text in hexadecimal; only the beginning of what is long. */
static void parse_text(struct packet_cursor *c, char *buf, size_t room)
{
    size_t n = 0;

    while (c->end - c->at >= 2 && packet_hex_digit(c->at[0]) >= 0 &&
           packet_hex_digit(c->at[1]) >= 0) {
        int value =
            packet_hex_digit(c->at[0]) << 4 | packet_hex_digit(c->at[1]);

        if (n < room - 1 && value)
            buf[n++] = (char)value;
        c->at += 2;
    }
    buf[n] = 0;
}

/* `tstop:TEXT:N`, `tfull:N`, and so on: TEXT is there for some only, and some
 * agents leave it out even for these. */
static void parse_stop(struct status *s, struct packet_cursor c)
{
    const char *start = c.at, *last = NULL;

    while (!packet_at_end(&c) && *c.at != ':')
        c.at++;
    snprintf(s->stop, sizeof(s->stop), "%.*s",
             (int)RHEA_MIN((size_t)(c.at - start), sizeof(s->stop) - 1), start);
    for (const char *p = c.at; p < c.end; p++)
        if (*p == ':')
            last = p;
    if (last && last > c.at && packet_skip(&c, ":"))
        parse_text(&c, s->text, sizeof(s->text));
    if (last) {
        c.at = last + 1;
        (void)packet_number(&c, &s->point);
    }
}

static void parse_field(struct status *s, struct packet_cursor c)
{
    uint64_t n;

    if (packet_skip(&c, "tframes:"))
        s->has_frames = packet_number(&c, &s->frames);
    else if (packet_skip(&c, "tcreated:"))
        s->has_created = packet_number(&c, &s->created);
    else if (packet_skip(&c, "tsize:"))
        (void)packet_number(&c, &s->size);
    else if (packet_skip(&c, "tfree:"))
        (void)packet_number(&c, &s->free);
    else if (packet_skip(&c, "starttime:"))
        (void)packet_number(&c, &s->start);
    else if (packet_skip(&c, "stoptime:"))
        (void)packet_number(&c, &s->end);
    else if (packet_skip(&c, "circular:"))
        s->circular = packet_number(&c, &n) && n;
    else if (packet_skip(&c, "disconn:"))
        s->disconnected = packet_number(&c, &n) && n;
    else if (packet_skip(&c, "username:"))
        parse_text(&c, s->user, sizeof(s->user));
    else if (packet_skip(&c, "notes:"))
        parse_text(&c, s->notes, sizeof(s->notes));
    else if (!s->stop[0] && !packet_at_end(&c) && *c.at == 't')
        parse_stop(s, c);
}

void status_parse(struct status *s, const char *text, size_t len)
{
    const char *end = text + len;

    *s = (struct status){.running = len && text[0] == '1'};
    while (text < end) {
        const char *semicolon = memchr(text, ';', (size_t)(end - text));
        const char *stop = semicolon ? semicolon : end;

        parse_field(s, packet_cursor(text, (size_t)(stop - text)));
        text = semicolon ? semicolon + 1 : end;
    }
}

void status_describe(const struct status *s, char *buf, size_t room)
{
    static const struct {
        const char *stop, *text;
    } words[] = {
        {"tnotrun", "was never run"},
        {"tstop", "stopped on request"},
        {"tfull", "stopped by a full buffer"},
        {"tdisconnected", "stopped as gdb left"},
        {"terror", "stopped by an error"},
        {"tunknown", "broken off"},
    };
    const char *text = "ended in a way that is not known";

    for (size_t i = 0; i < RHEA_ARRAY_SIZE(words); i++)
        if (!strcmp(s->stop, words[i].stop))
            text = words[i].text;
    if (s->running)
        snprintf(buf, room, "was running");
    else if (!strcmp(s->stop, "tpasscount"))
        snprintf(buf, room, "stopped by the pass count of tracepoint %" PRIu64,
                 s->point);
    else if (s->text[0] && !strcmp(s->stop, "tstop"))
        snprintf(buf, room, "stopped: %s", s->text);
    else if (s->text[0])
        snprintf(buf, room, "%s: %s", text, s->text);
    else
        snprintf(buf, room, "%s", text);
}
