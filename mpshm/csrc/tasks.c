/* Tasks: how many messages of a joinable queue are not done, without a count that two processes change.

     unfinished = pending of the living + positions claimed - skipped - done

   read in the order done, skipped, pending, positions, each of which only grows but pending, which goes
   down after its message has a position.  So a sum of 0 was true at a moment of the reading.  Whoever
   changes done, skipped or pending sums up afterwards, and wakes who joins at 0.

   The head counts skips in 28 bits.  `done` counts their half turns, which whoever skips sees to, so the
   whole is known while no process is stopped through 100 million skips between two loads.

   Knows the head, the tail, `done` and the marks.  Does not know what lies in a slot.

   Invariants: Q2 (invariants.h).

   Memory order: all loads and stores here are sequentially consistent.  A joiner stores `joiners` before
   it sums up; whoever changes a word loads `joiners` afterwards: one of them sees the other. */
#include "internal.h"

#include <errno.h>
#include <limits.h>

#include "ring.h"

#define HALF_TURN (UINT64_C(1) << (63 - POSITION_BITS))
#define DONE_MASK POSITION_MASK
#define DONE_TURNS(word) ((word) >> POSITION_BITS)

/* Messages that this process has accepted and that have no position yet: so many more, or fewer. */
void
tasks_pend(mpshm_arena *arena, int64_t messages)
{
    _Atomic uint64_t *mark = arena_mark(arena);

    INVARIANT(A4, arena_is_locked(arena));
    if (mark == NULL || messages == 0) {
        return;
    }
    uint64_t word = atomic_load_explicit(mark, memory_order_relaxed);
    uint32_t incarnation = NAME_INCARNATION(arena->me);
    int64_t was = MARK_INCARNATION(word) == incarnation ? (int64_t) MARK_VALUE(word) : 0;

    INVARIANT(Q2, was + messages >= 0);
    atomic_store(mark, MARK(incarnation, (uint64_t) (was + messages > 0 ? was + messages : 0)));
    if (messages < 0) {
        tasks_settle(arena);
    }
}

/* Such messages of all processes that live. */
int64_t
tasks_pending(mpshm_arena *arena)
{
    uint32_t high = roster_high(arena->roster);
    int64_t sum = 0;

    for (uint32_t number = 0; number < high && number < NUMBER_LIMIT; number++) {
        uint64_t word = atomic_load(&arena->marks[number]);

        if (MARK_VALUE(word) != 0
            && !arena_name_is_dead(arena, NAME(number, MARK_INCARNATION(word)))) {
            sum += (int64_t) MARK_VALUE(word);
        }
    }
    return sum;
}

/* All skips, of which the head has the last bits. */
static uint64_t
skips_of(uint64_t done, uint64_t head)
{
    uint64_t turns = DONE_TURNS(done), skips = HEAD_SKIPS(head);

    turns += (turns & 1) != skips / HALF_TURN;
    return turns * HALF_TURN + skips % HALF_TURN;
}

/* Whoever skips sees that the half turn is counted, long before the next. */
static void
count_turn(struct ring *ring)
{
    uint64_t done = atomic_load(&ring->done);

    while ((DONE_TURNS(done) & 1) != HEAD_SKIPS(atomic_load(&ring->head)) / HALF_TURN
           && !atomic_compare_exchange_weak(&ring->done, &done,
                                            done + (UINT64_C(1) << POSITION_BITS))) {
    }
}

/* Messages with a position that are not done; `done` is what the sum was made with. */
static int64_t
left_of_positions(mpshm_arena *arena, uint64_t *done)
{
    *done = atomic_load(&arena->ring->done);
    uint64_t head = atomic_load(&arena->ring->head);

    return position_ahead(ring_end(arena), *done + skips_of(*done, head));
}

/* The sum, in that order. */
int64_t
tasks_unfinished(mpshm_arena *arena)
{
    uint64_t done = atomic_load(&arena->ring->done);
    uint64_t head = atomic_load(&arena->ring->head);
    int64_t pending = tasks_pending(arena);

    return pending + position_ahead(ring_end(arena), done + skips_of(done, head));
}

/* Call after a change of done, of pending, or of what the head has skipped. */
void
tasks_settle(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->ring->waiters;

    if (!arena->joinable) {
        return;
    }
    count_turn(arena->ring);
    uint32_t joiners = atomic_load(&waiters->joiners);

    /* `joiners` is cleared before the bell rings, and set after the bell is read: who is not woken by
       this is still said to wait. */
    if (joiners != 0 && tasks_unfinished(arena) <= 0
        && atomic_compare_exchange_strong(&waiters->joiners, &joiners, 0)) {
        atomic_fetch_add(&waiters->done_bell, 1);
        (void) futex_wake(&waiters->done_bell, INT_MAX);
    }
}

int64_t
mpshm_task_done(mpshm_arena *arena)
{
    uint64_t done;
    int64_t left;

    uint32_t tries = 0;

    do {
        left = left_of_positions(arena, &done); /* pending ones have not been taken */
        if (left <= 0) {
            return -ERANGE;
        }
        if (++tries > RING_TRIES) {
            return MPSHM_E_DAMAGED;
        }
    } while (!atomic_compare_exchange_weak(&arena->ring->done, &done,
                                           (done & ~DONE_MASK) | ((done + 1) & DONE_MASK)));
    tasks_settle(arena);
    return left - 1;
}
