/* The walk over rings that checks their invariants.  Safe while other processes work: each bound is loaded
   on the side that makes it looser.

   Invariants: it checks G1, G2, G8, Q5, C1 and C4 (invariants.h).

   Memory order: head and tail are loaded before and after the slots' words, all sequentially
   consistent. */
#include "internal.h"

#include "ring.h"

static bool
is_owned(enum slot_state state)
{
    return state == SLOT_WRITING || state == SLOT_TAKING || state == SLOT_HELD;
}

/* What is wrong with the word's own fields: -line, or 0.  G8 */
static int
check_word(const mpshm_arena *arena, const struct ring *ring, uint64_t word)
{
    name owner = SLOT_OWNER(word);

    if (SLOT_STATE(word) > SLOT_NEXT || SLOT_LAP(word) > lap_of(ring, POSITION_MASK)) {
        return -__LINE__;
    }
    if (SLOT_STATE(word) == SLOT_NEXT) {
        return LINK_RING(owner) < arena->rings && arena->grows ? 0 : -__LINE__; /* C1 */
    }
    return is_owned(SLOT_STATE(word)) != (NAME_INCARNATION(owner) != 0)
                   || (owner != 0 && NAME_INCARNATION(owner) == 0)
               ? -__LINE__
               : 0;
}

/* What is wrong with the place of a slot's word: -line, or 0.  It was loaded after the head was `head`, and
   before the tail was `after`; `before`: the tail was that before.  G1, G2 */
static int
check_place(const struct ring *ring, uint64_t slot, uint64_t word, uint64_t head, uint64_t before,
            uint64_t after)
{
    int64_t slots = ring->slots;
    uint64_t position = (SLOT_LAP(word) * ring->slots + slot) & POSITION_MASK;
    int64_t since = position_ahead(position, head), until = position_ahead(position, after);

    switch (SLOT_STATE(word)) {
    case SLOT_FREE:
        if (position_ahead(position, before) < 0) {
            return -__LINE__; /* G2: the tail passed a position that was not claimed */
        }
        return until > slots ? -__LINE__ : 0; /* G1: free for a lap that is not the next */
    case SLOT_SKIPPED:
        return since < -slots || until > 0 ? -__LINE__ : 0;
    default:
        if (since < 0) {
            return -__LINE__; /* G2: the head passed an open slot */
        }
        return until > 0 ? -__LINE__ : 0; /* G2: past the tail */
    }
}

/* The walk over one ring, as ring_validate. */
static int
check_ring(mpshm_arena *arena, const struct ring *ring, bool rests)
{
    struct ring_head *shared = ring->head;
    uint64_t before = tail_of(ring), head = HEAD_POSITION(atomic_load(&shared->head));

    for (uint64_t i = 0; i < ring->slots; i++) {
        uint64_t word = atomic_load(slot_word(ring, i));
        enum slot_state state = SLOT_STATE(word);
        int wrong = check_word(arena, ring, word);

        wrong = wrong ? wrong : check_place(ring, i, word, head, before, tail_of(ring));
        if (wrong != 0) {
            return wrong;
        }
        if (rests && is_owned(state)
            && (state != SLOT_HELD || arena_name_is_dead(arena, SLOT_OWNER(word)))) {
            return -__LINE__; /* G8: its owner is gone */
        }
        if (rests && arena->bytes_limit != 0 && state == SLOT_READY
            && atomic_load(&shared->slots[i].bytes) >> 33 != SLOT_LAP(word)) {
            return -__LINE__; /* Q5: it has not said how many bytes it takes */
        }
    }
    if (position_ahead(head, tail_of(ring)) > 1) {
        return -__LINE__; /* G2 */
    }
    /* A position is claimed only after the head has moved to within a lap of it. */
    if (position_ahead(before, HEAD_POSITION(atomic_load(&shared->head))) > (int64_t) ring->slots) {
        return -__LINE__; /* G1 */
    }
    return 1;
}

/* Its maker may have been killed before it said USED. */
static bool
is_used(mpshm_arena *arena, uint64_t word)
{
    return RING_STATE(word) == RING_USED
           || (RING_STATE(word) == RING_MAKING && arena_name_is_dead(arena, RING_MAKER(word)));
}

/* At rest: what is in the chain is USED, and all other rings are free.  C1, C4 */
static int
check_chain(mpshm_arena *arena)
{
    uint64_t met = 0, end;
    struct stop stop;
    int on = chain_begin(arena, &stop) ? 1 : -1;

    while (on == 1) {
        uint64_t bit = UINT64_C(1) << LINK_RING(stop.link);
        uint64_t word = atomic_load(&arena->chain->word[LINK_RING(stop.link)]);

        if ((met & bit) != 0 || !is_used(arena, word) || RING_LIFE(word) != LINK_LIFE(stop.link)) {
            return -__LINE__;
        }
        met |= bit;
        on = chain_on(arena, &stop, &end);
    }
    for (uint32_t number = 0; number < arena->rings && on == 0; number++) {
        if ((met >> number & 1) == 0 && RING_STATE(atomic_load(&arena->chain->word[number])) != RING_FREE) {
            return -__LINE__;
        }
    }
    return on == 0 ? 1 : -__LINE__;
}

/* Walk the rings that this process has mapped: 1 if their invariants hold, else -line of the one that does not.
   rests: no process is at work, and the dead have been reaped: no slot is being written or taken, nor held
   by a dead one. */
int
ring_validate(mpshm_arena *arena, bool rests)
{
    if (arena->slot_bytes == 0) {
        return 1;
    }
    int result = check_ring(arena, &arena->zero, rests);

    for (uint32_t number = 1; arena->grows && number < arena->rings && result == 1; number++) {
        struct ring *ring = atomic_load(&arena->others[number]);

        result = ring == NULL ? 1 : check_ring(arena, ring, rests);
    }
    return result == 1 && rests && arena->grows ? check_chain(arena) : result;
}
