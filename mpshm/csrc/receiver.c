/* The receiver's verbs: lease, release; and what fork and exit do to leases.

   Knows the process's table of leases, by address: a view's destructor has nothing else.

   Invariants:
   V1  A leased run of this process stands in the table exactly once.
   V2  A run is freed when its last holder lets go; every fork adds one holder per lease, before it,
       and whoever holds runs with several says how many in its peer record.
   V3  A view whose process has forked is a private mapping over the run: no write is seen outside.

   Memory order: the lease's compare-and-swap acquires what seal released; freeing releases. */
#define _GNU_SOURCE
#include "internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct lease {
    char *data; /* NULL: empty place */
    struct segment *seg;
    uint32_t chunk_id, chunks;
    bool private;
};

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

/* LOANED or last LEASED -> FREE: the word first, then the bits, for a claim follows the bits. */
void
lease_drop_run(struct segment *seg, uint32_t chunk_id, uint32_t chunks)
{
    uint64_t word = atomic_load_explicit(&seg->runs[chunk_id], memory_order_relaxed);

#ifdef MPSHM_DEBUG
    if (seg->data != NULL) {
        memset(seg->data + ((uint64_t) chunk_id << seg->shift), 0xa5,
               (uint64_t) chunks << seg->shift);
    }
#endif
    atomic_store_explicit(&seg->runs[chunk_id], RUN_WORD(RUN_TAG(word), 0, 0, RUN_FREE),
                          memory_order_relaxed);
    freemap_put_back(seg->map, chunk_id, chunks);
}

static uint64_t
run_file_offset(const struct lease *lease)
{
    return segment_file_offset(lease->seg) + lease->seg->head_bytes
           + ((uint64_t) lease->chunk_id << lease->seg->shift);
}

static int
remap(struct lease *lease, int sharing)
{
    void *at = mmap(lease->data, (uint64_t) lease->chunks << lease->seg->shift,
                    PROT_READ | PROT_WRITE, sharing | MAP_FIXED, lease->seg->arena->fd,
                    (off_t) run_file_offset(lease));
    return at == MAP_FAILED ? -errno : 0;
}

/* One holder fewer; the last one frees.  V2.  A count that reached its limit is no count any more:
   the run then stays lent. */
static void
let_go(struct segment *seg, uint32_t chunk_id, uint32_t chunks)
{
    uint64_t word = atomic_load(&seg->runs[chunk_id]);
    bool was_shared = RUN_HOLDER(word) >= HOLDER_SHARED, others = false;
    struct peer *me = peer_self(seg->arena);

    while (!others && RUN_HOLDER(word) > HOLDER_SHARED + 1) {
        uint64_t fewer = RUN_WORD(RUN_TAG(word), chunks, RUN_HOLDER(word) - 1, RUN_LEASED);

        others = RUN_HOLDER(word) == HOLDER_LIMIT
                 || atomic_compare_exchange_weak(&seg->runs[chunk_id], &word, fewer);
    }
    if (!others) {
        lease_drop_run(seg, chunk_id, chunks);
    }
    if (was_shared && me != NULL) {
        atomic_fetch_sub(&me->shared, 1); /* last: at 0 a reaper may take the run */
    }
}

/* IN_FLIGHT -> LEASED by this peer, if that is what the descriptor's every field says. */
static int
acquire(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
        struct segment **out)
{
    struct segment *seg;
    int error = segment_map(arena, mmap_id, &seg);

    if (error != 0) {
        return error;
    }
    if (chunk_id >= seg->count) {
        return MPSHM_E_CHUNK;
    }
    uint64_t room = (uint64_t) (seg->count - chunk_id) << seg->shift;

    if (size == 0 || size > room) {
        return MPSHM_E_SIZE;
    }
    uint32_t chunks = (uint32_t) chunks_of(seg->shift, size);
    uint64_t expected = RUN_WORD(tag, chunks, slack_of(seg->shift, size), RUN_IN_FLIGHT);
    uint64_t leased = RUN_WORD(tag, chunks, arena->me, RUN_LEASED);

    if (tag > TAG_MASK
        || !atomic_compare_exchange_strong(&seg->runs[chunk_id], &expected, leased)) {
        return MPSHM_E_STALE;
    }
    arena_notify(arena);
    arena->lease_bytes += (uint64_t) chunks << seg->shift;
    error = segment_map_data(seg);
    if (error != 0) {
        lease_drop_run(seg, chunk_id, chunks); /* the message cannot be had, its chunks can */
    }
    *out = seg;
    return error;
}

int
lease_run(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
          char **data)
{
    struct segment *seg;
    int error = acquire(arena, mmap_id, chunk_id, size, tag, &seg);

    *data = NULL;
    if (error == 0) {
        uint32_t chunks = (uint32_t) chunks_of(seg->shift, size);
        char *at = seg->data + ((uint64_t) chunk_id << seg->shift);

        error = insert((struct lease) {at, seg, chunk_id, chunks, false});
        if (error == 0) {
            *data = at;
            arena->refs++;
            arena->leases++;
        } else {
            lease_drop_run(seg, chunk_id, chunks);
        }
    }
    return error;
}

/* Lease a run, copy its bytes and release it. */
int
lease_copy(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
           char *to)
{
    struct segment *seg;
    int error = acquire(arena, mmap_id, chunk_id, size, tag, &seg);

    if (error == 0) {
        memcpy(to, seg->data + ((uint64_t) chunk_id << seg->shift), size);
        lease_drop_run(seg, chunk_id, (uint32_t) chunks_of(seg->shift, size));
    }
    return error;
}

int
mpshm_lease(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id, uint64_t size, uint32_t tag,
            char **data)
{
    arena_lock(arena);
    int error = lease_run(arena, mmap_id, chunk_id, size, tag, data);

    arena_unlock(arena);
    return error;
}

