/* The ring: a queue's slots in shared memory, for any number of senders and receivers, with no lock.

   A slot's word says in which lap it is and what it holds; each step is one change of one word:

     FREE -> WRITING (a sender claims the next position) -> READY -> FREE of the next lap (taken)

   A receiver copies a slot before it takes it: what it copied counts only if the word has not changed
   until then.  So who is killed leaves a slot in a state that says whose it is, and nobody waits for a
   sender that was stopped: receivers pass over what is being written.

   Knows slots' bytes, peers' numbers and waits; knows no message.

   Invariants:
   G1  A slot is claimed in its lap only when it is FREE in that lap, so only when its message of the
       lap before has been taken.
   G2  `tail` is at most one behind the last position claimed, `head` at most at the first not taken:
       who finds them behind moves them on.
   G3  One sender's messages are taken in its order: a receiver that passed over a slot looks at it
       again once it has seen a later one READY.
   G4  Whoever may sleep says so (`sleepers`, `crowd`) before it looks a last time, and looks again
       after a while: only a kill at the wrong moment costs that while.
   G5  While the ring is watched, its pipe holds a byte or some, at rest, exactly while a slot is
       claimed.  A sender sees to it between its claim and READY, so a message that can be taken has
       its byte; a receiver that finds nothing claimed reads them all; who changes the pipe looks at
       the ring again.  Only a sender that is killed in between leaves a byte and no message. */
#include "internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* So many wake-ups in a row that woke nobody: those who said that they sleep are dead. */
#define VAIN_WAKES 256
/* The word that counts them: epoch 16 | count 16. */
#define EPOCH UINT32_C(0x10000)
#define EPOCH_MASK UINT32_C(0xffff0000)
#define TRIES (8 * RING_SLOTS)
/* No receiver looks again for longer. */
#define LOOKING_MOST_NS INT64_C(1000000000)
#define LOOK_FAR_MS 3000
#define LOOK_GRACE_MS 50

static struct ring_slot *
slot_of(struct ring *ring, uint64_t position)
{
    return &ring->slots[position % RING_SLOTS];
}

static uint64_t
lap_of(uint64_t position)
{
    return position / RING_SLOTS;
}

/* Words of a slot that its frame fills: it begins with its length, and a sign. */
static uint32_t
words_of(uint64_t first)
{
    uint32_t length;

    memcpy(&length, &first, sizeof length);
    length = ntohl(length) & INT32_MAX;
    return length <= RING_DATA_BYTES - sizeof length
               ? (uint32_t) (sizeof length + length + 7) / 8
               : RING_DATA_BYTES / 8; /* forged */
}

/* By words, for others may read them at the same time, and find out later that they must not. */
static void
copy_in(struct ring_slot *slot, const char *from)
{
    uint64_t word;

    memcpy(&word, from, 8);
    for (uint32_t i = 0, n = words_of(word); i < n; i++) {
        memcpy(&word, from + 8 * (size_t) i, 8);
        atomic_store_explicit(&slot->data[i], word, memory_order_relaxed);
    }
}

static void
copy_out(char *to, struct ring_slot *slot)
{
    uint32_t n = words_of(atomic_load_explicit(&slot->data[0], memory_order_relaxed));

    for (uint32_t i = 0; i < n; i++) {
        uint64_t word = atomic_load_explicit(&slot->data[i], memory_order_relaxed);

        memcpy(to + 8 * (size_t) i, &word, 8);
    }
}

/* The next position, for this peer to write; false when the ring is full.  G1, G2 */
static bool
claim(struct ring *ring, uint32_t me, uint64_t *position)
{
    /* Others may be quicker, but not for ever: a stray write must not keep us here. */
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint64_t at = atomic_load_explicit(&ring->tail, memory_order_acquire);
        struct ring_slot *slot = slot_of(ring, at);
        uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);

        if (SLOT_LAP(word) < lap_of(at)) {
            if (atomic_load_explicit(&ring->tail, memory_order_acquire) == at) {
                return false;
            }
        } else if (word == SLOT_WORD(lap_of(at), 0, SLOT_FREE)) {
            if (atomic_compare_exchange_strong(&slot->word, &word,
                                               SLOT_WORD(lap_of(at), me, SLOT_WRITING))) {
                *position = at;
                atomic_compare_exchange_strong(&ring->tail, &at, at + 1);
                return true;
            }
        } else {
            atomic_compare_exchange_strong(&ring->tail, &at, at + 1);
        }
    }
    return false;
}

