/* Peers: the processes that use an arena.  Who is at work, who rests, who is dead.

   Knows the peer table and /proc; knows no run and no message.

   Invariants: L5, L6 of layout.h, and
   E1  A process joins before its first change; its child in a fork joins anew (`generation`).
   E2  Between enter and leave nothing sleeps: only a process killed or stopped stays there.

   Memory order: enter's fence keeps its odd `steps` before every change, leave's release keeps them
   before the even one.  Who sees `steps` even and the same at two moments, and as many `visits`, has
   seen no change half done in between. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* How long a child may take from its fork to its first step. */
#define UNBORN_SECONDS 60

static uint64_t
seconds_now(void)
{
    return (uint64_t) (now_ns() / 1000000000);
}

/* A process's state and start time, by /proc.  False: there is none to read. */
static bool
process_stat(uint32_t pid, char *state, uint64_t *born)
{
    char path[48], text[512];

    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd == -1 ? -1 : read(fd, text, sizeof text - 1);

    if (fd != -1) {
        close(fd);
    }
    if (n <= 0) {
        return false;
    }
    text[n] = '\0';
    char *at = strrchr(text, ')'); /* the name may hold anything */

    if (at == NULL || sscanf(at + 1, " %c", state) != 1) {
        return false;
    }
    for (int field = 2; at != NULL && field < 22; field++) {
        at = strchr(at + 1, ' ');
    }
    *born = at == NULL ? 0 : strtoull(at + 1, NULL, 10);
    return true;
}

/* This process's pid namespace; 0, which is not known, also where /proc is another namespace's. */
static uint64_t
own_space(uint32_t pid)
{
    struct stat status;
    char name[16] = {0};

    return readlink("/proc/self", name, sizeof name - 1) > 0 && strtoul(name, NULL, 10) == pid
                   && stat("/proc/self/ns/pid", &status) == 0
               ? (uint64_t) status.st_ino
               : 0;
}

static struct {
    uint32_t generation; /* for which the rest holds */
    uint32_t pid;
    uint64_t born, space;
} self;

static void
know_self(void)
{
    char state;

    if (self.generation != mpshm_process.generation) {
        self.generation = mpshm_process.generation;
        self.pid = (uint32_t) getpid();
        self.space = own_space(self.pid);
        if (self.space == 0 || !process_stat(self.pid, &state, &self.born)) {
            self.born = 0;
        }
    }
}

static struct peer *
record_of(mpshm_arena *arena, uint32_t number)
{
    return &arena->peers[number - 1];
}

/* A free record, taken under that pid: its number, 0 if there is none. */
static uint32_t
take_record(mpshm_arena *arena, bool for_child)
{
    know_self();
    for (uint32_t number = 1; number <= PEER_LIMIT; number++) {
        struct peer *peer = record_of(arena, number);
        uint32_t none = 0;

        if (atomic_load_explicit(&peer->pid, memory_order_relaxed) == 0
            && atomic_compare_exchange_strong(&peer->pid, &none,
                                              for_child ? PEER_UNBORN : self.pid)) {
            atomic_fetch_add(&arena->header->visits, 1);
            atomic_store(&peer->born, for_child ? 0 : self.born);
            atomic_store(&peer->space, self.space);
            uint32_t high = atomic_load(&arena->header->peers_high);

            while (high < number
                   && !atomic_compare_exchange_weak(&arena->header->peers_high, &high, number)) {
            }
            return number;
        }
    }
    return 0;
}

/* Give a record back: all but the pid first, for that frees it. */
void
peer_free(mpshm_arena *arena, uint32_t number)
{
    struct peer *peer = record_of(arena, number);

    atomic_fetch_add(&arena->header->visits, 1);
    /* If we are killed in the middle, it is of a child that is long overdue. */
    atomic_store(&peer->born, 1);
    atomic_store(&peer->pid, PEER_UNBORN);
    atomic_store(&peer->steps, 0);
    atomic_store(&peer->space, 0);
    atomic_store(&peer->shared, 0);
    atomic_store(&peer->pending, 0);
    atomic_store(&peer->born, 0);
    atomic_store(&peer->pid, 0);
}

/* E1.  Under the lock. */
static void
join(mpshm_arena *arena)
{
    uint32_t unborn = PEER_UNBORN;

    know_self();
    if (arena->heir != 0) { /* the record that the parent made for this child */
        atomic_store(&record_of(arena, arena->heir)->born, 0); /* from now on: it is not overdue */
    }
    if (arena->heir != 0
        && atomic_compare_exchange_strong(&record_of(arena, arena->heir)->pid, &unborn, self.pid)) {
        arena->me = arena->heir;
        atomic_store(&record_of(arena, arena->me)->space, self.space);
        atomic_store(&record_of(arena, arena->me)->born, self.born);
    } else {
        arena->me = take_record(arena, false);
        if (arena->me == 0) {
            reap_records(arena);
            arena->me = take_record(arena, false);
        }
        if (arena->me == 0) {
            atomic_store(&arena->header->crowded, 1);
        }
    }
    arena->heir = 0;
    arena->joined = mpshm_process.generation;
}

