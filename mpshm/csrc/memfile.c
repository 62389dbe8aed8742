/* The memory file: how one is made, sealed and reserved.

   Knows descriptors, kinds of files and bytes.  Does not know what lies in a file: no arena, no
   segment, no run.

   Invariants: A1 (invariants.h).  It holds no shared word, so it has no memory order. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/vfs.h>
#endif

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u /* Linux 6.3; it allows sealing as well */
#endif

/* As the kernel's headers have it, which musl does not bring. */
#define HUGETLBFS_MAGIC UINT32_C(0x958458f6)

/* A number that no other process is likely to draw. */
uint64_t
memfile_fresh_id(void)
{
    uint64_t id = 0;

    if (getentropy(&id, sizeof id) == -1 || id == 0) {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        id = (uint64_t) now.tv_nsec << 32 ^ (uint64_t) now.tv_sec << 20 ^ (uint64_t) getpid();
    }
    return id;
}

/* A file in /dev/shm.  It is unlinked at once: the name lives for microseconds. */
static int
open_shm(void)
{
#ifdef SHM_ANON
    return shm_open(SHM_ANON, O_RDWR, 0600);
#else
    char name[32];

    for (int attempt = 0; attempt < 8; attempt++) {
        snprintf(name, sizeof name, "/mpshm-%016llx", (unsigned long long) memfile_fresh_id());
        int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

        if (fd != -1) {
            if (shm_unlink(name) == -1) {
                int error = errno;

                close(fd);
                errno = error;
                return -1;
            }
            return fd;
        }
        if (errno != EEXIST) {
            return -1;
        }
    }
    return -1;
#endif
}

/* Not under a number of the standard streams, which a program may have closed: what somebody prints would
   be written into shared memory. */
static int
above_standard(int fd)
{
    int higher = fd >= 0 && fd <= STDERR_FILENO ? fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1) : -1;

    if (higher == -1) {
        return fd;
    }
    close(fd);
    return higher;
}

/* Make an empty memory file: its descriptor, or -1 and errno.
   kind: MPSHM_FILE_...; name: what /proc shows for a memfd.
   *bounded: its file system may run full, so memfile_reserve comes before each first touch. */
int
memfile_open(int kind, const char *name, bool *bounded)
{
    if (memory_is_refused()) {
        errno = ENOSPC;
        return -1;
    }
#ifdef __linux__
    if (kind != MPSHM_FILE_SHM) {
        int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (fd == -1 && (errno == EACCES || errno == EPERM)) {
            /* Systems with vm.memfd_noexec=2, and sandboxes, refuse a file that could be executed. */
            fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
        }
        *bounded = false;
        if (fd != -1 || kind == MPSHM_FILE_MEMFD || errno != ENOSYS) {
            return above_standard(fd);
        }
    }
#else
    (void) kind;
    (void) name;
#endif
    *bounded = true;
    return above_standard(open_shm());
}

/* Fix the file's size for ever, where its kind allows that: 0, or -errno.  A1. */
int
memfile_seal(int fd, bool bounded)
{
    INVARIANT(A1, !memfile_is_sealed(fd));
#ifdef F_SEAL_SHRINK
    if (!bounded && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == -1) {
        return -errno;
    }
#else
    (void) fd;
    (void) bounded;
#endif
    return 0;
}

/* Whether the file can grow no more.  We seal memfds only: false means a file on a file system that
   may run full. */
bool
memfile_is_sealed(int fd)
{
#ifdef F_GET_SEALS
    int seals = fcntl(fd, F_GET_SEALS);

    return seals != -1 && (seals & F_SEAL_GROW) != 0;
#else
    (void) fd;
    return false;
#endif
}

/* Whether a process could cut the file off under our mapping: it can be sealed, and is not. */
bool
memfile_can_shrink(int fd)
{
#ifdef F_SEAL_SHRINK
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals != -1 && (seals & F_SEAL_SHRINK) != 0) {
        return false;
    }
    /* Where no memfd can be made, memory files are in /dev/shm, and there is nothing to seal. */
    int probe = memfd_create("mpshm-probe", MFD_CLOEXEC);

    if (probe == -1) {
        return errno != ENOSYS;
    }
    close(probe);
    return true;
#else
    (void) fd;
    return false;
#endif
}

/* Whether the file lies in huge pages, of which the system has so many and no more: whoever maps it dies of SIGBUS
   when another process has punched a hole and there is none left for that.  It can be sealed like ours. */
bool
memfile_is_huge(int fd)
{
#ifdef __linux__
    struct statfs status;

    return fstatfs(fd, &status) == 0 && (uint32_t) status.f_type == HUGETLBFS_MAGIC;
#else
    (void) fd;
    return false;
#endif
}

bool
memfile_is_short(int fd)
{
#ifdef __linux__
    struct statfs status;

    return fstatfs(fd, &status) == 0 && status.f_blocks > 0
           && (uint64_t) status.f_bavail < (uint64_t) status.f_blocks / 4;
#else
    (void) fd;
    return false;
#endif
}

/* Whether `fd` is that file, and not another one that has got its number. */
bool
memfile_is(int fd, uint64_t device, uint64_t inode)
{
    struct stat status;

    return fstat(fd, &status) == 0 && (uint64_t) status.st_dev == device
           && (uint64_t) status.st_ino == inode;
}

/* Allocate [offset, offset + size) of the file now: 0, or -errno when its file system is full.
   Without this, a full tmpfs answers the first write through a mapping with SIGBUS. */
int
memfile_reserve(int fd, uint64_t offset, uint64_t size)
{
    INVARIANT(A1, size > 0);
#ifdef __linux__
    return fallocate(fd, 0, (off_t) offset, (off_t) size) == -1 ? -errno : 0;
#else
    (void) fd;
    (void) offset;
    (void) size;
    return 0;
#endif
}
