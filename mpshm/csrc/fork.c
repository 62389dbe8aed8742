/* Forks: the views of parent and child become private, in whole segments, and the child holds what it
   inherits by a name of its own.

   These handlers run inside fork() itself, whoever calls it, so that no code comes between them and the
   child.  They cannot refuse a fork, so they always find a way: a view for which the child cannot be a holder
   is copied.  vfork and posix_spawn run no handlers, and need none.

   A view in a mapping that could not be made private is copied page by page: what another thread writes to it
   at that very moment may be lost.  That takes a process that has closed our descriptors, or a kernel without
   memory.

   Knows leases, mappings and names.  Does not know what a name stands for (roster.c), nor how a holder's name
   is written (leases.c).

   Invariants: V3, A3 (invariants.h).

   Memory order: fork() orders all between parent and child. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Give this process pages of its own for `size` bytes at `at`, which stay what they are.  private: the mapping
   is, and a page that is written to becomes ours alone.  False: there is no memory for that. */
static bool
copy_pages(char *at, uint64_t size, bool private)
{
    bool copied = private;

    uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE);
    char *from = at - (uintptr_t) at % page;
    uint64_t length = (size + (uint64_t) (at - from) + page - 1) / page * page;

    if (private) {
        for (uint64_t i = 0; i < length; i += page) {
            _Atomic unsigned char *one = (_Atomic unsigned char *) (from + i);

            atomic_fetch_add(one, 0); /* a write that changes nothing, whoever else writes */
        }
        return true;
    }
#ifdef MREMAP_FIXED
    char *copy = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (copy != MAP_FAILED) {
        memcpy(copy, from, length);
        copied = mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, from) != MAP_FAILED;
        if (!copied) {
            munmap(copy, length);
        }
    }
#endif
    return copied;
}

/* Share one lease with the child. */
static void
share(struct lease *lease, name heir, bool private)
{
    struct segment *seg = lease->mapping->seg;

    if (lease->copied) {
        return;
    }
    lease->copied_for_child = lease->apart || !private || heir == 0
                              || !lease_add_holder(seg, lease->chunk_id, heir);
    if (lease->copied_for_child && !lease->apart) { /* once: other threads may write to it */
        lease->apart = copy_pages(lease->data, (uint64_t) lease->chunks << seg->shift, private);
    }
}

static void
before_fork(void)
{
    process_lock();
    for (struct lease *lease = leases_next(NULL); lease != NULL; lease = leases_next(lease)) {
        struct mapping *mapping = lease->mapping;

        if (mapping == NULL) {
            continue; /* a block: the system copies it; the run that may be behind it is for this process to read */
        }
        arena_is_ours(mapping->seg->arena);
        if (!mapping->is_private) {
            mapping->is_torn = segment_go_private(mapping->seg) != 0;
        }
        share(lease, roster_heir(mapping->seg->arena->roster), !mapping->is_torn);
    }
}

static void
after_fork_in_parent(void)
{
    for (struct lease *lease = leases_next(NULL); lease != NULL; lease = leases_next(lease)) {
        lease->copied_for_child = false;
    }
    rosters_after_fork_in_parent();
    process_unlock();
}

/* What the parent was writing, this process must not write to. */
static void
forget_loans(struct segment *seg)
{
    static uint64_t viewed[CHUNK_LIMIT / 64];

    if (seg->now != NULL && seg->now->loans > 0) {
        segment_retire(seg);
    }
    for (struct mapping *mapping = seg->former; mapping != NULL; mapping = mapping->next) {
        if (mapping->loans > 0) {
            memset(viewed, 0, sizeof viewed);
            for (struct lease *lease = leases_next(NULL); lease != NULL; lease = leases_next(lease)) {
                if (lease->mapping == mapping) {
                    freemap_set(viewed, lease->chunk_id, lease->chunks);
                }
            }
            mapping_hide_loans(mapping, viewed);
        }
    }
}

/* Threads of the parent that were inside a call have no part in the child. */
static void
end_visits(void)
{
    for (mpshm_arena *arena = mpshm_process.arenas, *next; arena != NULL; arena = next) {
        next = arena->next;
        if (arena->visits > 0) {
            arena->refs -= arena->visits - 1;
            arena->visits = 0;
            arena_unref(arena);
        }
    }
}

/* What this process has is no longer what its memory says: it is a child.  A3 */
static void
begin_anew(void)
{
    for (mpshm_arena *arena = mpshm_process.arenas; arena != NULL; arena = arena->next) {
        for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
            struct segment *seg = arena->segments[id];

            if (seg != NULL) {
                seg->mine = seg->was_claimed = false;
                seg->blocked_by = 0;
                forget_loans(seg);
            }
        }
        arena->sent_count = 0;
        arena->sent_bytes = 0;
        arena->shorts = 0;
        arena->has_claimed = false;
        arena->loans = 0;
        atomic_store(&arena->is_parked, arena->parked != NULL); /* a raw clone() may have copied one without the other */
    }
}

static void
after_fork_in_child(void)
{
    process_is_a_child();
    begin_anew();
    for (struct lease *lease = leases_next(NULL); lease != NULL; lease = leases_next(lease)) {
        lease->copied = lease->copied || lease->copied_for_child || lease->mapping == NULL;
        lease->copied_for_child = false;
    }
    rosters_after_fork_in_child();
    end_visits();
    process_unlock();
}

/* The child of a clone() that no handler has seen.  It shares its parent's pages and holds no name: its views
   are not promised. */
void
fork_unseen(void)
{
    begin_anew();
    for (struct lease *lease = leases_next(NULL); lease != NULL; lease = leases_next(lease)) {
        lease->copied = true;
    }
    end_visits();
}

__attribute__((constructor)) static void
watch_forks(void)
{
    (void) pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}
