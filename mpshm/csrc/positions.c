/* Positions: which may be claimed, which have passed, and what the dead left between.

   Knows slots' words, the head and the tail.  Does not know what lies in a slot (ring.c), nor who waits.

     FREE, or SKIPPED a lap before --ring_claim--> WRITING (me), or HELD (me) --ring_give_up--> SKIPPED
     HELD, WRITING (dead) --mended--> SKIPPED          TAKING (dead) --mended--> FREE of the next lap

   No counter says how full the queue is.  A queue of `bound` places lets position p be claimed while fewer
   than so many positions before it are open: while p < head + bound, which needs no look; or, when an
   open slot stops the head, while a count of the words from the head on says so.  The count is right
   though others work: all of these are claimed, and an open position can only pass.  So a stopped sender
   takes one place, and stops the ring only when it is a lap behind.

   Invariants: G1, G2, G8 (invariants.h).

   Memory order: a slot's word is loaded with acquire before the head moves over it with release, so a
   sender that acquires the head finds the slot at least passed.  A claim's acquiring compare-and-swap pairs with the
   release of the word it changes: what was read of the slot's last message was read before.  Claims,
   changes of the head, and the loads of who sums them up are sequentially consistent (tasks.c). */
#include "internal.h"

#include "ring.h"

#define TRIES RING_TRIES
/* As often another may have moved the head meanwhile: each try can cost a look at the whole ring, and a head that
   lags does no harm. */
#define HEAD_TRIES 64

/* Move the head on over all that has passed: where it is.  G2 */
uint64_t
ring_first(mpshm_arena *arena)
{
    _Atomic uint64_t *head = &arena->ring->head;
    uint64_t was = atomic_load(head);
    uint32_t far = 0; /* it lags by less than a lap */

    for (uint32_t tries = 0; tries < HEAD_TRIES && far <= arena->slots; tries++) {
        uint64_t at = HEAD_POSITION(was), skips = 0, steps = 0;

        while (steps < arena->slots) {
            uint64_t position = position_after(at, steps), word = load_slot(arena, position);

            if (!is_passed(arena, word, position)) {
                break;
            }
            skips += word_ahead(arena, word, position) == 0;
            steps++;
        }
        if (steps == 0) {
            break;
        }
        uint64_t next = HEAD_WORD(HEAD_SKIPS(was) + skips, position_after(at, steps));

        /* A process that was quicker may not have seen what this one took: go on from its head. */
        if (atomic_compare_exchange_strong(head, &was, next)) {
            was = next;
            far += (uint32_t) steps;
            if (skips > 0) {
                tasks_settle(arena);
            }
        }
    }
    return HEAD_POSITION(was);
}

/* Have a slot of a dead process passed.  False: it says nothing of the dead. */
static bool
mend(mpshm_arena *arena, uint64_t position)
{
    uint64_t word = load_slot(arena, position);
    enum slot_state state = SLOT_STATE(word);

    if ((state != SLOT_HELD && state != SLOT_WRITING && state != SLOT_TAKING)
        || word_ahead(arena, word, position) != 0
        || !arena_name_is_dead(arena, SLOT_OWNER(word))) {
        return false;
    }
    uint64_t to = state == SLOT_TAKING ? passed_word(arena, position)
                                       : word_of(arena, position, 0, SLOT_SKIPPED);

    atomic_compare_exchange_strong(&slot_of(arena, position)->word, &word, to);
    return true;
}

/* The same for all that is open: whether there was anything. */
bool
ring_mend(mpshm_arena *arena)
{
    uint64_t at = ring_first(arena), end = ring_end(arena);
    bool any = false;

    for (uint32_t i = 0; i < arena->slots && position_ahead(end, at) > 0; i++) {
        any |= mend(arena, at);
        at = position_after(at, 1);
    }
    if (any) {
        (void) ring_first(arena);
    }
    return any;
}

/* Whether an open slot that is no message stops the head. */
static bool
is_stopped(const mpshm_arena *arena, uint64_t head)
{
    uint64_t word = load_slot(arena, head);

    return word_ahead(arena, word, head) == 0 && SLOT_STATE(word) != SLOT_READY
           && SLOT_STATE(word) != SLOT_FREE;
}

