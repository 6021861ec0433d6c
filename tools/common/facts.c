/* SPDX-License-Identifier: MIT */
/* A format's own facts, as a person reads them. */
#include "common/common.h"

enum { FACTS_DEPTH_MAX = 8 };

char *tool_printable(const char *text)
{
    char *copy = tool_strdup(text);

    for (char *p = copy; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    return copy;
}

static void facts_print_text(const char *text)
{
    char *clean = tool_printable(text);

    printf(" %s", clean);
    free(clean);
}

/*
 * A level is indented by four spaces more, an element of a list is called by
 * its number.
 */
void tool_facts_print(const struct rhea_facts *facts)
{
    /* For each level, the number of the next element; -1: names. */
    int index[FACTS_DEPTH_MAX] = {-1};
    unsigned depth = 0;

    for (size_t i = 0; i < facts->n; i++) {
        const struct rhea_fact *fact = &facts->items[i];

        if (fact->type == RHEA_FACT_END) {
            depth--;
            continue;
        }
        printf("%*s", 4 * (int)(depth + 1), "");
        if (index[depth] >= 0)
            printf("[%d]:", index[depth]++);
        else
            printf("%s:", fact->name);
        if (fact->type == RHEA_FACT_STRING)
            facts_print_text(fact->string);
        else if (fact->type == RHEA_FACT_NUMBER)
            printf(" %ju", (uintmax_t)fact->number);
        else if (fact->type == RHEA_FACT_BOOL)
            printf(" %s", fact->number ? "true" : "false");
        else if (depth + 1 < FACTS_DEPTH_MAX)
            index[++depth] = fact->type == RHEA_FACT_LIST ? 0 : -1;
        putchar('\n');
    }
}
