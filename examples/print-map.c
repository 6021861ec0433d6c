/* SPDX-License-Identifier: MIT */
/*
 * Print where each part of an image's guest contents lives, its backing chain
 * included:
 *
 *     cc print-map.c -o print-map $(pkg-config --cflags --libs librhea-image)
 *     ./print-map disk.qcow2
 */
#include <inttypes.h>
#include <rhea/image.h>
#include <stdio.h>

static const char *kind_name(enum rhea_extent_kind kind)
{
    switch (kind) {
    case RHEA_EXTENT_DATA:
        return "data";
    case RHEA_EXTENT_COMPRESSED:
        return "compressed";
    case RHEA_EXTENT_ENCRYPTED:
        return "encrypted";
    case RHEA_EXTENT_ZERO:
        return "zero";
    case RHEA_EXTENT_UNALLOCATED:
        return "nowhere";
    }
    return "unknown";
}

static int print_map(struct rhea_image *image, struct rhea_error *err)
{
    uint64_t size = rhea_image_size(image);
    struct rhea_image_extent found;

    for (uint64_t offset = 0; offset < size; offset += found.extent.length) {
        int ret = rhea_image_map(image, offset, size - offset, &found, err);
        if (ret < 0)
            return ret;
        printf("%12" PRIu64 " %12" PRIu64 " %-10s", offset, found.extent.length,
               kind_name(found.extent.kind));
        if (found.extent.kind == RHEA_EXTENT_DATA)
            printf(" at %" PRIu64 " of %s", found.extent.host,
                   rhea_image_filename(found.image));
        putchar('\n');
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct rhea_image *image;
    struct rhea_error err;

    if (argc != 2) {
        fprintf(stderr, "usage: print-map IMAGE\n");
        return 2;
    }
    /* No format is given, so the image is probed. That is for images one
     * trusts: a raw disk may begin with whatever its guest wrote there. */
    if (rhea_image_open(&image, argv[1], NULL, 0, &err) < 0) {
        fprintf(stderr, "print-map: %s\n", err.text);
        return 1;
    }
    int ret = print_map(image, &err);
    if (ret < 0)
        fprintf(stderr, "print-map: %s\n", err.text);
    rhea_image_close(image, NULL);
    return ret < 0;
}
