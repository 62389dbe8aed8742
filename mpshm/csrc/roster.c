/* Rosters: the memory files that say who is alive, and which of them this process uses.

   Knows a roster's file and header.  Knows no arena and no message; words and locks are in records.c,
   this process's names in member.c.

   Invariants: A2, A4, E1, E2, E4 (invariants.h).

   In a process:  a family's roster: attached, for good;  an arena's own: --roster_unref--> forgotten

   Memory order: a header's `magic` to `id` are written before the file has a second user; its hints
   order nothing. */
#define _GNU_SOURCE
#include "roster.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where RLIMIT_FSIZE asks for a smaller file: fewer records are not worth one. */
#define LIMIT_LEAST UINT32_C(64)

/* How many records a new roster has, as RLIMIT_FSIZE allows: growing a file past it raises SIGXFSZ. */
static int
plan_limit(uint32_t *limit)
{
    struct rlimit file;

    if (getrlimit(RLIMIT_FSIZE, &file) == -1) {
        return -errno;
    }
    *limit = NUMBER_LIMIT;
    while (file.rlim_cur != RLIM_INFINITY && ROSTER_BYTES(*limit) > file.rlim_cur) {
        *limit /= 2;
        if (*limit < LIMIT_LEAST) {
            return -EFBIG;
        }
    }
    return 0;
}

/* A new roster's file: its descriptor, or -errno. */
static int
make_file(void)
{
    struct roster_header header = {.magic = ROSTER_MAGIC, .abi = MPSHM_ABI, .id = memfile_fresh_id()};
    bool bounded;
    int error = plan_limit(&header.limit);

    if (error != 0) {
        return error;
    }
    int fd = memfile_open(MPSHM_FILE_AUTO, "mpshm-roster", &bounded);

    if (fd == -1) {
        return -errno;
    }
    uint64_t size = ROSTER_BYTES(header.limit);

    errno = 0;
    if (ftruncate(fd, (off_t) size) == -1
        || pwrite(fd, &header, sizeof header, 0) != (ssize_t) sizeof header) {
        error = errno ? -errno : -EIO;
    }
    if (error == 0 && bounded) {
        error = memfile_reserve(fd, 0, size);
    }
    if (error == 0) {
        error = memfile_seal(fd, bounded);
    }
    if (error != 0) {
        close(fd);
    }
    return error == 0 ? fd : error;
}

/* most: so many records there is room for. */
static int
check_header(uint64_t magic, uint32_t abi, uint32_t limit, uint32_t most)
{
    if (magic != ROSTER_MAGIC) {
        return MPSHM_E_MAGIC;
    }
    if (abi != MPSHM_ABI) {
        return MPSHM_E_ABI;
    }
    return limit == 0 || limit > most ? MPSHM_E_GEOMETRY : 0;
}

static int
read_header(int fd, struct roster_header *header, struct stat *status)
{
    if (fstat(fd, status) == -1) {
        return -errno;
    }
    if (pread(fd, header, sizeof *header, 0) != (ssize_t) sizeof *header || memfile_is_huge(fd)) {
        return MPSHM_E_MAGIC;
    }
    int error = check_header(header->magic, header->abi, header->limit, NUMBER_LIMIT);

    if (error == 0 && (header->id == 0 || (uint64_t) status->st_size != ROSTER_BYTES(header->limit))) {
        error = MPSHM_E_GEOMETRY;
    }
    return error == 0 && memfile_can_shrink(fd) ? MPSHM_E_UNSEALED : error;
}

/* A struct for it, last in the process's list, for the first is the process's own family. */
static int
list(const struct roster *made, struct roster **out)
{
    struct roster *roster = malloc(sizeof *roster), **link = &mpshm_process.rosters;

    if (roster == NULL) {
        return -ENOMEM;
    }
    *roster = *made;
    roster->records = (struct record *) (roster->header + 1);
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = roster;
    *out = roster;
    return 0;
}

static struct roster *
find(uint64_t id)
{
    struct roster *roster = mpshm_process.rosters;

    while (roster != NULL && roster->id != id) {
        roster = roster->next;
    }
    return id == 0 ? NULL : roster;
}

