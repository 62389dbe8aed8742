/* What a pid tells: which namespace it counts in, when its process began, whether that process is gone.

   Knows pids and /proc.  Does not know rosters, nor any shared word.

   A pid is asked only where no lock can be: pids are used again, mean nothing in another namespace,
   and go on through an exec.  So each answer may be "not known", and that never makes a process dead.
   No state letter is believed: a process whose main thread has ended reads as a zombie and lives.

   Memory order: none of its own. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PIDFD_GET_PID_NAMESPACE
#define PIDFD_GET_PID_NAMESPACE _IO(0xFF, 5) /* Linux 6.11 */
#endif

/* Read a small file of /proc: false if there is none.  folder: a descriptor, or AT_FDCWD. */
static bool
read_text(int folder, const char *path, char *text, size_t room)
{
    int fd = openat(folder, path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd == -1 ? -1 : read(fd, text, room - 1);

    if (fd != -1) {
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* This process's pid namespace, by its kernel number; 0: not known. */
uint64_t
pid_space(void)
{
#ifdef __linux__
    struct stat status;
    uint64_t space = 0;

    if (stat("/proc/self/ns/pid", &status) == 0) {
        return (uint64_t) status.st_ino;
    }
#ifdef SYS_pidfd_open
    int self = (int) syscall(SYS_pidfd_open, getpid(), 0);
    int inner = self == -1 ? -1 : ioctl(self, PIDFD_GET_PID_NAMESPACE, 0);

    if (inner != -1) {
        space = fstat(inner, &status) == 0 ? (uint64_t) status.st_ino : 0;
        close(inner);
    }
    if (self != -1) {
        close(self);
    }
#endif
    return space;
#else
    return 1; /* there is only one */
#endif
}

/* Whether /proc counts pids as this process does.  Mounted in an outer namespace, it shows our pid
   there as well, so two numbers. */
static bool
proc_is_ours(void)
{
    char text[4096], *at, *end;

    if (!read_text(AT_FDCWD, "/proc/self/status", text, sizeof text)
        || (at = strstr(text, "\nNSpid:")) == NULL) {
        return false;
    }
    long pid = strtol(at + strlen("\nNSpid:"), &end, 10);

    return pid == (long) getpid() && *end == '\n';
}

/* When that process began, as this one sees it: clock ticks 32 | time namespace 16; 0: not known.  Equal for
   one process; of two namespaces they cannot be compared. */
#define BORN(ticks, space) ((uint64_t) (uint32_t) (ticks) << 16 | ((space) & 0xffff))
#define BORN_SPACE(born) ((born) & 0xffff)

uint64_t
pid_born(uint32_t pid)
{
    char path[32], text[512];
    struct stat status;
    bool known = false;

    if (pid == 0 || pid > INT32_MAX || !proc_is_ours()) {
        return 0;
    }
    /* By way of its folder: qemu's user mode gives an emulated process a stat file of its own making
       when it asks for that by its path, and others would see another time. */
    snprintf(path, sizeof path, "/proc/%u", pid);
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder != -1) {
        known = read_text(folder, "stat", text, sizeof text);
        close(folder);
    }
    char *at = known ? strrchr(text, ')') : NULL; /* the name may hold anything */

    for (int field = 2; at != NULL && field < 22; field++) {
        at = strchr(at + 1, ' ');
    }
    if (at == NULL) {
        return 0;
    }
    return BORN(strtoull(at + 1, NULL, 10),
                stat("/proc/self/ns/time", &status) == 0 ? (uint64_t) status.st_ino : 0);
}

/* Whether no process of this namespace has that pid. */
bool
pid_is_unused(uint32_t pid)
{
    return pid != 0 && pid <= INT32_MAX && kill((pid_t) pid, 0) == -1 && errno == ESRCH;
}

/* Whether the process of this namespace that had that pid and began then is gone.  born 0: not known. */
bool
pid_is_gone(uint32_t pid, uint64_t born)
{
    if (pid_is_unused(pid)) {
        return true;
    }
    uint64_t now = born == 0 ? 0 : pid_born(pid);

    return now != 0 && BORN_SPACE(now) == BORN_SPACE(born) && now != born;
}
