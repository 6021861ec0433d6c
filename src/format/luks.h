/* SPDX-License-Identifier: MIT */
/* What the formats that hold a LUKS header share. */
#ifndef RHEA_FORMAT_LUKS_H
#define RHEA_FORMAT_LUKS_H

#include <rhea/format.h>

#include "crypto/luks.h"

/* What `info` tells of a header, into the level that is open, in qemu-img's
 * order. FORMAT: name the encryption's format too, as inside of qcow2. */
void luks_facts(const struct luks *l, bool format, struct rhea_facts *facts);

#endif
