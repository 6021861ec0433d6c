/* SPDX-License-Identifier: MIT */
/*
 * What the tests trace: a loop in which everything follows from the number of
 * the turn, n = 1, 2, 3, ...
 *
 *     turn(n)          called once a turn, with n
 *     add(a, b)        twice a turn: (n, 1) and (n, 2); returns a + b
 *     look(p, word)    once, point's x is 3 n and y is -n, word is one of four
 *     bare()           once: no frame, begins with a nop of five bytes
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

__attribute__((noinline)) void turn(unsigned long n)
{
    point.x = (int)(3 * n);
    point.y = -(long)n;
    add((long)n, ones);
    add((long)n, 2);
    look(&point, words[n % 4]);
    bare();
}

__attribute__((noinline)) void finished(void)
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
