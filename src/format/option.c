/* SPDX-License-Identifier: MIT */
#include "format/option.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/size.h"

bool option_is_listed(const struct rhea_option_help *list, const char *name)
{
    for (; list && list->name; list++)
        if (strcmp(list->name, name) == 0)
            return true;
    return false;
}

int option_parse_size(const char *text, uint64_t *value, struct rhea_error *err)
{
    return size_parse(text, value, err);
}

int option_size(const struct rhea_option *o, uint64_t *value,
                struct rhea_error *err)
{
    int ret = option_parse_size(o->value, value, err);
    return ret ? rhea_error_prefix(err, "option %s", o->name) : 0;
}

int option_bool(const struct rhea_option *o, bool *value,
                struct rhea_error *err)
{
    static const char *const yes[] = {"on", "yes", "true", "y"};
    static const char *const no[] = {"off", "no", "false", "n"};
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(yes); i++) {
        bool is_yes = strcmp(o->value, yes[i]) == 0;
        if (is_yes || strcmp(o->value, no[i]) == 0) {
            *value = is_yes;
            return 0;
        }
    }
    return rhea_error_set(err, EINVAL, "option %s is 'on' or 'off', not '%s'",
                          o->name, o->value);
}

int option_unknown(const struct rhea_option *o, const char *format,
                   struct rhea_error *err)
{
    return rhea_error_set(err, EINVAL, "%s has no option '%s'", format,
                          o->name);
}

int option_none(const struct rhea_format_open *how, const char *format,
                struct rhea_error *err)
{
    return how->n_options ? option_unknown(&how->options[0], format, err) : 0;
}
