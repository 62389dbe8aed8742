/* System calls as points: the linker's --wrap sends the core's calls through these.

   Those are here that change what another process can see, or that end what a process holds: between
   two of them a kill leaves a state of its own.  killpoints.mk has the same list for the linker. */
#define _GNU_SOURCE
#include "points.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "lives.h"

#define STEP(name) point(POINT_CHANGES, name "()", __builtin_return_address(0))

#define WRAP(type, name, parameters, arguments)                                                \
    type __real_##name parameters;                                                             \
    type __wrap_##name parameters                                                              \
    {                                                                                          \
        STEP(#name);                                                                           \
        return __real_##name arguments;                                                        \
    }
WRAP(ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
WRAP(ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
WRAP(ssize_t, pread, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))
WRAP(ssize_t, pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))
WRAP(ssize_t, preadv2, (int fd, const struct iovec *to, int count, off_t at, int flags), (fd, to, count, at, flags))
WRAP(ssize_t, pwritev2, (int fd, const struct iovec *from, int count, off_t at, int flags),
     (fd, from, count, at, flags))
WRAP(int, close, (int fd), (fd))
WRAP(int, ftruncate, (int fd, off_t size), (fd, size))
WRAP(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size))
WRAP(int, munmap, (void *at, size_t size), (at, size))
WRAP(int, madvise, (void *at, size_t size, int advice), (at, size, advice))
WRAP(int, memfd_create, (const char *name, unsigned flags), (name, flags))
WRAP(void *, mmap, (void *at, size_t size, int may, int flags, int fd, off_t offset),
     (at, size, may, flags, fd, offset))

/* These take what they are given and pass on as many words as there can be, as libc itself does. */
int __real_open(const char *path, int flags, ...);
int
__wrap_open(const char *path, int flags, ...)
{
    va_list more;

    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);

    va_end(more);
    STEP("open");
    return __real_open(path, flags, mode);
}

int __real_fcntl(int fd, int command, ...);
int
__wrap_fcntl(int fd, int command, ...)
{
    va_list more;

    va_start(more, command);
    void *argument = va_arg(more, void *);

    va_end(more);
    STEP("fcntl");
    return __real_fcntl(fd, command, argument);
}

void *__real_mremap(void *at, size_t old, size_t size, int flags, ...);
void *
__wrap_mremap(void *at, size_t old, size_t size, int flags, ...)
{
    va_list more;

    va_start(more, flags);
    void *to = va_arg(more, void *);

    va_end(more);
    STEP("mremap");
    return __real_mremap(at, old, size, flags, to);
}

/* A futex, above all: a kill between a change and its wake-up. */
long __real_syscall(long number, ...);
long
__wrap_syscall(long number, ...)
{
    long words[6];
    va_list more;

    va_start(more, number);
    for (int i = 0; i < 6; i++) {
        words[i] = va_arg(more, long);
    }
    va_end(more);
    STEP("syscall");
    return __real_syscall(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}

/* No point, but what lets a life wait for seconds in no time. */
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int
__wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = __real_clock_gettime(clock, now);

    now->tv_sec += (time_t) (report->ahead_ns / 1000000000);
    return result;
}
