/* SPDX-License-Identifier: MIT */
/* libgcrypt wants to be told when it may be used. */
#ifndef RHEA_BASE_GCRYPT_H
#define RHEA_BASE_GCRYPT_H

#include <gcrypt.h>
#include <rhea/base.h>

/* Before the first call of libgcrypt, on any thread, as often as one likes. */
int gcrypt_begin(struct rhea_error *err);
/* Report an error of libgcrypt's; returns -EIO. */
int gcrypt_error(struct rhea_error *err, const char *what, gcry_error_t code);

/* Overwrite memory that is given up, in a way no compiler leaves out. */
void gcrypt_wipe(void *p, size_t len);

#endif
