/* Records: a roster's words and the locks on its bytes.

   Knows one roster.  Does not know how a process comes by it (roster.c), nor what a pid says (pids.c).

   A process holds a lock on a byte of its record and incarnation by a mapping alone: it opens the file anew, maps a
   page through that description, locks the byte through it and closes it.  So no descriptor is left that
   somebody could close, inherit or pass on, and the lock ends with the process's memory: with its last
   thread, or its exec.

   Invariants: E2 to E4 (invariants.h).

   A record's word:  0 --claim--> (pid, latch, incarnation) --owner dead, claim--> (.., incarnation + 1)

   Memory order: a claim's compare-and-swap releases, after the lock was had, and pairs with the acquire
   in roster_is_dead: who reads the new incarnation finds all that the old one's process wrote.  Who
   finds the lock free finds it as well: the kernel took the process's memory away before that. */
#define _GNU_SOURCE
#include "roster.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

/* A description of the file that nobody else has, and a page mapped through it. */
struct latch {
    int fd;
    void *page;
};

static size_t
page_bytes(void)
{
    return (size_t) sysconf(_SC_PAGESIZE);
}

int
record_file(const struct roster *roster)
{
    int fd = atomic_load_explicit(&roster->fd, memory_order_relaxed);

    return memfile_is(fd, roster->device, roster->inode) ? fd : -1;
}

/* Each incarnation of a record has a byte of its own to lock, wherever that is in the file: so a process that is
   stopped while it claims a record keeps no dead one's lock. */
static struct flock
byte_of(const struct roster *roster, uint32_t number, uint32_t incarnation, short type)
{
    return (struct flock) {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = (off_t) (roster->offset + ((uint64_t) number << 16) + incarnation),
        .l_len = 1,
    };
}

/* Whether that lock is held: 1 or 0; -1: it cannot be asked. */
static int
is_locked(const struct roster *roster, uint32_t number, uint32_t incarnation)
{
#ifdef F_OFD_GETLK
    struct flock lock = byte_of(roster, number, incarnation, F_WRLCK);
    int fd = record_file(roster);

    if (fd == -1 || fcntl(fd, F_OFD_GETLK, &lock) == -1) {
        return -1;
    }
    if (lock.l_type != F_UNLCK) {
        return 1;
    }
    /* Another thread may just have closed all descriptors, and the answer be about another file. */
    return record_file(roster) == fd ? 0 : -1;
#else
    (void) roster;
    (void) number;
    return -1;
#endif
}

void
latch_drop(void *page)
{
    if (page != NULL) {
        munmap(page, page_bytes());
    }
}

/* Map before the lock is had: then no child made by a raw clone() gets the mapping with the lock. */
static bool
latch_open(const struct roster *roster, bool for_child, struct latch *latch)
{
#ifdef F_OFD_SETLK
    char path[32];
    int file = record_file(roster);

    if (file == -1) {
        return false;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd == -1) {
        return false;
    }
    void *page = memfile_is(fd, roster->device, roster->inode)
                     ? mmap(NULL, page_bytes(), PROT_NONE, MAP_SHARED, fd, 0)
                     : MAP_FAILED;

    if (page != MAP_FAILED && (for_child || madvise(page, page_bytes(), MADV_DONTFORK) == 0)) {
        *latch = (struct latch) {fd, page};
        return true;
    }
    if (page != MAP_FAILED) {
        munmap(page, page_bytes());
    }
    close(fd);
#else
    (void) roster;
    (void) for_child;
    (void) latch;
#endif
    return false;
}

/* Another thread may close all descriptors meanwhile, and the number be another file's. */
static void
latch_close(const struct roster *roster, struct latch *latch)
{
    if (memfile_is(latch->fd, roster->device, roster->inode)) {
        close(latch->fd);
    }
}

