/* SPDX-License-Identifier: MIT */
/* Changes of the descriptor; see edit.c for their order of writes. */
#ifndef RHEA_FORMAT_VMDK_EDIT_H
#define RHEA_FORMAT_VMDK_EDIT_H

#include "format/vmdk/vmdk.h"

/* TEXT, which it takes over, is the descriptor from now on; durable. */
int vmdk_edit_store(struct vmdk *v, char *text, struct rhea_error *err);
/* Set the value of line NAME in *TEXT, malloc'd, to VALUE, NULL: remove it. A
 * line that is not there yet is put behind that of name AFTER. */
int vmdk_edit_line(char **text, const char *name, const char *value,
                   const char *after, struct rhea_error *err);

#endif
