/* Queues that grow: borders of rings, chains of several, lives, and who is killed while one is linked or left.

   What a sender, a receiver or a maker is in the middle of is made by hand, word by word; the hammers at the end find
   what nobody thought of. */
#define _GNU_SOURCE
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT_ONCE MPSHM_SLOTS_AT_ONCE

static mpshm_arena *arena;
static struct chain *chain;
static mpshm_batch *batch;
static mpshm_counts counts;
static int ends[2];
static uint64_t put_count, got_count; /* numbers of messages: the next to put, and to get */

static void
open_queue(int joinable)
{
    mpshm_geometry geometry = {.stride = 256 * SMALL_ALIGN, .segment_bytes = UINT64_C(1) << 20, .segment_limit = 16,
                               .chunk_shift = 12};
    mpshm_queue queue = {.joinable = joinable != 0, .grows = 1};

    CHECK_EQ(0, mpshm_arena_create(&geometry, MPSHM_FILE_AUTO, "mpshm", 0, &queue, &arena));
    CHECK(arena->grows);
    make_pipe(ends);
    batch = batch_of(arena, &counts, ends[0], 0);
    chain = arena->chain;
    put_count = got_count = 0;
    mpshm_reap(arena); /* have a name, before any child */
}

/* Every third message is longer than a slot, and every seventh has a run. */
static uint32_t
size_of(uint64_t number)
{
    return number % 7 == 0 ? 3000 : number % 3 == 0 ? 500 : 8;
}

static int
put_once(uint64_t number)
{
    char data[3000];

    fill(data, size_of(number), (unsigned) number);
    memcpy(data, &number, sizeof number);
    return mpshm_queue_put_one(END(arena, ends[1]), data, size_of(number), NULL);
}

static bool
try_put(void)
{
    int n = put_once(put_count);

    CHECK(n == 1 || n == -EAGAIN);
    put_count += n == 1;
    return n == 1;
}

static void
put(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (!try_put()) {
            CHECK_EQ(0, mpshm_queue_grow(END(arena, ends[1])));
            CHECK(try_put());
        }
    }
}

static uint32_t
put_until_full(void)
{
    uint32_t count = 0;

    while (try_put()) {
        count++;
    }
    return count;
}

static void
grow(void)
{
    CHECK_EQ(0, mpshm_queue_grow(END(arena, ends[1])));
}

/* The number of a message that is whole. */
static uint64_t
number_of(char *data, uint32_t size)
{
    uint64_t number;

    memcpy(&number, data, sizeof number);
    CHECK_EQ(size_of(number), size);
    char first[8];

    fill(first, sizeof first, (unsigned) number);
    memcpy(data, first, sizeof first);
    CHECK(is_filled(data, size, (unsigned) number));
    return number;
}

static void
get(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        int size = mpshm_queue_receive_one(batch, 0);

        CHECK(size > 0);
        CHECK_EQ(got_count++, number_of(batch->data, (uint32_t) size));
    }
}

static void
check_nothing_there(void)
{
    CHECK_EQ(put_count, got_count);
    CHECK_EQ(-EAGAIN, mpshm_queue_receive_one(batch, 0));
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(false, ring_is_ready(arena));
}

static void
get_all(void)
{
    get(put_count - got_count);
    check_nothing_there();
}

/* All that was put is there, and can be got; and the queue works on, in further rings as well. */
static void
end_queue(void)
{
    CHECK_EQ(put_count - got_count, mpshm_queue_size(arena));
    get_all();
    mpshm_reap(arena);
    CHECK_EQ(1, ring_validate(arena, true));
    put(2000);
    CHECK_EQ(1, ring_validate(arena, true));
    get_all();
    CHECK_EQ(1, ring_validate(arena, true));
    CHECK_EQ(0, runs_in_use(arena));
    free_batch(batch);
    close_clean(arena);
}

static enum ring_state
state_of(uint32_t ring)
{
    return RING_STATE(atomic_load(&chain->word[ring]));
}

static uint32_t
life_of(uint32_t ring)
{
    return RING_LIFE(atomic_load(&chain->word[ring]));
}

static uint32_t
first_ring(void)
{
    return LINK_RING(FIRST_LINK(atomic_load(&chain->first)));
}

static struct tail
tail_now(void)
{
    struct tail tail;

    arena_lock(arena);
    CHECK(ring_tail(arena, &tail));
    arena_unlock(arena);
    return tail;
}

static uint32_t
last_ring(void)
{
    return tail_now().ring->number;
}

/* How many messages so many rings hold. */
static uint64_t
held_by(uint32_t rings)
{
    uint64_t sum = 0;

    for (uint32_t ring = 0; ring < rings; ring++) {
        sum += RING_SLOTS_OF(ring) - 1;
    }
    return sum;
}

/* Borders. */

static void
ring_is_full_one_slot_before_its_last_and_the_next_is_twice_as_long(void)
{
    open_queue(0);
    for (uint32_t ring = 0; ring < 5; ring++) {
        CHECK_EQ(ring, last_ring());
        CHECK_EQ((RING_SLOTS << ring) - 1, put_until_full());
        CHECK(chain_is_full(arena));
        CHECK_EQ(RING_FREE, state_of(ring + 1));
        grow();
        CHECK(!chain_is_full(arena));
        CHECK_EQ(RING_USED, state_of(ring + 1));
        grow(); /* there is room */
        CHECK_EQ(ring + 1, last_ring());
        CHECK_EQ(0, first_ring());
        CHECK_EQ(1, ring_validate(arena, true));
    }
    get_all();
    for (uint32_t ring = 0; ring < 5; ring++) {
        CHECK_EQ(RING_FREE, state_of(ring));
        CHECK_EQ(1, life_of(ring));
    }
    CHECK_EQ(5, first_ring());
    end_queue();
}

/* Whether the pipe is readable. */
static bool
is_shown(void)
{
    struct pollfd fd = {.fd = ends[0], .events = POLLIN};

    return poll(&fd, 1, 0) == 1;
}

static void
all_is_right_at_a_border_and_beside_it(void)
{
    for (uint32_t rings = 1; rings <= 3; rings++) {
        for (uint64_t count = held_by(rings) - 1; count <= held_by(rings) + 2; count++) {
            open_queue(0);
            mpshm_queue_watch(batch->end);
            for (int lap = 0; lap < 2; lap++) {
                CHECK(!is_shown());
                put(count);
                CHECK_EQ(1, ring_validate(arena, true));
                while (got_count < put_count) {
                    if (!SANITIZED || got_count % 16 == 0) {
                        CHECK_EQ(put_count - got_count, mpshm_queue_size(arena));
                        CHECK_EQ(put_count - got_count, ring_count(arena, false));
                    }
                    CHECK(ring_is_ready(arena));
                    CHECK(is_shown());
                    get(1);
                }
                check_nothing_there();
                CHECK(!is_shown());
                CHECK_EQ(1, ring_validate(arena, true));
            }
            end_queue();
        }
    }
}

static void
messages_put_and_got_at_once_lie_on_both_sides_of_a_link(void)
{
    open_queue(0);
    put(RING_SLOTS - 6);
    uint32_t sizes[AT_ONCE];
    char *data = malloc(AT_ONCE * 3000), *at = data;

    for (uint32_t i = 0; i < AT_ONCE; at += sizes[i++]) {
        uint64_t number = put_count + i;

        sizes[i] = size_of(number);
        fill(at, sizes[i], (unsigned) number);
        memcpy(at, &number, sizeof number);
    }
    int n = mpshm_queue_put_some(END(arena, ends[1]), data, sizes, AT_ONCE, NULL);

    CHECK_EQ(5, n);
    grow();
    at = data;
    for (int i = 0; i < n; i++) {
        at += sizes[i];
    }
    CHECK_EQ(AT_ONCE - 5, mpshm_queue_put_some(END(arena, ends[1]), at, sizes + n, AT_ONCE - 5, NULL));
    put_count += AT_ONCE;
    free(data);
    get(RING_SLOTS - 10);
    while (got_count < put_count) {
        n = mpshm_queue_receive(batch, AT_ONCE, 0);
        CHECK(n > 0);
        for (int i = 0; i < n; i++) {
            mpshm_message *message = &batch->messages[i];

            CHECK_EQ(0, message->error);
            CHECK_EQ(got_count++, number_of(batch->data + message->at, message->size));
        }
    }
    end_queue();
}

static void
ring_whose_slots_have_been_gone_round_is_linked_at_any_of_them(void)
{
    for (uint32_t used = 1; used < 1200; used += 97) {
        open_queue(1);
        for (uint32_t i = 0; i < used; i++) {
            put(1);
            get(1);
            CHECK_EQ(0, mpshm_task_done(arena));
        }
        CHECK_EQ(RING_SLOTS - 1, put_until_full());
        grow();
        put(100);
        CHECK_EQ(put_count - used, tasks_unfinished(arena));
        get_all();
        CHECK_EQ(put_count - used, tasks_unfinished(arena));
        for (uint64_t done = used; done < put_count; done++) {
            CHECK_EQ(0, mpshm_task_done(arena));
        }
        CHECK_EQ(-ERANGE, mpshm_task_done(arena));
        CHECK_EQ(0, mpshm_wait_done(arena, 0));
        end_queue();
    }
}

/* Chains and lives. */

/* What is done is as many as were got; and no more may be done. */
static void
check_tasks(uint64_t *done)
{
    while (*done < got_count) {
        CHECK_EQ(0, mpshm_task_done(arena));
        ++*done;
    }
    CHECK_EQ(put_count - *done, tasks_unfinished(arena));
}

static void
rings_are_used_again_in_further_lives(void)
{
    uint64_t done = 0, lives = 0;

    open_queue(1);
    for (uint32_t round = 0; round < 200; round++) {
        put(300 + round * 37 % 2500);
        check_tasks(&done);
        get((put_count - got_count) / (1 + round % 3));
        check_tasks(&done);
        if (round % 8 == 7) {
            get_all();
            check_tasks(&done);
            CHECK_EQ(-ERANGE, mpshm_task_done(arena));
            (void) mpshm_trim(arena);
            CHECK_EQ(0, first_ring());
            CHECK_EQ(0, tasks_unfinished(arena));
        }
        CHECK_EQ(1, ring_validate(arena, true));
    }
    for (uint32_t ring = 0; ring < RINGS; ring++) {
        lives += life_of(ring);
    }
    CHECK(life_of(0) > 20 && life_of(1) > 20 && lives > 100);
    end_queue();
}

