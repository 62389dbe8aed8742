/* Sleeping on a shared word, the clock of all waits, and whether the other end is gone.  Knows nothing
   of what is waited for. */
#define _GNU_SOURCE
#include "internal.h"

#include <poll.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

int64_t
now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleep until somebody wakes those at `word`, or the time is over, or it does not hold `value`, or
   for a signal. */
void
futex_wait(_Atomic uint32_t *word, uint32_t value, int timeout_ms)
{
    struct timespec wait = {.tv_sec = timeout_ms / 1000,
                            .tv_nsec = (long) (timeout_ms % 1000) * 1000000};
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT, value, &wait, NULL, 0);
#else
    (void) word;
    (void) value;
    wait.tv_nsec = wait.tv_nsec > 1000000 ? 1000000 : wait.tv_nsec; /* nobody wakes us: look often */
    nanosleep(&wait, NULL);
#endif
}

/* How many it woke. */
int
futex_wake(_Atomic uint32_t *word, int most)
{
#ifdef __linux__
    long n = syscall(SYS_futex, word, FUTEX_WAKE, most, NULL, NULL, 0);

    return n < 0 ? 0 : (int) n;
#else
    (void) word;
    return most;
#endif
}

/* Whether poll() says one of those of a descriptor that nobody asked it about. */
bool
has_hung_up(int fd, short which)
{
    struct pollfd end = {.fd = fd, .events = 0};

    return poll(&end, 1, 0) > 0 && (end.revents & which) != 0;
}
