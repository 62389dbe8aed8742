/* Leases: the receiver's verbs, and who holds a run.

   Knows the process's table of leases, by address: a view's destructor has nothing else.  Does not know what
   a fork does to a mapping (fork.c).

   A run that cannot be seen where it lies is copied out into a block of private memory, which stands in the table in
   its place.  Blocks are filled without the lock: until then the run stays leased.

   Invariants: V1, V2, V4, L7 (invariants.h).

   A block:   unread, its run leased --lease_read--> filled, its run free --> freed
   A run's holders:   FLIGHT --lease_run--> LEASED(one) --lease_add_holder--> SHARED --the last name goes--> FREE
                                               '--release--> FREE

   Memory order: the lease's compare-and-swap acquires what seal released; freeing releases.  A name goes away
   by two steps, the tag first: so whoever has looked over all names, while one went or moved, finds that
   the word has changed. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Whoever gives back so long a run looks whether memory can go back. */
#define TRIM_BYTES (UINT64_C(1) << 20)

static struct {
    struct lease *places;
    uint64_t size; /* a power of two, at most half full */
    uint64_t count;
} table;

static uint64_t
place_of(const char *data)
{
    uint64_t key = (uint64_t) (uintptr_t) data >> 4;

    return (key * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (table.size - 1);
}

static struct lease *
find(const char *data)
{
    if (data == NULL || table.size == 0) {
        return NULL;
    }
    for (uint64_t at = place_of(data);; at = (at + 1) & (table.size - 1)) {
        if (table.places[at].data == data) {
            return &table.places[at];
        }
        if (table.places[at].data == NULL) {
            return NULL;
        }
    }
}

static void
put(struct lease lease)
{
    uint64_t at = place_of(lease.data);

    while (table.places[at].data != NULL) {
        at = (at + 1) & (table.size - 1);
    }
    table.places[at] = lease;
}

static int
insert(struct lease lease)
{
    if (2 * (table.count + 1) > table.size) {
        uint64_t old_size = table.size;
        struct lease *old = table.places;
        struct lease *grown = calloc(old_size ? 2 * old_size : 64, sizeof *grown);

        if (grown == NULL) {
            return -ENOMEM;
        }
        table.places = grown;
        table.size = old_size ? 2 * old_size : 64;
        for (uint64_t i = 0; i < old_size; i++) {
            if (old[i].data != NULL) {
                put(old[i]);
            }
        }
        free(old);
    }
    put(lease);
    table.count++;
    return 0;
}

static void
drop(struct lease *lease)
{
    uint64_t hole = (uint64_t) (lease - table.places);

    table.places[hole].data = NULL;
    table.count--;
    /* Close the gap: whoever was pushed past it moves back. */
    for (uint64_t at = (hole + 1) & (table.size - 1); table.places[at].data != NULL;
         at = (at + 1) & (table.size - 1)) {
        struct lease moved = table.places[at];

        table.places[at].data = NULL;
        put(moved);
    }
}

struct lease *
leases_next(struct lease *before)
{
    uint64_t at = before == NULL ? 0 : (uint64_t) (before - table.places) + 1;

    while (at < table.size && table.places[at].data == NULL) {
        at++;
    }
    return at < table.size ? &table.places[at] : NULL;
}

/* Holders. */

/* How many names there is room for beside the run: in the entries of chunks that its message needs, for its
   sender may still take the others from it. */
static uint32_t
holders_most(struct segment *seg, uint32_t at)
{
    uint64_t more = atomic_load(&seg->runs[at].more);
    uint64_t needed = chunks_of(seg->shift, extent_bytes(seg->shift, more));
    uint32_t all = run_chunks_at(seg, at), others = needed > 0 && needed < all ? (uint32_t) needed - 1 : all - 1;

    return others < HOLDERS_MOST ? others : HOLDERS_MOST;
}

static _Atomic uint64_t *
holder_at(struct segment *seg, uint32_t at, uint32_t i)
{
    return &seg->runs[at + 1 + i].more;
}

bool
lease_add_holder(struct segment *seg, uint32_t at, name holder)
{
    uint32_t most = holders_most(seg, at);
    uint64_t word = atomic_load(&seg->runs[at].word);
    uint64_t me = HOLDER(seg->arena->me);

    if (RUN_STATE(word) == RUN_LEASED && RUN_HOLDER(word) == seg->arena->me && most >= 2) {
        for (uint32_t i = 0; i < most; i++) {
            atomic_store_explicit(holder_at(seg, at, i), i == 0 ? me : i == 1 ? HOLDER(holder) : 0,
                                  memory_order_relaxed);
        }
        return atomic_compare_exchange_strong(&seg->runs[at].word, &word,
                                              RUN_WORD(RUN_TAG(word), 0, RUN_SHARED));
    }
    for (uint32_t i = 0; i < most && RUN_STATE(word) == RUN_SHARED; i++) {
        uint64_t nobody = 0;

        if (atomic_compare_exchange_strong(holder_at(seg, at, i), &nobody, HOLDER(holder))) {
            return true;
        }
    }
    return false;
}

/* Others may be quicker, but not for ever: after so many tries it is a stray write, and a sweep looks again. */
#define TRIES 256

/* A SHARED run whose names have all gone is free.  The word first, then how long the run is: if it has become
   another run in between, the word has changed.  L7 */
static void
look(struct segment *seg, uint32_t at)
{
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint64_t word = atomic_load(&seg->runs[at].word);
        uint32_t most = holders_most(seg, at);
        bool held = RUN_STATE(word) != RUN_SHARED;

        for (uint32_t i = 0; i < most && !held; i++) {
            held = atomic_load(holder_at(seg, at, i)) != 0;
        }
        if (held || run_free(seg, at, word)) {
            return;
        }
    }
}

