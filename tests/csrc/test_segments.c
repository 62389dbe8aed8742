/* Segments: whose they are, the lock word, and maps that are made from the run table again.

   A child of these tests leaves a lock, a map or a word as it would stand in the middle of its work, and dies. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static mpshm_arena *arena;
static int to_child[2], to_parent[2];

static void
open_arena(uint32_t segment_limit)
{
    mpshm_geometry geometry = tiny;

    geometry.segment_limit = segment_limit;
    arena = arena_of(geometry);
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
}

/* Segment `id` as this process maps it. */
static struct segment *
segment(uint32_t id)
{
    struct segment *seg;

    arena_lock(arena);
    CHECK_EQ(0, segment_map(arena, id, &seg));
    arena_unlock(arena);
    return seg;
}

/* Have the lock of segment 0 as if in the middle of a claim. */
static struct segment *
hold_lock(void)
{
    struct segment *seg = segment(0);

    arena_lock(arena);
    CHECK(segment_try_lock(seg));
    arena_unlock(arena);
    return seg;
}

/* Chunks of segment 0 that the next claim finds free. */
static uint32_t
free_chunks(void)
{
    struct segment *seg = hold_lock();
    uint32_t n = 0;

    for (uint32_t at = 0; at < seg->count; at++) {
        n += freemap_has(seg->map, at);
    }
    segment_unlock(seg);
    return n;
}

/* Claim all that is left of segment 0, chunk by chunk: each once. */
static uint32_t
claim_the_rest(mpshm_run runs[TINY_CHUNKS])
{
    bool taken[TINY_CHUNKS] = {false};
    uint32_t n = 0;

    while (n < TINY_CHUNKS && mpshm_get_buf(arena, TINY_CHUNK, &runs[n]) == 0) {
        CHECK_EQ(0, runs[n].mmap_id);
        CHECK(!taken[runs[n].chunk_id]);
        taken[runs[n].chunk_id] = true;
        n++;
    }
    return n;
}

static void
abandon_all(mpshm_run *runs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
}

/* Whose they are. */

static void
a_living_owner_keeps_its_segment(void)
{
    open_arena(4);
    mpshm_run run = claim(arena, 16);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_run mine = claim(arena, 16);

        CHECK_EQ(1, mine.mmap_id);
        CHECK_EQ(0, mpshm_abandon(&mine));
        exit(0);
    }
    wait_child(pid);
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

/* Killed with a run on loan: its chunks come back, and the segment has a new owner. */
static void
segments_of_a_dead_owner_are_taken_over(void)
{
    open_arena(1);
    mpshm_run run;
    int pid = fork_hooked();

    if (pid == 0) {
        run = claim(arena, 160);
        fill(run.data, 160, 7);
        die();
    }
    wait_killed(pid);
    CHECK_EQ(1, gauges(arena).runs_loaned);
    for (int i = 0; i < 2; i++) { /* the second time it is ours by name */
        run = claim(arena, 64 * 16);
        CHECK_EQ(0, run.mmap_id);
        CHECK_EQ(arena->me, DIR_OWNER(atomic_load(&arena->header->segment[0])));
        CHECK_EQ(0, mpshm_abandon(&run));
        CHECK_EQ(-ENOSPC, mpshm_get_buf(arena, 65 * 16, &run));
    }
    close_clean(arena);
}

static void
a_closed_arena_leaves_its_segments_to_others(void)
{
    open_arena(4);
    mpshm_arena *again = attach_again(arena);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_run run = claim(arena, 16);

        CHECK_EQ(0, run.mmap_id);
        CHECK_EQ(0, mpshm_abandon(&run));
        mpshm_arena_close(arena);
        go(to_parent);
        await(to_child); /* alive all the while */
        exit(0);
    }
    await(to_parent);
    mpshm_run run = claim(again, 16);

    CHECK_EQ(0, run.mmap_id);
    CHECK_EQ(0, mpshm_abandon(&run));
    go(to_child);
    wait_child(pid);
    close_clean(again);
    close_clean(arena);
}

/* From three quarters on, who has no segment claims in others'; what none of them can hold gets one made. */
static void
a_crowded_directory_is_shared_and_keeps_room_for_the_large(void)
{
    mpshm_run runs[3], large;

    open_arena(4);
    for (uint32_t i = 0; i < 3; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            CHECK_EQ(i, claim(arena, 16).mmap_id);
            go(to_parent);
            pause();
        }
        await(to_parent);
        kill_child(pid);
        runs[i] = claim(arena, 1024 - 16); /* and adopted: the dead one's chunk is in use yet */
        CHECK_EQ(i, runs[i].mmap_id);
    }
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_run mine = claim(arena, 16);

        CHECK(mine.mmap_id < 3);
        large = claim(arena, 2048);
        CHECK_EQ(3, large.mmap_id);
        CHECK_EQ(0, mpshm_abandon(&large));
        CHECK_EQ(0, mpshm_abandon(&mine));
        exit(0);
    }
    wait_child(pid);
    abandon_all(runs, 3);
    close_clean(arena);
}

/* The lock word. */

static void
processes_claim_in_one_segment_and_share_no_chunk(void)
{
    enum { CREW = 4, ROUNDS = 3000 };
    int pids[CREW];

    open_arena(1);
    _Atomic unsigned char *owner = mmap(NULL, TINY_CHUNKS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                                        -1, 0);

    CHECK(owner != MAP_FAILED);
    for (unsigned char me = 1; me <= CREW; me++) {
        pids[me - 1] = fork_hooked();
        if (pids[me - 1] == 0) {
            for (uint32_t done = 0; done < ROUNDS;) {
                mpshm_run run;

                if (mpshm_get_buf(arena, 16 * (1 + (done + me) % 5), &run) != 0) {
                    sched_yield();
                    continue;
                }
                for (uint32_t c = 0; c < run.capacity / 16; c++) {
                    CHECK_EQ(0, atomic_exchange(&owner[run.chunk_id + c], me));
                }
                fill(run.data, run.capacity, me);
                CHECK(is_filled(run.data, run.capacity, me));
                for (uint32_t c = 0; c < run.capacity / 16; c++) {
                    CHECK_EQ(me, atomic_exchange(&owner[run.chunk_id + c], 0));
                }
                CHECK_EQ(0, mpshm_abandon(&run));
                done++;
            }
            exit(0);
        }
    }
    for (int i = 0; i < CREW; i++) {
        wait_child(pids[i]);
    }
    close_clean(arena);
}

static void
three_hundred_processes_in_few_segments_all_get_chunks(void)
{
    enum { MANY = 300 };
    int pids[MANY];
    char byte;

    open_arena(5);
    for (int i = 0; i < MANY; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            await(to_child);
            mpshm_run run = claim(arena, 16);

            fill(run.data, 16, (unsigned) i);
            go(to_parent);
            CHECK_EQ(0, read(to_child[0], &byte, 0));
            while (gauges(arena).runs_loaned < MANY) { /* all at a time */
                usleep(20000);
            }
            CHECK(is_filled(run.data, 16, (unsigned) i));
            go(to_parent);
            await(to_child);
            CHECK_EQ(0, mpshm_abandon(&run));
            exit(0);
        }
    }
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < MANY; i++) {
            go(to_child);
        }
        for (int i = 0; i < 2 * MANY && turn == 0; i++) {
            await(to_parent);
        }
    }
    for (int i = 0; i < MANY; i++) {
        wait_child(pids[i]);
    }
    close_clean(arena);
}

/* The core's mappings come by here. */
static void (*before_mapping)(void);

void *
mmap(void *at, size_t size, int access, int flags, int fd, off_t offset)
{
    void (*call)(void) = before_mapping;

    before_mapping = NULL;
    if (call != NULL) {
        call();
    }
#ifdef SYS_mmap2
    return (void *) syscall(SYS_mmap2, at, size, access, flags, fd, (long) (offset / 4096));
#else
    return (void *) syscall(SYS_mmap, at, size, access, flags, fd, offset);
#endif
}

static void
have_the_child_make_the_last(void)
{
    go(to_child);
    await(to_parent);
}

