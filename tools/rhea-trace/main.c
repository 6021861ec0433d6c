/* SPDX-License-Identifier: MIT */
/* rhea-trace: gdb's tracepoints for QEMU guests. */
#include "trace.h"

int main(int argc, char **argv)
{
    tool_set_name(argv[0], "rhea-trace", "rhea-trace");
    if (argc > 1 && !strcmp(argv[1], "record"))
        return record_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "report"))
        return report_main(argc - 1, argv + 1);
    return serve_main(argc, argv);
}
