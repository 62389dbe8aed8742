/* The ring: order, room, who is killed in the middle, sleep and wake-ups, and the pipe beside it.

   What a sender or a receiver is in the middle of is made by hand, word by word; the hammers at the
   end find what nobody thought of. */
#define _GNU_SOURCE
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FULL ((uint32_t) RING_SLOTS)
#define AT_ONCE MPSHM_SLOTS_AT_ONCE

static mpshm_arena *arena;
static struct ring_head *ring;
static mpshm_batch *batch;
static mpshm_counts counts;
static int ends[2], to_parent[2];

static void
open_queue_of(mpshm_queue queue)
{
    CHECK_EQ(0, mpshm_arena_create(&tiny, MPSHM_FILE_AUTO, "mpshm", 0, &queue, &arena));
    make_pipe(ends);
    CHECK_EQ(0, pipe(to_parent));
    batch = batch_of(arena, &counts, ends[0], 0);
    ring = arena->zero.head;
    mpshm_reap(arena); /* have a name, before any child */
    CHECK(arena->me != 0);
}

static void
open_queue(uint32_t places)
{
    open_queue_of((mpshm_queue) {.places = places});
}

static void
open_ring(void)
{
    open_queue(0);
}

static void
open_growing(void)
{
    open_queue_of((mpshm_queue) {.grows = 1});
}

/* A message that says whose it is, and whether it is whole. */
struct note {
    uint32_t length; /* as a small message begins */
    uint32_t sender;
    uint64_t seq, filling[13], sum;
};
_Static_assert(sizeof(struct note) == MPSHM_SLOT_BYTES, "a note fills a slot");

static uint64_t
mixed(uint64_t value)
{
    value *= UINT64_C(0x9e3779b97f4a7c15);
    return value ^ value >> 29;
}

static struct note
note_of(uint32_t sender, uint64_t seq)
{
    struct note note = {.length = htonl(MPSHM_SLOT_BYTES - 4), .sender = sender, .seq = seq};
    uint64_t value = mixed((uint64_t) sender << 40 | seq);

    note.sum = value;
    for (int i = 0; i < 13; i++) {
        note.filling[i] = value = mixed(value + 1);
        note.sum ^= value;
    }
    return note;
}

static void
check_note(const struct note *note)
{
    struct note whole = note_of(note->sender, note->seq);

    if (memcmp(&whole, note, sizeof whole) != 0) {
        check_failed(__FILE__, __LINE__, "torn");
    }
}

/* The ring takes and gives frames that lie apart.  Under arena_lock. */
static uint32_t
put_noted(mpshm_arena *its, const struct note *notes, uint32_t count)
{
    static _Thread_local char frames[AT_ONCE * RING_FRAME_BYTES];

    for (uint32_t i = 0; i < count; i++) {
        memcpy(frames + i * RING_FRAME_BYTES, &notes[i], sizeof notes[i]);
    }
    return put_and_rouse(its, ends[1], frames, count);
}

static uint32_t
take_noted(mpshm_arena *its, struct note *notes, uint32_t most)
{
    static _Thread_local char frames[AT_ONCE * RING_FRAME_BYTES];
    uint32_t n = take_and_let_in(its, frames, most);

    for (uint32_t i = 0; i < n; i++) {
        memcpy(&notes[i], frames + i * RING_FRAME_BYTES, sizeof notes[i]);
    }
    return n;
}

/* How many of `count` notes, numbered from seq on, found room. */
static uint32_t
put_notes(uint32_t sender, uint64_t seq, uint32_t count)
{
    struct note notes[AT_ONCE];

    for (uint32_t i = 0; i < count; i++) {
        notes[i] = note_of(sender, seq + i);
    }
    arena_lock(arena);
    uint32_t n = put_noted(arena, notes, count);

    arena_unlock(arena);
    return n;
}

static uint32_t
take_notes(struct note *notes, uint32_t most)
{
    arena_lock(arena);
    uint32_t n = take_noted(arena, notes, most);

    arena_unlock(arena);
    for (uint32_t i = 0; i < n; i++) {
        check_note(&notes[i]);
    }
    return n;
}

static void
check_put(uint32_t sender, uint64_t seq, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(1, put_notes(sender, seq + i, 1));
    }
}

static void
check_taken(uint32_t sender, uint64_t seq, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct note note;

        CHECK_EQ(1, take_notes(&note, 1));
        CHECK_EQ(sender, note.sender);
        CHECK_EQ(seq + i, note.seq);
    }
}

static void
check_nothing_there(void)
{
    struct note note;

    CHECK_EQ(0, take_notes(&note, 1));
    CHECK_EQ(0, ring_count(arena, false));
    CHECK_EQ(0, mpshm_queue_size(arena));
    CHECK_EQ(false, ring_is_ready(arena));
}

/* Every slot can be used, twice, and none is left out. */
static void
end_ring(void)
{
    for (uint32_t lap = 0; lap < 2; lap++) {
        check_nothing_there();
        check_put(99, lap * FULL, FULL);
        CHECK_EQ(FULL, ring_count(arena, false));
        CHECK_EQ(0, put_notes(99, 0, 1));
        check_taken(99, lap * FULL, FULL);
    }
    free_batch(batch);
    mpshm_arena_close(arena);
}

