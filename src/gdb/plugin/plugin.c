/* SPDX-License-Identifier: MIT */
/*
 * rhea-trace's plugin for QEMU:
 *
 *     -plugin librhea-trace-plugin.so[,socket=PATH]
 *
 * It notices hits in the virtual processors themselves. Loading it costs
 * nothing until rhea-trace connects and tracing starts.
 */
#include <unistd.h>

#include "gdb/plugin/control.h"
#include "gdb/plugin/tracing.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_install(uint64_t id, const struct qemu_info *info,
                               int argc, char **argv);

static void on_vcpu(uint64_t id, unsigned index)
{
    (void)id;
    tracing_vcpu(index);
    control_start();
}

static void on_block(uint64_t id, struct qemu_block *block)
{
    (void)id;
    tracing_block(block);
}

static void on_exit_of_qemu(uint64_t id, void *opaque)
{
    (void)id;
    (void)opaque;
    control_end();
}

/* A QEMU that cannot be traced runs its guest all the same, and rhea-trace is
 * told why. */
int qemu_plugin_install(uint64_t id, const struct qemu_info *info, int argc,
                        char **argv)
{
    const char *path = NULL;
    struct rhea_error err = {0};

    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "socket=", 7) != 0 || !argv[i][7]) {
            fprintf(stderr,
                    "rhea-trace's plugin knows no %s: say socket=PATH\n",
                    argv[i]);
            return -1;
        }
        path = argv[i] + 7;
    }
    if (control_listen(path, &err) < 0) {
        fprintf(stderr, "rhea-trace's plugin: %s\n", err.text);
        return -1;
    }
    if (qemu_open(id, info, &err) < 0)
        tracing_set_fault(err.text);
    if (qemu.on_vcpu)
        qemu.on_vcpu(id, on_vcpu);
    if (qemu.on_exit)
        qemu.on_exit(id, on_exit_of_qemu, NULL);
    if (qemu.on_block && !tracing_fault())
        qemu.on_block(id, on_block);
    return 0;
}
