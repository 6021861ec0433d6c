/* SPDX-License-Identifier: MIT */
/*
 * The bytes of all files that a conversion would make. Streams are measured as
 * if nothing could be compressed, and descriptors in a file of their own as if
 * the image had a name as long as can be, so that neither gets any larger.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "format/measure.h"
#include "format/vmdk/create.h"
#include "format/vmdk/sesparse.h"
#include "format/vmdk/stream.h"

/* What a grain takes, and the table that comes with the first grain of it; 0:
 * there are none, or they are there from the start. */
struct measure {
    uint64_t grain, table;               /* bytes of the guest */
    uint64_t grain_stored, table_stored; /* bytes of the file */
    uint64_t empty; /* what files are there without a grain */
};

enum {
    MEASURE_TABLE = NEW_TABLE_ENTRIES * sizeof(uint32_t),
    MEASURE_COWD_TABLE = VMDK_COWD_TABLE_ENTRIES * sizeof(uint32_t),
    MEASURE_STREAM_END = 3 * VMDK_SECTOR, /* marker, footer, end marker */
};

static int measure_descriptor(struct new_image *n, uint64_t *bytes,
                              struct rhea_error *err)
{
    char name[NAME_MAX + 1] = {0};
    RHEA_AUTO_FREE char *text = NULL;
    memset(name, 'n', NAME_MAX);
    n->name = name;
    int ret = new_descriptor(n, &text, err);
    n->name = NULL;
    *bytes = ret ? 0 : strlen(text);
    return ret;
}

static void measure_stream(const struct new_image *n, struct measure *m)
{
    uint64_t tables = div_up(n->size, m->grain * NEW_TABLE_ENTRIES);
    m->grain_stored = pack_max(m->grain);
    m->table = m->grain * NEW_TABLE_ENTRIES;
    m->table_stored = VMDK_SECTOR + MEASURE_TABLE; /* with a marker */
    m->empty += VMDK_SECTOR + align_up(tables * sizeof(uint32_t), VMDK_SECTOR) +
                MEASURE_STREAM_END;
}

static int measure_begin(struct new_image *n, struct measure *m,
                         struct rhea_error *err)
{
    bool inside = !n->type->letter && !n->type->tail;
    *m = (struct measure){0};
    int ret = inside ? 0 : measure_descriptor(n, &m->empty, err);
    for (unsigned i = 0; i < new_n_extents(n); i++)
        m->empty += new_extent_overhead(n, new_extent_size(n, i), inside);
    if (n->type->kind == VMDK_FLAT) {
        m->empty += n->size;
    } else if (n->type->kind == VMDK_COWD) {
        m->grain = m->grain_stored = VMDK_SECTOR;
        m->table = (uint64_t)VMDK_COWD_TABLE_ENTRIES * VMDK_SECTOR;
        m->table_stored = MEASURE_COWD_TABLE;
    } else if (n->type->kind == VMDK_SESPARSE) {
        m->grain = m->grain_stored = SESPARSE_GRAIN_BYTES;
    } else {
        m->grain = m->grain_stored = (uint64_t)NEW_GRAIN_SECTORS * VMDK_SECTOR;
        if (n->type->compressed)
            measure_stream(n, m);
    }
    return ret;
}

int vmdk_measure(const struct rhea_measure *what, struct rhea_measured *out,
                 struct rhea_error *err)
{
    struct new_image n = {.size = align_up(what->size, VMDK_SECTOR)};
    struct measure m = {0};
    uint64_t grains = 0, tables = 0;
    int ret = new_take_options(&n, what->options, what->n_options, err);
    if (!ret)
        ret = new_check_size(&n, err);
    if (!ret)
        ret = measure_begin(&n, &m, err);
    if (!ret && m.grain)
        ret = measure_blocks(what, m.grain, &grains, err);
    if (!ret && m.table)
        ret = measure_blocks(what, m.table, &tables, err);
    if (ret)
        return ret;
    *out = (struct rhea_measured){
        .required = m.empty + grains * m.grain_stored + tables * m.table_stored,
        .fully_allocated = m.empty,
    };
    if (m.grain)
        out->fully_allocated += div_up(n.size, m.grain) * m.grain_stored;
    if (m.table)
        out->fully_allocated += div_up(n.size, m.table) * m.table_stored;
    return 0;
}
