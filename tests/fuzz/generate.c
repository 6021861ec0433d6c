/* SPDX-License-Identifier: MIT */
/*
 * From a recipe to an image: blind mutation of image files seldom gets past
 * the header, so our own drivers build a sound one, which mutate.c then damages
 * a little or not at all.
 *
 * A recipe: options, size, backing file; a count and as many steps (kind,
 * place, length); a count and as many mutations.
 */
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "fuzz.h"

enum { STEPS = 24, LONGEST = 256 << 10 };

/* --- creation ------------------------------------------------------------ */

struct choice {
    const char *format, *option;
    const char *values[10]; /* NULL: leave it out */
    unsigned n;
};

static const struct choice choices[] = {
    {"qed",
     "cluster_size",
     {"4096", "4096", "4096", "4096", "8192", "8192", "16384", "64K", "4M",
      "64M"},
     10},
    {"qed", "table_size", {"1", "1", "1", "2", "2", "2", "4", "16"}, 8},
    {"qcow", "cluster_size", {NULL, "512", "512", "1k", "4k", "4k", "64k"}, 7},
    {"vdi",
     "block_size",
     {"4096", "4096", "4096", "8192", "16384", "64K", "1M", "1M"},
     8},
    {"vdi", "static", {NULL, NULL, "on"}, 3},
    {"vpc",
     "block_size",
     {"4096", "4096", "4096", "8192", "16384", "64K", "512K", NULL},
     8},
    {"vpc", "subformat", {NULL, NULL, NULL, "fixed"}, 4},
    {"vpc", "force_size", {"on", "on", NULL}, 3},
    {"vpc",
     "size_rule",
     {NULL, NULL, NULL, "hyper-v", "azure", "xenserver"},
     6},
    {"parallels",
     "cluster_size",
     {"512", "512", "1024", "4096", "4096", "32256", "64K", NULL, "252K",
      "64M"},
     10},
    {"parallels", "extended", {NULL, "on", "off", "off"}, 4},
    {"vmdk",
     "subformat",
     {NULL, NULL, "monolithicSparse", "streamOptimized"},
     4},
    {"vmdk", "zeroed_grain", {NULL, "on"}, 2},
    {"qcow2",
     "cluster_size",
     {"512", "512", "512", "1024", "2048", "4096", "4096", "16384", "64K",
      "2M"},
     10},
    {"qcow2", "compat", {"0.10", "1.1", NULL}, 3},
    {"qcow2",
     "refcount_bits",
     {NULL, NULL, "1", "2", "4", "8", "16", "32", "64"},
     9},
    {"qcow2", "lazy_refcounts", {NULL, NULL, "on"}, 3},
    {"qcow2", "extended_l2", {NULL, NULL, NULL, "on"}, 4},
    {"qcow2", "compression_type", {NULL, "zlib", "zstd"}, 3},
};

static uint64_t generate_size(struct fuzz_input *in)
{
    static const uint64_t large[] = {0, UINT64_C(1) << 30, UINT64_C(1) << 32,
                                     UINT64_C(1) << 40, UINT64_C(3) << 43};
    uint8_t kind = fuzz_u8(in);
    if (kind < 16)
        return large[kind % RHEA_ARRAY_SIZE(large)];
    uint64_t sectors = 1 + fuzz_below(in, 65536);
    return kind < 160 ? sectors % 512 * 512 : sectors * 512;
}

static void generate_backing(struct fuzz_input *in, struct rhea_create *how,
                             char name[1024])
{
    uint8_t kind = fuzz_u8(in);
    if (kind < 160)
        return;
    size_t len = kind < 200 ? 1u + fuzz_u8(in) % 60 : 1 + fuzz_below(in, 1023);
    memset(name, 'n', len);
    name[len] = 0;
    how->backing_file = kind < 180 ? FUZZ_BASE_NAME : name;
    switch (fuzz_u8(in) % 4) {
    case 0:
        how->backing_format = "qcow2";
        break;
    case 1:
        break;
    default:
        how->backing_format = "raw";
    }
    if (kind < 180 && how->backing_format)
        how->backing_format = "raw";
}

static bool generate_empty(struct fuzz_input *in,
                           const struct rhea_format_ops *format,
                           struct rhea_storage *s)
{
    struct rhea_option options[RHEA_ARRAY_SIZE(choices)];
    struct rhea_create how = {.options = options};
    char name[1024];
    for (size_t i = 0; i < RHEA_ARRAY_SIZE(choices); i++) {
        const struct choice *c = &choices[i];
        if (strcmp(c->format, format->name))
            continue;
        const char *value = c->values[fuzz_below(in, c->n)];
        if (value)
            options[how.n_options++] =
                (struct rhea_option){.name = c->option, .value = value};
    }
    how.size = generate_size(in);
    /* All of its tables are there from the start, and looked at. */
    if (strcmp(format->name, "vmdk") == 0)
        how.size = RHEA_MIN(how.size, UINT64_C(1) << 40);
    /* What records its parent's identity would need one. */
    if (!format->check_parent)
        generate_backing(in, &how, name);
    return format->create && format->create(s, &how, NULL) == 0;
}

