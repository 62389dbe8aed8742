/* A queue's rings: positions, and the functions of rings.c, tasks.c, positions.c, chain.c, turns.c, mirror.c and
   ring.c, each of which calls those before it.

   A position is where a message stands in its ring: positions go up by one, and are compared
   modulo.  A position is *claimed* when its slot names a sender, and *passed* when its message
   has been taken, or will not come.  *Open* is what was claimed and has not passed.  A *spot* is a position and its
   ring.

   A queue has one ring, or a chain of them: what comes behind a slot that says NEXT lies in another ring.  A ring is
   used again and again; each time is a *life* of it, and positions go on counting.

   Invariants: G1 to G3, G8, C1 (invariants.h). */
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

static inline _Atomic uint64_t *
slot_word(const struct ring *ring, uint64_t position)
{
    return (_Atomic uint64_t *) (ring->words + (position & (ring->slots - 1)) * ring->word_step);
}

static inline _Atomic uint64_t *
slot_data(const struct ring *ring, uint64_t position)
{
    return (_Atomic uint64_t *) (ring->data + (position & (ring->slots - 1)) * ring->data_step);
}

static inline uint64_t
lap_of(const struct ring *ring, uint64_t position)
{
    return (position & POSITION_MASK) >> __builtin_ctz(ring->slots);
}

static inline uint64_t
word_of(const struct ring *ring, uint64_t position, name who, enum slot_state state)
{
    return SLOT_WORD(lap_of(ring, position), who, state);
}

/* A slot that has passed says this, unless it was skipped. */
static inline uint64_t
passed_word(const struct ring *ring, uint64_t position)
{
    return word_of(ring, position_after(position, ring->slots), 0, SLOT_FREE);
}

/* How far the slot's word is ahead of that position of its: 0, or a multiple of the ring's length. */
static inline int64_t
word_ahead(const struct ring *ring, uint64_t word, uint64_t position)
{
    return position_ahead(SLOT_LAP(word) << __builtin_ctz(ring->slots),
                          position & ~(uint64_t) (ring->slots - 1));
}

/* Whether that word says that the position has passed. */
static inline bool
is_passed(const struct ring *ring, uint64_t word, uint64_t position)
{
    int64_t ahead = word_ahead(ring, word, position);

    return ahead > 0 || (ahead == 0 && SLOT_STATE(word) == SLOT_SKIPPED);
}

/* Whether that word ends the ring at that position. */
static inline bool
is_next(const struct ring *ring, uint64_t word, uint64_t position)
{
    return SLOT_STATE(word) == SLOT_NEXT && word_ahead(ring, word, position) == 0;
}

/* Whether the position has been claimed, perhaps long ago. */
static inline bool
is_claimed(const struct ring *ring, uint64_t word, uint64_t position)
{
    int64_t ahead = word_ahead(ring, word, position);

    return ahead > 0 || (ahead == 0 && SLOT_STATE(word) != SLOT_FREE && SLOT_STATE(word) != SLOT_NEXT);
}

static inline uint64_t
load_slot(const struct ring *ring, uint64_t position)
{
    return atomic_load_explicit(slot_word(ring, position), memory_order_acquire);
}

/* Others may be quicker, but not for ever: after so many tries it is a stray write. */
#define RING_TRIES (8 * RING_SLOTS)

/* The position at which the next claim is tried. */
static inline uint64_t
tail_of(const struct ring *ring)
{
    return atomic_load_explicit(&ring->head->tail, memory_order_acquire) & POSITION_MASK;
}

/* The first position that is not claimed, and what its slot says.  The tail is read before its slot.  False: it cannot
   be told. */
static inline bool
ring_end_word(const struct ring *ring, uint64_t *end, uint64_t *word)
{
    for (uint32_t tries = 0; tries < RING_TRIES; tries++) {
        uint64_t at = *end = atomic_load(&ring->head->tail) & POSITION_MASK;

        *word = atomic_load(slot_word(ring, at));
        if (word_ahead(ring, *word, at) <= 0) {
            if (!is_claimed(ring, *word, at)) {
                return true;
            }
            *end = position_after(at, 1);
            *word = atomic_load(slot_word(ring, *end));
            if (!is_claimed(ring, *word, *end)) {
                return true;
            }
        } /* else a lap has gone by */
    }
    return false;
}

