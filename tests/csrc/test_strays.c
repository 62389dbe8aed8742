/* Strays: runs whose frame a killed process had in hand come back, and no other run in flight does.

   The core's reads and writes come by here, so that a process can be killed or stopped between sealing its runs
   and writing the frame that names them, or between reading that frame and leasing them. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE 100u

static mpshm_arena *arena;
static int near, distant; /* two ends of the connection: this process's, and one for children */
static int to_child[2], to_parent[2];

static _Thread_local void (*before_write)(void);
static _Thread_local void (*after_write)(void);
static _Thread_local void (*after_frame)(void); /* with a whole frame in hand */

static void
call(void (**hook)(void))
{
    void (*now)(void) = *hook;

    *hook = NULL;
    if (now != NULL) {
        now();
    }
}

ssize_t
write(int fd, const void *data, size_t size)
{
    if (size == FRAME_BYTES) {
        call(&before_write);
    }
    ssize_t n = syscall(SYS_write, fd, data, size);

    if (size == FRAME_BYTES) {
        call(&after_write);
    }
    return n;
}

ssize_t
read(int fd, void *data, size_t size)
{
    ssize_t n = syscall(SYS_read, fd, data, size);

    if (n == FRAME_BYTES - 4) { /* the length word came before */
        call(&after_frame);
    }
    return n;
}

static void
open_connection(bool is_socket)
{
    int ends[2];

    CHECK_EQ(0, is_socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : pipe(ends));
    near = ends[1];
    distant = ends[0];
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
    arena = arena_of(tiny);
    mpshm_reap(arena); /* joins */
}

static void
close_connection(void)
{
    close(near);
    close(distant);
    close_clean(arena);
}

static void
send_one(int fd, unsigned seed)
{
    mpshm_run run = claim(arena, SIZE);

    fill(run.data, SIZE, seed);
    CHECK_EQ(0, send_run(fd, &run, SIZE));
}

static void
take_one(mpshm_reader *reader, int fd, unsigned seed)
{
    mpshm_held held;

    CHECK_EQ(WHOLE_FRAME, mpshm_receive(reader, fd, arena, 0, 0));
    mpshm_take(reader, 0, &held);
    reader->full = 0;
    CHECK_EQ(SIZE, held.size);
    CHECK(is_filled(held.data, SIZE, seed));
    mpshm_release(held.data);
}

static void
receive_one(int fd, unsigned seed)
{
    mpshm_reader *reader = mpshm_reader_new(0);

    take_one(reader, fd, seed);
    mpshm_reader_free(reader);
}

static uint32_t
in_flight(void)
{
    return gauges(arena).runs_in_flight;
}

/* Every sweep looks; so often that all would be decided that ever can be. */
static void
look_often(void)
{
    for (int i = 0; i < 6; i++) {
        mpshm_reap(arena);
    }
}

static void
stop_here(void)
{
    go(to_parent);
    await(to_child);
}

/* Senders */

static void
start_doomed_sender(void (**hook)(void))
{
    int pid = fork_hooked();

    if (pid == 0) {
        *hook = die;
        send_one(near, 1);
    }
    wait_killed(pid);
}

static void
run_of_a_sender_killed_before_its_frame_was_out_comes_back(void)
{
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        open_connection(is_socket);
        send_one(near, 2); /* an end is known by what was sent or received */
        receive_one(distant, 2);
        start_doomed_sender(&before_write);
        CHECK_EQ(1, in_flight());
        look_often();
        CHECK_EQ(0, in_flight());
        close_connection();
    }
}

static void
message_of_a_sender_killed_after_its_frame_was_out_arrives(void)
{
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        open_connection(is_socket);
        send_one(near, 2);
        receive_one(distant, 2);
        start_doomed_sender(&after_write);
        look_often(); /* it is unread */
        CHECK_EQ(1, in_flight());
        receive_one(distant, 1);
        CHECK_EQ(0, in_flight());
        close_connection();
    }
}

