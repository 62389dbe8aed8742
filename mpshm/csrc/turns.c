/* Turns: how many bytes a queue's messages may take, without a counter of bytes.

   A put's position is its turn.  It says at its slot how many bytes it will take, and then waits until
   all open positions before it, also those that wait, leave room, or until there are none: one message
   larger than the limit passes alone.  A later one never puts an earlier one's turn off, for it counts
   the earlier one's bytes while that waits.  A position that has not said its bytes yet may take any
   number.

   Knows slots' words and the bytes beside them, of ring 0: such a queue has no other.  Does not know who waits (queue_put.c).

   Invariants: Q5 (invariants.h).

   Memory order: turn_say releases the bytes before the slot's word says READY; whoever reads a word
   finds the bytes of its lap, or knows that they have not been said. */
#include "internal.h"

#include "ring.h"

/* A queue that is bounded by bytes has one ring. */
static _Atomic uint64_t *
slot_bytes(const mpshm_arena *arena, uint64_t position)
{
    return &arena->zero.head->slots[position & (arena->zero.slots - 1)].bytes;
}

static uint64_t
first_position(mpshm_arena *arena)
{
    return HEAD_POSITION(ring_advance(arena, &arena->zero));
}

/* Say how many bytes the message of a position of this process takes: at least a slot's.  True: anew, so
   others that wait may be let in. */
bool
turn_say(mpshm_arena *arena, uint64_t position, uint64_t bytes)
{
    _Atomic uint64_t *at = slot_bytes(arena, position);
    uint64_t word = BYTES_WORD(lap_of(&arena->zero, position), bytes);

    INVARIANT(Q5, bytes > 0);
    if (atomic_load_explicit(at, memory_order_relaxed) == word) {
        return false;
    }
    atomic_store(at, word);
    return true;
}

/* What the message of an open position takes; 0: it has not been said. */
static uint64_t
bytes_of(const mpshm_arena *arena, uint64_t position)
{
    uint64_t word = atomic_load_explicit(slot_bytes(arena, position), memory_order_acquire);

    return word >> 33 == lap_of(&arena->zero, position) ? word & BYTES_MOST : 0;
}

/* Add up what the open positions before `to` take, from *from on: false at one that has not said so, and
   *from is there. */
static bool
add_up(const mpshm_arena *arena, uint64_t *from, uint64_t to, uint64_t *sum)
{
    for (; *from != to; *from = position_after(*from, 1)) {
        if (!is_passed(&arena->zero, load_slot(&arena->zero, *from), *from)) {
            uint64_t bytes = bytes_of(arena, *from);

            if (bytes == 0) {
                return false;
            }
            *sum += bytes;
        }
    }
    return true;
}

static bool
fits(const mpshm_arena *arena, uint64_t sum, uint64_t bytes)
{
    return sum == 0 || (sum <= arena->bytes_limit && bytes <= arena->bytes_limit - sum);
}

/* Whether a message of `bytes` bytes at that position is let in.  All positions before it are claimed.
   Positions only pass, so the last sum counts as what those before `turn_at` take at most, and only what
   is new is added: a put costs a walk over the ring only when the limit seems to be reached.  Q5 */
bool
turn_has_come(mpshm_arena *arena, uint64_t position, uint64_t bytes)
{
    int64_t newer = position_ahead(position, arena->turn_at);

    INVARIANT(A4, arena_is_locked(arena));
    if (newer >= 0 && newer <= (int64_t) arena->zero.slots
        && add_up(arena, &arena->turn_at, position, &arena->turn_bytes)
        && fits(arena, arena->turn_bytes, bytes)) {
        return true;
    }
    uint64_t from = first_position(arena), sum = 0;

    if (position_ahead(position, from) < 0 || position_ahead(position, from) > (int64_t) arena->zero.slots
        || !add_up(arena, &from, position, &sum)) {
        return false; /* not said yet, or a stray write */
    }
    if (newer >= 0) {
        arena->turn_at = position;
        arena->turn_bytes = sum;
    }
    return fits(arena, sum, bytes);
}

/* Whether one that has no position yet would be let in.  When a lap goes by meanwhile, the sum says nothing: again. */
bool
turn_is_next(mpshm_arena *arena, uint64_t bytes)
{
    for (uint32_t tries = 0; tries < RING_TRIES; tries++) {
        uint64_t end = ring_end(&arena->zero);

        if (turn_has_come(arena, end, bytes)) {
            return true;
        }
        if (ring_end(&arena->zero) == end) {
            return false;
        }
    }
    return false;
}

/* Whether the first message that waits for its turn has it, or none waits for a turn and there are slots for those
   that wait to have one: whoever let it in has perhaps not woken it. */
bool
turn_is_missed(mpshm_arena *arena)
{
    uint64_t at = first_position(arena), end = ring_end(&arena->zero);

    for (uint32_t i = 0; i < arena->zero.slots && position_ahead(end, at) > 0; i++, at = position_after(at, 1)) {
        uint64_t word = load_slot(&arena->zero, at);

        if (word_ahead(&arena->zero, word, at) == 0 && SLOT_STATE(word) == SLOT_HELD) {
            uint64_t bytes = bytes_of(arena, at);

            return bytes != 0 && turn_has_come(arena, at, bytes);
        }
    }
    return !chain_is_full(arena);
}

bool
turn_is_here(mpshm_arena *arena, uint64_t position)
{
    uint64_t bytes = position <= POSITION_MASK ? bytes_of(arena, position) : 0;

    return bytes == 0 || turn_has_come(arena, position, bytes);
}
