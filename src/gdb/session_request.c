/* SPDX-License-Identifier: MIT */
#include "gdb/session_request.h"

#include <inttypes.h>

#include "base/checked.h"

/* Threads are compared as text, so there is one way to write them. `p1.2`,
 * `p01.02`, `2`; all and any (-1, 0) become "". */
void session_thread(char name[MACHINE_THREAD], const char *text, size_t len)
{
    struct packet_cursor c = packet_cursor(text, len);
    uint64_t process, thread;

    name[0] = 0;
    if (packet_skip(&c, "p")) {
        if (packet_number(&c, &process) && packet_skip(&c, ".") &&
            packet_number(&c, &thread) && thread)
            snprintf(name, MACHINE_THREAD, "p%" PRIx64 ".%" PRIx64,
                     process & 0xffffffff, thread & 0xffffffff);
    } else if (packet_number(&c, &thread) && thread) {
        snprintf(name, MACHINE_THREAD, "%" PRIx64, thread & 0xffffffff);
    }
}

uint64_t session_process(const char *name)
{
    struct packet_cursor c = packet_cursor(name, strlen(name));
    uint64_t process = 0;

    if (packet_skip(&c, "p"))
        (void)packet_number(&c, &process);
    return process;
}

bool session_is_resume(const char *packet, size_t len)
{
    struct packet_cursor c = packet_cursor(packet, len);

    if (packet_skip(&c, "vCont;") || packet_skip(&c, "vRun") ||
        packet_skip(&c, "vAttach;") || packet_skip(&c, "F"))
        return true;
    if (!strcmp(packet, "bc") || !strcmp(packet, "bs"))
        return true;
    return len && strchr("cCsS", packet[0]);
}

/* --- actions ------------------------------------------------------------- */

/* An action of `vCont`: `s:p1.2`, `r10,20:p1.2`, `C05`. */
struct part {
    const char *at, *end;
    const char *thread; /* behind the colon; NULL: all others */
};

/* The next action from *AT on. */
static bool next_part(const char **at, struct part *p)
{
    const char *colon;

    if (**at != ';')
        return false;
    p->at = *at + 1;
    p->end = p->at + strcspn(p->at, ";");
    colon = memchr(p->at, ':', (size_t)(p->end - p->at));
    p->thread = colon ? colon + 1 : NULL;
    *at = p->end;
    return true;
}

static const char *first_part(const struct request *r)
{
    return r->text + (strncmp(r->text, "vCont;", 6) ? strlen(r->text) : 5);
}

static void parse_range(struct request *r, const struct part *p)
{
    struct packet_cursor c =
        packet_cursor(p->at + 1, (size_t)(p->end - p->at - 1));

    r->ranged = packet_number(&c, &r->low) && packet_skip(&c, ",") &&
                packet_number(&c, &r->high);
}

/* Which thread steps: of `vCont` the first action that is a step. */
void request_parse(struct request *r, const char *packet, size_t len,
                   const char *thread)
{
    const char *at;
    struct part p;

    *r = (struct request){0};
    snprintf(r->text, sizeof(r->text), "%.*s",
             (int)RHEA_MIN(len, sizeof(r->text)), packet);
    r->reverse = packet[0] == 'b';
    if (packet[0] == 's' || packet[0] == 'S')
        snprintf(r->stepping, sizeof(r->stepping), "%s", thread);
    at = first_part(r);
    while (!r->stepping[0] && next_part(&at, &p)) {
        if (p.at == p.end || !strchr("sSr", p.at[0]))
            continue;
        if (p.thread)
            session_thread(r->stepping, p.thread, (size_t)(p.end - p.thread));
        if (!r->stepping[0])
            snprintf(r->stepping, sizeof(r->stepping), "%s", thread);
        if (p.at[0] == 'r')
            parse_range(r, &p);
    }
}

void request_was_sent(struct request *r)
{
    char text[sizeof(r->text)] = "vCont";
    const char *at = first_part(r);
    size_t len = strlen(text);
    struct part p;

    if (*at != ';') {
        bool steps = r->text[0] == 's' || r->text[0] == 'S';

        snprintf(r->text, sizeof(r->text), steps ? "s" : "c");
        return;
    }
    while (next_part(&at, &p)) {
        bool signal = p.at[0] == 'C' || p.at[0] == 'S';
        const char *rest = p.at + 1;

        if (signal) /* what follows the signal's number */
            rest = p.thread ? p.thread - 1 : p.end;
        if (p.at == p.end)
            rest = p.end;
        len += (size_t)snprintf(text + len, sizeof(text) - len, ";%c%.*s",
                                signal ? p.at[0] | ('a' - 'A') : p.at[0],
                                (int)(p.end - rest), rest);
        len = RHEA_MIN(len, sizeof(text) - 1);
    }
    snprintf(r->text, sizeof(r->text), "%s", text);
}

bool request_resumes(const struct request *r, const char *thread)
{
    const char *at = first_part(r);
    bool named = false, rest = false;
    struct part p;

    if (*at != ';')
        return !r->stepping[0] || !strcmp(r->stepping, thread);
    while (next_part(&at, &p)) {
        char name[MACHINE_THREAD] = "";

        if (p.thread)
            session_thread(name, p.thread, (size_t)(p.end - p.thread));
        named |= name[0] && !strcmp(name, thread);
        rest |= !name[0];
    }
    return named || rest || !strcmp(r->stepping, thread);
}
