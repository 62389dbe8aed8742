/* Mappings: a fork makes whole segments private, and leaves out what is on loan; a child that no hook has seen. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static mpshm_arena *arena;
static int ends[2], to_child[2], to_parent[2];

static void
open_arena(void)
{
    arena = arena_of(paged());
    CHECK_EQ(0, pipe(ends));
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
}

static uint64_t
chunks(uint32_t count)
{
    return (uint64_t) count << paged().chunk_shift;
}

/* As the package does: what the child held comes back with the next claim. */
static void
wait_any(int pid)
{
    while (waitpid(pid, NULL, 0) == -1) {
    }
    mpshm_process_ended(pid);
}

/* A process that receives messages until the pipe ends, and checks them: message i is `size` bytes of seed i. */
static int
start_receiver(uint64_t size)
{
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_reader *reader = mpshm_reader_new(0);
        unsigned i = 0;
        int n;

        close(ends[1]);
        while ((n = mpshm_receive(reader, ends[0], arena, 0, 0)) != 0) {
            mpshm_held held;

            CHECK_EQ(WHOLE_FRAME, n);
            mpshm_take(reader, 0, &held);
            reader->full = 0;
            CHECK_EQ(size, held.size);
            CHECK(is_filled(held.data, size, i++));
            mpshm_release(held.data);
        }
        mpshm_reader_free(reader);
        exit(0);
    }
    return pid;
}

static void
end_receiver(int pid)
{
    close(ends[1]);
    wait_child(pid);
    close(ends[0]);
}

/* Loans */

static void
what_is_filled_around_a_fork_arrives_whole(void)
{
    open_arena();
    int receiver = start_receiver(chunks(3));
    char *view = lease_new(arena, chunks(3), 100);

    for (unsigned i = 0; i < 50; i++) {
        mpshm_run run = claim(arena, chunks(3));

        CHECK_EQ(0, run.mmap_id); /* beside the view */
        fill(run.data, chunks(1), i);
        for (int forks = 0; forks < 2; forks++) {
            int pid = fork();

            if (pid == 0) {
                fill(view, chunks(3), 200 + i);
                _exit(0);
            }
            wait_any(pid);
        }
        fill(run.data, chunks(3), i);
        CHECK(is_filled(view, chunks(3), 100));
        CHECK_EQ(0, send_run(ends[1], &run, chunks(3)));
        while (mpshm_wait_room(arena, ends[1], chunks(3), chunks(9), 50) != 0) { /* the segment is small */
        }
    }
    mpshm_release(view);
    end_receiver(receiver);
    close_clean(arena);
}

#if !SANITIZED /* their allocators take no part in a fork beside a thread */
static _Atomic bool stop;

static void *
fill_and_send(void *argument)
{
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        mpshm_run run = claim(arena, chunks(3));

        fill(run.data, chunks(3), i);
        CHECK_EQ(0, send_run(ends[1], &run, chunks(3)));
        while (mpshm_wait_room(arena, ends[1], chunks(3), chunks(9), 50) != 0) {
        }
    }
    return argument;
}

static void
what_a_thread_fills_while_another_forks_arrives_whole(void)
{
    pthread_t thread;

    open_arena();
    int receiver = start_receiver(chunks(3));

    CHECK_EQ(0, pthread_create(&thread, NULL, fill_and_send, NULL));
    for (unsigned i = 0; i < 200; i++) {
        char *view = lease_new(arena, chunks(3), i);
        int pid = fork();

        if (pid == 0) {
            fill(view, chunks(3), i + 1);
            _exit(0);
        }
        wait_any(pid);
        CHECK(is_filled(view, chunks(3), i));
        mpshm_release(view);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    end_receiver(receiver);
    close_clean(arena);
}
#endif

static void
a_loan_in_a_former_mapping_does_not_grow_in_place(void)
{
    open_arena();
    char *view = lease_new(arena, chunks(3), 1);
    mpshm_run run = claim(arena, chunks(1));

    CHECK_EQ(chunks(1), mpshm_increase_buf(&run, 1, 1));
    int pid = fork();

    if (pid == 0) {
        _exit(0);
    }
    wait_any(pid);
    CHECK_EQ(0, mpshm_increase_buf(&run, 1, 0));
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&run, 1, 1));
    CHECK_EQ(chunks(2), run.capacity);
    fill(run.data, run.capacity, 2);
    CHECK_EQ(0, mpshm_seal(&run, chunks(2)));
    char *data;

    CHECK_EQ(0, mpshm_lease(arena, run.mmap_id, run.chunk_id, chunks(2), run.tag, &data));
    CHECK(data != run.data);
    CHECK(is_filled(data, chunks(2), 2));
    mpshm_release(data);
    mpshm_release(view);
    close_clean(arena);
}