static uint32_t
bytes_in(int fd)
{
    int bytes = 0;

    return ioctl(fd, FIONREAD, &bytes) == -1 ? 0 : (uint32_t) bytes;
}

static void
write_byte(int fd)
{
    while (write(fd, "", 1) == -1 && errno == EINTR) {
    }
}

static bool
anybody_sleeps(struct ring *ring)
{
    return (atomic_load_explicit(&ring->sleepers, memory_order_relaxed) & ~EPOCH_MASK) != 0;
}

/* A sleeper more; what it is to say when it is awake.  It has read `bell` before. */
static uint32_t
count_sleeper(struct ring *ring)
{
    return atomic_fetch_add(&ring->sleepers, 1) & EPOCH_MASK;
}

static void
uncount_sleeper(struct ring *ring, uint32_t epoch)
{
    uint32_t was = atomic_load(&ring->sleepers);

    while ((was & EPOCH_MASK) == epoch && was != epoch
           && !atomic_compare_exchange_weak(&ring->sleepers, &was, was - 1)) {
    }
}

/* Wake sleepers: how many. */
static int
ring_the_bell(struct ring *ring, int most)
{
    atomic_fetch_add(&ring->bell, 1);
    return futex_wake(&ring->bell, most);
}

/* Those counted are dead, or awake and about to say so.  One that is not asleep yet will see that the
   bell has changed, and counts itself anew. */
static void
forget_sleepers(struct ring *ring)
{
    uint32_t was = atomic_load(&ring->sleepers);

    if (atomic_compare_exchange_strong(&ring->sleepers, &was, (was & EPOCH_MASK) + EPOCH)) {
        (void) ring_the_bell(ring, INT_MAX);
    }
}

static void
wake_receivers(mpshm_arena *arena, int most)
{
    struct ring *ring = arena->ring;

    if (!anybody_sleeps(ring)) {
        return;
    }
    /* One who is looking needs no waking. */
    int64_t left = atomic_load_explicit(&ring->looking_until, memory_order_relaxed) - now_ns();

    most -= left > 0 && left < LOOKING_MOST_NS;
    if (most == 0) {
        return;
    }
    if (ring_the_bell(ring, most) > 0) {
        arena->vain_wakes = 0;
    } else if (++arena->vain_wakes == VAIN_WAKES) {
        arena->vain_wakes = 0;
        forget_sleepers(ring);
    }
}

/* Put slots into the ring: how many found room, from the first on.  fd: the end of the pipe to
   write to. */
uint32_t
ring_put(mpshm_arena *arena, int fd, const char *slots, uint32_t count)
{
    struct ring *ring = arena->ring;
    uint64_t positions[MPSHM_SLOTS_AT_ONCE];
    uint32_t n = 0;

    while (n < count && claim(ring, arena->me, &positions[n])) {
        copy_in(slot_of(ring, positions[n]), slots + (size_t) n * RING_DATA_BYTES);
        n++;
    }
    if (n == 0) {
        return 0;
    }
    atomic_thread_fence(memory_order_seq_cst); /* G5 */
    if (atomic_load_explicit(&ring->watched, memory_order_relaxed) && bytes_in(fd) == 0) {
        write_byte(fd);
    }
    for (uint32_t i = 0; i < n; i++) {
        atomic_store_explicit(&slot_of(ring, positions[i])->word,
                              SLOT_WORD(lap_of(positions[i]), 0, SLOT_READY),
                              memory_order_release);
    }
    atomic_thread_fence(memory_order_seq_cst); /* G4 */
    wake_receivers(arena, (int) n);
    return n;
}

