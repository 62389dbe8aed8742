/* Loans: which runs this process has claimed and not done with, whatever shared memory says of them.

   A run's word is where others can write, by mistake or on purpose, or because they take this process for dead.  So
   what is on loan stands here as well, and each loan ends once: the counts that a fork goes by stay right, and a run
   that was sent is told from one that was taken away.

   Knows a run's arena and where it is mapped.  Does not know its word (runs.c).

   Invariants: A4, R3 (invariants.h).  It holds no shared word, so it has no memory order. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>

/* A run names its place here, and which use of that place it is. */
static struct {
    struct {
        uint32_t use;  /* odd: taken.  It goes up with each loan's beginning and end */
        uint32_t next; /* of those that are free: the next one, and 1; 0: none */
    } *places;
    uint32_t room, used, free;
} loans;

/* Have a place for one loan more: 0, or -ENOMEM. */
int
loan_room(void)
{
    INVARIANT(A4, process_is_locked());
    if (loans.free == 0 && loans.used == loans.room) {
        uint32_t room = loans.room ? 2 * loans.room : 64;
        void *grown = realloc(loans.places, room * sizeof *loans.places);

        if (grown == NULL) {
            return -ENOMEM;
        }
        loans.places = grown;
        loans.room = room;
    }
    return 0;
}

static struct segment *
segment_of(const mpshm_run *run)
{
    return run->arena->segments[run->mmap_id];
}

/* The run is on loan to this process from now on.  loan_room has found a place. */
void
loan_begin(mpshm_run *run)
{
    if (loans.free != 0) {
        run->loan = loans.free - 1;
        loans.free = loans.places[run->loan].next;
    } else {
        run->loan = loans.used++;
        loans.places[run->loan].use = 0;
    }
    run->use = ++loans.places[run->loan].use;
    run->arena->loans++;
    mapping_add_loan(segment_of(run), run->data);
}

/* Whether it still is; not whether this process still has it. */
bool
loan_is_open(const mpshm_run *run)
{
    return run->generation == mpshm_process.generation && run->loan < loans.used
           && loans.places[run->loan].use == run->use;
}

void
loan_end(mpshm_run *run)
{
    INVARIANT(R3, loan_is_open(run));
    loans.places[run->loan].use++;
    loans.places[run->loan].next = loans.free;
    loans.free = run->loan + 1;
    run->arena->loans--;
    mapping_drop_loan(segment_of(run), run->data);
}