int
roster_attach(int fd, struct roster **out)
{
    struct roster_header header;
    struct stat status;
    int error = read_header(fd, &header, &status);
    struct roster *known = error == 0 ? find(header.id) : NULL;

    INVARIANT(A4, process_is_locked());
    if (error != 0) {
        return error;
    }
    if (known != NULL) {
        if (known->device != (uint64_t) status.st_dev || known->inode != (uint64_t) status.st_ino) {
            return MPSHM_E_TWO_FILES; /* one of them is forged */
        }
        if (roster_fd(known) == -1) {
            atomic_store(&known->fd, fd); /* the other one is no longer ours */
        } else {
            close(fd);
        }
        known->refs++;
        *out = known;
        return 0;
    }
    void *mapped = mmap(NULL, ROSTER_BYTES(header.limit), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (mapped == MAP_FAILED) {
        return -errno;
    }
    error = list(&(struct roster) {
                     .header = mapped,
                     .fd = fd,
                     .device = (uint64_t) status.st_dev,
                     .inode = (uint64_t) status.st_ino,
                     .id = header.id,
                     .limit = header.limit,
                     .refs = 2, /* the caller's, and one for good */
                 },
                 out);
    if (error != 0) {
        munmap(mapped, ROSTER_BYTES(header.limit));
    }
    return error;
}

int
mpshm_roster_attach(int fd)
{
    struct roster *roster;

    process_lock();
    int error = roster_attach(fd, &roster);

    if (error == 0) {
        roster_unref(roster);
    }
    process_unlock();
    return error;
}

int
roster_embedded(int arena_fd, uint64_t offset, void *mapped, bool fresh, struct roster **out)
{
    struct roster_header *header = mapped;
    struct stat status;

    INVARIANT(A4, process_is_locked());
    if (fstat(arena_fd, &status) == -1) {
        return -errno;
    }
    if (fresh) {
        header->magic = ROSTER_MAGIC;
        header->abi = MPSHM_ABI;
        header->limit = OWN_ROSTER_LIMIT;
    }
    uint32_t limit = *(volatile uint32_t *) &header->limit; /* what is checked is what is used */
    int error = check_header(header->magic, header->abi, limit, OWN_ROSTER_LIMIT);

    if (error != 0) {
        return error;
    }
    return list(&(struct roster) {
                    .header = header,
                    .fd = arena_fd,
                    .device = (uint64_t) status.st_dev,
                    .inode = (uint64_t) status.st_ino,
                    .offset = offset,
                    .limit = limit,
                    .refs = 1,
                },
                out);
}

/* One whose descriptor is lost cannot be handed on, so what is made from now on gets another. */
int
roster_family(struct roster **out)
{
    INVARIANT(A4, process_is_locked());
    for (struct roster *roster = mpshm_process.rosters; roster != NULL; roster = roster->next) {
        if (roster_fd(roster) != -1) {
            roster->refs++;
            *out = roster;
            return 0;
        }
    }
    int fd = make_file(), error = fd < 0 ? fd : roster_attach(fd, out);

    if (fd >= 0 && error != 0) {
        close(fd);
    }
    return error;
}

struct roster *
roster_find(uint64_t id)
{
    struct roster *roster = find(id);

    INVARIANT(A4, process_is_locked());
    if (roster != NULL) {
        roster->refs++;
    }
    return roster;
}

uint64_t
roster_id(const struct roster *roster)
{
    return roster->id;
}

int
roster_fd(const struct roster *roster)
{
    return roster->id == 0 ? -1 : record_file(roster);
}

void
roster_unref(struct roster *roster)
{
    struct roster **link = &mpshm_process.rosters;

    INVARIANT(A4, process_is_locked());
    INVARIANT(A2, roster->refs > 0);
    if (--roster->refs > 0) {
        return;
    }
    while (*link != roster) {
        link = &(*link)->next;
    }
    *link = roster->next;
    latch_drop(roster->page); /* the name is dead now, and others will notice */
    free(roster);
}

uint32_t
roster_high(struct roster *roster)
{
    uint32_t high = atomic_load(&roster->header->high);

    return high < roster->limit ? high : roster->limit;
}

uint32_t
roster_deaths(struct roster *roster)
{
    return atomic_load_explicit(&roster->header->deaths, memory_order_acquire);
}

int
roster_validate(struct roster *roster)
{
    for (uint32_t number = 0; number < roster->limit; number++) {
        uint64_t word = atomic_load(&roster->records[number].word);

        if (word == 0) {
            continue;
        }
        if (number >= roster_high(roster) || RECORD_INCARNATION(word) == 0) { /* E4 */
            return -__LINE__;
        }
    }
    if (roster->me != 0) {
        uint64_t word = atomic_load(&roster->records[NAME_NUMBER(roster->me)].word);

        if (RECORD_INCARNATION(word) != NAME_INCARNATION(roster->me)
            || RECORD_PID(word) != (uint32_t) getpid()
            || RECORD_PROOF(word) != (roster->page == NULL ? PROOF_PID : PROOF_LOCK)) { /* E1, E2 */
            return -__LINE__;
        }
    }
    return 1;
}