/* In a child, before the core's own handler runs: this one is registered first. */
static void (*first_in_the_child)(void);

static void
be_first(void)
{
    if (first_in_the_child != NULL) {
        first_in_the_child();
    }
}

__attribute__((constructor(200))) static void
register_first(void)
{
    (void) pthread_atfork(NULL, NULL, be_first);
}

static void
await_the_parent(void)
{
    await(to_child);
}

/* It writes all over the pages that it inherited, and its parent looks: before the frame is out, in flight, and
   when it has arrived; also if all that happened before the child knew that it is one. */
static void
check_childs_writes_stay_its_own(bool with_view, bool late)
{
    open_arena();
    mpshm_arena *again = attach_again(arena);
    char *view = with_view ? lease_new(arena, chunks(3), 1) : NULL, *data;
    mpshm_run runs[3];

    for (unsigned i = 0; i < 3; i++) {
        runs[i] = claim(arena, chunks(2));
        fill(runs[i].data, chunks(2), i);
    }
    CHECK_EQ(0, mpshm_seal(&runs[0], chunks(2)));
    first_in_the_child = late ? await_the_parent : NULL;
    int pid = fork_hooked();

    if (pid == 0) {
        for (unsigned i = 0; i < 3; i++) {
            fill(runs[i].data, chunks(2), 50 + i);
        }
        if (with_view) {
            CHECK(is_filled(view, chunks(3), 1));
            fill(view, chunks(3), 53);
        }
        go(to_parent);
        await(to_child);
        for (unsigned i = 0; i < 3; i++) {
            CHECK(is_filled(runs[i].data, chunks(2), 50 + i));
        }
        CHECK(!with_view || is_filled(view, chunks(3), 53));
        exit(0);
    }
    CHECK_EQ(0, mpshm_lease(again, runs[0].mmap_id, runs[0].chunk_id, chunks(2), runs[0].tag, &data));
    CHECK_EQ(0, mpshm_seal(&runs[1], chunks(2)));
    if (late) {
        land(&runs[1], chunks(2));
        runs[1] = claim(arena, chunks(2)); /* and it is on loan again */
        fill(runs[1].data, chunks(2), 1);
        go(to_child);
    }
    await(to_parent);
    CHECK(is_filled(data, chunks(2), 0));
    mpshm_release(data);
    if (!late) {
        CHECK_EQ(0, mpshm_lease(again, runs[1].mmap_id, runs[1].chunk_id, chunks(2), runs[1].tag, &data));
        CHECK(is_filled(data, chunks(2), 1));
        mpshm_release(data);
    } else {
        CHECK(is_filled(runs[1].data, chunks(2), 1));
        CHECK_EQ(0, mpshm_abandon(&runs[1]));
    }
    CHECK(is_filled(runs[2].data, chunks(2), 2));
    fill(runs[2].data, chunks(2), 7);
    CHECK(!with_view || is_filled(view, chunks(3), 1));
    go(to_child);
    wait_child(pid);
    CHECK_EQ(0, mpshm_abandon(&runs[2]));
    mpshm_release(view);
    close_clean(again);
    close_clean(arena);
}

static void
a_child_cannot_write_into_its_parents_loans(void)
{
    for (int i = 0; i < 4; i++) {
        check_childs_writes_stay_its_own((i & 1) != 0, (i & 2) != 0);
    }
}