static void
no_ring_is_to_be_had_when_all_are_full(void)
{
    if (SANITIZED) {
        return; /* two million messages take too long there */
    }
    open_queue(0);
    for (uint64_t i = 0; i < held_by(RINGS); i++) {
        uint64_t number = put_count;

        if (mpshm_queue_put_one(END(arena, ends[1]), (char *) &number, 8, NULL) == -EAGAIN) {
            grow();
            CHECK_EQ(1, mpshm_queue_put_one(END(arena, ends[1]), (char *) &number, 8, NULL));
        }
        put_count++;
    }
    CHECK_EQ(held_by(RINGS), mpshm_queue_size(arena));
    for (int tries = 0; tries < 3; tries++) {
        CHECK_EQ(-EAGAIN, put_once(1));
        CHECK_EQ(-ENOSPC, mpshm_queue_grow(END(arena, ends[1])));
    }
    for (uint64_t i = 0; i < put_count; i++) {
        CHECK_EQ(8, mpshm_queue_receive_one(batch, 0));
        CHECK_EQ(0, memcmp(batch->data, &i, 8));
        if (i == RING_SLOTS - 2) { /* ring 0 is free */
            grow();
            CHECK_EQ(0, last_ring());
        }
    }
    got_count = put_count;
    check_nothing_there();
    uint64_t had = gauges(arena).bytes_resident, given = mpshm_trim(arena);

    CHECK_EQ(had - gauges(arena).bytes_resident, given);
    CHECK(gauges(arena).bytes_resident < UINT64_C(24) << 20); /* the words of 1.9 million slots */
    CHECK_EQ(0, atomic_load(&chain->touched));
    end_queue();
}

static void
queue_with_little_in_it_goes_back_to_ring_0(void)
{
    open_queue(0);
    put(3000);
    get(2950);
    uint32_t ring = last_ring();

    CHECK(ring != 0);
    CHECK_EQ(RING_FREE, state_of(0));
    for (uint32_t i = 0; i < 64 && last_ring() != 0; i++) {
        put(1);
    }
    CHECK_EQ(0, last_ring());
    CHECK_EQ(ring, first_ring());
    CHECK_EQ(RING_USED, state_of(ring));
    get_all();
    CHECK_EQ(0, first_ring());
    CHECK_EQ(RING_FREE, state_of(ring));
    end_queue();
}

static bool
shrink(void)
{
    arena_lock(arena);
    bool has_shrunk = chain_shrink(arena);

    arena_unlock(arena);
    return has_shrunk;
}

static void
queue_with_much_in_it_stays_where_it_is(void)
{
    open_queue(0);
    CHECK(!shrink()); /* it is there */
    put(3000);
    CHECK(!shrink()); /* ring 0 is in use */
    get(3000 - RING_SLOTS / 4 - 1);
    CHECK(!shrink());
    get(1);
    CHECK(shrink());
    CHECK(!shrink());
    end_queue();
}

/* Those who come late. */

/* What the queue does while a process stands still. */
static void
go_on(int how)
{
    if (how >= 1) {
        put_until_full();
    }
    if (how >= 2) {
        grow();
        put(10);
    }
    if (how >= 3) {
        get_all();
    }
    if (how >= 4) { /* the rings are in use again */
        (void) mpshm_trim(arena);
        put(held_by(2) + 100);
    }
    if (how >= 5) {
        get_all();
        (void) mpshm_trim(arena);
        put(held_by(3) + 100);
        get_all();
    }
}
#define WAYS_TO_GO_ON 6

static void
late_claim_fails_wherever_the_queue_has_gone(void)
{
    for (uint32_t before = 0; before <= held_by(2) + 1; before += before < 3 ? 1 : SANITIZED ? 509 : 127) {
        for (int how = 0; how < WAYS_TO_GO_ON; how++) {
            open_queue(0);
            put(before);
            struct tail tail = tail_now();
            uint64_t word = word_of(tail.ring, tail.at, arena->me, SLOT_WRITING);

            go_on(how);
            if (how == 0 && !chain_is_full(arena)) {
                CHECK(atomic_compare_exchange_strong(slot_word(tail.ring, tail.at), &tail.word, word));
                arena_lock(arena);
                ring_give_up(arena, SPOT(tail.ring->number, tail.at));
                arena_unlock(arena);
            } else if (how > 0 && !(how == 1 && chain_is_full(arena) && tail.at == tail_now().at)) {
                CHECK(!atomic_compare_exchange_strong(slot_word(tail.ring, tail.at), &tail.word, word));
            }
            end_queue();
        }
    }
}

/* Found READY, it is taken by others, and in its place other messages are. */
static void
late_take_fails_wherever_the_queue_has_gone(void)
{
    for (uint32_t before = 0; before <= held_by(2); before += 211) {
        for (int how = 3; how < WAYS_TO_GO_ON; how++) {
            open_queue(0);
            put(held_by(2) + 10);
            get(before);
            struct start start = chain_first(arena);
            uint64_t word = load_slot(start.ring, start.at);

            CHECK_EQ(SLOT_READY, SLOT_STATE(word));
            go_on(how);
            CHECK(!atomic_compare_exchange_strong(slot_word(start.ring, start.at), &word,
                                                  passed_word(start.ring, start.at)));
            end_queue();
        }
    }
}

