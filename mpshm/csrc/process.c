/* What there is once in a process: the lock, the fork generation, the lists of arenas and rosters; and
   the advice that keeps the user's arrays in the heap.

   Knows no arena's inside and no shared memory.

   Invariants: A3, A4 (invariants.h).

   A child of fork() is told by its hooks (fork.c).  One of a raw clone() is not: it has a copy of all
   memory, so it takes itself for its parent.  A page that the kernel wipes in every child tells it.

   That page's word:   UNSEEN --first thread that takes the lock--> BUSY --> SEEN

   Memory order: mpshm_process.lock orders all; SEEN's release pairs with the load in process_lock.
   No shared word is here. */
#define _GNU_SOURCE
#include "internal.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct process mpshm_process = {.lock = PTHREAD_MUTEX_INITIALIZER, .generation = 1};

/* UNSEEN is 0: what a wiped page holds. */
enum { UNSEEN = 0, BUSY = 1, SEEN = 2 };
/* Where the system has no such page, no child is noticed. */
static _Atomic uint32_t never_wiped = SEEN;
static _Atomic uint32_t *sight = &never_wiped;

__attribute__((constructor)) static void
make_sight(void)
{
#ifdef MADV_WIPEONFORK
    size_t size = (size_t) sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED) {
        return;
    }
    if (madvise(page, size, MADV_WIPEONFORK) == -1) {
        munmap(page, size);
        return;
    }
    sight = page;
    atomic_store(sight, SEEN);
#endif
}

/* This process is a child that no hook has seen.  Whatever thread of its parent had the lock is not
   here, so it is made anew.  A3 */
static void
become_seen(void)
{
    uint32_t unseen = UNSEEN;

    if (!atomic_compare_exchange_strong(sight, &unseen, BUSY)) {
        while (atomic_load(sight) != SEEN) {
            sched_yield();
        }
        return;
    }
    mpshm_process.lock = (pthread_mutex_t) PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mpshm_process.lock);
    mpshm_process.generation++;
    rosters_forget();
    fork_unseen();
    pthread_mutex_unlock(&mpshm_process.lock);
    atomic_store(sight, SEEN);
}

void
process_lock(void)
{
    if (atomic_load_explicit(sight, memory_order_acquire) != SEEN) {
        become_seen();
    }
    pthread_mutex_lock(&mpshm_process.lock);
}

void
process_unlock(void)
{
    pthread_mutex_unlock(&mpshm_process.lock);
}

/* In the child of a fork whose hooks took the lock: it is seen, and is another process.  A3 */
void
process_is_a_child(void)
{
    mpshm_process.generation++;
    atomic_store(sight, SEEN);
}

/* Whether the lock is held: by this thread, if the caller is right; by another, and a mistake is not
   seen. */
bool
process_is_locked(void)
{
    if (pthread_mutex_trylock(&mpshm_process.lock) == 0) {
        pthread_mutex_unlock(&mpshm_process.lock);
        return false;
    }
    return true;
}

/* glibc maps blocks above a threshold and unmaps them when they are freed, and raises the threshold
   to the largest block freed so far.  Stock allocates a block for each message, so beside it the
   user's own arrays of that size soon stay in the heap; we allocate none, and they would fault all
   their pages in anew each time (measured: a process_map of 240 KB arrays, 1.1 million faults for
   stock's 0.5, a seventh more CPU).  So free one such block when a message is the largest so far.
   The block is never touched.  Its size is twice the message's, for a temporary may be larger than
   what is sent. */
void
heap_keep(uint64_t size)
{
#ifdef __GLIBC__
    static _Atomic uint64_t largest = UINT64_C(64) << 10;
    static const uint64_t most = (UINT64_C(32) << 20) - 8192; /* glibc learns from none larger */

    if (size > atomic_load_explicit(&largest, memory_order_relaxed)) {
        atomic_store_explicit(&largest, size, memory_order_relaxed);
        void *volatile block = malloc(2 * size < most ? 2 * size : most);

        free(block);
    }
#else
    (void) size;
#endif
}
