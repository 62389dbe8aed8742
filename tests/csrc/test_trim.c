/* Trimming: what is free and not used lately goes back, and nothing else; whoever else is at work, dies or lies. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define LEAST (24 * MIB) /* what stays warm of one segment */

static bool
trim_whole(mpshm_arena *of, const void *what)
{
    (void) of;
    (void) what;
    return false;
}

static mpshm_arena *arena;

/* Segments as large as the package's. */
static mpshm_geometry
large(void)
{
    return (mpshm_geometry) {.stride = 80 * MIB, .segment_bytes = 64 * MIB, .segment_limit = 40, .chunk_shift = 12};
}

/* Segments of 1 MiB; what is longer gets one to size. */
static mpshm_geometry
short_ones(void)
{
    return (mpshm_geometry) {.stride = 66 * MIB, .segment_bytes = MIB, .segment_limit = 40, .chunk_shift = 12};
}

static struct segment_head *
head_of(uint32_t id)
{
    return arena->segments[id]->head;
}

static uint64_t
resident(void)
{
    struct stat status;

    CHECK_EQ(0, fstat(mpshm_arena_fd(arena), &status));
    return (uint64_t) status.st_blocks * 512;
}

/* Write a run of that size full and let go of it. */
static void
use(uint64_t size)
{
    mpshm_run run = claim(arena, size);

    memset(run.data, 1, size);
    CHECK_EQ(0, mpshm_abandon(&run));
}

/* As if a period were over: whoever comes next looks. */
static void
pass_period(void)
{
    atomic_store(&arena->header->trimmed, 0);
    for (uint32_t id = 0; id < arena->segment_limit; id++) {
        if (arena->segments[id] != NULL) {
            head_of(id)->period = 0;
        }
    }
}

static void
look(void)
{
    pass_period();
    trim_if_due(arena, trim_whole, NULL);
}

/* Not used lately. */

static void
what_nobody_has_used_for_two_periods_goes_back(void)
{
    arena = arena_of(large());
    uint64_t before = resident();

    use(60 * MIB);
    look();
    CHECK(resident() >= before + 60 * MIB);
    look();
    CHECK(resident() <= before + LEAST + MIB);
    CHECK(resident() >= before + LEAST - MIB);
    close_clean(arena);
}

static void
what_is_used_in_each_period_stays(void)
{
    arena = arena_of(large());
    use(60 * MIB);
    for (int i = 0; i < 5; i++) {
        look();
        use(60 * MIB);
    }
    CHECK_EQ(0, head_of(0)->punched);
    close_clean(arena);
}

static void
a_second_look_in_a_period_gives_nothing_back(void)
{
    arena = arena_of(large());
    use(60 * MIB);
    look();
    trim_if_due(arena, trim_whole, NULL);
    trim_if_due(arena, trim_whole, NULL);
    CHECK_EQ(0, head_of(0)->punched);
    close_clean(arena);
}

