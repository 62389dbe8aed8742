/* Strays: runs in flight on a connection that nobody will lease, because a sender or a receiver was killed with
   their frame in hand.

   A pipe does not say who has taken a frame from it.  So this is decided late: runs in flight are noted, then
   the pipe is seen empty in both directions, so that their frames were written before and taken, or will
   never be; then what each process says in its mark is noted: how many of its threads are inside
   mpshm_receive, and how often the last one came out.  When all who were inside are out, or dead, a run that is
   still in flight is a stray.  Until then it stays: one message's memory for each kill.

   An end that does not know its arena cannot say that it is inside, so it leaves the rest of a frame in the pipe
   until it does (frame.c).

   Knows run words, marks, and whether a pipe is empty.  Does not know what a frame says.

   Invariants: L5 (invariants.h).

   Memory order: a mark is changed before the read and after the lease, by compare-and-swap; the looks at the
   pipe are calls of the kernel. */
#define _GNU_SOURCE
#include "internal.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define INSIDE(mark) ((uint32_t) (mark) & 0xffffff)
#define ENDED(mark) ((uint32_t) ((mark) >> 24) & 0xffffff)

struct stray {
    struct segment *seg;
    uint32_t at;
    uint64_t word;
};

struct strays {
    struct stray *runs;
    uint32_t count, room;
    uint32_t members; /* and what each of them said */
    uint64_t *marks;
};

/* A thread of this process begins to receive, or has leased what it received. */
void
strays_inside(mpshm_arena *arena, bool begins)
{
    arena_look_at_name(arena);
    _Atomic uint64_t *mark = arena_mark(arena);
    uint64_t was = mark == NULL ? 0 : atomic_load_explicit(mark, memory_order_relaxed), now;

    if (mark == NULL) {
        return;
    }
    do {
        uint32_t inside = INSIDE(was), ended = ENDED(was);

        if (begins) {
            inside++;
        } else { /* not below 0: a fork's child may end what its parent began */
            inside -= inside > 0;
            ended += inside == 0; /* then all that were inside at any earlier moment are out */
        }
        now = MARK(MARK_INCARNATION(was), (uint64_t) (ended & 0xffffff) << 24 | (inside & 0xffffff));
    } while (!atomic_compare_exchange_weak(mark, &was, now));
}

void
strays_forget(mpshm_arena *arena)
{
    if (arena->strays != NULL) {
        free(arena->strays->runs);
        free(arena->strays->marks);
        free(arena->strays);
        arena->strays = NULL;
    }
}

static void
add(struct strays *strays, struct stray run)
{
    if (strays->count == strays->room) {
        uint32_t room = strays->room ? 2 * strays->room : 16;
        struct stray *grown = realloc(strays->runs, room * sizeof *grown);

        if (grown == NULL) {
            return; /* the next look finds it */
        }
        strays->runs = grown;
        strays->room = room;
    }
    strays->runs[strays->count++] = run;
}

/* Whether this process sent that run, and its frame is out. */
static bool
is_out(mpshm_arena *arena, const struct segment *seg, uint32_t at, uint64_t word)
{
    for (uint32_t i = 0; i < arena->sent_count; i++) {
        const struct sent *one = &arena->sent[i];

        if (one->mmap_id == seg->id && one->chunk_id == at && one->word == word) {
            return true;
        }
    }
    return false;
}

/* Note all runs in flight of dead senders, and of this one; and the tickets of all messages that were taken back. */
static void
find_runs(mpshm_arena *arena, struct strays *strays)
{
    name asked = 0; /* mostly one sender has many */
    bool dead = false;

    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        struct segment *seg;

        if (atomic_load(&arena->header->segment[id]) == 0 || segment_map(arena, id, &seg) != 0) {
            continue;
        }
        for (uint32_t at = 0, high = segment_high(seg); at < high;) {
            uint64_t word = atomic_load(&seg->runs[at].word);
            bool flies = RUN_STATE(word) == RUN_FLIGHT;

            if (RUN_STATE(word) == RUN_CANCELLED) { /* only of a message whose frame is out */
                add(strays, (struct stray) {seg, at, word});
            }
            if (flies && RUN_HOLDER(word) != asked) {
                asked = RUN_HOLDER(word);
                dead = arena_name_is_dead(arena, asked);
            }
            if (flies && (asked == arena->me ? is_out(arena, seg, at, word) : dead)) {
                add(strays, (struct stray) {seg, at, word});
            }
            at += RUN_STATE(word) == RUN_FREE ? 1 : run_chunks_at(seg, at);
        }
    }
}

