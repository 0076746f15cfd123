/* Keeps a core busy: run beside a server on its core, it makes that core the bottleneck.
 *
 * Without it a fast server has slack, sleeps more often, takes smaller batches, and its CPU time per
 * request rises with its own speed; with it every server always has work waiting. */
int main(void)
{
    for (;;)
        __asm__ volatile("");
}