static void
living_senders_run_is_left_to_it(void)
{
    open_connection(false);
    send_one(near, 2);
    receive_one(distant, 2);
    int pid = fork_hooked();

    if (pid == 0) {
        before_write = stop_here;
        send_one(near, 1);
        exit(0);
    }
    await(to_parent);
    look_often();
    CHECK_EQ(1, in_flight());
    go(to_child);
    wait_child(pid);
    receive_one(distant, 1);
    close_connection();
}

/* The same of this process's own: another of its threads is in the middle of sending. */
static void *
send_and_stop(void *argument)
{
    before_write = stop_here;
    send_one(near, 1);
    return argument;
}

static void
own_run_whose_frame_is_not_out_is_no_stray(void)
{
    pthread_t thread;

    open_connection(false);
    send_one(near, 2);
    receive_one(distant, 2);
    CHECK_EQ(0, pthread_create(&thread, NULL, send_and_stop, NULL));
    await(to_parent);
    look_often();
    CHECK_EQ(1, in_flight());
    go(to_child);
    pthread_join(thread, NULL);
    receive_one(distant, 1);
    close_connection();
}

/* Receivers */

static int
start_receiver(void (*hook)(void), unsigned seed)
{
    int pid = fork_hooked();

    if (pid == 0) {
        after_frame = hook;
        receive_one(distant, seed);
        exit(0);
    }
    return pid;
}

/* Send one message to a receiver that is killed with its frame in hand. */
static void
lose_one(void)
{
    int dead = start_receiver(die, 1);

    send_one(near, 1);
    wait_killed(dead);
}

static void
run_of_a_receiver_killed_with_its_frame_in_hand_comes_back(void)
{
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        open_connection(is_socket);
        lose_one();
        CHECK_EQ(1, in_flight());
        look_often();
        CHECK_EQ(0, in_flight());
        send_one(near, 3); /* the connection goes on */
        receive_one(distant, 3);
        close_connection();
    }
}

static void
run_in_a_living_receivers_hand_stays(void)
{
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        open_connection(is_socket);
        int pid = start_receiver(stop_here, 1);

        send_one(near, 1);
        await(to_parent);
        look_often();
        CHECK_EQ(1, in_flight());
        go(to_child);
        wait_child(pid);
        CHECK_EQ(0, in_flight());
        close_connection();
    }
}

/* One is dead with a frame in hand, another alive and inside: the other's may be any of those in flight. */
static void
living_receiver_holds_back_the_deads_until_it_is_out(void)
{
    open_connection(false);
    lose_one();
    int pid = start_receiver(stop_here, 2);

    send_one(near, 2);
    await(to_parent);
    look_often();
    CHECK_EQ(2, in_flight());
    go(to_child);
    wait_child(pid);
    CHECK_EQ(1, in_flight());
    look_often();
    CHECK_EQ(0, in_flight());
    close_connection();
}

/* One that waits for a message is inside too; when it has had one, it was out. */
static void
waiting_receiver_is_out_once_it_has_received(void)
{
    open_connection(false);
    lose_one();
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_reader *reader = mpshm_reader_new(0);

        go(to_parent);
        take_one(reader, distant, 2);
        go(to_parent);
        (void) mpshm_receive(reader, distant, arena, 0, 0);
        exit(0);
    }
    await(to_parent);
    wait_asleep(pid);
    look_often();
    CHECK_EQ(1, in_flight());
    send_one(near, 2);
    await(to_parent);
    wait_asleep(pid);
    look_often();
    CHECK_EQ(0, in_flight());
    kill_child(pid);
    close_connection();
}

static int to_thread[2];

static void
stop_for_the_thread(void)
{
    go(to_parent);
    await(to_thread);
}

static void *
receive_and_stop(void *argument)
{
    after_frame = stop_for_the_thread;
    receive_one(distant, 1);
    return argument;
}

