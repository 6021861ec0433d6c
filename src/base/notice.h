/* SPDX-License-Identifier: MIT */
#ifndef RHEA_BASE_NOTICE_H
#define RHEA_BASE_NOTICE_H

#include <stdbool.h>

/* Tell TEXT to whoever rhea_set_notice has named. */
void notice(bool is_error, const char *text);

#endif
