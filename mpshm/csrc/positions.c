/* Positions: which may be claimed in a ring, which have passed, and what the dead left between.

   Knows slots' words, a ring's head and tail, and where the chain ends.  Does not know what lies in a slot (ring.c),
   how rings come and go (chain.c), nor who waits.

     FREE, or SKIPPED a lap before --ring_claim--> WRITING (me), or HELD (me) --ring_give_up--> SKIPPED
     HELD, WRITING (dead) --mended--> SKIPPED          TAKING (dead) --mended--> FREE of the next lap
     READY --ring_take_back--> SKIPPED

   No counter says how full the queue is.  A queue of `bound` places lets position p be claimed while fewer
   than so many positions before it are open: while p < head + bound, which needs no look; or while a count of the
   words from the head on says so, for what lies behind an open slot may have passed.  The count is right
   though others work: all of these are claimed, and an open position can only pass.  So a stopped sender
   takes one place, and stops the ring only when it is a lap behind.

   Where the bound is longer than a ring, positions in all rings are counted the same way: how many have been claimed
   before this one, less how many have passed since the queue was made.

   A queue that grows keeps one slot of each ring for the link to the next.  `last` is only a hint, and the ring it
   names may have been released, and be in use anew: so a claim reads a tail, then the ring's life, and then the slot.
   If the life is that of the hint, so was the tail, and its slot is FREE only if the ring was not ended before it.

   Invariants: G1, G2, G8, C2 (invariants.h).

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

/* Move the ring's head on over all that has passed: its word.  G2 */
uint64_t
ring_advance(mpshm_arena *arena, struct ring *ring)
{
    _Atomic uint64_t *head = &ring->head->head;
    uint64_t was = atomic_load(head);

    for (uint32_t tries = 0; tries < HEAD_TRIES; tries++) {
        uint64_t at = HEAD_POSITION(was), skips = 0, steps = 0;

        while (steps < ring->slots) {
            uint64_t position = position_after(at, steps), word = load_slot(ring, position);

            if (!is_passed(ring, word, position)) {
                break;
            }
            skips += word_ahead(ring, word, position) == 0;
            steps++;
        }
        if (steps == 0) {
            break;
        }
        uint64_t next = HEAD_WORD(HEAD_SKIPS(was) + skips, position_after(at, steps));

        /* A process that was quicker may not have seen what this one took: go on from its head. */
        if (atomic_compare_exchange_strong(head, &was, next)) {
            if (skips > 0) {
                tasks_skipped(arena);
            }
            return next; /* whoever takes a later message sees this head, and moves it on */
        }
    }
    return was;
}

/* End a life of a ring, if it is not over: the word that said so is still the same, or only its maker's USED has come
   in between.  C3 */
void
ring_end_life(mpshm_arena *arena, uint32_t number, uint32_t life)
{
    _Atomic uint64_t *at = &arena->chain->word[number];
    uint64_t word = atomic_load(at);

    while (RING_LIFE(word) == life && RING_STATE(word) != RING_FREE
           && !atomic_compare_exchange_strong(at, &word, RING_WORD(life + 1, 0, RING_FREE))) {
    }
}

/* Where receivers begin: the head moves on over all that has passed, and over rings.  G2, C1 */
struct start
chain_go_on(mpshm_arena *arena)
{
    struct chain *chain = arena->chain;
    struct start start = {0};

    for (uint32_t tries = 0; tries < 2 * RINGS; tries++) {
        uint64_t first = atomic_load(&chain->first);

        start.link = FIRST_LINK(first);
        start.ring = ring_at(arena, LINK_RING(start.link));
        if (start.ring == NULL) {
            break;
        }
        uint64_t head = ring_advance(arena, start.ring);

        start.at = HEAD_POSITION(head);
        if (!arena->grows) {
            break;
        }
        uint64_t word = load_slot(start.ring, start.at);

        if (!is_next(start.ring, word, start.at)) {
            break;
        }
        /* If `first` is still the same, the ring is in that life, and its head cannot go further. */
        if (atomic_compare_exchange_strong(&chain->first, &first,
                                           FIRST_WORD(SLOT_OWNER(word), FIRST_SKIPS(first) + HEAD_SKIPS(head)))) {
            ring_end_life(arena, LINK_RING(start.link), LINK_LIFE(start.link));
            tasks_skipped(arena); /* what was skipped in the next ring counts from now on */
        }
    }
    return start;
}

