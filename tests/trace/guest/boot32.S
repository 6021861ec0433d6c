/* SPDX-License-Identifier: MIT */
/* A multiboot kernel that stays in 32-bit mode and calls main: 4 GiB mapped one
 * to one in 4 MiB pages. */
    .section .boot, "ax"
    .code32
    .long 0x1badb002, 0x00010003, -(0x1badb002 + 0x00010003)
    .long image_start, image_start, image_end, bss_end, _start

    .globl _start
_start:
    cli
    movl $stack_end, %esp
    movl $0x83, %eax
    movl $directory, %edi
    movl $1024, %ecx
1:  movl %eax, (%edi)
    addl $4, %edi
    addl $0x400000, %eax
    loop 1b
    movl $directory, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x10, %eax             /* large pages */
    movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    xorl %ebp, %ebp
    call main
2:  hlt
    jmp 2b

    .bss
    .balign 4096
directory:
    .skip 4096
    .skip 16384
stack_end:
