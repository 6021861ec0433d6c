/* SPDX-License-Identifier: MIT */
#ifndef RHEA_BASE_CRC32C_H
#define RHEA_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli's polynomial, as in iSCSI). Begin with CRC 0; the result
 * of one piece is the CRC to go on with for the next. */
uint32_t crc32c(uint32_t crc, const void *buf, size_t len);
/* The same, on processors without an instruction for it. */
uint32_t crc32c_by_table(uint32_t crc, const void *buf, size_t len);

#endif
