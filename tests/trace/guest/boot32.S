/* SPDX-License-Identifier: MIT */
/* A multiboot kernel that stays in 32-bit mode and calls main. */
    .section .boot, "ax"
    .code32
    .long 0x1badb002, 0x00010003, -(0x1badb002 + 0x00010003)
    .long image_start, image_start, image_end, bss_end, _start

    .globl _start
_start:
    cli
    movl $stack_end, %esp
    xorl %ebp, %ebp
    call main
1:  hlt
    jmp 1b

    .bss
    .skip 16384
stack_end:
