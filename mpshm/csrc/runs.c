/* Runs: claiming chunks, growing, filling, sealing and freeing them.

   Knows run words and what is free.  What a frame says it does not know.

   Invariants: R1, R2, R3, L2 (invariants.h).

   A run here:   FREE --run_claim--> LOANED --run_seal--> FLIGHT --> the receiver's
                   ^------run_abandon---'  ^---run_unseal---'

   Memory order: see layout.h and segment.c.  Seal's store of FLIGHT releases the run's bytes and its
   length; the lease acquires them. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How often all segments are tried while others have their locks, and by how much the pause between two rounds
   grows, 10 ms in all.  Processes claiming in one segment were refused, of a million claims, on two CPUs:
       4 rounds, no pause:  4 processes 31,000, 300 processes 14,000     64 rounds: 3,000 and 1,500
       32 rounds, growing by 10 us: none of 1.4 million
   for a holder that had to leave its CPU gets it back when those who want its lock leave theirs. */
#define CLAIM_ROUNDS 32
#define PAUSE_NS 20000

static uint32_t
chunks_for(const struct segment *seg, uint64_t size)
{
    return (uint32_t) chunks_of(seg->shift, size);
}

static struct segment *
run_segment(const mpshm_run *run)
{
    return run->arena->segments[run->mmap_id];
}

static uint32_t
run_chunks(const mpshm_run *run)
{
    return (uint32_t) (run->capacity >> run_segment(run)->shift);
}

static _Atomic uint64_t *
run_word(const mpshm_run *run)
{
    return &run_segment(run)->runs[run->chunk_id].word;
}

/* Take chunks of that segment, under its lock.  R1: the last store is the claim. */
static bool
claim_locked(struct segment *seg, uint64_t size, mpshm_run *run)
{
    uint32_t chunks = chunks_for(seg, size), at;

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
    run->data = seg->now->data + ((uint64_t) at << seg->shift);
    run->capacity = (uint64_t) chunks << seg->shift;
    run->mmap_id = seg->id;
    run->chunk_id = at;
    run->generation = mpshm_process.generation;
    return true;
}

