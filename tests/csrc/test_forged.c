/* Words that a hostile peer has written, and what becomes of them: each fault that test_hostile.c has found, made on
   purpose.  Without assertions, as there. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

/* A peer that goes on writing, first the one value and then the other. */
struct writer {
    pthread_t thread;
    _Atomic uint64_t *at;
    uint64_t values[2];
    _Atomic uint64_t writes;
    _Atomic bool stop;
};

static void *
go_on_writing(void *argument)
{
    struct writer *writer = argument;

    for (uint64_t i = 0; !atomic_load_explicit(&writer->stop, memory_order_relaxed); i++) {
        atomic_store_explicit(writer->at, writer->values[i % 2], memory_order_relaxed);
        atomic_store_explicit(&writer->writes, i, memory_order_relaxed);
    }
    return NULL;
}

static void
begin_writing(struct writer *writer)
{
    CHECK_EQ(0, pthread_create(&writer->thread, NULL, go_on_writing, writer));
    while (atomic_load(&writer->writes) == 0) {
        sched_yield();
    }
}

static void
end_writing(struct writer *writer)
{
    atomic_store(&writer->stop, true);
    CHECK_EQ(0, pthread_join(writer->thread, NULL));
}

static void
directory_word_set_back_makes_no_second_segment(void)
{
    static const uint64_t words[] = {0, DIR_WORD(0, 4, 10), DIR_WORD(0, 12, 3), UINT64_MAX};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        mpshm_arena *arena = arena_of(tiny);
        mpshm_run first = claim(arena, 16), rest = claim(arena, 63 * 16), other;
        struct segment *seg = arena->segments[0];
        uint64_t was = atomic_load(&arena->header->segment[0]);

        atomic_store(&arena->header->segment[0], words[i]);
        CHECK_EQ(0, mpshm_get_buf(arena, 160, &other));
        CHECK_EQ(1, other.mmap_id);
        CHECK(arena->segments[0] == seg);
        CHECK_EQ(0, mpshm_abandon(&other));
        CHECK_EQ(0, mpshm_abandon(&rest));
        CHECK_EQ(0, mpshm_abandon(&first));
        atomic_store(&arena->header->segment[0], was);
        close_clean(arena);
    }
}

static void
run_taken_away_is_an_error_that_says_so_and_is_counted_no_longer(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16), sent = claim(arena, 16);
    mpshm_parcel *parcel;
    int ends[2];

    make_pipe(ends);
    /* As one does who takes this process for dead. */
    CHECK(run_free(arena->segments[0], run.chunk_id, RUN_WORD(run.tag, arena->me, RUN_LOANED)));
    CHECK_EQ(0, mpshm_is_loaned(&run));
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_increase_buf(&run, 16, 0));
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_seal(&run, 16));
    parcel = parcel_of(arena);
    CHECK_EQ(0, mpshm_put_run(parcel, &run, 16));
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_send(parcel, ends[1], NULL, 0));
    mpshm_return_run(parcel);
    mpshm_parcel_free(parcel);
    CHECK_EQ(2, arena->loans);
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_abandon(&run));
    CHECK_EQ(1, arena->loans);
    CHECK_EQ(MPSHM_E_STATE, mpshm_abandon(&run)); /* this process knows it has none */
    CHECK_EQ(0, send_run(ends[1], &sent, 16));
    CHECK_EQ(MPSHM_E_STATE, mpshm_abandon(&sent));
    CHECK_EQ(0, arena->loans);
    land(&sent, 16);
    close_clean(arena);
}

/* The chunks of a run that this process has on loan are in the map as free ones: it claims them once more. */
static void
chunk_lent_twice_ends_two_loans(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run first = claim(arena, 16), second;
    struct segment *seg = arena->segments[0];

    freemap_set(seg->map, first.chunk_id, 1);
    second = claim(arena, 16);
    CHECK_EQ(first.chunk_id, second.chunk_id);
    CHECK_EQ(2, arena->loans);
    CHECK_EQ(MPSHM_E_DAMAGED, mpshm_abandon(&first));
    CHECK_EQ(1, mpshm_is_loaned(&second));
    CHECK_EQ(0, mpshm_abandon(&second));
    CHECK_EQ(0, arena->loans);
    close_clean(arena);
}