/* --- contents ------------------------------------------------------------ */

struct builder {
    struct rhea_format *f;
    uint64_t size;
    uint32_t cluster;
    uint8_t *buf; /* LONGEST */
};

/* A place near a cluster's edge: among the first, the last, or anywhere. */
static uint64_t generate_offset(struct builder *b, struct fuzz_input *in)
{
    uint8_t how = fuzz_u8(in);
    uint64_t clusters = div_up(b->size, b->cluster);
    uint64_t cluster = fuzz_u8(in);
    if (how & 1)
        cluster = clusters / 256 * cluster + fuzz_u8(in);
    if (how & 2)
        cluster = clusters - 1 - cluster % clusters;
    uint64_t offset = cluster % clusters * b->cluster;
    if (how & 4)
        offset += (uint64_t)fuzz_u16(in) % b->cluster / 512 * 512;
    return RHEA_MIN(offset, b->size - 1);
}

static void generate_compressed(struct builder *b, uint64_t offset,
                                struct fuzz_input *in)
{
    offset = align_down(offset, b->cluster);
    uint64_t len = RHEA_MIN(b->cluster, b->size - offset);
    if (len > LONGEST || !b->f->ops->write_compressed)
        return;
    memset(b->buf, fuzz_u8(in), len);
    fuzz_fill(b->buf, (size_t)len / (1 + fuzz_u8(in) % 16), len + offset);
    b->f->ops->write_compressed(b->f, offset, b->buf, (size_t)len, NULL);
}

static void generate_step(struct builder *b, struct fuzz_input *in)
{
    const struct rhea_format_ops *ops = b->f->ops;
    uint8_t kind = fuzz_u8(in) % 16;
    uint64_t offset = generate_offset(b, in);
    uint64_t len = (uint64_t)fuzz_u8(in) * 512;
    if (kind & 1)
        len = (1 + len / 512 % 4) * b->cluster;
    len = RHEA_MIN(RHEA_MAX(len, 512), b->size - offset);
    FUZZ_TRACE("step %u at %" PRIu64 ", %" PRIu64 " bytes", kind, offset, len);
    if (kind < 9) {
        len = RHEA_MIN(len, (uint64_t)LONGEST);
        fuzz_fill(b->buf, (size_t)len, offset ^ fuzz_u8(in));
        ops->write(b->f, offset, b->buf, (size_t)len, NULL);
    } else if (kind < 12) {
        if (ops->write_zeroes)
            ops->write_zeroes(b->f, offset, len, kind & 2, NULL);
    } else if (kind < 15) {
        generate_compressed(b, offset, in);
    } else {
        ops->flush(b->f, NULL);
    }
}

static bool generate_contents(struct fuzz_input *in,
                              const struct rhea_format_ops *format,
                              struct rhea_storage *s)
{
    RHEA_AUTO_FREE uint8_t *buf = malloc(LONGEST);
    struct builder b = {.buf = buf};
    struct rhea_error err;
    if (!format->write)
        return true;
    int ret = rhea_format_open_over(format, &b.f, s, RHEA_FORMAT_WRITE, &err);
    FUZZ_REQUIRE(!ret, "what was created cannot be opened: %s", err.text);
    struct rhea_format_info info = {0};
    format->info(b.f, &info);
    b.f->below = info.backing_file ? fuzz_base_below : NULL;
    b.size = info.virtual_size;
    b.cluster = fuzz_cluster(&info);
    unsigned n = fuzz_u8(in) % (STEPS + 1);
    for (unsigned i = 0; b.size && i < n; i++)
        generate_step(&b, in);
    ret = format->close(b.f, &err);
    FUZZ_REQUIRE(!ret, "closing: %s", err.text);
    return true;
}

struct rhea_storage *generate_image(struct fuzz_input *in,
                                    const struct rhea_format_ops *format)
{
    struct rhea_storage *s;
    FUZZ_REQUIRE(!rhea_memory_open(&s, UINT64_C(1) << 46, NULL), "memory");
    if (!generate_empty(in, format, s) || !generate_contents(in, format, s)) {
        rhea_storage_close(s);
        return NULL;
    }
    uint8_t n = fuzz_u8(in);
    mutate_image(s, format, n < 100 ? 0 : 1u + n % 6, in);
    return s;
}