/* The same, when these spots have just passed.  Mostly the head stands at the first of them, the others follow each
   other, and behind them is the next message, or none yet.  Not always: a slot that was passed over may have been taken
   after a later one.  G2 */
void
chain_go_on_over(mpshm_arena *arena, const uint64_t *spots, uint32_t count)
{
    struct ring *ring = ring_at(arena, SPOT_RING(spots[0]));
    uint64_t head = atomic_load(&ring->head->head), at = position_after(HEAD_POSITION(head), count);
    bool in_a_row = HEAD_POSITION(head) == SPOT_POSITION(spots[0]);

    for (uint32_t i = 1; i < count; i++) {
        in_a_row = in_a_row && spots[i] == spots[0] + i;
    }
    if (in_a_row
        && atomic_compare_exchange_strong(&ring->head->head, &head, HEAD_WORD(HEAD_SKIPS(head), at))) {
        uint64_t word = load_slot(ring, at);

        if (!is_passed(ring, word, at) && SLOT_STATE(word) != SLOT_NEXT) {
            return;
        }
    }
    (void) chain_go_on(arena);
}

/* Have a slot of a dead process passed.  False: it says nothing of the dead. */
static bool
mend(mpshm_arena *arena, struct ring *ring, uint64_t position)
{
    uint64_t word = load_slot(ring, position);
    enum slot_state state = SLOT_STATE(word);

    if ((state != SLOT_HELD && state != SLOT_WRITING && state != SLOT_TAKING)
        || word_ahead(ring, word, position) != 0
        || !arena_name_is_dead(arena, SLOT_OWNER(word))) {
        return false;
    }
    uint64_t to = state == SLOT_TAKING ? passed_word(ring, position)
                                       : word_of(ring, position, 0, SLOT_SKIPPED);

    atomic_compare_exchange_strong(slot_word(ring, position), &word, to);
    return true;
}

/* The same for all that is open in the ring from position `at` on: whether there was anything. */
bool
ring_mend_from(mpshm_arena *arena, struct ring *ring, uint64_t at)
{
    uint64_t end = ring_end(ring);
    bool any = false;

    for (uint32_t i = 0; i < ring->slots && position_ahead(end, at) > 0; i++) {
        any |= mend(arena, ring, at);
        at = position_after(at, 1);
    }
    if (any) {
        (void) ring_advance(arena, ring);
    }
    return any;
}

/* Whether there is a place for position `at`.  G1 */
static bool
has_place(const mpshm_arena *arena, const struct ring *ring, uint64_t head, uint64_t at)
{
    int64_t ahead = position_ahead(at, head);

    if (ahead < (int64_t) ring->bound) {
        return true; /* or `at` is old, as the slot will show */
    }
    if (arena->grows || ahead >= (int64_t) ring->slots) {
        return false;
    }
    uint32_t open = 0;

    for (uint64_t p = head; p != at && open < ring->bound; p = position_after(p, 1)) {
        open += !is_passed(ring, load_slot(ring, p), p);
    }
    return open < ring->bound;
}

/* The same, and first without a look at a word that receivers write.  Under arena_lock.  tries: of the claim, which
   go up with each slot that is mended. */
static bool
finds_place(mpshm_arena *arena, struct ring *ring, uint64_t at, uint32_t *tries)
{
    if (position_after(at, -ring->head_seen) < ring->bound) {
        return true;
    }
    for (; *tries < TRIES; ++*tries) {
        ring->head_seen = HEAD_POSITION(ring_advance(arena, ring));
        if (has_place(arena, ring, ring->head_seen, at)) {
            return true;
        }
        if (!mend(arena, ring, ring->head_seen)) {
            break;
        }
    }
    return false;
}