/* Its rings are free but for one, and it grows as ever. */
static void
end_growing(void)
{
    mpshm_reap(arena);
    CHECK_EQ(1, ring_validate(arena, true));
    for (uint32_t round = 0; round < 2; round++) {
        check_nothing_there();
        (void) mpshm_trim(arena);
        CHECK_EQ(0, LINK_RING((name) atomic_load(&arena->chain->last) & NAME_MASK));
        CHECK_EQ(0, atomic_load(&arena->chain->touched));
        check_put(99, 0, FULL - 1); /* one slot is the link's */
        CHECK_EQ(0, put_notes(99, 0, 1));
        CHECK_EQ(0, mpshm_queue_grow(END(arena, ends[1])));
        check_put(99, FULL - 1, FULL);
        CHECK_EQ(2 * FULL - 1, ring_count(arena, false));
        check_taken(99, 0, 2 * FULL - 1);
        CHECK_EQ(1, ring_validate(arena, true));
    }
    free_batch(batch);
    mpshm_arena_close(arena);
}

/* Claim the next position, as a sender does before it writes; and write it. */
static uint64_t
begin_put(void)
{
    uint64_t at;

    arena_lock(arena);
    CHECK_EQ(1, ring_claim(arena, SLOT_WRITING, 1, &at));
    arena_unlock(arena);
    return at;
}

static void
finish_put(uint64_t at, uint32_t sender, uint64_t seq)
{
    struct note note = note_of(sender, seq);
    uint64_t words[RING_DATA_BYTES / 8];

    memcpy(words, &note, sizeof words);
    for (size_t i = 0; i < RING_DATA_BYTES / 8; i++) {
        atomic_store(&slot_data(&arena->zero, at)[i], words[i]);
    }
    atomic_store(slot_word(&arena->zero, at), word_of(&arena->zero, at, 0, SLOT_READY));
}

static void
set_slot(uint64_t at, enum slot_state state)
{
    atomic_store(slot_word(&arena->zero, at), word_of(&arena->zero, at, state == SLOT_READY ? 0 : arena->me, state));
}

/* Let a child claim so many positions and be killed; `behind`: before it moved the tail on. */
static void
claim_and_die(enum slot_state state, uint32_t count, bool behind)
{
    int pid = fork_hooked();

    if (pid == 0) {
        uint64_t positions[AT_ONCE];

        arena_lock(arena);
        CHECK_EQ(count, ring_claim(arena, state, count, positions));
        if (behind) {
            atomic_store(&ring->tail, positions[count - 1]);
        }
        die();
    }
    wait_killed(pid);
}

/* Let a child take the message at that position, as one with runs, and be killed before it has passed. */
static void
take_and_die(uint64_t at)
{
    int pid = fork_hooked();

    if (pid == 0) {
        arena_lock(arena);
        set_slot(at, SLOT_TAKING);
        die();
    }
    wait_killed(pid);
}

/* Order and room. */

static void
order_is_kept_over_many_laps(void)
{
    struct note notes[AT_ONCE];
    uint64_t put = 0, taken = 0;

    open_ring();
    for (uint32_t i = 0; taken < 6 * RING_SLOTS; i++) {
        put += put_notes(7, put, 1 + i % AT_ONCE);
        uint32_t n = take_notes(notes, 1 + i * 7 % AT_ONCE);

        for (uint32_t j = 0; j < n; j++) {
            CHECK_EQ(7, notes[j].sender);
            CHECK_EQ(taken++, notes[j].seq);
        }
        CHECK_EQ(put - taken, ring_count(arena, false));
    }
    check_taken(7, taken, (uint32_t) (put - taken));
    end_ring();
}

static void
ring_is_full_at_its_last_slot_exactly(void)
{
    struct note notes[AT_ONCE];

    open_ring();
    for (uint32_t start = 0; start < 3 * FULL; start += 300) { /* wherever the laps begin */
        for (uint32_t i = 0; i < FULL; i++) {
            CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 0));
            CHECK_EQ(i, ring_count(arena, false));
            CHECK_EQ(1, put_notes(1, i, 1));
        }
        CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 0));
        CHECK_EQ(0, put_notes(1, 0, 1));
        CHECK_EQ(FULL, mpshm_queue_size(arena));
        CHECK_EQ(3, take_notes(notes, 3));
        CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 0));
        CHECK_EQ(3, put_notes(1, FULL, 9)); /* the first */
        CHECK_EQ(-EAGAIN, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 0));
        check_taken(1, 3, FULL);
        check_put(2, 0, 300);
        check_taken(2, 0, 300);
    }
    end_ring();
}

/* In the middle of being written. */

static void
slot_being_written_is_passed_over(void)
{
    open_ring();
    check_put(1, 0, 1);
    uint64_t first = begin_put();

    check_put(2, 0, 2);
    uint64_t second = begin_put(), third = begin_put();

    check_put(3, 0, 2);
    CHECK_EQ(5, ring_count(arena, false));
    CHECK_EQ(8, mpshm_queue_size(arena)); /* with those that are coming */
    check_taken(1, 0, 1);
    check_taken(2, 0, 2);
    check_taken(3, 0, 2);
    CHECK_EQ(false, ring_is_ready(arena));
    CHECK_EQ(3, mpshm_queue_size(arena));
    finish_put(third, 4, 1);
    check_taken(4, 1, 1);
    finish_put(first, 5, 0);
    finish_put(second, 4, 0);
    CHECK_EQ(2, ring_count(arena, false));
    check_taken(5, 0, 1);
    check_taken(4, 0, 1);
    end_ring();
}