static void
what_is_kept_is_divided_among_the_segments(void)
{
    mpshm_run runs[30];

    arena = arena_of(short_ones());
    for (int i = 0; i < 30; i++) {
        runs[i] = claim(arena, MIB);
        memset(runs[i].data, 1, MIB);
    }
    uint64_t full = resident();

    for (int i = 0; i < 30; i++) {
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    look();
    look();
    uint64_t given = full - resident();

    CHECK(given >= 5 * MIB);
    CHECK(given <= 7 * MIB);
    close_clean(arena);
}

/* Of runs larger than a segment, each has one of its own. */
static void
of_segments_made_to_size_the_largest_alone_stays_warm(void)
{
    arena = arena_of(short_ones());
    uint64_t before = resident();

    for (uint64_t size = 4; size < 20; size++) {
        use(size * MIB);
        trim_if_due(arena, trim_whole, NULL);
        CHECK(resident() <= before + (size + 2) * MIB + size * MIB / 2);
    }
    CHECK(resident() >= before + 19 * MIB);
    CHECK_EQ(16, segment_count(arena));
    close_clean(arena);
}

/* Asked for. */

static void
a_trim_gives_all_back_and_says_how_much(void)
{
    arena = arena_of(large());
    use(MIB);
    CHECK_EQ(MIB, mpshm_trim(arena));
    uint64_t before = resident();

    use(8 * MIB);
    CHECK(resident() >= before + 8 * MIB);
    CHECK_EQ(8 * MIB, mpshm_trim(arena));
    CHECK_EQ(before, resident());
    CHECK_EQ(0, mpshm_trim(arena));
    close_clean(arena);
}

static void
a_trim_of_an_arena_without_segments_gives_nothing(void)
{
    arena = arena_of(large());
    CHECK_EQ(0, mpshm_trim(arena));
    close_clean(arena);
}

static void
memory_goes_back_a_slice_at_a_time(void)
{
    arena = arena_of(large());
    use(8 * MIB);
    CHECK_EQ(8 * MIB, mpshm_trim(arena));
    CHECK_EQ(4, head_of(0)->punched);
    close_clean(arena);
}

static bool
at_once(mpshm_arena *any, const void *what)
{
    (void) any;
    (void) what;
    return true;
}

static void
one_who_is_called_away_leaves_the_rest_to_the_next(void)
{
    arena = arena_of(large());
    use(40 * MIB);
    look();
    look();
    uint32_t whole = head_of(0)->punched;

    use(40 * MIB);
    look();
    pass_period();
    for (uint32_t i = 1; i <= whole; i++) {
        trim_if_due(arena, at_once, NULL);
        CHECK_EQ(whole + i, head_of(0)->punched);
    }
    trim_if_due(arena, at_once, NULL);
    trim_if_due(arena, at_once, NULL);
    CHECK_EQ(2 * whole, head_of(0)->punched);
    close_clean(arena);
}

static void
a_large_release_gives_back(void)
{
    arena = arena_of(large());
    use(40 * MIB);
    look();
    pass_period();
    char *small = lease_new(arena, 1000, 1), *view = lease_new(arena, MIB, 1);

    atomic_store(&arena->header->trimmed, 0);
    head_of(0)->lent_before = head_of(0)->lent_to = 0;
    head_of(0)->period = 0;
    mpshm_release(small);
    CHECK_EQ(0, head_of(0)->punched);
    mpshm_release(view);
    CHECK(head_of(0)->punched > 0);
    close_clean(arena);
}

/* What is in use. */

static void
what_is_in_use_keeps_its_bytes(void)
{
    enum { COUNT = 30, SIZE = 100000 };
    mpshm_run runs[COUNT];
    char *views[COUNT];

    arena = arena_of(large());
    for (unsigned i = 0; i < COUNT; i++) {
        runs[i] = claim(arena, SIZE);
        fill(runs[i].data, SIZE, i);
        if (i % 3 == 1) {
            CHECK_EQ(0, mpshm_seal(&runs[i], SIZE));
        }
        if (i % 3 == 2) {
            CHECK_EQ(0, mpshm_abandon(&runs[i]));
            views[i] = lease_new(arena, SIZE, i);
        }
    }
    for (unsigned i = 0; i < COUNT; i += 6) { /* loans */
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    CHECK(mpshm_trim(arena) > 0);
    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 6 == 3) {
            CHECK(is_filled(runs[i].data, SIZE, i));
            CHECK_EQ(0, mpshm_abandon(&runs[i]));
        }
        if (i % 3 == 1) {
            CHECK_EQ(0, mpshm_lease(arena, runs[i].mmap_id, runs[i].chunk_id, SIZE, runs[i].tag, &views[i]));
        }
        if (i % 3 != 0) {
            CHECK(is_filled(views[i], SIZE, i));
            mpshm_release(views[i]);
        }
    }
    close_clean(arena);
}

/* Chunks of 256 bytes: of a page that one of them is used of, none goes back. */
static void
of_a_page_in_use_nothing_goes_back(void)
{
    enum { COUNT = 201, SIZE = 700 };
    mpshm_run runs[COUNT];

    arena = arena_of(large());
    for (unsigned i = 0; i < COUNT; i++) {
        arena_lock(arena);
        CHECK_EQ(0, run_claim(arena, SIZE, true, &runs[i]));
        arena_unlock(arena);
        fill(runs[i].data, SIZE, i);
    }
    uint64_t full = resident();

    for (unsigned i = 0; i < COUNT; i++) {
        if (i % 4 != 0) {
            CHECK_EQ(0, mpshm_abandon(&runs[i]));
        }
    }
    CHECK_EQ(0, mpshm_trim(arena));
    CHECK_EQ(full, resident());
    for (unsigned i = 0; i < COUNT; i += 4) {
        CHECK(is_filled(runs[i].data, SIZE, i));
        CHECK_EQ(0, mpshm_abandon(&runs[i]));
    }
    uint64_t given = mpshm_trim(arena);

    CHECK(given >= COUNT * 768);
    CHECK_EQ(full - given, resident());
    close_clean(arena);
}

static void
views_that_a_fork_has_made_private_keep_their_bytes(void)
{
    arena = arena_of(large());
    char *view = lease_new(arena, MIB, 1), *gone = lease_new(arena, MIB, 2);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_release(gone);
        (void) mpshm_trim(arena);
        CHECK(is_filled(view, MIB, 1));
        mpshm_release(view);
        (void) mpshm_trim(arena);
        _exit(0);
    }
    (void) mpshm_trim(arena);
    CHECK(is_filled(view, MIB, 1));
    CHECK(is_filled(gone, MIB, 2));
    wait_child(pid);
    mpshm_release(gone);
    CHECK_EQ(MIB, mpshm_trim(arena));
    CHECK(is_filled(view, MIB, 1));
    mpshm_release(view);
    CHECK_EQ(MIB, mpshm_trim(arena));
    close_clean(arena);
}

/* Others at work. */

static void
a_segment_that_is_locked_is_left(void)
{
    arena = arena_of(large());
    use(MIB);
    arena_lock(arena);
    CHECK(segment_try_lock(arena->segments[0]));
    arena_unlock(arena);
    CHECK_EQ(0, mpshm_trim(arena));
    CHECK_EQ(1, head_of(0)->refused);
    segment_unlock(arena->segments[0]);
    CHECK_EQ(MIB, mpshm_trim(arena));
    close_clean(arena);
}

/* Each used to go elsewhere whenever it met the trimmer. */
static void
senders_beside_a_trimmer_make_no_segments(void)
{
    arena = arena_of(large());
    use(4 * MIB);
    int pid = fork_hooked();

    if (pid == 0) {
        for (;;) {
            (void) mpshm_trim(arena);
        }
    }
    while (atomic_load(&head_of(0)->punched) < 50) {
        use(4 * MIB);
    }
    for (int i = 0; i < 300; i++) {
        use(4 * MIB);
    }
    CHECK(segment_count(arena) < 10);
    kill_child(pid);
    mpshm_reap(arena);
    close_clean(arena);
}

static void
the_child_of_a_fork_trims(void)
{
    arena = arena_of(large());
    use(5 * MIB);
    int pid = fork_hooked();

    if (pid == 0) {
        CHECK_EQ(5 * MIB, mpshm_trim(arena));
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(0, mpshm_trim(arena));
    use(5 * MIB);
    CHECK_EQ(5 * MIB, mpshm_trim(arena));
    close_clean(arena);
}

/* Threads that are inside a call have a reference, which the child has nobody to give back for. */
static void
a_fork_beside_a_trim_leaves_the_child_no_reference(void)
{
    arena = arena_of(large());
    use(MIB);
    process_lock();
    arena_visit(arena);
    process_unlock();
    int pid = fork_hooked();

    if (pid == 0) {
        int fd = mpshm_arena_fd(arena);

        mpshm_arena_close(arena);
        CHECK_EQ(-1, fcntl(fd, F_GETFD));
        _exit(0);
    }
    wait_child(pid);
    arena_leave(arena);
    close_clean(arena);
}

static void
die_before_the_punch(void)
{
    struct segment *seg = arena->segments[0];

    arena_lock(arena);
    CHECK(segment_try_lock(seg));
    freemap_clear(seg->touched, 0, seg->count);
    atomic_fetch_add(&seg->head->punched, 1);
}

static void
a_trimmer_killed_before_its_punch_costs_nothing_but_time(void)
{
    arena = arena_of(large());
    use(8 * MIB);
    uint64_t full = resident();

    in_doomed_child(die_before_the_punch);
    mpshm_reap(arena);
    CHECK_EQ(0, mpshm_trim(arena));
    CHECK_EQ(full, resident());
    use(8 * MIB);
    CHECK_EQ(8 * MIB, mpshm_trim(arena));
    CHECK(resident() <= full - 8 * MIB);
    close_clean(arena);
}

static void
copy_in(mpshm_arena *to, char *data, uint64_t size)
{
    mpshm_run run = claim(to, size);

    CHECK_EQ(0, mpshm_copy_in(&run, 0, data, size));
    CHECK_EQ(0, mpshm_abandon(&run));
}

#define ANOTHER_SECOND (1 << 14)
/* As if `page` had been made huge in another second, far from this one. */
static void
pass_second(struct segment *seg, uint32_t page)
{
    seg->warm[page] ^= ANOTHER_SECOND;
}

static void
punched_memory_is_made_huge_again_by_others_too(void)
{
    mpshm_geometry geometry = large();

    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_MEMFD, "trim", 1, NULL, &arena));
    mpshm_arena *other = attach_again(arena);
    char *data = calloc(1, 8 * MIB);

    copy_in(other, data, 8 * MIB);
    struct segment *seg = other->segments[0];
    uint16_t before = seg->warm[1];

    CHECK(before != 0);
    pass_second(seg, 1);
    copy_in(other, data, 8 * MIB);
    CHECK_EQ(before ^ ANOTHER_SECOND, seg->warm[1]); /* once is enough */
    CHECK_EQ(8 * MIB, mpshm_trim(arena));
    copy_in(other, data, 8 * MIB);
    CHECK((seg->warm[1] & 255) != (before & 255));
    free(data);
    mpshm_arena_close(other);
    close_clean(arena);
}

/* It takes milliseconds on a busy machine. */
static void
what_stayed_when_memory_was_given_back_is_not_made_huge_again(void)
{
    arena = arena_of(large());
    char *data = calloc(1, 8 * MIB);

    copy_in(arena, data, 8 * MIB);
    struct segment *seg = arena->segments[0];
    uint16_t before = seg->warm[1] ^ ANOTHER_SECOND;
    mpshm_run low = claim(arena, 8 * MIB);

    use(8 * MIB);
    CHECK_EQ(8 * MIB, mpshm_trim(arena));
    CHECK_EQ(0, mpshm_abandon(&low));
    pass_second(seg, 1);
    copy_in(arena, data, 8 * MIB);
    CHECK_EQ(before, seg->warm[1]);
    free(data);
    close_clean(arena);
}

static void
a_process_without_the_file_leaves_it_to_others(void)
{
    arena = arena_of(large());
    use(40 * MIB);
    look();
    pass_period();
    int fd = mpshm_arena_fd(arena), kept = dup(fd), null = open("/dev/null", O_RDWR);

    CHECK_EQ(fd, dup2(null, fd));
    trim_if_due(arena, trim_whole, NULL);
    CHECK_EQ(0, mpshm_trim(arena));
    CHECK_EQ(0, head_of(0)->punched);
    CHECK_EQ(0, arena->header->trimmed);
    CHECK_EQ(fd, dup2(kept, fd));
    trim_if_due(arena, trim_whole, NULL);
    CHECK(head_of(0)->punched > 0);
    close(kept);
    close(null);
    close_clean(arena);
}

/* A file system that may run full. */

static void
open_bounded(void)
{
    mpshm_geometry geometry = large();

    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_SHM, "trim", 0, NULL, &arena));
    CHECK(arena->bounded);
}

static void
bounded_chunks_have_memory_when_they_are_lent(void)
{
    open_bounded();
    use(4096);
    uint64_t before = resident();

    for (int i = 0; i < 2; i++) {
        mpshm_run run = claim(arena, 6 * MIB);

        CHECK(resident() >= before + 6 * MIB - 4096);
        CHECK_EQ(0, mpshm_abandon(&run));
        CHECK(mpshm_trim(arena) >= 6 * MIB);
        CHECK(resident() <= before);
    }
    close_clean(arena);
}

/* /dev/shm of that size, for this process alone: false, if this machine does not let us. */
static bool
small_shm(const char *size)
{
    if ((unshare(CLONE_NEWNS) == -1 && unshare(CLONE_NEWUSER | CLONE_NEWNS) == -1)
        || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == -1
        || mount("tmpfs", "/dev/shm", "tmpfs", 0, size) == -1) {
        fprintf(stderr, "left out: no mount of a small /dev/shm here (%s)\n", strerror(errno));
        return false;
    }
    return true;
}

/* Claim all there is, and write to all of it. */
static uint32_t
claim_all(mpshm_run runs[], uint32_t most, uint64_t size)
{
    uint32_t count = 0;

    while (count < most && mpshm_get_buf(arena, size, &runs[count]) == 0) {
        memset(runs[count].data, (int) count, size);
        count++;
    }
    return count;
}

static void
a_full_file_system_refuses_a_claim_and_no_touch(void)
{
    enum { MOST = 200 };
    static mpshm_run runs[MOST];

    if (!small_shm("size=40m")) {
        return;
    }
    open_bounded();
    uint32_t first = 0;

    for (int i = 0; i < 5; i++) {
        uint32_t count = claim_all(runs, MOST, MIB);

        CHECK(count > 20 && count < 40);
        first = i == 0 ? count : first;
        CHECK_EQ(first, count);
        for (uint32_t k = 0; k < count; k++) {
            CHECK_EQ((char) k, runs[k].data[0]);
            CHECK_EQ((char) k, runs[k].data[MIB - 1]);
            CHECK_EQ(0, mpshm_abandon(&runs[k]));
        }
        CHECK_EQ(count * MIB, mpshm_trim(arena));
    }
    close_clean(arena);
}

/* They would take what little memory there is for their heads. */
static void
claims_that_are_refused_make_no_segments(void)
{
    mpshm_run run;

    if (!small_shm("size=40m")) {
        return;
    }
    open_bounded();
    use(4096);
    for (uint64_t i = 0; i < 50; i++) {
        CHECK_EQ(-ENOSPC, mpshm_get_buf(arena, (39 + i / 2) * MIB, &run));
    }
    CHECK_EQ(1, segment_count(arena));
    use(20 * MIB);
    close_clean(arena);
}

static void
bounded_chunks_have_memory_without_the_descriptor(void)
{
    enum { MOST = 200 };
    static mpshm_run runs[MOST];

    if (!small_shm("size=40m")) {
        return;
    }
    open_bounded();
    use(4096);
    int fd = mpshm_arena_fd(arena), kept = dup(fd), null = open("/dev/null", O_RDWR);

    CHECK_EQ(fd, dup2(null, fd));
    uint32_t count = claim_all(runs, MOST, MIB);

    CHECK(count > 20 && count < 40);
    for (uint32_t k = 0; k < count; k++) {
        CHECK_EQ((char) k, runs[k].data[0]);
        CHECK_EQ((char) k, runs[k].data[MIB - 1]);
        CHECK_EQ(0, mpshm_abandon(&runs[k]));
    }
    CHECK_EQ(fd, dup2(kept, fd));
    close(kept);
    close(null);
    close_clean(arena);
}

/* Forged words. */

static uint64_t
next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33 ^ *state << 20;
}

/* One of the hints, or all of `touched`, is whatever somebody likes. */
static void
forge(uint64_t *random)
{
    uint64_t kind = next_random(random) % 8, value = next_random(random);
    uint32_t odd = value % 3 == 0 ? UINT32_MAX : value % 3 == 1 ? 0 : (uint32_t) value;
    struct segment *seg = arena->segments[0];

    switch (kind) {
    case 0:
        seg->head->lent_to = odd;
        break;
    case 1:
        seg->head->lent_before = odd;
        break;
    case 2:
        seg->head->period = odd;
        break;
    case 3:
        atomic_store(&arena->header->trim_soon, value % 2 ? (uint32_t) value % 5 : odd);
        break;
    case 4:
        atomic_store(&arena->header->trimmed, odd);
        break;
    case 5:
        atomic_store(&seg->head->punched, odd);
        break;
    default:
        for (uint64_t i = 0; i < map_words(seg->count); i++) {
            seg->touched[i] = kind == 6 ? UINT64_MAX : next_random(random);
        }
    }
}

static void
forged_hints_cost_nothing_but_memory_and_time(void)
{
    uint64_t random = 1;

    arena = arena_of(short_ones());
    use(MIB);
    char *view = lease_new(arena, 100000, 7);

    for (int i = 0; i < 2000; i++) {
        forge(&random);
        trim_if_due(arena, i % 3 ? trim_whole : i % 2 ? at_once : NULL, NULL);
        if (i % 10 == 0) {
            (void) mpshm_trim(arena);
        }
        if (i % 50 == 0) {
            use(500000);
            CHECK(is_filled(view, 100000, 7));
        }
    }
    mpshm_release(view);
    atomic_store(&arena->header->trim_soon, 0);
    (void) mpshm_trim(arena);
    use(MIB);
    CHECK(mpshm_trim(arena) >= MIB);
    close_clean(arena);
}

static void
forged_directories_cost_nothing(void)
{
    uint64_t random = 2, words[40];

    arena = arena_of(short_ones());
    use(MIB);
    char *view = lease_new(arena, 100000, 7);

    for (uint32_t id = 0; id < 40; id++) {
        words[id] = atomic_load(&arena->header->segment[id]);
    }
    for (int i = 0; i < 300; i++) {
        for (uint32_t id = 0; id < 40; id++) {
            atomic_store(&arena->header->segment[id], next_random(&random) << (i % 30));
        }
        atomic_store(&arena->header->trim_soon, (uint32_t) i % 4);
        look();
        (void) mpshm_trim(arena);
        CHECK(is_filled(view, 100000, 7));
        for (uint32_t id = 1; id < 40; id++) { /* whatever it took for one */
            if (arena->segments[id] != NULL) {
                process_lock();
                segment_unmap(arena->segments[id]);
                process_unlock();
            }
        }
    }
    for (uint32_t id = 0; id < 40; id++) {
        atomic_store(&arena->header->segment[id], words[id]);
    }
    mpshm_release(view);
    close_clean(arena);
}

/* The maps change while they are looked at. */
static void
a_peer_that_scribbles_stops_no_trimmer(void)
{
    arena = arena_of(short_ones());
    use(MIB);
    struct segment *seg = arena->segments[0];
    int pid = fork_hooked();

    if (pid == 0) {
        for (uint64_t random = 3;;) {
            seg->touched[next_random(&random) % map_words(seg->count)] = next_random(&random);
            seg->map[next_random(&random) % map_words(seg->count)] = next_random(&random);
        }
    }
    for (int i = 0; i < 300; i++) {
        (void) mpshm_trim(arena);
        look();
    }
    kill_child(pid);
    seg->head->made = 0; /* the maps anew */
    use(MIB);
    close_clean(arena);
}

static const struct test tests[] = {
    TEST_THAT_NEEDS(madvice, what_nobody_has_used_for_two_periods_goes_back),
    TEST(what_is_used_in_each_period_stays),
    TEST(a_second_look_in_a_period_gives_nothing_back),
    TEST_THAT_NEEDS(madvice, what_is_kept_is_divided_among_the_segments),
    TEST_THAT_NEEDS(madvice, of_segments_made_to_size_the_largest_alone_stays_warm),
    TEST_THAT_NEEDS(madvice, a_trim_gives_all_back_and_says_how_much),
    TEST(a_trim_of_an_arena_without_segments_gives_nothing),
    TEST(memory_goes_back_a_slice_at_a_time),
    TEST(one_who_is_called_away_leaves_the_rest_to_the_next),
    TEST(a_large_release_gives_back),
    TEST(what_is_in_use_keeps_its_bytes),
    TEST_THAT_NEEDS(madvice, of_a_page_in_use_nothing_goes_back),
    TEST(views_that_a_fork_has_made_private_keep_their_bytes),
    TEST(a_segment_that_is_locked_is_left),
    TEST(senders_beside_a_trimmer_make_no_segments),
    TEST(the_child_of_a_fork_trims),
    TEST(a_fork_beside_a_trim_leaves_the_child_no_reference),
    TEST_THAT_NEEDS(madvice, a_trimmer_killed_before_its_punch_costs_nothing_but_time),
    TEST_THAT_NEEDS(madvice, punched_memory_is_made_huge_again_by_others_too),
    TEST(what_stayed_when_memory_was_given_back_is_not_made_huge_again),
    TEST(a_process_without_the_file_leaves_it_to_others),
    TEST_THAT_NEEDS(madvice, bounded_chunks_have_memory_when_they_are_lent),
    TEST(a_full_file_system_refuses_a_claim_and_no_touch),
    TEST(claims_that_are_refused_make_no_segments),
    TEST_THAT_NEEDS(madvice, bounded_chunks_have_memory_without_the_descriptor),
    TEST(forged_hints_cost_nothing_but_memory_and_time),
    TEST(forged_directories_cost_nothing),
    TEST(a_peer_that_scribbles_stops_no_trimmer),
};
RUN_TESTS(tests)
