/* Arenas: making, attaching, the limits of the process, and a walker that sees damage. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* As an arena of this process's family has it. */
static struct arena_header
good_header(void)
{
    mpshm_arena *arena = arena_of(tiny);
    struct arena_header header = *arena->header;

    mpshm_arena_close(arena);
    return header;
}

static uint64_t
bytes_of(const struct arena_header *header)
{
    return header->head_bytes + header->segment_limit * header->stride;
}

/* The family's roster has a descriptor that stays: the first arena makes it. */
static int
descriptors_with_a_family(void)
{
    mpshm_arena_close(arena_of(tiny));
    return open_descriptors();
}

/* What attaching to a file with this header says; the descriptor stays the caller's on failure. */
static int
attach_file(struct arena_header header, uint64_t file_bytes)
{
    mpshm_arena *arena = NULL;
    int fd = memfd_create("forged", MFD_CLOEXEC);

    CHECK(fd != -1);
    CHECK_EQ(0, ftruncate(fd, (off_t) file_bytes));
    CHECK_EQ(sizeof header, pwrite(fd, &header, sizeof header, 0));
    int error = mpshm_arena_attach(fd, &arena);

    if (error == 0) {
        mpshm_arena_close(arena);
        CHECK_EQ(-1, fcntl(fd, F_GETFD));
    } else {
        CHECK(arena == NULL);
        CHECK_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
        close(fd);
    }
    return error;
}

static void
attach_checks_magic(void)
{
    struct arena_header header = good_header();
    uint64_t size = bytes_of(&header), id = 1;
    mpshm_arena *arena;
    int ends[2];

    CHECK_EQ(0, attach_file(header, size));
    header.magic ^= 1;
    CHECK_EQ(MPSHM_E_MAGIC, attach_file(header, size));
    CHECK_EQ(0, pipe(ends));
    CHECK_EQ(MPSHM_E_MAGIC, mpshm_arena_attach(ends[0], &arena));
    CHECK_EQ(MPSHM_E_MAGIC, mpshm_arena_identity(ends[0], &id));
    CHECK_EQ(0, id);
    close(ends[0]);
    close(ends[1]);
    CHECK_EQ(-EBADF, mpshm_arena_attach(ends[0], &arena));
    int empty = memfd_create("empty", MFD_CLOEXEC);

    CHECK_EQ(MPSHM_E_MAGIC, mpshm_arena_attach(empty, &arena));
    close(empty);
}

static void
attach_checks_abi(void)
{
    struct arena_header header = good_header();

    header.abi = MPSHM_ABI + 1;
    CHECK_EQ(MPSHM_E_ABI, attach_file(header, bytes_of(&header)));
}

static void
attach_checks_geometry(void)
{
    const struct arena_header good = good_header();
    struct arena_header header = good;
    uint64_t size = bytes_of(&good);

    CHECK_EQ(MPSHM_E_GEOMETRY, attach_file(header, size - 1));
    CHECK_EQ(MPSHM_E_GEOMETRY, attach_file(header, size + 1));
#define REFUSED(field, value)                                                                  \
    header = good;                                                                             \
    header.field = (value);                                                                    \
    CHECK_EQ(MPSHM_E_GEOMETRY, attach_file(header, size))
    REFUSED(segment_limit, 0);
    REFUSED(segment_limit, 5);
    REFUSED(segment_limit, SEGMENT_LIMIT + 1);
    REFUSED(segment_limit, UINT32_MAX);
    REFUSED(stride, 0);
    REFUSED(stride, SMALL_ALIGN + 8);
    REFUSED(stride, UINT64_C(1) << 60);
    REFUSED(stride, UINT64_MAX - SMALL_ALIGN + 1);
    REFUSED(chunk_shift, 3);
    REFUSED(chunk_shift, 31);
    REFUSED(head_bytes, good.head_bytes - SMALL_ALIGN);
    REFUSED(head_bytes, good.head_bytes + SMALL_ALIGN);
    REFUSED(head_bytes, 0);
    REFUSED(slots, RING_SLOTS); /* a ring, and no queue's */
    REFUSED(slot_bytes, 100);
    REFUSED(slot_bytes, MPSHM_SLOT_BYTES); /* a queue's, and no ring */
#undef REFUSED
}

static void
attach_checks_a_queues_geometry(void)
{
    mpshm_arena *arena = queue_arena_of(tiny, 0, 0, 0);
    const struct arena_header good = *arena->header;
    struct arena_header header = good;

    mpshm_arena_close(arena);
    CHECK_EQ(0, attach_file(header, bytes_of(&good)));
#define REFUSED(field, value)                                                                  \
    header = good;                                                                             \
    header.field = (value);                                                                    \
    CHECK_EQ(MPSHM_E_GEOMETRY, attach_file(header, bytes_of(&good)))
    REFUSED(slots, RING_SLOTS / 2);
    REFUSED(slots, RING_SLOTS + 1);
    REFUSED(slots, 2 * RING_SLOTS); /* more than the file holds */
    REFUSED(slots, 2 * RING_SLOTS_MOST);
    REFUSED(slots, UINT32_MAX);
    REFUSED(slot_bytes, MPSHM_SLOT_BYTES + 8);
    REFUSED(overflowing, 0); /* the file is longer then */
#undef REFUSED
}

/* Its words name processes, and nobody here knows by which roster. */
static void
attach_checks_the_roster(void)
{
    struct arena_header header = good_header();
    uint64_t size = bytes_of(&header);

    header.roster_id++;
    CHECK_EQ(MPSHM_E_ROSTER, attach_file(header, size));
    header.roster_id = 0; /* in the file itself, where none is */
    CHECK_EQ(MPSHM_E_MAGIC, attach_file(header, size));
    CHECK(mpshm_process.arenas == NULL);
}

static void
create_refuses_a_geometry_that_cannot_be(void)
{
    static const mpshm_geometry bad[] = {
        {.stride = 3 << 16, .segment_bytes = 1024, .segment_limit = 0, .chunk_shift = 4},
        {.stride = 3 << 16, .segment_bytes = 1024, .segment_limit = 497, .chunk_shift = 4},
        {.stride = 3 << 16, .segment_bytes = 1024, .segment_limit = 4, .chunk_shift = 3},
        {.stride = 3 << 16, .segment_bytes = 1024, .segment_limit = 4, .chunk_shift = 31},
        {.stride = 0, .segment_bytes = 1024, .segment_limit = 4, .chunk_shift = 4},
        {.stride = 100000, .segment_bytes = 1024, .segment_limit = 4, .chunk_shift = 4},
        {.stride = UINT64_C(1) << 60, .segment_bytes = 1024, .segment_limit = 15, .chunk_shift = 4},
    };
    int before = descriptors_with_a_family();

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mpshm_arena *arena = NULL;

        CHECK(mpshm_arena_create(&bad[i], MPSHM_FILE_AUTO, "mpshm", 0, NULL, &arena) < 0);
        CHECK(arena == NULL);
    }
    CHECK_EQ(before, open_descriptors());
}

static void
a_new_arena_is_empty_and_holds_no_memory(void)
{
    int before = descriptors_with_a_family();
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_geometry kept;
    uint64_t id, other;

    CHECK_EQ(0, mpshm_arena_geometry(again, &kept));
    CHECK_EQ(tiny.stride, kept.stride);
    CHECK_EQ(tiny.segment_bytes, kept.segment_bytes);
    CHECK_EQ(tiny.segment_limit, kept.segment_limit);
    CHECK_EQ(tiny.chunk_shift, kept.chunk_shift);
    CHECK_EQ(0, gauges(arena).segments);
    CHECK(gauges(arena).bytes_resident <= SMALL_ALIGN);
    CHECK_EQ(0, mpshm_arena_identity(mpshm_arena_fd(arena), &id));
    CHECK_EQ(0, mpshm_arena_identity(mpshm_arena_fd(again), &other));
    CHECK_EQ(id, other);
    CHECK_EQ(FD_CLOEXEC, fcntl(mpshm_arena_fd(arena), F_GETFD));
    close_clean(again);
    close_clean(arena);
    CHECK_EQ(before, open_descriptors());
}

static void
nobody_can_pull_the_file_from_under_another(void)
{
    mpshm_arena *arena = arena_of(tiny);

    CHECK_EQ(-1, ftruncate(mpshm_arena_fd(arena), 4096));
    CHECK_EQ(EPERM, errno);
    CHECK_EQ(-1, ftruncate(mpshm_arena_fd(arena), INT64_C(1) << 30));
    CHECK_EQ(EPERM, errno);
    close_clean(arena);
}

static mpshm_arena *
forced_shm(void)
{
    mpshm_arena *arena;

    CHECK_EQ(0, mpshm_arena_create(&tiny, MPSHM_FILE_SHM, "mpshm", 0, NULL, &arena));
    return arena;
}

static void
forced_shm_works_and_has_no_name(void)
{
    mpshm_arena *arena = forced_shm(), *again = attach_again(arena);
    char link[64], target[PATH_MAX] = "", *data;
    mpshm_run run = claim(arena, 100);

    snprintf(link, sizeof link, "/proc/self/fd/%d", mpshm_arena_fd(arena));
    CHECK(readlink(link, target, sizeof target - 1) > 0);
    CHECK(strstr(target, "/mpshm-") != NULL);
    CHECK(strstr(target, " (deleted)") != NULL);
    fill(run.data, 100, 1);
    CHECK_EQ(0, mpshm_seal(&run, 100));
    CHECK_EQ(0, mpshm_lease(again, run.mmap_id, run.chunk_id, 100, run.tag, &data));
    CHECK(is_filled(data, 100, 1));
    mpshm_release(data);
    close_clean(again);
    close_clean(arena);
}

/* /dev/shm of a container is small: memory is reserved at the claim, not found missing by SIGBUS.
   Also by a process that attached and did not make the file. */
static void
forced_shm_reserves_what_it_claims(void)
{
    mpshm_arena *arena = forced_shm();
    mpshm_run run = claim(arena, 1);

    CHECK(gauges(arena).bytes_resident >= tiny.segment_bytes + SMALL_ALIGN);
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
forced_shm_is_reserved_by_who_attached_too(void)
{
    mpshm_arena *maker = forced_shm(), *arena = attach_again(maker);
    mpshm_run run = claim(arena, 1);

    CHECK(gauges(arena).bytes_resident >= tiny.segment_bytes + SMALL_ALIGN);
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
    close_clean(maker);
}

static void
limit(int resource, rlim_t value)
{
    struct rlimit now;

    CHECK_EQ(0, getrlimit(resource, &now));
    now.rlim_cur = value;
    CHECK_EQ(0, setrlimit(resource, &now));
}

/* A signal would be SIGXFSZ; each test is a process, so it would fail here as one. */
static void
file_size_limit_shrinks_the_plan(void)
{
    static const rlim_t limits[] = {UINT64_C(1) << 40, 64 << 20, 17 << 20};
    mpshm_geometry big = {.stride = UINT64_C(1) << 40, .segment_bytes = 64 << 20,
                          .segment_limit = 496, .chunk_shift = 12};

    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct stat status;

        limit(RLIMIT_FSIZE, limits[i]);
        mpshm_arena *arena = arena_of(big);

        CHECK_EQ(0, fstat(mpshm_arena_fd(arena), &status));
        CHECK((rlim_t) status.st_size <= limits[i]);
        mpshm_run run = claim(arena, 100000);

        fill(run.data, run.capacity, 3);
        CHECK(is_filled(run.data, run.capacity, 3));
        CHECK_EQ(0, mpshm_abandon(&run));
        CHECK_EQ(1, mpshm_arena_is_valid(arena));
        close_clean(arena);
    }
}

static void
file_size_limit_too_low_is_an_error(void)
{
    mpshm_arena *arena = NULL;
    int before = open_descriptors();

    limit(RLIMIT_FSIZE, 100000);
    CHECK_EQ(-EFBIG, mpshm_arena_create(&tiny, MPSHM_FILE_AUTO, "mpshm", 0, NULL, &arena));
    CHECK(arena == NULL);
    CHECK_EQ(before, open_descriptors());
}

/* A stride that halves to a broken one: the plan must still be one that attach accepts. */
static void
file_size_limit_keeps_the_stride_aligned(void)
{
    mpshm_geometry odd = {.stride = (2 << 20) + SMALL_ALIGN, .segment_bytes = 64 << 10,
                          .segment_limit = 16, .chunk_shift = 12};

    limit(RLIMIT_FSIZE, 20 << 20);
    close_clean(arena_of(odd));
}

static void
no_descriptor_left_is_an_error(void)
{
    mpshm_arena *arena = NULL;

    limit(RLIMIT_NOFILE, 3);
    CHECK_EQ(-EMFILE, mpshm_arena_create(&tiny, MPSHM_FILE_AUTO, "mpshm", 0, NULL, &arena));
    CHECK(arena == NULL);
    limit(RLIMIT_NOFILE, 100); /* the leak check opens files */
}

/* Enough for the arena's file, not for its family's roster: and afterwards all is well. */
static void
no_descriptor_for_the_roster_is_an_error_that_passes(void)
{
    mpshm_arena *arena = NULL;
    int before = open_descriptors();
    int next = dup(0);

    close(next);
    limit(RLIMIT_NOFILE, (rlim_t) next + 1);
    CHECK_EQ(-EMFILE, mpshm_arena_create(&tiny, MPSHM_FILE_AUTO, "mpshm", 0, NULL, &arena));
    CHECK(arena == NULL);
    limit(RLIMIT_NOFILE, 100);
    CHECK_EQ(before, open_descriptors());
    arena = arena_of(tiny);
    mpshm_run run = claim(arena, 100);

    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
no_address_space_left_is_an_error_and_leaves_no_trace(void)
{
#if !SANITIZED
    mpshm_geometry big = {.stride = UINT64_C(1) << 40, .segment_bytes = 64 << 20,
                          .segment_limit = 4, .chunk_shift = 12};
    mpshm_arena *arena = arena_of(big), *again = attach_again(arena);
    mpshm_run run;
    char *data = NULL;

    limit(RLIMIT_AS, 32 << 20);
    CHECK_EQ(-ENOMEM, mpshm_get_buf(arena, 100, &run));
    CHECK_EQ(0, gauges(again).segments);
    limit(RLIMIT_AS, RLIM_INFINITY);
    run = claim(arena, 100);
    CHECK_EQ(0, mpshm_seal(&run, 100));
    CHECK_EQ(1, gauges(again).segments); /* maps the head: it is the data that cannot be had */
    limit(RLIMIT_AS, 32 << 20);
    CHECK_EQ(-ENOMEM, mpshm_lease(again, run.mmap_id, run.chunk_id, 100, run.tag, &data));
    CHECK(data == NULL);
    limit(RLIMIT_AS, RLIM_INFINITY);
    /* The message is lost, its chunks are not. */
    check_all_free(again);
    close_clean(again);
    close_clean(arena);
#endif
}

static void
size_no_arena_can_hold_is_out_of_shared_memory(void)
{
    static const uint64_t sizes[] = {UINT64_MAX, UINT64_MAX - 14, UINT64_MAX - 15, UINT64_MAX / 2,
                                     UINT64_C(1) << 41, 3 << 16, 2 << 16};
    mpshm_arena *arena = arena_of(tiny);

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mpshm_run run;

        CHECK_EQ(-EFBIG, mpshm_get_buf(arena, sizes[i] + (sizes[i] == 2 << 16), &run));
        CHECK_EQ(0, gauges(arena).segments);
    }
    close_clean(arena);
}

static void
large_payload_gets_a_segment_made_to_its_size(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run small = claim(arena, 16), large = claim(arena, 1025), next;

    CHECK_EQ(0, small.mmap_id);
    CHECK_EQ(1, large.mmap_id);
    CHECK_EQ(1040, large.capacity);
    CHECK_EQ(0, mpshm_increase_buf(&large, 16, 0));
    CHECK_EQ(-ENOSPC, mpshm_increase_buf(&large, 16, 1));
    CHECK_EQ(0, mpshm_abandon(&large));
    /* It later serves smaller ones. */
    next = claim(arena, 1024);
    CHECK_EQ(1, next.mmap_id);
    CHECK_EQ(0, next.chunk_id);
    CHECK_EQ(0, mpshm_abandon(&next));
    CHECK_EQ(0, mpshm_abandon(&small));
    CHECK_EQ(2, gauges(arena).segments);
    close_clean(arena);
}

static void
arena_at_its_limit_refuses_and_harms_nothing(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run held[4], run;

    for (unsigned i = 0; i < 4; i++) {
        held[i] = claim(arena, tiny.segment_bytes);
        fill(held[i].data, tiny.segment_bytes, i);
    }
    CHECK_EQ(-ENOSPC, mpshm_get_buf(arena, 1, &run));
    CHECK_EQ(4, gauges(arena).segments);
    CHECK_EQ(4 * tiny.segment_bytes, gauges(arena).bytes_loaned);
    for (unsigned i = 0; i < 4; i++) {
        CHECK(is_filled(held[i].data, tiny.segment_bytes, i));
        CHECK_EQ(0, mpshm_abandon(&held[i]));
    }
    close_clean(arena);
}

static void
gauges_count_each_state(void)
{
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run loaned = claim(arena, 33), flying = claim(arena, 16);
    char *leased = lease_new(arena, 100, 1);

    CHECK_EQ(0, mpshm_seal(&flying, 1));
    for (int i = 0; i < 2; i++) {
        mpshm_gauges now = gauges(i ? again : arena);

        CHECK_EQ(1, now.runs_loaned);
        CHECK_EQ(48, now.bytes_loaned);
        CHECK_EQ(1, now.runs_in_flight);
        CHECK_EQ(16, now.bytes_in_flight);
        CHECK_EQ(1, now.runs_leased);
        CHECK_EQ(112, now.bytes_leased);
        CHECK_EQ(1, now.segments);
        CHECK(now.bytes_resident > 0);
    }
    CHECK_EQ(1, mpshm_leases());
    mpshm_release(leased);
    CHECK_EQ(0, mpshm_leases());
    land(&flying, 1);
    CHECK_EQ(0, mpshm_abandon(&loaned));
    close_clean(again);
    close_clean(arena);
}

/* Damage of every kind that the invariants name is seen, and nothing else is. */
static void
walker_sees_damage(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run = claim(arena, 48), next = claim(arena, 16);
    char *leased = lease_new(arena, 16, 1);
    struct segment *seg = arena->segments[0];
    name me = arena->me;
    uint64_t kept;

    CHECK_EQ(3, next.chunk_id);
#define DAMAGE(place, value)                                                                   \
    kept = atomic_load(&(place));                                                              \
    CHECK_EQ(1, mpshm_arena_is_valid(arena));                                                  \
    atomic_store(&(place), (value));                                                           \
    CHECK(mpshm_arena_is_valid(arena) < 0);                                                    \
    atomic_store(&(place), kept);                                                              \
    CHECK_EQ(1, mpshm_arena_is_valid(arena))
    DAMAGE(seg->runs[0].word, RUN_WORD(run.tag, me, 7));             /* L2: no such state */
    DAMAGE(seg->runs[0].word, RUN_WORD(run.tag, 0, RUN_LOANED));     /* L2: lent to nobody */
    DAMAGE(seg->runs[4].word, RUN_WORD(1, 0, RUN_LEASED));           /* L2: leased by nobody */
    DAMAGE(seg->runs[4].word, RUN_WORD(1, 0, RUN_SHARED));           /* L7: no room for names */
    DAMAGE(seg->runs[1].word, RUN_WORD(1, me, RUN_LOANED));          /* L2: a run within a run */
    DAMAGE(seg->runs[0].more, EXTENT(0, 0));                         /* L2: no length */
    DAMAGE(seg->runs[0].more, EXTENT(65, 0));                        /* L2: past the end */
    DAMAGE(seg->runs[0].more, EXTENT(4, 0));                         /* L2: over its neighbour */
    DAMAGE(arena->header->segment[0], DIR_WORD(me, 5, 64));          /* L3: other chunks */
    DAMAGE(arena->header->segment[0], DIR_WORD(me, 4, 63));          /* L3: fewer */
#undef DAMAGE
#define DAMAGE(place, value)                                                                   \
    kept = (place);                                                                            \
    CHECK_EQ(1, mpshm_arena_is_valid(arena));                                                  \
    (place) = (value);                                                                         \
    CHECK(mpshm_arena_is_valid(arena) < 0);                                                    \
    (place) = kept;                                                                            \
    CHECK_EQ(1, mpshm_arena_is_valid(arena))
    DAMAGE(seg->map[1], 1);                                          /* L1: guard */
    DAMAGE(seg->map[1], UINT64_C(1) << 63);                          /* L1: past it */
    DAMAGE(seg->map[0], kept | 1);                                   /* L4: first chunk */
    DAMAGE(seg->map[0], kept | 4);                                   /* L4: last chunk */
    DAMAGE(seg->heads[0], kept & ~UINT64_C(1));                      /* L4: a run they do not know */
#undef DAMAGE
    mpshm_release(leased);
    CHECK_EQ(0, mpshm_abandon(&next));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(arena);
}

static void
forged_directory_is_refused(void)
{
    static const uint64_t words[] = {
        DIR_WORD(1, 3, 64), DIR_WORD(1, 41, 64), DIR_WORD(1, 4, 0), DIR_WORD(1, 4, CHUNK_LIMIT + 1),
        DIR_WORD(1, 12, 1024), DIR_WORD(1, 40, CHUNK_LIMIT), UINT64_MAX,
    };
    mpshm_arena *arena = arena_of(tiny);
    char *data;

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        atomic_store(&arena->header->segment[1], words[i]);
        CHECK_EQ(MPSHM_E_DIRECTORY, mpshm_lease(arena, 1, 0, 16, 1, &data));
        CHECK(mpshm_arena_is_valid(arena) < 0);
    }
    atomic_store(&arena->header->segment[1], 0);
    close_clean(arena);
}

/* A word that nobody can map costs its segment, not each message of all who share the arena. */
static void
forged_directory_leaves_the_other_segments(void)
{
    mpshm_arena *arena = arena_of(tiny);
    mpshm_run run;

    atomic_store(&arena->header->segment[0], DIR_WORD(0, 12, 1024));
    CHECK_EQ(0, mpshm_get_buf(arena, 16, &run));
    CHECK_EQ(1, run.mmap_id);
    CHECK_EQ(0, mpshm_abandon(&run));
    atomic_store(&arena->header->segment[0], 0);
    close_clean(arena);
}

/* Two handles in one process: what one closes, the other still has. */
static void
handles_live_alone(void)
{
    int before = descriptors_with_a_family();
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    mpshm_run run = claim(again, 16);

    mpshm_arena_close(arena);
    fill(run.data, 16, 1);
    CHECK(is_filled(run.data, 16, 1));
    CHECK_EQ(0, mpshm_abandon(&run));
    close_clean(again);
    CHECK_EQ(before, open_descriptors());
}

static void
a_lease_outlives_its_arena_handle(void)
{
    int before = descriptors_with_a_family();
    mpshm_arena *arena = arena_of(tiny), *again = attach_again(arena);
    char *first = lease_new(arena, 100, 1), *second = lease_new(arena, 16, 2);

    mpshm_arena_close(arena);
    CHECK(is_filled(first, 100, 1));
    mpshm_release(first);
    CHECK(is_filled(second, 16, 2));
    CHECK_EQ(1, runs_in_use(again));
    mpshm_release(second);
    close_clean(again);
    CHECK_EQ(before, open_descriptors());
    CHECK(mpshm_process.arenas == NULL);
}

static const struct test tests[] = {
    TEST(attach_checks_magic),
    TEST(attach_checks_abi),
    TEST(attach_checks_geometry),
    TEST(attach_checks_a_queues_geometry),
    TEST(attach_checks_the_roster),
    TEST(create_refuses_a_geometry_that_cannot_be),
    TEST(a_new_arena_is_empty_and_holds_no_memory),
    TEST(nobody_can_pull_the_file_from_under_another),
    TEST(forced_shm_works_and_has_no_name),
    TEST(forced_shm_reserves_what_it_claims),
    TEST(forced_shm_is_reserved_by_who_attached_too),
    TEST(file_size_limit_shrinks_the_plan),
    TEST(file_size_limit_too_low_is_an_error),
    TEST(file_size_limit_keeps_the_stride_aligned),
    TEST(no_descriptor_left_is_an_error),
    TEST(no_descriptor_for_the_roster_is_an_error_that_passes),
    TEST_THAT_NEEDS(address_limit, no_address_space_left_is_an_error_and_leaves_no_trace),
    TEST(size_no_arena_can_hold_is_out_of_shared_memory),
    TEST(large_payload_gets_a_segment_made_to_its_size),
    TEST(arena_at_its_limit_refuses_and_harms_nothing),
    TEST(gauges_count_each_state),
    TEST(walker_sees_damage),
    TEST(forged_directory_is_refused),
    TEST(forged_directory_leaves_the_other_segments),
    TEST(handles_live_alone),
    TEST(a_lease_outlives_its_arena_handle),
};
RUN_TESTS(tests)