static inline uint64_t
ring_end(const struct ring *ring)
{
    uint64_t end, word;

    (void) ring_end_word(ring, &end, &word);
    return end;
}

/* rings.c */
/* Call once the arena's file is mapped, and the chain with it.  header: the checked copy. */
int rings_attach(mpshm_arena *arena, const struct arena_header *header);
void rings_detach(mpshm_arena *arena);
struct ring *ring_map(const mpshm_arena *arena, uint32_t number);
/* NULL: there is no such ring, or no room to map it. */
static inline struct ring *
ring_at(const mpshm_arena *arena, uint32_t number)
{
    return number == 0 ? (struct ring *) &arena->zero : ring_map(arena, number);
}
uint64_t ring_offset(const mpshm_arena *arena, uint32_t number); /* in the file, not of ring 0 */

/* Whether the ring that `link` names is in that life of its still. */
static inline bool
link_lives(const mpshm_arena *arena, name link)
{
    return RING_LIFE(atomic_load(&arena->chain->word[LINK_RING(link)])) == LINK_LIFE(link);
}

/* A walk along the chain. */
struct stop {
    struct ring *ring;
    name link;          /* which ring, in which life */
};
/* The ring where receivers begin.  False: it is not to be had. */
bool chain_begin(const mpshm_arena *arena, struct stop *stop);
/* Go on to the ring behind it: 1; 0: it is the last; -1: it cannot be told, for its life is over, or the next cannot be
   mapped.  *end: where its positions end. */
int chain_on(const mpshm_arena *arena, struct stop *stop, uint64_t *end);
/* How many positions have been claimed since the queue was made, modulo.  False: it cannot be told. */
bool chain_claimed(const mpshm_arena *arena, uint64_t *claimed);
/* How many have passed, modulo; and were skipped, modulo 2^28. */
struct passed {
    uint64_t positions, skips;
    struct stop stop;    /* the ring where receivers begin; its `ring` is NULL if it cannot be mapped, */
    uint64_t at;         /* and its head's position */
};
struct passed chain_passed(const mpshm_arena *arena);
/* Positions claimed and not passed, as far as heads and tails say: at least as many as are open. */
int64_t chain_backlog(const mpshm_arena *arena);
/* How far the queue has been emptied, as a number that only grows, modulo. */
uint64_t chain_taken(const mpshm_arena *arena);

/* positions.c.  Those with (L) need arena_lock. */
uint32_t ring_claim(mpshm_arena *arena, enum slot_state state, uint32_t count, uint64_t *spots); /* (L) */
struct tail {
    struct ring *ring;
    name link;
    uint64_t at, word;   /* the first position that may be claimed, and what its slot says */
};
bool ring_tail(mpshm_arena *arena, struct tail *tail); /* (L): false: it cannot be had */
bool ring_has_room(mpshm_arena *arena, struct ring *ring, uint64_t at);
bool ring_is_held(const mpshm_arena *arena, uint64_t spot); /* by this process */
uint64_t ring_advance(mpshm_arena *arena, struct ring *ring); /* moves its head on: the head's word */
bool ring_has_passed(const mpshm_arena *arena, uint64_t spot);
bool ring_mend_from(mpshm_arena *arena, struct ring *ring, uint64_t at);
bool ring_take_back(mpshm_arena *arena, uint64_t spot);
name ring_taker(const mpshm_arena *arena, uint64_t spot);

/* Move on the head where receivers begin, over rings too: what has not passed begins there.  `ring` NULL: it cannot
   be mapped. */
