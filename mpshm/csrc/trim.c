/* Trimming: giving back the memory of free chunks that nobody has used lately.

   There is no thread for it.  Whoever is about to sleep or has given back a large run looks whether it is
   time; so when all compute, what the last one left stays.

   The warm set of a segment are its chunks below the end of what was lent in this period and the last one, for
   claims take the lowest that are free.  It is at least its part of KEEP_WARM.

   A segment's lock is held for a slice, without the process's: other threads go on.  Those who find it taken wait
   a moment, and the trimmer leaves it to them.

   A ring that is not in use is its trimmer's meanwhile, as it would be its maker's (chain.c).

   Knows the segment's maps, and where a ring's data and the pieces of stream records lie.  Does not know runs, nor why it is called.

   Invariants: A4, S3, C3 (invariants.h).

   Memory order: all is the lock's (segment.c), but `trimmed`, `trim_soon` and `refused`, which order nothing. */
#define _GNU_SOURCE
#include "internal.h"

#include <sys/mman.h>
#include <time.h>

#include "ring.h"
#include "stream.h"

/* Bytes that stay warm however seldom they are used, at the beginnings of all segments together.  A sender waits
   when so much is in flight, so a stream of messages needs no more. */
#define KEEP_WARM (UINT64_C(24) << 20)
/* What nobody has used for one to two periods goes back. */
#define PERIOD_NS INT64_C(1500000000)
/* A punch holds the file's lock and the segment's: 0.15 ms for each MiB.  Between two, others have them.  It is of
   whole huge pages where there are any: of a part of one the system may keep the memory, and only clear it. */
#define PUNCH_BYTES HUGE_BYTES
/* So long a trimmer leaves the lock to those who have found it taken. */
#define GIVE_WAY_NS 100000
/* A process that is not about to sleep gives back so much at a time, in 10 ms. */
#define AWAKE_BYTES (UINT64_C(64) << 20)

/* How long a trim may take, of a close and of mpshm_trim: enough for 6 GiB, and for 60. */
#define CLOSE_NS INT64_C(1000000000)
#define TRIM_NS INT64_C(10000000000)

struct trim {
    enum warmth keep;
    uint32_t period;
    uint64_t least_bytes; /* that a segment keeps */
    trim_until *until;
    const void *what;     /* of `until` */
    uint64_t given;
    bool is_cut;          /* it ended early */
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

    return id < reserve_first(arena) && (uint64_t) DIR_COUNT(word) << DIR_SHIFT(word) > arena->segment_bytes;
}