/* Its other threads come and go meanwhile. */
static void
one_thread_of_many_inside_keeps_its_run(void)
{
    open_connection(false);
    CHECK_EQ(0, pipe(to_thread));
    int pid = fork_hooked();

    if (pid == 0) {
        pthread_t thread;

        CHECK_EQ(0, pthread_create(&thread, NULL, receive_and_stop, NULL));
        await(to_child); /* it has the first */
        for (unsigned i = 0; i < 50; i++) {
            receive_one(distant, 2);
        }
        go(to_parent);
        pthread_join(thread, NULL);
        exit(0);
    }
    send_one(near, 1);
    await(to_parent);
    go(to_child);
    for (unsigned i = 0; i < 50; i++) {
        mpshm_reap(arena);
        while (mpshm_wait_room(arena, near, SIZE, 10 * SIZE, 50) != 0) {
        }
        send_one(near, 2);
        usleep(500);
    }
    await(to_parent);
    look_often();
    CHECK_EQ(1, in_flight());
    go(to_thread);
    wait_child(pid);
    CHECK_EQ(0, in_flight());
    close_connection();
}

/* It inherited a reader that its parent was in the middle of using, and the parent is gone. */
static mpshm_reader *inherited;

static void *
wait_in_it(void *argument)
{
    (void) mpshm_receive(inherited, distant, arena, 0, 0);
    return argument;
}

static void
child_of_a_receiver_is_inside_by_itself(void)
{
    open_connection(false);
    int parent = fork_hooked();

    if (parent == 0) {
        pthread_t thread;

        inherited = mpshm_reader_new(0);
        CHECK_EQ(0, pthread_create(&thread, NULL, wait_in_it, NULL));
        while (inherited->inside == 0) {
            sched_yield();
        }
        if (fork_hooked() == 0) {
            await(to_child); /* its parent is dead */
            after_frame = stop_here;
            take_one(inherited, distant, 1);
            go(to_parent);
            exit(0);
        }
        die();
    }
    wait_killed(parent);
    send_one(near, 1);
    go(to_child);
    await(to_parent);
    look_often();
    CHECK_EQ(1, in_flight());
    go(to_child);
    await(to_parent);
    CHECK_EQ(0, in_flight());
    close_connection();
}

/* What is unread */

static void
nothing_is_decided_while_a_frame_is_unread_either_way(void)
{
    open_connection(true);
    lose_one();
    send_one(distant, 5); /* the other way: this process has not read it */
    look_often();
    CHECK_EQ(2, in_flight());
    receive_one(near, 5);
    send_one(near, 6); /* and this way */
    look_often();
    CHECK_EQ(2, in_flight());
    receive_one(distant, 6);
    CHECK_EQ(1, in_flight());
    look_often();
    CHECK_EQ(0, in_flight());
    close_connection();
}

/* A socket does not say what a peer left unread when it went. */
static void
nothing_is_freed_when_the_peer_hung_up(void)
{
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        open_connection(is_socket);
        send_one(near, 1);
        send_one(near, 2);
        close(distant);
        look_often();
        CHECK_EQ(2, in_flight());
        close(near);
        mpshm_arena_close(arena);
    }
}

/* Parts of frames */

/* It leaves the rest in the pipe until it knows the arena, for it cannot say that it has a frame in hand. */
static void
frame_whose_arena_is_looked_for_stays_whatever_the_time(void)
{
    for (int is_socket = 0; is_socket < 2; is_socket++) {
        mpshm_reader *reader = mpshm_reader_new(0);

        open_connection(is_socket);
        send_one(near, 1);
        CHECK_EQ(MPSHM_E_NO_ARENA, mpshm_receive(reader, distant, NULL, 0, 0));
        look_often();
        CHECK_EQ(1, in_flight());
        take_one(reader, distant, 1);
        CHECK_EQ(0, in_flight());
        mpshm_reader_free(reader);
        close_connection();
    }
}

