/* Claims: which segment a run is claimed in, and taking its chunks there.

   Knows which segments this process prefers, whose lock it may wait for, and when one is made.  Does not know what
   becomes of a run (runs.c).

   Invariants: R1, L4 (invariants.h).

   A claim:   its own segments --> one that was left, or is made --> all others --> one made though there are many

   Memory order: see layout.h and segment.c. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <time.h>

/* How often all segments are tried while others have their locks, and by how much the pause between two rounds
   grows, 10 ms in all.  Processes claiming in one segment were refused, of a million claims, on two CPUs:
       4 rounds, no pause:  4 processes 31,000, 300 processes 14,000     64 rounds: 3,000 and 1,500
       32 rounds, growing by 10 us: none of 1.4 million
   for a holder that had to leave its CPU gets it back when those who want its lock leave theirs. */
#define CLAIM_ROUNDS 32
#define PAUSE_NS 20000
/* So long a process that has found no room below the reserve goes there at once: among 372 segments it looks for half a
   millisecond. */
#define SCARCE_NS 10000000

/* Take chunks of that segment, under its lock.  R1: the last store is the claim. */
static bool
claim_locked(struct segment *seg, uint64_t size, mpshm_run *run)
{
    uint32_t chunks = (uint32_t) chunks_of(seg->shift, size), at;

    if (!freemap_find(seg->map, seg->count, chunks, &at)
        && !(segment_look_again(seg) && freemap_find(seg->map, seg->count, chunks, &at))) {
        return false;
    }
    INVARIANT(L4, RUN_STATE(atomic_load(&seg->runs[at].word)) == RUN_FREE);
    if (!segment_touch(seg, at, chunks)) {
        return false;
    }
    freemap_clear(seg->map, at, chunks);
    freemap_set(seg->heads, at, 1);
    run->tag = ++seg->head->claims & TAG_MASK;
    if (at >= segment_high(seg)) {
        atomic_store_explicit(&seg->head->high, at + 1, memory_order_release);
    }
    atomic_store_explicit(&seg->runs[at].more, EXTENT(chunks, 0), memory_order_relaxed);
    atomic_store_explicit(&seg->runs[at].word, RUN_WORD(run->tag, seg->arena->me, RUN_LOANED),
                          memory_order_release);
    run->arena = seg->arena;
    run->data = seg->now == NULL ? NULL : seg->now->data + ((uint64_t) at << seg->shift);
    run->capacity = (uint64_t) chunks << seg->shift;
    run->mmap_id = seg->id;
    run->chunk_id = at;
    run->generation = mpshm_process.generation;
    return true;
}

/* 0; -ENOSPC: there is no room; -EAGAIN: another process has the lock.  A segment whose data cannot be mapped here
   serves all the same, for what is copied into its run. */
static int
try_claim(struct segment *seg, uint64_t size, enum claim claim, mpshm_run *run)
{
    if (size > (uint64_t) seg->count << seg->shift || (segment_map_data(seg) != 0 && claim == CLAIM_IN_PLACE)) {
        return -ENOSPC;
    }
    if (!segment_try_lock(seg)) {
        return -EAGAIN;
    }
    bool claimed = claim_locked(seg, size, run);

    segment_unlock(seg);
    if (claimed) {
        loan_begin(run);
        seg->was_claimed = true;
    }
    return claimed ? 0 : -ENOSPC;
}

/* Whether a segment of such chunks is for that claim. */
static bool
suits(const mpshm_arena *arena, uint32_t shift, enum claim claim)
{
    return (shift < arena->chunk_shift) == (claim == CLAIM_SMALL);
}

static uint32_t *
hot_of(mpshm_arena *arena, enum claim claim)
{
    return claim == CLAIM_SMALL ? &arena->hot_small : &arena->hot;
}

/* Claim where this process claimed last, or in a segment of its own: 0, -ENOSPC, or -EAGAIN: in one that another
   has locked there may be room. */
static int
try_own(mpshm_arena *arena, uint64_t size, enum claim claim, mpshm_run *run)
{
    uint32_t *hot = hot_of(arena, claim);
    int result = -ENOSPC;

    for (uint32_t i = 0; i <= reserve_first(arena); i++) {
        uint32_t id = i == 0 ? *hot : i - 1;
        struct segment *seg = arena->segments[id];

        if (seg == NULL || !(seg->mine || (i == 0 && seg->was_claimed)) || !suits(arena, seg->shift, claim)) {
            continue;
        }
        int error = try_claim(seg, size, claim, run);

        if (error == 0) {
            *hot = id;
            return 0;
        }
        result = error == -EAGAIN ? error : result;
    }
    return result;
}

/* Rounds of trying for a lock that another process has. */
struct patience {
    int64_t *not_before_ns; /* no waiting before */
    int64_t begun_ns;
    uint32_t round;
};

/* Wait a little for the next round: false, there is none.  A lock's holder may be stopped for good, and the process's
   other channels wait meanwhile.  So only a hundredth of the time goes to waiting in vain. */
static bool
waits_on(struct patience *patience)
{
    int64_t now = patience->round == 0 || patience->round == CLAIM_ROUNDS - 1 ? now_ns() : 0;

    if (patience->round == 0) {
        if (now < *patience->not_before_ns) {
            return false;
        }
        patience->begun_ns = now;
    }
    if (++patience->round == CLAIM_ROUNDS) {
        *patience->not_before_ns = now + 100 * (now - patience->begun_ns);
        return false;
    }
    struct timespec pause = {.tv_nsec = patience->round * PAUSE_NS};

    (void) nanosleep(&pause, NULL);
    return true;
}

/* The same, some rounds long: a trimmer has a segment for a slice at a time, and without patience each meeting
   would make a segment more. */
static bool
claim_own(mpshm_arena *arena, uint64_t size, enum claim claim, mpshm_run *run)
{
    struct patience patience = {.not_before_ns = &arena->own_locked_until_ns};
    int error;

    do {
        error = try_own(arena, size, claim, run);
    } while (error == -EAGAIN && waits_on(&patience));
    return error == 0;
}

/* Whether this process has a segment of its own for such runs. */
static bool
has_own(const mpshm_arena *arena, enum claim claim)
{
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        const struct segment *seg = arena->segments[id];

        if (seg != NULL && seg->mine && suits(arena, seg->shift, claim)) {
            return true;
        }
    }
    return false;
}

/* Claim in one that this process has to make or to take over. */
static int
claim_new(mpshm_arena *arena, uint64_t size, enum claim claim, bool last, mpshm_run *run)
{
    for (;;) {
        struct segment *seg;
        int error = segment_claim_new(arena, size, claim, last, &seg);

        if (error != 0) {
            return error;
        }
        /* One taken over from a process that left may be full, of what that one held or for good: then the next. */
        if (try_claim(seg, size, claim, run) == 0
            || (reap_before_growth(arena) && try_claim(seg, size, claim, run) == 0)) {
            *hot_of(arena, claim) = seg->id;
            return 0;
        }
    }
}

/* The segments in which a claim looks: all, or those of the reserve. */
struct range {
    uint32_t from, to;
};

/* Claim in any segment there is: 0, -ENOSPC, or -EAGAIN: in some that others have locked there may be room.
   Each process begins with another one.  If all began with the first, they would meet at its lock, and map most
   of the others on their way. */
static int
claim_in_any(mpshm_arena *arena, uint64_t size, enum claim claim, struct range in, mpshm_run *run)
{
    int result = -ENOSPC;
    uint32_t count = segment_count(arena), end = count < in.to ? count : in.to;
    uint32_t used = end > in.from ? end - in.from : 0;

    for (uint32_t i = 0; i < in.to - in.from; i++) {
        uint32_t id = in.from + (i < used ? (NAME_NUMBER(arena->me) + i) % used : i);
        uint64_t word = atomic_load(&arena->header->segment[id]);
        struct segment *seg;

        if (word == 0 || !suits(arena, DIR_SHIFT(word), claim) || segment_map(arena, id, &seg) != 0) {
            continue;
        }
        int error = try_claim(seg, size, claim, run);

        if (error == 0 && in.from == 0) {
            *hot_of(arena, claim) = id;
        }
        if (error == 0) {
            return 0;
        }
        result = error == -EAGAIN ? error : result;
    }
    return result;
}

/* The same, some rounds long. */
static bool
claim_anywhere(mpshm_arena *arena, uint64_t size, enum claim claim, struct range in, mpshm_run *run)
{
    struct patience patience = {.not_before_ns = &arena->locked_until_ns};
    int error;

    do {
        error = claim_in_any(arena, size, claim, in, run);
    } while (error == -EAGAIN && waits_on(&patience));
    return error == 0;
}

/* Claim wherever there is room below the reserve: in any segment, then in one made for it.  Others may be quicker to
   make the last ones, and there is room in those then. */
