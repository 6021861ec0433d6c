/* SPDX-License-Identifier: MIT */
/* Changes of the descriptor; see edit.c for their order of writes. */
#ifndef RHEA_FORMAT_VMDK_EDIT_H
#define RHEA_FORMAT_VMDK_EDIT_H

#include "format/vmdk/vmdk.h"

/* TEXT, which it takes over, is the descriptor from now on; durable. */
int vmdk_edit_store(struct vmdk *v, char *text, struct rhea_error *err);
/* The same where a descriptor inside an extent changes together with that
 * extent's HEADER; NULL: it stays. */
int vmdk_edit_store_with(struct vmdk *v, char *text, const uint8_t *header,
                         struct rhea_error *err);
/* edit_inside.c: TEXT, LEN bytes with zeroes behind them up to the sector's
 * end, in the place of the present one, from which it differs in [FROM, TO). */
int vmdk_edit_inside(struct vmdk *v, const char *text, size_t len, size_t from,
                     size_t to, const uint8_t *header, struct rhea_error *err);
/* Set the value of line NAME in *TEXT, malloc'd, to VALUE, NULL: remove it. A
 * line that is not there yet is put behind that of name AFTER, NULL: the last
 * one. */
int vmdk_edit_line(char **text, const char *name, const char *value,
                   const char *after, struct rhea_error *err);

#endif
