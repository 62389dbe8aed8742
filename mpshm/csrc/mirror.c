/* The mirror: a queue's pipe is readable while there are messages, once somebody has asked for that.

   A sender sees to it that the pipe holds a byte between its claim and READY; a receiver that finds no
   message, nor any being written, reads all bytes.  What is only HELD is not shown: it may take long.

   Knows the pipe, and which slots there is something in.

   Invariants: G5 (invariants.h).

   Memory order: claims, loads of slots here, and `watched` are sequentially consistent, and what is done
   to the pipe is ordered by the pipe's own lock.  Either a sender, which claims and then looks at
   `watched` and into the pipe, sees that the ring is watched and the pipe empty; or a receiver, which
   changes one of these and then looks at the ring, sees the claim.

   Killed or stopped between its read and its look, a receiver leaves no message without a byte.  One at a
   time reads: the drainer, which says so, counts the bytes, looks at the ring, and reads no more than it
   has counted.  A sender that finds a drainer, or one that died, writes a byte of its own, for those that
   it sees may be about to be read.  Whoever does not find the drainer has claimed before the drainer
   looked, or after it was done. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nowait.h"
#include "ring.h"
#include "stream.h"

/* A drainer reads no more than this after one look. */
#define DRAIN_MOST 64

static uint32_t
bytes_in(int fd)
{
    int bytes = 0;

    return ioctl(fd, FIONREAD, &bytes) == -1 ? 0 : (uint32_t) bytes;
}

/* Read or write what can be at once.  The pipe's flags are those of all that have the end, so another process may
   have made it one that blocks, and this one holds its lock. */
static ssize_t
move_now(int fd, void *bytes, size_t size, bool reads)
{
#ifdef RWF_NOWAIT
    struct iovec part = {bytes, size};
    ssize_t n = reads ? preadv2(fd, &part, 1, -1, RWF_NOWAIT) : pwritev2(fd, &part, 1, -1, RWF_NOWAIT);

    if (n >= 0 || errno != EOPNOTSUPP) { /* an older kernel: then the flags are all there is */
        return n;
    }
#endif
    return reads ? read(fd, bytes, size) : write(fd, bytes, size);
}

static void
write_byte(int fd)
{
    char byte = 0;

    while (move_now(fd, &byte, 1, false) == -1 && errno == EINTR) {
    }
}

/* Call between a claim and READY.  fd: the pipe's end for writing. */
void
mirror_show(mpshm_arena *arena, int fd)
{
    struct waiters *waiters = &arena->chain->waiters;

    if (atomic_load(&waiters->watched)) {
        uint32_t about_to_go = atomic_load(&waiters->drainer) != 0 ? DRAIN_MOST : 0; /* before the pipe */

        if (bytes_in(fd) <= about_to_go) {
            write_byte(fd);
        }
    }
}

/* Whether a message is there or being written in that ring from `at` on: not one that a slot is held for. */
static bool
is_shown_in(const struct ring *ring, uint64_t at)
{
    for (uint32_t i = 0; i < ring->slots; i++, at = position_after(at, 1)) {
        uint64_t word = atomic_load(slot_word(ring, at));
        int64_t ahead = word_ahead(ring, word, at);
        enum slot_state state = SLOT_STATE(word);

        if (ahead < 0 || (ahead == 0 && (state == SLOT_FREE || state == SLOT_NEXT))) {
            return false;
        }
        if (ahead == 0 && (state == SLOT_READY || state == SLOT_WRITING)) {
            return true;
        }
    }
    return false;
}

static bool
is_shown(mpshm_arena *arena)
{
    struct start start = chain_first(arena);
    struct stop stop = {start.ring, start.link};
    uint64_t at = start.at, end;

    for (uint32_t i = 0; i < RINGS && stop.ring != NULL; i++) {
        if (is_shown_in(stop.ring, at)) {
            return true;
        }
        if (!arena->grows || chain_on(arena, &stop, &end) == 0) {
            return false;
        }
        if (stop.ring == NULL || !link_lives(arena, stop.link)) { /* the queue has gone on: begin again */
            start = chain_first(arena);
            stop = (struct stop) {start.ring, start.link};
            at = start.at;
        } else {
            at = HEAD_POSITION(atomic_load(&stop.ring->head->head));
        }
    }
    return false;
}

/* Whether the pipe is to show something: that, or a message of which this process has taken a part, and no thread waits
   for the rest. */
static bool
must_show(mpshm_arena *arena)
{
    return stream_is_parked(arena) || is_shown(arena);
}

/* Whether a message is about to come that the pipe shows. */
bool
mirror_is_due(mpshm_arena *arena)
{
    return atomic_load_explicit(&arena->chain->waiters.watched, memory_order_relaxed)
           && is_shown(arena);
}

static bool
is_same_pipe(int one, int other)
{
    struct stat first, second;

    return fstat(one, &first) == 0 && fstat(other, &second) == 0 && first.st_dev == second.st_dev
           && first.st_ino == second.st_ino;
}

