/* SPDX-License-Identifier: MIT */
#include "gdb/source.h"

#include "base/checked.h"

/* In a line, hexadecimal, behind up to 60 characters. */
enum { MOST = (1000 - 60) / 2 };

/* How much of an action is the word, which gdb takes the beginning of, too. */
static size_t match_verb(const char *action, const char *word)
{
    size_t space = strspn(action, " \t"), n = 0;

    while (word[n] && action[space + n] == word[n])
        n++;
    if (!n || (action[space + n] && !strchr(" \t/", action[space + n])))
        return 0;
    return space + n;
}

/* `/s`, and the number that may follow. */
static size_t skip_string_option(const char *text)
{
    size_t n = strspn(text, " \t");

    if (strncmp(text + n, "/s", 2) != 0)
        return 0;
    return n + 2 + strspn(text + n + 2, "0123456789");
}

struct source_piece source_begin(const struct source *s, bool in_trace_file)
{
    struct source_piece p = {.verb = "", .rest = s->text, .most = SIZE_MAX};
    size_t n;

    if (!in_trace_file)
        return p;
    p.most = MOST;
    if (strcmp(s->kind, "cmd") != 0)
        return p;
    if ((n = match_verb(s->text, "collect")) != 0)
        p.verb = "collect ";
    else if ((n = match_verb(s->text, "teval")) != 0)
        p.verb = "teval ";
    else
        return p;
    p.is_list = true;
    p.rest = s->text + n;
    if (p.verb[0] == 'c')
        p.rest += skip_string_option(p.rest);
    p.rest += strspn(p.rest, " \t");
    return p;
}

/* Characters up to the comma behind the first expression, or the end. */
static size_t expression_length(const char *text)
{
    size_t depth = 0, n;
    char quote = 0;

    for (n = 0; text[n]; n++) {
        char c = text[n];

        if (quote) {
            if (c == '\\' && text[n + 1])
                n++;
            else if (c == quote)
                quote = 0;
        } else if (c == '"' || c == '\'') {
            quote = c;
        } else if (strchr("([{", c)) {
            depth++;
        } else if (strchr(")]}", c)) {
            depth -= depth > 0;
        } else if (c == ',' && !depth) {
            break;
        }
    }
    return n;
}

/* As many expressions as there is room for; 0: not even the first. */
static size_t list_length(const struct source_piece *p)
{
    size_t room = p->most - strlen(p->verb), n = 0;

    for (;;) {
        size_t one = n + expression_length(p->rest + n);

        if (one > room)
            return n ? n - 1 : 0;
        if (!p->rest[one])
            return one;
        n = one + 1;
    }
}

bool source_next(struct source_piece *p)
{
    while (*p->rest) {
        size_t n = p->is_list ? list_length(p) : strlen(p->rest);
        bool fits = n && n <= p->most;

        if (!n)
            n = expression_length(p->rest);
        p->text = p->rest;
        p->len = n;
        p->rest += n;
        p->rest += strspn(p->rest, ", \t");
        if (fits)
            return true;
    }
    return false;
}
