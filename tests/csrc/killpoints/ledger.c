/* The ledger: memory of all processes of a life, in which each says what it has done.

   Knows numbers of messages.  Does not know what a message is, nor any queue.  It is never killed in
   the middle, because no point is in it. */
#define _GNU_SOURCE
#include "ledger.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lives.h"

#define MOST_MESSAGES 16384

struct entry {
    int producer;
    uint32_t pipe_bytes;
    uint8_t shape;
    _Atomic bool accepted, put, refused, withdraws;
    _Atomic uint8_t got;
};

static struct ledger {
    _Atomic uint32_t count;
    _Atomic uint32_t tasks_started, tasks_done;
    uint32_t tasks_from; /* all before this message are settled */
    struct entry entries[MOST_MESSAGES + 1];
} *ledger;

void
ledger_begin(void)
{
    ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ledger == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
}

void
ledger_clear(void)
{
    uint32_t count = atomic_load(&ledger->count);

    memset(ledger->entries, 0, (count + 1) * sizeof *ledger->entries);
    ledger->count = ledger->tasks_started = ledger->tasks_done = 0;
    ledger->tasks_from = 1;
}

static struct entry *
entry_of(uint32_t message)
{
    if (message == 0 || message > atomic_load(&ledger->count)) {
        complain(__FILE__, __LINE__, "message %u arrived, which nobody put", message);
    }
    return &ledger->entries[message];
}

uint32_t
ledger_start(uint8_t shape)
{
    uint32_t message = atomic_fetch_add(&ledger->count, 1) + 1;

    EXPECT(message <= MOST_MESSAGES);
    ledger->entries[message].producer = getpid();
    ledger->entries[message].shape = shape;
    return message;
}

void
ledger_put(uint32_t message, uint32_t pipe_bytes)
{
    entry_of(message)->pipe_bytes = pipe_bytes;
    entry_of(message)->put = true;
}

void
ledger_withdraws(uint32_t message)
{
    entry_of(message)->withdraws = true;
    entry_of(message)->put = false;
}

void
ledger_withdrawn(uint32_t message, bool in_time)
{
    struct entry *entry = entry_of(message);

    if (in_time && entry->got != 0) {
        complain(__FILE__, __LINE__, "message %u arrived and was taken back", message);
    }
    entry->refused = in_time;
    entry->put = !in_time;
}

void
ledger_accepted(uint32_t message)
{
    entry_of(message)->accepted = true;
}

void
ledger_refused(uint32_t message)
{
    entry_of(message)->refused = true;
}

uint8_t
ledger_shape(uint32_t message)
{
    return entry_of(message)->shape;
}

/* One process takes the messages of another in their order. */
static void
check_order(uint32_t message)
{
    static struct {
        int producer;
        uint32_t last;
    } seen[16];
    int producer = entry_of(message)->producer;
    int i = 0;

    while (seen[i].producer != producer && seen[i].producer != 0) {
        i++;
        EXPECT(i < 16);
    }
    seen[i].producer = producer;
    if (seen[i].last > message) {
        complain(__FILE__, __LINE__, "message %u arrived before message %u of the same process",
                 seen[i].last, message);
    }
    seen[i].last = message;
}

void
ledger_got(uint32_t message)
{
    struct entry *entry = entry_of(message);

    if (atomic_fetch_add(&entry->got, 1) != 0) {
        complain(__FILE__, __LINE__, "message %u arrived twice", message);
    }
    if (entry->refused) {
        complain(__FILE__, __LINE__, "message %u arrived, but its put was refused", message);
    }
    check_order(message);
}

void
ledger_task_start(void)
{
    atomic_fetch_add(&ledger->tasks_started, 1);
}

void
ledger_task_done(void)
{
    atomic_fetch_add(&ledger->tasks_done, 1);
}

void
ledger_task_refused(void)
{
    atomic_fetch_sub(&ledger->tasks_started, 1);
}

uint32_t
ledger_missing(void)
{
    uint32_t missing = 0;

    for (uint32_t i = 1; i <= ledger->count; i++) {
        missing += ledger->entries[i].put && ledger->entries[i].got == 0;
    }
    return missing;
}

bool
ledger_is_whole(uint32_t unread)
{
    for (uint32_t i = ledger->count; unread > 0 && i > 0; i--) {
        struct entry *entry = &ledger->entries[i];

        if (!entry->put && !entry->refused) {
            return true; /* who knows; but its sender died, and no receiver */
        }
        if (entry->pipe_bytes > unread) {
            return false;
        }
        unread -= entry->pipe_bytes;
    }
    return unread == 0;
}

/* If a message arrived that its killed sender had not finished putting, those before it did as well. */
static void
check_gaps(void)
{
    for (uint32_t i = 2; i <= ledger->count; i++) {
        struct entry *one = &ledger->entries[i], *before = one - 1;

        if (one->got != 0 && !one->put && before->producer == one->producer && !before->put
            && !before->refused && !before->withdraws && before->got == 0) {
            complain(__FILE__, __LINE__, "message %u arrived, but not message %u before it", i,
                     i - 1);
        }
    }
}

void
ledger_check(uint32_t hands)
{
    uint32_t missing = ledger_missing();

    if (missing > hands) {
        complain(__FILE__, __LINE__, "%u messages were put and never arrived; %u may be missing",
                 missing, hands);
    }
    check_gaps();
}

/* Each message that arrived is a task.  One that was lost with its receiver may be: nobody can do it. */
void
ledger_tasks_left(uint32_t *least, uint32_t *most)
{
    uint32_t got = 0, lost = 0;

    for (uint32_t i = ledger->tasks_from; i <= ledger->count; i++) {
        got += ledger->entries[i].got != 0;
        lost += ledger->entries[i].put && ledger->entries[i].got == 0;
    }
    *least = got > ledger->tasks_started ? got - ledger->tasks_started : 0;
    *most = got + lost - ledger->tasks_done;
}

uint32_t
ledger_tasks_certain(void)
{
    uint32_t tasks = 0;

    for (uint32_t i = ledger->tasks_from; i <= ledger->count; i++) {
        struct entry *entry = &ledger->entries[i];

        tasks += entry->put || entry->got != 0 || (entry->accepted && !entry->refused);
    }
    return tasks > ledger->tasks_started ? tasks - ledger->tasks_started : 0;
}

void
ledger_tasks_settled(void)
{
    ledger->tasks_from = ledger->count + 1;
    ledger->tasks_started = ledger->tasks_done = 0;
}
