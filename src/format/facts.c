/* SPDX-License-Identifier: MIT */
/* Lists of a format's own facts. */
#include <stdlib.h>
#include <string.h>

#include <rhea/format.h>

static char *facts_copy(struct rhea_facts *facts, const char *s)
{
    char *copy = s ? strdup(s) : NULL;

    facts->failed |= s && !copy;
    return copy;
}

static struct rhea_fact *facts_add(struct rhea_facts *facts, int type,
                                   const char *name, const char *json_name)
{
    size_t n = facts->n;
    struct rhea_fact *items = facts->items;

    /* Room for 16, 32, 64, ... */
    if ((n & (n - 1)) == 0 && (n >= 16 || n == 0)) {
        items = realloc(items, (n ? 2 * n : 16) * sizeof(*items));
        if (!items) {
            facts->failed = true;
            return NULL;
        }
        facts->items = items;
    }
    facts->n++;
    items[n] = (struct rhea_fact){
        .name = facts_copy(facts, name),
        .json_name = facts_copy(facts, json_name),
        .type = type,
    };
    return &items[n];
}

void rhea_facts_string(struct rhea_facts *facts, const char *name,
                       const char *json_name, const char *string)
{
    struct rhea_fact *fact =
        facts_add(facts, RHEA_FACT_STRING, name, json_name);

    if (fact)
        fact->string = facts_copy(facts, string);
}

void rhea_facts_number(struct rhea_facts *facts, const char *name,
                       const char *json_name, uint64_t number)
{
    struct rhea_fact *fact =
        facts_add(facts, RHEA_FACT_NUMBER, name, json_name);

    if (fact)
        fact->number = number;
}

void rhea_facts_bool(struct rhea_facts *facts, const char *name,
                     const char *json_name, bool truth)
{
    struct rhea_fact *fact = facts_add(facts, RHEA_FACT_BOOL, name, json_name);

    if (fact)
        fact->number = truth;
}

void rhea_facts_list(struct rhea_facts *facts, const char *name,
                     const char *json_name)
{
    facts_add(facts, RHEA_FACT_LIST, name, json_name);
}

void rhea_facts_object(struct rhea_facts *facts, const char *name,
                       const char *json_name)
{
    facts_add(facts, RHEA_FACT_OBJECT, name, json_name);
}

void rhea_facts_end(struct rhea_facts *facts)
{
    facts_add(facts, RHEA_FACT_END, NULL, NULL);
}

const struct rhea_fact *rhea_facts_find(const struct rhea_facts *facts,
                                        const char *json_name)
{
    unsigned depth = 0;

    for (size_t i = 0; i < facts->n; i++) {
        const struct rhea_fact *fact = &facts->items[i];

        if (fact->type == RHEA_FACT_END)
            depth--;
        else if (depth == 0 && fact->json_name &&
                 strcmp(fact->json_name, json_name) == 0)
            return fact;
        if (fact->type == RHEA_FACT_LIST || fact->type == RHEA_FACT_OBJECT)
            depth++;
    }
    return NULL;
}

void rhea_facts_free(struct rhea_facts *facts)
{
    for (size_t i = 0; i < facts->n; i++) {
        free(facts->items[i].name);
        free(facts->items[i].json_name);
        free(facts->items[i].string);
    }
    free(facts->items);
    memset(facts, 0, sizeof(*facts));
}

void rhea_snapshots_free(struct rhea_snapshot *snapshots, size_t n)
{
    for (size_t i = 0; snapshots && i < n; i++) {
        free(snapshots[i].id);
        free(snapshots[i].name);
    }
    free(snapshots);
}

void rhea_bitmaps_free(struct rhea_bitmap *bitmaps, size_t n)
{
    for (size_t i = 0; bitmaps && i < n; i++)
        free(bitmaps[i].name);
    free(bitmaps);
}
