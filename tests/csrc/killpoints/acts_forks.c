/* Acts: forks of every kind, by processes that hold views and loans; and lost descriptors. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lives.h"
#include "points.h"
#include "scenarios.h"
#include "stage.h"

/* Reap, and write to what is free: so that a view shows whose run is nobody's by mistake. */
static void
disturb(void)
{
    mpshm_run runs[24];
    int count = 0;

    stage_reap();
    while (count < 24 && mpshm_get_buf(stage.arena, 30000, &runs[count]) == 0) {
        memset(runs[count++].data, 0xee, 30000);
    }
    while (count > 0) {
        EXPECT_EQ(0, mpshm_abandon(&runs[--count]));
    }
}

static void
wait_for(int pid)
{
    while (waitpid(pid, NULL, 0) == -1 && errno == EINTR) {
    }
}

/* What a child does, who then ends. */
static void
be_child(void (*work)(void))
{
    work();
    point(POINT_CHANGES, "its end", __builtin_return_address(0));
    _exit(DONE);
}

static int
fork_child(void (*work)(void))
{
    int pid = fork();

    EXPECT(pid != -1);
    if (pid == 0) {
        be_child(work);
    }
    return pid;
}

static void
do_nothing(void)
{
}

static void
work(void)
{
    (void) hear();
    (void) say(COPIED);
}

void
fork_with_views(void)
{
    wait_for(fork_child(let_views_go));
    disturb();
    let_views_go();
}

/* The child dies with all that it has inherited. */
void
fork_and_keep(void)
{
    wait_for(fork_child(check_views));
    disturb();
    let_views_go();
}

static void
go_and_disturb(void)
{
    let_views_go();
    disturb();
}

static int parent;

static void
outlive(void)
{
    while (getppid() == parent) {
        sched_yield();
    }
    wait_for(fork_child(go_and_disturb)); /* who takes us for dead, if anybody does */
    let_views_go();
}

/* The child goes on alone with what both had. */
void
fork_and_go(void)
{
    parent = getpid();
    (void) fork_child(outlive);
}

/* Three holders. */
void
fork_in_fork(void)
{
    wait_for(fork_child(fork_with_views));
    disturb();
    let_views_go();
}

/* Holders come and go while one stays. */
void
fork_again(void)
{
    wait_for(fork_child(let_views_go));
    wait_for(fork_child(let_views_go));
    let_views_go();
}

void
fork_with_loan(void)
{
    mpshm_run loan;

    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 30000, &loan));
    wait_for(fork_child(let_views_go));
    let_views_go();
    EXPECT_EQ(0, mpshm_abandon(&loan));
}

void
fork_alone(void)
{
    wait_for(fork_child(do_nothing));
}

void
fork_child_works(void)
{
    wait_for(fork_child(work));
}

/* A child that no hook has seen. */
void
clone_child_works(void)
{
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

    EXPECT(pid != -1);
    if (pid == 0) {
        points_begin_child();
        be_child(work);
    }
    wait_for((int) pid);
}

/* As a daemon does that closes all descriptors it was not told of, and opens files of its own. */
void
lose_descriptors(void)
{
    int lost[2] = {mpshm_arena_fd(stage.arena), mpshm_arena_roster_fd(stage.arena)};
    int other = open("/dev/null", O_RDWR | O_CLOEXEC);

    EXPECT(other != -1);
    for (int i = 0; i < 2; i++) {
        EXPECT(lost[i] == -1 || dup2(other, lost[i]) == lost[i]);
    }
}

/* Refused where the file has to grow. */
void
put_without_descriptors(void)
{
    (void) say(VIEWED);
}

void
lose_descriptors_and_hold(void)
{
    lose_descriptors();
    hold_views();
}
