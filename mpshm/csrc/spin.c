/* Looking again before blocking.

   A blocked wake-up across CPUs costs ten times what a message does, so look again for a while:
   bounded, with the CPU yielded, and only where it has been paying.  Each success earns one try, each
   failure costs SPIN_COST, so that three in four must succeed; with none left, one wait in `probe`
   tries, to find out whether the peer has become quick (a pool whose tasks come in bursts had one
   success in two, a tenth more CPU time, and no gain).  None to begin with, but the SPIN_FIRST-th wait
   is a try: an end that is closed after a few messages (torch makes one for each tensor) would never
   earn what it spent.

   On a busy machine a yield gives the CPU away for milliseconds, and a blocked reader would have been
   woken at once: what comes too late is the dearest failure, and makes the tries ever rarer. */
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

/* Whether a call that may block will do for the next look, as it is cheaper than one that may not
   (measured for 4 bytes of a pipe: 400 ns for 520): in a flood, where something is there at each look,
   for all but one in SPIN_BUSY. */
bool
spin_may_block(mpshm_spin *spin)
{
    return spin->busy >= SPIN_BUSY && ++spin->busy % SPIN_BUSY != 0;
}

/* Until when to look again; 0: not at all.  worth: the caller knows that it will pay.  Who did so in
   vain gives its caller time to see signals, and when that comes again, it is to block. */
int64_t
spin_begin(mpshm_spin *spin, bool worth)
{
    spin->busy = 0; /* nothing was there */
    if (spin->spun) {
        spin->spun = 0;
        return 0;
    }
    worth = worth || spin->credit > 0 || ++spin->waits >= spin->probe;

    return spin->ns > 0 && worth ? now_ns() + spin->ns : 0;
}

bool
spin_goes_on(int64_t until)
{
    return until != 0 && now_ns() < until;
}

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
}