static void
walk_ends_while_a_run_is_rewritten(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 16);
    struct run *at = &arena->segments[0]->runs[run.chunk_id];
    struct writer writer = {.at = &at->more, .values = {EXTENT(0, 1), EXTENT(0, 2)}};

    begin_writing(&writer);
    for (int i = 0; i < 20; i++) {
        CHECK(mpshm_arena_is_valid(arena) < 0);
    }
    end_writing(&writer);
    atomic_store(&at->more, EXTENT(1, 0));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
release_ends_while_a_run_is_rewritten(void)
{
    mpshm_arena *arena = arena_of(tiny);

    for (int i = 0; i < 20; i++) {
        char *data = lease_new(arena, 64, 1);
        struct run *at = &arena->segments[0]->runs[0];
        struct writer writer = {.at = &at->word, .values = {RUN_WORD(1, 1, RUN_SHARED), RUN_WORD(1, 2, RUN_SHARED)}};

        begin_writing(&writer);
        mpshm_release(data);
        end_writing(&writer);
        lease_drop_dead(arena->segments[0], 0); /* nobody's, and so free */
    }
    close_clean(arena);
}

static void
put_and_get_end_while_the_head_is_rewritten(void)
{
    mpshm_arena *arena = queue_arena_of(tiny, 4096, 0, 1);
    mpshm_counts counts = {0};
    int ends[2];

    make_pipe(ends);
    mpshm_end to = {arena, &counts, ends[1], false};
    mpshm_batch *batch = batch_of(arena, &counts, ends[0], 0);

    mpshm_end_open(&to);
    mpshm_end_open(batch->end);
    for (uint64_t i = 0; i < arena->zero.slots; i++) { /* all passed for laps to come */
        atomic_store(&arena->zero.head->slots[i].word, SLOT_WORD(1000, 0, SLOT_FREE));
    }
    struct writer writer = {.at = &arena->zero.head->head, .values = {HEAD_WORD(1, 7), HEAD_WORD(2, 4000)}};

    begin_writing(&writer);
    for (int i = 0; i < 3; i++) {
        CHECK(mpshm_queue_put_new(&to, "message", 7) <= 1);
        CHECK(mpshm_queue_receive_one(batch, 1) < 0 || batch->count == 1);
        (void) mpshm_queue_size(arena);
        (void) mpshm_queue_full(arena);
        CHECK(mpshm_task_done(arena) != -EINTR);
        CHECK(mpshm_wait_done(arena, 1) <= 0);
    }
    end_writing(&writer);
    mpshm_end_stop_receiving(batch->end);
    mpshm_end_release(batch->end);
    mpshm_end_release(&to);
    free_batch(batch);
    mpshm_arena_close(arena);
}

static void
task_done_ends_while_the_count_is_rewritten(void)
{
    mpshm_arena *arena = queue_arena_of(tiny, 0, 0, 1);
    struct writer writer = {.at = &arena->chain->done, .values = {POSITION_MASK - 5, POSITION_MASK - 9}};

    atomic_store(writer.at, writer.values[0]);
    begin_writing(&writer);
    for (int i = 0; i < 1000; i++) {
        int64_t left = mpshm_task_done(arena);

        CHECK(left >= 0 || left == -ERANGE || left == MPSHM_E_DAMAGED);
    }
    end_writing(&writer);
    mpshm_arena_close(arena);
}

struct drain {
    pthread_t thread;
    int fd;
    _Atomic bool stop;
};

static void *
go_on_draining(void *argument)
{
    struct drain *drain = argument;
    char bytes[64];

    while (!atomic_load(&drain->stop)) {
        (void) !read(drain->fd, bytes, sizeof bytes);
    }
    return NULL;
}

