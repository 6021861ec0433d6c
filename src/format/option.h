/* SPDX-License-Identifier: MIT */
/* Values of creation options, as users write them. */
#ifndef RHEA_FORMAT_OPTION_H
#define RHEA_FORMAT_OPTION_H

#include <rhea/format.h>

/* LIST ends with name NULL, and may be NULL. */
bool option_is_listed(const struct rhea_option_help *list, const char *name);
/* A number of bytes: decimal or 0x, a fraction where a suffix follows, and one
 * of b k M G T P E (powers of 1024). */
int option_parse_size(const char *text, uint64_t *value,
                      struct rhea_error *err);
int option_size(const struct rhea_option *o, uint64_t *value,
                struct rhea_error *err);
/* on, off, yes, no, true, false, y, n. */
int option_bool(const struct rhea_option *o, bool *value,
                struct rhea_error *err);
int option_unknown(const struct rhea_option *o, const char *format,
                   struct rhea_error *err);
/* For a format that can be opened in one way only. */
int option_none(const struct rhea_format_open *how, const char *format,
                struct rhea_error *err);

#endif
