/* Inspection: an arena's gauges, and the walk over it that checks its invariants.

   Knows run words and segments to read them; changes no shared word.  Both walks are safe
   while other processes work: a gauge may then be off by what moved meanwhile; the check holds at every
   moment.

   Invariants: segment_check.c and ring_check.c check them.

   Memory order: none of its own */
#include "internal.h"

#include "stream.h"

#include <string.h>

/* Call `visit` for every segment of the directory, mapping those that this process has not mapped
   yet, until one call gives 0 or less: that result, or 1.  The process's other channels go on meanwhile.
   locked: visit is called under the lock. */
static int
for_each_segment(mpshm_arena *arena, bool locked, int (*visit)(struct segment *, void *), void *context)
{
    int result = 1;

    for (uint32_t id = 0; id < arena->segment_limit && result > 0; id++) {
        struct segment *seg;

        if (atomic_load(&arena->header->segment[id]) == 0) {
            continue;
        }
        arena_lock(arena);
        result = segment_map(arena, id, &seg);
        if (result == 0 && locked) {
            result = visit(seg, context);
        }
        arena_unlock(arena);
        if (!locked && result == 0) {
            result = visit(seg, context);
        }
    }
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
    int ring = arena->chain == NULL ? 1 : ring_validate(arena, false);

    if (ring > 0 && arena->chain != NULL) {
        ring = stream_validate(arena, false);
    }
    return ring < 0 ? ring : for_each_segment(arena, true, visit_valid, NULL);
}

static int
visit_gauges(struct segment *seg, void *context)
{
    mpshm_gauges *out = context;

    out->segments++;
    for (uint32_t at = 0; at < segment_high(seg);) {
        uint64_t word = atomic_load_explicit(&seg->runs[at].word, memory_order_relaxed);
        uint32_t chunks = RUN_STATE(word) == RUN_FREE ? 1 : run_chunks_at(seg, at);
        uint64_t bytes = (uint64_t) chunks << seg->shift;

        switch (RUN_STATE(word)) {
        case RUN_FREE:
            break;
        case RUN_LOANED:
            out->runs_loaned++;
            out->bytes_loaned += bytes;
            break;
        case RUN_FLIGHT:
        case RUN_CANCELLED: /* until its frame is met */
            out->runs_in_flight++;
            out->bytes_in_flight += bytes;
            break;
        case RUN_LEASED:
        case RUN_SHARED:
            out->runs_leased++;
            out->bytes_leased += bytes;
            break;
        }
        at += chunks;
    }
    return 1;
}

int
mpshm_arena_gauges(mpshm_arena *arena, mpshm_gauges *out)
{
    memset(out, 0, sizeof *out);
    out->bytes_resident = arena_resident(arena);
    int result = for_each_segment(arena, false, visit_gauges, out);

    return result < 0 ? result : 0;
}
