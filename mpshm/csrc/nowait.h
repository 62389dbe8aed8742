/* Reads and writes that do not wait, whatever a descriptor's flags are: RWF_NOWAIT tells whether there are any.

   musl has them since 1.2.5; before, the kernel is asked itself.  A kernel or an emulator that does not know
   them says EOPNOTSUPP in both cases. */
#ifndef MPSHM_NOWAIT_H
#define MPSHM_NOWAIT_H

#include <sys/uio.h>

#if defined(__linux__) && !defined(RWF_NOWAIT)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(SYS_preadv2) && defined(SYS_pwritev2)
#define RWF_NOWAIT 0x08

static inline ssize_t
vectors_now(long call, int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    ssize_t n = syscall(call, fd, parts, count, (long) at, (long) (at >> 32), flags);

    if (n == -1 && errno == ENOSYS) {
        errno = EOPNOTSUPP;
    }
    return n;
}
#define preadv2(...) vectors_now(SYS_preadv2, __VA_ARGS__)
#define pwritev2(...) vectors_now(SYS_pwritev2, __VA_ARGS__)
#endif
#endif

#endif
