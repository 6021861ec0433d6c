/* SPDX-License-Identifier: MIT */
/*
 * VMDK, VMware's virtual disks: "Virtual Disk Format 5.0" (VMware technical
 * note EN-000777), and libvmdk's format notes where that is silent.
 *
 * A descriptor in text lists extents, each in a file of its own: flat ones,
 * sparse ones (hosted: one grain directory, perhaps with a copy, grain tables
 * of 512 entries, grains of 64 KiB), those that can be streamed, with
 * compressed grains, ESX's sparse ones (COWD) and ESXi's (SESparse). What the
 * program does not do: replay SESparse's journal, which nobody has described.
 *
 * Tables are never loaded whole: each extent has a cache of pages.
 */
#include "format/vmdk/vmdk.h"

#include <string.h>

#include "format/vmdk/create.h"
#include "format/vmdk/stream.h"

static int vmdk_probe(const uint8_t *head, size_t len)
{
    enum vmdk_kind kind;
    if (vmdk_header_kind(head, len, &kind))
        return 100;
    return descriptor_probe((const char *)head, len) ? 100 : 0;
}

static void vmdk_info(struct rhea_format *f, struct rhea_format_info *info)
{
    struct vmdk *v = vmdk_of(f);
    *info = (struct rhea_format_info){
        .virtual_size = f->size,
        .backing_file = v->parent,
        .backing_format = v->parent ? "vmdk" : NULL,
    };
    /* Only where all extents agree. */
    info->cluster_size =
        v->extents->has_blocks ? (uint32_t)v->extents->h.grain_size : 0;
    for (size_t i = 0; i < v->n_extents; i++) {
        const struct vmdk_extent *x = &v->extents[i];
        if (x->has_blocks != v->extents->has_blocks ||
            x->h.grain_size != v->extents->h.grain_size ||
            x->h.compressed != v->extents->h.compressed)
            info->cluster_size = 0;
        info->dirty |= x->h.unclean;
    }
    info->packed_max = v->extents->h.compressed && info->cluster_size
                           ? pack_max(info->cluster_size)
                           : 0;
}

const struct rhea_format_ops rhea_format_vmdk = {
    .name = "vmdk",
    .create_options = vmdk_create_options,
    .probe = vmdk_probe,
    .open = vmdk_open,
    .close = vmdk_close,
    .info = vmdk_info,
    .facts = vmdk_facts,
    .map = vmdk_map,
    .read = vmdk_read,
    .write = vmdk_write,
    .write_zeroes = vmdk_write_zeroes,
    .discard = vmdk_discard,
    .write_compressed = vmdk_write_compressed,
    .pack = vmdk_pack,
    .write_packed = vmdk_write_packed,
    .flush = vmdk_flush,
    .check = vmdk_check,
    .counts_lost = true,
    .create = vmdk_create,
    .measure = vmdk_measure,
    .resize = vmdk_resize,
    .amend_options = vmdk_amend_options,
    .amend = vmdk_amend,
    .set_backing = vmdk_set_backing,
    .make_empty = vmdk_make_empty,
    .check_parent = vmdk_check_parent,
    .renew_identity = vmdk_renew_identity,
};