/* Try the lock, or give it back.  -1: none can be had by this latch. */
static int
latch_lock(const struct roster *roster, struct latch *latch, uint32_t number, uint32_t incarnation,
           short type)
{
#ifdef F_OFD_SETLK
    struct flock lock = byte_of(roster, number, incarnation, type);

    if (fcntl(latch->fd, F_OFD_SETLK, &lock) == 0) {
        return memfile_is(latch->fd, roster->device, roster->inode) ? 1 : -1;
    }
    return errno == EAGAIN || errno == EACCES ? 0 : -1;
#else
    (void) roster;
    (void) latch;
    (void) number;
    (void) type;
    return -1;
#endif
}

/* A fact that the record's present owner has written; 0: not known. */
static uint64_t
fact(_Atomic uint64_t *where, uint32_t incarnation)
{
    uint64_t value = atomic_load_explicit(where, memory_order_acquire);

    return FACT_INCARNATION(value) == incarnation ? FACT_VALUE(value) : 0;
}

/* Whether the pid of that record's word is no longer its process's. */
static bool
pid_says_dead(struct record *record, uint64_t word)
{
    uint32_t incarnation = RECORD_INCARNATION(word);
    uint64_t space = fact(&record->space, incarnation);

    return space != 0 && space == pid_space()
           && pid_is_gone(RECORD_PID(word), fact(&record->born, incarnation));
}

/* E3 */
static bool
word_is_dead(const struct roster *roster, uint32_t number, uint64_t word)
{
    struct record *record = &roster->records[number];
    int locked;

    if (atomic_load_explicit(&record->noted, memory_order_acquire) == RECORD_INCARNATION(word)) {
        return true;
    }
    switch (RECORD_PROOF(word)) {
    case PROOF_NONE:
        return true;
    case PROOF_LOCK:
        locked = is_locked(roster, number, RECORD_INCARNATION(word));
        return locked == 0 || (locked == -1 && pid_says_dead(record, word));
    case PROOF_PID:
        return pid_says_dead(record, word);
    }
    return false; /* forged: nobody knows */
}

bool
roster_is_dead(struct roster *roster, name who)
{
    uint32_t number = NAME_NUMBER(who);

    if (who == 0) {
        return false;
    }
    if (number >= roster->limit) {
        return true; /* forged: no process can have it */
    }
    uint64_t word = atomic_load_explicit(&roster->records[number].word, memory_order_acquire);

    return RECORD_INCARNATION(word) != NAME_INCARNATION(who) || word_is_dead(roster, number, word);
}

/* That incarnation is dead: whether this process is the first to note it.  Then it has to tell `deaths`, and
   afterwards: whoever reaps then must find it dead though another process is just about to claim the
   record and has its lock.  Killed in between, its own death is told, so it must have a name. */
static bool
note_death(struct record *record, uint32_t incarnation)
{
    uint32_t noted = atomic_load(&record->noted);

    return incarnation != 0 && noted != incarnation
           && atomic_compare_exchange_strong(&record->noted, &noted, incarnation);
}

static void
tell_death(const struct roster *roster)
{
    atomic_fetch_add(&roster->header->deaths, 1);
}

/* Claim that record if its owner is dead: 0, or its name; or -1: no lock can be had.  The lock of the new
   incarnation first: then nobody else claims it, and it is alive from its first moment. */
static int64_t
claim_record(const struct roster *roster, uint32_t number, uint32_t pid, struct latch *latch)
{
    struct record *record = &roster->records[number];
    uint64_t word = atomic_load_explicit(&record->word, memory_order_acquire);
    uint32_t dead = RECORD_INCARNATION(word), incarnation = dead % 0xffff + 1;

    if (!word_is_dead(roster, number, word)) {
        return 0;
    }
    int locked = latch == NULL ? 0 : latch_lock(roster, latch, number, incarnation, F_WRLCK);

    if (latch != NULL && locked != 1) {
        return locked;
    }
    uint32_t high = atomic_load(&roster->header->high);

    while (high <= number /* E4 */
           && !atomic_compare_exchange_weak(&roster->header->high, &high, number + 1)) {
    }
    if (atomic_compare_exchange_strong(&record->word, &word,
                                       RECORD_WORD(pid, latch == NULL ? PROOF_PID : PROOF_LOCK,
                                                   incarnation))) {
        if (note_death(record, dead)) { /* now that there is a name */
            tell_death(roster);
        }
        return NAME(number, incarnation);
    }
    if (locked) {
        latch_lock(roster, latch, number, incarnation, F_UNLCK);
    }
    return 0;
}

