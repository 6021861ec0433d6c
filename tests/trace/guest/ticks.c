/* SPDX-License-Identifier: MIT */
/*
 * A guest with interrupts: a timer ticks all the time (`ticks`), and in each
 * turn two instructions fault and are done again once their handlers have
 * changed a register. `turns`, `last` and `finished` are as in guest.c.
 *
 *     counts   adds 1 to `counted`
 *     divides  divides by zero; the handler makes it one (no error code)
 *     reads    from where no page is; the handler says where one is (with one)
 */
enum { TIMER = 32, RATE = 1193182 / 2000 };

struct gate {
    unsigned short low, selector, flags, middle;
    unsigned int high, zero;
};

static struct gate gates[256] __attribute__((aligned(16)));
volatile unsigned long turns, last, ticks, page, counted = 1;

__attribute__((naked)) static void on_timer(void)
{
    __asm__ volatile("pushq %rax\n"
                     "incq ticks\n"
                     "movb $0x20, %al\n" /* the controller may go on */
                     "outb %al, $0x20\n"
                     "popq %rax\n"
                     "iretq\n");
}

__attribute__((naked)) static void on_division(void)
{
    __asm__ volatile("movl $1, %ecx\n"
                     "iretq\n");
}

__attribute__((naked)) static void on_page_fault(void)
{
    __asm__ volatile("addq $8, %rsp\n"
                     "movl $page, %edi\n"
                     "iretq\n");
}

static void set_gate(unsigned n, void (*handler)(void))
{
    unsigned long address = (unsigned long)handler;

    gates[n] = (struct gate){(unsigned short)address,
                             8,
                             0x8e00, /* present, an interrupt's */
                             (unsigned short)(address >> 16),
                             (unsigned int)(address >> 32),
                             0};
}

static void out(unsigned short port, unsigned char value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void start_timer(void)
{
    struct {
        unsigned short limit;
        unsigned long base;
    } __attribute__((packed)) table = {sizeof(gates) - 1, (unsigned long)gates};

    set_gate(0, on_division);
    set_gate(14, on_page_fault);
    set_gate(TIMER, on_timer);
    __asm__ volatile("lidt %0" : : "m"(table));
    /* The interrupt controllers: vectors from TIMER on, the timer's alone. */
    out(0x20, 0x11);
    out(0xa0, 0x11);
    out(0x21, TIMER);
    out(0xa1, TIMER + 8);
    out(0x21, 4);
    out(0xa1, 2);
    out(0x21, 1);
    out(0xa1, 1);
    out(0x21, 0xfe);
    out(0xa1, 0xff);
    /* The timer, in its mode 2. */
    out(0x43, 0x34);
    out(0x40, RATE & 255);
    out(0x40, RATE >> 8);
    __asm__ volatile("sti");
}

__attribute__((noinline)) void turn(void)
{
    __asm__ volatile("counts: addq $1, counted\n"
                     "xorl %%edx, %%edx\n"
                     "movl $7, %%eax\n"
                     "xorl %%ecx, %%ecx\n"
                     "divides: divl %%ecx\n"
                     "movq $0x200000000, %%rdi\n"
                     "reads: movq (%%rdi), %%rax\n"
                     ".globl counts, divides, reads\n"
                     :
                     :
                     : "rax", "rcx", "rdx", "rdi", "memory", "cc");
}

__attribute__((noinline)) void finished(void)
{
    __asm__ volatile("");
}

int main(void)
{
    start_timer();
    for (;;) {
        while (last && turns >= last)
            finished();
        turns++;
        turn();
    }
}
