/* SPDX-License-Identifier: MIT */
#ifndef RHEA_CRYPTO_LUKS_NUMBER_H
#define RHEA_CRYPTO_LUKS_NUMBER_H

#include <rhea/base.h>

/* The value of an option that is a plain number from MIN to MAX. */
int luks_number(const char *name, const char *value, uint64_t min, uint64_t max,
                uint64_t *number, struct rhea_error *err);

#endif
