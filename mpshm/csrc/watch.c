/* Watches: when one that waits wakes by itself.

   Nobody wakes a sleeper when the process that was to do it is killed, or was the last at the other end.  So
   each wakes by itself at the end of its watch: the first of the next periods that was nobody's.  From WATCHES
   sleepers on several have the last one.  One wakes in each period, however many sleep and whatever they wait
   for; when some are killed, another wakes some periods later.

   Knows one word of the arena's header.  Does not know what is waited for, nor what the one who wakes does.

   Invariants: W3 (invariants.h).

   Memory order: none.  The word is a hint and orders nothing. */
#include "internal.h"

static uint32_t
period_now(void)
{
    return (uint32_t) (now_ns() / 1000000 / WATCH_MS);
}

/* How long one may sleep: until its watch is over.  *mine: the period that it has, or had. */
int
watch_ms(mpshm_arena *arena, uint32_t *mine)
{
    _Atomic uint64_t *watches = &arena->header->watches;
    uint32_t now = period_now();

    if (*mine - now - 1 >= WATCHES) { /* its last one is over */
        uint64_t seen = atomic_load(watches);
        uint32_t passed = now - (uint32_t) (seen >> 32);
        uint32_t others = passed < WATCHES ? (uint32_t) seen >> passed : 0;
        uint32_t i = ~others != 0 ? (uint32_t) __builtin_ctz(~others) : WATCHES - 1;

        /* If another is quicker, both may have the same. */
        atomic_compare_exchange_strong(watches, &seen,
                                       (uint64_t) now << 32 | others | UINT32_C(1) << i);
        *mine = now + 1 + i;
    }
    INVARIANT(W3, *mine - now - 1 < WATCHES);
    return (int) (*mine - now) * WATCH_MS;
}

bool
watch_is_over(uint32_t mine)
{
    return mine - period_now() - 1 >= WATCHES;
}

/* The same for the watch that those threads of this process have in common that do not receive. */
int
watch_common_ms(mpshm_arena *arena)
{
    uint32_t mine = atomic_load_explicit(&arena->watch, memory_order_relaxed);
    int ms = watch_ms(arena, &mine);

    atomic_store_explicit(&arena->watch, mine, memory_order_relaxed);
    return ms;
}

bool
watch_common_is_over(mpshm_arena *arena)
{
    return watch_is_over(atomic_load_explicit(&arena->watch, memory_order_relaxed));
}

int
watch_shorter(int timeout_ms, int most_ms)
{
    return timeout_ms < 0 || timeout_ms > most_ms ? most_ms : timeout_ms;
}