/* The first READY slot in `*from` to `to`; whether there is one.  *passed: slots before it, which were
   being written. */
static bool
find_ready(struct ring *ring, uint64_t *from, uint64_t to, uint64_t *word, bool *passed)
{
    *passed = false;
    for (uint64_t at = *from; at < to; at++) {
        *word = atomic_load_explicit(&slot_of(ring, at)->word, memory_order_acquire);
        if (SLOT_LAP(*word) == lap_of(at)) {
            if (SLOT_STATE(*word) == SLOT_READY) {
                *from = at;
                return true;
            }
            if (SLOT_STATE(*word) == SLOT_FREE) {
                return false;
            }
            *passed = true;
        } else if (SLOT_LAP(*word) < lap_of(at)) {
            return false;
        }
    }
    return false;
}

/* Move the head on over what is done with. */
static void
advance_head(struct ring *ring, uint64_t head)
{
    for (uint32_t tries = 0; tries < TRIES; tries++) {
        uint64_t word = atomic_load_explicit(&slot_of(ring, head)->word, memory_order_acquire);

        if (SLOT_LAP(word) <= lap_of(head)) {
            return;
        }
        /* If another was quicker, go on from there: it may not have seen what we took. */
        if (atomic_compare_exchange_strong(&ring->head, &head, head + 1)) {
            head++;
        }
    }
}

/* The first position that is not done with, as far as anybody can see now. */
static uint64_t
first_of(struct ring *ring)
{
    advance_head(ring, atomic_load(&ring->head));
    return atomic_load(&ring->head);
}

/* Whether a message is there or being written. */
static bool
is_claimed(struct ring *ring)
{
    uint64_t first = first_of(ring);
    uint64_t word = atomic_load(&slot_of(ring, first)->word);

    return SLOT_LAP(word) == lap_of(first) && SLOT_STATE(word) != SLOT_FREE;
}

bool
ring_is_claimed(mpshm_arena *arena)
{
    return is_claimed(arena->ring);
}

/* Whether the pipe shows a message that will come at once. */
bool
ring_is_due(mpshm_arena *arena)
{
    return atomic_load_explicit(&arena->ring->watched, memory_order_relaxed)
           && is_claimed(arena->ring);
}

/* Where the next message is that may be taken, with its word.  G3 */
static bool
find_next(struct ring *ring, uint64_t *head, uint64_t *position, uint64_t *word)
{
    uint64_t first = first_of(ring), found = first;
    bool passed;

    while (!find_ready(ring, &found, first + RING_SLOTS, word, &passed)) {
        found = first_of(ring);
        if (found == first) {
            return false;
        }
        first = found;
    }
    *head = first;
    while (passed) {
        uint64_t earlier = first, its_word;
        bool passed_again;

        if (!find_ready(ring, &earlier, found, &its_word, &passed_again)) {
            break;
        }
        found = earlier;
        *word = its_word;
        passed = passed_again;
    }
    *position = found;
    return true;
}

/* Not one by one: who waits for room had better find some. */
static void
wake_senders(struct ring *ring)
{
    if (atomic_load(&ring->crowd) != 0
        && (int64_t) (atomic_load(&ring->tail) - atomic_load(&ring->head)) <= (int64_t) RING_SLOTS / 2
        && atomic_exchange(&ring->crowd, 0) != 0) {
        atomic_fetch_add(&ring->room, 1);
        (void) futex_wake(&ring->room, INT_MAX);
    }
}

bool
ring_is_ready(mpshm_arena *arena)
{
    uint64_t head, position, word;

    return find_next(arena->ring, &head, &position, &word);
}

/* This receiver looks again and again, until then; 0: no longer, and whether a message came meanwhile,
   which may have woken nobody. */