bool
ring_has_room(mpshm_arena *arena, struct ring *ring, uint64_t at)
{
    return has_place(arena, ring, HEAD_POSITION(ring_advance(arena, ring)), at);
}

/* How many positions are open from where receivers begin to position `at` of that ring, if they are not more than
   `most`. */
static uint32_t
count_open(const mpshm_arena *arena, const struct start *start, const struct ring *ring, uint64_t at, uint32_t most)
{
    struct stop stop = {start->ring, start->link};
    uint64_t from = start->at, end;
    uint32_t open = 0;

    for (uint32_t i = 0; i < RINGS && stop.ring != NULL; i++) {
        const struct ring *here = stop.ring;
        int on = here == ring ? 0 : chain_on(arena, &stop, &end);

        for (uint64_t p = from, to = here == ring ? at : end; open < most && position_ahead(to, p) > 0;
             p = position_after(p, 1)) {
            open += !is_passed(here, load_slot(here, p), p);
        }
        if (on != 1) {
            break;
        }
        from = HEAD_POSITION(atomic_load(&stop.ring->head->head));
    }
    return open;
}

/* The same as has_place, for a bound that is longer than a ring.  Whoever dead is in the way is mended.  G1 */
bool
ring_is_within_bound(mpshm_arena *arena, const struct ring *ring, uint64_t at)
{
    uint64_t all = position_after(atomic_load(&ring->head->before), at);

    for (uint32_t tries = 0; tries < TRIES; tries++) {
        struct start start = chain_go_on(arena);
        struct passed passed = chain_passed(arena);

        if (start.ring == NULL || position_ahead(all, passed.positions) < (int64_t) arena->bound) {
            return true; /* or `at` is old, as the slot will show */
        }
        if (count_open(arena, &start, ring, at, arena->bound) < arena->bound) {
            return true;
        }
        if (!mend(arena, start.ring, start.at)) {
            return false;
        }
    }
    return false;
}

/* The same, and first without a look at words that receivers write.  Under arena_lock. */
static bool
finds_bound(mpshm_arena *arena, const struct ring *ring, uint64_t at)
{
    uint64_t all = position_after(atomic_load(&ring->head->before), at);

    if (position_after(all, -arena->passed_seen) < arena->bound) {
        return true;
    }
    bool found = ring_is_within_bound(arena, ring, at);

    arena->passed_seen = chain_passed(arena).positions;
    return found;
}

static void
move_tail(struct ring *ring, uint64_t from)
{
    uint64_t at = from;

    atomic_compare_exchange_strong(&ring->head->tail, &at, position_after(from, 1));
}

/* The ring where a claim is tried, which `last` names, and its tail.  False: it is not to be had. */
static inline bool
last_ring(mpshm_arena *arena, struct tail *tail)
{
    struct chain *chain = arena->chain;

    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint64_t last = atomic_load_explicit(&chain->last, memory_order_acquire);

        tail->link = (name) last & NAME_MASK;
        tail->ring = ring_at(arena, LINK_RING(tail->link));
        if (tail->ring == NULL) {
            return false;
        }
        tail->at = tail_of(tail->ring);
        if (link_lives(arena, tail->link)) { /* after the tail: C2 */
            return true;
        }
        atomic_compare_exchange_strong(&chain->last, &last, FIRST_LINK(atomic_load(&chain->first)));
    }
    return false;
}

/* Where the next claim is tried: false: it is not to be had, or it is a stray write. */
static inline bool
find_tail(mpshm_arena *arena, struct tail *tail)
{
    if (!arena->grows) {
        tail->ring = &arena->zero;
        tail->at = tail_of(tail->ring);
        tail->word = load_slot(tail->ring, tail->at);
        return true;
    }
    for (uint32_t tries = 0; tries < RINGS && last_ring(arena, tail); tries++) {
        tail->word = load_slot(tail->ring, tail->at);
        if (!is_next(tail->ring, tail->word, tail->at)) {
            return true;
        }
        uint64_t last = tail->link;

        atomic_compare_exchange_strong(&arena->chain->last, &last, SLOT_OWNER(tail->word));
    }
    return false;
}

