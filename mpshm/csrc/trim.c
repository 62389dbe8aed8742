/* Trimming: giving back the memory of free chunks that nobody has used lately.

   There is no thread for it.  Whoever is about to sleep or has given back a large run looks whether it is
   time; so when all compute, what the last one left stays.

   The warm set of a segment are its chunks below the end of what was lent in the last period, for claims take
   the lowest that are free.  It is at least its part of KEEP_WARM.

   Knows the segment's maps.  Does not know runs, nor why it is called.

   Invariants: A4, S3 (invariants.h).

   Memory order: all is the lock's (segment.c), but `trimmed`, which orders nothing. */
#define _GNU_SOURCE
#include "internal.h"

#include <fcntl.h>
#include <time.h>

/* Bytes that stay warm however seldom they are used, at the beginnings of all segments together and of each at
   least.  A sender waits when so much is in flight, so a stream of messages needs no more. */
#define KEEP_WARM (UINT64_C(24) << 20)
#define KEEP_WARM_EACH (UINT64_C(256) << 10)
/* What nobody has used for one to two periods goes back. */
#define PERIOD_NS INT64_C(1500000000)
/* A punch holds the file's lock and the segment's: 0.15 ms for each MiB.  Between two, others have them. */
#define PUNCH_BYTES (UINT64_C(1) << 20)

struct trim {
    enum warmth keep;
    uint32_t period;
    uint64_t least_bytes; /* that a segment keeps */
};

static uint32_t
period_now(void)
{
    struct timespec now; /* coarse: it costs a tenth, and is asked before each sleep */

#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
    clock_gettime(CLOCK_MONOTONIC, &now);
#endif
    return (uint32_t) ((now.tv_sec * INT64_C(1000000000) + now.tv_nsec) / PERIOD_NS) + 1; /* 0 is never */
}

/* A segment larger than usual, made for one run. */
static bool
is_to_size(const mpshm_arena *arena, uint32_t id)
{
    uint64_t word = atomic_load(&arena->header->segment[id]);

    return (uint64_t) DIR_COUNT(word) << DIR_SHIFT(word) > arena->segment_bytes;
}

static uint32_t
largest_segment(const mpshm_arena *arena, uint32_t count)
{
    uint64_t most = 0;
    uint32_t largest = 0;

    for (uint32_t id = 0; id < count; id++) {
        uint64_t word = atomic_load(&arena->header->segment[id]);
        uint64_t bytes = (uint64_t) DIR_COUNT(word) << DIR_SHIFT(word);

        if (bytes > most) {
            most = bytes;
            largest = id;
        }
    }
    return largest;
}

/* The chunks of a segment that stay.  Under its lock.  It may be a new period for it. */
static uint64_t
warm_chunks(struct segment *seg, const struct trim *trim)
{
    struct segment_head *head = seg->head;
    uint64_t least = trim->least_bytes >> seg->shift, warm;

    if (trim->keep != KEEP_LATELY) {
        return trim->keep == KEEP_LEAST ? least : 0;
    }
    if (head->period != trim->period) {
        head->lent_before = head->lent_to;
        head->lent_to = 0;
        head->period = trim->period;
    }
    warm = head->lent_to > head->lent_before ? head->lent_to : head->lent_before;
    return warm > least ? warm : least;
}

/* The next chunks from *at on that are free and have memory, at most `most`; 0: there are none. */
static uint32_t
next_cold(const struct segment *seg, uint32_t *at, uint32_t most)
{
    while (*at < seg->count) {
        uint64_t both = seg->map[*at / 64] & seg->touched[*at / 64];

        if (both >> (*at % 64) == 0) {
            *at = (*at / 64 + 1) * 64;
            continue;
        }
        *at += (uint32_t) __builtin_ctzll(both >> (*at % 64));
        if (*at >= seg->count) {
            break;
        }
        uint32_t n = freemap_stretch(seg->map, seg->count, *at, most);

        return freemap_stretch(seg->touched, *at + n, *at, n);
    }
    return 0;
}

/* Punch one slice from chunk *at on, and move it behind.  Bytes given back; 0: nothing is left.  The bits first:
   killed in between, the memory stays until the chunks are lent again, and no chunk counts as having memory that
   has none. */
static uint64_t
punch_slice(struct segment *seg, uint32_t *at)
{
#ifdef FALLOC_FL_PUNCH_HOLE
    uint32_t most = (uint32_t) (PUNCH_BYTES >> seg->shift), n = next_cold(seg, at, most > 0 ? most : 1);

    if (n == 0 || *at + n > seg->count) {
        return 0;
    }
    freemap_clear(seg->touched, *at, n);
    seg->head->punched++;
    (void) fallocate(seg->arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t) (segment_file_offset(seg) + seg->data_at + ((uint64_t) *at << seg->shift)),
                     (off_t) ((uint64_t) n << seg->shift));
    *at += n;
    return (uint64_t) n << seg->shift;
#else
    (void) seg;
    (void) at;
    return 0;
#endif
}

/* Bytes given back of the segment's next slice from chunk *at on, which moves behind it; 0: nothing is left, or the
   segment is in use at this moment: then the rest is for the next time.  The process's other channels go on
   between two slices. */
static uint64_t
trim_slice(mpshm_arena *arena, uint32_t id, const struct trim *trim, uint32_t *at)
{
    struct segment *seg;
    uint64_t given = 0;

    arena_lock(arena);
    if (arena->me != 0 && segment_map(arena, id, &seg) == 0 && segment_try_lock(seg)) {
        if (*at == 0) {
            (void) segment_look_again(seg);
        }
        uint64_t warm = warm_chunks(seg, trim);

        *at = *at > warm ? *at : (uint32_t) (warm < seg->count ? warm : seg->count);
        given = punch_slice(seg, at);
        segment_unlock(seg);
    }
    arena_unlock(arena);
    return given;
}

static uint64_t
give_back(mpshm_arena *arena, enum warmth keep)
{
    uint32_t count = segment_count(arena), largest = largest_segment(arena, count);
    struct trim trim = {.keep = keep, .period = period_now()};
    uint64_t given = 0;

    if (count == 0 || !arena_has_file(arena)) {
        return 0;
    }
    trim.least_bytes = KEEP_WARM / count > KEEP_WARM_EACH ? KEEP_WARM / count : KEEP_WARM_EACH;
    for (uint32_t id = 0; id < count; id++) {
        uint64_t slice = 1;
        uint32_t at = 0;

        if (keep == KEEP_LARGEST && (id == largest || !is_to_size(arena, id))) {
            continue;
        }
        for (; slice > 0; given += slice) {
            slice = trim_slice(arena, id, &trim, &at);
        }
    }
    return given;
}

/* What somebody has asked for; else once a period, whoever comes first. */
void
trim_if_due(mpshm_arena *arena)
{
    struct arena_header *header = arena->header;
    uint32_t period = period_now(), last = atomic_load_explicit(&header->trimmed, memory_order_relaxed);

    if (atomic_load_explicit(&header->trim_soon, memory_order_relaxed) != 0) {
        uint32_t keep = atomic_exchange(&header->trim_soon, 0);

        if (keep == KEEP_LEAST || keep == KEEP_LARGEST) { /* else forged, or another was quicker */
            (void) give_back(arena, (enum warmth) keep);
        }
    }
    if (last != period && atomic_compare_exchange_strong(&header->trimmed, &last, period)) {
        (void) give_back(arena, KEEP_LATELY);
    }
}

uint64_t
mpshm_trim(mpshm_arena *arena)
{
    return give_back(arena, KEEP_NONE);
}
