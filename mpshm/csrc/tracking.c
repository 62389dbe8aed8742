/* Tracking: a message that its sender can take back until a receiver begins to take it.

   One word decides, by one compare-and-swap, and it is one that is there already:

     in a queue         the slot's:      READY --taken--> TAKING (receiver), or FREE of the next lap
                                           '--taken back--> SKIPPED
     on a connection    the run's of the message's ticket:
                                         FLIGHT (sender) --leased--> LEASED (receiver) --> FREE
                                           '--taken back--> CANCELLED --its frame is met--> FREE

   A slot's word says with its lap which message it means, for ever.  A pipe has no such word, and nobody can take a frame out
   of its middle.  So a tracked message's frame names one run alone, the ticket: an index, in which the descriptors lie, and
   the stream.  The ticket outlives what it names: whoever reads its frame frees it, and goes on to the next frame.

   Once the word says SKIPPED or CANCELLED the message's runs are nobody's but the canceller's, which frees them.  If it is
   killed before, they are runs in flight at a slot that has passed, or of a dead sender on a connection: sweeps know both
   (reap.c, strays.c).

   Knows slots' and runs' words, and who may wait for them.  Does not know what a message is, nor how frames lie in a pipe.

   Invariants: A4, K1, K2, W1, W3 (invariants.h).

   Memory order: the compare-and-swaps are sequentially consistent.  Who waits sets MAY_WATCH and looks at the word
   afterwards; who takes changes the word and looks at `tracked` afterwards: one of them sees the other. */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>

#include "ring.h"
#include "stream.h"

mpshm_tracking *
mpshm_tracking_new(mpshm_arena *arena)
{
    mpshm_tracking *tracking = calloc(1, sizeof *tracking);

    if (tracking != NULL) {
        arena_keep(arena);
        tracking->arena = arena;
    }
    return tracking;
}

void
mpshm_tracking_free(mpshm_tracking *tracking)
{
    if (tracking != NULL) {
        arena_let_go(tracking->arena);
        free(tracking->runs);
        free(tracking);
    }
}

int
tracking_room(mpshm_tracking *tracking, uint32_t count)
{
    if (tracking->room < count) {
        struct tracked_run *grown = realloc(tracking->runs, count * sizeof *grown);

        if (grown == NULL) {
            return -ENOMEM;
        }
        tracking->runs = grown;
        tracking->room = count;
    }
    return 0;
}

void
tracking_add(mpshm_tracking *tracking, const mpshm_run *run, uint64_t word)
{
    INVARIANT(K2, tracking->count < tracking->room && tracking->generation == 0);
    tracking->runs[tracking->count++] = (struct tracked_run) {run->mmap_id, run->chunk_id, word};
}

void
tracking_begins(mpshm_tracking *tracking, uint64_t spot)
{
    INVARIANT(A4, arena_is_locked(tracking->arena));
    tracking->spot = spot;
    tracking->generation = mpshm_process.generation;
}

/* Let all that wait look for themselves. */
void
tracking_call(mpshm_arena *arena)
{
    _Atomic uint32_t *tracked = &arena->header->tracked;
    uint32_t was = atomic_load(tracked);

    while (!atomic_compare_exchange_weak(tracked, &was, (was + ONE_CHANGE) & ~MAY_WATCH)) {
    }
    (void) futex_wake(tracked, INT_MAX);
}

/* NULL: it cannot be mapped. */
static _Atomic uint64_t *
ticket_word(const mpshm_tracking *tracking)
{
    struct segment *seg;

    INVARIANT(K2, tracking->count > 0);
    return segment_map(tracking->arena, tracking->runs[0].mmap_id, &seg) == 0
               ? &seg->runs[tracking->runs[0].chunk_id].word
               : NULL;
}

/* Whether nobody has taken the message, nor taken it back; or the error. */
static int
waits(const mpshm_tracking *tracking)
{
    mpshm_arena *arena = tracking->arena;

    if (tracking->spot == NO_POSITION) {
        _Atomic uint64_t *word = ticket_word(tracking);

        return word == NULL ? -ENOMEM : atomic_load(word) == tracking->runs[0].word;
    }
    const struct ring *ring = ring_at(arena, SPOT_RING(tracking->spot));
    uint64_t position = SPOT_POSITION(tracking->spot);

    return ring == NULL ? -ENOMEM
                        : atomic_load(slot_word(ring, position)) == word_of(ring, position, 0, SLOT_READY);
}

/* What cannot be said of it in this process: 0, or the error. */
static int
check(const mpshm_tracking *tracking)
{
    return tracking->generation == 0 ? -EINVAL
           : tracking->generation != mpshm_process.generation ? MPSHM_E_FOREIGN : 0;
}

/* Only this process takes it back, and notes that: so what waits no more has been taken.  Under arena_lock. */
static int
state(mpshm_tracking *tracking)
{
    int error = check(tracking);

    INVARIANT(A4, arena_is_locked(tracking->arena));
    if (error == 0 && tracking->state == MPSHM_TRACK_WAITS) {
        int still = waits(tracking);

        error = still < 0 ? still : 0;
        tracking->state = still == 0 ? MPSHM_TRACK_RECEIVED : MPSHM_TRACK_WAITS;
    }
    return error != 0 ? error : (int) tracking->state;
}

