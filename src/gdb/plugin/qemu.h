/* SPDX-License-Identifier: MIT */
/*
 * What the plugin calls in QEMU, found by dlsym when it is loaded: the plugin
 * API of QEMU (from 7.2 on, whose documentation "QEMU TCG Plugins" describes
 * it), and functions that QEMU's binary exports without promising anything.
 * Types are declared here as far as they cross the border.
 *
 * Two kinds of QEMU serve:
 *
 *     with registers in its API (9.0 on)   these are read by it, but for those
 *                                          that can be had in less time, where
 *                                          it exports as much as the others;
 *     7.2 to 8.2                           they are read as QEMU's own stub for
 *                                          gdb does, see exact.h for how they
 *                                          come to be true.
 */
#ifndef RHEA_GDB_PLUGIN_QEMU_H
#define RHEA_GDB_PLUGIN_QEMU_H

#include <rhea/base.h>

struct qemu_block; /* a block of guest code as it is translated */
struct qemu_insn;  /* an instruction of it */
struct qemu_cpu;   /* QEMU's CPUState */
struct qemu_space; /* an address space */

/* As GLib declares it: GByteArray, and GArray. */
struct qemu_bytes {
    uint8_t *data;
    unsigned len;
};

struct qemu_register; /* a handle */

struct qemu_register_name {
    struct qemu_register *handle;
    const char *name, *feature;
};

/* What QEMU tells when it loads a plugin. */
struct qemu_info {
    const char *target; /* "x86_64" */
    struct {
        int min, cur;
    } version; /* of the API */
    bool system_emulation;
    struct {
        int smp, max;
    } vcpus;
};

/* What the TLB has (qemu_plugin_hwaddr of 7.2), with room for what later ones
 * put there. */
struct qemu_place {
    bool device, is_store;
    union {
        const void *memory; /* 7.2 */
        uint64_t rest[7];
    };
};

/* How a callback is to find registers. */
enum qemu_flags { QEMU_NO_REGISTERS, QEMU_READS_REGISTERS };

typedef void qemu_vcpu_callback(uint64_t id, unsigned vcpu);
typedef void qemu_exit_callback(uint64_t id, void *opaque);
typedef void qemu_block_callback(uint64_t id, struct qemu_block *block);
typedef void qemu_insn_callback(unsigned vcpu, void *opaque);
typedef void qemu_work(struct qemu_cpu *cpu, void *opaque);

struct qemu {
    uint64_t id;
    bool official; /* registers are read by the API */

    /* The API. */
    void (*on_vcpu)(uint64_t id, qemu_vcpu_callback *f);
    void (*on_exit)(uint64_t id, qemu_exit_callback *f, void *opaque);
    void (*on_block)(uint64_t id, qemu_block_callback *f);
    void (*on_insn)(struct qemu_insn *i, qemu_insn_callback *f, int flags,
                    void *opaque);
    size_t (*block_size)(const struct qemu_block *b);
    struct qemu_insn *(*block_insn)(const struct qemu_block *b, size_t i);
    uint64_t (*insn_address)(const struct qemu_insn *i);
    /* where official: */
    struct qemu_bytes *(*register_names)(void);
    int (*read_register)(struct qemu_register *r, struct qemu_bytes *b);
    bool (*read_memory)(uint64_t address, struct qemu_bytes *b, size_t len);

    /* What the binary exports. */
    struct qemu_cpu *(*cpu)(int index);
    /* F runs while no virtual processor does. */
    void (*run_safely)(struct qemu_cpu *cpu, qemu_work *f, void *opaque);
    /* Wake it up, so that it looks what there is to do. */
    void (*kick)(struct qemu_cpu *cpu);
    void (*flush)(struct qemu_cpu *cpu);
    int (*gdb_read)(struct qemu_cpu *cpu, struct qemu_bytes *b, int n);
    int (*gdb_write)(struct qemu_cpu *cpu, const uint8_t *bytes, int n);
    /* What was noted about the instruction that the code at PC belongs to; on
     * x86: its address, and what the flags are computed from. */
    bool (*unwind)(struct qemu_cpu *cpu, uintptr_t pc, uint64_t *data);
    uint32_t (*flags)(void *env, int operation);
    void (*set_flags)(void *env, int flags, int mask);
    uint64_t (*translate)(struct qemu_cpu *cpu, uint64_t page,
                          void *attributes);
    int (*space_number)(struct qemu_cpu *cpu, uint32_t attributes);
    struct qemu_space *(*space)(struct qemu_cpu *cpu, int number);
    uint32_t (*read_space)(struct qemu_space *s, uint64_t address,
                           uint32_t attributes, void *buf, uint64_t len);
    bool (*is_io)(uint64_t physical);
    /* Look ADDRESS up in the TLB of a kind, and change nothing. */
    bool (*look_up)(struct qemu_cpu *cpu, uint64_t address, int kind,
                    bool is_store, struct qemu_place *place);
    /* Where QEMU has the memory at ADDRESS; NULL: it is none, or is watched.
     * What the TLB does not have is put there first. ACCESS: 0 reads. */
    void *(*memory_at)(void *env, uint64_t address, int access, int kind);
    /* The priority that cr8 is, of a processor's interrupt controller, which
     * is its child of this name in QEMU's tree of objects. */
    void *(*child)(struct qemu_cpu *cpu, const char *name);
    uint8_t (*priority)(void *controller);
    void *(*make)(const char *type); /* an object; aborts for an unknown type */
    void *(*type)(const char *name); /* NULL: there is none */
    void (*unref)(void *object);
    void *(*map)(uint64_t physical, uint64_t *len, bool write);
    void (*unmap)(void *memory, uint64_t len, bool write, uint64_t written);

    /* GLib, which is in QEMU. */
    struct qemu_bytes *(*new_bytes)(unsigned room);
    char *(*free_array)(struct qemu_bytes *array, int free_all);
};

extern struct qemu qemu;

/* Find it all. The error says what this QEMU lacks. */
int qemu_open(uint64_t id, const struct qemu_info *info,
              struct rhea_error *err);

#endif
