/* SPDX-License-Identifier: MIT */
/*
 * Storage drivers: the kinds of storage that a name or a list of options can
 * ask for ("file", "nbd", "blkdebug"), which QEMU calls protocols.
 *
 * A node is a storage as it was asked for: a driver and its options. A name
 * such as "nbd://host/disk" is turned into options by its driver's parse();
 * options as in "driver=nbd,server.type=inet,server.host=..." are those
 * already. Options that every node has (driver, read-only, cache.*, node-name,
 * force-share, discard, detect-zeroes) are the image room's, and no driver
 * sees them.
 *
 * A new driver is a file that ends with its constant table, and a line in the
 * list of driver.c.
 */
#ifndef RHEA_STORAGE_DRIVER_H
#define RHEA_STORAGE_DRIVER_H

#include <rhea/storage.h>

/* One option of a node, named relative to it: "server.host", with the indices
 * of lists as numbers: "inject-error.0.event". */
struct storage_option {
    char *name, *value; /* a value of NULL type is "" */
    enum storage_option_type {
        STORAGE_OPTION_STRING, /* also all that a command line says */
        STORAGE_OPTION_NUMBER, /* typed values, from JSON */
        STORAGE_OPTION_BOOL,   /* "true" or "false" */
        STORAGE_OPTION_NULL,
    } type;
    bool used; /* somebody has asked for it */
};

/* In the order given, each name at most once. Begin with all zero bytes. */
struct storage_options {
    struct storage_option *items;
    size_t n;
};

/* The most options a node and all below it may have, and the longest name. */
enum { STORAGE_OPTIONS_MAX = 4096, STORAGE_OPTION_NAME_MAX = 255 };

/* Add or replace. -E2BIG, -ENAMETOOLONG, -ENOMEM. */
int storage_options_set(struct storage_options *o, const char *name,
                        const char *value, enum storage_option_type type,
                        struct rhea_error *err);
/* The value, NULL where it is not given. It counts as used from then on: an
 * option that nobody has used once the node is open is an error. */
const char *storage_options_get(const struct storage_options *o,
                                const char *name);
/* As the above, but it goes on to count as it did. */
const char *storage_options_peek(const struct storage_options *o,
                                 const char *name);
bool storage_options_has_prefix(const struct storage_options *o,
                                const char *prefix);
/* Values of a type; *VALUE stays as it is where the option is not given. Sizes
 * may have a suffix (64k). */
int storage_options_bool(const struct storage_options *o, const char *name,
                         bool *value, struct rhea_error *err);
int storage_options_size(const struct storage_options *o, const char *name,
                         uint64_t *value, struct rhea_error *err);
/* All of FROM whose names begin with PREFIX, without it, are added to TO, and
 * count as used in FROM. */
int storage_options_extract(const struct storage_options *from,
                            const char *prefix, struct storage_options *to,
                            struct rhea_error *err);
int storage_options_copy(const struct storage_options *from,
                         struct storage_options *to, struct rhea_error *err);
void storage_options_remove(struct storage_options *o, const char *name);
/* The name of the first option that nobody has used; NULL: none. */
const char *storage_options_unused(const struct storage_options *o);
void storage_options_finish(struct storage_options *o);

/* How a driver is to open a node. */
struct storage_open {
    const struct storage_options *options;
    unsigned flags; /* RHEA_FILE_*; CREATE only to those that can */
    /*
     * Open the child node CHILD ("image", "children.0"), which then is the
     * caller's, to be closed by it: as the options "CHILD.*" say. NAME, where
     * it is not NULL, is the child's file name where no such options are given.
     * The child may be of any kind, a format too. -EINVAL where neither says
     * what it is.
     */
    int (*open_child)(void *opaque, const char *child, const char *name,
                      struct rhea_storage **out, struct rhea_error *err);
    void *opaque;
};

struct storage_driver {
    const char *name; /* as in "driver=NAME" */
    /* What a name that means this driver begins with, up to its first colon:
     * "nbd", "nbd+unix". Ends with NULL; NULL: there are no such names. */
    const char *const *protocols;
    /* NAME, which begins with one of those, as options. NULL: its "filename" is
     * the name. */
    int (*parse)(const char *name, struct storage_options *options,
                 struct rhea_error *err);
    int (*open)(struct rhea_storage **out, const struct storage_open *how,
                struct rhea_error *err);
    /* A name from which parse() would make the same options, as qemu-img's
     * `info` shows it; malloc'd. CHILD is such a name of the only child, NULL
     * where that has none. NULL: there is no such name, so that `info` shows
     * json:{...}. */
    char *(*plain_name)(const struct storage_options *options,
                        const char *child);
    /* The options that decide which bytes there are: these are kept in a
     * json:{...} name. One that ends with "." stands for all that begin with
     * it. "driver" and "filename" always are. Ends with NULL; NULL: no more. */
    const char *const *strong_options;
    /* Names relative to an image on it cannot be made out. */
    bool no_folder;
    /* The bytes are those of its child "image" (blkdebug): names relative to an
     * image on it are relative to the child's folder. Its ops have inner(). */
    bool is_filter;
    /* New ones can be made: open() takes RHEA_FILE_CREATE. */
    bool can_create;
    /* What can be said of a new one besides what the format takes; ends with
     * name NULL. NULL: nothing. */
    const struct rhea_option_help *create_options;
    /* Heed those options for S, which is new and empty. S NULL: only look
     * whether their values make sense. */
    int (*prepare_new)(struct rhea_storage *s,
                       const struct storage_options *options,
                       struct rhea_error *err);
};

/* All drivers; ends with NULL. */
extern const struct storage_driver *const storage_drivers[];
extern const struct storage_driver storage_driver_file,
    storage_driver_host_device, storage_driver_blkdebug, storage_driver_nbd,
    storage_driver_http, storage_driver_https, storage_driver_ftp,
    storage_driver_ftps, storage_driver_null_co, storage_driver_null_aio,
    storage_driver_quorum;

const struct storage_driver *storage_driver_find(const char *name);
/* By "PROTOCOL:..."; NULL when there is none, or no such beginning. */
const struct storage_driver *storage_driver_of_name(const char *name);
/* The creation options of whatever FILENAME makes; NULL: none. */
const struct rhea_option_help *storage_create_options(const char *filename);
/* The length of "PROTOCOL:" in front, 0 where there is none: no colon stands
 * before the first slash. */
size_t storage_name_protocol(const char *name);

#endif