struct start {
    struct ring *ring;
    name link;
    uint64_t at;
};
struct start chain_go_on(mpshm_arena *arena);
void chain_go_on_over(mpshm_arena *arena, const uint64_t *spots, uint32_t count); /* these have just passed */
/* The same, for those who mostly find nothing to move. */
static inline struct start
chain_first(mpshm_arena *arena)
{
    struct start start = {0};

    start.link = FIRST_LINK(atomic_load(&arena->chain->first));
    start.ring = ring_at(arena, LINK_RING(start.link));
    if (start.ring != NULL) {
        start.at = HEAD_POSITION(atomic_load(&start.ring->head->head));
        uint64_t word = load_slot(start.ring, start.at);

        if (is_passed(start.ring, word, start.at) || SLOT_STATE(word) == SLOT_NEXT) {
            start = chain_go_on(arena);
        }
    }
    return start;
}
void ring_end_life(mpshm_arena *arena, uint32_t number, uint32_t life);
bool ring_is_within_bound(mpshm_arena *arena, const struct ring *ring, uint64_t at);

/* tasks.c */
void tasks_pend(mpshm_arena *arena, int64_t messages); /* (L) */
int64_t tasks_pending(mpshm_arena *arena);
int64_t tasks_unfinished(mpshm_arena *arena);
void tasks_settle(mpshm_arena *arena); /* call after a change of done, skips or pending, */
void tasks_skipped(mpshm_arena *arena); /* of skips this one */
void tasks_look_again(mpshm_arena *arena); /* the same at any time: one may have been killed that did not */

/* chain.c */
bool chain_has_room(mpshm_arena *arena);  /* the last ring has */
bool chain_is_full(mpshm_arena *arena);   /* no position can be claimed, though a further ring were linked */
bool chain_mend(mpshm_arena *arena);      /* what the dead left open; costs a look at each owner */
void chain_reap(mpshm_arena *arena);      /* the same, and rings: for a sweep */
int chain_grow(mpshm_arena *arena);       /* (L): 0: there is room; or -ENOSPC */
bool chain_shrink(mpshm_arena *arena);    /* (L) */
/* (L) Have a free ring that may have memory be this process's: its word then.  The second, without the lock, gives it
   back. */
bool chain_take_cold(mpshm_arena *arena, uint32_t number, uint64_t *made);
void chain_put_back(mpshm_arena *arena, uint32_t number, uint64_t made, bool is_cold);

/* turns.c */
bool turn_say(mpshm_arena *arena, uint64_t position, uint64_t bytes); /* (L) */
bool turn_has_come(mpshm_arena *arena, uint64_t position, uint64_t bytes); /* (L) */
bool turn_is_next(mpshm_arena *arena, uint64_t bytes);    /* (L): of one without a position */
bool turn_is_here(mpshm_arena *arena, uint64_t position); /* (L): of a message that has said its bytes */
bool turn_is_missed(mpshm_arena *arena);                  /* (L) */

/* mirror.c */
void mirror_show(mpshm_arena *arena, int fd);  /* (L) */
bool mirror_is_due(mpshm_arena *arena);
bool mirror_agree(mpshm_arena *arena, int fd); /* (L), and the next two */
void mirror_after_take(mpshm_arena *arena, int fd);
void mirror_watch(mpshm_arena *arena, int fd);

/* ring.c */
void ring_begin(mpshm_arena *arena, uint64_t spot);                    /* (L): HELD -> WRITING */
void ring_hold(mpshm_arena *arena, uint64_t spot);                     /* (L): and back */
void ring_give_up(mpshm_arena *arena, uint64_t spot);                  /* (L) */
int ring_fill(mpshm_arena *arena, uint64_t spot, char *frame);         /* (L) */
void ring_put(mpshm_arena *arena, int fd, const uint64_t *spots, uint32_t count); /* (L) */
uint32_t ring_take(mpshm_arena *arena, char *to, uint64_t *spots, uint32_t most); /* (L) */
void ring_pass(mpshm_arena *arena, uint64_t spot); /* (L) */
uint32_t ring_count(mpshm_arena *arena, bool also_coming);
bool ring_is_ready(mpshm_arena *arena);
bool ring_is_out_of_reach(mpshm_arena *arena); /* there is a ring that cannot be mapped */

#endif
