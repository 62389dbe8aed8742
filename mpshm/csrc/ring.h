/* A queue's ring: positions, and the functions of tasks.c, positions.c, turns.c, mirror.c and ring.c,
   each of which calls those before it.

   A position is where a message stands in the queue: positions go up by one, and are compared
   modulo.  A position is *claimed* when its slot names a sender, and *passed* when its message
   has been taken, or will not come.  *Open* is what was claimed and has not passed.

   Invariants: G1 to G3, G8 (invariants.h). */
#ifndef MPSHM_RING_H
#define MPSHM_RING_H

#include "internal.h"

static inline uint64_t
position_after(uint64_t position, uint64_t steps)
{
    return (position + steps) & POSITION_MASK;
}

/* How far `a` is ahead of `b`; negative: behind. */
static inline int64_t
position_ahead(uint64_t a, uint64_t b)
{
    return (int64_t) ((a - b) << (64 - POSITION_BITS)) >> (64 - POSITION_BITS);
}

static inline struct ring_slot *
slot_of(const mpshm_arena *arena, uint64_t position)
{
    return &arena->ring->slots[position & (arena->slots - 1)];
}

static inline uint64_t
lap_of(const mpshm_arena *arena, uint64_t position)
{
    return (position & POSITION_MASK) >> __builtin_ctz(arena->slots);
}

static inline uint64_t
word_of(const mpshm_arena *arena, uint64_t position, name who, enum slot_state state)
{
    return SLOT_WORD(lap_of(arena, position), who, state);
}

/* A slot that has passed says this, unless it was skipped. */
static inline uint64_t
passed_word(const mpshm_arena *arena, uint64_t position)
{
    return word_of(arena, position_after(position, arena->slots), 0, SLOT_FREE);
}

/* How far the slot's word is ahead of that position of its: 0, or a multiple of the ring's length. */
static inline int64_t
word_ahead(const mpshm_arena *arena, uint64_t word, uint64_t position)
{
    return position_ahead(SLOT_LAP(word) << __builtin_ctz(arena->slots),
                          position & ~(uint64_t) (arena->slots - 1));
}

/* Whether that word says that the position has passed. */
static inline bool
is_passed(const mpshm_arena *arena, uint64_t word, uint64_t position)
{
    int64_t ahead = word_ahead(arena, word, position);

    return ahead > 0 || (ahead == 0 && SLOT_STATE(word) == SLOT_SKIPPED);
}

/* Whether the position has been claimed, perhaps long ago. */
static inline bool
is_claimed(const mpshm_arena *arena, uint64_t word, uint64_t position)
{
    int64_t ahead = word_ahead(arena, word, position);

    return ahead > 0 || (ahead == 0 && SLOT_STATE(word) != SLOT_FREE);
}

static inline uint64_t
load_slot(const mpshm_arena *arena, uint64_t position)
{
    return atomic_load_explicit(&slot_of(arena, position)->word, memory_order_acquire);
}

/* Others may be quicker, but not for ever: after so many tries it is a stray write. */
#define RING_TRIES (8 * RING_SLOTS)

/* The position at which the next claim is tried. */
static inline uint64_t
tail_of(const mpshm_arena *arena)
{
    return atomic_load_explicit(&arena->ring->tail, memory_order_acquire) & POSITION_MASK;
}

/* The first position that is not claimed.  The tail is read before its slot. */
static inline uint64_t
ring_end(const mpshm_arena *arena)
{
    uint64_t at = atomic_load(&arena->ring->tail) & POSITION_MASK;

    for (uint32_t tries = 0; tries < RING_TRIES; tries++) {
        uint64_t word = atomic_load(&slot_of(arena, at)->word);

        if (word_ahead(arena, word, at) <= 0) {
            return position_after(at, is_claimed(arena, word, at));
        }
        at = atomic_load(&arena->ring->tail) & POSITION_MASK; /* a lap has gone by */
    }
    return at;
}

