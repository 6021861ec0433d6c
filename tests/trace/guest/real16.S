/* SPDX-License-Identifier: MIT */
/*
 * A boot sector that stays in real mode: a loop that calls add16 with %ax = n
 * and %bx = 2 n, n = 1, 2, 3, ..., which is `turns`, up to `last`; then
 * `finished`, in a loop. Segments begin at 0x7c00, so that program counters are
 * not addresses.
 */
    .text
    .code16
    .globl _start
_start:
    ljmp $0x7c0, $(begin - _start)
begin:
    cli
    movw %cs, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x1000, %sp
again:
    movw turns - _start, %ax
    cmpw last - _start, %ax
    jne more
finished:
    nop
    jmp again
more:
    incw %ax
    movw %ax, turns - _start
    movw %ax, %bx
    addw %bx, %bx
    movl $0x12345678, %ecx
    call add16
    jmp again
add16:
    addw %ax, %bx
    ret

    .globl turns, last, finished, add16
turns:  .word 0
last:   .word 0
    . = 510
    .word 0xaa55