static void
living_senders_slot_holds_the_ring_up_after_a_lap_and_no_longer(void)
{
    open_ring();
    for (uint64_t round = 0; round < 3; round++) {
        check_put(1, 0, 100); /* the laps begin elsewhere each time */
        check_taken(1, 0, 100);
        uint64_t at = begin_put();

        for (uint32_t i = 0; i < FULL - 1; i++) {
            CHECK_EQ(1, put_notes(1, i, 1));
            check_taken(1, i, 1);
        }
        CHECK_EQ(false, ring_is_ready(arena));
        CHECK_EQ(0, put_notes(1, 0, 1));
        CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1));
        mpshm_reap(arena);
        CHECK_EQ(-EAGAIN, mpshm_queue_wait_room(END(arena, ends[1]), NULL, 0)); /* it lives */
        finish_put(at, 2, round);
        CHECK_EQ(1, ring_count(arena, false));
        check_taken(2, round, 1);
        CHECK_EQ(0, mpshm_queue_wait_room(END(arena, ends[1]), NULL, 0));
    }
    end_ring();
}

enum rescue { BY_NOTHING, BY_REAP, BY_WAITING, BY_SIZE, BY_RECEIVING, RESCUES };

static void
rescue(enum rescue how)
{
    int error;

    switch (how) {
    case BY_REAP:
        mpshm_reap(arena);
        break;
    case BY_WAITING:
        error = mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1);
        CHECK(error == 0 || error == -EAGAIN);
        break;
    case BY_SIZE:
        CHECK_EQ(0, mpshm_queue_size(arena));
        break;
    case BY_RECEIVING:
        CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 0));
        break;
    default: /* a put does it */
        break;
    }
}

static void
killed_senders_slots_are_freed(void)
{
    for (int count = 1; count <= 3; count++) {
        for (int behind = 0; behind < 2; behind++) {
            open_ring();
            check_put(1, 0, 2);
            claim_and_die(SLOT_WRITING, count, behind);
            check_put(1, 2, 2);
            mpshm_reap(arena);
            CHECK_EQ(4, mpshm_queue_size(arena));
            check_taken(1, 0, 4);
            CHECK_EQ(count, HEAD_SKIPS(atomic_load(&ring->head)));
            end_ring();
        }
    }
}

static void
full_ring_gets_its_killed_senders_slots_back(void)
{
    open_ring();
    check_put(1, 0, 10);
    claim_and_die(SLOT_WRITING, 3, false);
    check_put(1, 10, FULL - 13);
    CHECK_EQ(0, put_notes(1, 0, 1));
    CHECK_EQ(FULL - 3, mpshm_queue_size(arena)); /* which has these skipped, */
    CHECK_EQ(0, put_notes(1, 0, 1));             /* but a message is before them */
    check_taken(1, 0, 10);
    check_put(1, FULL - 3, 13);
    CHECK_EQ(0, put_notes(1, 0, 1));
    CHECK_EQ(FULL, mpshm_queue_size(arena));
    check_taken(1, 10, FULL);
    end_ring();
}

/* The receivers have been once around, and the head has not moved.  Whoever comes next mends it. */
static void
dead_slot_at_the_head_for_a_whole_lap_is_got_over(void)
{
    for (enum rescue how = 0; how < RESCUES; how++) {
        open_ring();
        claim_and_die(how % 2 ? SLOT_WRITING : SLOT_HELD, 1, false);
        for (uint32_t i = 0; i < FULL - 1; i++) {
            CHECK_EQ(1, put_notes(1, i, 1));
            check_taken(1, i, 1);
        }
        CHECK_EQ(false, ring_is_ready(arena));
        rescue(how);
        check_put(2, 0, 1);
        CHECK_EQ(1, mpshm_queue_size(arena));
        CHECK_EQ(true, ring_is_ready(arena));
        check_taken(2, 0, 1);
        end_ring();
    }
}

static void
taken_slot_of_a_dead_receiver_is_free_in_the_next_lap(void)
{
    for (enum rescue how = 0; how < RESCUES; how++) {
        open_ring();
        check_put(1, 0, 3);
        take_and_die(1);
        check_taken(1, 0, 1);
        check_taken(1, 2, 1); /* it holds no order back */
        for (uint32_t i = 0; i < FULL - 2; i++) {
            CHECK_EQ(1, put_notes(1, i, 1));
            check_taken(1, i, 1);
        }
        rescue(how);
        check_put(2, 0, 1);
        CHECK_EQ(0, HEAD_SKIPS(atomic_load(&ring->head)));
        check_taken(2, 0, 1);
        end_ring();
    }
}

/* Nobody has looked since the dead one's slot was freed: what is behind it is a message all the
   same, and its run no orphan. */