/* The i-th name goes, if the run's word is still `*word` and the name is `who`; *word is what it became.  L7 */
static bool
drop_name(struct segment *seg, uint32_t at, uint64_t *word, uint32_t i, uint64_t who)
{
    uint64_t more = SHARED_MORE(*word);

    if (!atomic_compare_exchange_strong(&seg->runs[at].word, word, more)) {
        return false;
    }
    *word = more;
    atomic_compare_exchange_strong(holder_at(seg, at, i), &who, 0);
    return true;
}

/* The next name, from *i on, that is to go. */
static uint64_t
name_to_drop(struct segment *seg, uint32_t at, uint32_t most, uint32_t *i, name mine)
{
    for (; *i < most; ++*i) {
        uint64_t who = atomic_load(holder_at(seg, at, *i));

        if (IS_HOLDER(who) && (mine != 0 ? who == HOLDER(mine) : arena_name_is_dead(seg->arena, (name) who & NAME_MASK))) {
            return who;
        }
    }
    return 0;
}

/* Names go from a SHARED run: `mine`, or for 0 those of the dead.  The last one frees it. */
static void
drop_names(struct segment *seg, uint32_t at, name mine)
{
    uint64_t word = atomic_load(&seg->runs[at].word);

    for (uint32_t tries = 0; tries < TRIES && RUN_STATE(word) == RUN_SHARED; tries++) {
        uint32_t most = holders_most(seg, at), i = 0;
        uint64_t who = name_to_drop(seg, at, most, &i, mine);

        if (who == 0) {
            break;
        }
        if (drop_name(seg, at, &word, i, who) && mine != 0) {
            break;
        }
    }
    look(seg, at);
}

void
lease_drop_dead(struct segment *seg, uint32_t at)
{
    drop_names(seg, at, 0);
}

/* This process lets go of a run that it has leased. */
static void
let_go(struct segment *seg, uint32_t at)
{
    uint64_t word = atomic_load(&seg->runs[at].word);

    if (RUN_STATE(word) == RUN_LEASED && RUN_HOLDER(word) == seg->arena->me) {
        (void) run_free(seg, at, word);
    } else if (RUN_STATE(word) == RUN_SHARED) {
        drop_names(seg, at, seg->arena->me);
    }
}

/* Leasing. */

/* Whether that run is in flight as the descriptor says: its word, to swap. */
static bool
is_as_said(struct segment *seg, const mpshm_descriptor *what, uint64_t position, uint64_t *word)
{
    struct run *run = &seg->runs[what->chunk_id];

    *word = atomic_load_explicit(&run->word, memory_order_acquire);
    if (position == NO_POSITION
            ? RUN_STATE(*word) != RUN_FLIGHT || RUN_TAG(*word) != what->tag
            : *word != FLIGHT_AT(position)) {
        return false;
    }
    return extent_bytes(seg->shift, atomic_load_explicit(&run->more, memory_order_relaxed)) == what->size;
}

/* FLIGHT -> LEASED by this process, if that is what the descriptor's every field says. */
static int
acquire(mpshm_arena *arena, const mpshm_descriptor *what, uint64_t position, struct segment **out)
{
    struct segment *seg;
    uint64_t word;
    int error = arena->me == 0 ? MPSHM_E_CROWDED : segment_map(arena, what->mmap_id, &seg);

    if (error != 0) {
        return error;
    }
    if (what->chunk_id >= seg->count) {
        return MPSHM_E_CHUNK;
    }
    if (what->size == 0 || what->size > (uint64_t) (seg->count - what->chunk_id) << seg->shift) {
        return MPSHM_E_SIZE;
    }
    uint32_t tag = position == NO_POSITION ? what->tag : SPOT_TAG(position);

    if (!is_as_said(seg, what, position, &word)
        || !atomic_compare_exchange_strong(&seg->runs[what->chunk_id].word, &word,
                                           RUN_WORD(tag, arena->me, RUN_LEASED))) {
        return MPSHM_E_STALE;
    }
    arena_notify(arena);
    arena->lease_bytes += chunks_of(seg->shift, what->size) << seg->shift;
    *out = seg;
    return 0;
}

bool
lease_drop_cancelled(mpshm_arena *arena, const mpshm_descriptor *what)
{
    struct segment *seg;

    if (segment_map(arena, what->mmap_id, &seg) != 0 || what->chunk_id >= seg->count) {
        return false;
    }
    uint64_t word = atomic_load(&seg->runs[what->chunk_id].word);

    return RUN_STATE(word) == RUN_CANCELLED && RUN_TAG(word) == what->tag && run_free(seg, what->chunk_id, word);
}

/* The leased run itself: 0; or -ENOMEM, and nothing has changed. */
static int
add_view(struct segment *seg, const mpshm_descriptor *what, mpshm_held *to)
{
    int error = segment_map_data(seg);

    if (error == 0) {
        to->data = seg->now->data + ((uint64_t) what->chunk_id << seg->shift);
        error = insert((struct lease) {.data = to->data, .mapping = seg->now, .size = what->size,
                                       .chunk_id = what->chunk_id,
                                       .chunks = (uint32_t) chunks_of(seg->shift, what->size)});
    }
    if (error == 0) {
        seg->now->views++;
        to->copied = 0;
    }
    return error;
}

/* A block for its bytes, which lease_read brings: 0, or -ENOMEM. */
static int
add_block(struct segment *seg, const mpshm_descriptor *what, uint32_t why, mpshm_held *to)
{
    int error = -ENOMEM;

    to->data = malloc(what->size);
    if (to->data != NULL) {
        error = insert((struct lease) {.data = to->data, .unread = seg, .size = what->size, .chunk_id = what->chunk_id,
                                       .chunks = (uint32_t) chunks_of(seg->shift, what->size)});
    }
    if (error != 0) {
        free(to->data);
    }
    to->copied = why;
    return error;
}

/* Whether memory is so scarce that receivers copy it out: they would keep what the next message needs. */
static bool
is_scarce(const struct segment *seg)
{
    const mpshm_arena *arena = seg->arena;

    return seg->id >= reserve_first(arena)
           || (arena->bounded && arena_has_file(arena) && memfile_is_short(arena->fd));
}

int
lease_run(mpshm_arena *arena, const mpshm_descriptor *what, uint64_t position, mpshm_held *to)
{
    struct segment *seg;
    int error = acquire(arena, what, position, &seg);

    *to = (mpshm_held) {.size = what->size};
    if (error != 0) {
        return error;
    }
    error = is_scarce(seg) ? add_block(seg, what, MPSHM_COPIED_SCARCE, to) : -ENOMEM;
    if (error != 0) { /* also where there is no private memory: a view rather than nothing */
        error = add_view(seg, what, to);
    }
    if (error != 0) {
        error = add_block(seg, what, MPSHM_COPIED_UNMAPPED, to);
    }
    if (error == 0) {
        arena->refs++;
        arena->leases++;
    } else {
        to->data = NULL;
        let_go(seg, what->chunk_id); /* the message cannot be had, its chunks can */
    }
    return error;
}

/* The run is not leased any more. */
static void
end_lease(struct segment *seg, const struct lease *lease)
{
    if (!lease->copied) {
        let_go(seg, lease->chunk_id);
    }
    seg->arena->leases--;
    arena_unref(seg->arena);
}

/* The block is filled, if it was to be: its run goes.  Under the lock.  error: of the windows; where there is no address
   space for one, there may be a mapping. */
static int
has_been_read(const mpshm_held *held, int error)
{
    struct lease *found = find(held->data);

    if (found == NULL || found->unread == NULL) {
        return 0;
    }
    struct lease lease = *found;
    struct segment *seg = lease.unread;

    if (error != 0 && segment_map_data(seg) == 0) {
        memcpy(lease.data, seg->now->data + ((uint64_t) lease.chunk_id << seg->shift), lease.size);
        error = 0;
    }
    if (error == 0) {
        found->unread = NULL;
        end_lease(seg, &lease);
    }
    return error;
}

