/* SPDX-License-Identifier: MIT */
/* The steps of opening an image; open.c has those of one, chain.c goes on to
 * what is below. */
#ifndef RHEA_IMAGE_OPENING_H
#define RHEA_IMAGE_OPENING_H

#include "image/internal.h"

struct rhea_image *image_new(const char *name, unsigned flags,
                             struct rhea_error *err);
/* Which file it is, if it is one. */
void image_identify(struct rhea_image *image);
int image_open_format(struct rhea_image *image, const char *format,
                      struct node_opening *opening, struct rhea_error *err);
/* The filename from the description. */
int image_rename(struct rhea_image *image, struct rhea_error *err);
/* NAME may be NULL, then OPTIONS say it all. TOP: the chain that the image is
 * to be added to, NULL: none. */
int image_open_one(struct rhea_image **out, const char *name,
                   const struct storage_options *options, unsigned flags,
                   const struct rhea_image *top, struct node_opening *opening,
                   struct rhea_error *err);

#endif
