/* The chain: how a queue gets further rings, and gives them back.

   When a ring is full, its last slot is claimed for a link to another, which has been made beforehand.  This one
   compare-and-swap ends the one ring and joins the next.  Receivers take what is in the first ring, and when its head
   stands at the link, they begin in the next; whoever moved `first` on releases the ring.

     FREE --chain_grow, chain_shrink--> MAKING (me) --linked--> USED --the head stands at its end--> FREE, next life
                                          '--another was quicker, no memory--> FREE of the next life
     FREE --chain_take_cold--> MAKING (me) --its memory given back--> FREE of the next life
     USED, or MAKING (dead), and not in the chain --reaped--> FREE of the next life

   A queue goes back to ring 0 when little is in it, so that few lines of the cache are in use.

   Knows rings' words, the first and the last of the chain.  Does not know what lies in a slot, nor when a queue is to
   grow.

   Invariants: C1 to C4, A4, G8 (invariants.h).

   Memory order: all is sequentially consistent.  What a maker writes comes before the link, and whoever reads the ring
   has read the link. */
#include "internal.h"

#include <errno.h>

#include "refuse.h"
#include "ring.h"

/* A queue goes back to ring 0 when no more than this is in it. */
#define FEW_OPEN (RING_SLOTS / 4)

bool
chain_has_room(mpshm_arena *arena)
{
    struct tail tail;

    if (!arena->grows) {
        return ring_has_room(arena, &arena->zero, ring_end(&arena->zero));
    }
    return ring_tail(arena, &tail) && ring_has_room(arena, tail.ring, tail.at);
}

/* Whether no position can be claimed, or could not though a further ring were linked. */
bool
chain_is_full(mpshm_arena *arena)
{
    struct tail tail;

    if (!arena->grows || arena->bound == 0) {
        return !chain_has_room(arena);
    }
    return ring_tail(arena, &tail) && !ring_is_within_bound(arena, tail.ring, tail.at);
}

bool
chain_mend(mpshm_arena *arena)
{
    struct start start = chain_first(arena);
    struct stop stop = {start.ring, start.link};
    uint64_t at = start.at, end;
    bool any = false;

    for (uint32_t i = 0; i < RINGS && stop.ring != NULL; i++) {
        any |= ring_mend_from(arena, stop.ring, at);
        if (!arena->grows || chain_on(arena, &stop, &end) != 1) {
            break;
        }
        at = HEAD_POSITION(ring_advance(arena, stop.ring));
    }
    if (any) {
        (void) chain_go_on(arena);
    }
    return any;
}

/* Making rings. */

/* Have that ring be this process's, if it is free: its word then. */
static bool
take_free(mpshm_arena *arena, uint32_t number, uint64_t *made)
{
    uint64_t word = atomic_load(&arena->chain->word[number]);

    *made = RING_WORD(RING_LIFE(word), arena->me, RING_MAKING);
    return RING_STATE(word) == RING_FREE
           && atomic_compare_exchange_strong(&arena->chain->word[number], &word, *made);
}

/* Whether the ring is there, with memory where the file system may run full. */
static bool
has_memory(mpshm_arena *arena, const struct ring *ring)
{
    if (ring == NULL || memory_is_refused()) {
        return false;
    }
    return ring->number == 0 || !arena->bounded
           || (arena_has_file(arena)
               && memfile_reserve(arena->fd, ring_offset(arena, ring->number),
                                  ring_apart_bytes(ring->slots, arena->overflowing)) == 0);
}

/* Begin the life of a ring that is to lie behind position `at` of another.  The slot that linked it in its last life
   has passed; skips count anew.  C3 */
static void
begin_life(mpshm_arena *arena, struct ring *ring, const struct ring *other, uint64_t at)
{
    uint64_t begin = HEAD_POSITION(atomic_load(&ring->head->head));

    INVARIANT(C3, RING_MAKER(atomic_load(&arena->chain->word[ring->number])) == arena->me);
    if (ring->number != 0) {
        atomic_fetch_or(&arena->chain->touched, UINT64_C(1) << ring->number);
    }
    if (is_next(ring, load_slot(ring, begin), begin)) {
        atomic_store(slot_word(ring, begin), passed_word(ring, begin));
    }
    begin = position_after(begin, is_passed(ring, load_slot(ring, begin), begin));
    atomic_store(&ring->head->tail, begin); /* else a sum that comes before the first claim takes the old slot for the end */
    atomic_store(&ring->head->head, HEAD_WORD(0, begin));
    atomic_store(&ring->head->before, position_after(atomic_load(&other->head->before), at - begin));
}

/* Link a ring that this process has taken at that tail: 0; -EAGAIN: another process was quicker; -ENOSPC: there is no
   memory for it.  C1 */