bool
ring_look(mpshm_arena *arena, int64_t until)
{
    atomic_store_explicit(&arena->ring->looking_until, until, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    return ring_is_ready(arena);
}

/* Take up to `most` slots out of the ring: how many. */
uint32_t
ring_take(mpshm_arena *arena, char *to, uint32_t most)
{
    struct ring *ring = arena->ring;
    uint64_t head, position, word;
    uint32_t n = 0;

    while (n < most && find_next(ring, &head, &position, &word)) {
        struct ring_slot *slot = slot_of(ring, position);

        copy_out(to + (size_t) n * RING_DATA_BYTES, slot);
        atomic_thread_fence(memory_order_acquire);
        if (atomic_compare_exchange_strong(&slot->word, &word,
                                           SLOT_WORD(lap_of(position) + 1, 0, SLOT_FREE))) {
            n++;
            advance_head(ring, head);
        }
    }
    if (n > 0) {
        wake_senders(ring);
        /* What was put while we looked woke nobody, and we may be away for long. */
        if (anybody_sleeps(ring) && ring_is_ready(arena)) {
            wake_receivers(arena, 1);
        }
    }
    return n;
}

/* Messages in the ring. */
uint32_t
ring_unread(mpshm_arena *arena)
{
    struct ring *ring = arena->ring;
    uint64_t first = first_of(ring);
    uint32_t count = 0;

    for (uint64_t at = first; at < first + RING_SLOTS; at++) {
        uint64_t word = atomic_load_explicit(&slot_of(ring, at)->word, memory_order_acquire);

        count += SLOT_LAP(word) == lap_of(at) && SLOT_STATE(word) == SLOT_READY;
    }
    return count;
}

static bool
is_full(struct ring *ring)
{
    uint64_t at = atomic_load(&ring->tail);

    return SLOT_LAP(atomic_load(&slot_of(ring, at)->word)) < lap_of(at)
           && atomic_load(&ring->tail) == at;
}

/* Free what that peer, which is dead, was about to write; 0: whoever is dead. */
void
ring_reap(mpshm_arena *arena, uint32_t number)
{
    for (uint64_t i = 0; i < RING_SLOTS; i++) {
        _Atomic uint64_t *at = &arena->ring->slots[i].word;
        uint64_t word = atomic_load(at);
        uint32_t owner = SLOT_OWNER(word);

        if (SLOT_STATE(word) == SLOT_WRITING && owner != 0 && owner <= PEER_LIMIT
            && (number == 0 ? peer_is_dead(arena, owner) : owner == number)) {
            atomic_compare_exchange_strong(at, &word, SLOT_WORD(SLOT_LAP(word) + 1, 0, SLOT_FREE));
        }
    }
}

/* Sleep until there may be room: 0, -EAGAIN when there is none, after the time or a signal, or -EPIPE
   when nobody is left to take anything. */
int
ring_wait_room(mpshm_arena *arena, int fd, int timeout_ms)
{
    struct ring *ring = arena->ring;
    uint32_t room = atomic_load(&ring->room);

    if (fd < 0 || has_hung_up(fd, POLLERR)) {
        return -EPIPE;
    }
    if (is_full(ring) && timeout_ms > 0) {
        atomic_store(&ring->crowd, 1);
        atomic_thread_fence(memory_order_seq_cst); /* G4 */
        if (is_full(ring)) {
            futex_wait(&ring->room, room, timeout_ms);
        }
    }
    if (is_full(ring)) { /* perhaps of one message, whose sender is dead */
        arena_lock(arena);
        ring_reap(arena, 0);
        arena_unlock(arena);
    }
    /* Who was woken tries, though others may have been quicker: receivers are at work. */
    return is_full(ring) && atomic_load(&ring->room) == room ? -EAGAIN : 0;
}

/* Let as many of those who sleep look for themselves. */
void
ring_wake(mpshm_arena *arena, int most)
{
    if (anybody_sleeps(arena->ring)) {
        (void) ring_the_bell(arena->ring, most);
    }
}

/* Nobody is left to send: all are to see it, and nobody else tells them. */
static bool
is_at_end(mpshm_arena *arena, int fd)
{
    bool ended = fd < 0 || has_hung_up(fd, POLLHUP | POLLNVAL);

    if (ended) {
        ring_wake(arena, INT_MAX);
    }
    return ended;
}

/* How long one of those who sleep may: the lookout not long, for nobody wakes anybody at the end of
   file, nor when the one that a message woke was killed.  The others until they might have to take its
   place. */
static int
watch_ms(struct ring *ring, int look_ms, uint64_t *mine)
{
    uint64_t now = (uint64_t) (now_ns() / 1000000), until = atomic_load(&ring->look_until);
    bool watched = now < until && until < now + 2 * LOOK_FAR_MS;

    *mine = now + (uint64_t) look_ms + LOOK_GRACE_MS;
    if (!watched && atomic_compare_exchange_strong(&ring->look_until, &until, *mine)) {
        return look_ms;
    }
    *mine = 0;
    return LOOK_FAR_MS;
}

/* Sleep until there is a message or the end of file, or the time (-1: any) is over, or it is time to
   look; whether one is there.  look_ms: how long a lookout sleeps.  Who sleeps on comes again. */
bool
ring_wait(mpshm_arena *arena, int fd, int timeout_ms, int look_ms)
{
    struct ring *ring = arena->ring;

    if (ring_is_ready(arena) || is_at_end(arena, fd)) {
        return true;
    }
    if (timeout_ms != 0) {
        uint64_t mine;
        int ms = watch_ms(ring, look_ms, &mine);

        uint32_t bell = atomic_load(&ring->bell);
        uint32_t epoch = count_sleeper(ring);

        atomic_thread_fence(memory_order_seq_cst); /* G4 */
        if (!ring_is_ready(arena)) {
            futex_wait(&ring->bell, bell, timeout_ms < 0 || timeout_ms > ms ? ms : timeout_ms);
        }
        uncount_sleeper(ring, epoch);
        if (mine != 0) { /* whoever comes next, perhaps we, is the lookout */
            atomic_compare_exchange_strong(&ring->look_until, &mine, 0);
        }
    }
    return ring_is_ready(arena);
}

/* By an end to receive by: this process need not have the other.  Under the process's lock: no child
   is to inherit what is opened here, and to keep the end of file off. */
static void
show(int fd)
{
    char path[48];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);

    if (writer != -1) {
        write_byte(writer);
        close(writer);
    }
}

