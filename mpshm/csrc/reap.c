/* Reaping: taking back what dead processes held.

   What a run word or a peer record says of a dead peer goes back at once.  The rest can only be told
   from work in progress while nobody works: a run in flight whose descriptor a killed receiver had in
   hand, chunks between a claimed bit and its run word, places between being taken and used.  So look
   at all peers twice with the search in between; if all rested, and none has moved, what was found is
   nobody's.  A busy arena is reaped when it becomes quiet: whoever waits for room, or asks for the
   gauges, comes here.

   Invariants:
   D1  One peer reaps at a time (`reaper`), and is dead when another takes over.
   D2  Each step leaves a state that the next reaper understands: it may be killed anywhere. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes that stay warm, at the beginnings of all segments together and of each at least, when the
   memory of a storm is given back. */
#define KEEP_WARM (UINT64_C(32) << 20)
#define KEEP_WARM_EACH (UINT64_C(1) << 20)
/* Who reaps without being a peer stands there by its pid. */
#define NAMELESS UINT32_C(0x80000000)
/* A growing arena looks for the dead no oftener than this. */
#define GROWTH_PAUSE_NS INT64_C(100000000)

struct orphan {
    struct segment *seg;
    uint32_t chunk_id, chunks;
    uint64_t word; /* of a run in flight; 0: chunks that no run has */
};

struct search {
    bool drained;       /* the ring was empty: descriptors are in hands or nowhere */
    uint64_t in_flight; /* bytes of chunks */
    uint32_t in_use;    /* runs that are somebody's */
    struct orphan *found;
    uint32_t count, room;
};

static void
add_orphan(struct search *search, struct orphan orphan)
{
    if (search->count == search->room) {
        uint32_t room = search->room ? 2 * search->room : 64;
        struct orphan *grown = realloc(search->found, room * sizeof *grown);

        if (grown == NULL) {
            return; /* the next search finds it */
        }
        search->found = grown;
        search->room = room;
    }
    search->found[search->count++] = orphan;
}

/* The next run from *at on that is not free; *at is behind it then. */
static bool
next_run(struct segment *seg, uint32_t *at, struct orphan *run)
{
    while (*at < seg->count) {
        uint32_t start = *at, chunks;
        uint64_t word = atomic_load(&seg->runs[start]);

        chunks = RUN_STATE(word) == RUN_FREE ? 0 : RUN_CHUNKS(word);
        *at += chunks > 0 ? chunks : 1;
        if (chunks > 0 && chunks <= seg->count - start) {
            *run = (struct orphan) {seg, start, chunks, word};
            return true;
        }
    }
    return false;
}

static void
visit_search(struct segment *seg, void *context)
{
    struct search *search = context;
    uint32_t at = 0;

    while (at < seg->count) {
        uint64_t word = atomic_load(&seg->runs[at]);
        uint32_t chunks = RUN_CHUNKS(word);

        if (RUN_STATE(word) != RUN_FREE && chunks > 0 && chunks <= seg->count - at) {
            if (RUN_STATE(word) == RUN_IN_FLIGHT && search->drained) {
                add_orphan(search, (struct orphan) {seg, at, chunks, word});
            } else {
                search->in_use++;
                search->in_flight += RUN_STATE(word) == RUN_IN_FLIGHT
                                         ? (uint64_t) chunks << seg->shift
                                         : 0;
            }
            at += chunks;
            continue;
        }
        uint32_t start = at;

        while (at < seg->count && !freemap_is_free(seg->map, at)
               && RUN_STATE(atomic_load(&seg->runs[at])) == RUN_FREE) {
            at++;
        }
        if (at > start) {
            add_orphan(search, (struct orphan) {seg, start, at - start, 0});
        } else {
            at++;
        }
    }
}

static void
free_orphan(const struct orphan *orphan)
{
    uint64_t word = orphan->word;

    if (word == 0) {
        freemap_put_back(orphan->seg->map, orphan->chunk_id, orphan->chunks);
    } else if (atomic_compare_exchange_strong(&orphan->seg->runs[orphan->chunk_id], &word,
                                              RUN_WORD(RUN_TAG(word), 0, 0, RUN_FREE))) {
        freemap_put_back(orphan->seg->map, orphan->chunk_id, orphan->chunks);
    }
}

static void
each_segment(mpshm_arena *arena, void (*visit)(struct segment *, void *), void *context)
{
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        struct segment *seg;

        if (atomic_load(&arena->header->segment[id]) != 0 && segment_map(arena, id, &seg) == 0
            && segment_map_data(seg) == 0) {
            visit(seg, context);
        }
    }
}