static void
frame_whose_arena_is_not_found_comes_back(void)
{
    mpshm_reader *reader = mpshm_reader_new(0);

    open_connection(false);
    send_one(near, 1);
    CHECK_EQ(MPSHM_E_NO_ARENA, mpshm_receive(reader, distant, NULL, 0, 0));
    CHECK_EQ(0, mpshm_skip(reader, distant));
    CHECK_EQ(1, in_flight());
    look_often();
    CHECK_EQ(0, in_flight());
    send_one(near, 2); /* the connection goes on */
    take_one(reader, distant, 2);
    mpshm_reader_free(reader);
    close_connection();
}

/* The first `part` bytes of a frame, and the rest of it. */
static void
send_part(uint32_t part)
{
    char frame[FRAME_BYTES];
    int out[2];

    send_one(near, 2); /* an end is known by what was sent */
    receive_one(distant, 2);
    mpshm_run run = claim(arena, SIZE);

    fill(run.data, SIZE, 1);
    CHECK_EQ(0, pipe(out));
    CHECK_EQ(0, send_run(out[1], &run, SIZE));
    CHECK_EQ(FRAME_BYTES, syscall(SYS_read, out[0], frame, sizeof frame));
    CHECK_EQ(part, syscall(SYS_write, near, frame, part));
    close(out[0]);
    close(out[1]);
}

static uint64_t
my_mark(void)
{
    return atomic_load(arena_mark(arena)) & 0xffffff;
}

/* What it had in hand is lost with it, and its process is not inside for ever. */
static void
reader_that_is_freed_with_part_of_a_frame_is_out(void)
{
    for (uint32_t part = 1; part < FRAME_BYTES; part += 5) {
        mpshm_reader *reader = mpshm_reader_new(0);

        open_connection(true);
        send_part(part);
        CHECK_EQ(0, fcntl(distant, F_SETFL, O_NONBLOCK));
        CHECK_EQ(-EAGAIN, mpshm_receive(reader, distant, arena, 0, 0));
        CHECK_EQ(part, reader->have);
        look_often();
        CHECK_EQ(1, in_flight());
        CHECK_EQ(1, my_mark());
        mpshm_reader_free(reader);
        CHECK_EQ(0, my_mark());
        look_often();
        CHECK_EQ(0, in_flight());
        close_connection();
    }
}

/* The arena's handle is closed before. */
static void
reader_with_part_of_a_frame_keeps_its_arena(void)
{
    mpshm_reader *reader = mpshm_reader_new(0);

    open_connection(true);
    mpshm_arena *again = attach_again(arena);

    CHECK_EQ(4, syscall(SYS_write, near, "\0\0\0\5", 4)); /* of a plain frame */
    CHECK_EQ(0, fcntl(distant, F_SETFL, O_NONBLOCK));
    CHECK_EQ(-EAGAIN, mpshm_receive(reader, distant, again, 100, 0));
    CHECK(again == reader->told);
    mpshm_arena_close(again);
    CHECK_EQ(1, again->refs);
    CHECK_EQ(5, syscall(SYS_write, near, "hello", 5));
    CHECK_EQ(9, mpshm_receive(reader, distant, NULL, 100, 0)); /* the end has been closed by another thread */
    CHECK(NULL == reader->told);
    CHECK_EQ(0, my_mark());
    mpshm_reader_free(reader);
    close_connection();
}

/* A fork's child has not said that it is inside, and does not take back what its parent has. */
static void
childs_copy_of_a_reader_leaves_its_parents_mark_alone(void)
{
    mpshm_reader *reader = mpshm_reader_new(0);

    open_connection(true);
    send_part(10);
    CHECK_EQ(0, fcntl(distant, F_SETFL, O_NONBLOCK));
    CHECK_EQ(-EAGAIN, mpshm_receive(reader, distant, arena, 0, 0));
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_reader_free(reader);
        arena_lock(arena);
        arena_unlock(arena);
        CHECK_EQ(0, my_mark());
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(1, my_mark());
    mpshm_reader_free(reader);
    CHECK_EQ(0, my_mark());
    look_often();
    CHECK_EQ(0, in_flight());
    close_connection();
}

