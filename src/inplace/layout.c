/* SPDX-License-Identifier: MIT */
#include "inplace/layout.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

static const struct layout_ops *const layouts[] = {
    &layout_qcow2,
    &layout_qed,
};

const struct layout_ops *layout_find(const char *format)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(layouts); i++) {
        if (!strcmp(layouts[i]->name, format))
            return layouts[i];
    }
    return NULL;
}

const char *layout_option(const struct layout_request *r, const char *name)
{
    const char *value = NULL;
    for (size_t i = 0; i < r->n_options; i++) {
        if (!strcmp(r->options[i].name, name))
            value = r->options[i].value;
    }
    return value;
}

int layout_check_options(const struct layout_request *r, const char *format,
                         const char *const known[], struct rhea_error *err)
{
    for (size_t i = 0; i < r->n_options; i++) {
        const char *const *k = known;
        while (*k && strcmp(*k, r->options[i].name))
            k++;
        if (*k)
            continue;

        char list[256] = "";
        for (k = known; *k; k++) {
            size_t used = strlen(list);
            snprintf(list + used, sizeof(list) - used, "%s%s", used ? ", " : "",
                     *k);
        }
        return rhea_error_set(err, EINVAL,
                              "there is no option '%s' for conversion to %s "
                              "in place; there are: %s",
                              r->options[i].name, format, list);
    }
    return 0;
}

int layout_parse_size(const char *name, const char *text, uint64_t *value,
                      struct rhea_error *err)
{
    char *end;
    errno = 0;
    uint64_t n = strtoull(text, &end, 10);
    unsigned shift = 0;
    if (*end == 'k' || *end == 'K')
        shift = 10;
    else if (*end == 'M')
        shift = 20;
    else if (*end == 'G')
        shift = 30;
    if (shift)
        end++;
    if (errno || end == text || *end || text[0] == '-' ||
        n > UINT64_MAX >> shift)
        return rhea_error_set(err, EINVAL,
                              "'%s' is not a size that option '%s' can take",
                              text, name);
    *value = n << shift;
    return 0;
}

uint64_t layout_l1_needed(const struct layout *l)
{
    uint64_t clusters = div_up(l->virtual_size, l->cluster_size);
    return div_up(clusters, l->l2_entries);
}

uint64_t layout_refblock_entries(const struct layout *l)
{
    return l->cluster_size * 8 >> l->refcount_order;
}

uint64_t layout_refblocks(const struct layout *l, uint64_t n_clusters)
{
    return div_up(n_clusters, layout_refblock_entries(l));
}

uint64_t layout_reftable_clusters(const struct layout *l, uint64_t n_blocks)
{
    uint64_t n = div_up(n_blocks, l->cluster_size / sizeof(uint64_t));
    return RHEA_MAX(n, 1);
}

uint64_t layout_aside(uint64_t count, uint64_t past, uint64_t below,
                      uint64_t free)
{
    if (count == 1 || !past)
        return 0;
    if (free >= (2 * past + below) * count)
        return count;
    return (past + below + 1) * count;
}
