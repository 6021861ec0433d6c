/* SPDX-License-Identifier: MIT */
/*
 * Secrets: passphrases that options refer to by an id, so that none stands in
 * an option itself. One registry for the process; safe from many threads. What
 * it gives up is wiped.
 */
#ifndef RHEA_SECRET_H
#define RHEA_SECRET_H

#include <rhea/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Add a secret, as `--object secret,id=...` describes it:
 *   qom-type  "secret"; may be left out
 *   id        a letter, then letters, digits and any of - . _
 *   data      the secret itself, or
 *   file      the file that holds it, all of it, line ends too
 *   format    what stands there: "raw" (the default) or "base64"
 *   keyid     id of another secret, a key of 32 bytes, by which this one is
 *             encrypted with AES-256 in CBC mode; with
 *   iv        its initialisation vector, 16 bytes in base64
 * An id can be taken only once.
 */
RHEA_API int rhea_secret_add(const struct rhea_option *options, size_t n,
                             struct rhea_error *err);
/* Take it away again; an unknown id is fine. */
RHEA_API void rhea_secret_remove(const char *id);

/* A copy of a secret, which the caller frees with rhea_secret_free. A zero byte
 * that is not counted follows. -ENOENT: there is no such id. */
RHEA_API int rhea_secret_get(const char *id, uint8_t **bytes, size_t *len,
                             struct rhea_error *err);
/* Wipe and free; NULL is fine. */
RHEA_API void rhea_secret_free(uint8_t *bytes, size_t len);

#ifdef __cplusplus
}
#endif

#endif