static void
release_found(struct lease *found)
{
    struct lease lease = *found;
    mpshm_arena *arena = lease.seg->arena;

    drop(found);
    arena->leases--;
    if (!lease.private || remap(&lease, MAP_SHARED) == 0) {
        let_go(lease.seg, lease.chunk_id, lease.chunks);
    }
    /* else no mapping is to be had: were the chunks lent again, this process would read its old
       private pages in the place of a new message.  They stay lent, and only memory is lost. */
    arena_unref(arena);
}

void
release_run(void *data)
{
    struct lease *found = find(data);

    if (found != NULL) {
        release_found(found);
    }
}

/* Enter, but keep the arena, for releasing its last lease frees it. */
static void
release_entered(struct lease *found)
{
    mpshm_arena *arena = found->seg->arena;

    arena->refs++;
    peer_enter(arena);
    release_found(found);
    peer_leave(arena);
    arena_unref(arena);
}

void
mpshm_release(void *data)
{
    pthread_mutex_lock(&mpshm_process.lock);
    struct lease *found = find(data);

    if (found != NULL) {
        release_entered(found);
    }
    pthread_mutex_unlock(&mpshm_process.lock);
}

static void
release_all_locked(void)
{
    for (uint64_t at = 0; at < table.size;) {
        if (table.places[at].data != NULL) {
            release_entered(&table.places[at]); /* may move another lease to this place */
        } else {
            at++;
        }
    }
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
            if (arena->segments[id] != NULL) {
                segment_vacate(arena->segments[id]);
            }
        }
        if (arena->loans == 0) {
            peer_depart(arena);
        }
    }
}

void
mpshm_release_all(void)
{
    pthread_mutex_lock(&mpshm_process.lock);
    release_all_locked();
    pthread_mutex_unlock(&mpshm_process.lock);
}

/* At exit(), after the interpreter is gone: nobody looks at a view any more.  A thread stuck in
   the lock must not hang the exit; what it held is then left to the reaping of dead holders. */
__attribute__((destructor)) static void
release_at_exit(void)
{
    if (pthread_mutex_trylock(&mpshm_process.lock) == 0) {
        release_all_locked();
        pthread_mutex_unlock(&mpshm_process.lock);
    }
}

uint64_t
mpshm_leases(void)
{
    pthread_mutex_lock(&mpshm_process.lock);
    uint64_t count = table.count;
    pthread_mutex_unlock(&mpshm_process.lock);
    return count;
}

/* Fork.  These handlers run inside fork() itself, so that no Python code, no destructor of an
   inherited object, comes between them and the child.  A fork that Python does announces itself
   first: its child goes on with the views it inherits.  Any other fork is one before an exec, or
   C code's own affair, and its child holds nothing.  vfork and posix_spawn run no handlers. */
static _Thread_local bool child_keeps_views;
static _Thread_local int fork_error;

void
mpshm_fork_announce(void)
{
    child_keeps_views = true;
    fork_error = 0;
}

int
mpshm_fork_over(void)
{
    child_keeps_views = false;
    return fork_error;
}

/* V2, V3: a holder more for each lease, and its view made private. */
static void
share_lease(struct lease *lease)
{
    _Atomic uint64_t *word = &lease->seg->runs[lease->chunk_id];
    uint64_t was = atomic_load(word);

    if (!lease->private) {
        int error = remap(lease, MAP_PRIVATE);

        lease->private = error == 0;
        fork_error = fork_error ? fork_error : error;
    }
    if (RUN_HOLDER(was) < HOLDER_SHARED) { /* ours alone: nobody else changes it */
        struct peer *me = peer_self(lease->seg->arena);

        if (me != NULL) {
            atomic_fetch_add(&me->shared, 1);
        }
        atomic_store(&lease->seg->arena->header->shares, 1);
        atomic_store(word, RUN_WORD(RUN_TAG(was), lease->chunks, HOLDER_SHARED + 2, RUN_LEASED));
        return;
    }
    while (RUN_HOLDER(was) < HOLDER_LIMIT
           && !atomic_compare_exchange_weak(
               word, &was,
               RUN_WORD(RUN_TAG(was), lease->chunks, RUN_HOLDER(was) + 1, RUN_LEASED))) {
    }
}

static void
before_fork(void)
{
    pthread_mutex_lock(&mpshm_process.lock);
    if (!child_keeps_views || table.count == 0) {
        return;
    }
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        if (arena->leases > 0) {
            peer_enter(arena);
            peer_expect_child(arena, arena->leases);
        }
    }
    for (uint64_t at = 0; at < table.size; at++) {
        if (table.places[at].data != NULL) {
            share_lease(&table.places[at]);
        }
    }
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        if (arena->leases > 0) {
            peer_leave(arena);
        }
    }
}

static void
after_fork_in_parent(void)
{
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        arena->heir = 0; /* the child's, from now on */
    }
    pthread_mutex_unlock(&mpshm_process.lock);
}

static void
after_fork_in_child(void)
{
    mpshm_process.generation++;
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
            if (arena->segments[id] != NULL) {
                arena->segments[id]->mine = false;
            }
        }
        arena->sent_count = 0;
        arena->sent_bytes = 0;
        arena->shorts = 0;
        arena->loans = 0;
        if (!child_keeps_views) {
            arena->leases = 0;
        } else if (arena->heir != 0) {
            peer_enter(arena); /* answers for what it inherits */
            peer_leave(arena);
        }
    }
    if (!child_keeps_views) {
        table.size = table.count = 0; /* and the memory stays: this child will exec */
    }
    pthread_mutex_unlock(&mpshm_process.lock);
}

__attribute__((constructor)) static void
watch_forks(void)
{
    (void) pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
