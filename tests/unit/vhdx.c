/* SPDX-License-Identifier: MIT */
#include "vhdx_lib.h"
int main(int argc, char **argv)
{
    test_init(argc, argv);
    return test_finish();
}