static void
message_behind_a_reaped_head_is_not_taken_for_lost(void)
{
    char data[300];

    open_ring();
    claim_and_die(SLOT_WRITING, 1, false);
    for (uint32_t i = 0; i < FULL - 1; i++) {
        CHECK_EQ(1, put_notes(1, i, 1));
        check_taken(1, i, 1);
    }
    mpshm_reap(arena);
    fill(data, sizeof data, 3);
    arena->overflowing = false; /* so that it needs a run */
    CHECK_EQ(1, mpshm_queue_put_one(END(arena, ends[1]), data, sizeof data, NULL));
    CHECK_EQ(1, runs_in_use(arena));
    mpshm_reap(arena);
    CHECK_EQ(1, runs_in_use(arena));
    CHECK_EQ(1, mpshm_queue_size(arena));
    CHECK_EQ(sizeof data, mpshm_queue_receive_one(batch, 0));
    CHECK(is_filled(batch->data, sizeof data, 3));
    end_ring();
}

/* Killed after its taking, and before it moved the head on. */
static void
head_left_behind_is_moved_on(void)
{
    for (uint32_t taken = 1; taken <= FULL; taken += FULL - 1) {
        open_ring();
        check_put(1, 0, FULL);
        for (uint64_t i = 0; i < taken; i++) {
            atomic_store(&ring->slots[i].word, SLOT_WORD(1, 0, SLOT_FREE));
        }
        CHECK_EQ(FULL - taken, ring_count(arena, false));
        check_put(2, 0, 1);
        CHECK_EQ(FULL - taken + 1, ring_count(arena, false));
        check_taken(1, taken, FULL - taken);
        check_taken(2, 0, 1);
        end_ring();
    }
}

static void
tail_left_behind_is_moved_on(void)
{
    open_ring();
    for (uint32_t i = 0; i < 3 * FULL; i++) {
        CHECK_EQ(1, put_notes(1, i, 1));
        atomic_fetch_sub(&ring->tail, 1);
        CHECK_EQ(0, waiters_room(arena, ends[1], POLLERR, MPSHM_NO_PLACE, 0));
        CHECK_EQ(1, ring_count(arena, false));
        check_taken(1, i, 1);
    }
    end_ring();
}

/* Nobody is to run for ever, or out of the ring; what became of the messages does not matter. */
static void
stray_writes_hold_nobody_up(void)
{
    static struct note notes[AT_ONCE];
    uint64_t seed = 1;

    open_ring();
    for (int round = 0; round < (SANITIZED ? 48 : 300); round++) {
        uint64_t garbage[] = {0, UINT64_MAX, mixed(seed), seed, UINT64_MAX - 100,
                              mixed(seed) >> 20};
        uint64_t value = garbage[round % 6];

        seed = mixed(seed + 1);
        switch (round / 6 % 4) {
        case 0:
            atomic_store(&ring->head, value);
            break;
        case 1:
            atomic_store(&ring->tail, value);
            break;
        case 2:
            atomic_store(&ring->slots[seed % RING_SLOTS].word, value);
            break;
        default: /* what the others have spoilt is whole again */
            atomic_store(&ring->head, 0);
            atomic_store(&ring->tail, 0);
            for (uint64_t i = 0; i < RING_SLOTS; i++) {
                atomic_store(&ring->slots[i].word, 0);
            }
        }
        for (uint32_t i = 0; i < 3; i++) {
            arena_lock(arena);
            (void) put_noted(arena, notes, AT_ONCE);
            (void) take_noted(arena, notes, 1 + round % AT_ONCE);
            arena_unlock(arena);
        }
        CHECK(ring_count(arena, false) <= FULL);
        (void) ring_is_ready(arena);
        mpshm_reap(arena);
        (void) mpshm_queue_wait_room(END(arena, ends[1]), NULL, 1);
        (void) mpshm_queue_poll(batch->end, 1);
    }
}

static void
all_messages_come_before_the_end(void)
{
    open_ring();
    check_put(1, 0, 70);
    close(ends[1]);
    for (int left = 70; left > 0;) {
        int n = mpshm_queue_receive(batch, AT_ONCE, -1);

        CHECK(n > 0);
        left -= n;
    }
    CHECK_EQ(MPSHM_E_END, mpshm_queue_receive(batch, 1, 0));
    CHECK_EQ(MPSHM_E_END, mpshm_queue_receive(batch, 1, -1));
    end_ring();
}

/* The pipe. */

static int
bytes_in_pipe(void)
{
    int bytes;

    CHECK_EQ(0, ioctl(ends[0], FIONREAD, &bytes));
    return bytes;
}

static void
check_received(int count)
{
    for (int i = 0; i < count; i++) {
        CHECK_EQ(1, mpshm_queue_receive(batch, 1, 0));
    }
}

static void
watched_pipe_is_readable_while_there_are_messages(void)
{
    open_ring();
    check_put(1, 0, 2);
    CHECK_EQ(0, bytes_in_pipe()); /* nobody asked for it */
    check_received(2);
    mpshm_queue_watch(batch->end);
    CHECK_EQ(0, bytes_in_pipe());
    for (uint32_t i = 0; i < 2 * FULL; i += 3) {
        check_put(1, i, 1);
        CHECK_EQ(1, bytes_in_pipe());
        CHECK_EQ(2, put_notes(1, i + 1, 2));
        CHECK_EQ(1, bytes_in_pipe());
        check_received(1);
        CHECK_EQ(1, bytes_in_pipe());
        mpshm_queue_watch(batch->end); /* again: nothing */
        CHECK_EQ(1, bytes_in_pipe());
        CHECK_EQ(2, mpshm_queue_receive(batch, 9, 0));
        CHECK_EQ(0, bytes_in_pipe());
        CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 9, 0));
    }
    check_put(1, 0, FULL);
    CHECK_EQ(1, bytes_in_pipe());
    check_received(FULL);
    CHECK_EQ(0, bytes_in_pipe());
    end_ring();
}