/* Claim a free record: its name; 0, there is none; or -1.  First those that say that they are free, which
   costs a look at memory for each; then all others, whose locks have to be tried. */
static int64_t
claim(const struct roster *roster, uint32_t pid, struct latch *latch)
{
    uint32_t next = atomic_load(&roster->header->next), first = next % roster->limit;

    for (int thorough = 0; thorough < 2; thorough++) {
        for (uint32_t i = 0; i < roster->limit; i++) {
            uint32_t number = (first + i) % roster->limit;
            struct record *record = &roster->records[number];
            uint64_t word = atomic_load_explicit(&record->word, memory_order_relaxed);
            bool seems_free = RECORD_PROOF(word) == PROOF_NONE
                              || atomic_load(&record->noted) == RECORD_INCARNATION(word);
            int64_t got = seems_free != thorough ? claim_record(roster, number, pid, latch) : 0;

            if (got > 0) {
                /* If somebody has noted a death meanwhile, its number is the better hint. */
                atomic_compare_exchange_strong(&roster->header->next, &next, number + 1);
            }
            if (got != 0) {
                return got;
            }
        }
    }
    return 0;
}

void
record_write_facts(const struct roster *roster, name who, uint32_t pid)
{
    struct record *record = &roster->records[NAME_NUMBER(who)];
    uint32_t incarnation = NAME_INCARNATION(who);

    atomic_store(&record->born, RECORD_FACT(incarnation, FACT_VALUE(pid_born(pid))));
    atomic_store(&record->space, RECORD_FACT(incarnation, FACT_VALUE(pid_space())));
}

/* E2 */
int64_t
record_claim_by_lock(const struct roster *roster, uint32_t pid, void **page)
{
    struct latch latch;

    if (!latch_open(roster, pid == 0, &latch)) {
        return -1;
    }
    int64_t got = claim(roster, pid, &latch);

    latch_close(roster, &latch);
    if (got <= 0) {
        latch_drop(latch.page);
    } else {
        *page = latch.page;
    }
    return got;
}

int64_t
record_claim_by_pid(const struct roster *roster, uint32_t pid)
{
    return claim(roster, pid, NULL);
}

void *
record_lock_later(const struct roster *roster, name who, uint32_t pid)
{
    uint32_t number = NAME_NUMBER(who), incarnation = NAME_INCARNATION(who);
    uint64_t word = RECORD_WORD(pid, PROOF_PID, incarnation);
    struct latch latch;

    if (!latch_open(roster, false, &latch)) {
        return NULL;
    }
    bool locked = latch_lock(roster, &latch, number, incarnation, F_WRLCK) == 1
                  && atomic_compare_exchange_strong(&roster->records[number].word, &word,
                                                    RECORD_WORD(pid, PROOF_LOCK, incarnation));

    latch_close(roster, &latch);
    if (!locked) {
        latch_drop(latch.page);
    }
    return locked ? latch.page : NULL;
}

void
record_look(const struct roster *roster, uint32_t number, uint64_t space)
{
    struct record *record = &roster->records[number];
    uint64_t word = atomic_load_explicit(&record->word, memory_order_acquire);

    if (RECORD_PROOF(word) == PROOF_NONE || atomic_load(&record->noted) == RECORD_INCARNATION(word)
        || (space != 0
            && (fact(&record->space, RECORD_INCARNATION(word)) != space
                || !pid_is_unused(RECORD_PID(word))))
        || !word_is_dead(roster, number, word)
        || !note_death(record, RECORD_INCARNATION(word))) {
        return;
    }
    uint32_t next = atomic_load(&roster->header->next);

    tell_death(roster);
    while (next > number && !atomic_compare_exchange_weak(&roster->header->next, &next, number)) {
    }
}