/* Former mappings */

static void
former_mappings_end_with_their_last_view_and_loan(void)
{
    enum { FORKS = 1000, VIEWS = 5, LOANS = 3 };
    char *views[VIEWS] = {NULL};
    mpshm_run loans[LOANS];
    uint32_t on_loan = 0;

    open_arena();
    mpshm_release(lease_new(arena, chunks(3), 1));
    int first = count_mappings(), most = 0;

    for (unsigned i = 0; i < FORKS; i++) {
        if (views[i % VIEWS] != NULL) {
            CHECK(is_filled(views[i % VIEWS], chunks(3), i - VIEWS));
            mpshm_release(views[i % VIEWS]);
        }
        views[i % VIEWS] = lease_new(arena, chunks(3), i);
        if (on_loan == LOANS) {
            CHECK(is_filled(loans[i % LOANS].data, chunks(2), i));
            if (i % 2 == 0) {
                CHECK_EQ(0, mpshm_seal(&loans[i % LOANS], chunks(2)));
                land(&loans[i % LOANS], chunks(2));
            } else {
                CHECK_EQ(0, mpshm_abandon(&loans[i % LOANS]));
            }
            on_loan--;
        }
        loans[i % LOANS] = claim(arena, chunks(2));
        fill(loans[i % LOANS].data, chunks(2), i + LOANS);
        on_loan++;
        int pid = fork();

        if (pid == 0) {
            for (int k = 0; k < VIEWS; k++) {
                mpshm_release(views[k]);
            }
            _exit(0);
        }
        wait_any(pid);
        int now = count_mappings();

        most = now > most ? now : most;
    }
    for (int i = 0; i < VIEWS; i++) {
        mpshm_release(views[i]);
    }
    for (int i = 0; i < LOANS; i++) {
        CHECK_EQ(0, mpshm_abandon(&loans[i]));
    }
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        CHECK(arena->segments[id] == NULL || arena->segments[id]->former == NULL);
    }
    /* Each of the last forks has split a mapping at the loans and the pages that were written to. */
    CHECK(most <= first + 2 * (VIEWS + LOANS) * 4);
    mpshm_reap(arena);
    CHECK(count_mappings() <= first + 4);
    close_clean(arena);
}

/* What comes after the fork is shared with others as before. */
static void
what_is_leased_after_a_fork_is_shared(void)
{
    open_arena();
    char *before = lease_new(arena, chunks(3), 1);
    int receiver = start_receiver(chunks(3)); /* a fork */

    for (unsigned i = 0; i < 5; i++) {
        mpshm_run run = claim(arena, chunks(3));

        fill(run.data, chunks(3), i);
        CHECK_EQ(0, send_run(ends[1], &run, chunks(3)));
    }
    char *after = lease_new(arena, chunks(3), 2);

    CHECK(is_filled(before, chunks(3), 1));
    CHECK(is_filled(after, chunks(3), 2));
    CHECK(after < before || after >= before + chunks(16)); /* another mapping */
    mpshm_release(after);
    mpshm_release(before);
    end_receiver(receiver);
    close_clean(arena);
}

/* They run no hooks, and need none. */
static void
spawned_programs_and_vforks_change_nothing(void)
{
    char *const argv[] = {"true", NULL}, *const environment[] = {NULL};
    int pid;

    open_arena();
    char *view = lease_new(arena, chunks(3), 1);
    uint64_t word = atomic_load(&arena->segments[0]->runs[0].word);
    int mappings = count_mappings();

    CHECK_EQ(0, posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environment));
    wait_child(pid);
    pid = vfork();
    if (pid == 0) {
        execve("/bin/true", argv, environment);
        _exit(1);
    }
    wait_child(pid);
    CHECK_EQ(word, atomic_load(&arena->segments[0]->runs[0].word));
    CHECK_EQ(mappings, count_mappings());
    CHECK(is_filled(view, chunks(3), 1));
    mpshm_release(view);
    close_clean(arena);
}

/* Children that no hook has seen */

