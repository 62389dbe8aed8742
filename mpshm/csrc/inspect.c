/* Inspection: an arena's gauges, and the walk over it that checks its invariants.

   Knows run words, slots' words and segments to read them; changes no shared word.  Both walks are safe
   while other processes work: a gauge may then be off by what moved meanwhile; the check holds at every
   moment.

   Invariants: it checks L1 to L4, G1, G2 and G8 (invariants.h).

   Memory order: a slot's word is loaded between two loads of head and tail, all sequentially consistent;
   segment_validate says why its look at a run is safe. */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* What is wrong with a slot whose word was loaded after the head was `head` and before the tail was
   `tail`: -line, or 0.  G1, G2, G8 */
static int
validate_slot(uint64_t slot, uint64_t word, uint64_t head, uint64_t tail)
{
    uint64_t position = SLOT_LAP(word) * RING_SLOTS + slot;
    bool is_free = SLOT_STATE(word) == SLOT_FREE;

    if (SLOT_STATE(word) > SLOT_READY || SLOT_OWNER(word) > PEER_LIMIT
        || (SLOT_OWNER(word) != 0 && SLOT_STATE(word) != SLOT_WRITING)) {
        return -__LINE__; /* G8 */
    }
    if (position < head) {
        return -__LINE__; /* G2: the head passed a slot that is not done with */
    }
    /* A claimed position is at most the tail; a free one was claimed a lap before. */
    if (position > (is_free ? tail + RING_SLOTS : tail)) {
        return -__LINE__; /* G1, G2: a lap ahead of its position */
    }
    return 0;
}

/* Walk the ring: 1 if its invariants hold, else -line of the one that does not.  Safe while other
   processes work, for each bound is loaded on the side that makes it looser.
   rests: no process works, and the dead were reaped, so no slot is being written. */
int
ring_validate(mpshm_arena *arena, bool rests)
{
    struct ring *ring = arena->ring;

    if (arena->slot_bytes == 0) {
        return 1; /* a connection's arena: no ring is used, nor made resident by this walk */
    }
    uint64_t head = atomic_load(&ring->head), tail = atomic_load(&ring->tail);

    for (uint64_t i = 0; i < RING_SLOTS; i++) {
        uint64_t word = atomic_load(&ring->slots[i].word);
        int wrong = validate_slot(i, word, head, atomic_load(&ring->tail));

        if (wrong != 0) {
            return wrong;
        }
        if (SLOT_STATE(word) == SLOT_FREE && SLOT_LAP(word) * RING_SLOTS + i < tail) {
            return -__LINE__; /* G2: the tail passed a position that was not claimed */
        }
        if (rests && SLOT_STATE(word) == SLOT_WRITING) {
            return -__LINE__; /* G1: its sender is gone */
        }
    }
    if (head > atomic_load(&ring->tail) + 1) {
        return -__LINE__; /* G2 */
    }
    /* A receiver takes a position only after it has moved the head to within a lap of it. */
    if (tail > atomic_load(&ring->head) + 2 * RING_SLOTS) {
        return -__LINE__; /* G2 */
    }
    return 1;
}

/* Call `visit` for every segment of the directory, mapping those that this process has not mapped
   yet, until one call gives 0 or less: that result, or 1. */
static int
for_each_segment(mpshm_arena *arena, int (*visit)(struct segment *, void *), void *context)
{
    int result = 1;

    pthread_mutex_lock(&mpshm_process.lock);
    for (uint32_t id = 0; id < arena->segment_limit && result > 0; id++) {
        struct segment *seg;

        if (atomic_load(&arena->header->segment[id]) != 0) {
            result = segment_map(arena, id, &seg);
            if (result == 0) {
                result = visit(seg, context);
            }
        }
    }
    pthread_mutex_unlock(&mpshm_process.lock);
    return result;
}

static int
visit_valid(struct segment *seg, void *context)
{
    (void) context;
    return segment_validate(seg);
}

int
mpshm_arena_is_valid(mpshm_arena *arena)
{
    int ring = arena->ring == NULL ? 1 : ring_validate(arena, false);

    return ring < 0 ? ring : for_each_segment(arena, visit_valid, NULL);
}

static int
visit_gauges(struct segment *seg, void *context)
{
    mpshm_gauges *out = context;

    out->segments++;
    for (uint32_t at = 0; at < seg->count;) {
        uint64_t word = atomic_load_explicit(&seg->runs[at], memory_order_relaxed);
        uint64_t bytes = (uint64_t) RUN_CHUNKS(word) << seg->shift;

        switch (RUN_STATE(word)) {
        case RUN_FREE:
            at++;
            continue;
        case RUN_LOANED:
            out->runs_loaned++;
            out->bytes_loaned += bytes;
            break;
        case RUN_IN_FLIGHT:
            out->runs_in_flight++;
            out->bytes_in_flight += bytes;
            break;
        case RUN_LEASED:
            out->runs_leased++;
            out->bytes_leased += bytes;
            break;
        }
        at += RUN_CHUNKS(word) ? RUN_CHUNKS(word) : 1;
    }
    return 1;
}

int
mpshm_arena_gauges(mpshm_arena *arena, mpshm_gauges *out)
{
    struct stat status;

    memset(out, 0, sizeof *out);
    if (fstat(arena->fd, &status) == -1) {
        return -errno;
    }
    out->bytes_resident = (uint64_t) status.st_blocks * 512;
    int result = for_each_segment(arena, visit_gauges, out);

    return result < 0 ? result : 0;
}
