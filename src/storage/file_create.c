/* SPDX-License-Identifier: MIT */
/*
 * What can be asked of the file system for a new file. Neither changes a byte
 * of it, so a file system that does not know them is no error, as in QEMU.
 *
 * Flags: linux/fs.h, ioctl_iflags(2), ioctl_xfs_fsgetxattr(2).
 */
#include <errno.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "storage/file.h"

const struct rhea_option_help file_create_options[] = {
    {"extent_size_hint", "size",
     "bytes by which the file system makes room (default: 0, its own choice)"},
    {"nocow", "bool (on/off)",
     "Btrfs does not copy what is written over (default: off)"},
    {NULL, NULL, NULL},
};

static void create_set_nocow(int fd)
{
    int flags;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        (void)ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
}

static void create_set_extent_size(int fd, uint32_t bytes)
{
    struct fsxattr attributes;
    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
        attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attributes.fsx_extsize = bytes;
        (void)ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
}

int file_prepare_new(struct rhea_storage *s, const struct storage_options *o,
                     struct rhea_error *err)
{
    uint64_t hint = 0;
    bool nocow = false;
    int ret = storage_options_size(o, "extent_size_hint", &hint, err);
    if (!ret)
        ret = storage_options_bool(o, "nocow", &nocow, err);
    if (!ret && hint > UINT32_MAX)
        ret = rhea_error_set(
            err, EINVAL, "option extent_size_hint is at most %" PRIu32 " bytes",
            UINT32_MAX);
    if (ret || !s)
        return ret;
    int fd = ((const struct file *)s)->fd;
    if (nocow)
        create_set_nocow(fd);
    if (hint)
        create_set_extent_size(fd, (uint32_t)hint);
    return 0;
}