/* Write a byte to the pipe of which `fd` is the end for reading, by an end that is opened for it. */
static bool
show_anew(int fd)
{
    char path[48];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);

    if (writer == -1) {
        return false;
    }
    write_byte(writer);
    close(writer);
    return true;
}

#ifdef __linux__
/* In a process with memory in common and a table of descriptors of its own, which has room once one is
   closed there. */
static int
show_beside(void *fd)
{
    for (int i = 0; i <= 2; i++) {
        if (i != *(int *) fd) {
            close(i);
        }
    }
    return show_anew(*(int *) fd) ? 0 : 1;
}

/* The same at this process's limit of descriptors.  As posix_spawn does it: the other process has this
   thread's place until it ends, and no signal comes in between. */
static void
show_at_limit(int fd)
{
    static char stack[32768] __attribute__((aligned(64))); /* the process's lock guards it */
    sigset_t all, before;
    int saved = errno;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int pid = clone(show_beside, stack + sizeof stack, CLONE_VM | CLONE_VFORK, &fd);

    if (pid > 0) {
        while (waitpid(pid, NULL, __WALL) == -1 && errno == EINTR) {
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
}
#else
static void
show_at_limit(int fd)
{
    (void) fd;
}
#endif

/* Write a byte to the pipe of which `fd` is the end for reading: this process need not have the other.
   Under the process's lock, so that no child of a fork inherits the end that is opened here: it would
   keep the end of file away. */
static void
show(mpshm_arena *arena, int fd)
{
    if (arena->writer >= 0 && is_same_pipe(fd, arena->writer)) {
        write_byte(arena->writer);
    } else if (!show_anew(fd) && (errno == EMFILE || errno == ENFILE)) {
        show_at_limit(fd);
    }
}

static void
read_bytes(int fd, uint32_t count)
{
    char bytes[DRAIN_MOST];
    ssize_t n;

    INVARIANT(G5, count <= DRAIN_MOST);
    while (count > 0 && ((n = move_now(fd, bytes, count, true)) > 0 || (n == -1 && errno == EINTR))) {
        count -= n > 0 ? (uint32_t) n : 0;
    }
}

/* Be the drainer.  False: another is.  A process without a name does its best. */
static bool
drain_begin(mpshm_arena *arena)
{
    _Atomic uint32_t *drainer = &arena->chain->waiters.drainer;
    name who = 0;

    if (arena->me == 0) {
        return atomic_load(drainer) == 0;
    }
    return atomic_compare_exchange_strong(drainer, &who, arena->me)
           || (arena_name_is_dead(arena, who) && atomic_compare_exchange_strong(drainer, &who, arena->me));
}

static void
drain_end(mpshm_arena *arena)
{
    if (arena->me != 0) {
        atomic_store(&arena->chain->waiters.drainer, 0);
    }
}

/* One look, and what it asks for: whether the ring still looks the same. */
static bool
agree_once(mpshm_arena *arena, int fd, bool drains)
{
    uint32_t bytes = bytes_in(fd); /* before the look */
    bool shown = must_show(arena);

    if (shown && bytes == 0) {
        show(arena, fd);
    } else if (!shown && drains) {
        read_bytes(fd, bytes < DRAIN_MOST ? bytes : DRAIN_MOST);
    }
    return must_show(arena) == shown; /* G5: after the pipe was changed */
}

/* Make the pipe agree with the ring.  False: end of file.  Under arena_lock.  G5 */
bool
mirror_agree(mpshm_arena *arena, int fd)
{
    bool watched = atomic_load(&arena->chain->waiters.watched) != 0;

    INVARIANT(A4, arena_is_locked(arena));
    for (uint32_t tries = 0; watched && tries < RING_TRIES; tries++) {
        bool drains = drain_begin(arena), same = agree_once(arena, fd, drains);

        if (drains) {
            drain_end(arena);
        }
        /* Others have left to the drainer what came meanwhile. */
        if (same && (!drains || bytes_in(fd) == 0 || must_show(arena))) {
            break;
        }
    }
    return !has_hung_up(fd, POLLHUP) || is_shown(arena);
}

/* Call after ring_take: empties the pipe if it shows what is no longer there.  Under arena_lock. */
void
mirror_after_take(mpshm_arena *arena, int fd)
{
    INVARIANT(A4, arena_is_locked(arena));
    if (atomic_load_explicit(&arena->chain->waiters.watched, memory_order_relaxed)
        && !must_show(arena)) {
        (void) mirror_agree(arena, fd);
    }
}

/* From now on the pipe is readable while there are messages.  Under arena_lock.  G5 */
void
mirror_watch(mpshm_arena *arena, int fd)
{
    INVARIANT(A4, arena_is_locked(arena));
    atomic_store(&arena->chain->waiters.watched, 1);
    if (is_shown(arena)) { /* G5: after the store */
        (void) mirror_agree(arena, fd);
    }
}