static int
read_block(const struct lease *lease)
{
    return window_read(lease->unread, (uint64_t) lease->chunk_id << lease->unread->shift, lease->data, lease->size);
}

int
lease_read_now(const mpshm_held *held)
{
    struct lease *found = find(held->data);

    INVARIANT(A4, process_is_locked());
    return found == NULL || found->unread == NULL ? 0 : has_been_read(held, read_block(found));
}

int
lease_read(const mpshm_held *held)
{
    process_lock();
    struct lease *found = find(held->data), lease = {.unread = NULL};

    if (found != NULL) {
        lease = *found;
    }
    process_unlock();
    if (lease.unread == NULL) {
        return 0;
    }
    int error = read_block(&lease);

    process_lock();
    error = has_been_read(held, error);
    process_unlock();
    return error;
}

/* What is freed is overwritten in the debug build, so that a test sees who still reads it. */
static void
spoil(struct segment *seg, uint32_t at, uint64_t size)
{
#ifdef MPSHM_DEBUG
    uint64_t word = atomic_load(&seg->runs[at].word);

    if (RUN_STATE(word) == RUN_LEASED && RUN_HOLDER(word) == seg->arena->me && seg->now != NULL) {
        memset(seg->now->data + ((uint64_t) at << seg->shift), 0xa5, size);
    }
#else
    (void) seg;
    (void) at;
    (void) size;
#endif
}

/* Lease a run, copy its bytes and release it: 0, MPSHM_COPIED_UNMAPPED, or the error. */
int
lease_copy(mpshm_arena *arena, const mpshm_descriptor *what, uint64_t position, char *to)
{
    struct segment *seg;
    int error = acquire(arena, what, position, &seg);

    if (error != 0) {
        return error;
    }
    uint64_t at = (uint64_t) what->chunk_id << seg->shift;

    if (seg->now != NULL || (seg->id < reserve_first(arena) && segment_map_data(seg) == 0)) {
        memcpy(to, seg->now->data + at, what->size);
        spoil(seg, what->chunk_id, what->size);
    } else {
        error = window_read(seg, at, to, what->size);
        error = error == 0 && seg->id < reserve_first(arena) ? MPSHM_COPIED_UNMAPPED : error;
    }
    let_go(seg, what->chunk_id);
    return error;
}

int
mpshm_lease(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
            char **data)
{
    mpshm_descriptor what = {mmap_id, chunk_id, tag, size};
    mpshm_held held;

    arena_lock(arena);
    int error = lease_run(arena, &what, NO_POSITION, &held);

    arena_unlock(arena);
    if (error == 0 && held.copied != 0) {
        error = lease_read(&held);
        if (error != 0) {
            mpshm_release(held.data);
            held.data = NULL;
        }
    }
    *data = held.data;
    return error;
}

static void
release_block(struct lease lease)
{
    if (lease.unread != NULL) {
        end_lease(lease.unread, &lease);
    }
    free(lease.data);
}

static void
release_view(struct lease lease)
{
    struct segment *seg = lease.mapping->seg;

    if (!lease.copied) {
        spoil(seg, lease.chunk_id, (uint64_t) lease.chunks << seg->shift);
    }
    mapping_drop_view(lease.mapping);
    end_lease(seg, &lease);
}

static void
release_found(struct lease *found)
{
    struct lease lease = *found;

    drop(found);
    if (lease.mapping == NULL) {
        release_block(lease);
    } else {
        release_view(lease);
    }
}

void
release_run(void *data)
{
    struct lease *found = find(data);

    if (found != NULL) {
        release_found(found);
    }
}

void
mpshm_release(void *data)
{
    process_lock();
    struct lease *found = find(data);
    mpshm_arena *large = NULL;

    if (found != NULL) {
        struct segment *seg = found->mapping != NULL ? found->mapping->seg : found->unread;

        if (seg != NULL) {
            arena_is_ours(seg->arena); /* the child of a fork may not have come yet */
        }
        if (seg != NULL && (uint64_t) found->chunks << seg->shift >= TRIM_BYTES) {
            large = seg->arena;
            arena_visit(large);
        }
        release_found(found);
    }
    process_unlock();
    if (large != NULL) {
        trim_if_due(large, NULL, NULL);
        arena_leave(large);
    }
}

uint64_t
mpshm_leases(void)
{
    process_lock();
    uint64_t count = table.count;
    process_unlock();
    return count;
}
