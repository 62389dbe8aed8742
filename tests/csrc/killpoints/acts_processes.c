/* Acts: runs and views of a process, its coming, leaving and forking, and reaping. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ledger.h"
#include "lives.h"
#include "scenarios.h"
#include "stage.h"

static mpshm_run loan;

/* So that a short message gets one (mpshm_send_copy). */
void
have_segment(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 5000, &loan));
    EXPECT_EQ(0, mpshm_abandon(&loan));
}

void
claim_and_abandon(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 30000, &loan));
    (void) mpshm_increase_buf(&loan, 60000, 4096);
    EXPECT_EQ(0, mpshm_abandon(&loan));
}

void
hold_and_let_go(void)
{
    hold_views();
    let_views_go();
}

void
release_all(void)
{
    mpshm_release_all();
}

void
exit_with_view(void)
{
    exit(DONE);
}

void
open_ends_more(void)
{
    mpshm_end in = stage.in, out = stage.out;

    mpshm_end_open(&in);
    mpshm_end_open(&out);
    mpshm_end_stop_receiving(&in);
    mpshm_end_release(&in);
    mpshm_end_release(&out);
}

/* Coming and leaving. */

void
join(void)
{
    stage_settle();
}

void
attach_and_leave(void)
{
    stage_attach();
    stage_settle();
    stage_close();
}

void
attach_put_leave(void)
{
    stage_attach();
    (void) say(COPIED);
    stage_close();
}

void
leave(void)
{
    stage_close();
}

void
leave_with_view(void)
{
    stage_close();
    let_views_go();
}

void
leave_with_loan(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 30000, &loan));
    stage_close();
}

/* Forking. */

static void
wait_for(int pid)
{
    while (waitpid(pid, NULL, 0) == -1 && errno == EINTR) {
    }
}

/* Fork; the child does that, and ends. */
static void
fork_by(int (*how)(void), void (*in_child)(void))
{
    int pid = how();

    EXPECT(pid != -1);
    if (pid == 0) {
        in_child();
        point(POINT_CHANGES, "its end", __builtin_return_address(0));
        _exit(DONE);
    }
    wait_for(pid);
}

static void
do_nothing(void)
{
}

void
fork_with_views(void)
{
    fork_by(stage_fork, let_views_go);
    let_views_go();
}

void
fork_child_with_views(void)
{
    fork_with_views();
}

void
fork_with_loan(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 30000, &loan));
    fork_by(stage_fork, let_views_go);
    let_views_go();
    EXPECT_EQ(0, mpshm_abandon(&loan));
}

void
fork_alone(void)
{
    fork_by(stage_fork, do_nothing);
}

static void
work(void)
{
    (void) hear();
    (void) say(COPIED);
}

void
fork_child_works(void)
{
    fork_by(stage_fork, work);
}

/* As C code forks, or subprocess before an exec: nobody announces it. */
void
fork_plain(void)
{
    fork_by(plain_fork, do_nothing);
    let_views_go();
}

void
fork_plain_child(void)
{
    fork_by(plain_fork, work);
    let_views_go();
}

/* The dead. */

void
reap(void)
{
    stage_reap();
}

static void
die_in_child(void (*work)(void))
{
    int pid = life_begin(stage_fork);

    if (pid == 0) {
        work();
        raise(SIGKILL);
    }
    EXPECT(life_wait(pid, "who dies before") == WAS_KILLED);
}

/* Everything that a process can have, and whose nobody else is. */
static void
have_everything(void)
{
    mpshm_run run;

    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 5000, &loan));
    if (stage.kind->is_queue) {
        EXPECT_EQ(0, mpshm_get_buf(stage.arena, 90000, &run));
        EXPECT_EQ(0, mpshm_seal(&run, 50000));
        (void) mpshm_place_take(stage.arena);
    }
    hold_views();
    int pid = life_begin(stage_fork);

    if (pid == 0) {
        raise(SIGKILL);
    }
    wait_for(pid);
}

void
one_dead(void)
{
    three();
    die_in_child(have_everything);
}

void
many_dead(void)
{
    three();
    for (int i = 0; i < 3; i++) {
        die_in_child(have_everything);
    }
}

/* So much that memory is given back once it is reaped, in most of the segments that there can be. */
static void
have_much(void)
{
    for (int i = 0; i < 11; i++) {
        EXPECT_EQ(0, mpshm_get_buf(stage.arena, 3 << 20, &loan));
    }
}

void
large_dead(void)
{
    die_in_child(have_much);
}

/* Others, who work while the victim is stopped. */

void
take_everything(void)
{
    while (hear()) {
        if (stage.bit & WITH_TASKS) {
            (void) say_done();
        }
    }
    stage_reap();
}

void
put_some(void)
{
    (void) say(SHORT);
    (void) say(COPIED);
    (void) say(VIEWED);
    stage_reap();
}

/* So that each slot is another lap's when the victim goes on. */
void
go_laps(void)
{
    take_everything();
    for (int i = 0; i < (stage.kind->is_queue ? 520 : 20); i++) {
        (void) say(SHORT);
        take_everything();
    }
}

void
reap_twice(void)
{
    stage_reap();
    stage_reap();
}

void
come_and_go(void)
{
    struct stage first = stage;

    for (int i = 0; i < 3; i++) {
        stage_attach();
        (void) say(SHORT);
        stage_close();
        stage = first;
    }
}

void
claim_much(void)
{
    mpshm_run runs[16];
    int count = 0;

    while (count < 16 && mpshm_get_buf(stage.arena, 30000, &runs[count]) == 0) {
        count++;
    }
    while (count > 0) {
        EXPECT_EQ(0, mpshm_abandon(&runs[--count]));
    }
    stage_reap();
}

void
fork_and_view(void)
{
    hold_views();
    fork_with_views();
    stage_reap();
}

void
die_and_reap(void)
{
    die_in_child(have_everything);
    stage_reap();
}
