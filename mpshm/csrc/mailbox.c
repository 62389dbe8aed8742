/* Mailboxes: a short message handed over without a call of the kernel, or with the one that wakes its receiver.

   A connection's arena has two, one for each direction.  They serve ends whose messages are questions and
   answers, as a manager's.  All else goes through the socket, as on any connection: a message while the
   receiver is there, a longer one, a second one, and the end of file.  So a receiver waits at its mailbox for a
   while only, and then blocks in the socket, where it sees the other side's death.

   Knows two mailboxes.  Does not know the socket, what a message says, nor pickle.

   A mailbox's state; R: a step of the receiver, S: of a sender:

       OUT     the receiver is at the socket                     --R--> COMING, when it has read there
       COMING  it will look here before it goes there            --R--> LOOKING --R--> SLEEPING, on the word itself
       COMING, LOOKING, SLEEPING     --S--> FULL, a message lies here         --R--> COMING, when it has taken it
                                     --S--> CALLED, something has changed     --R--> LOOKING or OUT
                                     --R--> OUT, or for a signal COMING

   A sender counts what it is about to write to the socket (`posted`), and the receiver what it has read there.
   While the two differ, both keep to the socket: no message overtakes another.  A count that is wrong for good, of a
   message that failed, or whose sender died or reader was interrupted, so costs time and no message.

   A receiver that asked a question has often not come to wait for the answer yet: the one that is woken takes
   the CPU at once if the two have the same.  So an answer is left to one that is COMING.

   Invariants: B1 to B6 (invariants.h).

   A fork's child may use its parent's end, while the parent does not, as with any connection: what counts lies in the
   mailboxes.  A process that knows the socket alone does not, so an end that is shown to such a one leaves its mailbox.

   Nobody takes back anything for the dead: a dead receiver's state stays, and a message left to it is lost as one in
   its socket's buffer is.  A dead sender's message is there or is not.

   Memory order: a sender's step to FULL releases the message and what lies beside it, and the receiver's load
   acquires them; its next step from COMING releases the place again.  `posted` and `state` are a pair: the
   sender counts and then looks at the state, the receiver steps to LOOKING and then looks at the count.  All four
   are sequentially consistent, so one of them sees the other. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* How long a receiver sleeps at its mailbox before it goes to the socket.  A wake-up there costs twice as much, so calls
   in a row should find it here; but what dies is noticed only there. */
#define MAILBOX_SLEEP_MS 10
/* A yield that took longer was not for the other side alone; and a fiftieth of the time may be lost by such. */
#define YIELD_LONG_NS 200000
#define YIELD_REST 50
/* One that has asked spins longer, as in frame.c. */
#define ANSWER_MORE 3 / 2

_Static_assert(MAILBOX_BYTES == MPSHM_MAILBOX_BYTES, "what mpshm.h says of a mailbox");

mpshm_mailboxes *
mpshm_mailboxes_new(mpshm_arena *arena, int accepted, uint32_t spin_us)
{
    mpshm_mailboxes *boxes = arena->chain == NULL ? calloc(1, sizeof *boxes) : NULL;

    if (boxes != NULL) {
        struct mailbox *both = (struct mailbox *) ((char *) arena->header + MAILBOXES_OFFSET);
        struct mailbox *out = &both[accepted ? 1 : 0];

        boxes->in = &both[accepted ? 0 : 1];
        boxes->out = out;
        boxes->generation = mpshm_process.generation;
        spin_init(&boxes->spin, spin_us);
        arena_keep(arena);
        boxes->arena = arena;
        atomic_store(&out->open, 1);
    }
    return boxes;
}

void
mpshm_mailboxes_free(mpshm_mailboxes *boxes)
{
    arena_let_go(boxes->arena);
    free(boxes);
}

/* The CPU that this thread runs on, and 1; 0: not known. */
static uint32_t
cpu_now(void)
{
#ifdef __linux__
    return (uint32_t) (sched_getcpu() + 1);
#else
    return 0;
#endif
}

/* Whether a sender may give the mailbox another state. */
static bool
is_open(uint32_t state)
{
    return state == MAILBOX_COMING || state == MAILBOX_LOOKING || state == MAILBOX_SLEEPING;
}