static void
hints_that_are_behind_are_moved_on(void)
{
    for (int how = 2; how < WAYS_TO_GO_ON; how++) {
        open_queue(1);
        uint64_t last = atomic_load(&chain->last);

        put(20);
        go_on(how);
        CHECK_EQ(put_count - got_count, mpshm_queue_size(arena));
        atomic_store(&chain->last, last);
        if (how < 4) { /* a bump comes too late in a ring's next life: it is a swap from what it was */
            atomic_store(&arena->zero.head->tail, atomic_load(&arena->zero.head->tail) - 1);
        }
        CHECK_EQ(put_count, tasks_unfinished(arena));
        CHECK_EQ(put_count - got_count, mpshm_queue_size(arena));
        put(3);
        CHECK(atomic_load(&chain->last) != last || how == 4);
        get_all();
        end_queue();
    }
}

/* Receivers and senders of other processes. */

static void
process_that_never_saw_a_ring_maps_it_when_it_comes_to_it(void)
{
    int to_child[2], to_parent[2];

    open_queue(0);
    CHECK_EQ(0, pipe(to_child));
    CHECK_EQ(0, pipe(to_parent));
    int pid = fork_hooked();

    if (pid == 0) {
        await(to_child);
        got_count = 0;
        put_count = held_by(3) + 10;
        get_all();
        put(held_by(4) + 10); /* further than its parent has come */
        go(to_parent);
        _exit(0);
    }
    put(held_by(3) + 10);
    go(to_child);
    await(to_parent);
    wait_child(pid);
    got_count = put_count;
    put_count += held_by(4) + 10;
    end_queue();
}

static void
sleeping_receiver_wakes_for_a_message_in_a_further_ring(void)
{
    int to_parent[2];

    open_queue(0);
    CHECK_EQ(0, pipe(to_parent));
    put(held_by(2) + 10);
    get_all();
    nobody_watches_soon(arena);
    int pid = fork_hooked();

    if (pid == 0) {
        int size;

        while ((size = receive_patiently(batch)) > 0 && number_of(batch->data, (uint32_t) size) != got_count + 2000) {
        }
        CHECK(size > 0);
        go(to_parent);
        _exit(0);
    }
    wait_sleeper(chain, pid);
    put(2001);
    await(to_parent);
    wait_child(pid);
    got_count = put_count;
    end_queue();
}

/* Slots of the dead. */

/* Claim the next positions and never write there. */
static void
claim_and_die(uint32_t count)
{
    int pid = fork_hooked();

    if (pid == 0) {
        for (uint32_t i = 0; i < count; i++) {
            uint64_t spot;

            arena_lock(arena);
            while (ring_claim(arena, SLOT_WRITING, 1, &spot) == 0) {
                CHECK_EQ(0, chain_grow(arena));
            }
            arena_unlock(arena);
        }
        die();
    }
    wait_killed(pid);
}

static void
dead_senders_slots_on_both_sides_of_a_link_are_skipped(void)
{
    for (uint32_t before = RING_SLOTS - 8; before < RING_SLOTS + 3; before++) {
        open_queue(1);
        put(before);
        claim_and_die(7);
        put(1000);
        CHECK_EQ(put_count, mpshm_queue_size(arena));
        for (uint64_t i = 0; i < 1000 + before; i++) {
            get(1);
            CHECK_EQ(0, mpshm_task_done(arena));
        }
        CHECK_EQ(-ERANGE, mpshm_task_done(arena));
        CHECK_EQ(0, mpshm_wait_done(arena, 0));
        CHECK_EQ(0, tasks_unfinished(arena));
        end_queue();
    }
}

static void
ring_full_of_the_dead_is_passed_and_those_behind_it_come(void)
{
    open_queue(1);
    put(3);
    claim_and_die((uint32_t) held_by(2));
    put(5);
    get_all();
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(0, mpshm_task_done(arena));
    }
    CHECK_EQ(-ERANGE, mpshm_task_done(arena));
    CHECK_EQ(0, mpshm_wait_done(arena, 0));
    end_queue();
}

/* Its slot is in the first ring, and stays open while all others go on. */
static void
living_sender_keeps_its_ring_and_no_message_behind_it(void)
{
    uint64_t spot;
    char frame[RING_FRAME_BYTES] = {0};

    open_queue(1);
    arena_lock(arena);
    CHECK_EQ(1, ring_claim(arena, SLOT_WRITING, 1, &spot));
    arena_unlock(arena);
    for (int lap = 0; lap < 3; lap++) {
        put(3000);
        get(put_count - got_count);
        CHECK_EQ(-EAGAIN, mpshm_queue_receive_one(batch, 0));
    }
    CHECK_EQ(0, first_ring());
    CHECK_EQ(RING_USED, state_of(0));
    CHECK_EQ(1, mpshm_queue_size(arena));
    CHECK_EQ(put_count + 1, tasks_unfinished(arena));
    mpshm_reap(arena);
    CHECK_EQ(RING_USED, state_of(0));
    frame[3] = 4; /* a length */
    arena_lock(arena);
    CHECK_EQ(0, ring_fill(arena, spot, frame));
    ring_put(arena, ends[1], &spot, 1);
    arena_unlock(arena);
    CHECK_EQ(4, mpshm_queue_receive_one(batch, 0));
    check_nothing_there();
    CHECK(first_ring() != 0);
    CHECK_EQ(RING_FREE, state_of(0));
    for (uint64_t i = 0; i <= put_count; i++) {
        CHECK_EQ(0, mpshm_task_done(arena));
    }
    CHECK_EQ(0, mpshm_wait_done(arena, 0));
    end_queue();
}