/* Positions claimed and not passed, as far as head and tail say: at least as many as are open. */
static inline int64_t
ring_backlog(const mpshm_arena *arena)
{
    return position_ahead(atomic_load_explicit(&arena->ring->tail, memory_order_relaxed),
                          atomic_load_explicit(&arena->ring->head, memory_order_relaxed));
}

/* Call once the arena's file is mapped: what puts and gets ask for each message.  header: the checked copy. */
static inline void
ring_attach(mpshm_arena *arena, const struct arena_header *header)
{
    uint32_t places = arena->places = header->places;

    INVARIANT(G1, arena->slots >= RING_SLOTS && (arena->slots & (arena->slots - 1)) == 0);
    arena->bound = places != 0 && places < arena->slots ? places : arena->slots;
    arena->bytes_limit = header->bytes_limit;
    arena->joinable = header->joinable != 0;
    arena->head_seen = HEAD_POSITION(atomic_load(&arena->ring->head));
    arena->writer = -1;
}

/* positions.c.  Those with (L) need arena_lock. */
uint32_t ring_claim(mpshm_arena *arena, enum slot_state state, uint32_t count,
                    uint64_t *positions); /* (L) */
bool ring_is_held(const mpshm_arena *arena, uint64_t position); /* by this process */
void ring_give_up(mpshm_arena *arena, uint64_t position); /* (L) */
void ring_advance(mpshm_arena *arena);
uint64_t ring_first(mpshm_arena *arena); /* moves the head on, and says where it is */
bool ring_is_full(mpshm_arena *arena);   /* no position can be claimed */
bool ring_has_passed(mpshm_arena *arena, uint64_t position);
bool ring_mend(mpshm_arena *arena);      /* what the dead left open; costs a look at each owner */
void ring_reap(mpshm_arena *arena);      /* the same, for a sweep */

/* tasks.c */
void tasks_pend(mpshm_arena *arena, int64_t messages); /* (L) */
int64_t tasks_pending(mpshm_arena *arena);
int64_t tasks_unfinished(mpshm_arena *arena);
void tasks_settle(mpshm_arena *arena); /* call after a change of done, skips or pending */
void tasks_look_again(mpshm_arena *arena); /* the same at any time: one may have been killed that did not */

/* turns.c */
bool turn_say(mpshm_arena *arena, uint64_t position, uint64_t bytes); /* (L) */
bool turn_has_come(mpshm_arena *arena, uint64_t position, uint64_t bytes); /* (L) */
bool turn_is_here(mpshm_arena *arena, uint64_t position); /* (L): of a message that has said its bytes */
bool turn_is_missed(mpshm_arena *arena);                  /* (L) */

/* mirror.c */
void mirror_show(mpshm_arena *arena, int fd);  /* (L) */
bool mirror_is_due(mpshm_arena *arena);
bool mirror_agree(mpshm_arena *arena, int fd); /* (L), and the next two */
void mirror_after_take(mpshm_arena *arena, int fd);
void mirror_watch(mpshm_arena *arena, int fd);

/* ring.c */
void ring_begin(mpshm_arena *arena, uint64_t position);                    /* (L): HELD -> WRITING */
void ring_hold(mpshm_arena *arena, uint64_t position);                     /* (L): and back */
void ring_fill(mpshm_arena *arena, uint64_t position, const char *frame); /* (L) */
void ring_put(mpshm_arena *arena, int fd, const uint64_t *positions, uint32_t count); /* (L) */
uint32_t ring_take(mpshm_arena *arena, char *to, uint64_t *positions, uint32_t most); /* (L) */
void ring_pass(mpshm_arena *arena, uint64_t position); /* (L) */
bool ring_take_back(mpshm_arena *arena, uint64_t position);       /* READY -> SKIPPED; false: it has been taken */
name ring_taker(const mpshm_arena *arena, uint64_t position);     /* who takes it; 0: nobody now */
uint32_t ring_count(mpshm_arena *arena, bool also_coming);
bool ring_is_ready(mpshm_arena *arena);

#endif