/* Whether a claim can swap that word. */
static inline bool
is_claimable(const struct ring *ring, uint64_t word, uint64_t at)
{
    int64_t ahead = word_ahead(ring, word, at);

    return (ahead == 0 && SLOT_STATE(word) == SLOT_FREE)
           || (ahead == -(int64_t) ring->slots && SLOT_STATE(word) == SLOT_SKIPPED);
}

/* The end of the chain, and a slot there that can be claimed; the tails before it are moved on. */
bool
ring_tail(mpshm_arena *arena, struct tail *tail)
{
    for (uint32_t tries = 0; tries < TRIES && find_tail(arena, tail); tries++) {
        if (is_claimable(tail->ring, tail->word, tail->at)) {
            return true;
        }
        if (word_ahead(tail->ring, tail->word, tail->at) >= 0) {
            move_tail(tail->ring, tail->at);
        }
    }
    return false;
}

/* Claim the next positions, as WRITING or HELD: how many; fewer when the ring is full.  G1, G2 */
uint32_t
ring_claim(mpshm_arena *arena, enum slot_state state, uint32_t count, uint64_t *spots)
{
    struct tail tail;
    uint32_t n = 0;

    INVARIANT(A4, arena_is_locked(arena));
    INVARIANT(G8, arena->me != 0 && (state == SLOT_WRITING || state == SLOT_HELD));
    for (uint32_t tries = 0; n < count && tries < TRIES; tries++) {
        if (!find_tail(arena, &tail) || !finds_place(arena, tail.ring, tail.at, &tries)
            || (arena->grows && arena->bound != 0 && !finds_bound(arena, tail.ring, tail.at))) {
            break;
        }
        if (is_claimable(tail.ring, tail.word, tail.at)) {
            if (atomic_compare_exchange_strong(slot_word(tail.ring, tail.at), &tail.word,
                                               word_of(tail.ring, tail.at, arena->me, state))) {
                INVARIANT(G2, n == 0 || SPOT_RING(spots[n - 1]) != tail.ring->number
                                  || position_ahead(tail.at, SPOT_POSITION(spots[n - 1])) > 0);
                spots[n++] = SPOT(tail.ring->number, tail.at);
                tries = 0;
                move_tail(tail.ring, tail.at);
            }
        } else if (word_ahead(tail.ring, tail.word, tail.at) >= 0) {
            move_tail(tail.ring, tail.at);
        }
    }
    return n;
}

/* Whether the position is claimed and kept by this process.  Any number may be asked for. */
bool
ring_is_held(const mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = spot <= SPOT_MASK ? ring_at(arena, SPOT_RING(spot)) : NULL;
    uint64_t position = SPOT_POSITION(spot);

    return ring != NULL && arena->me != 0
           && load_slot(ring, position) == word_of(ring, position, arena->me, SLOT_HELD);
}

/* Whether the slot has passed that position, so that a run in flight at it is nobody's. */
bool
ring_has_passed(const mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot);

    return ring != NULL && is_passed(ring, atomic_load(slot_word(ring, position)), position);
}

/* The message that was put at that spot is not to be taken, if nobody has begun to take it: by its sender (tracking.c); or,
   if it is not whole without that, once it is dead (stream.c).  False: it has been taken. */
bool
ring_take_back(mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t position = SPOT_POSITION(spot);

    if (ring == NULL) {
        return false;
    }
    uint64_t word = word_of(ring, position, 0, SLOT_READY);

    if (!atomic_compare_exchange_strong(slot_word(ring, position), &word,
                                        word_of(ring, position, 0, SLOT_SKIPPED))) {
        return false;
    }
    (void) chain_go_on(arena);
    return true;
}

/* Who takes the message at that spot; 0: nobody now. */
name
ring_taker(const mpshm_arena *arena, uint64_t spot)
{
    const struct ring *ring = ring_at(arena, SPOT_RING(spot));
    uint64_t word = load_slot(ring, SPOT_POSITION(spot));

    return word_ahead(ring, word, SPOT_POSITION(spot)) == 0 && SLOT_STATE(word) == SLOT_TAKING ? SLOT_OWNER(word) : 0;
}