/* Makers and movers that are killed. */

/* As a sweep does it, which gives memory back as well. */
static void
reap_rings(void)
{
    arena_lock(arena);
    chain_reap(arena);
    arena_unlock(arena);
}

/* Link the ring at the end of the chain, as chain.c does, and die after so many steps. */
static void
link_and_die(uint32_t number, int steps)
{
    int pid = fork_hooked();

    if (pid != 0) {
        wait_killed(pid);
        return;
    }
    struct tail tail = tail_now(); /* and have a name of one's own */
    struct ring *ring = ring_at(arena, number);
    uint64_t word = atomic_load(&chain->word[number]), made = RING_WORD(RING_LIFE(word), arena->me, RING_MAKING);
    uint64_t begin = HEAD_POSITION(atomic_load(&ring->head->head)), last = tail.link;
    name link = LINK(number, RING_LIFE(word));

#define STEP if (steps-- == 0) { die(); }
    STEP
    CHECK_EQ(RING_FREE, RING_STATE(word));
    CHECK(atomic_compare_exchange_strong(&chain->word[number], &word, made));
    STEP
    if (number != 0) {
        atomic_fetch_or(&chain->touched, UINT64_C(1) << number);
    }
    if (is_next(ring, load_slot(ring, begin), begin)) {
        atomic_store(slot_word(ring, begin), passed_word(ring, begin));
    }
    STEP
    begin = position_after(begin, is_passed(ring, load_slot(ring, begin), begin));
    atomic_store(&ring->head->tail, begin);
    STEP
    atomic_store(&ring->head->head, HEAD_WORD(0, begin));
    STEP
    atomic_store(&ring->head->before, position_after(atomic_load(&tail.ring->head->before), tail.at - begin));
    STEP
    CHECK(atomic_compare_exchange_strong(slot_word(tail.ring, tail.at), &tail.word,
                                         word_of(tail.ring, tail.at, link, SLOT_NEXT)));
    STEP
    CHECK(atomic_compare_exchange_strong(&chain->word[number], &made, RING_WORD(RING_LIFE(made), 0, RING_USED)));
    STEP
    CHECK(atomic_compare_exchange_strong(&chain->last, &last, link));
    STEP
#undef STEP
    _exit(1);
}
#define LINK_STEPS 9
#define STEPS_TO_LINK 6

/* Have rings that were in use before be free, and one message wait. */
static void
use_rings(int lives)
{
    for (int i = 0; i < lives; i++) {
        put(held_by(2) + 10);
        get_all();
        for (int pairs = 0; pairs < 200; pairs++) {
            put(1);
            get(1);
        }
        CHECK_EQ(0, last_ring());
    }
}

static void
done_all(uint64_t *done)
{
    check_tasks(done);
    CHECK_EQ(put_count == got_count, mpshm_wait_done(arena, 0) == 0);
}

static void
killed_maker_leaves_a_ring_in_the_chain_or_a_free_one(void)
{
    for (int lives = 0; lives < 3; lives++) {
        for (int is_reaped = 0; is_reaped < 2; is_reaped++) {
            for (int steps = 0; steps < LINK_STEPS; steps++) {
                uint64_t done = 0;

                open_queue(1);
                use_rings(lives);
                done_all(&done);
                put_until_full();
                uint32_t life = life_of(1);

                link_and_die(1, steps);
                if (is_reaped) {
                    reap_rings();
                    CHECK_EQ(1, ring_validate(arena, true));
                    CHECK_EQ(steps < STEPS_TO_LINK ? RING_FREE : steps == STEPS_TO_LINK ? RING_MAKING : RING_USED,
                             state_of(1));
                    CHECK_EQ(life + (steps > 0 && steps < STEPS_TO_LINK), life_of(1));
                }
                check_tasks(&done);
                put(100);
                check_tasks(&done);
                get(RING_SLOTS);
                check_tasks(&done);
                put(4000);
                check_tasks(&done);
                get_all();
                done_all(&done);
                CHECK_EQ(-ERANGE, mpshm_task_done(arena));
                end_queue();
            }
        }
    }
}

static void
one_that_is_killed_while_the_queue_goes_back_to_ring_0_leaves_it_whole(void)
{
    for (int is_reaped = 0; is_reaped < 2; is_reaped++) {
        for (int steps = 0; steps < LINK_STEPS; steps++) {
            uint64_t done = 0;

            open_queue(1);
            put(held_by(2) + 10);
            get_all();
            put(10);
            CHECK(last_ring() != 0);
            link_and_die(0, steps);
            if (is_reaped) {
                reap_rings();
                CHECK_EQ(1, ring_validate(arena, true));
            }
            check_tasks(&done);
            get_all();
            done_all(&done);
            put(1);
            check_tasks(&done);
            get_all();
            reap_rings();
            (void) mpshm_trim(arena);
            CHECK_EQ(0, last_ring());
            CHECK_EQ(0, first_ring());
            done_all(&done);
            end_queue();
        }
    }
}

/* All rings but those of the chain, by one after the other. */
static void
rings_of_many_killed_makers_are_to_be_had_again(void)
{
    open_queue(0);
    put_until_full();
    for (uint32_t number = 1; number < RINGS; number++) {
        link_and_die(number, 1 + (int) (number % (STEPS_TO_LINK - 1)));
        CHECK_EQ(RING_MAKING, state_of(number));
    }
    grow();
    put(100);
    for (uint32_t number = 2; number < RINGS; number++) {
        CHECK_EQ(RING_FREE, state_of(number));
    }
    end_queue();
}