static int
fork_unhooked(void)
{
    int pid = (int) syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

    CHECK(pid != -1);
    if (pid == 0) {
        alarm(30);
    }
    return pid;
}

static void
send_three(void)
{
    for (unsigned i = 0; i < 3; i++) {
        mpshm_run run = claim(arena, chunks(3));

        fill(run.data, chunks(3), i);
        CHECK_EQ(0, send_run(ends[1], &run, chunks(3)));
    }
}

static void
receive_three(void)
{
    for (unsigned i = 0; i < 3; i++) {
        char *data;
        uint64_t size;

        CHECK_EQ(0, receive(arena, ends[0], &data, &size));
        CHECK_EQ(chunks(3), size);
        CHECK(is_filled(data, size, i));
        mpshm_release(data);
    }
}

static void
unseen_child_sends_and_receives_as_a_member_of_its_own(void)
{
    open_arena();
    char *view = lease_new(arena, chunks(5), 9);
    mpshm_run run = claim(arena, chunks(2));
    name parent = arena->me;

    fill(run.data, chunks(2), 8);
    int holder = fork_hooked();

    if (holder == 0) {
        pause();
    }
    int pid = fork_unhooked();

    if (pid == 0) {
        receive_three();
        CHECK(arena->me != parent && arena->me != 0);
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_seal(&run, 16));
        CHECK_EQ(MPSHM_E_FOREIGN, mpshm_abandon(&run));
        send_three();
        char *mine = lease_new(arena, chunks(3), 5);
        int grandchild = fork_hooked();

        if (grandchild == 0) {
            CHECK(is_filled(mine, chunks(3), 5));
            fill(mine, chunks(3), 6);
            exit(0);
        }
        mpshm_release(view); /* its parent's */
        wait_child(grandchild);
        CHECK(is_filled(mine, chunks(3), 5));
        CHECK_EQ(2, holders(arena, 0, 0)); /* of what is its parent's, it makes nobody a holder */
        _exit(0); /* with it in hand */
    }
    send_three();
    wait_child(pid);
    receive_three();
    kill_child(holder);
    CHECK(is_filled(view, chunks(5), 9));
    CHECK(is_filled(run.data, chunks(2), 8));
    mpshm_reap(arena);
    CHECK_EQ(2, runs_in_use(arena));
    CHECK_EQ(parent, arena->me);
    mpshm_release(view);
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
unseen_child_of_a_process_that_held_the_lock_goes_on(void)
{
    open_arena();
    arena_lock(arena);
    int pid = fork_unhooked();

    if (pid == 0) {
        send_three();
        receive_three();
        _exit(0);
    }
    wait_child(pid);
    arena_unlock(arena);
    close_clean(arena);
}

static void
killed_unseen_child_leaves_nothing(void)
{
    open_arena();
    char *view = lease_new(arena, chunks(3), 1);
    int pid = fork_unhooked();

    if (pid == 0) {
        (void) lease_new(arena, chunks(3), 2);
        (void) claim(arena, chunks(2));
        die();
    }
    wait_killed(pid);
    mpshm_reap(arena);
    CHECK_EQ(1, runs_in_use(arena));
    mpshm_release(view);
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(what_is_filled_around_a_fork_arrives_whole),
#if !SANITIZED
    TEST(what_a_thread_fills_while_another_forks_arrives_whole),
#endif
    TEST(a_loan_in_a_former_mapping_does_not_grow_in_place),
    TEST(a_child_cannot_write_into_its_parents_loans),
    TEST(former_mappings_end_with_their_last_view_and_loan),
    TEST(what_is_leased_after_a_fork_is_shared),
    TEST(spawned_programs_and_vforks_change_nothing),
    TEST_THAT_NEEDS(madvice, unseen_child_sends_and_receives_as_a_member_of_its_own),
    TEST_THAT_NEEDS(madvice, unseen_child_of_a_process_that_held_the_lock_goes_on),
    TEST_THAT_NEEDS(madvice, killed_unseen_child_leaves_nothing),
};
RUN_TESTS(tests)
