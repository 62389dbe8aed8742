/* The walk over a segment that checks its invariants.

   Knows run words and maps to read them; changes no shared word but the lock's.

   Invariants: it checks L1 to L4 and L7 (invariants.h).

   Memory order: segment_validate says why its look at a run is safe. */
#include "internal.h"

/* Looks at runs that have changed meanwhile. */
#define TRIES 1000000

/* What is wrong with the run at `at`: -line, or 0. */
static int
validate_run(struct segment *seg, uint32_t at, uint64_t word)
{
    uint32_t chunks = EXTENT_CHUNKS(atomic_load(&seg->runs[at].more));

    if (RUN_STATE(word) > RUN_CANCELLED || chunks == 0 || chunks > seg->count - at) {
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
        uint32_t chunks = run_chunks_at(seg, at);

        for (uint32_t c = at; c < at + chunks; c++) {
            if (freemap_has(seg->map, c)) {
                return -__LINE__; /* L4: lent and free */
            }
        }
        at += chunks;
    }
    return 0;
}

/* Walk the segment: 1 if its invariants hold, else -line of the one that does not.

   Safe while other processes work.  A run may end during the look at it, and its chunks be lent again, or its
   tail may be: then its word has changed, by state or by tag, or its length, and it is looked at again; not for
   ever, for a stray write may go on. */
int
segment_validate(struct segment *seg)
{
    uint32_t tries = 0;

    uint64_t directory = atomic_load(&seg->arena->header->segment[seg->id]);

    if (DIR_SHIFT(directory) != seg->shift || DIR_COUNT(directory) != seg->count) {
        return -__LINE__; /* L3 */
    }
    for (uint32_t at = 0; at < segment_high(seg);) {
        uint64_t word = atomic_load(&seg->runs[at].word), more = atomic_load(&seg->runs[at].more);
        int wrong = RUN_STATE(word) == RUN_FREE ? 0 : validate_run(seg, at, word);

        if (wrong == 0) {
            at += RUN_STATE(word) == RUN_FREE ? 1 : run_chunks_at(seg, at);
        } else if (++tries > TRIES
                   || (atomic_load(&seg->runs[at].word) == word && atomic_load(&seg->runs[at].more) == more)) {
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