static int
link_ring(mpshm_arena *arena, struct tail *tail, uint32_t number, uint64_t made)
{
    struct chain *chain = arena->chain;
    struct ring *ring = ring_at(arena, number);
    uint32_t life = RING_LIFE(made);
    uint64_t last = tail->link;

    if (!has_memory(arena, ring)) {
        ring_end_life(arena, number, life);
        return -ENOSPC;
    }
    begin_life(arena, ring, tail->ring, tail->at);
    if (!atomic_compare_exchange_strong(slot_word(tail->ring, tail->at), &tail->word,
                                        word_of(tail->ring, tail->at, LINK(number, life), SLOT_NEXT))) {
        ring_end_life(arena, number, life);
        return -EAGAIN;
    }
    /* Receivers may have ended it already. */
    atomic_compare_exchange_strong(&chain->word[number], &made, RING_WORD(life, 0, RING_USED));
    atomic_compare_exchange_strong(&chain->last, &last, LINK(number, life));
    return 0;
}

/* The same for the next free ring, from the one behind the last of the chain on. */
static int
link_any(mpshm_arena *arena, struct tail *tail)
{
    uint64_t made;

    for (uint32_t i = 1; i < arena->rings; i++) {
        uint32_t number = (tail->ring->number + i) % arena->rings;

        if (take_free(arena, number, &made)) {
            return link_ring(arena, tail, number, made);
        }
    }
    return -ENOSPC;
}

static int
grow(mpshm_arena *arena)
{
    for (uint32_t tries = 0; tries < RING_TRIES; tries++) {
        struct tail tail;

        if (!ring_tail(arena, &tail)) {
            break;
        }
        int error = ring_has_room(arena, tail.ring, tail.at) ? 0 : link_any(arena, &tail);

        if (error != -EAGAIN) {
            return error;
        }
    }
    return -ENOSPC;
}

/* Perhaps the dead have the rings that are missing. */
int
chain_grow(mpshm_arena *arena)
{
    INVARIANT(A4, arena_is_locked(arena));
    if (!arena->grows || arena->me == 0) {
        return -ENOSPC;
    }
    int error = grow(arena);

    if (error != 0) {
        chain_reap(arena);
        error = grow(arena);
    }
    return error;
}

/* Link ring 0 if a longer one is the last and little is in the queue: whether that has been done. */
bool
chain_shrink(mpshm_arena *arena)
{
    struct tail tail;
    uint64_t made;

    INVARIANT(A4, arena_is_locked(arena));
    return arena->grows && arena->me != 0 && RING_STATE(atomic_load(&arena->chain->word[0])) == RING_FREE
           && ring_tail(arena, &tail) && tail.ring->number != 0
           && chain_backlog(arena) <= (int64_t) FEW_OPEN /* behind ring_tail, which corrects `last` */
           && take_free(arena, 0, &made) && link_ring(arena, &tail, 0, made) == 0;
}

/* Memory of rings. */

bool
chain_take_cold(mpshm_arena *arena, uint32_t number, uint64_t *made)
{
    uint64_t bit = UINT64_C(1) << number;

    INVARIANT(A4, arena_is_locked(arena));
    if ((atomic_load(&arena->chain->touched) & bit) == 0 || arena->me == 0 || !take_free(arena, number, made)) {
        return false;
    }
    atomic_fetch_and(&arena->chain->touched, ~bit);
    return true;
}

void
chain_put_back(mpshm_arena *arena, uint32_t number, uint64_t made, bool is_cold)
{
    if (!is_cold) {
        atomic_fetch_or(&arena->chain->touched, UINT64_C(1) << number);
    }
    ring_end_life(arena, number, RING_LIFE(made));
}

/* Reaping. */

/* Whether that life of a ring is in the chain.  What cannot be told counts as if it were. */
static bool
is_in_chain(mpshm_arena *arena, name link)
{
    for (uint32_t tries = 0; tries < RINGS; tries++) {
        struct stop stop;
        uint64_t end;
        int on = chain_begin(arena, &stop) ? 1 : -1;

        for (uint32_t i = 0; i < RINGS && on == 1; i++) {
            if (stop.link == link) {
                return true;
            }
            on = chain_on(arena, &stop, &end);
        }
        if (on == 0) {
            return false;
        }
    }
    return true;
}

/* A ring that was linked before is in the chain, or was: so one that is not in it is nobody's.  C4 */
static void
reap_ring(mpshm_arena *arena, uint32_t number)
{
    _Atomic uint64_t *at = &arena->chain->word[number];
    uint64_t word = atomic_load(at);
    enum ring_state state = RING_STATE(word);
    bool may_be_lost = state == RING_USED || (state == RING_MAKING && arena_name_is_dead(arena, RING_MAKER(word)));

    if (may_be_lost && !is_in_chain(arena, LINK(number, RING_LIFE(word)))) {
        atomic_compare_exchange_strong(at, &word, RING_WORD(RING_LIFE(word) + 1, 0, RING_FREE));
    }
}

void
chain_reap(mpshm_arena *arena)
{
    (void) chain_mend(arena);
    for (uint32_t number = 0; arena->grows && number < arena->rings; number++) {
        reap_ring(arena, number);
    }
}
