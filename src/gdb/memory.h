/* SPDX-License-Identifier: MIT */
/*
 * The guest's memory, read from QEMU's own while the guest stands still:
 * process_vm_readv needs no stop and no flag of QEMU, and takes microseconds.
 * Where QEMU's memory lies its monitor tells (`info mtree -f`, `gpa2hva`). Each
 * range is compared with what the stub reads before it is used.
 *
 * Left to the stub are MMIO, ROM, and what chipsets remap while the guest runs
 * (0xa0000 to 0xfffff).
 *
 * Life: memory_find, use, memory_finish (safe on all zero bytes).
 */
#ifndef RHEA_GDB_MEMORY_H
#define RHEA_GDB_MEMORY_H

#include <sys/types.h>

#include "gdb/stub.h"

enum { MEMORY_MAX_RANGES = 32 };

struct memory_range {
    uint64_t start, end; /* guest physical addresses */
    uint64_t host;       /* where START is in QEMU */
};

struct memory {
    pid_t pid; /* 0: not to be read that way */
    struct memory_range ranges[MEMORY_MAX_RANGES];
    unsigned n;
    char why[200]; /* why not, if not */
};

/* The state of a virtual processor that decides how addresses are translated.
 */
struct memory_mode {
    uint64_t cr0, cr3, cr4, efer;
};

/* The process at the other end of a connected socket; 0: not found. */
pid_t memory_peer(int fd);
/* Find the memory of the process PID, to which S is connected. That there is
 * none is no error; see `why`. The guest is stopped. */
int memory_find(struct memory *m, struct stub *s, pid_t pid,
                struct rhea_error *err);
/* Bytes at a physical address, up to LEN; how many could be read. */
size_t memory_read_physical(const struct memory *m, uint64_t address, void *buf,
                            size_t len);
/* The same at a virtual address, not over the end of a page. */
size_t memory_read(const struct memory *m, const struct memory_mode *mode,
                   uint64_t address, void *buf, size_t len);
/* The physical address of a virtual one; false where no page is there, or a
 * table lies where it cannot be read. */
bool memory_translate(const struct memory *m, const struct memory_mode *mode,
                      uint64_t address, uint64_t *physical);

#endif