/* Moves `first` on, as chain.c does, and is killed before it has released the ring. */
static void
move_first_and_die(void)
{
    int pid = fork_hooked();

    if (pid == 0) {
        uint64_t first = atomic_load(&chain->first);
        struct ring *ring = ring_at(arena, LINK_RING(FIRST_LINK(first)));
        uint64_t head = ring_advance(arena, ring), word = load_slot(ring, HEAD_POSITION(head));

        CHECK(is_next(ring, word, HEAD_POSITION(head)));
        CHECK(atomic_compare_exchange_strong(&chain->first, &first,
                                             FIRST_WORD(SLOT_OWNER(word), FIRST_SKIPS(first) + HEAD_SKIPS(head))));
        die();
    }
    wait_killed(pid);
}

/* Take a message, past all that a receiver does afterwards. */
static void
take_only(void)
{
    struct start start = chain_first(arena);
    uint64_t word = load_slot(start.ring, start.at);

    CHECK_EQ(SLOT_READY, SLOT_STATE(word));
    CHECK(atomic_compare_exchange_strong(slot_word(start.ring, start.at), &word, passed_word(start.ring, start.at)));
    got_count++;
}

static void
ring_that_a_killed_receiver_has_left_is_taken_back(void)
{
    for (int stale = 0; stale < 2; stale++) {
        uint64_t done = 0;

        open_queue(1);
        uint64_t last = atomic_load(&chain->last);

        put(held_by(1));
        grow();
        put(5);
        get(held_by(1) - 1);
        take_only();
        move_first_and_die();
        CHECK_EQ(1, first_ring());
        CHECK_EQ(RING_USED, state_of(0));
        if (stale) {
            atomic_store(&chain->last, last);
        }
        put(50);
        check_tasks(&done);
        CHECK(!shrink()); /* ring 0 is nobody's, and is not known to be */
        reap_rings();
        CHECK_EQ(RING_FREE, state_of(0));
        CHECK_EQ(1, life_of(0));
        CHECK_EQ(1, ring_validate(arena, true));
        CHECK(shrink());
        get_all();
        done_all(&done);
        end_queue();
    }
}

/* What the living make, and what is in the chain, is not taken from them. */
static void
reaper_leaves_rings_of_the_living(void)
{
    open_queue(0);
    put(held_by(4) + 100);
    uint64_t made = RING_WORD(0, arena->me, RING_MAKING), free_word = 0;

    CHECK(atomic_compare_exchange_strong(&chain->word[7], &free_word, made));
    for (int i = 0; i < 3; i++) {
        mpshm_reap(arena);
        for (uint32_t number = 0; number < 5; number++) {
            CHECK_EQ(RING_WORD(0, 0, RING_USED), atomic_load(&chain->word[number]));
        }
        CHECK_EQ(made, atomic_load(&chain->word[7]));
        get(held_by(1) / 4);
    }
    put(held_by(8)); /* round the one that is being made */
    CHECK_EQ(made, atomic_load(&chain->word[7]));
    CHECK(atomic_compare_exchange_strong(&chain->word[7], &made, RING_WORD(1, 0, RING_FREE)));
    end_queue();
}

/* One takes a free ring to give its memory back, and is killed. */
static void
killed_trimmer_leaves_a_free_ring(void)
{
    open_queue(0);
    put(held_by(3) + 10);
    get_all();
    (void) mpshm_trim(arena);
    put(held_by(3) + 10);
    get_all();
    uint64_t touched = atomic_load(&chain->touched);

    CHECK(touched != 0);
    int pid = fork_hooked();

    if (pid == 0) {
        mpshm_reap(arena);
        arena_lock(arena);
        for (uint32_t number = 1; number < RINGS; number++) {
            uint64_t made;

            (void) chain_take_cold(arena, number, &made);
        }
        die();
    }
    wait_killed(pid);
    mpshm_reap(arena);
    CHECK_EQ(1, ring_validate(arena, true));
    put(held_by(3) + 10);
    get_all();
    (void) mpshm_trim(arena);
    end_queue();
}

/* Hammers. */

#define SENDERS 3
#define RECEIVERS 2
#define NOTES UINT32_C(20000)
#define IDS 512
#define MOST_NOTES UINT32_C(65536)

/* A message that says whose it is, and which. */
struct note {
    uint32_t sender, seq;
};

static struct shared {
    _Atomic uint64_t seen[IDS][MOST_NOTES / 64];
    _Atomic uint32_t put[IDS]; /* how many puts have returned */
    _Atomic uint32_t next_id;
    _Atomic uint64_t got;
} *shared;

static void
open_shared(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(shared != MAP_FAILED);
}

static void
put_note(uint32_t sender, uint32_t seq)
{
    struct note note = {sender, seq};
    char data[2000];
    uint32_t size = seq % 5 == 0 ? 1500 + seq % 500 : 8 + seq % 400; /* some have a run, some need the overflow */
    int n;

    fill(data, size, sender + seq);
    memcpy(data, &note, sizeof note);
    while ((n = mpshm_queue_put_one(END(arena, ends[1]), data, size, NULL)) == -EAGAIN || n == -ENOSPC) {
        if (n == -ENOSPC) { /* too many runs are in flight */
            usleep(1000);
            mpshm_reap(arena);
        } else {
            CHECK_EQ(0, mpshm_queue_grow(END(arena, ends[1])));
        }
    }
    CHECK_EQ(1, n);
    atomic_store(&shared->put[sender], seq + 1);
}

