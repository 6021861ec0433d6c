/* SPDX-License-Identifier: MIT */
#include "base/entropy.h"

#include <errno.h>
#include <sys/random.h>

int entropy_get(void *buf, size_t len, struct rhea_error *err)
{
    uint8_t *at = buf;
    while (len) {
        ssize_t n = getrandom(at, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rhea_error_errno(err, errno, "no random bytes can be had");
        at += n;
        len -= (size_t)n;
    }
    return 0;
}