/* It found no room in what there was, and was about to make the last segment. */
static void
segment_that_another_was_quicker_to_make_is_claimed_in(void)
{
    open_arena(1);
    int pid = fork_hooked();

    if (pid == 0) {
        await(to_child);
        mpshm_run mine = claim(arena, 16);

        go(to_parent);
        await(to_child);
        CHECK_EQ(0, mpshm_abandon(&mine));
        exit(0);
    }
    mpshm_reap(arena); /* joins: that maps a page too */
    before_mapping = have_the_child_make_the_last;
    mpshm_run run = claim(arena, 16);

    CHECK_EQ(0, run.mmap_id);
    CHECK_EQ(1, run.chunk_id);
    CHECK_EQ(0, mpshm_abandon(&run));
    go(to_child);
    wait_child(pid);
    close_clean(arena);
}

/* A living holder, perhaps stopped: nobody waits for it long. */
static void
locked_segment_is_passed_over(void)
{
    open_arena(2);
    mpshm_run run = claim(arena, 16), other;
    int pid = fork_hooked();

    if (pid == 0) {
        (void) hold_lock();
        go(to_parent);
        pause();
    }
    await(to_parent);
    CHECK_EQ(0, mpshm_increase_buf(&run, 16, 0));
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&run, 16, 16));
    CHECK_EQ(16, run.capacity);
    other = claim(arena, 16);
    CHECK_EQ(1, other.mmap_id);
    CHECK_EQ(0, mpshm_abandon(&run)); /* this needs no lock */
    mpshm_reap(arena);
    CHECK_EQ(1, mpshm_arena_is_valid(arena));
    kill_child(pid);
    run = claim(arena, 1024 - 16);
    CHECK_EQ(1, run.mmap_id);
    CHECK_EQ(0, mpshm_abandon(&run));
    CHECK_EQ(0, mpshm_abandon(&other));
    close_clean(arena);
}

/* What a holder may leave when it is killed: the maps in any state. */

static void
die_before_the_first_map(void)
{
    arena_lock(arena);
    atomic_store(&arena->header->segment[0], DIR_WORD(arena->me, tiny.chunk_shift, TINY_CHUNKS));
    arena_unlock(arena);
}

static void
die_before_the_first_map_with_the_lock(void)
{
    die_before_the_first_map();
    atomic_store(&segment(0)->head->lock, arena->me);
}

static void
die_with_all_bits_cleared(void)
{
    struct segment *seg = hold_lock();

    memset(seg->map, 0, 2 * sizeof *seg->map);
    memset(seg->heads, 0, 2 * sizeof *seg->heads);
}

static void
die_with_all_bits_set(void)
{
    struct segment *seg = hold_lock();

    seg->map[0] = seg->heads[0] = ~UINT64_C(0);
    for (int i = 0; i < 2; i++) {
        atomic_store(&seg->freed[i], ~UINT64_C(0));
    }
    atomic_store(&seg->head->freed_any[0], ~UINT64_C(0));
}

/* As far as the claim came before its word was stored. */
static void
die_in_a_claim(void)
{
    struct segment *seg = hold_lock();

    freemap_clear(seg->map, 40, 24);
    freemap_set(seg->heads, 40, 1);
    atomic_store(&seg->head->high, 41);
    atomic_store(&seg->runs[40].more, EXTENT(24, 0));
}

static void
die_in_an_increase(void)
{
    mpshm_run run = claim(arena, 16);
    struct segment *seg = hold_lock();

    freemap_clear(seg->map, run.chunk_id + 1, 20);
    atomic_store(&seg->runs[run.chunk_id].more, EXTENT(21, 0));
}

static void
a_dead_holders_lock_is_taken_over_and_its_maps_are_made_anew(void)
{
    static void (*const deaths[])(void) = {die_with_all_bits_cleared, die_with_all_bits_set, die_in_a_claim,
                                           die_in_an_increase};

    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++) {
        mpshm_run runs[TINY_CHUNKS];

        open_arena(1);
        mpshm_run first = claim(arena, 3 * 16), gap = claim(arena, 16), second = claim(arena, 16);

        fill(first.data, 48, 1);
        fill(second.data, 16, 2);
        CHECK_EQ(0, mpshm_abandon(&gap));
        in_doomed_child(deaths[i]);
        CHECK(atomic_load(&segment(0)->head->lock) != 0);
        if (deaths[i] == die_in_an_increase) {
            mpshm_reap(arena); /* a run of the dead */
        }
        CHECK_EQ(TINY_CHUNKS - 4, claim_the_rest(runs));
        CHECK(is_filled(first.data, 48, 1));
        CHECK(is_filled(second.data, 16, 2));
        abandon_all(runs, TINY_CHUNKS - 4);
        CHECK_EQ(0, mpshm_abandon(&first));
        CHECK_EQ(0, mpshm_abandon(&second));
        close_clean(arena);
    }
}

