/* SPDX-License-Identifier: MIT */
/* For `make lint` alone: the analyzer sees one file at a time, and so does not
 * know that these never return 0, nor that errno is positive after an error. */
#include <rhea/base.h>

#define rhea_error_set(err, code, ...) (-(code))
#define rhea_error_errno(err, code, ...) ((void)(code), -1)
