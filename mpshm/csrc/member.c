/* Members: this process's name in each roster, what a fork does to it, and whose death is noticed.

   Knows the process's rosters.  Does not know how a name is claimed, nor how a process dies (records.c).

   Invariants: A4, E1, E5 (invariants.h).

   no name --roster_me--> me;   in a fork: parent's heir --> child's me

   Memory order: none of its own. */
#define _GNU_SOURCE
#include "roster.h"

#include <sys/mman.h>
#include <unistd.h>

/* The census: how many records it asks for their pids (0.2 us each), how many for their locks (up to
   10 us among 4,000), and how often all processes together do that: a hundredth of a CPU at most. */
#define CENSUS_PIDS 64
#define CENSUS_LOCKS 8
#define CENSUS_MS 10

/* Claim a record by its lock or, if that is said, by pid: the name, or 0.  A search that finds nothing tries
   each lock; a hundredth of the time at most goes to that. */
static name
search(struct roster *roster, uint32_t pid, bool by_pid, void **page)
{
    int64_t begun = now_ns();

    if (begun < roster->crowded_until_ns) {
        return 0;
    }
    int64_t got = record_claim_by_lock(roster, pid, page);

    if (got == -1 && by_pid) {
        got = record_claim_by_pid(roster, pid);
    }
    if (got == 0) {
        int64_t over = now_ns();

        roster->crowded_until_ns = over + 100 * (over - begun);
    }
    return got > 0 ? (name) got : 0;
}

name
roster_me(struct roster *roster)
{
    INVARIANT(A4, process_is_locked());
    if (roster->me == 0) {
        uint32_t pid = (uint32_t) getpid();

        roster->me = search(roster, pid, true, &roster->page);
        if (roster->me != 0) {
            record_write_facts(roster, roster->me, pid);
        }
    }
    return roster->me;
}

void
roster_census(struct roster *roster)
{
    struct roster_header *header = roster->header;
    uint32_t high = roster_high(roster), now_ms = (uint32_t) (now_ns() / 1000000);
    uint32_t last_ms = atomic_load(&header->looked_ms);

    if (roster->me == 0 || now_ms - last_ms < CENSUS_MS
        || !atomic_compare_exchange_strong(&header->looked_ms, &last_ms, now_ms)) {
        return;
    }
    uint64_t slice = atomic_fetch_add(&header->looked, 1), space = pid_space();

    for (uint32_t i = 0; space != 0 && i < CENSUS_PIDS && i < high; i++) {
        record_look(roster, (uint32_t) ((slice * CENSUS_PIDS + i) % high), space);
    }
    for (uint32_t i = 0; i < CENSUS_LOCKS && i < high; i++) {
        record_look(roster, (uint32_t) ((slice * CENSUS_LOCKS + i) % high), 0);
    }
    if (roster->page == NULL) {
        roster->page = record_lock_later(roster, roster->me, (uint32_t) getpid());
    }
}

/* Only a member may note a death.  In its families it becomes one, for it may not have used a queue that its
   child used. */
void
rosters_note_end(uint32_t pid)
{
    INVARIANT(A4, process_is_locked());
    for (struct roster *roster = mpshm_process.rosters; roster != NULL; roster = roster->next) {
        uint32_t high = roster_high(roster);
        bool is_member = roster->id == 0 ? roster->me != 0 : roster_me(roster) != 0;

        roster->has_ended = false;
        for (uint32_t number = 0; is_member && number < high; number++) {
            struct record *record = &roster->records[number];
            uint64_t word = atomic_load_explicit(&record->word, memory_order_relaxed);
            uint32_t its = RECORD_PID(word);

            if (its == pid || its == 0) { /* 0: killed before it had said its pid */
                record_look(roster, number, 0);
                roster->has_ended |= atomic_load(&record->noted) == RECORD_INCARNATION(word);
            }
        }
    }
}

bool
roster_has_ended(const struct roster *roster)
{
    return roster->has_ended;
}

/* Forks.  All of them under the lock, which a fork's hooks hold throughout. */

name
roster_heir(struct roster *roster)
{
    INVARIANT(A4, process_is_locked());
    if (!roster->heir_tried) { /* it is asked for with each lease */
        roster->heir_tried = true;
        roster->heir = search(roster, 0, false, &roster->heir_page);
    }
    return roster->heir;
}

static void
forget_heir(struct roster *roster)
{
    latch_drop(roster->heir_page);
    roster->heir_page = NULL;
    roster->heir = 0;
    roster->heir_tried = false;
}

void
rosters_after_fork_in_parent(void)
{
    for (struct roster *roster = mpshm_process.rosters; roster != NULL; roster = roster->next) {
        forget_heir(roster);
    }
}

/* The parent's own page is not here: MADV_DONTFORK.  E5 */
static void
forget_parent(struct roster *roster)
{
    roster->me = 0;
    roster->page = NULL;
    roster->crowded_until_ns = 0;
}

/* Be the heir, if there is one.  Its word keeps its incarnation. */
static void
inherit(struct roster *roster)
{
    uint32_t pid = (uint32_t) getpid(), incarnation = NAME_INCARNATION(roster->heir);
    uint64_t word = RECORD_WORD(0, PROOF_LOCK, incarnation);

    forget_parent(roster);
    roster->heir_tried = false;
    if (roster->heir == 0) {
        return;
    }
    /* If this fails, a child that lives on after us has the lock too, and we count as alive so long. */
    (void) madvise(roster->heir_page, (size_t) sysconf(_SC_PAGESIZE), MADV_DONTFORK);
    roster->me = roster->heir;
    roster->page = roster->heir_page;
    roster->heir = 0;
    roster->heir_page = NULL;
    record_write_facts(roster, roster->me, pid);
    atomic_compare_exchange_strong(&roster->records[NAME_NUMBER(roster->me)].word, &word,
                                   RECORD_WORD(pid, PROOF_LOCK, incarnation));
}

void
rosters_after_fork_in_child(void)
{
    for (struct roster *roster = mpshm_process.rosters; roster != NULL; roster = roster->next) {
        inherit(roster);
    }
}

void
rosters_forget(void)
{
    for (struct roster *roster = mpshm_process.rosters; roster != NULL; roster = roster->next) {
        forget_parent(roster);
        forget_heir(roster); /* another thread was just forking: that one is not for us */
    }
}