/* Whether no frame is in the pipe, either way.  A socket whose other end is gone does not say what was in it. */
static bool
is_empty(int fd)
{
    int waiting = 1, unread = 0;
#ifdef __linux__
    struct sockaddr address;
    socklen_t size = sizeof address;

    if (has_hung_up(fd, POLLERR | POLLHUP | POLLNVAL) || ioctl(fd, FIONREAD, &waiting) == -1
        || (getsockname(fd, &address, &size) == 0 && ioctl(fd, TIOCOUTQ, &unread) == -1)) {
        return false;
    }
#else
    (void) fd;
#endif
    return waiting == 0 && unread == 0;
}

static void
begin(mpshm_arena *arena, int fd)
{
    struct strays *strays = calloc(1, sizeof *strays);

    if (strays == NULL) {
        return;
    }
    arena->strays = strays;
    find_runs(arena, strays);
    bool empty = strays->count > 0 && is_empty(fd);

    /* Whoever joins from here on finds an empty pipe.  How much a socket holds the kernel may tell without
       a lock: the marks are read after it all the same. */
    atomic_thread_fence(memory_order_seq_cst);
    strays->members = roster_high(arena->roster);
    strays->marks = empty ? calloc(strays->members + 1, sizeof *strays->marks) : NULL;
    if (strays->marks == NULL) {
        strays_forget(arena);
        return;
    }
    for (uint32_t i = 0; i < strays->members; i++) {
        strays->marks[i] = atomic_load(&arena->marks[i]);
    }
}

/* Whether whoever was inside is out. */
static bool
is_decided(mpshm_arena *arena, const struct strays *strays)
{
    for (uint32_t i = 0; i < strays->members; i++) {
        uint64_t then = strays->marks[i], now = atomic_load(&arena->marks[i]);
        bool same = MARK_INCARNATION(then) == MARK_INCARNATION(now);
        name who = NAME(i, MARK_INCARNATION(then));

        if (INSIDE(then) > 0 && same && INSIDE(now) > 0 && ENDED(now) == ENDED(then)
            && !(who != arena->me && arena_name_is_dead(arena, who))) {
            return false;
        }
    }
    return true;
}

/* This is an end of the connection, if none is known; its number may become another file's one day. */
void
strays_pipe(mpshm_arena *arena, int fd)
{
    struct stat status;

    if (arena->pipe_fd == 0 && fstat(fd, &status) == 0) {
        arena->pipe_fd = fd + 1;
        arena->pipe_device = status.st_dev;
        arena->pipe_inode = status.st_ino;
    }
}

/* Free those that are decided, and note others.  Gives how many were freed. */
uint32_t
strays_look(mpshm_arena *arena)
{
    struct strays *strays = arena->strays;
    uint32_t freed = 0;

    if (strays != NULL && is_decided(arena, strays)) {
        for (uint32_t i = 0; i < strays->count; i++) {
            freed += run_free(strays->runs[i].seg, strays->runs[i].at, strays->runs[i].word);
        }
        strays_forget(arena);
        strays = NULL;
    }
    if (strays == NULL && arena->me != 0 && arena->pipe_fd > 0) {
        if (memfile_is(arena->pipe_fd - 1, arena->pipe_device, arena->pipe_inode)) {
            begin(arena, arena->pipe_fd - 1);
        } else {
            arena->pipe_fd = 0;
        }
    }
    return freed;
}
