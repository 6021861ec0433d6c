/* SPDX-License-Identifier: MIT */
#include "base/gcrypt.h"

#include <errno.h>
#include <pthread.h>

static bool gcrypt_ok;

static void gcrypt_start(void)
{
    gcrypt_ok = gcry_check_version(GCRYPT_VERSION) != NULL;
    /* A program around this library may have done so. */
    if (!gcrypt_ok || gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P))
        return;
    gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

int gcrypt_begin(struct rhea_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, gcrypt_start);
    return gcrypt_ok ? 0
                     : rhea_error_set(err, ENOTSUP,
                                      "libgcrypt is older than %s, which this "
                                      "program was built for",
                                      GCRYPT_VERSION);
}

int gcrypt_error(struct rhea_error *err, const char *what, gcry_error_t code)
{
    return rhea_error_set(err, EIO, "%s: %s", what, gcry_strerror(code));
}

void gcrypt_wipe(void *p, size_t len)
{
    if (p && len)
        explicit_bzero(p, len);
}
