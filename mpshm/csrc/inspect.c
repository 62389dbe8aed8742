/* Inspection: an arena's gauges, and the walk over it that checks its invariants.

   Knows run words and segments to read them; changes no shared word.  Both walks are safe
   while other processes work: a gauge may then be off by what moved meanwhile; the check holds at every
   moment.

   Invariants: it checks L1 to L4 and L7 (invariants.h); ring_validate does the ring's.

   Memory order: segment_validate says why its look at a run is safe. */
#include "internal.h"

#include <string.h>
#include <sys/stat.h>

/* What is wrong with the run at `at`: -line, or 0. */
static int
validate_run(struct segment *seg, uint32_t at, uint64_t word)
{
    uint32_t chunks = EXTENT_CHUNKS(atomic_load(&seg->runs[at].more));

    if (RUN_STATE(word) > RUN_SHARED || chunks == 0 || chunks > seg->count - at) {
        return -__LINE__; /* L2: state, length */
    }
    if ((RUN_STATE(word) == RUN_LOANED || RUN_STATE(word) == RUN_LEASED) && RUN_HOLDER(word) == 0) {
        return -__LINE__; /* L2: nobody's */
    }
    if (RUN_STATE(word) == RUN_SHARED && chunks < 3) {
        return -__LINE__; /* L7: no room for names */
    }
    for (uint32_t c = at + 1; c < at + chunks; c++) {
        if (RUN_STATE(atomic_load(&seg->runs[c].word)) != RUN_FREE) {
            return -__LINE__; /* L2: overlap */
        }
    }
    return 0;
}

/* What is wrong with the maps, which this process holds the lock of: -line, or 0. */
static int
validate_maps(struct segment *seg)
{
    if (seg->map[seg->count / 64] >> (seg->count % 64) != 0) {
        return -__LINE__; /* L1: guard and padding */
    }
    for (uint32_t at = 0; at < segment_high(seg);) {
        uint64_t word = atomic_load(&seg->runs[at].word);

        if (RUN_STATE(word) == RUN_FREE) {
            at++;
            continue;
        }
        if (!freemap_has(seg->heads, at)) {
            return -__LINE__; /* L4: a run that the maps do not know */
        }
        for (uint32_t c = at; c < at + run_chunks_at(seg, at); c++) {
            if (freemap_has(seg->map, c)) {
                return -__LINE__; /* L4: lent and free */
            }
        }
        at += run_chunks_at(seg, at);
    }
    return 0;
}

/* Walk the segment: 1 if its invariants hold, else -line of the one that does not.

   Safe while other processes work.  A run may end during the look at it, and its chunks be lent again, or its
   tail may be: then its word has changed, by state or by tag, or its length, and it is looked at again. */
int
segment_validate(struct segment *seg)
{
    uint64_t directory = atomic_load(&seg->arena->header->segment[seg->id]);

    if (DIR_SHIFT(directory) != seg->shift || DIR_COUNT(directory) != seg->count) {
        return -__LINE__; /* L3 */
    }
    for (uint32_t at = 0; at < segment_high(seg);) {
        uint64_t word = atomic_load(&seg->runs[at].word), more = atomic_load(&seg->runs[at].more);
        int wrong = RUN_STATE(word) == RUN_FREE ? 0 : validate_run(seg, at, word);

        if (wrong == 0) {
            at += RUN_STATE(word) == RUN_FREE ? 1 : run_chunks_at(seg, at);
        } else if (atomic_load(&seg->runs[at].word) == word && atomic_load(&seg->runs[at].more) == more) {
            return wrong;
        }
    }
    int wrong = 0;

    if (seg->arena->joined == mpshm_process.generation && seg->arena->me != 0 && segment_try_lock(seg)) {
        wrong = validate_maps(seg);
        segment_unlock(seg);
    }
    return wrong == 0 ? 1 : wrong;
}

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
    int ring = arena->ring == NULL ? 1 : ring_validate(arena, false);

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
    struct stat status;

    memset(out, 0, sizeof *out);
    if (arena_has_file(arena) && fstat(arena->fd, &status) == 0) { /* else it cannot be known any more */
        out->bytes_resident = (uint64_t) status.st_blocks * 512;
    }
    int result = for_each_segment(arena, false, visit_gauges, out);

    return result < 0 ? result : 0;
}
