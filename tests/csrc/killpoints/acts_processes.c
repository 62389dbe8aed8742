/* Acts: runs and views of a process, its coming and leaving, the dead, and what others do meanwhile. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ledger.h"
#include "lives.h"
#include "scenarios.h"
#include "stage.h"

#include "debug.h" /* needs what mpshm.h includes */

static mpshm_run loan;
static int dead_pid;

/* So that a short message gets one (mpshm_send_copy). */
void
have_segment(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 5000, &loan));
    EXPECT_EQ(0, mpshm_abandon(&loan));
}

/* By a handle that has no segment mapped, and maps none: messages go through windows. */
void
map_nothing(void)
{
    stage_attach();
    mpshm_debug_refuse_mappings(1);
}

/* What is put next goes to the reserve: nobody gets that to fill it in place. */
void
use_all_but_reserve(void)
{
    static mpshm_run runs[64];
    mpshm_geometry geometry;
    uint32_t n = 0;

    EXPECT_EQ(0, mpshm_arena_geometry(stage.arena, &geometry));
    for (uint64_t size = geometry.segment_bytes; size >> geometry.chunk_shift > 0; size /= 2) {
        while (mpshm_get_buf(stage.arena, size, &runs[n]) == 0) {
            n++;
            EXPECT(n < 64);
        }
    }
}

void
use_all_and_put_views(void)
{
    use_all_but_reserve();
    EXPECT_EQ(0, say(VIEWED));
}

void
use_all_and_put_copied(void)
{
    use_all_but_reserve();
    EXPECT_EQ(0, say(COPIED));
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

/* As a program does that was started anew and is handed a channel. */
void
take_over(void)
{
    stage_take_over();
    (void) hear();
    (void) say(VIEWED);
    stage_close();
}

/* Another channel of the same family. */
void
make_another(void)
{
    struct stage first = stage;

    stage_open(__builtin_ctz(stage.bit));
    have_segment();
    stage_close();
    stage = first;
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

/* The dead. */

void
reap(void)
{
    stage_reap();
}

/* As a process does whose child has ended: the next claim reaps it. */
void
notice_death(void)
{
    mpshm_process_ended(dead_pid);
    have_segment();
}

/* Giving memory back. */

void
use_pieces(void)
{
    EXPECT_EQ(0, say(PLAIN));
    (void) hear_all();
}

/* So that there is some to give back: in the middle of each segment, and in more of them than one. */
void
use_memory(void)
{
    static mpshm_run runs[40];
    uint64_t size = stage.kind->is_large ? 3 << 20 : 100000;
    int count = 0, most = stage.kind->is_large ? 12 : 6; /* a few segments stay warm whole */

    while (count < most && mpshm_get_buf(stage.arena, size, &runs[count]) == 0) {
        count++;
    }
    while (count > 0) {
        EXPECT_EQ(0, mpshm_abandon(&runs[--count]));
    }
}

void
trim(void)
{
    (void) mpshm_trim(stage.arena);
}

static char *large_view;

/* As a receiver has it, of a message that nobody waits for. */
static void
lease_large(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 2 << 20, &loan));
    EXPECT_EQ(0, mpshm_seal(&loan, 2 << 20));
    EXPECT_EQ(0, mpshm_lease(stage.arena, loan.mmap_id, loan.chunk_id, 2 << 20, loan.tag, &large_view));
}

/* Behind it there is memory that nobody has used for two periods. */
void
hold_large(void)
{
    use_memory();
    for (int i = 0; i < 2; i++) {
        report->ahead_ns += INT64_C(3000000000);
        mpshm_reap(stage.arena);
    }
    use_memory();
    report->ahead_ns += INT64_C(3000000000);
    lease_large();
    mpshm_reap(stage.arena);
    report->ahead_ns += INT64_C(3000000000);
}

void
release_large(void)
{
    mpshm_release(large_view);
}

static void
die_in_child(void (*work)(void))
{
    int pid = life_begin(fork);

    if (pid == 0) {
        work();
        raise(SIGKILL);
    }
    EXPECT(life_wait(pid, "who dies before") == WAS_KILLED);
    dead_pid = pid;
}

static void
wait_for(int pid)
{
    while (waitpid(pid, NULL, 0) == -1 && errno == EINTR) {
    }
}

/* Everything that a process can have, views that it shares with a dead child among it. */
static void
have_everything(void)
{
    EXPECT_EQ(0, mpshm_get_buf(stage.arena, 5000, &loan));
    if (stage.kind->is_queue) {
        (void) mpshm_place_take(mpshm_place_new(stage.arena));
    }
    hold_views();
    int pid = life_begin(fork);

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
one_dead_in_pieces(void)
{
    three();
    die_in_child(begin_pieces);
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

/* It lives, but is another program now, which says so by closing its end. */
void
one_gone(void)
{
    int ends[2];
    char byte, number[16];

    EXPECT_EQ(0, pipe(ends));
    three();
    int pid = life_begin(fork);

    if (pid == 0) {
        have_everything();
        snprintf(number, sizeof number, "%d", ends[1]);
        execl("/proc/self/exe", "killpoints", "wait", number, NULL);
        _exit(1);
    }
    close(ends[1]);
    EXPECT_EQ(0, read(ends[0], &byte, 1));
    close(ends[0]);
}

void
large_dead(void)
{
    die_in_child(have_much);
}

/* Others, who work while the victim is stopped. */

/* join() does not end before all is done. */
static void
check_join(void)
{
    if ((stage.bit & WITH_TASKS) && ledger_tasks_certain() > 0) {
        EXPECT_EQ(-ETIMEDOUT, mpshm_wait_done(stage.arena, 0));
    }
}

void
take_everything(void)
{
    check_join();
    while (hear()) {
        check_join();
        if (stage.bit & WITH_TASKS) {
            (void) say_done();
        }
    }
    check_join();
    stage_reap();
}

void
put_some(void)
{
    (void) say(SHORT);
    (void) say(COPIED);
    (void) say(VIEWED);
    check_join();
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
trim_often(void)
{
    for (int i = 0; i < 3; i++) {
        use_memory();
        trim();
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

void
do_all(void)
{
    if (stage.kind->is_queue) {
        go_laps();
        die_and_reap();
        fork_and_view();
    }
    if (stage.kind->limits.grows) {
        grow_and_shrink();
    }
    come_and_go();
    claim_much();
    trim_often();
    put_some();
}