/* A sender that waits for room begins to look: a receiver killed in between does not narrow its mark for good,
   and what it had in hand is known to be this sender's, and out. */
static void
sender_that_waits_for_a_dead_receiver_goes_on(void)
{
    open_connection(false);
    lose_one();
    CHECK_EQ(0, mpshm_wait_room(arena, near, SIZE, SIZE, LONG_MS));
    CHECK_EQ(0, arena->sent_bytes);
    CHECK_EQ(1, in_flight());
    CHECK(arena->strays != NULL);
    mpshm_reap(arena);
    CHECK_EQ(0, in_flight());
    close_connection();
}

/* Kills at any instruction, on a connection in use. */
static void
storm_of_kills_leaves_nothing(void)
{
    open_connection(true);
    send_one(near, 1);
    receive_one(distant, 1);
    for (int i = 0; i < 60; i++) {
        int pids[2];

        for (int k = 0; k < 2; k++) {
            pids[k] = fork_hooked();
            if (pids[k] == 0) {
                mpshm_reader *reader = mpshm_reader_new(0);
                int fd = k == 0 ? near : distant;

                for (unsigned n = 0;; n++) {
                    mpshm_run run;
                    char text[4];

                    if (mpshm_get_buf(arena, SIZE, &run) != 0) {
                        continue;
                    }
                    fill(run.data, SIZE, n);
                    int flags = MSG_DONTWAIT | MSG_PEEK;

                    CHECK_EQ(0, send_run(fd, &run, SIZE));
                    while (recv(fd, text, 1, flags) == 1) {
                        int got = mpshm_receive(reader, fd, arena, 0, 0);
                        mpshm_held held;

                        CHECK_EQ(WHOLE_FRAME, got);
                        mpshm_take(reader, 0, &held);
                        reader->full = 0;
                        CHECK_EQ(SIZE, held.size);
                        mpshm_release(held.data);
                    }
                }
            }
        }
        usleep((useconds_t) (500 + i * 97 % 3000));
        kill_child(pids[0]);
        kill_child(pids[1]);
        char junk[4096]; /* frames that nobody reads any more, some of them in part */

        while (recv(near, junk, sizeof junk, MSG_DONTWAIT) > 0 || recv(distant, junk, sizeof junk, MSG_DONTWAIT) > 0) {
        }
        look_often();
        CHECK_EQ(0, runs_in_use(arena));
    }
    close_connection();
}

static const struct test tests[] = {
    TEST(run_of_a_sender_killed_before_its_frame_was_out_comes_back),
    TEST(message_of_a_sender_killed_after_its_frame_was_out_arrives),
    TEST(living_senders_run_is_left_to_it),
    TEST(own_run_whose_frame_is_not_out_is_no_stray),
    TEST(run_of_a_receiver_killed_with_its_frame_in_hand_comes_back),
    TEST(run_in_a_living_receivers_hand_stays),
    TEST(living_receiver_holds_back_the_deads_until_it_is_out),
    TEST(waiting_receiver_is_out_once_it_has_received),
    TEST(one_thread_of_many_inside_keeps_its_run),
    TEST(child_of_a_receiver_is_inside_by_itself),
    TEST(nothing_is_decided_while_a_frame_is_unread_either_way),
    TEST(nothing_is_freed_when_the_peer_hung_up),
    TEST(frame_whose_arena_is_looked_for_stays_whatever_the_time),
    TEST(frame_whose_arena_is_not_found_comes_back),
    TEST(reader_that_is_freed_with_part_of_a_frame_is_out),
    TEST(reader_with_part_of_a_frame_keeps_its_arena),
    TEST(childs_copy_of_a_reader_leaves_its_parents_mark_alone),
    TEST(sender_that_waits_for_a_dead_receiver_goes_on),
    TEST(storm_of_kills_leaves_nothing),
};
RUN_TESTS(tests)
