/* Sleeping on a shared word, the clock of all waits, and whether a descriptor's other end is gone.

   Does not know what is waited for: no arena, no ring, no message.

   Invariants: W1 (invariants.h).

   Memory order: none of its own.  The kernel compares a futex's word and begins the sleep in one step;
   what the word says is ordered where it is written (waiters.c, places.c, sender.c). */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/syscall.h>

/* As the kernel's headers have them, which musl does not bring. */
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
/* The call that takes this C library's timespec: some of 32 bits count seconds in 64. */
#ifdef SYS_futex_time64
#define FUTEX_CALL (sizeof(time_t) > sizeof(long) ? SYS_futex_time64 : SYS_futex)
#else
#define FUTEX_CALL SYS_futex
#endif
#endif

/* The monotonic clock, equal in all processes. */
int64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

int
ms_until(int64_t ns)
{
    int64_t left = ns - now_ns();

    return left > 0 ? (int) ((left + 999999) / 1000000) : 0;
}

/* Sleep until futex_wake(word), a signal, or the end of the time; not at all if `word` does not hold
   `value`.  The caller looks again.  False: a signal ended it. */
bool
futex_wait(_Atomic uint32_t *word, uint32_t value, int timeout_ms)
{
    struct timespec wait = {.tv_sec = timeout_ms / 1000,
                            .tv_nsec = (long) (timeout_ms % 1000) * 1000000};

    INVARIANT(W1, timeout_ms >= 0);
#ifdef __linux__
    return syscall(FUTEX_CALL, word, FUTEX_WAIT, value, &wait, NULL, 0) == 0 || errno != EINTR;
#else
    (void) word;
    (void) value;
    wait.tv_nsec = wait.tv_nsec > 1000000 ? 1000000 : wait.tv_nsec; /* without a futex there is no wake-up: look often */
    return nanosleep(&wait, NULL) == 0;
#endif
}

/* Wake up to `most` sleepers at `word`: how many, in whatever process they are. */
int
futex_wake(_Atomic uint32_t *word, int most)
{
#ifdef __linux__
    long n = syscall(FUTEX_CALL, word, FUTEX_WAKE, most, NULL, NULL, 0);

    return n < 0 ? 0 : (int) n;
#else
    (void) word;
    return most;
#endif
}

/* Whether poll() reports one of `which` for `fd`.  They are POLLERR, POLLHUP and POLLNVAL, which it
   reports without being asked. */
bool
has_hung_up(int fd, short which)
{
    struct pollfd end = {.fd = fd, .events = 0};

    return poll(&end, 1, 0) > 0 && (end.revents & which) != 0;
}