static uint32_t
largest_segment(const mpshm_arena *arena, uint32_t count)
{
    uint64_t most = 0;
    uint32_t largest = 0;

    for (uint32_t id = 0; id < count && id < reserve_first(arena); id++) {
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

/* The next chunks from *at on that are free and have memory, in whole pages, and all in one stretch of `span`
   chunks; 0: there are none.  The maps may be forged, and change under us. */
static uint32_t
next_cold(const struct segment *seg, uint32_t *at, uint32_t span)
{
    uint32_t page = page_chunks(seg);

    while (*at < seg->count) {
        uint64_t both = freemap_word(seg->map, *at / 64) & freemap_word(seg->touched, *at / 64);

        if (both >> (*at % 64) == 0) {
            *at = (*at / 64 + 1) * 64;
            continue;
        }
        *at += (uint32_t) __builtin_ctzll(both >> (*at % 64));
        if (*at >= seg->count) {
            break;
        }
        uint32_t n = freemap_stretch(seg->map, seg->count, *at, span - *at % span);

        n = freemap_stretch(seg->touched, *at + n, *at, n);
        uint32_t first = (*at + page - 1) / page * page, end = *at + n;

        end = end == seg->count ? end : end / page * page;
        if (first < end) {
            *at = first;
            return end - first;
        }
        *at += n > 0 ? n : 1;
    }
    return 0;
}

#ifdef MADV_REMOVE
/* By a mapping, which cannot become another file's as the descriptor's number can at any moment. */
static void
punch(mpshm_arena *arena, uint64_t from, uint64_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd, (off_t) from);

    if (at == MAP_FAILED) {
        return;
    }
    if (arena_has_file(arena)) { /* so it was when it was mapped */
        (void) madvise(at, bytes, MADV_REMOVE);
    }
    munmap(at, bytes);
}
#endif

/* Punch one slice from chunk *at on, and move it behind.  Bytes given back; 0: nothing is left.  The bits first:
   killed in between, the memory stays until the chunks are lent again, and no chunk counts as having memory that
   has none. */
static uint64_t
punch_slice(struct segment *seg, uint32_t *at)
{
#ifdef MADV_REMOVE
    uint32_t span = (uint32_t) (PUNCH_BYTES >> seg->shift), page = page_chunks(seg);
    uint32_t n = next_cold(seg, at, span > page ? span : page);

    if (n == 0) {
        return 0;
    }
    uint64_t bytes = (uint64_t) ((n + page - 1) / page * page) << seg->shift; /* the last page is the segment's */

    freemap_clear(seg->touched, *at, n);
    atomic_fetch_add_explicit(&seg->head->punched, 1, memory_order_relaxed);
    punch(seg->arena, segment_file_offset(seg) + seg->data_at + ((uint64_t) *at << seg->shift), bytes);
    *at += n;
    return (uint64_t) n << seg->shift;
#else
    (void) seg;
    (void) at;
    return 0;
#endif
}

/* Segment `id`, locked, or NULL: it is in use at this moment.  Then the rest is for the next time. */
static struct segment *
lock_segment(mpshm_arena *arena, uint32_t id, struct trim *trim)
{
    struct segment *seg = NULL;

    arena_lock(arena);
    trim->is_cut |= arena->me == 0; /* without a name: others may have one */
    if (arena->me == 0 || segment_map(arena, id, &seg) != 0 || !segment_try_lock(seg)) {
        seg = NULL;
    }
    arena_unlock(arena);
    return seg;
}

static void
give_way(struct segment *seg)
{
    struct timespec moment = {.tv_nsec = GIVE_WAY_NS};

    if (atomic_load_explicit(&seg->head->refused, memory_order_relaxed) != 0) {
        atomic_store_explicit(&seg->head->refused, 0, memory_order_relaxed);
        (void) nanosleep(&moment, NULL);
    }
}

/* Whether there is something left of the segment from chunk *at on, which moves behind what was given back. */
static bool
trim_slice(mpshm_arena *arena, uint32_t id, struct trim *trim, uint32_t *at)
{
    struct segment *seg = lock_segment(arena, id, trim);

    if (seg == NULL) {
        return false;
    }
    if (*at == 0) {
        (void) segment_look_again(seg);
    }
    uint64_t warm = warm_chunks(seg, trim);

    *at = *at > warm ? *at : (uint32_t) (warm < seg->count ? warm : seg->count);
    uint64_t given = punch_slice(seg, at);

    segment_unlock(seg);
    trim->given += given;
    give_way(seg); /* though nothing was given: it may be called again at once */
    return given > 0;
}

static bool
is_over(mpshm_arena *arena, const struct trim *trim)
{
    return trim->until != NULL ? trim->until(arena, trim->what) : trim->given >= AWAKE_BYTES;
}

bool
trim_time_is_over(mpshm_arena *arena, const void *until_ns)
{
    (void) arena;
    return now_ns() >= *(const int64_t *) until_ns;
}

/* The data of a ring that is not in use.  Its words stay. */
static void
trim_ring(mpshm_arena *arena, uint32_t number, struct trim *trim)
{
#ifdef MADV_REMOVE
    uint64_t made;

    arena_lock(arena);
    bool is_ours = chain_take_cold(arena, number, &made);

    arena_unlock(arena);
    if (!is_ours) {
        return;
    }
    uint32_t slots = RING_SLOTS_OF(number);
    uint64_t at = ring_data_offset(slots), end = ring_apart_bytes(slots, arena->overflowing);
    uint64_t before = arena_resident(arena), after;

    while (at < end && !is_over(arena, trim)) {
        uint64_t bytes = end - at < PUNCH_BYTES ? end - at : PUNCH_BYTES;

        punch(arena, ring_offset(arena, number) + at, bytes);
        at += bytes;
    }
    trim->is_cut |= at < end;
    after = arena_resident(arena);
    trim->given += before > after ? before - after : 0; /* about: others are at work */
    chain_put_back(arena, number, made, at == end);
#else
    (void) arena;
    (void) number;
    (void) trim;
#endif
}

/* Rings that are not in use; those that hold little are left first. */
static void
trim_rings(mpshm_arena *arena, struct trim *trim)
{
    if (!arena->grows || atomic_load(&arena->chain->touched) == 0) {
        return;
    }
    arena_lock(arena);
    (void) chain_shrink(arena);
    (void) chain_first(arena);
    arena_unlock(arena);
    for (uint32_t number = 1; number < arena->rings && !trim->is_cut; number++) {
        trim_ring(arena, number, trim);
    }
}

/* The pieces of stream records that are not in use.  Where the file system may run full they keep their memory, for
   the messages that come when there is no other. */
static void
trim_pieces(mpshm_arena *arena, struct trim *trim)
{
#ifdef MADV_REMOVE
    if (trim->keep != KEEP_NONE || arena->bounded) {
        return;
    }
    for (uint32_t number = 0; number < arena->stream_count; number++) {
        struct stream stream;

        arena_lock(arena);
        bool is_ours = stream_take_cold(arena, number, &stream);

        arena_unlock(arena);
        if (is_ours) {
            punch(arena, (uint64_t) (stream.piece - (char *) arena->header), PIECE_BYTES);
            trim->given += PIECE_BYTES;
            stream_free(arena, &stream);
        }
    }
#else
    (void) arena;
    (void) trim;
#endif
}

/* Segment by segment, from where the last trim has ended: one segment at least, and of that one slice, so that all
   comes to its end even if each trimmer is called away at once. */
static void
give_back(mpshm_arena *arena, struct trim *trim)
{
    uint32_t count = segment_count(arena), largest = largest_segment(arena, count);

    if (!arena_has_file(arena)) {
        return;
    }
    trim_rings(arena, trim);
    trim_pieces(arena, trim);
    if (count == 0) {
        return;
    }
    trim->period = period_now();
    trim->least_bytes = KEEP_WARM / count;
    for (uint32_t i = 0; i < count && !trim->is_cut; i++) {
        uint32_t at = 0, id = arena->trim_from % count;

        arena->trim_from = id + 1;
        if (trim->keep == KEEP_LARGEST && (id == largest || !is_to_size(arena, id))) {
            continue;
        }
        bool more;

        while ((more = trim_slice(arena, id, trim, &at)) && !is_over(arena, trim)) {
        }
        trim->is_cut |= more || (i + 1 < count && is_over(arena, trim));
    }
}

/* Whether there is anything to give back. */
bool
trim_has_memory(const mpshm_arena *arena)
{
    return atomic_load_explicit(&arena->header->segment[0], memory_order_relaxed) != 0
           || (arena->grows && atomic_load_explicit(&arena->chain->touched, memory_order_relaxed) != 0)
           || (arena->streams != NULL && atomic_load_explicit(&arena->streams->touched, memory_order_relaxed) != 0);
}

/* Without memory the clock is not asked; without the file, it is for others. */
bool
trim_is_due(mpshm_arena *arena)
{
    struct arena_header *header = arena->header;

    return trim_has_memory(arena)
           && (atomic_load_explicit(&header->trim_soon, memory_order_relaxed) != 0
               || atomic_load_explicit(&header->trimmed, memory_order_relaxed) != period_now())
           && arena_has_file(arena);
}

/* What somebody has asked for; else once a period, whoever comes first. */
void
trim_if_due(mpshm_arena *arena, trim_until *until, const void *what)
{
    struct arena_header *header = arena->header;

    if (!trim_is_due(arena)) {
        return;
    }
    uint32_t period = period_now(), last = atomic_load_explicit(&header->trimmed, memory_order_relaxed);
    uint32_t keep = atomic_exchange(&header->trim_soon, 0);

    if (keep == KEEP_LEAST || keep == KEEP_LARGEST) { /* else forged, or another was quicker */
        struct trim trim = {.keep = (enum warmth) keep, .until = until, .what = what};

        give_back(arena, &trim);
        if (trim.is_cut) {
            trim_soon(arena, trim.keep);
            return;
        }
    }
    if (last != period && atomic_compare_exchange_strong(&header->trimmed, &last, period)) {
        struct trim trim = {.keep = KEEP_LATELY, .until = until, .what = what};

        give_back(arena, &trim);
        if (trim.is_cut) {
            atomic_store_explicit(&header->trimmed, last, memory_order_relaxed); /* it is due still */
        }
    }
}

struct sleeper {
    trim_until *until;
    const void *what;
    int64_t until_ns;
};

static bool
sleep_is_over(mpshm_arena *arena, const void *what)
{
    const struct sleeper *sleeper = what;

    return now_ns() >= sleeper->until_ns || sleeper->until(arena, sleeper->what);
}

int
trim_before_sleep(mpshm_arena *arena, trim_until *until, const void *what, int ms)
{
    if (!trim_is_due(arena)) {
        return ms;
    }
    struct sleeper sleeper = {until, what, now_ns() + (int64_t) ms * 1000000};

    trim_if_due(arena, sleep_is_over, &sleeper);
    return ms_until(sleeper.until_ns);
}

/* Whatever a peer writes to the maps meanwhile, it ends then. */
static uint64_t
trim_within(mpshm_arena *arena, int64_t ns)
{
    int64_t until = now_ns() + ns;
    struct trim trim = {.keep = KEEP_NONE, .until = trim_time_is_over, .what = &until};

    give_back(arena, &trim);
    return trim.given;
}

void
trim_at_close(mpshm_arena *arena)
{
    (void) trim_within(arena, CLOSE_NS);
}

uint64_t
mpshm_trim(mpshm_arena *arena)
{
    return trim_within(arena, TRIM_NS);
}
