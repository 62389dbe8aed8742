/* Words of a chain of rings that a hostile peer has written: every call comes back, and nothing of this process is hurt.
   What the calls say of such a queue is not asked.  Without assertions, which say what honest peers do. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <unistd.h>

static mpshm_counts counts;

struct queue {
    mpshm_arena *arena;
    mpshm_batch *batch;
    int ends[2];
};

static struct queue
open_queue(void)
{
    mpshm_geometry geometry = {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(1) << 20, .segment_limit = 16,
                               .chunk_shift = 12};
    mpshm_queue queue = {.joinable = 1, .grows = 1};
    struct queue q;

    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_AUTO, "mpshm", 0, &queue, &q.arena));
    make_pipe(q.ends);
    q.batch = batch_of(q.arena, &counts, q.ends[0], 0);
    mpshm_reap(q.arena);
    return q;
}

static int
put(struct queue *q, unsigned seed, uint32_t size)
{
    char data[3000];

    fill(data, size, seed);
    return mpshm_queue_put_one(END(q->arena, q->ends[1]), data, size, NULL);
}

static void
put_many(struct queue *q, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t size = i % 50 == 7 ? 3000 : 8;

        if (put(q, i, size) == -EAGAIN) {
            CHECK_EQ(0, mpshm_queue_grow(END(q->arena, q->ends[1])));
            CHECK_EQ(1, put(q, i, size));
        }
    }
}

static void
get_many(struct queue *q, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK(mpshm_queue_receive_one(q->batch, 0) > 0);
    }
}

/* What a program may do with a queue, each a few times; and its honest queue works as ever. */
static void
use(struct queue *q, struct queue *honest)
{
    mpshm_end *end = END(q->arena, q->ends[1]);
    mpshm_gauges now;

    for (int lap = 0; lap < 3; lap++) {
        for (uint32_t i = 0; i < 4; i++) {
            (void) put(q, i, i % 2 ? 3000 : 8);
            (void) mpshm_queue_grow(end);
        }
        (void) mpshm_queue_size(q->arena);
        (void) mpshm_queue_taken(q->arena);
        (void) ring_is_ready(q->arena);
        (void) mpshm_queue_poll(q->batch->end, 0);
        mpshm_queue_watch(q->batch->end);
        for (int i = 0; i < 4; i++) {
            (void) mpshm_queue_receive_one(q->batch, 0);
            (void) mpshm_task_done(q->arena);
        }
        (void) mpshm_queue_receive(q->batch, 64, 0);
        (void) mpshm_wait_done(q->arena, 0);
        (void) mpshm_queue_wait_room(end, NULL, 0);
        mpshm_place *place = mpshm_place_new(q->arena);

        if (mpshm_place_take(place) == 0) {
            (void) mpshm_queue_put_one(end, "placed", 6, place);
        }
        mpshm_place_free(place);
        mpshm_reap(q->arena);
        (void) mpshm_trim(q->arena);
        (void) mpshm_arena_gauges(q->arena, &now);
        (void) mpshm_arena_is_valid(q->arena);
        mpshm_batch_discard(q->batch);
        put_many(honest, 700);
        get_many(honest, 700);
        CHECK_EQ(0, mpshm_queue_size(honest->arena));
    }
}

/* Stages of a queue when its words are forged. */

static void
few(struct queue *q)
{
    put_many(q, 20);
    get_many(q, 5);
}

static void
grown(struct queue *q)
{
    put_many(q, 2500);
    get_many(q, 100);
}

static void
left_and_used_again(struct queue *q)
{
    for (int i = 0; i < 2; i++) {
        put_many(q, 2500);
        get_many(q, 2500);
        (void) mpshm_trim(q->arena);
    }
    put_many(q, 2500);
    get_many(q, 600);
}

static void (*const stages[])(struct queue *) = {few, grown, left_and_used_again};
#define STAGES ((int) (sizeof stages / sizeof *stages))

