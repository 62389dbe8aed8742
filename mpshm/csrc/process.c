/* What there is once in a process: the lock, the fork generation, the list of arenas; and the advice
   that keeps the user's arrays in the heap.

   Knows no arena's inside and no shared memory.

   Invariants: A3, A4 (invariants.h).  mpshm_process.lock orders all; no shared word is here. */
#include "internal.h"

#include <stdlib.h>

struct process mpshm_process = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

/* Whether the lock is held: by this thread, if the caller is right; by another, and a mistake is not
   seen. */
bool
process_is_locked(void)
{
    if (pthread_mutex_trylock(&mpshm_process.lock) == 0) {
        pthread_mutex_unlock(&mpshm_process.lock);
        return false;
    }
    return true;
}

/* glibc maps blocks above a threshold and unmaps them when they are freed, and raises the threshold
   to the largest block freed so far.  Stock allocates a block for each message, so beside it the
   user's own arrays of that size soon stay in the heap; we allocate none, and they would fault all
   their pages in anew each time (measured: a process_map of 240 KB arrays, 1.1 million faults for
   stock's 0.5, a seventh more CPU).  So free one such block when a message is the largest so far.
   The block is never touched.  Its size is twice the message's, for a temporary may be larger than
   what is sent. */
void
heap_keep(uint64_t size)
{
#ifdef __GLIBC__
    static _Atomic uint64_t largest = UINT64_C(64) << 10;
    static const uint64_t most = (UINT64_C(32) << 20) - 8192; /* glibc learns from none larger */

    if (size > atomic_load_explicit(&largest, memory_order_relaxed)) {
        atomic_store_explicit(&largest, size, memory_order_relaxed);
        void *volatile block = malloc(2 * size < most ? 2 * size : most);

        free(block);
    }
#else
    (void) size;
#endif
}