/* Whether there is a place for position `at`.  G1 */
static bool
has_place(const mpshm_arena *arena, uint64_t head, uint64_t at)
{
    int64_t ahead = position_ahead(at, head);

    if (ahead < (int64_t) arena->bound) {
        return true; /* or `at` is old, as the slot will show */
    }
    if (ahead >= (int64_t) arena->slots || !is_stopped(arena, head)) {
        return false;
    }
    uint32_t open = 0;

    for (uint64_t p = head; p != at && open < arena->bound; p = position_after(p, 1)) {
        open += !is_passed(arena, load_slot(arena, p), p);
    }
    return open < arena->bound;
}

/* The same, and first without a look at a word that receivers write.  Under arena_lock.  tries: of the claim, which
   go up with each slot that is mended. */
static bool
finds_place(mpshm_arena *arena, uint64_t at, uint32_t *tries)
{
    if (position_after(at, -arena->head_seen) < arena->bound) {
        return true;
    }
    for (; *tries < TRIES; ++*tries) {
        arena->head_seen = ring_first(arena);
        if (has_place(arena, arena->head_seen, at)) {
            return true;
        }
        if (!mend(arena, arena->head_seen)) {
            break;
        }
    }
    return false;
}

static void
move_tail(struct ring *ring, uint64_t from)
{
    uint64_t at = from;

    atomic_compare_exchange_strong(&ring->tail, &at, position_after(from, 1));
}

/* Claim the next positions, as WRITING or HELD: how many; fewer when the queue is full.  G1, G2 */
uint32_t
ring_claim(mpshm_arena *arena, enum slot_state state, uint32_t count, uint64_t *positions)
{
    struct ring *ring = arena->ring;
    uint32_t n = 0;

    INVARIANT(A4, arena_is_locked(arena));
    INVARIANT(G8, arena->me != 0 && (state == SLOT_WRITING || state == SLOT_HELD));
    for (uint32_t tries = 0; n < count && tries < TRIES; tries++) {
        uint64_t at = tail_of(arena);

        if (!finds_place(arena, at, &tries)) {
            break;
        }
        uint64_t word = load_slot(arena, at);
        int64_t ahead = word_ahead(arena, word, at);

        if ((ahead == 0 && SLOT_STATE(word) == SLOT_FREE)
            || (ahead == -(int64_t) arena->slots && SLOT_STATE(word) == SLOT_SKIPPED)) {
            if (atomic_compare_exchange_strong(&slot_of(arena, at)->word, &word,
                                               word_of(arena, at, arena->me, state))) {
                INVARIANT(G2, n == 0 || position_ahead(at, positions[n - 1]) > 0);
                positions[n++] = at;
                tries = 0;
                move_tail(ring, at);
            }
        } else if (ahead >= 0) {
            move_tail(ring, at);
        }
    }
    return n;
}

/* Whether the position is claimed and kept by this process.  Any number may be asked for. */
bool
ring_is_held(const mpshm_arena *arena, uint64_t position)
{
    return position <= POSITION_MASK && arena->me != 0
           && load_slot(arena, position) == word_of(arena, position, arena->me, SLOT_HELD);
}

/* The message of a position that is this process's will not come.  What was sealed at it has been
   unsealed: from now on a run in flight there is nobody's. */
void
ring_give_up(mpshm_arena *arena, uint64_t position)
{
    INVARIANT(A4, arena_is_locked(arena));
    INVARIANT(G8, SLOT_OWNER(load_slot(arena, position)) == arena->me
                      && word_ahead(arena, load_slot(arena, position), position) == 0);
    atomic_store(&slot_of(arena, position)->word, word_of(arena, position, 0, SLOT_SKIPPED));
    (void) ring_first(arena);
}

bool
ring_is_full(mpshm_arena *arena)
{
    uint64_t at = ring_end(arena);

    return !has_place(arena, ring_first(arena), at);
}

/* Whether the slot has passed that position, so that a run in flight at it is nobody's. */
bool
ring_has_passed(mpshm_arena *arena, uint64_t position)
{
    return is_passed(arena, atomic_load(&slot_of(arena, position)->word), position);
}

void
ring_reap(mpshm_arena *arena)
{
    (void) ring_mend(arena);
}