/* A receiver that found nothing is stopped just before it reads the byte that it has counted, which one
   that was killed had left; a message comes; it reads, and is killed. */
static void
a_message_keeps_its_byte_when_one_dies_that_reads_bytes(void)
{
    char byte;

    open_ring();
    _Atomic uint32_t *drainer = &batch->end->arena->chain->waiters.drainer;

    mpshm_queue_watch(batch->end);
    CHECK_EQ(1, write(ends[1], "", 1));
    atomic_store(drainer, NAME(7, 65535)); /* no record has come so far: dead */
    check_put(1, 0, 1);
    CHECK_EQ(2, bytes_in_pipe());
    CHECK_EQ(1, read(ends[0], &byte, 1));
    CHECK_EQ(1, bytes_in_pipe());
    check_received(1);
    CHECK_EQ(0, bytes_in_pipe());
    CHECK_EQ(0, atomic_load(drainer));
    end_ring();
}

/* While one that lives reads bytes, others do not; and they are few however many messages come. */
static void
one_at_a_time_reads_bytes(void)
{
    open_ring();
    mpshm_arena *arena = batch->end->arena;

    mpshm_queue_watch(batch->end);
    arena_lock(arena);
    arena_unlock(arena);
    atomic_store(&arena->chain->waiters.drainer, arena->me);
    for (uint32_t i = 0; i < FULL; i++) {
        check_put(1, i, 1);
    }
    CHECK_EQ(65, bytes_in_pipe());
    check_received(FULL);
    CHECK_EQ(65, bytes_in_pipe());
    atomic_store(&arena->chain->waiters.drainer, 0);
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 9, 0));
    CHECK_EQ(0, bytes_in_pipe());
    end_ring();
}

static void
watching_shows_what_is_there_already(void)
{
    for (uint32_t count = 1; count <= FULL; count += 73) {
        open_ring();
        check_put(1, 0, count);
        int pid = fork_hooked();

        if (pid == 0) { /* in a process that has no end to write to */
            close(ends[1]);
            mpshm_queue_watch(batch->end);
            _exit(0);
        }
        wait_child(pid);
        CHECK_EQ(1, bytes_in_pipe());
        check_put(1, count, 1 < FULL - count ? 1 : 0);
        check_received((int) count);
        CHECK_EQ(ring_count(arena, false), bytes_in_pipe());
        check_received((int) ring_count(arena, false));
        CHECK_EQ(0, bytes_in_pipe());
        end_ring();
    }
}

static void
stale_byte_is_dropped(void)
{
    open_ring();
    mpshm_queue_watch(batch->end);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(1, write(ends[1], "x", 1)); /* of who was killed before it put, or once it took */
        CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 9, 0));
        CHECK_EQ(0, bytes_in_pipe());
        CHECK_EQ(2, write(ends[1], "xx", 2));
        check_put(1, 0, 3);
        CHECK_EQ(2, bytes_in_pipe());
        check_received(3);
        CHECK_EQ(0, bytes_in_pipe());
    }
    end_ring();
}

/* Whoever looks while its sender is slow must not leave the message without a byte. */
static void
look_at_a_slow_sender_does_not_hide_its_message(void)
{
    open_ring();
    mpshm_queue_watch(batch->end);
    uint64_t at = begin_put();

    CHECK_EQ(1, write(ends[1], "x", 1));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 9, 0));
    finish_put(at, 1, 0);
    mpshm_queue_watch(batch->end); /* for finish_put writes none */
    CHECK_EQ(1, bytes_in_pipe());
    check_received(1);
    CHECK_EQ(0, bytes_in_pipe());
    end_ring();
}

/* Between its taking and its byte another came, and read the byte. */
static void
late_receiver_does_not_hide_the_next_message(void)
{
    struct note note;

    open_ring();
    mpshm_queue_watch(batch->end);
    check_put(1, 0, 1);
    CHECK_EQ(1, take_notes(&note, 1));
    CHECK_EQ(-EAGAIN, mpshm_queue_receive(batch, 1, 0));
    check_put(1, 1, 1);
    arena_lock(arena);
    mirror_after_take(arena, ends[0]);
    arena_unlock(arena);
    CHECK(bytes_in_pipe() > 0);
    check_received(1);
    end_ring();
}

/* Its byte was eaten, or who was to write it was killed: who watches again sees the message. */
static void
watching_again_shows_a_message_without_a_byte(void)
{
    char byte;

    open_ring();
    mpshm_queue_watch(batch->end);
    check_put(1, 0, 2);
    CHECK_EQ(1, read(ends[0], &byte, 1));
    mpshm_queue_watch(batch->end);
    CHECK(bytes_in_pipe() > 0);
    check_received(2);
    end_ring();
}

/* Hammers. */

#define SENDERS 3
#define RECEIVERS 3
#define NOTES (SANITIZED ? 6000u : 30000u) /* of each sender */
#define IDS 8192
#define MOST_NOTES 65536u