/* Give the mailbox the state `to`, and wake its receiver, unless that is at the socket: whether it did.  B1 */
static bool
hand_over(struct mailbox *box, uint32_t to)
{
    uint32_t state = atomic_load(&box->state);

    while (is_open(state)) {
        uint32_t before = state;

        if (atomic_compare_exchange_weak(&box->state, &state, to)) {
            if (before == MAILBOX_SLEEPING) {
                futex_wake(&box->state, 1);
            }
            return true;
        }
    }
    return false;
}

int
mpshm_mailbox_put(mpshm_mailboxes *boxes, const char *data, uint64_t size)
{
    struct mailbox *box = boxes->out;

    /* B4.  The counts are looked at, not what this process has done: a process whose end this was may have died
       between the two. */
    if (size > 0 && size <= MAILBOX_BYTES && is_open(atomic_load(&box->state))
        && atomic_load(&box->posted) == atomic_load(&box->read)) {
        /* B2: nobody reads this before the step to FULL, which only this sender makes. */
        atomic_store_explicit(&box->size, (uint32_t) size, memory_order_relaxed);
        atomic_store_explicit(&box->cpu, cpu_now(), memory_order_relaxed);
        memcpy(box->data, data, size);
        if (hand_over(box, MAILBOX_FULL)) {
            boxes->asked = 1;
            return 1;
        }
    }
    atomic_store_explicit(&box->cpu, cpu_now(), memory_order_relaxed);
    atomic_fetch_add(&box->posted, 1); /* B3 */
    return 0;
}

void
mpshm_mailbox_posted(mpshm_mailboxes *boxes)
{
    boxes->asked = 1;
    hand_over(boxes->out, MAILBOX_CALLED);
}

void
mpshm_mailbox_close(mpshm_mailboxes *boxes)
{
    struct mailbox *box = boxes->out;

    if (boxes->generation == mpshm_process.generation) { /* else a parent has the end open */
        atomic_store(&box->open, 0);
        hand_over(box, MAILBOX_CALLED);
    }
}

/* Give the mailbox the state `to`, unless a message lies there: the state that it had.  B1 */
static uint32_t
step_to(struct mailbox *box, uint32_t to)
{
    uint32_t state = atomic_load(&box->state);

    while (state != MAILBOX_FULL && !atomic_compare_exchange_weak(&box->state, &state, to)) {
    }
    return state;
}

/* Until when this process does not yield, after a yield that took long. */
static _Atomic int64_t yields_from_ns;

/* Let the sender, which is to run on this CPU, go on.  Where others compute here, that gives the CPU away for
   milliseconds: then not again before YIELD_REST times as long is over. */
static void
yield_here(void)
{
    int64_t began = now_ns();

    sched_yield();
    int64_t took = now_ns() - began;

    if (took > YIELD_LONG_NS) {
        atomic_store_explicit(&yields_from_ns, began + took * YIELD_REST, memory_order_relaxed);
    }
}

/* Look again and again, until a sender has changed the state or the time is over: false then. */
static bool
spin_until(struct mailbox *box, int64_t until, bool beside)
{
    do {
        if (beside) {
            yield_here();
        }
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
        if (atomic_load(&box->state) != MAILBOX_LOOKING) {
            return true;
        }
    } while (spin_goes_on(until));
    return false;
}

/* Sleep until a sender has changed the state, or the time is over.  False: a signal ended it. */
static bool
sleep_here(struct mailbox *box)
{
    int64_t end = now_ns() + (int64_t) MAILBOX_SLEEP_MS * 1000000;
    uint32_t state = MAILBOX_LOOKING;
    int left = MAILBOX_SLEEP_MS;
    bool slept = true;

    if (atomic_compare_exchange_strong(&box->state, &state, MAILBOX_SLEEPING)) {
        while (slept && left > 0 && atomic_load(&box->state) == MAILBOX_SLEEPING) {
            slept = futex_wait(&box->state, MAILBOX_SLEEPING, left);
            left = ms_until(end);
        }
    }
    return slept;
}

