/* Runs: growing, filling, sealing and freeing them.

   Knows run words and what is free.  Where a run is claimed it does not know (claims.c), nor what a frame says.

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

    if (want == 0 || memory_is_refused() || (run->data != NULL && !lies_in_now(seg, run))
        || !(min_size > 0 ? claim_lock_patiently(seg) : segment_try_lock(seg))) {
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
    uint64_t begin = (uint64_t) run->chunk_id << seg->shift;

    if (offset > run->capacity || size > run->capacity - offset) {
        return -EINVAL;
    }
    if (run->data == NULL) {
        return window_write(seg, begin + offset, source, size);
    }
    if (size >= HUGE_BYTES) { /* its mapping, not seg->now: another thread may fork meanwhile, and no lock is held */
        segment_warm(seg, run->data - begin, begin + offset, size);
    }
    memcpy(run->data + offset, source, size);
    return 0;
}

/* Copy out the first `size` bytes of what this process has copied in: 0, or -ENOMEM. */
int
run_copy_out(const mpshm_run *run, char *to, uint64_t size)
{
    struct segment *seg = run_segment(run);

    if (run->data == NULL) {
        return window_read(seg, (uint64_t) run->chunk_id << seg->shift, to, size);
    }
    memcpy(to, run->data, size);
    return 0;
}

#ifdef MPSHM_DEBUG
/* What is freed is overwritten, so that a test sees who still reads it. */
static void
spoil(const mpshm_run *run)
{
    if (run->data != NULL) {
        memset(run->data, 0xa5, run->capacity);
    }
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
