/* Tasks: how many messages of a joinable queue are not done, without a count that two processes change.

     unfinished = pending of the living + positions claimed - skipped - done

   read in the order done, skipped, pending, positions, each of which only grows but pending, which goes
   down after its message has a position.  So a sum of 0 was true at a moment of the reading.  Whoever
   changes done, skipped or pending sums up afterwards, and wakes who joins at 0.

   task_done() asks for less: more messages that have been put than are done.  That number only grows but by a
   task_done(), which swaps `done` from the value that was read before the messages were counted.  So none too many is
   accepted, and none for a message that was taken is refused.

   Skips are counted in 28 bits.  `done` counts their half turns, which whoever skips sees to, so the
   whole is known while no process is stopped through 100 million skips between two loads.

   Knows where the chain begins and ends, `done`, the marks and slots' words.  Does not know what lies in a slot.

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

/* All skips, of which the last bits are known. */
static uint64_t
skips_of(uint64_t done, uint64_t skips)
{
    uint64_t turns = DONE_TURNS(done);

    turns += (turns & 1) != skips / HALF_TURN;
    return turns * HALF_TURN + skips % HALF_TURN;
}

/* Whoever skips sees that the half turn is counted, long before the next. */
static void
count_turn(mpshm_arena *arena)
{
    uint64_t done = atomic_load(&arena->chain->done);

    while ((DONE_TURNS(done) & 1) != chain_passed(arena).skips / HALF_TURN
           && !atomic_compare_exchange_weak(&arena->chain->done, &done,
                                            done + (UINT64_C(1) << POSITION_BITS))) {
    }
}

/* How many of the positions of a ring from `at` to `end` have, or had, a message; -1: it has gone on so far meanwhile
   that a slot does not say any more what it had.  No more than `most` are counted. */
static int64_t
messages_in(const struct ring *ring, uint64_t at, uint64_t end, int64_t most)
{
    int64_t messages = 0;

    for (uint32_t i = 0; i < ring->slots && messages < most && position_ahead(end, at) > 0; i++) {
        uint64_t word = atomic_load(slot_word(ring, at));
        enum slot_state state = SLOT_STATE(word);

        if (word_ahead(ring, word, at) == 0) {
            messages += state == SLOT_READY || state == SLOT_TAKING;
        } else if (word == passed_word(ring, at)) { /* one that was skipped says so until the next lap */
            messages++;
        } else {
            return -1;
        }
        at = position_after(at, 1);
    }
    return messages;
}

/* Whether more of the positions from where receivers begin to the end than `done` have, or had, a message: 1 or 0; -1:
   the queue has gone on so far meanwhile that it cannot be told. */
static int
has_more_messages(const mpshm_arena *arena, const struct passed *from, int64_t done)
{
    struct stop stop = from->stop;
    uint64_t at = from->at, end;

    for (uint32_t i = 0; i < RINGS && stop.ring != NULL; i++) {
        struct ring *ring = stop.ring;
        uint64_t before = atomic_load(&ring->head->before);
        int on = chain_on(arena, &stop, &end);
        int64_t messages = messages_in(ring, at, end, done + 1);

        if (on < 0 || messages < 0) {
            return -1;
        }
        done -= messages;
        if (done < 0 || on == 0) {
            return done < 0;
        }
        /* What has passed in the next ring already. */
        uint64_t head = atomic_load(&stop.ring->head->head);

        at = HEAD_POSITION(head);
        done -= position_ahead(atomic_load(&stop.ring->head->before) + at, before + end) - (int64_t) HEAD_SKIPS(head);
    }
    return -1;
}

/* Whether a message that has been put is not done; `done` is what the check was made with.  What is being put, or has
   its place kept, is none yet, and will be none if its process is killed or gives up: task_done() for it would take
   a later message's.  Those that feeders hold have not been taken. */
static bool
is_one_left(mpshm_arena *arena, uint64_t *done, uint32_t *tries)
{
    while (++*tries < RING_TRIES) {
        *done = atomic_load(&arena->chain->done);
        struct passed passed = chain_passed(arena);
        int64_t left = position_ahead(passed.positions, *done + skips_of(*done, passed.skips));
        int more = left > 0 ? 1 : has_more_messages(arena, &passed, -left);

        if (more >= 0) {
            return more;
        }
    }
    return true; /* a stray write */
}

/* The sum, in that order. */
int64_t
tasks_unfinished(mpshm_arena *arena)
{
    uint64_t done = atomic_load(&arena->chain->done);
    struct passed passed = chain_passed(arena);
    int64_t pending = tasks_pending(arena);
    uint64_t claimed;

    if (passed.stop.ring == NULL || !chain_claimed(arena, &claimed)) {
        return 1; /* perhaps */
    }
    return pending + position_ahead(claimed, done + skips_of(done, passed.skips));
}

/* Call after a change of done or of pending. */
void
tasks_settle(mpshm_arena *arena)
{
    struct waiters *waiters = &arena->chain->waiters;

    if (!arena->joinable) {
        return;
    }
    uint32_t joiners = atomic_load(&waiters->joiners);

    /* `joiners` is cleared before the bell rings, and set after the bell is read: who is not woken by
       this is still said to wait. */
    if (joiners != 0 && tasks_unfinished(arena) <= 0
        && atomic_compare_exchange_strong(&waiters->joiners, &joiners, 0)) {
        atomic_fetch_add(&waiters->done_bell, 1);
        (void) futex_wake(&waiters->done_bell, INT_MAX);
    }
}

/* Call after a change of what heads have skipped. */
void
tasks_skipped(mpshm_arena *arena)
{
    if (arena->joinable) {
        count_turn(arena);
        tasks_settle(arena);
    }
}

/* `joiners` may have been cleared by one that was killed before it rang the bell. */
void
tasks_look_again(mpshm_arena *arena)
{
    if (arena->joinable && tasks_unfinished(arena) <= 0) {
        atomic_store(&arena->chain->waiters.joiners, 1);
        tasks_settle(arena);
    }
}

int
mpshm_task_done(mpshm_arena *arena)
{
    uint64_t done;
    uint32_t tries = 0;

    arena_look_at_name(arena); /* a fork's child has its own: its parent may be one of the dead */
    do {
        if (!is_one_left(arena, &done, &tries)) {
            return -ERANGE;
        }
        if (tries >= RING_TRIES) {
            return MPSHM_E_DAMAGED;
        }
    } while (!atomic_compare_exchange_weak(&arena->chain->done, &done,
                                           (done & ~DONE_MASK) | ((done + 1) & DONE_MASK)));
    tasks_settle(arena);
    return 0;
}