/* A pipe's flags are those of all that have the end, and a peer reads the bytes that were counted. */
static void
pipe_that_a_peer_made_blocking_stops_nobody(void)
{
    mpshm_arena *arena = queue_arena_of(tiny, 0, 0, 0);
    mpshm_counts counts = {0};
    char path[32];
    int ends[2];

    make_pipe(ends);
    snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
    struct drain drain = {.fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
    mpshm_end to = {arena, &counts, ends[1], false};
    mpshm_batch *batch = batch_of(arena, &counts, ends[0], 0);

    mpshm_end_open(&to);
    mpshm_end_open(batch->end);
    mpshm_queue_watch(batch->end);
    CHECK_EQ(0, fcntl(ends[0], F_SETFL, 0));
    CHECK_EQ(0, fcntl(ends[1], F_SETFL, 0));
    CHECK_EQ(0, pthread_create(&drain.thread, NULL, go_on_draining, &drain));
    for (int i = 0; i < 20000; i++) {
        CHECK_EQ(1, mpshm_queue_put_new(&to, "message", 7));
        CHECK_EQ(7, mpshm_queue_receive_one(batch, 0));
    }
    atomic_store(&drain.stop, true);
    CHECK_EQ(0, pthread_join(drain.thread, NULL));
    mpshm_end_stop_receiving(batch->end);
    mpshm_end_release(batch->end);
    mpshm_end_release(&to);
    free_batch(batch);
    close_clean(arena);
}

/* Every segment's lock names a process that lives: the first claim waits for it, the next ones do not. */
static void
locks_that_are_kept_cost_little_time(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run runs[4], more;
    int turn[2];
    _Atomic name *who = mmap(NULL, sizeof *who, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(who != MAP_FAILED);
    CHECK_EQ(0, pipe(turn));
    int pid = fork_hooked();

    if (pid == 0) {
        arena_lock(arena);
        atomic_store(who, arena->me);
        arena_unlock(arena);
        await(turn);
        _exit(0);
    }
    while (atomic_load(who) == 0) {
        sched_yield();
    }
    for (int i = 0; i < 4; i++) {
        runs[i] = claim(arena, TINY_CHUNK * TINY_CHUNKS);
    }
    for (int i = 0; i < 4; i++) {
        atomic_store(&arena->segments[i]->head->lock, atomic_load(who));
    }
    CHECK_EQ(0, arena->locked_until_ns);
    CHECK_EQ(-ENOSPC, mpshm_get_buf(arena, 16, &more));
    int64_t until = arena->locked_until_ns;

    CHECK(until > now_ns());
    CHECK_EQ(-ENOSPC, mpshm_get_buf(arena, 16, &more));
    CHECK_EQ(until, arena->locked_until_ns);
    for (int i = 0; i < 4; i++) {
        atomic_store(&arena->segments[i]->head->lock, 0);
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    more = claim(arena, 16);
    CHECK_EQ(0, mpshm_abandon(&more));
    go(turn);
    wait_child(pid);
    close_clean(arena);
}

static void
index_that_names_more_runs_than_an_arena_has_is_refused_unread(void)
{
    struct frame_head head = {.indexed = true, .stream_runs = 1, .buffer_runs = SEGMENT_LIMIT * CHUNK_LIMIT};
    uint64_t stream, size = (uint64_t) (head.buffer_runs + 1) * DESCRIPTOR_BYTES;

    CHECK_EQ(MPSHM_E_COUNT, frame_index(&head, size, 0, &stream));
    head.buffer_runs--;
    CHECK_EQ(0, frame_index(&head, size - DESCRIPTOR_BYTES, 0, &stream));
    CHECK_EQ(0, stream);
}

/* Its seals are as good as ours, and yet it may come to lack pages. */
static void
file_of_huge_pages_is_told_from_ours(void)
{
    mpshm_arena *arena = arena_of(tiny);
    int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_ALLOW_SEALING);

    CHECK(!memfile_is_huge(mpshm_arena_fd(arena)));
    CHECK(!memfile_is_huge(-1));
    if (fd != -1) { /* this kernel has them */
        CHECK(memfile_is_huge(fd));
        close(fd);
    }
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(directory_word_set_back_makes_no_second_segment),
    TEST(run_taken_away_is_an_error_that_says_so_and_is_counted_no_longer),
    TEST(chunk_lent_twice_ends_two_loans),
    TEST(walk_ends_while_a_run_is_rewritten),
    TEST(release_ends_while_a_run_is_rewritten),
    TEST(put_and_get_end_while_the_head_is_rewritten),
    TEST(task_done_ends_while_the_count_is_rewritten),
    TEST_THAT_NEEDS(nowait, pipe_that_a_peer_made_blocking_stops_nobody),
    TEST(locks_that_are_kept_cost_little_time),
    TEST(index_that_names_more_runs_than_an_arena_has_is_refused_unread),
    TEST(file_of_huge_pages_is_told_from_ours),
};
RUN_TESTS(tests)
