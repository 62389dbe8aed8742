/* An arena's handle in this process: whether its descriptor is still its file's, this process's name in it, and
   waking those that wait for its leases.

   Knows the process's lock and the roster.  Does not know what lies in the arena but marks and `wanted`.

   Invariants: A4, E1, L5 (invariants.h).

   Memory order: `joined` releases `me`.  arena_notify's fence pairs with the one in await_room
   (pressure.c). */
#include "internal.h"

#include <sys/stat.h>

/* Whether the descriptor is still the memory file's: a program may close all it finds, and open files of its
   own. */
bool
arena_has_file(const mpshm_arena *arena)
{
    return memfile_is(arena->fd, arena->device, arena->inode);
}

uint64_t
arena_resident(const mpshm_arena *arena)
{
    struct stat status;

    return arena_has_file(arena) && fstat(arena->fd, &status) == 0 ? (uint64_t) status.st_blocks * 512 : 0;
}

/* See to it that arena->me is this process's name: after a fork it has another.  Under the lock.  E1 */
void
arena_is_ours(mpshm_arena *arena)
{
    if (arena->joined == mpshm_process.generation && arena->me != 0) {
        return;
    }
    arena->me = roster_me(arena->roster);
    _Atomic uint64_t *mark = arena_mark(arena);

    if (mark != NULL && MARK_INCARNATION(atomic_load(mark)) != NAME_INCARNATION(arena->me)) {
        atomic_store(mark, MARK(NAME_INCARNATION(arena->me), 0)); /* it was another process's: L5 */
    }
    atomic_store_explicit(&arena->joined, mpshm_process.generation, memory_order_release);
}

void
arena_lock(mpshm_arena *arena)
{
    process_lock();
    arena_is_ours(arena);
}

void
arena_look_at_name(mpshm_arena *arena)
{
    if (atomic_load_explicit(&arena->joined, memory_order_acquire) != mpshm_process.generation) {
        arena_lock(arena);
        arena_unlock(arena);
    }
}

void
arena_unlock(mpshm_arena *arena)
{
    (void) arena;
    process_unlock();
}

_Atomic uint64_t *
arena_mark(mpshm_arena *arena)
{
    return arena->me == 0 ? NULL : &arena->marks[NAME_NUMBER(arena->me)];
}

bool
arena_name_is_dead(mpshm_arena *arena, name who)
{
    return who != 0 && who != arena->me && roster_is_dead(arena->roster, who);
}

/* A run was leased: wake the senders that wait for room, if it is the last lease they await.  The fence
   pairs with the one in await_room (pressure.c): either the sender sees the lease, or this process
   sees its count in `wanted`. */
void
arena_notify(mpshm_arena *arena)
{
    _Atomic uint32_t *wanted = &arena->header->wanted;

    atomic_thread_fence(memory_order_seq_cst);
    uint32_t left = atomic_load_explicit(wanted, memory_order_relaxed);

    while (left != 0 && !atomic_compare_exchange_weak(wanted, &left, left - 1)) {
    }
    if (left == 1) {
        futex_wake(wanted, INT32_MAX);
    }
}
