/* SPDX-License-Identifier: MIT */
#include "gdb/plugin/exact.h"

#include <errno.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

/* A helper in QEMU's table (TCGHelperInfo of 7.2). */
struct helper {
    const void *function;
    const char *name;
    uint32_t flags, types;
};

enum { READS_NO_REGISTERS = 1, WRITES_NO_REGISTERS = 2 };

static const char helper_name[] = "\0plugin_vcpu_udata_cb";

struct search {
    const char *name;
    struct helper *helper;
    unsigned n; /* helpers of that name */
    const void *code_start, *code_end;
    uintptr_t relro, relro_end; /* what the loader has made read-only */
};

static bool is_code(const struct search *s, const void *p)
{
    return p >= s->code_start && p < s->code_end;
}

static void search_segment(struct search *s, const uint8_t *start, size_t len,
                           unsigned flags)
{
    if (!(flags & PF_W)) {
        const uint8_t *at =
            memmem(start, len, helper_name, sizeof(helper_name));

        if (at)
            s->name = (const char *)at + 1;
    }
    if ((flags & PF_X) && !s->code_start) {
        s->code_start = start;
        s->code_end = start + len;
    }
    if (!(flags & PF_W))
        return;
    for (size_t i = 0; i + sizeof(struct helper) <= len; i += sizeof(void *)) {
        const struct helper *h =
            (const struct helper *)(const void *)(start + i);

        if (h->name == s->name && s->name && is_code(s, h->function)) {
            s->helper = (struct helper *)h;
            s->n++;
        }
    }
}

/* QEMU itself is the first object; its segments come in the order of their
 * addresses, constants and code in front of data. */
static int search_object(struct dl_phdr_info *o, size_t size, void *opaque)
{
    struct search *s = opaque;

    (void)size;
    for (unsigned i = 0; i < o->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &o->dlpi_phdr[i];

        uintptr_t start = (uintptr_t)(o->dlpi_addr + p->p_vaddr);

        if (p->p_type == PT_LOAD && (p->p_flags & PF_R))
            search_segment(s, (const uint8_t *)start, p->p_filesz, p->p_flags);
        if (p->p_type == PT_GNU_RELRO) {
            s->relro = start;
            s->relro_end = start + p->p_memsz;
        }
    }
    return 1;
}

/* The table is read-only once QEMU has been loaded, and becomes so again. */
static int change(const struct search *s, struct rhea_error *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)s->helper, start = at / page * page;
    size_t len = at + sizeof(*s->helper) - start;

    if (mprotect((void *)start, len, PROT_READ | PROT_WRITE) < 0)
        return rhea_error_errno(err, errno,
                                "cannot make QEMU's table of helpers writable");
    s->helper->flags = WRITES_NO_REGISTERS;
    if (at >= s->relro && at < s->relro_end)
        (void)mprotect((void *)start, len, PROT_READ);
    return 0;
}

int exact_make(struct rhea_error *err)
{
    struct search s = {0};

    dl_iterate_phdr(search_object, &s);
    if (s.n != 1 || (s.helper->flags != READS_NO_REGISTERS &&
                     s.helper->flags != WRITES_NO_REGISTERS))
        return rhea_error_set(err, ENOTSUP,
                              "this QEMU does not let plugins read registers, "
                              "and it is not built like QEMU 7.2");
    if (s.helper->flags == WRITES_NO_REGISTERS)
        return 0;
    return change(&s, err);
}
