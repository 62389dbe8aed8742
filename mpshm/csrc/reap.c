/* Reaping: taking back what dead processes held, by the names that words say.

   Nobody is asked to rest and nothing is locked but a segment whose lock the dead held.  Each word is changed
   by one compare-and-swap, so any number of processes may reap at a time, and be killed anywhere: the next
   one finds what is left.

   Knows run words, and which of them are nobody's.  Does not know who is alive (roster.c), nor how a slot is
   mended (ring.c).

   Invariants: D1, D2 (invariants.h).

   Memory order: each compare-and-swap is sequentially consistent, and acquires what its word's last writer
   released. */
#define _GNU_SOURCE
#include "internal.h"

#include <string.h>

#include "ring.h"
#include "stream.h"

/* A growing arena looks for the dead no oftener than this. */
#define GROWTH_PAUSE_NS INT64_C(100000000)
/* Claims between two looks at a few records of the roster.  The dead that nobody waits for are found so.  Among 64
   busy processes on two CPUs each claims 100 times a second: with 4,096 a round of 70 records took seconds.  Looks
   too early are cheap: all processes together look no oftener than the census allows. */
#define CLAIMS_BEFORE_CENSUS 64
/* How long a sweep may take to give memory back. */
#define TRIM_NS INT64_C(1000000000)

/* One sweep over an arena.  Who is dead is asked once for each name, as far as the cache goes. */
struct sweep {
    mpshm_arena *arena;
    name asked[64];
    bool dead[64];
    uint32_t freed, in_use;
};

static bool
is_dead(struct sweep *sweep, name who)
{
    uint32_t at = (who ^ who >> 14) % 64;

    if (who == 0) {
        return false;
    }
    if (sweep->asked[at] != who) {
        sweep->asked[at] = who;
        sweep->dead[at] = arena_name_is_dead(sweep->arena, who);
    }
    return sweep->dead[at];
}

/* Whether the run with that word is nobody's.  D2 */
static bool
is_nobodys(struct sweep *sweep, uint64_t word)
{
    switch (RUN_STATE(word)) {
    case RUN_LOANED:
    case RUN_LEASED:
        return is_dead(sweep, RUN_HOLDER(word));
    case RUN_FLIGHT:
        return sweep->arena->chain != NULL && ring_has_passed(sweep->arena, FLIGHT_SPOT(word));
    default:
        return false;
    }
}

static void
sweep_runs(struct sweep *sweep, struct segment *seg)
{
    uint32_t high = segment_high(seg);

    for (uint32_t at = 0; at < high;) {
        uint64_t word = atomic_load(&seg->runs[at].word);

        if (RUN_STATE(word) == RUN_FREE) {
            at++;
            continue;
        }
        uint32_t chunks = run_chunks_at(seg, at);

        if (RUN_STATE(word) == RUN_SHARED) {
            lease_drop_dead(seg, at);
        } else if (is_nobodys(sweep, word)) {
            (void) run_free(seg, at, word);
        }
        bool is_free = RUN_STATE(atomic_load(&seg->runs[at].word)) == RUN_FREE;

        sweep->freed += is_free;
        sweep->in_use += !is_free;
        at += chunks;
    }
}

/* One segment of the sweep, if there is one with that number. */
static void
sweep_segment(struct sweep *sweep, uint32_t id)
{
    struct segment *seg;

    if (atomic_load(&sweep->arena->header->segment[id]) == 0 || segment_map(sweep->arena, id, &seg) != 0) {
        return;
    }
    sweep_runs(sweep, seg);
    /* One who was killed between freeing a run and telling of it left chunks that the maps do not show.  Exchanged,
       so that who takes it has seen what each sweeper has. */
    (void) atomic_exchange(&seg->head->stale, 1);
    name holder = atomic_load(&seg->head->lock);

    if (is_dead(sweep, holder)) {
        seg->blocked_by = holder;
        if (segment_try_lock(seg)) {
            segment_unlock(seg);
        }
    }
}

/* The ring first: runs in flight are nobody's when their slot has passed.  Of a connection, strays. */
static void
begin_sweep(struct sweep *sweep, mpshm_arena *arena)
{
    memset(sweep, 0, sizeof *sweep);
    sweep->arena = arena;
    if (arena->chain != NULL) {
        (void) stream_mend(arena);
        chain_reap(arena);
    } else {
        sweep->freed += strays_look(arena);
    }
}

/* The one that freed is often not the one that finds nothing in use: it may be dead by then. */
static void
end_sweep(struct sweep *sweep)
{
    _Atomic uint32_t *untrimmed = &sweep->arena->header->untrimmed;

    if (sweep->freed > 0) {
        atomic_store(untrimmed, 1);
    }
    if (sweep->in_use == 0 && atomic_load(untrimmed) != 0) {
        atomic_store(untrimmed, 0);
        trim_soon(sweep->arena, KEEP_LEAST);
    }
}

static void
reap(mpshm_arena *arena)
{
    struct sweep sweep;

    if (arena->me != 0) {
        begin_sweep(&sweep, arena);
        for (uint32_t id = 0; id < arena->segment_limit; id++) {
            sweep_segment(&sweep, id);
        }
        end_sweep(&sweep);
    }
}

/* The process's other channels go on between two segments. */
void
mpshm_reap(mpshm_arena *arena)
{
    struct sweep sweep;

    arena_lock(arena);
    if (arena->me == 0) {
        arena_unlock(arena);
        return;
    }
    arena_visit(arena);
    begin_sweep(&sweep, arena);
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        if (atomic_load(&arena->header->segment[id]) != 0) {
            arena_unlock(arena);
            arena_lock(arena);
            sweep_segment(&sweep, id);
        }
    }
    end_sweep(&sweep);
    arena_unlock(arena);
    trim_if_due(arena, trim_time_is_over, &(int64_t) {now_ns() + TRIM_NS});
    arena_leave(arena);
}

/* Before an arena gets larger: perhaps it is full of what the dead held.  False: it was swept a moment ago. */
bool
reap_before_growth(mpshm_arena *arena)
{
    int64_t ns = now_ns();

    if (ns - arena->reaped_ns <= GROWTH_PAUSE_NS) {
        return false;
    }
    arena->reaped_ns = ns;
    reap(arena);
    return true;
}

/* A death that somebody has noticed is swept by the first process that comes: all others see that it has been
   begun.  Killed in the middle, it is a death that is noticed itself. */
void
reap_if_somebody_died(mpshm_arena *arena)
{
    if (++arena->claims % CLAIMS_BEFORE_CENSUS == 0) {
        roster_census(arena->roster);
    }
    uint32_t deaths = roster_deaths(arena->roster);

    if (deaths != arena->deaths) {
        uint32_t swept = atomic_load(&arena->header->swept);

        arena->deaths = deaths;
        if (swept != deaths && atomic_compare_exchange_strong(&arena->header->swept, &swept, deaths)) {
            reap(arena);
            waiters_see_death(arena);
        }
    }
}

/* Those that wait for what the dead should have done are woken now, and not by their watch.  What the dead held is
   taken back by whoever claims next. */
void
mpshm_process_ended(int pid)
{
    process_lock();
    rosters_note_end((uint32_t) pid);
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        if (roster_has_ended(arena->roster)) {
            arena_is_ours(arena);
            waiters_see_death(arena);
        }
    }
    process_unlock();
}
