/* SPDX-License-Identifier: MIT */
#include "format/vmdk/sparse.h"

const struct blocks_ops vmdk_sparse_ops = {
    .map = vmdk_sparse_map,
};