/* 0; -ENOSPC: there is no room; -EAGAIN: another process has the lock. */
static int
try_claim(struct segment *seg, uint64_t size, mpshm_run *run)
{
    if (size > (uint64_t) seg->count << seg->shift || segment_map_data(seg) != 0) {
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

static bool
is_small(const mpshm_arena *arena, uint32_t shift)
{
    return shift < arena->chunk_shift;
}

static uint32_t *
hot_of(mpshm_arena *arena, bool small)
{
    return small ? &arena->hot_small : &arena->hot;
}

/* Claim where this process claimed last, or in a segment of its own: 0, -ENOSPC, or -EAGAIN: in one that another
   has locked there may be room. */
static int
try_own(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    uint32_t *hot = hot_of(arena, small);
    int result = -ENOSPC;

    for (uint32_t i = 0; i <= arena->segment_limit; i++) {
        uint32_t id = i == 0 ? *hot : i - 1;
        struct segment *seg = arena->segments[id];

        if (seg == NULL || !(seg->mine || (i == 0 && seg->was_claimed)) || is_small(arena, seg->shift) != small) {
            continue;
        }
        int error = try_claim(seg, size, run);

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
claim_own(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    struct patience patience = {.not_before_ns = &arena->own_locked_until_ns};
    int error;

    do {
        error = try_own(arena, size, small, run);
    } while (error == -EAGAIN && waits_on(&patience));
    return error == 0;
}

/* Whether this process has a segment of its own for such runs. */
static bool
has_own(const mpshm_arena *arena, bool small)
{
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        const struct segment *seg = arena->segments[id];

        if (seg != NULL && seg->mine && is_small(arena, seg->shift) == small) {
            return true;
        }
    }
    return false;
}

/* Claim in one that this process has to make or to take over. */
static int
claim_new(mpshm_arena *arena, uint64_t size, bool small, bool last, mpshm_run *run)
{
    for (;;) {
        struct segment *seg;
        int error = segment_claim_new(arena, size, small, last, &seg);

        if (error != 0) {
            return error;
        }
        /* One taken over from a process that left may be full, of what that one held or for good: then the next. */
        if (try_claim(seg, size, run) == 0 || (reap_before_growth(arena) && try_claim(seg, size, run) == 0)) {
            *hot_of(arena, small) = seg->id;
            return 0;
        }
    }
}

/* Claim in any segment there is: 0, -ENOSPC, or -EAGAIN: in some that others have locked there may be room.
   Each process begins with another one.  If all began with the first, they would meet at its lock, and map most
   of the others on their way. */
static int
claim_in_any(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    int result = -ENOSPC;
    uint32_t used = segment_count(arena);

    for (uint32_t i = 0; i < arena->segment_limit; i++) {
        uint32_t id = i < used ? (NAME_NUMBER(arena->me) + i) % used : i;
        uint64_t word = atomic_load(&arena->header->segment[id]);
        struct segment *seg;

        if (word == 0 || is_small(arena, DIR_SHIFT(word)) != small || segment_map(arena, id, &seg) != 0) {
            continue;
        }
        int error = try_claim(seg, size, run);

        if (error == 0) {
            *hot_of(arena, small) = id;
            return 0;
        }
        result = error == -EAGAIN ? error : result;
    }
    return result;
}

/* The same, some rounds long. */
static bool
claim_anywhere(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    struct patience patience = {.not_before_ns = &arena->locked_until_ns};
    int error;

    do {
        error = claim_in_any(arena, size, small, run);
    } while (error == -EAGAIN && waits_on(&patience));
    return error == 0;
}

/* Claim wherever there is room: in any segment, then in one made for it.  Others may be quicker to make the last
   ones, and there is room in those then. */
static int
claim_somewhere(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    uint32_t known, tries = 0;
    int error;

    do {
        known = segment_count(arena);
        if (claim_anywhere(arena, size, small, run)
            || (reap_before_growth(arena) && claim_anywhere(arena, size, small, run))) {
            return 0;
        }
        error = claim_new(arena, size, small, true, run);
    } while (error == -ENOSPC && segment_count(arena) > known && ++tries <= arena->segment_limit);
    return error;
}

/* A run of at least `size` bytes, under arena_lock.  small: for what nobody gets a view of. */
int
run_claim(mpshm_arena *arena, uint64_t size, bool small, mpshm_run *run)
{
    if (memory_is_refused() || arena->me == 0) {
        return -ENOSPC;
    }
    if (loan_room() != 0) {
        return -ENOMEM;
    }
    small = small && arena->chunk_shift > SMALL_SHIFT;
    size = size == 0 ? 1 : size;
    reap_if_somebody_died(arena);
    if (claim_own(arena, size, small, run)) {
        arena->has_claimed |= !small;
        return 0;
    }
    /* Not before a process's first segment: each of a thousand senders would walk through those of all others. */
    if (has_own(arena, small)) {
        (void) reap_before_growth(arena);
    }
    int error = claim_new(arena, size, small, false, run);

    if (error == -ENOSPC) {
        error = claim_somewhere(arena, size, small, run);
    }
    arena->has_claimed |= error == 0 && !small;
    return error;
}

int
mpshm_get_buf(mpshm_arena *arena, uint64_t size, mpshm_run *run)
{
    arena_lock(arena);
    int error = run_claim(arena, size, false, run);

    arena_unlock(arena);
    return error;
}

mpshm_run *
mpshm_run_new(mpshm_arena *arena)
{
    mpshm_run *run = calloc(1, sizeof *run);

    if (run != NULL) {
        arena_keep(arena);
        run->arena = arena;
    }
    return run;
}

void
mpshm_run_free(mpshm_run *run)
{
    (void) mpshm_abandon(run); /* refused when it was sent, or is another process's */
    arena_let_go(run->arena);
    free(run);
}

/* R3, that the run is still on loan, and that nobody has taken it away: by forging its word, or this process's
   death. */
static int
check_loaned(const mpshm_run *run)
{
    if (run->generation != mpshm_process.generation) {
        return MPSHM_E_FOREIGN;
    }
    if (!loan_is_open(run)) {
        return MPSHM_E_STATE;
    }
    uint64_t word = atomic_load_explicit(run_word(run), memory_order_relaxed);

    return word == RUN_WORD(run->tag, run->arena->me, RUN_LOANED) ? 0 : MPSHM_E_DAMAGED;
}

int
mpshm_is_loaned(const mpshm_run *run)
{
    process_lock();
    int loaned = check_loaned(run) == 0;

    process_unlock();
    return loaned;
}

/* Whether the run's bytes are where its segment is mapped now: a fork may have left them in a former mapping,
   in which the chunks behind it are private. */
static bool
lies_in_now(const struct segment *seg, const mpshm_run *run)
{
    return seg->now != NULL && run->data == seg->now->data + ((uint64_t) run->chunk_id << seg->shift);
}

/* Take the lock of a segment, some rounds long: false, if another keeps it. */
static bool
lock_patiently(struct segment *seg)
{
    struct patience patience = {.not_before_ns = &seg->arena->own_locked_until_ns};
    bool locked;

    do {
        locked = segment_try_lock(seg);
    } while (!locked && waits_on(&patience));
    return locked;
}

static int64_t
increase(mpshm_run *run, uint64_t size, uint64_t min_size)
{
    int error = check_loaned(run);

    if (error != 0) {
        return error;
    }
    struct segment *seg = run_segment(run);
    uint32_t chunks = run_chunks(run);
    uint32_t end = run->chunk_id + chunks, got = 0;
    uint64_t room = (uint64_t) (seg->count - end) << seg->shift;
    uint32_t want = chunks_for(seg, size < room ? size : room);

    if (want == 0 || memory_is_refused() || !lies_in_now(seg, run)
        || !(min_size > 0 ? lock_patiently(seg) : segment_try_lock(seg))) {
        return min_size == 0 ? 0 : -ENOSPC;
    }
    got = freemap_stretch(seg->map, seg->count, end, want);
    if (((uint64_t) got << seg->shift) < min_size || (got > 0 && !segment_touch(seg, end, got))) {
        got = 0; /* R1 */
    }
    freemap_clear(seg->map, end, got);
    atomic_store_explicit(&seg->runs[run->chunk_id].more, EXTENT(chunks + got, 0), memory_order_relaxed);
    segment_unlock(seg);
    run->capacity += (uint64_t) got << seg->shift;
    return got == 0 && min_size > 0 ? -ENOSPC : (int64_t) ((uint64_t) got << seg->shift);
}

int64_t
mpshm_increase_buf(mpshm_run *run, uint64_t size, uint64_t min_size)
{
    arena_lock(run->arena);
    int64_t result = increase(run, size, min_size);

    arena_unlock(run->arena);
    return result;
}

int
mpshm_copy_in(mpshm_run *run, uint64_t offset, const char *source, uint64_t size)
{
    struct segment *seg = run_segment(run);

    if (offset > run->capacity || size > run->capacity - offset) {
        return -EINVAL;
    }
    if (size >= HUGE_BYTES) { /* its mapping, not seg->now: another thread may fork meanwhile, and no lock is held */
        uint64_t begin = (uint64_t) run->chunk_id << seg->shift;

        segment_warm(seg, run->data - begin, begin + offset, size);
    }
    memcpy(run->data + offset, source, size);
    return 0;
}

#ifdef MPSHM_DEBUG
/* What is freed is overwritten, so that a test sees who still reads it. */
static void
spoil(const mpshm_run *run)
{
    memset(run->data, 0xa5, run->capacity);
}
#else
#define spoil(run) ((void) (run))
#endif

int
run_abandon(mpshm_run *run)
{
    int error = check_loaned(run);

    if (error == 0) {
        spoil(run);
        (void) run_free(run_segment(run), run->chunk_id, RUN_WORD(run->tag, run->arena->me, RUN_LOANED));
    }
    if (error == 0 || error == MPSHM_E_DAMAGED) { /* whose it is now does not matter: not ours */
        loan_end(run);
    }
    return error;
}

int
mpshm_abandon(mpshm_run *run)
{
    /* Asked before entering: a run that is another process's must not make us a peer. */
    if (run->generation != mpshm_process.generation) {
        return MPSHM_E_FOREIGN;
    }
    arena_lock(run->arena);
    int error = run_abandon(run);

    arena_unlock(run->arena);
    return error;
}

/* The word of the run when it is in flight. */
uint64_t
run_flight_word(const mpshm_run *run, uint64_t position)
{
    return position == NO_POSITION ? RUN_WORD(run->tag, run->arena->me, RUN_FLIGHT)
                                   : FLIGHT_AT(position);
}

int
run_seal(mpshm_run *run, uint64_t size, uint64_t position, uint64_t *bytes)
{
    int error = check_loaned(run);

    if (error == 0 && (size == 0 || size > run->capacity)) {
        error = -EINVAL;
    }
    if (error == 0) {
        struct segment *seg = run_segment(run);

        atomic_store_explicit(&seg->runs[run->chunk_id].more, EXTENT(run_chunks(run), run->capacity - size),
                              memory_order_relaxed);
        atomic_store_explicit(run_word(run), run_flight_word(run, position), memory_order_release);
        *bytes += (uint64_t) chunks_for(seg, size) << seg->shift;
    }
    return error;
}

/* FLIGHT -> LOANED: the frame did not go out.  If the word has changed, a hostile peer has guessed it: then the
   run is not ours any more, as check_loaned finds, and the loan ends when it is abandoned. */
void
run_unseal(mpshm_run *run, uint64_t position)
{
    uint64_t was = run_flight_word(run, position);

    (void) atomic_compare_exchange_strong(run_word(run), &was,
                                          RUN_WORD(run->tag, run->arena->me, RUN_LOANED));
}

/* Whether the entry at `at` is still that of the run that was in flight with that word, and a receiver at most
   has leased it: only then has it its tail for certain. */
static bool
is_same_run(struct segment *seg, uint32_t at, uint64_t flight, uint32_t tag)
{
    uint64_t word = atomic_load(&seg->runs[at].word);

    return word == flight
           || ((RUN_STATE(word) == RUN_LEASED || RUN_STATE(word) == RUN_SHARED) && RUN_TAG(word) == tag);
}

/* Take the chunks behind a sealed run's `size` bytes from it, if the segment's lock is to be had; else they are
   free when the run is. */
static void
return_tail(mpshm_run *run, uint64_t size, uint64_t position)
{
    struct segment *seg = run_segment(run);
    uint32_t at = run->chunk_id, chunks = run_chunks(run), keep = chunks_for(seg, size);
    uint32_t tag = position == NO_POSITION ? run->tag : SPOT_TAG(position);

    if (keep == chunks || !segment_try_lock(seg)) {
        return;
    }
    if (is_same_run(seg, at, run_flight_word(run, position), tag)) {
        atomic_store_explicit(&seg->runs[at].more, EXTENT(keep, ((uint64_t) keep << seg->shift) - size),
                              memory_order_relaxed);
        freemap_set(seg->map, at + keep, chunks - keep);
        run->capacity = (uint64_t) keep << seg->shift;
    }
    segment_unlock(seg);
}

void
run_is_out(mpshm_run *run, uint64_t size, uint64_t position)
{
    INVARIANT(R2, atomic_load(run_word(run)) != RUN_WORD(run->tag, run->arena->me, RUN_LOANED));
    loan_end(run);
    return_tail(run, size, position);
}

int
mpshm_seal(mpshm_run *run, uint64_t size)
{
    arena_lock(run->arena);
    uint64_t bytes = 0;
    int error = run->arena->slot_bytes != 0 ? -EINVAL : run_seal(run, size, NO_POSITION, &bytes);

    if (error == 0) {
        run_is_out(run, size, NO_POSITION);
    }
    arena_unlock(run->arena);
    return error;
}