static int
claim_somewhere(mpshm_arena *arena, uint64_t size, enum claim claim, mpshm_run *run)
{
    struct range in = {0, reserve_first(arena)};
    uint32_t known, tries = 0;
    int error;

    do {
        known = segment_count(arena);
        if (claim_anywhere(arena, size, claim, in, run)
            || (reap_before_growth(arena) && claim_anywhere(arena, size, claim, in, run))) {
            return 0;
        }
        error = claim_new(arena, size, claim, true, run);
    } while (error == -ENOSPC && segment_count(arena) > known && ++tries <= arena->segment_limit);
    return error;
}

static bool
has_no_room(int error)
{
    return error == -ENOSPC || error == -ENOMEM;
}

/* Its own segments, one made for it, and then all there are. */
static int
claim_where_it_suits(mpshm_arena *arena, uint64_t size, enum claim claim, mpshm_run *run)
{
    if (claim_own(arena, size, claim, run)) {
        return 0;
    }
    /* Not before a process's first segment: each of a thousand senders would walk through those of all others. */
    if (has_own(arena, claim)) {
        (void) reap_before_growth(arena);
    }
    int error = claim_new(arena, size, claim, false, run);

    return has_no_room(error) ? claim_somewhere(arena, size, claim, run) : error;
}

/* Claim in the reserve, or make a segment more there. */
static int
claim_in_reserve(mpshm_arena *arena, uint64_t size, mpshm_run *run)
{
    struct range in = {reserve_first(arena), arena->segment_limit};
    struct segment *seg;
    int error = 0;

    for (uint32_t tries = in.from; tries < in.to && error == 0; tries++) { /* others may take the one that is made */
        if (claim_anywhere(arena, size, CLAIM_ANY, in, run)) {
            return 0;
        }
        error = segment_make_reserve(arena, size, &seg);
        if (error == 0 && try_claim(seg, size, CLAIM_ANY, run) == 0) {
            return 0;
        }
    }
    return error == 0 ? -ENOSPC : error;
}

/* Whether there was no room for so much a moment ago. */
static bool
is_scarce(const mpshm_arena *arena, uint64_t size)
{
    return arena->scarce_until_ns != 0 && size >= arena->scarce_bytes && now_ns() < arena->scarce_until_ns;
}

/* Where it suits, or else in the reserve; and there at once where it was so a moment ago. */
static int
claim_or_use_reserve(mpshm_arena *arena, uint64_t size, mpshm_run *run)
{
    if (is_scarce(arena, size) && claim_in_reserve(arena, size, run) == 0) {
        return 0;
    }
    int error = claim_where_it_suits(arena, size, CLAIM_ANY, run);

    if (has_no_room(error) && claim_in_reserve(arena, size, run) == 0) {
        arena->scarce_until_ns = now_ns() + SCARCE_NS;
        arena->scarce_bytes = size;
        error = 0;
    }
    return error;
}

/* A run of at least `size` bytes, under arena_lock: 0; -ENOSPC: the arena is full, of what others may give back;
   -EFBIG: it can never hold so much; or -ENOMEM: this process has no address space for so much as a segment's head. */
int
run_claim(mpshm_arena *arena, uint64_t size, enum claim claim, mpshm_run *run)
{
    if (memory_is_refused() || arena->me == 0) {
        return -ENOSPC;
    }
    if (loan_room() != 0) {
        return -ENOMEM;
    }
    if (claim == CLAIM_SMALL && arena->chunk_shift <= SMALL_SHIFT) {
        claim = CLAIM_ANY;
    }
    size = size == 0 ? 1 : size;
    reap_if_somebody_died(arena);
    int error = claim == CLAIM_ANY ? -ENOSPC : claim_where_it_suits(arena, size, claim, run);

    if (has_no_room(error) && claim != CLAIM_IN_PLACE) { /* also a small one: large chunks cost memory, and no more */
        error = claim_or_use_reserve(arena, size, run);
    }
    arena->has_claimed |= error == 0 && claim != CLAIM_SMALL;
    return error;
}

/* Take the lock of a segment, some rounds long: false, if another keeps it. */
bool
claim_lock_patiently(struct segment *seg)
{
    struct patience patience = {.not_before_ns = &seg->arena->own_locked_until_ns};
    bool locked;

    do {
        locked = segment_try_lock(seg);
    } while (!locked && waits_on(&patience));
    return locked;
}

int
mpshm_get_buf(mpshm_arena *arena, uint64_t size, mpshm_run *run)
{
    arena_lock(arena);
    int error = run_claim(arena, size, CLAIM_IN_PLACE, run);

    arena_unlock(arena);
    return error;
}