/* Each in a child of its own, which a signal or a hang ends. */
static void
check_forged(void (*forge)(struct queue *, uint64_t), const uint64_t *values, size_t count)
{
    for (int stage = 0; stage < STAGES; stage++) {
        for (size_t i = 0; i < count; i++) {
            int pid = fork_hooked();

            if (pid == 0) {
                struct queue q = open_queue(), honest = open_queue();

                stages[stage](&q);
                forge(&q, values[i]);
                use(&q, &honest);
                forge(&q, values[i]);
                free_batch(q.batch);
                mpshm_arena_close(q.arena);
                free_batch(honest.batch);
                close_clean(honest.arena);
                exit(0);
            }
            wait_child(pid);
        }
    }
}
#define CHECK_FORGED(forge, values) check_forged(forge, values, sizeof(values) / sizeof *(values))

static const uint64_t links[] = {
    LINK(0, 0), LINK(0, 1), LINK(0, 77), LINK(1, 0), LINK(1, 1), LINK(1, 5), LINK(2, 0), LINK(3, 0), LINK(5, 0),
    LINK(63, 0), LINK(63, 9), LINK(63, LIFE_MASK), UINT64_MAX,
};

/* For what makes long walks. */
static const uint64_t few_links[] = {LINK(0, 0), LINK(1, 0), LINK(2, 0), LINK(3, 1), LINK(63, 9)};

static void
forge_first(struct queue *q, uint64_t value)
{
    atomic_store(&q->arena->chain->first, value);
}

static void
first_names_any_ring(void)
{
    CHECK_FORGED(forge_first, links);
}

static void
forge_last(struct queue *q, uint64_t value)
{
    atomic_store(&q->arena->chain->last, value);
}

static void
last_names_any_ring(void)
{
    CHECK_FORGED(forge_last, links);
}

static void
forge_both(struct queue *q, uint64_t value)
{
    forge_first(q, value);
    forge_last(q, value);
}

static void
first_and_last_name_any_ring(void)
{
    CHECK_FORGED(forge_both, links);
}

/* At the tail of the last ring: it becomes the link that ends it. */
static void
forge_link_at_tail(struct queue *q, uint64_t value)
{
    struct tail tail;

    arena_lock(q->arena);
    if (ring_tail(q->arena, &tail)) {
        atomic_store(slot_word(tail.ring, tail.at), word_of(tail.ring, tail.at, (name) value, SLOT_NEXT));
    }
    arena_unlock(q->arena);
}

static void
last_ring_is_linked_to_any_ring(void)
{
    CHECK_FORGED(forge_link_at_tail, few_links);
}

static void
forge_link_at_head(struct queue *q, uint64_t value)
{
    struct start start = chain_first(q->arena);

    if (start.ring != NULL) {
        atomic_store(slot_word(start.ring, start.at), word_of(start.ring, start.at, (name) value, SLOT_NEXT));
    }
}

static void
first_ring_is_linked_to_any_ring(void)
{
    CHECK_FORGED(forge_link_at_head, few_links);
}

/* All links there are. */
static void
forge_all_links(struct queue *q, uint64_t value)
{
    for (uint32_t number = 0; number < 4; number++) {
        struct ring *ring = ring_at(q->arena, number);

        for (uint64_t at = 0; ring != NULL && at < ring->slots; at++) {
            uint64_t word = load_slot(ring, at);

            if (SLOT_STATE(word) == SLOT_NEXT) {
                atomic_store(slot_word(ring, at), SLOT_WORD(SLOT_LAP(word), (name) value, SLOT_NEXT));
            }
        }
    }
    forge_link_at_tail(q, value);
}

static void
links_go_in_circles(void)
{
    CHECK_FORGED(forge_all_links, few_links);
}

/* Each slot of the rings in use is a link. */
static void
forge_every_slot(struct queue *q, uint64_t value)
{
    for (uint32_t number = 0; number < 4; number++) {
        struct ring *ring = ring_at(q->arena, number);

        for (uint64_t at = 0; ring != NULL && at < ring->slots; at++) {
            uint64_t word = load_slot(ring, at);

            atomic_store(slot_word(ring, at), SLOT_WORD(SLOT_LAP(word), (name) value, SLOT_NEXT));
        }
    }
}

static void
every_slot_is_a_link(void)
{
    CHECK_FORGED(forge_every_slot, few_links);
}

