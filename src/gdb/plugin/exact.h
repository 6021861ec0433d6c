/* SPDX-License-Identifier: MIT */
/*
 * Registers that are true in the middle of a block, on QEMU 7.2.
 *
 * While a block runs, TCG keeps guest registers in the host's, and stores them
 * before it calls a helper that may look at them. Whether one may, a table of
 * helpers says; the one by which plugins' callbacks are called
 * (`plugin_vcpu_udata_cb`) is marked as one that looks at nothing. So a
 * callback finds what the last store left.
 *
 * exact_make changes that mark, in this process's memory, to what newer QEMUs
 * have for callbacks that read registers: the helper reads them and changes
 * none. Code that is translated afterwards stores registers in front of our
 * callbacks, of which there is one only at tracepoints.
 */
#ifndef RHEA_GDB_PLUGIN_EXACT_H
#define RHEA_GDB_PLUGIN_EXACT_H

#include <rhea/base.h>

int exact_make(struct rhea_error *err);

#endif