/* Whether there was anything to read, or the end of file was not. */
static bool
read_bytes(int fd)
{
    char bytes[64];
    ssize_t n;
    bool any = false;

    do {
        n = read(fd, bytes, sizeof bytes);
        any = any || n > 0;
    } while (n == (ssize_t) sizeof bytes || (n == -1 && errno == EINTR));
    return any || n != 0;
}

/* Make the pipe agree with the ring; false at the end of file.  Under the process's lock.  G5 */
bool
ring_mirror(mpshm_arena *arena, int fd)
{
    struct ring *ring = arena->ring;
    bool goes_on = true;

    for (uint32_t tries = 0; tries < TRIES; tries++) {
        bool claimed = is_claimed(ring);

        if (!claimed) {
            goes_on = read_bytes(fd);
        } else if (atomic_load(&ring->watched) && bytes_in(fd) == 0) {
            show(fd);
        }
        atomic_thread_fence(memory_order_seq_cst);
        if (is_claimed(ring) == claimed) {
            break;
        }
    }
    return goes_on;
}

/* Messages were taken.  Under the process's lock. */
void
ring_was_taken(mpshm_arena *arena, int fd)
{
    if (atomic_load_explicit(&arena->ring->watched, memory_order_relaxed)
        && !is_claimed(arena->ring)) {
        (void) ring_mirror(arena, fd);
    }
}

/* From now on the pipe is readable while there are messages.  Under the process's lock. */
void
ring_watch(mpshm_arena *arena, int fd)
{
    atomic_store(&arena->ring->watched, 1);
    atomic_thread_fence(memory_order_seq_cst); /* ring_put */
    if (is_claimed(arena->ring)) {
        (void) ring_mirror(arena, fd);
    }
}
