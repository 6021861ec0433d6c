/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <rhea/convert.h>

int rhea_convert_check_target(struct rhea_image *source, const char *filename,
                              struct rhea_error *err)
{
    uint64_t size, device, inode;
    struct stat st;
    unsigned depth = 0;

    if (stat(filename, &st) < 0)
        return errno == ENOENT ? 0
                               : rhea_error_errno(err, errno, "%s", filename);
    for (; source; source = rhea_image_backing(source), depth++) {
        if (rhea_file_stat(rhea_image_storage(source), &size, &device, &inode) <
                0 ||
            device != st.st_dev || inode != st.st_ino)
            continue;
        return rhea_error_set(err, EINVAL,
                              depth ? "%s is the backing file of the image to "
                                      "be converted; it would be overwritten"
                                    : "%s is the image to be converted; it "
                                      "would be overwritten",
                              filename);
    }
    return 0;
}
