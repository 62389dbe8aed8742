/* Processes: forking, waiting, ending.  Knows nothing of what they do.

   Each life has a process group, so that nothing is left of it, whatever became of it. */
#define _GNU_SOURCE
#include "lives.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct report *report;
int life_line = -1;

void
lives_begin(void)
{
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (report == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    signal(SIGPIPE, SIG_IGN);
}

void
complain(const char *file, int line, const char *format, ...)
{
    va_list arguments;

    points_disarm();
    if (report->complaint[0] == '\0') {
        const char *name = strrchr(file, '/');
        int n = snprintf(report->complaint, sizeof report->complaint, "%s:%d: ",
                         name != NULL ? name + 1 : file, line);

        va_start(arguments, format);
        vsnprintf(report->complaint + n, sizeof report->complaint - (size_t) n, format, arguments);
        va_end(arguments);
    }
    _exit(1);
}

int
life_begin(int (*how)(void))
{
    int parent = getpid(), pid = how();

    if (pid == -1) {
        complain(__FILE__, __LINE__, "fork: %s", strerror(errno));
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1);
        }
    }
    return pid;
}

enum ending
life_wait(int pid, const char *name)
{
    siginfo_t how;

    while (waitid(P_PID, (id_t) pid, &how, WEXITED | WSTOPPED | WNOWAIT) == -1) {
        if (errno != EINTR) {
            complain(__FILE__, __LINE__, "%s cannot be waited for", name);
        }
    }
    if (how.si_code == CLD_STOPPED) {
        (void) waitid(P_PID, (id_t) pid, &how, WSTOPPED); /* its end is what is waited for next */
        return HAS_STOPPED;
    }
    if (how.si_code == CLD_EXITED && how.si_status == DONE) {
        return ENDED_WELL;
    }
    if (how.si_code == CLD_EXITED) {
        complain(__FILE__, __LINE__, "%s ended with %d", name, how.si_status);
    }
    if (how.si_status != SIGKILL) {
        complain(__FILE__, __LINE__, "%s died of signal %d", name, how.si_status);
    }
    return WAS_KILLED;
}

void
life_go_on(int pid)
{
    kill(pid, SIGCONT);
}

void
life_kill(int pid)
{
    siginfo_t how;

    kill(pid, SIGKILL);
    while (waitid(P_PID, (id_t) pid, &how, WEXITED | WNOWAIT) == -1 && errno == EINTR) {
    }
}

void
life_begin_family(void)
{
    (void) setpgid(0, 0);
    report->family = getpid();
}

/* Whoever outlived its parent is this process's child now: PR_SET_CHILD_SUBREAPER. */
void
life_collect_family(int pid)
{
    while (waitpid(-pid, NULL, 0) != -1 || errno == EINTR) {
    }
}

void
wait_asleep(int pid)
{
    char path[64], text[256];

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    for (;;) {
        FILE *file = fopen(path, "r");
        bool read = file != NULL && fgets(text, sizeof text, file) != NULL;

        if (file != NULL) {
            fclose(file);
        }
        if (!read || strstr(text, ") R ") == NULL) {
            return; /* or it has ended, which its waiter will see */
        }
        sched_yield();
    }
}

int
life_run(int (*life)(void *), void *what, unsigned hang_s)
{
    int status, pid;

    memset(report, 0, sizeof *report);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        alarm(hang_s);
        _exit(life(what));
    }
    if (pid == -1) {
        perror("fork");
        exit(2);
    }
    (void) setpgid(pid, pid); /* whoever is first */
    while (waitpid(pid, &status, 0) == -1) {
    }
    (void) kill(-pid, SIGKILL);
    if (report->family != 0) {
        (void) kill(-report->family, SIGKILL);
    }
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}