int
mpshm_tracking_state(mpshm_tracking *tracking)
{
    arena_lock(tracking->arena);
    int result = state(tracking);

    arena_unlock(tracking->arena);
    return result;
}

/* The word that decides, from waiting to taken back.  K1 */
static bool
take_back(const mpshm_tracking *tracking)
{
    mpshm_arena *arena = tracking->arena;

    if (tracking->spot != NO_POSITION) {
        return ring_take_back(arena, tracking->spot);
    }
    uint64_t was = tracking->runs[0].word, now = RUN_WORD(RUN_TAG(was), RUN_HOLDER(was), RUN_CANCELLED);

    if ((atomic_load(&arena->header->tracked) & SOME_CANCELLED) == 0) { /* before any is */
        (void) atomic_fetch_or(&arena->header->tracked, SOME_CANCELLED);
    }
    return atomic_compare_exchange_strong(ticket_word(tracking), &was, now);
}

/* The first chunk of a ticket is enough for its word.  Takes the others from it, if the segment's lock is to be had; else
   they are free when it is. */
static void
shrink_ticket(struct segment *seg, uint32_t at, uint64_t cancelled)
{
    uint32_t chunks = run_chunks_at(seg, at);

    if (chunks > 1 && segment_try_lock(seg)) {
        if (atomic_load(&seg->runs[at].word) == cancelled) {
            atomic_store_explicit(&seg->runs[at].more, EXTENT(1, 0), memory_order_relaxed);
            freemap_set(seg->map, at + 1, chunks - 1);
        }
        segment_unlock(seg);
    }
}

/* The runs of a message that was taken back. */
static void
free_runs(const mpshm_tracking *tracking)
{
    bool has_ticket = tracking->spot == NO_POSITION;

    for (uint32_t i = 0; i < tracking->count; i++) {
        const struct tracked_run *run = &tracking->runs[i];
        struct segment *seg;

        if (segment_map(tracking->arena, run->mmap_id, &seg) != 0) {
            continue; /* it was mapped to be filled; else a sweep finds the run */
        }
        if (i == 0 && has_ticket) {
            shrink_ticket(seg, run->chunk_id, RUN_WORD(RUN_TAG(run->word), RUN_HOLDER(run->word), RUN_CANCELLED));
        } else {
            (void) run_free(seg, run->chunk_id, run->word);
        }
    }
}

/* Somebody may wait for what there is now: room in memory and in the queue, a record, the message's end. */
static void
tell_all(const mpshm_tracking *tracking, const mpshm_end *reader)
{
    mpshm_arena *arena = tracking->arena;

    if (tracking->by_stream) {
        (void) stream_reap(arena);
        stream_call(arena);
    }
    if (tracking->spot != NO_POSITION) {
        waiters_let_in(arena, 1);
        if (reader != NULL && reader->fd >= 0) {
            mirror_after_take(arena, reader->fd);
        }
    }
    pressure_call(arena);
    tracking_tell(arena);
}

int
mpshm_tracking_cancel(mpshm_tracking *tracking, const mpshm_end *reader)
{
    arena_lock(tracking->arena);
    int result = state(tracking);

    if (result == MPSHM_TRACK_WAITS) {
        if (take_back(tracking)) {
            tracking->state = MPSHM_TRACK_CANCELLED;
            free_runs(tracking);
            tell_all(tracking, reader);
        }
        result = state(tracking);
    }
    arena_unlock(tracking->arena);
    return result;
}

/* One that wakes by its watch looks what the dead have left, and lets all others look that wait for a message to be taken:
   whoever should have woken them was perhaps killed before. */
static void
look_round(mpshm_arena *arena)
{
    if (arena->chain != NULL) {
        waiters_look_round(arena);
    } else {
        arena_lock(arena);
        roster_census(arena->roster);
        (void) strays_look(arena);
        arena_unlock(arena);
    }
    tracking_call(arena);
}

/* Whether no receiver is left that could take it.  A descriptor that another thread has closed meanwhile does not say. */
static bool
is_deserted(mpshm_arena *arena, int fd)
{
    return fd >= 0 && (arena->chain == NULL || arena->receivers == 0) && has_hung_up(fd, POLLERR | POLLHUP);
}

int
mpshm_tracking_wait(mpshm_tracking *tracking, int fd, int timeout_ms)
{
    mpshm_arena *arena = tracking->arena;
    _Atomic uint32_t *tracked = &arena->header->tracked;
    uint32_t bell = atomic_fetch_or(tracked, MAY_WATCH) | MAY_WATCH;
    int result = mpshm_tracking_state(tracking);

    if (result == MPSHM_TRACK_WAITS && timeout_ms != 0) {
        if (is_deserted(arena, fd)) {
            result = mpshm_tracking_state(tracking); /* the last receiver may have taken it before it went */
            return result == MPSHM_TRACK_WAITS ? -EPIPE : result;
        }
        (void) futex_wait(tracked, bell, watch_shorter(timeout_ms, watch_common_ms(arena)));
        if (watch_common_is_over(arena)) {
            look_round(arena);
        }
        result = mpshm_tracking_state(tracking);
    }
    return result;
}

int
mpshm_has_cancelled(mpshm_arena *arena)
{
    return (atomic_load_explicit(&arena->header->tracked, memory_order_relaxed) & SOME_CANCELLED) != 0;
}
