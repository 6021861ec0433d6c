/* SPDX-License-Identifier: MIT */
#include "storage/driver.h"

#include <string.h>

const struct storage_driver *const storage_drivers[] = {
    &storage_driver_file,     &storage_driver_host_device,
    &storage_driver_nbd,      &storage_driver_http,
    &storage_driver_https,    &storage_driver_ftp,
    &storage_driver_ftps,     &storage_driver_null_co,
    &storage_driver_null_aio, &storage_driver_blkdebug,
    &storage_driver_quorum,   NULL,
};

const struct storage_driver *storage_driver_find(const char *name)
{
    for (size_t i = 0; storage_drivers[i]; i++)
        if (strcmp(storage_drivers[i]->name, name) == 0)
            return storage_drivers[i];
    return NULL;
}

size_t storage_name_protocol(const char *name)
{
    size_t len = strcspn(name, ":/");
    return name[len] == ':' ? len + 1 : 0;
}

static bool driver_has_protocol(const struct storage_driver *driver,
                                const char *protocol, size_t len)
{
    for (size_t i = 0; driver->protocols && driver->protocols[i]; i++)
        if (strlen(driver->protocols[i]) == len &&
            strncmp(driver->protocols[i], protocol, len) == 0)
            return true;
    return false;
}

const struct storage_driver *storage_driver_of_name(const char *name)
{
    size_t len = storage_name_protocol(name);
    for (size_t i = 0; len && storage_drivers[i]; i++)
        if (driver_has_protocol(storage_drivers[i], name, len - 1))
            return storage_drivers[i];
    return NULL;
}

const struct rhea_option_help *storage_create_options(const char *filename)
{
    const struct storage_driver *driver = storage_name_protocol(filename)
                                              ? storage_driver_of_name(filename)
                                              : &storage_driver_file;
    return driver ? driver->create_options : NULL;
}