/* Wait at the mailbox, which says LOOKING.  False: look for signals before waiting any longer. */
static bool
wait_here(mpshm_mailboxes *boxes, struct mailbox *box)
{
    uint32_t cpu = cpu_now();
    /* A sender that was last on this CPU does not go on while this thread has it. */
    bool beside = cpu != 0 && atomic_load_explicit(&box->cpu, memory_order_relaxed) == cpu;
    bool worth = !beside || atomic_load_explicit(&yields_from_ns, memory_order_relaxed) < now_ns();
    int64_t until = worth ? spin_begin(&boxes->spin, false) : 0;

    if (until == 0) {
        bool slept = sleep_here(box);

        boxes->interrupted = !slept;
        return slept;
    }
    if (boxes->asked) {
        until += boxes->spin.ns * ANSWER_MORE;
    }
    bool came = spin_until(box, until, beside);

    spin_end(&boxes->spin, until, came);
    return came; /* if not, a signal meanwhile has interrupted no call */
}

/* Step out if the receiver has left for good: another thread may have said so while the mailbox was not COMING.  B6 */
static void
leave_if_shut(struct mailbox *box)
{
    uint32_t state = MAILBOX_COMING;

    if (atomic_load(&box->shut)) {
        atomic_compare_exchange_strong(&box->state, &state, MAILBOX_OUT);
    }
}

/* Take the message that lies here: its bytes. */
static int
take(mpshm_mailboxes *boxes, struct mailbox *box)
{
    uint32_t size = atomic_load_explicit(&box->size, memory_order_relaxed);

    if (size == 0 || size > MAILBOX_BYTES) {
        return MPSHM_E_DAMAGED;
    }
    memcpy(boxes->data, box->data, size);
    boxes->asked = 0;
    atomic_store(&box->state, atomic_load(&box->shut) ? MAILBOX_OUT : MAILBOX_COMING);
    leave_if_shut(box);
    return (int) size;
}

/* Whether a message may come here next: both sides use the mailbox, and all that was counted has been read. */
static bool
may_come(struct mailbox *box)
{
    return atomic_load(&box->open) && !atomic_load(&box->shut)
           && atomic_load(&box->posted) == atomic_load(&box->read);
}

int
mpshm_mailbox_receive(mpshm_mailboxes *boxes)
{
    struct mailbox *box = boxes->in;
    bool interrupted = false;
    /* Else signals that come more often than a sleep ends would keep it from the socket, where a death is seen. */
    bool stays = !boxes->interrupted;

    boxes->interrupted = 0;
    /* B5.  The second look sees what a sender has done that has not seen LOOKING. */
    if (stays && may_come(box) && step_to(box, MAILBOX_LOOKING) != MAILBOX_FULL && may_come(box)) {
        interrupted = !wait_here(boxes, box);
    }
    if (step_to(box, interrupted ? MAILBOX_COMING : MAILBOX_OUT) == MAILBOX_FULL) {
        return take(boxes, box);
    }
    leave_if_shut(box);
    return interrupted ? -EINTR : 0;
}

void
mpshm_mailbox_read(mpshm_mailboxes *boxes)
{
    struct mailbox *box = boxes->in;

    atomic_fetch_add(&box->read, 1);
    /* While the counts differ it stays out, and if a message has failed, or was not counted, for good.  B5 */
    if (may_come(box) && atomic_load(&box->state) == MAILBOX_OUT) {
        atomic_store(&box->state, MAILBOX_COMING);
        leave_if_shut(box);
    }
}

void
mpshm_mailbox_leave(mpshm_mailboxes *boxes, int for_good)
{
    struct mailbox *box = boxes->in;
    uint32_t state = MAILBOX_COMING;

    if (for_good) {
        atomic_store(&box->shut, 1);
    }
    atomic_compare_exchange_strong(&box->state, &state, MAILBOX_OUT);
}

int
mpshm_mailbox_is_full(const mpshm_mailboxes *boxes)
{
    struct mailbox *box = boxes->in;

    return atomic_load(&box->state) == MAILBOX_FULL;
}
