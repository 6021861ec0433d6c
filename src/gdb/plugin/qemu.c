/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/qemu.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

#include "base/checked.h"
#include "gdb/plugin/exact.h"

struct qemu qemu;

/* The API's version that we are made for: 2 where registers can be read, which
 * is the least that such a QEMU takes, and else 1. QEMU looks at it after the
 * constructors have run. */
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

__attribute__((constructor)) static void choose_version(void)
{
    if (dlsym(RTLD_DEFAULT, "qemu_plugin_read_register"))
        qemu_plugin_version = 2;
}

/* Which of them there have to be. */
enum need {
    ALWAYS,
    OFFICIAL,    /* to read registers by the API */
    BY_SYMBOLS,  /* to read them without */
    IF_POSSIBLE, /* we do with what there is */
};

struct symbol {
    const char *name;
    size_t offset;
    enum need need;
};

#define SYMBOL(name, member, need)                                             \
    {                                                                          \
        name, offsetof(struct qemu, member), need                              \
    }

static const struct symbol symbols[] = {
    SYMBOL("qemu_plugin_register_vcpu_init_cb", on_vcpu, ALWAYS),
    SYMBOL("qemu_plugin_register_atexit_cb", on_exit, ALWAYS),
    SYMBOL("qemu_plugin_register_vcpu_tb_trans_cb", on_block, ALWAYS),
    SYMBOL("qemu_plugin_register_vcpu_insn_exec_cb", on_insn, ALWAYS),
    SYMBOL("qemu_plugin_tb_n_insns", block_size, ALWAYS),
    SYMBOL("qemu_plugin_tb_get_insn", block_insn, ALWAYS),
    SYMBOL("qemu_plugin_insn_vaddr", insn_address, ALWAYS),
    SYMBOL("qemu_plugin_get_registers", register_names, OFFICIAL),
    SYMBOL("qemu_plugin_read_register", read_register, OFFICIAL),
    SYMBOL("qemu_plugin_read_memory_vaddr", read_memory, IF_POSSIBLE),
    SYMBOL("qemu_get_cpu", cpu, ALWAYS),
    SYMBOL("async_safe_run_on_cpu", run_safely, ALWAYS),
    SYMBOL("qemu_cpu_kick", kick, ALWAYS),
    SYMBOL("tb_flush", flush, ALWAYS),
    SYMBOL("x86_cpu_gdb_read_register", gdb_read, BY_SYMBOLS),
    SYMBOL("x86_cpu_gdb_write_register", gdb_write, BY_SYMBOLS),
    SYMBOL("cpu_unwind_state_data", unwind, BY_SYMBOLS),
    SYMBOL("cpu_cc_compute_all", flags, BY_SYMBOLS),
    SYMBOL("cpu_load_eflags", set_flags, BY_SYMBOLS),
    SYMBOL("cpu_get_phys_page_attrs_debug", translate, BY_SYMBOLS),
    SYMBOL("cpu_asidx_from_attrs", space_number, BY_SYMBOLS),
    SYMBOL("cpu_get_address_space", space, BY_SYMBOLS),
    SYMBOL("address_space_read_full", read_space, BY_SYMBOLS),
    SYMBOL("cpu_physical_memory_is_io", is_io, BY_SYMBOLS),
    SYMBOL("object_resolve_path_component", child, IF_POSSIBLE),
    SYMBOL("cpu_get_apic_tpr", priority, IF_POSSIBLE),
    SYMBOL("object_class_by_name", type, IF_POSSIBLE),
    SYMBOL("object_new", make, IF_POSSIBLE),
    SYMBOL("object_unref", unref, IF_POSSIBLE),
    SYMBOL("tlb_plugin_lookup", look_up, IF_POSSIBLE),
    SYMBOL("tlb_vaddr_to_host", memory_at, IF_POSSIBLE),
    SYMBOL("cpu_physical_memory_map", map, IF_POSSIBLE),
    SYMBOL("cpu_physical_memory_unmap", unmap, IF_POSSIBLE),
    SYMBOL("g_byte_array_sized_new", new_bytes, ALWAYS),
    SYMBOL("g_array_free", free_array, ALWAYS),
};

static void **slot_of(const struct symbol *s)
{
    return (void **)(void *)((uint8_t *)&qemu + s->offset);
}

/* A symbol's name that is missing of those that are needed; NULL: none. */
static const char *missing(enum need need)
{
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(symbols); i++)
        if (symbols[i].need == need && !*slot_of(&symbols[i]))
            return symbols[i].name;
    return NULL;
}

int qemu_open(uint64_t id, const struct qemu_info *info, struct rhea_error *err)
{
    const char *name;

    if (!info->system_emulation)
        return rhea_error_set(err, ENOTSUP,
                              "it is for whole machines, not for programs");
    if (strcmp(info->target, "x86_64") != 0 &&
        strcmp(info->target, "i386") != 0)
        return rhea_error_set(err, ENOTSUP,
                              "guests of the architecture %s cannot be traced "
                              "by the plugin",
                              info->target);
    qemu.id = id;
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(symbols); i++)
        *slot_of(&symbols[i]) = dlsym(RTLD_DEFAULT, symbols[i].name);
    name = missing(ALWAYS);
    if (name)
        return rhea_error_set(err, ENOTSUP, "this QEMU does not export %s",
                              name);
    qemu.official = !missing(OFFICIAL);
    if (qemu.official)
        return 0;
    name = missing(BY_SYMBOLS);
    if (name)
        return rhea_error_set(err, ENOTSUP,
                              "this QEMU does not let plugins read registers, "
                              "and does not export %s",
                              name);
    return exact_make(err);
}