static const uint64_t words[] = {
    RING_WORD(0, 0, RING_FREE), RING_WORD(0, 0, RING_MAKING), RING_WORD(0, 0, RING_USED), RING_WORD(1, 0, RING_USED),
    RING_WORD(0, NAME(3, 1), RING_MAKING), RING_WORD(LIFE_MASK, NAME_MASK, RING_MAKING), RING_WORD(9, 0, 3),
    UINT64_MAX,
};

static void
forge_all_words(struct queue *q, uint64_t value)
{
    for (uint32_t number = 0; number < RINGS; number++) {
        atomic_store(&q->arena->chain->word[number], value);
    }
}

static void
words_of_rings_say_anything(void)
{
    CHECK_FORGED(forge_all_words, words);
}

static void
forge_used_words(struct queue *q, uint64_t value)
{
    for (uint32_t number = 0; number < RINGS; number++) {
        if (RING_STATE(atomic_load(&q->arena->chain->word[number])) == RING_USED) {
            atomic_store(&q->arena->chain->word[number], value);
        }
    }
}

static void
words_of_rings_in_use_say_anything(void)
{
    CHECK_FORGED(forge_used_words, words);
}

static const uint64_t positions[] = {
    0, 1, RING_SLOTS - 1, RING_SLOTS, 5 * RING_SLOTS + 3, UINT64_C(1) << 35, POSITION_MASK, UINT64_MAX,
    HEAD_WORD(SKIPS_MASK, 77),
};

#define FORGE_IN_RINGS(field)                                                                                     \
    static void forge_##field(struct queue *q, uint64_t value)                                                    \
    {                                                                                                             \
        for (uint32_t number = 0; number < 8; number++) {                                                         \
            struct ring *ring = ring_at(q->arena, number);                                                        \
                                                                                                                  \
            if (ring != NULL) {                                                                                   \
                atomic_store(&ring->head->field, value);                                                          \
            }                                                                                                     \
        }                                                                                                         \
    }                                                                                                             \
    static void field##_of_rings_says_anything(void)                                                              \
    {                                                                                                             \
        CHECK_FORGED(forge_##field, positions);                                                                   \
    }
FORGE_IN_RINGS(head)
FORGE_IN_RINGS(tail)
FORGE_IN_RINGS(before)

static void
forge_touched(struct queue *q, uint64_t value)
{
    atomic_store(&q->arena->chain->touched, value);
    atomic_store(&q->arena->chain->done, value);
}

static void
touched_and_done_say_anything(void)
{
    CHECK_FORGED(forge_touched, positions);
}

/* How many rings, in the header: this process has a checked copy, and a process that attaches checks it. */
static void
forged_number_of_rings_is_refused(void)
{
    static const uint32_t numbers[] = {0, 2, RINGS - 1, RINGS + 1, UINT32_MAX};

    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct queue q = open_queue();
        mpshm_arena *again = NULL;

        put_many(&q, 2500);
        q.arena->header->rings = numbers[i];
        get_many(&q, 2500);
        int error = mpshm_arena_attach(dup(mpshm_arena_fd(q.arena)), &again);

        CHECK(error != 0 && again == NULL);
        q.arena->header->rings = RINGS;
        CHECK_EQ(0, mpshm_queue_size(q.arena));
        free_batch(q.batch);
        close_clean(q.arena);
    }
}

static const struct test tests[] = {
    TEST(first_names_any_ring),
    TEST(last_names_any_ring),
    TEST(first_and_last_name_any_ring),
    TEST(last_ring_is_linked_to_any_ring),
    TEST(first_ring_is_linked_to_any_ring),
    TEST(links_go_in_circles),
    TEST(every_slot_is_a_link),
    TEST(words_of_rings_say_anything),
    TEST(words_of_rings_in_use_say_anything),
    TEST(head_of_rings_says_anything),
    TEST(tail_of_rings_says_anything),
    TEST(before_of_rings_says_anything),
    TEST(touched_and_done_say_anything),
    TEST(forged_number_of_rings_is_refused),
};

RUN_TESTS(tests)
