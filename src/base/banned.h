/* SPDX-License-Identifier: MIT */
/* Functions that are easy to misuse are compile errors here. Included by the
 * build in front of every C file, after the system's own declarations. */
#ifndef RHEA_BANNED_H
#define RHEA_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RHEA_BANNED(name) sorry_##name##_is_a_banned_function

#undef strcpy
#define strcpy(a, b) RHEA_BANNED(strcpy)
#undef strcat
#define strcat(a, b) RHEA_BANNED(strcat)
#undef strncpy
#define strncpy(a, b, n) RHEA_BANNED(strncpy)
#undef sprintf
#define sprintf(...) RHEA_BANNED(sprintf)
#undef vsprintf
#define vsprintf(...) RHEA_BANNED(vsprintf)
#undef strtok
#define strtok(a, b) RHEA_BANNED(strtok)
#undef atoi
#define atoi(a) RHEA_BANNED(atoi)
#undef atol
#define atol(a) RHEA_BANNED(atol)
#undef atoll
#define atoll(a) RHEA_BANNED(atoll)
#undef alloca
#define alloca(a) RHEA_BANNED(alloca)

#endif
