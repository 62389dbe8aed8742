/* Words that Python code of several processes changes: whoever changes one names the value it found.

   Knows nothing of what a word means: see mpshm/_pool/words.py.

   Memory order: acquire and release, so what was written before a word was changed is seen by whoever
   finds it changed. */
#include "internal.h"

#include <stdatomic.h>

/* Change a word of shared memory from one value to another.  Returns whether it was the first. */
int
mpshm_word_change(uint64_t *word, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong_explicit((_Atomic uint64_t *) word, &from, to, memory_order_acq_rel,
                                                   memory_order_acquire);
}
