/* SPDX-License-Identifier: MIT */
#include <rhea/format.h>
#include <string.h>

const struct rhea_format_ops *rhea_format_find(const char *name)
{
    for (size_t i = 0; rhea_formats[i]; i++)
        if (strcmp(rhea_formats[i]->name, name) == 0)
            return rhea_formats[i];
    return NULL;
}

/* Raw is only ever sure to 1 in 100, so that it wins where nothing else is. */
const struct rhea_format_ops *rhea_format_probe(const uint8_t *head, size_t len)
{
    const struct rhea_format_ops *best = NULL;
    int best_score = 0;
    for (size_t i = 0; rhea_formats[i]; i++) {
        int score = rhea_formats[i]->probe(head, len);
        if (score > best_score) {
            best = rhea_formats[i];
            best_score = score;
        }
    }
    return best;
}

int rhea_format_open_over(const struct rhea_format_ops *ops,
                          struct rhea_format **out,
                          struct rhea_storage *storage, unsigned flags,
                          struct rhea_error *err)
{
    struct rhea_format_open how = {.storage = storage, .flags = flags};

    return ops->open(out, &how, err);
}