static void
visit_count(struct segment *seg, void *context)
{
    (void) seg;
    ++*(uint32_t *) context;
}

/* Give back the memory of free chunks behind the first `keep` bytes: taken first, so that nobody
   writes there meanwhile. */
static void
visit_cool(struct segment *seg, void *context)
{
#ifdef FALLOC_FL_PUNCH_HOLE
    uint32_t at = (uint32_t) (*(uint64_t *) context >> seg->shift);

    while (!seg->arena->bounded && at < seg->count) {
        uint32_t taken = freemap_claim_from(seg->map, seg->count, at, seg->count - at);
        uint64_t start = seg->head_bytes + ((uint64_t) at << seg->shift);
        uint64_t size = (uint64_t) taken << seg->shift;

        if (taken > 0) {
            if (fallocate(seg->arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          (off_t) (segment_file_offset(seg) + start), (off_t) size) == 0) {
                memset(seg->warm, 0, ((uint64_t) seg->count << seg->shift) / HUGE_BYTES + 1);
            }
            freemap_put_back(seg->map, at, taken);
        }
        at += taken + 1;
    }
#else
    (void) seg;
    (void) context;
#endif
}

static void
cool(mpshm_arena *arena)
{
    uint32_t segments = 0;

    each_segment(arena, visit_count, &segments);
    uint64_t keep = segments > 0 ? KEEP_WARM / segments : KEEP_WARM;

    keep = keep < KEEP_WARM_EACH ? KEEP_WARM_EACH : keep;
    each_segment(arena, visit_cool, &keep);
}

/* Of the dead as well: theirs is forgotten with their records. */
static uint64_t
pending_of_all(mpshm_arena *arena)
{
    uint32_t high = atomic_load(&arena->header->peers_high);
    uint64_t pending = 0;

    for (uint32_t i = 0; i < high && i < PEER_LIMIT; i++) {
        pending += atomic_load(&arena->peers[i].pending);
    }
    return pending;
}

/* What nobody has: found while all rest.  Of a queue only, for a connection's sender blocks in the
   middle of a send. */
static void
reap_at_rest(mpshm_arena *arena)
{
    struct arena_header *header = arena->header;
    struct glimpse *before = malloc(2 * PEER_LIMIT * sizeof *before), *after = before + PEER_LIMIT;
    struct search search = {.drained = false};

    if (before != NULL && peers_at_rest(arena, before)) {
        uint32_t visits = atomic_load(&header->visits);
        uint32_t unread = ring_unread(arena);
        uint32_t used = atomic_load(&header->places_used);
        uint64_t bytes_used = atomic_load(&header->bytes_used);
        uint64_t pending = pending_of_all(arena);

        search.drained = unread == 0;
        each_segment(arena, visit_search, &search);
        if (peers_at_rest(arena, after) && visits == atomic_load(&header->visits)
            && memcmp(before, after, PEER_LIMIT * sizeof *before) == 0) {
            int64_t lost = (int64_t) used - unread - (int64_t) pending;
            int64_t lost_bytes = (int64_t) (bytes_used - (uint64_t) unread * MPSHM_SLOT_BYTES
                                            - search.in_flight);

            for (uint32_t i = 0; i < search.count; i++) {
                free_orphan(&search.found[i]);
            }
            if (lost != 0) {
                atomic_fetch_sub(&header->places_used, (uint32_t) lost);
            }
            if (lost > 0) {
                places_undo_unfinished(arena, (uint32_t) lost);
            }
            if (header->bytes_limit != 0 && lost_bytes != 0) {
                atomic_fetch_sub(&header->bytes_used, (uint64_t) lost_bytes);
            }
            if (search.in_use == 0 && atomic_load(&header->trim_pending)) {
                atomic_store(&header->trim_pending, 0);
                cool(arena);
            }
        }
    }
    free(search.found);
    free(before);
}

struct dead {
    uint32_t numbers[PEER_LIMIT];
    bool is[PEER_LIMIT + 1];
    uint32_t count;
};

static void
visit_dead(struct segment *seg, void *context)
{
    const struct dead *dead = context;
    struct orphan run;

    for (uint32_t at = 0; next_run(seg, &at, &run);) {
        uint32_t holder = RUN_HOLDER(run.word);

        if (RUN_STATE(run.word) != RUN_IN_FLIGHT && holder <= PEER_LIMIT && dead->is[holder]) {
            free_orphan(&run);
        }
    }
}