/* last: one more than the number of the last note this receiver had of each sender. */
static void
note_taken(char *data, uint32_t size, uint32_t *last)
{
    struct note note;
    char first[sizeof note];

    memcpy(&note, data, sizeof note);
    CHECK(note.sender < IDS && note.seq < MOST_NOTES);
    fill(first, sizeof first, note.sender + note.seq);
    memcpy(data, first, sizeof first);
    CHECK(is_filled(data, size, note.sender + note.seq));
    if (note.seq < last[note.sender]) {
        check_failed(__FILE__, __LINE__, "out of order");
    }
    last[note.sender] = note.seq + 1;
    uint64_t bit = UINT64_C(1) << note.seq % 64;

    if (atomic_fetch_or(&shared->seen[note.sender][note.seq / 64], bit) & bit) {
        check_failed(__FILE__, __LINE__, "doubled");
    }
    atomic_fetch_add(&shared->got, 1);
}

static int
receive_notes(uint32_t *last, uint32_t most, int timeout_ms)
{
    int n = mpshm_queue_receive(batch, most, timeout_ms);

    CHECK(n > 0 || n == -EAGAIN);
    for (int i = 0; i < n; i++) {
        CHECK_EQ(0, batch->messages[i].error);
        note_taken(batch->data + batch->messages[i].at, batch->messages[i].size, last);
    }
    return n;
}

/* Receivers stop for a while now and then: the queue grows and becomes empty again and again. */
static void
receive_by_fits(uint32_t *last, uint32_t most, uint32_t turn)
{
    if (turn % 200 == 199) {
        usleep(3000);
    }
    receive_notes(last, most, 5);
}

static void
check_all_seen(void)
{
    CHECK_EQ(SENDERS * NOTES, atomic_load(&shared->got));
    for (uint32_t sender = 0; sender < SENDERS; sender++) {
        for (uint32_t seq = 0; seq < NOTES; seq++) {
            CHECK(atomic_load(&shared->seen[sender][seq / 64]) >> seq % 64 & 1);
        }
    }
    check_nothing_there();
}

static void
send_notes(uint32_t sender)
{
    for (uint32_t seq = 0; seq < NOTES; seq++) {
        put_note(sender, seq);
    }
}

static void
take_all_notes(uint32_t number)
{
    static uint32_t last[IDS];

    for (uint32_t turn = 0; atomic_load(&shared->got) < SENDERS * NOTES; turn++) {
        receive_by_fits(last, number % 2 ? 1 : AT_ONCE, turn);
    }
}

static void
processes_lose_and_double_nothing_while_the_queue_grows(void)
{
    int pids[SENDERS + RECEIVERS];

    open_queue(0);
    open_shared();
    for (uint32_t i = 0; i < SENDERS + RECEIVERS; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            if (i < SENDERS) {
                send_notes(i);
            } else {
                take_all_notes(i);
            }
            _exit(0);
        }
    }
    while (atomic_load(&shared->got) < SENDERS * NOTES) {
        (void) mpshm_trim(arena);
        CHECK_EQ(1, ring_validate(arena, false));
        usleep(2000);
    }
    for (int i = 0; i < SENDERS + RECEIVERS; i++) {
        wait_child(pids[i]);
    }
    check_all_seen();
    end_queue();
}

/* In threads with a handle of their own.  The lock is held for all of them: it orders nothing that they do. */
static mpshm_arena handle;

static void *
put_in_thread(void *number)
{
    mpshm_arena own = handle;
    char frame[RING_FRAME_BYTES] = {0};
    struct note note = {(uint32_t) (uintptr_t) number, 0};

    while (note.seq < NOTES) {
        uint32_t size = 8 + note.seq % 1000, length = htonl(size);

        memcpy(frame, &length, sizeof length);
        fill(frame + sizeof length, size, note.sender + note.seq);
        memcpy(frame + sizeof length, &note, sizeof note);
        if (put_and_rouse(&own, ends[1], frame, 1) == 1) {
            note.seq++;
        } else {
            CHECK_EQ(0, chain_grow(&own));
        }
        if (note.seq % 64 == 0) {
            (void) chain_shrink(&own);
        }
    }
    return NULL;
}

static void *
take_in_thread(void *number)
{
    mpshm_arena own = handle;
    uint32_t last[SENDERS] = {0}, most = number == NULL ? 1 : 8;
    char frames[8 * RING_FRAME_BYTES];

    for (uint32_t turn = 0; atomic_load(&shared->got) < SENDERS * NOTES; turn++) {
        uint32_t n = take_and_let_in(&own, frames, most);

        for (uint32_t i = 0; i < n; i++) {
            char *frame = frames + (size_t) i * RING_FRAME_BYTES;
            uint32_t length;

            memcpy(&length, frame, sizeof length);
            note_taken(frame + sizeof length, ntohl(length), last);
        }
        if (n == 0 || turn % 500 == 499) {
            usleep(n == 0 ? 100 : 2000);
        }
    }
    return NULL;
}

