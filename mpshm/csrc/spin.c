/* Spinning: looking again for a while before blocking, where that has been paying.

   A wake-up across CPUs costs ten times what a message does, so a receiver looks again for a bounded
   time and yields the CPU between looks.  Each success earns one try, and each failure costs SPIN_COST,
   so three tries in four must succeed (measured: a pool whose tasks come in bursts had one success in
   two, a tenth more CPU time, and no gain).  With no credit left, one wait in `probe` is a try, to find
   out whether the peer has become quick.  A new end has no credit, but its SPIN_FIRST-th wait is a try:
   an end that is closed after a few messages (torch makes one for each tensor) would never earn what it
   spent.

   On a busy machine a yield gives the CPU away for milliseconds, and a blocked reader would have been
   woken at once.  So a try that ends late is the dearest failure: it takes all credit, and makes tries
   rarer each time.

   Does not know what is looked at: no descriptor, no ring.  One thread at a time; no shared word, so no
   memory order.

   Invariants: W2 (invariants.h). */
#include "internal.h"

#define SPIN_BUSY 16
#define SPIN_FIRST 6
#define SPIN_COST 3
#define SPIN_MOST 16
#define SPIN_PROBE 64
#define SPIN_RAREST (SPIN_PROBE << 12)

void
spin_init(mpshm_spin *spin, uint32_t spin_us)
{
    *spin = (mpshm_spin) {.ns = (int64_t) spin_us * 1000, .waits = SPIN_PROBE - SPIN_FIRST,
                          .probe = SPIN_PROBE};
}

/* Whether the next look may be a call that blocks.  That call is cheaper (measured for 4 bytes of a
   pipe: 400 ns for 520).  True in a flood, where each look finds something, but for one look in
   SPIN_BUSY. */
bool
spin_may_block(mpshm_spin *spin)
{
    return spin->busy >= SPIN_BUSY && ++spin->busy % SPIN_BUSY != 0;
}

/* Begin a wait: until when to look again, or 0 if the caller is to block.  worth: the caller knows that
   looking will pay.  A try in vain returns to the caller's caller, which looks for signals; the next
   wait then blocks. */
int64_t
spin_begin(mpshm_spin *spin, bool worth)
{
    INVARIANT(W2, spin->credit <= SPIN_MOST && spin->probe <= SPIN_RAREST);
    spin->busy = 0; /* nothing was there */
    if (spin->spun) {
        spin->spun = 0;
        return 0;
    }
    worth = worth || spin->credit > 0 || ++spin->waits >= spin->probe;

    return spin->ns > 0 && worth ? now_ns() + spin->ns : 0;
}

/* Whether to look once more. */
bool
spin_goes_on(int64_t until)
{
    return until != 0 && now_ns() < until;
}

/* End a wait that spin_begin let last `until`.  paid: it found something. */
void
spin_end(mpshm_spin *spin, int64_t until, bool paid)
{
    if (until == 0) {
        return;
    }
    bool late = now_ns() > until + spin->ns;

    spin->waits = 0;
    spin->spun = !paid;
    if (late) {
        spin->credit = 0;
        spin->probe = spin->probe < SPIN_RAREST ? 4 * spin->probe : SPIN_RAREST;
    } else if (paid) {
        spin->credit += spin->credit < SPIN_MOST;
        spin->probe = SPIN_PROBE;
    } else {
        spin->credit -= spin->credit < SPIN_COST ? spin->credit : SPIN_COST;
    }
    INVARIANT(W2, spin->credit <= SPIN_MOST && spin->probe <= SPIN_RAREST);
}
