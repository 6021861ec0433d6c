/* SPDX-License-Identifier: MIT */
/* rhea-trace: gdb's tracepoints for QEMU guests. */
#include "trace.h"

int main(int argc, char **argv)
{
    tool_set_name(argv[0], "rhea-trace", "rhea-trace");
    return serve_main(argc, argv);
}
