/* SPDX-License-Identifier: MIT */
/* A multiboot kernel that goes to 64-bit mode and calls main: the first 4 GiB
 * mapped one to one in 2 MiB pages, interrupts off. */
    .section .boot, "ax"
    .code32
    .long 0x1badb002, 0x00010003, -(0x1badb002 + 0x00010003)
    /* Where it is, for it is not loaded as ELF. */
    .long image_start, image_start, image_end, bss_end, _start

    .globl _start
_start:
    cli
    movl $stack_end, %esp
    movl $pdpt + 3, pml4
    movl $pdpt + 3, pml4 + 8    /* and once more, 2^39 higher */
    movl $pd + 3, %eax
    movl $pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x83, %eax
    movl $pd, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            /* PAE, and SSE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax            /* long mode */
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    andl $~4, %eax
    movl %eax, %cr0
    lgdt gdt_register
    ljmp $8, $long_mode

    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    /* Not under KVM: where it runs a guest's kernel by interpreting it (PVM),
     * it knows nothing of the x87. EBX is then "KVMK". */
    movl $0x40000000, %eax
    cpuid
    cmpl $0x4b4d564b, %ebx
    je 5f
    /* For tests to find: st0 is 1, st1 pi, xmm3 a number. */
    fninit
    fldpi
    fld1
    movabsq $0x1122334455667788, %rax
    movq %rax, %xmm3
    pushq $0x37
    popfq
5:
    xorl %ebp, %ebp
    call main
3:  hlt
    jmp 3b

    .balign 8
gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdt_register:
    .word . - gdt - 1
    .long gdt

    .bss
    .balign 4096
pml4:   .skip 4096
pdpt:   .skip 4096
pd:     .skip 4 * 4096
    .skip 16384
stack_end:
