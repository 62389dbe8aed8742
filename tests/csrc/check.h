/* What the C tests stand on: checks that name both sides, a runner, and a tiny arena.

   Every test runs in a process of its own: a crash or a hang fails that test alone, and each starts
   from a core that knows no arena. */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"
#include "ring.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* address space is not ours to limit */
#else
#define SANITIZED 0
#endif

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            check_failed(__FILE__, __LINE__, #condition);                                      \
        }                                                                                      \
    } while (0)
#define CHECK_EQ(expected, actual)                                                             \
    check_equal(__FILE__, __LINE__, #actual, (int64_t) (expected), (int64_t) (actual))

void check_failed(const char *file, int line, const char *what);
void check_equal(const char *file, int line, const char *what, int64_t expected, int64_t actual);

struct test {
    const char *name;
    void (*run)(void);
    bool (*has_what_it_needs)(void); /* or NULL: nothing but Linux */
    const char *needs;
};
#define TEST(name) {#name, name, NULL, NULL}
/* What emulators of user mode lack.  Where the system is without it, the test is left out, and that is said. */
#define TEST_THAT_NEEDS(what, name) {#name, name, has_##what, #what}
bool has_madvice(void);           /* what is advised for forks, and for memory to be given back, is done */
bool has_address_limit(void);     /* RLIMIT_AS holds */
bool has_mremap_of_nothing(void); /* which maps once more what is mapped shared */
bool has_nowait(void);            /* preadv2(RWF_NOWAIT) */
bool has_subreapers(void);        /* prctl(PR_SET_CHILD_SUBREAPER) */
#define RUN_TESTS(tests) int main(int argc, char **argv) \
    { return run_tests(tests, sizeof tests / sizeof *tests, argc, argv); }
int run_tests(const struct test *tests, size_t count, int argc, char **argv);

#define TINY_CHUNK 16u
#define TINY_CHUNKS 64u
#define FRAME_BYTES 32u /* a frame that names one run and holds no stream */
/* What mpshm_read_frame gives for such a frame. */
#define WHOLE_FRAME (FRAME_BYTES + MPSHM_DESCRIPTORS)

extern const mpshm_geometry tiny; /* 16-byte chunks, 64 to a segment, 4 segments */

mpshm_geometry paged(void);       /* the same, but a chunk is a page */
mpshm_arena *arena_of(mpshm_geometry geometry);
mpshm_arena *queue_arena_of(mpshm_geometry geometry, uint32_t places, uint64_t bytes, int joinable);
/* Another handle of the same arena with mappings of its own, as another process would have. */
mpshm_arena *attach_again(mpshm_arena *arena);

mpshm_run claim(mpshm_arena *arena, uint64_t size);
void fill(char *data, uint64_t size, unsigned seed);
bool is_filled(const char *data, uint64_t size, unsigned seed);

/* Frames that name one run.  A send that fails abandons the run. */
void frame_of(const mpshm_run *run, uint64_t size, char frame[FRAME_BYTES]);
int send_run(int fd, mpshm_run *run, uint64_t size);
mpshm_parcel *parcel_of(mpshm_arena *arena);
int lease_frame(mpshm_arena *arena, const unsigned char frame[FRAME_BYTES], char **data,
                uint64_t *size);
int receive(mpshm_arena *arena, int fd, char **data, uint64_t *size);
/* Have a sealed run leased and released, as its message would. */
void land(const mpshm_run *run, uint64_t size);
/* Claim, fill, seal and lease without a pipe: a view as a receiver has it. */
char *lease_new(mpshm_arena *arena, uint64_t size, unsigned seed);

mpshm_gauges gauges(mpshm_arena *arena);
/* How many names are beside the run: its holders, if it is SHARED; 0 if it is not. */
uint32_t holders(mpshm_arena *arena, uint32_t mmap_id, uint32_t chunk_id);
int count_mappings(void); /* of memory files */
uint32_t runs_in_use(mpshm_arena *arena);
/* Every bit of every segment is back, not only every run's word. */
void check_all_free(mpshm_arena *arena);
/* Valid, empty; then close it. */
void close_clean(mpshm_arena *arena);

/* fork() as the package does it, with the core's hooks around. */
int fork_hooked(void);
void wait_child(int pid);
void die(void); /* by SIGKILL */
void wait_killed(int pid);
void in_doomed_child(void (*work)(void)); /* run it in a child that is killed at its end */
void kill_child(int pid);
void wait_asleep(int pid);
#define LONG_MS 25000 /* longer than any test: who sleeps so long is woken */
/* Turns between two processes, over a pipe. */
void go(int turn[2]);
void await(int turn[2]);
int open_descriptors(void);

/* One end of a queue's pipe, where `counts` is in scope. */
#define END(arena, fd) (&(mpshm_end) {(arena), &counts, (fd), false})
/* A batch with an end of its own to receive by, which goes with it. */
mpshm_batch *batch_of(mpshm_arena *arena, mpshm_counts *counts, int fd, uint32_t spin_us);
void free_batch(mpshm_batch *batch);
/* The next message, as the package waits for it: who was not served comes again. */
int receive_patiently(mpshm_batch *batch);
/* Wait until a child sleeps as a ring's receiver. */
void wait_sleeper(struct chain *chain, int pid);
/* Children that are asleep and tell `to_parent` when they are woken: one as a receiver is, that does not
   look by itself, and one that waits for room. */
int sleeper(struct chain *chain, int to_parent[2]);
/* From now on this process and its children watch in the last of all periods, so that none is awake in time by
   chance. */
void nobody_watches_soon(mpshm_arena *arena);
/* Nobody that watches so late sees something sooner, but one who was woken. */
#define BEFORE_ANY_WATCH_NS INT64_C(10000000000)
int waiting_sender(mpshm_arena *arena, int writer, int to_parent[2]);
/* A queue's pipe. */
void make_pipe(int ends[2]);
/* Slots as they are, past all who look at what they hold: to forge one, to take one unopened.  All but the
   last two are called under arena_lock; two wake who waits, as the queue does. */
uint32_t put_frames(mpshm_arena *arena, int fd, char *frames, uint32_t count);
uint32_t take_frames(mpshm_arena *arena, char *to, uint32_t most);
uint32_t put_and_rouse(mpshm_arena *arena, int fd, char *frames, uint32_t count);
uint32_t take_and_let_in(mpshm_arena *arena, char *to, uint32_t most);
void put_raw(mpshm_arena *arena, const char slot[MPSHM_SLOT_BYTES]);
void take_raw(mpshm_arena *arena, char slot[MPSHM_SLOT_BYTES]);

/* The two halves of mpshm_receive, and what the second gives, apart. */
typedef struct {
    mpshm_held *views;
    uint32_t count, stream_runs, stream_at;
    mpshm_descriptor bad;
} mpshm_opened;

static inline int
mpshm_read_frame(mpshm_reader *reader, int fd)
{
    return frame_read(reader, fd, UINT32_MAX, true);
}

static inline int
mpshm_open(mpshm_reader *read, mpshm_arena *arena, mpshm_opened *out)
{
    mpshm_reader reader = *read;

    reader.runs = NULL;
    reader.count = 0;
    int error = frame_open(&reader, -1, arena, 0);

    memcpy(read->bytes, reader.bytes, sizeof read->bytes);
    read->stream_at = reader.stream_at;
    read->stream_end = reader.stream_end;
    *out = (mpshm_opened) {reader.runs, reader.count, reader.stream_runs, reader.stream_at,
                           reader.bad};
    return error;
}

static inline void
mpshm_opened_free(mpshm_opened *opened)
{
    free(opened->views);
    opened->views = NULL;
    opened->count = 0;
}

#endif