void
peer_enter(mpshm_arena *arena)
{
    if (arena->joined != mpshm_process.generation) {
        join(arena);
    }
    if (arena->me != 0) {
        _Atomic uint32_t *steps = &record_of(arena, arena->me)->steps;

        atomic_store_explicit(steps, atomic_load_explicit(steps, memory_order_relaxed) + 1,
                              memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
    }
}

void
peer_leave(mpshm_arena *arena)
{
    if (arena->me != 0) {
        _Atomic uint32_t *steps = &record_of(arena, arena->me)->steps;

        atomic_store_explicit(steps, atomic_load_explicit(steps, memory_order_relaxed) + 1,
                              memory_order_release);
    }
}

void
arena_lock(mpshm_arena *arena)
{
    pthread_mutex_lock(&mpshm_process.lock);
    peer_enter(arena);
}

void
arena_unlock(mpshm_arena *arena)
{
    peer_leave(arena);
    pthread_mutex_unlock(&mpshm_process.lock);
}

/* This process's record, or NULL if it has none. */
struct peer *
peer_self(mpshm_arena *arena)
{
    return arena->joined == mpshm_process.generation && arena->me != 0
               ? record_of(arena, arena->me)
               : NULL;
}

/* This process has done with the arena, unless it comes again. */
void
peer_depart(mpshm_arena *arena)
{
    struct peer *me = peer_self(arena);

    if (me != NULL && atomic_load(&me->pending) > 0) {
        return; /* a feeder may come yet to say what became of them; else a reaper does */
    }
    if (me != NULL) {
        peer_free(arena, arena->me);
    }
    arena->joined = 0;
    arena->me = 0;
}

/* Before a fork: a record for the child, with what it inherits.  So there is no moment at which nobody
   answers for those leases, also if we die before the child has run at all. */
void
peer_expect_child(mpshm_arena *arena, uint32_t leases)
{
    arena->heir = take_record(arena, true);
    if (arena->heir != 0) {
        atomic_store(&record_of(arena, arena->heir)->shared, leases);
        atomic_store(&record_of(arena, arena->heir)->born, seconds_now());
    } else {
        atomic_store(&arena->header->crowded, 1); /* nobody answers for the child */
    }
}

/* Whether that peer's process is gone for good.  What cannot be known counts as alive. */
bool
peer_is_dead(mpshm_arena *arena, uint32_t number)
{
    struct peer *peer = record_of(arena, number);
    uint32_t pid = atomic_load(&peer->pid);
    uint64_t born = atomic_load(&peer->born), born_now;
    char state;

    know_self();
    if (pid == 0 || number == arena->me) {
        return false;
    }
    if (pid == PEER_UNBORN) { /* its fork failed, or it died before its first step */
        return born != 0 && born + UNBORN_SECONDS < seconds_now()
               && atomic_load(&peer->pid) == PEER_UNBORN;
    }
    if (self.space == 0 || atomic_load(&peer->space) != self.space) {
        return false;
    }
    if (kill((pid_t) pid, 0) == -1 && errno == ESRCH) {
        return atomic_load(&peer->pid) == pid;
    }
    bool known = process_stat(pid, &state, &born_now);

    return known && (state == 'Z' || state == 'X' || (born != 0 && born_now != born))
           && atomic_load(&peer->pid) == pid;
}

/* Note what every peer is at; whether all rest.  The dead rest, and stand there as pid 0. */
bool
peers_at_rest(mpshm_arena *arena, struct glimpse *all)
{
    uint32_t high = atomic_load(&arena->header->peers_high);

    if (atomic_load(&arena->header->crowded) || high > PEER_LIMIT) {
        return false;
    }
    memset(all, 0, PEER_LIMIT * sizeof *all);
    for (uint32_t number = 1; number <= high; number++) {
        struct peer *peer = record_of(arena, number);
        struct glimpse *seen = &all[number - 1];
        uint32_t pid = atomic_load(&peer->pid);

        if (pid == 0 || peer_is_dead(arena, number)) {
            continue;
        }
        seen->pid = pid;
        if (self.space == 0 || atomic_load(&peer->space) != self.space || pid == PEER_UNBORN) {
            return false;
        }
        if (number != arena->me) {
            seen->steps = atomic_load(&peer->steps);
            if (seen->steps % 2 != 0) {
                return false;
            }
        }
    }
    return true;
}
