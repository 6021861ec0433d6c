/* SPDX-License-Identifier: MIT */
/* The plugin's end of the link to rhea-trace (link.h). */
#ifndef RHEA_GDB_PLUGIN_CONTROL_H
#define RHEA_GDB_PLUGIN_CONTROL_H

#include <rhea/base.h>

/* Listen at PATH; NULL: where rhea-trace looks by itself. */
int control_listen(const char *path, struct rhea_error *err);
/* Serve, in a thread of its own. Once. */
void control_start(void);
/* QEMU ends. */
void control_end(void);

#endif