struct shared {
    _Atomic uint64_t got, put;
    _Atomic uint32_t next_id;
    _Atomic uint64_t seen[IDS][MOST_NOTES / 64];
};
static struct shared *shared;

static void
open_shared(void)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(shared != MAP_FAILED);
}

/* last: one more than the number of the last note this receiver had of each sender. */
static void
note_taken(const struct note *note, uint32_t *last)
{
    uint64_t bit = UINT64_C(1) << note->seq % 64;

    check_note(note);
    CHECK(note->sender < IDS && note->seq < MOST_NOTES);
    if (note->seq < last[note->sender]) {
        check_failed(__FILE__, __LINE__, "out of order");
    }
    last[note->sender] = (uint32_t) note->seq + 1;
    if (atomic_fetch_or(&shared->seen[note->sender][note->seq / 64], bit) & bit) {
        check_failed(__FILE__, __LINE__, "doubled");
    }
    atomic_fetch_add(&shared->got, 1);
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

/* In threads with a handle of their own.  The lock is held for all of them: it orders nothing that they
   do. */
static mpshm_arena handle;

/* Its rings beyond the first are the thread's own, for what it notes of them is a lock's, not an atomic word. */
static mpshm_arena
own_handle(void)
{
    mpshm_arena own = handle;

    if (own.grows) {
        own.others = calloc(own.rings, sizeof *own.others);
        CHECK(own.others != NULL);
    }
    return own;
}

/* Receivers that find nothing let a queue get longer than a ring. */
#define LONG_ENOUGH_TO_GROW_US 3000

static void *
put_in_thread(void *number)
{
    mpshm_arena own = own_handle();
    struct note notes[5];

    for (uint32_t seq = 0; seq < NOTES;) {
        uint32_t count = NOTES - seq < 5 ? 1 : 1 + seq % 5, n;

        for (uint32_t i = 0; i < count; i++) {
            notes[i] = note_of((uint32_t) (uintptr_t) number, seq + i);
        }
        n = put_noted(&own, notes, count);
        seq += n;
        if (n == 0) {
            (void) chain_grow(&own);
            sched_yield();
        }
        if (seq % 64 < n) {
            (void) chain_shrink(&own);
        }
    }
    rings_detach(&own);
    return NULL;
}

static void *
take_in_thread(void *number)
{
    mpshm_arena own = own_handle();
    uint32_t last[SENDERS] = {0}, most = number == NULL ? 1 : 8;
    struct note notes[8];

    while (atomic_load(&shared->got) < SENDERS * NOTES) {
        uint32_t n = take_noted(&own, notes, most);

        for (uint32_t i = 0; i < n; i++) {
            note_taken(&notes[i], last);
        }
        if (n == 0) { /* mpshm_queue_poll would want the lock, when it looks round */
            usleep(own.grows ? LONG_ENOUGH_TO_GROW_US : 100);
        }
    }
    rings_detach(&own);
    return NULL;
}

static void
hammer_by_threads(void)
{
    pthread_t threads[SENDERS + RECEIVERS];

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
}

static void
threads_lose_and_double_nothing(void)
{
    open_ring();
    hammer_by_threads();
    end_ring();
}

/* How often a ring has been left. */
static uint32_t
lives(void)
{
    uint32_t sum = 0;

    for (uint32_t number = 0; number < arena->rings; number++) {
        sum += RING_LIFE(atomic_load(&arena->chain->word[number]));
    }
    return sum;
}

static void
threads_lose_and_double_nothing_where_the_queue_grows(void)
{
    open_growing();
    hammer_by_threads();
    CHECK(lives() > 0);
    end_growing();
}

/* A put has found no room. */
static void
make_room(void)
{
    if (arena->grows) {
        CHECK_EQ(0, mpshm_queue_grow(END(arena, ends[1])));
    } else {
        CHECK(mpshm_queue_wait_room(END(arena, ends[1]), NULL, 20) != -EPIPE);
    }
}

static int
put_note(uint32_t sender, uint32_t seq)
{
    struct note note = note_of(sender, seq);
    int n;

    while ((n = mpshm_queue_put_one(END(arena, ends[1]), (char *) &note + 4, sizeof note - 4,
                                   NULL)) == -EAGAIN) {
        make_room();
    }
    return n;
}

static void
receive_notes(uint32_t *last, uint32_t most, int timeout_ms)
{
    int n = mpshm_queue_receive(batch, most, timeout_ms);

    CHECK(n > 0 || n == -EAGAIN);
    if (arena->grows && mpshm_queue_poll(batch->end, 0) == 0) {
        usleep(LONG_ENOUGH_TO_GROW_US);
    }
    for (int i = 0; i < n; i++) {
        struct note note = {.length = htonl(sizeof note - 4)};

        CHECK_EQ(0, batch->messages[i].error);
        CHECK_EQ(sizeof note - 4, batch->messages[i].size);
        memcpy((char *) &note + 4, batch->data + batch->messages[i].at, sizeof note - 4);
        note_taken(&note, last);
    }
}

static void
work_in_process(uint32_t number)
{
    if (number < SENDERS) {
        for (uint32_t seq = 0; seq < NOTES; seq++) {
            CHECK_EQ(1, put_note(number, seq));
        }
    } else {
        static uint32_t last[IDS];

        while (atomic_load(&shared->got) < SENDERS * NOTES) {
            receive_notes(last, number % 2 ? 1 : AT_ONCE, 5);
        }
    }
}

static void
hammer_by_processes(void)
{
    int pids[SENDERS + RECEIVERS];

    for (uint32_t i = 0; i < SENDERS + RECEIVERS; i++) {
        pids[i] = fork_hooked();
        if (pids[i] == 0) {
            work_in_process(i);
            _exit(0);
        }
    }
    for (int i = 0; i < SENDERS + RECEIVERS; i++) {
        wait_child(pids[i]);
    }
    check_all_seen();
}

static void
processes_lose_and_double_nothing(void)
{
    open_ring();
    open_shared();
    hammer_by_processes();
    end_ring();
}

static void
processes_lose_and_double_nothing_where_the_queue_grows(void)
{
    open_growing();
    open_shared();
    mpshm_queue_watch(batch->end);
    hammer_by_processes();
    CHECK(lives() > 2);
    CHECK_EQ(0, bytes_in_pipe());
    end_growing();
}

static void
processes_lose_nothing_where_the_pipe_is_watched(void)
{
    open_ring();
    open_shared();
    mpshm_queue_watch(batch->end);
    hammer_by_processes();
    end_ring();
}

/* Killed at random. */

#define CREW 5
#define KILL_NS INT64_C(1000000000)

/* Some put whole batches, which stand half written for long; some one by one. */
static void
live_until_killed(uint32_t role)
{
    static uint32_t last[IDS];
    uint32_t id = role < 3 ? atomic_fetch_add(&shared->next_id, 1) : 0;

    CHECK(id < IDS);
    for (uint32_t seq = 0;;) {
        if (role >= 3) {
            receive_notes(last, role == 3 ? AT_ONCE : 1, 5);
        } else if (seq + AT_ONCE > MOST_NOTES) {
            pause();
        } else if (role == 0) {
            CHECK_EQ(1, put_note(id, seq++));
        } else {
            uint32_t n = put_notes(id, seq, AT_ONCE);

            seq += n;
            if (n == 0) {
                make_room();
            }
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

static void
kill_hammer(void)
{
    int pids[CREW];
    uint64_t seed = (uint64_t) now_ns();
    uint32_t kills = 0;

    for (uint32_t i = 0; i < CREW; i++) {
        pids[i] = crew_member(i);
    }
    for (int64_t until = now_ns() + KILL_NS; now_ns() < until; kills++) {
        seed = mixed(seed + 1);
        usleep((useconds_t) (seed >> 8) % 3000);
        uint32_t role = (uint32_t) (seed >> 32) % CREW;

        kill_child(pids[role]);
        pids[role] = crew_member(role);
        if (kills % 32 == 31) {
            mpshm_reap(arena);
        }
    }
    uint64_t got = atomic_load(&shared->got);

    while (atomic_load(&shared->got) < got + 5 * FULL) { /* the living go on, or this hangs */
        usleep(1000);
    }
    for (int i = 0; i < CREW; i++) {
        kill_child(pids[i]);
    }
    mpshm_reap(arena);
    for (int n; (n = mpshm_queue_receive(batch, AT_ONCE, 0)) != -EAGAIN;) {
        CHECK(n > 0);
    }
    mpshm_reap(arena);
    CHECK_EQ(0, bytes_in_pipe());
}

static void
crew_killed_at_random_leaves_a_whole_ring(void)
{
    open_ring();
    open_shared();
    kill_hammer();
    end_ring();
}

static void
crew_killed_at_random_leaves_whole_rings_and_pipe(void)
{
    open_growing();
    open_shared();
    mpshm_queue_watch(batch->end);
    kill_hammer();
    CHECK(lives() > 0);
    end_growing();
}

static void
crew_killed_at_random_leaves_a_whole_ring_and_pipe(void)
{
    open_ring();
    open_shared();
    mpshm_queue_watch(batch->end);
    kill_hammer();
    end_ring();
}

/* Damage of every kind that the invariants name is seen, and nothing else is. */
static void
walker_sees_damage(void)
{
    struct note note;
    uint64_t kept;

    open_ring();
#define DAMAGE(place, value)                                                                   \
    kept = (uint64_t) atomic_load(&(place));                                                   \
    CHECK_EQ(1, ring_validate(arena, true));                                                   \
    atomic_store(&(place), (value));                                                           \
    CHECK(ring_validate(arena, false) < 0);                                                    \
    CHECK(mpshm_arena_is_valid(arena) < 0);                                                    \
    atomic_store(&(place), kept);                                                              \
    CHECK_EQ(1, ring_validate(arena, true))
    check_put(1, 0, 3);
    CHECK_EQ(1, take_notes(&note, 1));
    DAMAGE(ring->slots[0].word, SLOT_WORD(1, 0, 7));                 /* G8: no such state */
    DAMAGE(ring->slots[0].word, SLOT_WORD(1, LINK(1, 0), SLOT_NEXT)); /* C1: it does not grow */
    DAMAGE(ring->slots[1].word, SLOT_WORD(0, arena->me, SLOT_READY)); /* G8: READY has no owner */
    DAMAGE(ring->slots[1].word, SLOT_WORD(0, 0, SLOT_WRITING));      /* G8: WRITING has one */
    DAMAGE(ring->slots[1].word, SLOT_WORD(0, 961, SLOT_TAKING));     /* G8: a name has an incarnation */
    DAMAGE(ring->slots[0].word, SLOT_WORD(1, 0, SLOT_READY));        /* G2: far past the tail */
    DAMAGE(ring->slots[0].word, SLOT_WORD(2, 0, SLOT_FREE));         /* G1: a lap ahead */
    DAMAGE(ring->slots[1].word, SLOT_WORD(0, 0, SLOT_FREE));         /* G2: the tail passed it */
    DAMAGE(ring->slots[0].word, SLOT_WORD(0, 0, SLOT_READY));        /* G2: the head passed it */
    DAMAGE(ring->slots[5].word, SLOT_WORD(0, 0, SLOT_SKIPPED));      /* G2: past the tail */
    DAMAGE(ring->slots[5].word, SLOT_WORD(LAP_MASK, 0, SLOT_FREE));  /* G8: no such lap */
    DAMAGE(ring->head, 2);                                           /* G2: past a message */
    DAMAGE(ring->tail, 4);                                           /* G2: past a free slot */
    DAMAGE(ring->tail, 1);                                           /* G2: behind two claims */
#undef DAMAGE
    for (enum slot_state state = SLOT_WRITING; state <= SLOT_TAKING; state += SLOT_TAKING - SLOT_WRITING) {
        atomic_store(&ring->slots[3].word, SLOT_WORD(0, arena->me, state));
        CHECK_EQ(1, ring_validate(arena, false));
        CHECK(ring_validate(arena, true) < 0); /* at rest nobody writes, nor takes */
    }
    atomic_store(&ring->slots[3].word, SLOT_WORD(0, arena->me, SLOT_HELD));
    CHECK_EQ(1, ring_validate(arena, true));
    atomic_store(&ring->slots[3].word, SLOT_WORD(0, 0, SLOT_FREE));
    CHECK_EQ(1, take_notes(&note, 1));
    CHECK_EQ(1, take_notes(&note, 1));
    end_ring();
}

/* get_many takes the first of four, then the last, then the third, which has come late: the second is not passed. */
static void
the_head_does_not_go_over_a_slot_that_was_passed_over(void)
{
    uint64_t spots[4], taken[3];
    struct ring *zero;

    open_ring();
    zero = &arena->zero;
    arena_lock(arena);
    CHECK_EQ(4, ring_claim(arena, SLOT_WRITING, 4, spots));
    for (int i = 0; i < 3; i++) {
        taken[i] = spots[(int[]) {0, 3, 2}[i]];
        atomic_store(slot_word(zero, taken[i]), passed_word(zero, taken[i]));
    }
    chain_go_on_over(arena, taken, 3);
    CHECK_EQ(1, (int) HEAD_POSITION(atomic_load(&zero->head->head)));
    atomic_store(slot_word(zero, spots[1]), passed_word(zero, spots[1]));
    chain_go_on_over(arena, &spots[1], 1);
    CHECK_EQ(4, (int) HEAD_POSITION(atomic_load(&zero->head->head)));
    arena_unlock(arena);
    end_ring();
}

static const struct test tests[] = {
    TEST(order_is_kept_over_many_laps),
    TEST(ring_is_full_at_its_last_slot_exactly),
    TEST(slot_being_written_is_passed_over),
    TEST(living_senders_slot_holds_the_ring_up_after_a_lap_and_no_longer),
    TEST(killed_senders_slots_are_freed),
    TEST(full_ring_gets_its_killed_senders_slots_back),
    TEST(dead_slot_at_the_head_for_a_whole_lap_is_got_over),
    TEST(taken_slot_of_a_dead_receiver_is_free_in_the_next_lap),
    TEST(message_behind_a_reaped_head_is_not_taken_for_lost),
    TEST(head_left_behind_is_moved_on),
    TEST(tail_left_behind_is_moved_on),
    TEST(stray_writes_hold_nobody_up),
    TEST(all_messages_come_before_the_end),
    TEST(watched_pipe_is_readable_while_there_are_messages),
    TEST(a_message_keeps_its_byte_when_one_dies_that_reads_bytes),
    TEST(one_at_a_time_reads_bytes),
    TEST(watching_shows_what_is_there_already),
    TEST(stale_byte_is_dropped),
    TEST(look_at_a_slow_sender_does_not_hide_its_message),
    TEST(late_receiver_does_not_hide_the_next_message),
    TEST(watching_again_shows_a_message_without_a_byte),
    TEST(walker_sees_damage),
    TEST(threads_lose_and_double_nothing),
    TEST(threads_lose_and_double_nothing_where_the_queue_grows),
    TEST(processes_lose_and_double_nothing),
    TEST(processes_lose_and_double_nothing_where_the_queue_grows),
    TEST(processes_lose_nothing_where_the_pipe_is_watched),
    TEST(the_head_does_not_go_over_a_slot_that_was_passed_over),
    TEST(crew_killed_at_random_leaves_a_whole_ring),
    TEST(crew_killed_at_random_leaves_a_whole_ring_and_pipe),
    TEST(crew_killed_at_random_leaves_whole_rings_and_pipe),
};
RUN_TESTS(tests)