/* What the dead held alone, and their places among the peers. */
static bool
reap_dead(mpshm_arena *arena)
{
    struct dead *dead = calloc(1, sizeof *dead);
    uint32_t high = atomic_load(&arena->header->peers_high);

    if (dead == NULL) {
        return false;
    }
    for (uint32_t number = 1; number <= high && number <= PEER_LIMIT; number++) {
        if (peer_is_dead(arena, number)) {
            dead->is[number] = true;
            dead->numbers[dead->count++] = number;
        }
    }
    if (dead->count > 0) {
        each_segment(arena, visit_dead, dead);
    }
    for (uint32_t i = 0; i < dead->count; i++) {
        uint32_t pending = atomic_load(&arena->peers[dead->numbers[i] - 1].pending);

        if (arena->slot_bytes != 0) {
            ring_reap(arena, dead->numbers[i]); /* while the number is nobody else's */
        }
        /* D2: the record first, so that its messages are not forgotten twice. */
        peer_free(arena, dead->numbers[i]);
        if (pending > 0 && arena->slot_bytes != 0) {
            places_forget(arena, pending, 0);
        }
    }
    bool any = dead->count > 0;

    free(dead);
    return any;
}

static void
visit_shared(struct segment *seg, void *context)
{
    struct orphan run;

    for (uint32_t at = 0; next_run(seg, &at, &run);) {
        uint32_t holder = RUN_HOLDER(run.word);

        if (RUN_STATE(run.word) == RUN_LEASED && holder >= HOLDER_SHARED
            && holder < HOLDER_LIMIT) {
            add_orphan(context, run);
        }
    }
}

/* Leases that forks have shared and nobody alive answers for: none is, if no peer has any.  Who
   shares one says so before, and who lets go, after. */
static void
reap_shared(mpshm_arena *arena)
{
    struct search search = {.drained = false};
    uint32_t visits = atomic_load(&arena->header->visits), held = 0;

    if (atomic_exchange(&arena->header->shares, 0) == 0) {
        return;
    }
    each_segment(arena, visit_shared, &search);
    uint32_t high = atomic_load(&arena->header->peers_high);

    for (uint32_t i = 0; i < high && i < PEER_LIMIT; i++) {
        held += atomic_load(&arena->peers[i].shared);
    }
    /* Who came meanwhile may be a child with leases of its parent's. */
    bool nobody = held == 0 && visits == atomic_load(&arena->header->visits)
                  && !atomic_load(&arena->header->crowded);

    for (uint32_t i = 0; i < search.count && nobody; i++) {
        free_orphan(&search.found[i]);
    }
    if (search.count > 0) {
        atomic_store(&arena->header->shares, 1); /* the next search finds them gone */
    }
    free(search.found);
}

static bool
take_over_reaping(mpshm_arena *arena)
{
    uint32_t who = atomic_load(&arena->header->reaper);

    /* D1 */
    if (who & NAMELESS) {
        bool gone = kill((pid_t) (who & ~NAMELESS), 0) == -1 && errno == ESRCH;

        return arena->me != 0 && gone
               && atomic_compare_exchange_strong(&arena->header->reaper, &who, arena->me);
    }
    return arena->me != 0 && (who == 0 || who == arena->me || who > PEER_LIMIT
                              || atomic_load(&arena->peers[who - 1].pid) == 0
                              || peer_is_dead(arena, who))
           && atomic_compare_exchange_strong(&arena->header->reaper, &who, arena->me);
}

static void
reap(mpshm_arena *arena, bool may_rest)
{
    if (take_over_reaping(arena)) {
        bool any = reap_dead(arena);

        if (any) {
            atomic_store(&arena->header->trim_pending, 1);
        }
        reap_shared(arena);
        if (may_rest && arena->slot_bytes != 0) {
            reap_at_rest(arena);
        } else if (any && arena->slot_bytes == 0) {
            cool(arena);
        }
        atomic_store(&arena->header->reaper, 0);
    }
}

void
mpshm_reap(mpshm_arena *arena)
{
    arena_lock(arena);
    reap(arena, true);
    arena_unlock(arena);
}

/* All records are taken, so this process has no number to reap by: the dead's it can free. */
void
reap_records(mpshm_arena *arena)
{
    uint32_t none = 0;

    if (atomic_compare_exchange_strong(&arena->header->reaper, &none,
                                       NAMELESS | (uint32_t) getpid())) {
        (void) reap_dead(arena);
        atomic_store(&arena->header->reaper, 0);
    }
}

/* Before an arena gets larger: perhaps it is full of what the dead held. */
void
reap_before_growth(mpshm_arena *arena)
{
    int64_t ns = now_ns();

    if (atomic_load(&arena->header->peers_high) > 1 && ns - arena->reaped_ns > GROWTH_PAUSE_NS) {
        arena->reaped_ns = ns;
        reap(arena, false);
    }
}
