/* SPDX-License-Identifier: MIT */
#ifndef RHEA_IMAGE_PATH_H
#define RHEA_IMAGE_PATH_H

/*
 * The path of backing file NAME as the image OVERLAY means it. As in QEMU, an
 * absolute name and one with a protocol in front stand for themselves, so that
 * "file:NAME" is relative to the current folder; another name is relative to
 * the overlay's folder. "file:" is taken off, other protocols stay. malloc'd;
 * NULL when out of memory.
 */
char *image_resolve_path(const char *overlay, const char *name);

#endif
