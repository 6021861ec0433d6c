/* SPDX-License-Identifier: MIT */
/*
 * What the tests trace: a loop in which everything follows from the number of
 * the turn, n = 1, 2, 3, ...
 *
 *     turn(n)          called once a turn, with n
 *     add(a, b)        twice a turn: (n, 1) and (n, 2); returns a + b
 *     look(p, word)    once, point's x is 3 n and y is -n, word is one of four
 *     bare()           once: no frame, begins with a nop of five bytes
 *     exact()          once: one block of instructions on registers alone
 *     again()          twice, on 64 bits: at its own address and 2^39 higher
 *
 * `turns` is n. The guest goes on for ever, or up to `last`, if that is not 0,
 * and then `finished` is called in a loop.
 */
struct point {
    int x;
    long y;
    char name[8];
};

volatile unsigned long turns, last, sum;
struct point point = {0, 0, "origin"};
char title_text[] = "writable";
char *volatile title = title_text;
const char *const words[4] = {"zero", "one", "two", "three"};
static volatile int ones = 1;

__attribute__((noinline)) long add(long a, long b)
{
    long c = a + b;

    sum += (unsigned long)c;
    return c;
}

__attribute__((noinline)) int look(struct point *p, const char *word)
{
    int local = p->x + word[0];

    p->name[7] = (char)(local & 1);
    return local;
}

/* As kernels' functions begin. */
__attribute__((naked, noinline)) void bare(void)
{
    __asm__ volatile("bare_start:\n"
                     ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
                     "bare_middle:\n"
                     "nop\n"
                     "incl ones_seen\n"
                     "bare_end:\n"
                     "ret\n"
                     ".data\n.globl ones_seen\nones_seen: .long 0\n.text\n");
}

/* At exact_middle, eax is n + 7 and ecx three times that; then the flags are
 * those of eax - 100, and edx is as it comes. The repeated instruction stores
 * five bytes, and then, somewhere else, none. */
__attribute__((naked, noinline)) void exact(void)
{
    /* edi is to be kept where there are 32 bits only. */
    __asm__ volatile("movl %edi, exact_saved\n"
                     "movl turns, %eax\n"
                     "addl $7, %eax\n"
                     "leal (%eax,%eax,2), %ecx\n"
                     "exact_middle:\n"
                     "movl $0x1234, %edx\n"
                     "cmpl $100, %eax\n"
                     "exact_flags:\n"
                     "movl %ecx, %edx\n"
                     "movl $5, %ecx\n"
                     "movl $exact_bytes, %edi\n"
                     "cld\n"
                     "exact_repeated:\n"
                     "rep stosb\n"
                     "exact_end:\n"
                     "cmpl $exact_bytes + 5, %edi\n"
                     "movl $exact_bytes + 100, %edi\n"
                     "je exact_repeated\n"
                     "movl exact_saved, %edi\n"
                     "ret\n"
                     ".data\n.globl exact_bytes\n"
                     "exact_bytes: .skip 8\n"
                     "exact_saved: .long 0\n.text\n");
}

__attribute__((noinline)) void again(void)
{
    __asm__ volatile("");
}

/* The first 512 GiB are there twice, see boot64.S. */
static void twice(void)
{
    again();
#ifdef __x86_64__
    ((void (*)(void))((unsigned long)again + (1ul << 39)))();
#endif
}

__attribute__((noinline)) void turn(unsigned long n)
{
    point.x = (int)(3 * n);
    point.y = -(long)n;
    add((long)n, ones);
    add((long)n, 2);
    look(&point, words[n % 4]);
    bare();
    exact();
    twice();
}

/* In a page of its own: with a breakpoint on a page, QEMU translates each
 * instruction there by itself. */
__attribute__((noinline, section(".finished"))) void finished(void)
{
    __asm__ volatile("");
}

int main(void)
{
    for (;;) {
        while (last && turns >= last)
            finished();
        turns++;
        turn(turns);
    }
}
