/* SPDX-License-Identifier: MIT */
/*
 * Nodes: what an image is put together from, as names and options ask for it.
 * An image is a node of a format; its children are "file", which has its
 * bytes, perhaps "data-file", and "backing". A child is a storage of a driver
 * or another image.
 */
#ifndef RHEA_IMAGE_NODE_H
#define RHEA_IMAGE_NODE_H

#include <jansson.h>
#include <rhea/image.h>

#include "storage/driver.h"

enum {
    NODE_DEPTH_MAX = 32, /* of children below each other, of JSON too */
    NODE_NAME_MAX = 256 << 10,
};
/* Besides RHEA_IMAGE_*: the storage is to be made where its driver can. */
#define NODE_CREATE (1u << 31)

/* How a node is called; begin with all zero bytes. */
struct node_description {
    char *plain; /* a name that leads to the same; NULL: only json:{...} does */
    json_t *full; /* all that it takes to open it again */
    char *folder; /* the name in whose folder relative names are; NULL: none */
    bool is_protocol; /* a storage, so that a format over it has its name */
};
void node_description_finish(struct node_description *d);
int node_description_copy(struct node_description *d,
                          const struct node_description *from,
                          struct rhea_error *err);
/* The name that `info` shows: the plain one or json:{...}; malloc'd. */
char *node_description_name(const struct node_description *d);
/*
 * Describe a node of DRIVER as it was asked for, by those of OPTIONS that
 * decide which bytes there are: STRONG, as in struct storage_driver. *OTHERS:
 * some besides the driver and the file name were given.
 */
int node_describe(struct node_description *d, const char *driver,
                  const struct storage_options *options,
                  const char *const *strong, bool *others,
                  struct rhea_error *err);
/* A child of D; CHILD NULL: none, though one might be thought. "children.0" and
 * so on are a list, in their order. */
int node_describe_child(struct node_description *d, const char *name,
                        const struct node_description *child,
                        struct rhea_error *err);

/* Whether NAME is json:{...}. */
bool node_name_is_json(const char *name);
/* What json:{...} says is added to OPTIONS, flat; what is there stays. */
int node_parse_json(const char *name, struct storage_options *options,
                    struct rhea_error *err);

/* One opening of an image, with all that hangs on it. */
struct node_opening {
    unsigned depth; /* of the child that is opened now */
    unsigned nodes; /* opened so far */
};

/* Around the opening of a node: -ELOOP where there are too many. */
int node_enter(struct node_opening *opening, struct rhea_error *err);
void node_leave(struct node_opening *opening);

/* What options that all nodes have say; the first value is what is inherited
 * from the node above. */
struct node_common {
    unsigned flags; /* RHEA_IMAGE_* */
    enum { NODE_ZEROES_OFF, NODE_ZEROES_ON, NODE_ZEROES_UNMAP } detect_zeroes;
};
int node_take_common(struct storage_options *options,
                     struct node_common *common, struct rhea_error *err);

/*
 * Open the node that NAME (NULL: none) and OPTIONS say: a storage, or an image
 * whose bytes are handed on (nested.c). Whatever FLAGS (RHEA_IMAGE_*) say of
 * locks is heeded by images only. OPTIONS are all used, or it is an error.
 */
int node_open_storage(struct rhea_storage **out, struct node_description *d,
                      const char *name, struct storage_options *options,
                      unsigned flags, struct node_opening *opening,
                      struct rhea_error *err);
/* As rhea_image_open, as part of an OPENING. */
int node_open_image(struct rhea_image **out, const char *name,
                    struct storage_options *options, unsigned flags,
                    struct node_opening *opening, struct rhea_error *err);
/* The guest bytes of IMAGE, which it then owns, also on failure. */
int nested_open(struct rhea_storage **out, struct rhea_image *image,
                struct rhea_error *err);

/* The image whose guest bytes S, or what S stands in front of, is, unless it is
 * raw; NULL: none. */
struct rhea_image *nested_image(struct rhea_storage *s);

/* The same where IMAGE is raw, without a filter. */
int slice_open(struct rhea_storage **out, struct rhea_image *image,
               struct rhea_error *err);

/* Whether OPTIONS of a node say where it is, so that a name besides them does
 * not. */
bool node_options_name_file(const struct storage_options *options);
/* Add what is at FROM, without the "CHILD." in front, to *OPTIONS. A value
 * "CHILD" itself would be the name of a node that is open already: an error. */
int node_take_child(const struct storage_options *from, const char *child,
                    struct storage_options *options, struct rhea_error *err);

#endif
