/* Inspection: an arena's gauges, and the walk over it that checks its invariants.

   Knows run words and segments to read them; changes no shared word.  Both walks are safe while other
   processes work: a gauge may then be off by what moved meanwhile; the check holds at every moment.

   Invariants: it checks L1 to L4 and G1, G2 (invariants.h). */
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

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
