/* Peeking: whether a pipe or socket holds anything else than messages that were taken back.

   Another process may share the end, and what is read must be this one's.  So they are looked at where they are, a pipe's
   by tee into another pipe; and then read (mpshm_pass_over), for where they fill the pipe their sender waits for room.

   Knows the bytes of a pipe, and which tickets are cancelled.  Does not know who waits.

   Invariants: K1 (invariants.h).

   Memory order: none of its own. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* As much as a pipe holds. */
#define PEEK_BYTES 65536

#ifdef __linux__
static ssize_t
peek_pipe(int fd, void *bytes)
{
    int beside[2];

    if (pipe2(beside, O_CLOEXEC | O_NONBLOCK) == -1) {
        return -1;
    }
    ssize_t n = tee(fd, beside[1], PEEK_BYTES, SPLICE_F_NONBLOCK);

    if (n > 0) {
        n = read(beside[0], bytes, PEEK_BYTES);
    }
    int saved = errno;

    close(beside[0]);
    close(beside[1]);
    errno = saved;
    return n;
}
#else
static ssize_t
peek_pipe(int fd, void *bytes)
{
    (void) fd;
    (void) bytes;
    errno = ENOSYS;
    return -1;
}
#endif

/* How many bytes there are, copied to `bytes`; 0: end of file; -1 and EAGAIN: none. */
static ssize_t
peek(int fd, void *bytes)
{
    ssize_t n = recv(fd, bytes, PEEK_BYTES, MSG_PEEK | MSG_DONTWAIT);

    return n == -1 && errno == ENOTSOCK ? peek_pipe(fd, bytes) : n;
}

/* Whether the sender of that ticket's message has taken it back. */
static bool
is_cancelled(mpshm_arena *arena, const mpshm_descriptor *ticket)
{
    struct segment *seg;
    bool cancelled = false;

    arena_lock(arena);
    if (segment_map(arena, ticket->mmap_id, &seg) == 0 && ticket->chunk_id < seg->count) {
        uint64_t word = atomic_load(&seg->runs[ticket->chunk_id].word);

        cancelled = RUN_STATE(word) == RUN_CANCELLED && RUN_TAG(word) == ticket->tag;
    }
    arena_unlock(arena);
    return cancelled;
}

/* How many of the bytes are frames of such messages, from the first on. */
static uint64_t
cancelled_bytes(mpshm_arena *arena, const unsigned char *bytes, uint64_t have, uint32_t *count)
{
    mpshm_descriptor ticket;
    uint64_t at = 0, size;

    while (frame_ticket(bytes + at, have - at, &ticket, &size) && is_cancelled(arena, &ticket)) {
        at += size;
        ++*count;
    }
    return at;
}

/* Whether nobody is left who could send more.  A socket whose other end writes no more says so only when it is asked. */
static bool
is_at_end(int fd)
{
#ifdef POLLRDHUP
    struct pollfd end = {.fd = fd, .events = POLLRDHUP};
#else
    struct pollfd end = {.fd = fd, .events = 0};
#endif
    return poll(&end, 1, 0) > 0;
}

int
mpshm_has_input(mpshm_arena *arena, int fd, uint32_t *cancelled)
{
    unsigned char *bytes = malloc(PEEK_BYTES);

    int result = 1, waiting = 0;
    uint32_t count = 0;

    if (cancelled != NULL) {
        *cancelled = 0;
    }
    if (bytes == NULL) {
        return 1; /* it cannot be told, here and below */
    }
    ssize_t n = peek(fd, bytes);

    if (n > 0 && cancelled_bytes(arena, bytes, (uint64_t) n, &count) == (uint64_t) n) {
        /* More may lie behind what a peek shows; then it may have come since as well.  And the end of file lies there, which
           no look at bytes shows. */
        result = ioctl(fd, FIONREAD, &waiting) == -1 || waiting > n || is_at_end(fd);
    } else if (n == -1 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        result = 0;
    }
    free(bytes);
    if (cancelled != NULL) {
        *cancelled = count;
    }
    return result;
}