static void
segment_whose_maker_died_before_its_maps_is_usable(void)
{
    static void (*const deaths[])(void) = {die_before_the_first_map, die_before_the_first_map_with_the_lock};

    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++) {
        open_arena(1);
        in_doomed_child(deaths[i]);
        CHECK_EQ(1, mpshm_arena_is_valid(arena));
        mpshm_run run = claim(arena, 1024);

        CHECK_EQ(0, run.mmap_id);
        CHECK_EQ(0, run.chunk_id);
        CHECK_EQ(0, mpshm_abandon(&run));
        close_clean(arena);
    }
}

static void
storm_of_kills_in_one_segment_loses_no_chunk(void)
{
    open_arena(1);
    mpshm_run run = claim(arena, 5 * 16);

    fill(run.data, 80, 9);
    for (int i = 0; i < 120; i++) {
        int pids[2];

        for (int k = 0; k < 2; k++) {
            pids[k] = fork_hooked();
            for (uint32_t n = 0; pids[k] == 0; n++) {
                mpshm_run mine;

                if (mpshm_get_buf(arena, 16 * (1 + n % 7), &mine) == 0) {
                    (void) mpshm_increase_buf(&mine, 32, 0);
                    fill(mine.data, mine.capacity, n);
                    CHECK(is_filled(mine.data, mine.capacity, n));
                    if (n % 3 == 0) {
                        CHECK_EQ(0, mpshm_seal(&mine, 7));
                        land(&mine, 7);
                    } else {
                        CHECK_EQ(0, mpshm_abandon(&mine));
                    }
                }
            }
        }
        usleep((useconds_t) (i * 613 % 4000));
        kill_child(pids[0]);
        kill_child(pids[1]);
    }
    CHECK(is_filled(run.data, 80, 9));
    CHECK_EQ(0, mpshm_abandon(&run));
    mpshm_reap(arena);
    CHECK_EQ(0, runs_in_use(arena) - gauges(arena).runs_in_flight);
    mpshm_arena_close(arena); /* a run that was sealed and not landed has no frame to wait for */
}

/* Crowds. */

static uint32_t
mapped_segments(void)
{
    uint32_t n = 0;

    for (uint32_t id = 0; id < SEGMENT_LIMIT; id++) {
        n += arena->segments[id] != NULL;
    }
    return n;
}

/* Each child claims a run; all live until end_crowd. */
static void
begin_crowd(int *pids, int count)
{
    for (int i = 0; i < count; i++) {
        if ((pids[i] = fork_hooked()) == 0) {
            mpshm_run run = claim(arena, 16);

            CHECK_EQ(1, mapped_segments());
            CHECK_EQ(0, mpshm_abandon(&run));
            go(to_parent);
            await(to_child);
            exit(0);
        }
        await(to_parent);
    }
}

static void
end_crowd(int *pids, int count)
{
    for (int i = 0; i < count; i++) {
        go(to_child);
    }
    for (int i = 0; i < count; i++) {
        wait_child(pids[i]);
    }
}

#define CROWD 40

/* It swept them all, so a thousand senders walked a million times through a segment. */
static void
first_claim_of_a_process_walks_through_no_segment_of_others(void)
{
    int pids[CROWD];

    open_arena(SEGMENT_LIMIT);
    begin_crowd(pids, CROWD);
    end_crowd(pids, CROWD);
    mpshm_arena_close(arena);
}

static void
claim_and_die(void)
{
    (void) claim(arena, 1024); /* all of it: what is taken over must be swept first */
}

static void
processes_that_come_and_go_beside_many_take_over_what_others_left(void)
{
    int pids[CROWD];

    open_arena(SEGMENT_LIMIT);
    begin_crowd(pids, CROWD);
    for (int i = 0; i < 3 * CROWD; i++) {
        in_doomed_child(claim_and_die);
    }
    /* Some more than CROWD and one are usual: not all owners are asked about. */
    CHECK(segment_count(arena) < 2 * CROWD);
    end_crowd(pids, CROWD);
    mpshm_reap(arena);
    mpshm_arena_close(arena);
}

/* Among many owners that live, wherever the walk begins and whatever its step is.  There are 24 segments, and most
   steps have a divisor in common with 24. */
static void
the_only_segment_that_was_left_is_always_found(void)
{
    enum { LIVING = 23 };
    int pids[LIVING];
    uint32_t count = 0;

    open_arena(SEGMENT_LIMIT);
    begin_crowd(pids, LIVING);
    for (int i = 0; i < 30; i++) {
        int pid = fork_hooked();

        if (pid == 0) {
            mpshm_run run = claim(arena, 1024);

            CHECK_EQ(0, mpshm_abandon(&run));
            mpshm_arena_close(arena);
            exit(0);
        }
        wait_child(pid);
        count = i == 0 ? segment_count(arena) : count;
        CHECK_EQ(count, segment_count(arena));
    }
    end_crowd(pids, LIVING);
    mpshm_reap(arena);
    mpshm_arena_close(arena);
}

/* Hints. */

static void
hint(struct segment *seg, uint32_t at)
{
    atomic_fetch_or(&seg->freed[at / 64], UINT64_C(1) << (at % 64));
    atomic_fetch_or(&seg->head->freed_any[0], UINT64_C(1) << (at / 64));
}

/* A process that freed a run was slow to tell: the chunks have been lent again since. */
static void
late_hints_free_nothing(void)
{
    mpshm_run runs[TINY_CHUNKS];

    open_arena(1);
    mpshm_run run = claim(arena, 5 * 16), gap = claim(arena, 16), flying = claim(arena, 32);
    struct segment *seg = segment(0);

    CHECK_EQ(0, mpshm_abandon(&gap));
    CHECK_EQ(0, mpshm_seal(&flying, 32));
    for (uint32_t at = 0; at < 2 * 64; at++) { /* first chunks, interior, free ones, past the end */
        hint(seg, at);
    }
    atomic_store(&seg->head->freed_any[0], ~UINT64_C(0)); /* of words that are not there */
    uint32_t n = claim_the_rest(runs);

    CHECK_EQ(TINY_CHUNKS - 7, n);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(runs[i].chunk_id == 5 || runs[i].chunk_id >= 8);
    }
    abandon_all(runs, n);
    CHECK_EQ(0, mpshm_abandon(&run));
    land(&flying, 32);
    CHECK_EQ(TINY_CHUNKS, free_chunks());
    close_clean(arena);
}

/* As many chunks as a segment can have, which 256 MiB in chunks of 4 KiB are, and each larger power of two.  Once
   the last word of hints was taken for one more, which is the free map's first. */
static void
longest_maps_keep_their_first_chunks(void)
{
    mpshm_geometry geometry = {.stride = UINT64_C(1) << 40, .segment_bytes = 64 << 20, .segment_limit = 8,
                               .chunk_shift = 12};

    arena = arena_of(geometry);
    for (int i = 0; i < 5; i++) {
        mpshm_run run = claim(arena, (uint64_t) CHUNK_LIMIT << geometry.chunk_shift);

        CHECK_EQ(0, run.mmap_id);
        CHECK_EQ(0, mpshm_abandon(&run));
    }
    CHECK_EQ(CHUNK_LIMIT, segment(0)->count);
    CHECK_EQ(CHUNK_LIMIT, free_chunks());
    CHECK_EQ(1, segment_count(arena));
    close_clean(arena);
}

/* The first bit of two tells the word, the second the bit: whichever is late, the run's own comes. */
static void
a_hint_that_comes_twice_frees_once(void)
{
    mpshm_run runs[TINY_CHUNKS];

    open_arena(1);
    mpshm_run run = claim(arena, 32);
    struct segment *seg = segment(0);

    CHECK_EQ(0, mpshm_abandon(&run));
    run = claim(arena, 16); /* chunk 0 again, and shorter */
    CHECK_EQ(0, run.chunk_id);
    hint(seg, 0);
    CHECK_EQ(TINY_CHUNKS - 1, claim_the_rest(runs));
    abandon_all(runs, TINY_CHUNKS - 1);
    CHECK_EQ(0, mpshm_abandon(&run));
    hint(seg, 0);
    CHECK_EQ(TINY_CHUNKS, free_chunks());
    hint(seg, 0);
    CHECK_EQ(TINY_CHUNKS, free_chunks());
    close_clean(arena);
}

static void
free_without_a_word(void)
{
    mpshm_run run = claim(arena, 20 * 16);
    struct segment *seg = segment(run.mmap_id);

    atomic_store(&seg->runs[run.chunk_id].word, RUN_WORD(run.tag, 0, RUN_FREE));
}

/* Killed between freeing a run and telling of it. */
static void
chunks_freed_without_a_hint_are_found_after_the_next_sweep(void)
{
    open_arena(1);
    mpshm_run run = claim(arena, 16);

    in_doomed_child(free_without_a_word);
    CHECK_EQ(TINY_CHUNKS - 21, free_chunks());
    mpshm_reap(arena);
    mpshm_run rest = claim(arena, 1024 - 16);

    CHECK_EQ(1, rest.chunk_id);
    CHECK_EQ(0, mpshm_abandon(&rest));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

/* Its frame is out, and another holds the lock: the chunks that the message does not need are free when it is. */
static void
tail_that_could_not_be_given_back_goes_with_its_run(void)
{
    open_arena(1);
    mpshm_run run = claim(arena, 1024), rest;
    int pid = fork_hooked();
    char *data;

    if (pid == 0) {
        struct segment *seg = hold_lock();

        go(to_parent);
        await(to_child);
        segment_unlock(seg);
        exit(0);
    }
    await(to_parent);
    CHECK_EQ(0, mpshm_seal(&run, 17));
    CHECK_EQ(1024, gauges(arena).bytes_in_flight);
    go(to_child);
    wait_child(pid);
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 0, 1024, run.tag, &data));
    CHECK_EQ(MPSHM_E_STALE, mpshm_lease(arena, 0, 0, 32, run.tag, &data));
    CHECK_EQ(0, mpshm_lease(arena, 0, 0, 17, run.tag, &data));
    CHECK_EQ(-ENOSPC, mpshm_get_buf(arena, 16, &rest));
    mpshm_release(data);
    CHECK_EQ(TINY_CHUNKS, free_chunks());
    close_clean(arena);
}

static const struct test tests[] = {
    TEST(a_living_owner_keeps_its_segment),
    TEST(segments_of_a_dead_owner_are_taken_over),
    TEST(a_closed_arena_leaves_its_segments_to_others),
    TEST(a_crowded_directory_is_shared_and_keeps_room_for_the_large),
    TEST(processes_claim_in_one_segment_and_share_no_chunk),
    TEST(three_hundred_processes_in_few_segments_all_get_chunks),
    TEST(segment_that_another_was_quicker_to_make_is_claimed_in),
    TEST(locked_segment_is_passed_over),
    TEST(a_dead_holders_lock_is_taken_over_and_its_maps_are_made_anew),
    TEST(segment_whose_maker_died_before_its_maps_is_usable),
    TEST(storm_of_kills_in_one_segment_loses_no_chunk),
    TEST(first_claim_of_a_process_walks_through_no_segment_of_others),
    TEST(processes_that_come_and_go_beside_many_take_over_what_others_left),
    TEST(the_only_segment_that_was_left_is_always_found),
    TEST(late_hints_free_nothing),
    TEST(a_hint_that_comes_twice_frees_once),
    TEST(longest_maps_keep_their_first_chunks),
    TEST(chunks_freed_without_a_hint_are_found_after_the_next_sweep),
    TEST(tail_that_could_not_be_given_back_goes_with_its_run),
};
RUN_TESTS(tests)