static void
threads_lose_and_double_nothing_while_the_queue_grows(void)
{
    pthread_t threads[SENDERS + RECEIVERS];

    open_queue(0);
    open_shared();
    arena_lock(arena);
    handle = *arena; /* before any thread changes it */
    for (uintptr_t i = 0; i < SENDERS + RECEIVERS; i++) {
        CHECK_EQ(0, pthread_create(&threads[i], NULL, i < SENDERS ? put_in_thread : take_in_thread,
                                   (void *) (i % SENDERS)));
    }
    for (int i = 0; i < SENDERS + RECEIVERS; i++) {
        pthread_join(threads[i], NULL);
    }
    arena_unlock(arena);
    check_all_seen();
    end_queue();
}

#define CREW (SENDERS + RECEIVERS + 1)

static void
live_until_killed(uint32_t role)
{
    static uint32_t last[IDS];

    if (role < SENDERS) {
        uint32_t id = atomic_fetch_add(&shared->next_id, 1), seq = 0;

        CHECK(id < IDS);
        for (; seq < MOST_NOTES; seq++) {
            put_note(id, seq);
            if (mpshm_queue_size(arena) > 20000) {
                usleep(1000);
            }
        }
        pause();
    }
    for (uint32_t turn = 0;; turn++) {
        if (role < SENDERS + RECEIVERS) {
            receive_by_fits(last, role % 2 ? 1 : AT_ONCE, turn);
        } else {
            (void) mpshm_trim(arena);
            usleep(500);
        }
    }
}

static int
crew_member(uint32_t role)
{
    int pid = fork_hooked();

    if (pid == 0) {
        live_until_killed(role);
    }
    return pid;
}

/* Of each sender all that it has put is there, but what killed receivers had in hand. */
static uint32_t
count_lost(void)
{
    uint32_t lost = 0;

    for (uint32_t id = 0; id < atomic_load(&shared->next_id) && id < IDS; id++) {
        for (uint32_t seq = 0; seq < atomic_load(&shared->put[id]); seq++) {
            lost += (atomic_load(&shared->seen[id][seq / 64]) >> seq % 64 & 1) == 0;
        }
    }
    return lost;
}

#define KILL_NS INT64_C(2000000000)

static void
crew_killed_at_random_while_the_queue_grows_leaves_it_whole(void)
{
    static uint32_t last[IDS];
    int pids[CREW];
    uint64_t seed = (uint64_t) now_ns();
    uint32_t receivers_killed = 0;

    open_queue(0);
    open_shared();
    for (uint32_t i = 0; i < CREW; i++) {
        pids[i] = crew_member(i);
    }
    for (int64_t until = now_ns() + KILL_NS; now_ns() < until;) {
        seed = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
        usleep((useconds_t) (seed >> 20) % 8000);
        uint32_t role = (uint32_t) (seed >> 40) % CREW;

        receivers_killed += role >= SENDERS && role < SENDERS + RECEIVERS;
        kill_child(pids[role]);
        pids[role] = crew_member(role);
    }
    for (int i = 0; i < CREW; i++) {
        kill_child(pids[i]);
    }
    mpshm_reap(arena);
    CHECK_EQ(1, ring_validate(arena, true));
    while (receive_notes(last, AT_ONCE, 0) > 0) {
    }
    CHECK(count_lost() <= (receivers_killed + RECEIVERS) * AT_ONCE);
    mpshm_reap(arena);
    end_queue();
}

static const struct test tests[] = {
    TEST(ring_is_full_one_slot_before_its_last_and_the_next_is_twice_as_long),
    TEST(all_is_right_at_a_border_and_beside_it),
    TEST(messages_put_and_got_at_once_lie_on_both_sides_of_a_link),
    TEST(ring_whose_slots_have_been_gone_round_is_linked_at_any_of_them),
    TEST(rings_are_used_again_in_further_lives),
    TEST_THAT_NEEDS(madvice, no_ring_is_to_be_had_when_all_are_full),
    TEST(queue_with_little_in_it_goes_back_to_ring_0),
    TEST(queue_with_much_in_it_stays_where_it_is),
    TEST(late_claim_fails_wherever_the_queue_has_gone),
    TEST(late_take_fails_wherever_the_queue_has_gone),
    TEST(hints_that_are_behind_are_moved_on),
    TEST(process_that_never_saw_a_ring_maps_it_when_it_comes_to_it),
    TEST(sleeping_receiver_wakes_for_a_message_in_a_further_ring),
    TEST(dead_senders_slots_on_both_sides_of_a_link_are_skipped),
    TEST(ring_full_of_the_dead_is_passed_and_those_behind_it_come),
    TEST(living_sender_keeps_its_ring_and_no_message_behind_it),
    TEST(killed_maker_leaves_a_ring_in_the_chain_or_a_free_one),
    TEST(one_that_is_killed_while_the_queue_goes_back_to_ring_0_leaves_it_whole),
    TEST(rings_of_many_killed_makers_are_to_be_had_again),
    TEST(ring_that_a_killed_receiver_has_left_is_taken_back),
    TEST(reaper_leaves_rings_of_the_living),
    TEST(killed_trimmer_leaves_a_free_ring),
    TEST(threads_lose_and_double_nothing_while_the_queue_grows),
    TEST(processes_lose_and_double_nothing_while_the_queue_grows),
    TEST(crew_killed_at_random_while_the_queue_grows_leaves_it_whole),
};

RUN_TESTS(tests)
