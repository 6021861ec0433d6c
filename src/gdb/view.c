/* SPDX-License-Identifier: MIT */
#include "gdb/view.h"

#include <errno.h>

#include "base/checked.h"

/* gdb's manual, "i386 Features", says which registers a target must have, and
 * in which order of features; the rest is as QEMU for i386 names it. */
struct shown {
    const char *name, *of_stub; /* NULL: the same */
    unsigned bits;
    const char *type;
};

static const struct shown core[] = {
    {"eax", "rax", 32, "int32"},    {"ecx", "rcx", 32, "int32"},
    {"edx", "rdx", 32, "int32"},    {"ebx", "rbx", 32, "int32"},
    {"esp", "rsp", 32, "data_ptr"}, {"ebp", "rbp", 32, "data_ptr"},
    {"esi", "rsi", 32, "int32"},    {"edi", "rdi", 32, "int32"},
    {"eip", "rip", 32, "code_ptr"}, {"eflags", NULL, 32, "int32"},
    {"cs", NULL, 32, "int32"},      {"ss", NULL, 32, "int32"},
    {"ds", NULL, 32, "int32"},      {"es", NULL, 32, "int32"},
    {"fs", NULL, 32, "int32"},      {"gs", NULL, 32, "int32"},
    {"st0", NULL, 80, "i387_ext"},  {"st1", NULL, 80, "i387_ext"},
    {"st2", NULL, 80, "i387_ext"},  {"st3", NULL, 80, "i387_ext"},
    {"st4", NULL, 80, "i387_ext"},  {"st5", NULL, 80, "i387_ext"},
    {"st6", NULL, 80, "i387_ext"},  {"st7", NULL, 80, "i387_ext"},
    {"fctrl", NULL, 32, "int"},     {"fstat", NULL, 32, "int"},
    {"ftag", NULL, 32, "int"},      {"fiseg", NULL, 32, "int"},
    {"fioff", NULL, 32, "int"},     {"foseg", NULL, 32, "int"},
    {"fooff", NULL, 32, "int"},     {"fop", NULL, 32, "int"},
};

static const struct shown sse[] = {
    {"xmm0", NULL, 128, "vec128"}, {"xmm1", NULL, 128, "vec128"},
    {"xmm2", NULL, 128, "vec128"}, {"xmm3", NULL, 128, "vec128"},
    {"xmm4", NULL, 128, "vec128"}, {"xmm5", NULL, 128, "vec128"},
    {"xmm6", NULL, 128, "vec128"}, {"xmm7", NULL, 128, "vec128"},
    {"mxcsr", NULL, 32, "int32"},
};

/* What only kernels have; those that the stub has are shown. */
static const struct shown control[] = {
    {"fs_base", NULL, 32, "int32"},   {"gs_base", NULL, 32, "int32"},
    {"k_gs_base", NULL, 32, "int32"}, {"cr0", NULL, 32, "int32"},
    {"cr2", NULL, 32, "int32"},       {"cr3", NULL, 32, "int32"},
    {"cr4", NULL, 32, "int32"},       {"cr8", NULL, 32, "int32"},
    {"efer", NULL, 32, "int32"},
};

/* Of a 128-bit register, what gdb can show of it. */
static const char vectors[] =
    "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>"
    "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
    "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/>"
    "<vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
    "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/>"
    "<vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
    "<union id=\"vec128\">"
    "<field name=\"v4_float\" type=\"v4f\"/>"
    "<field name=\"v2_double\" type=\"v2d\"/>"
    "<field name=\"v16_int8\" type=\"v16i8\"/>"
    "<field name=\"v8_int16\" type=\"v8i16\"/>"
    "<field name=\"v4_int32\" type=\"v4i32\"/>"
    "<field name=\"v2_int64\" type=\"v2i64\"/>"
    "<field name=\"uint128\" type=\"uint128\"/>"
    "</union>\n";

static const struct feature {
    const char *name;
    const struct shown *list;
    unsigned n;
    const char *types;
} features[] = {
    {"org.gnu.gdb.i386.core", core, RHEA_ARRAY_SIZE(core), ""},
    {"org.gnu.gdb.i386.sse", sse, RHEA_ARRAY_SIZE(sse), vectors},
    {"rhea.x86.control", control, RHEA_ARRAY_SIZE(control), ""},
};

const char *view_name(enum view_kind kind)
{
    static const char *const names[] = {"x86-64", "i386", "i8086"};

    return names[kind];
}

static int number_in_stub(const struct layout *stub, const struct shown *r)
{
    int n = layout_number(stub, r->of_stub ? r->of_stub : r->name);

    if (n < 0 || stub->registers[n].size * 8u < r->bits)
        return -1;
    return n;
}

static void write_features(const struct layout *stub, FILE *out)
{
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];

        fprintf(out, "<feature name=\"%s\">\n%s", f->name, f->types);
        for (unsigned j = 0; j < f->n; j++)
            if (number_in_stub(stub, &f->list[j]) >= 0)
                fprintf(out, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\"/>\n",
                        f->list[j].name, f->list[j].bits, f->list[j].type);
        fputs("</feature>\n", out);
    }
}

/* For description_load. */
struct writer {
    const struct layout *stub;
    enum view_kind kind;
};

static int write_target(void *opaque, const char *annex, char **text,
                        size_t *len, struct rhea_error *err)
{
    const struct writer *w = opaque;
    FILE *out = open_memstream(text, len);

    (void)annex;
    if (!out)
        return rhea_error_errno(err, errno, "cannot describe registers");
    fprintf(out,
            "<?xml version=\"1.0\"?>\n"
            "<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n"
            "<target>\n<architecture>%s</architecture>\n",
            view_name(w->kind));
    write_features(w->stub, out);
    fputs("</target>\n", out);
    if (fclose(out) != 0)
        return rhea_error_errno(err, errno, "cannot describe registers");
    return 0;
}

/* Which of the stub's registers each one is. */
static void find_sources(struct view *v, const struct layout *stub)
{
    for (unsigned i = 0; i < RHEA_ARRAY_SIZE(features); i++)
        for (unsigned j = 0; j < features[i].n; j++) {
            const struct shown *r = &features[i].list[j];
            int ours = layout_number(&v->shown.layout, r->name);

            if (ours >= 0)
                v->from[ours] = (uint8_t)number_in_stub(stub, r);
        }
}

int view_init(struct view *v, enum view_kind kind, const struct layout *stub,
              struct rhea_error *err)
{
    struct writer w = {stub, kind};
    int ret;

    *v = (struct view){.kind = kind};
    if (kind == VIEW_STUB)
        return 0;
    for (unsigned j = 0; j < RHEA_ARRAY_SIZE(core); j++)
        if (number_in_stub(stub, &core[j]) < 0)
            return rhea_error_set(err, ENOTSUP,
                                  "the stub has no %s: its registers cannot be "
                                  "shown as those of %s",
                                  core[j].name, view_name(kind));
    ret = description_load(&v->shown, write_target, &w, err);
    if (ret == 0)
        find_sources(v, stub);
    return ret;
}

void view_finish(struct view *v)
{
    description_finish(&v->shown);
    *v = (struct view){0};
}
