/* Rosters: their records, their files, what is forged in them, and crowds.

   CROWD=4000 ./test_roster crowd: so many living processes; else 1,000. */
#define _GNU_SOURCE
#include "check.h"

#include "roster.h"
#ifdef MPSHM_DEBUG
#include "debug.h"
#endif

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static struct roster *roster;
static int told[2], turn[2];

static name
me(void)
{
    process_lock();
    name me = roster_me(roster);

    process_unlock();
    return me;
}

static void
rest(void)
{
    for (;;) {
        pause();
    }
}

/* A roster's file as its maker leaves it, or nearly. */
static int
file_of(const struct roster_header *header, uint64_t size, bool sealed)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd != -1);
    CHECK_EQ(0, ftruncate(fd, (off_t) size));
    CHECK_EQ((ssize_t) sizeof *header, pwrite(fd, header, sizeof *header, 0));
    if (sealed) {
        CHECK_EQ(0, memfile_seal(fd, false));
    }
    return fd;
}

static struct roster_header
header_of(uint32_t limit)
{
    return (struct roster_header) {.magic = ROSTER_MAGIC, .abi = MPSHM_ABI, .limit = limit, .id = 7};
}

static int
attach(int fd, struct roster **out)
{
    process_lock();
    int error = roster_attach(fd, out);

    process_unlock();
    return error;
}

static void
open_roster(uint32_t limit)
{
    struct roster_header header = header_of(limit);

    CHECK_EQ(0, attach(file_of(&header, ROSTER_BYTES(limit), true), &roster));
    CHECK_EQ(0, pipe(told));
    CHECK_EQ(0, pipe(turn));
}

/* A child that joins and rests: its pid, and its name. */
static int
start(name *who)
{
    int pid = fork();

    CHECK(pid != -1);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        name mine = me();

        CHECK_EQ(sizeof mine, write(told[1], &mine, sizeof mine));
        rest();
    }
    CHECK_EQ(sizeof *who, read(told[0], who, sizeof *who));
    return pid;
}

static uint32_t
deaths(void)
{
    return roster_deaths(roster);
}

static void
census(void)
{
    process_lock();
    roster_census(roster);
    process_unlock();
}

/* Records. */

static void
noted_deaths_keep_the_roster_short(void)
{
    name who;

    open_roster(64);
    CHECK_EQ(0, NAME_NUMBER(me()));
    for (uint32_t i = 0; i < 300; i++) {
        int pid = start(&who);

        CHECK_EQ(1, NAME_NUMBER(who));
        CHECK_EQ(i + 1, NAME_INCARNATION(who));
        kill_child(pid);
        mpshm_process_ended(pid);
        CHECK_EQ(i + 1, deaths());
        mpshm_process_ended(pid); /* told once */
        CHECK_EQ(i + 1, deaths());
    }
    CHECK_EQ(2, roster_high(roster));
    CHECK_EQ(1, roster_validate(roster));
}

/* Nobody waits for them: whoever claims their records tells their deaths. */
static void
deaths_that_nobody_noted_are_told_by_who_claims_the_record(void)
{
    enum { LIMIT = 8, ROUNDS = 5 };
    name who;

    open_roster(LIMIT);
    CHECK_EQ(0, NAME_NUMBER(me()));
    for (uint32_t i = 0; i < ROUNDS * (LIMIT - 1); i++) {
        int pid = start(&who);

        CHECK(who != 0);
        kill_child(pid);
    }
    CHECK_EQ((ROUNDS - 1) * (LIMIT - 1), deaths());
    CHECK(!roster_is_dead(roster, me()));
}

static void
incarnation_goes_round_and_is_never_0(void)
{
    name who;

    open_roster(64);
    CHECK(me() != 0);
    atomic_store(&roster->records[1].word, RECORD_WORD(1, PROOF_LOCK, 65534));
    atomic_store(&roster->header->high, 2);
    atomic_store(&roster->header->next, 1);
    for (uint32_t i = 0; i < 3; i++) {
        /* As if it was noted, so that it is the next to be used. */
        atomic_store(&roster->records[1].noted, 65534 + i - (i == 2) * 65535);
        int pid = start(&who);

        CHECK_EQ(1, NAME_NUMBER(who));
        CHECK_EQ(i == 0 ? 65535 : i, NAME_INCARNATION(who));
        CHECK(!roster_is_dead(roster, who));
        kill_child(pid);
        CHECK(roster_is_dead(roster, who));
        atomic_store(&roster->header->next, 1);
    }
}

static void
crowded_roster_gives_no_name_until_somebody_dies(void)
{
    name who, last;

    open_roster(3);
    CHECK(me() != 0);
    int one = start(&who), other = start(&last);

    CHECK(who != 0 && last != 0);
    int pid = start(&last);

    CHECK_EQ(0, last);
    kill_child(pid);
    kill_child(one);
    pid = start(&last);
    CHECK_EQ(NAME_NUMBER(who), NAME_NUMBER(last));
    CHECK(roster_is_dead(roster, who));
    CHECK(!roster_is_dead(roster, last));
    kill_child(pid);
    kill_child(other);
    CHECK_EQ(1, roster_validate(roster));
}

static void
process_that_found_no_record_tries_again(void)
{
    name who, mine;

    open_roster(1);
    int pid = start(&who);

    CHECK_EQ(0, me());
    CHECK_EQ(0, me());
    process_lock();
    CHECK_EQ(0, roster_heir(roster));
    rosters_after_fork_in_parent();
    process_unlock();
    CHECK_EQ(1, roster_validate(roster));
    kill_child(pid);
    while ((mine = me()) == 0) {
        usleep(100);
    }
    CHECK_EQ(NAME_INCARNATION(who) + 1, NAME_INCARNATION(mine));
}

static void
living_member_by_pid_keeps_its_record(void)
{
    name who, other;

    open_roster(3);
    CHECK(me() != 0);
    int pid = start(&who), one = start(&other);
    _Atomic uint64_t *word = &roster->records[NAME_NUMBER(who)].word;

    kill_child(pid);
    kill_child(one);
    /* As if we were two processes, and one of them had found no lock. */
    atomic_store(word, RECORD_WORD(getpid(), PROOF_PID, NAME_INCARNATION(who)));
    atomic_store(&roster->records[NAME_NUMBER(who)].born,
                 RECORD_FACT(NAME_INCARNATION(who), pid_born((uint32_t) getpid())));
    atomic_store(&roster->header->next, NAME_NUMBER(who));
    CHECK(!roster_is_dead(roster, who));
    one = start(&other); /* tries that record first */
    CHECK_EQ(2, NAME_NUMBER(other));
    atomic_store(word, RECORD_WORD(pid, PROOF_PID, 1));
    pid = start(&other); /* and gave its lock back */
    CHECK_EQ(NAME_NUMBER(who), NAME_NUMBER(other));
    CHECK_EQ(2, NAME_INCARNATION(other));
    kill_child(pid);
    kill_child(one);
}

/* Whose death is noticed. */

static void
census_notices_all_deaths(void)
{
    enum { COUNT = 150 };
    int pids[COUNT];
    name who[COUNT];

    open_roster(NUMBER_LIMIT);
    CHECK(me() != 0);
    for (int i = 0; i < COUNT; i++) {
        pids[i] = start(&who[i]);
    }
    for (int i = 0; i < 100; i++) {
        census();
        usleep(2000);
    }
    CHECK_EQ(0, deaths());
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQ(0, kill(pids[i], SIGKILL));
        if (i % 2) { /* a pid of the others is in use as long as nobody waits */
            wait_killed(pids[i]);
        }
    }
    while (deaths() < COUNT) {
        census();
        usleep(1000);
    }
    for (int i = 0; i < 100; i++) {
        census();
        usleep(2000);
    }
    CHECK_EQ(COUNT, deaths());
    CHECK_EQ(NAME_NUMBER(me()) + 1, atomic_load(&roster->header->next)); /* the first free one */
}

static void
name_noted_dead_is_dead_though_its_lock_is_held(void)
{
    name who;

    open_roster(64);
    int pid = start(&who);

    CHECK(!roster_is_dead(roster, who));
    /* As another process sees it that found it dead, while a third is about to claim the record. */
    atomic_store(&roster->records[NAME_NUMBER(who)].noted, NAME_INCARNATION(who));
    CHECK(roster_is_dead(roster, who));
    kill_child(pid);
}

static void
processes_killed_while_they_join_leave_nothing(void)
{
    name who;

    open_roster(16);
    CHECK(me() != 0);
    for (int i = 0; i < 400; i++) {
        int pid = fork();

        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            go(turn);
            process_lock();
            (void) roster_heir(roster);
            (void) roster_me(roster);
            process_unlock();
            rest();
        }
        await(turn);
        for (volatile int pause = 0; pause < i * 97 % 60000; pause++) {
        }
        kill_child(pid);
        CHECK(!roster_is_dead(roster, me()));
        CHECK_EQ(1, roster_validate(roster));
    }
    uint32_t free_records = 0;

    for (uint32_t number = 0; number < 16; number++) {
        uint32_t incarnation = RECORD_INCARNATION(atomic_load(&roster->records[number].word));

        free_records += incarnation == 0 || roster_is_dead(roster, NAME(number, incarnation));
    }
    CHECK_EQ(15, free_records);
    kill_child(start(&who));
    CHECK(who != 0);
}

/* Joins, and looks for a while whether the record stays its own.  Some have only their pids to show. */
static void
keep_a_record(_Atomic int *owners, unsigned seed)
{
    if (seed % 5 == 0) {
        CHECK_EQ(0, close(roster_fd(roster)));
    }
    name mine;

    while ((mine = me()) == 0) {
        usleep(50);
    }
    atomic_store(&owners[NAME_NUMBER(mine)], getpid());
    for (unsigned i = 0; i < 20 + seed % 50; i++) {
        if (roster_is_dead(roster, mine) || atomic_load(&owners[NAME_NUMBER(mine)]) != getpid()) {
            atomic_store(&owners[63], 1);
        }
        usleep(seed % 7 * 10);
        census();
    }
}

static void
living_processes_never_share_a_record(void)
{
    enum { LIMIT = 6, CREW = 9, ROUNDS = 600 };
    _Atomic int *owners = mmap(NULL, 64 * sizeof *owners, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int pids[CREW] = {0};

    open_roster(LIMIT);
    for (unsigned i = 0; i < ROUNDS; i++) {
        int *pid = &pids[i % CREW];

        if (*pid != 0) {
            (void) kill(*pid, SIGKILL);
            while (waitpid(*pid, NULL, 0) == -1) {
            }
        }
        *pid = fork();
        if (*pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            keep_a_record(owners, i * 2654435761u >> 7);
            if (i % 3 == 0) {
                rest();
            }
            _exit(0);
        }
        usleep(i * 37 % 900);
        CHECK_EQ(0, atomic_load(&owners[63]));
    }
    for (int i = 0; i < CREW; i++) {
        (void) kill(pids[i], SIGKILL);
        while (waitpid(pids[i], NULL, 0) == -1) {
        }
    }
    CHECK_EQ(0, atomic_load(&owners[63]));
    name last;

    while ((last = me()) == 0) { /* all of them are free again */
        usleep(100);
    }
    CHECK_EQ(1, roster_validate(roster));
    CHECK_EQ(LIMIT, roster_high(roster));
}

/* Files. */

static void
family_is_made_once_and_costs_one_descriptor(void)
{
    struct roster *one, *two;
    int before = open_descriptors();

    process_lock();
    CHECK_EQ(0, roster_family(&one));
    CHECK_EQ(0, roster_family(&two));
    CHECK(one == two);
    CHECK(roster_find(roster_id(one)) == one);
    CHECK(roster_find(roster_id(one) + 1) == NULL);
    CHECK(roster_find(0) == NULL);
    CHECK(roster_me(one) != 0);
    CHECK(roster_heir(one) != 0);
    rosters_after_fork_in_parent();
    for (int i = 0; i < 3; i++) {
        roster_unref(one);
    }
    CHECK_EQ(0, roster_family(&two));
    CHECK(one == two); /* it lives as long as the process */
    process_unlock();
    CHECK_EQ(before + 1, open_descriptors());
    CHECK_EQ(FD_CLOEXEC, fcntl(roster_fd(one), F_GETFD));
    CHECK_EQ(NUMBER_LIMIT, one->limit);
}

static void
roster_that_was_handed_over_is_the_family(void)
{
    struct roster *again;

    open_roster(64);
    int before = open_descriptors();

    process_lock();
    CHECK_EQ(0, roster_family(&again));
    process_unlock();
    CHECK(again == roster);
    int fd = dup(roster_fd(roster));

    CHECK_EQ(0, mpshm_roster_attach(fd)); /* known, so it is closed */
    CHECK_EQ(-1, fcntl(fd, F_GETFD));
    CHECK_EQ(before, open_descriptors());
    /* If ours is lost, that one is taken. */
    fd = fcntl(roster_fd(roster), F_DUPFD_CLOEXEC, 50);
    CHECK_EQ(0, close(roster_fd(roster)));
    CHECK_EQ(-1, roster_fd(roster));
    CHECK_EQ(0, attach(fd, &again));
    CHECK(again == roster);
    CHECK_EQ(fd, roster_fd(roster));
    CHECK(me() != 0);
}

static void
standard_streams_numbers_are_not_taken(void)
{
    int out = dup(1);

    CHECK_EQ(0, close(0));
    CHECK_EQ(0, close(1));
    process_lock();
    CHECK_EQ(0, roster_family(&roster));
    process_unlock();
    CHECK(roster_fd(roster) > 2);
    CHECK_EQ(-1, write(1, "printed", 7));
    CHECK_EQ(1, dup2(out, 1));
}

static void
check_refused(int expected, const struct roster_header *header, uint64_t size, bool sealed)
{
    int fd = file_of(header, size, sealed), before = open_descriptors();
    struct roster *out = NULL;

    CHECK_EQ(expected, attach(fd, &out));
    CHECK(out == NULL);
    CHECK_EQ(before, open_descriptors());
    CHECK_EQ(0, close(fd)); /* not taken over */
}

static void
forged_files_are_refused(void)
{
    struct roster_header header = header_of(64);
    uint64_t size = ROSTER_BYTES(64);
    struct roster *out;

    open_roster(64); /* of that id */
    check_refused(MPSHM_E_TWO_FILES, &header, size, true); /* another file, the same family */
    header.id = 8;
    check_refused(MPSHM_E_UNSEALED, &header, size, false); /* its maker could cut it off */
    check_refused(MPSHM_E_GEOMETRY, &header, size - 1, true);
    check_refused(MPSHM_E_GEOMETRY, &header, size + 4096, true);
    check_refused(MPSHM_E_GEOMETRY, &header, sizeof header, true);
    for (uint32_t i = 0; i < 3; i++) {
        struct roster_header bad = header;

        bad.limit = (uint32_t[]) {0, NUMBER_LIMIT + 1, UINT32_MAX}[i];
        check_refused(MPSHM_E_GEOMETRY, &bad, ROSTER_BYTES((uint64_t) NUMBER_LIMIT + 1), true);
    }
    header.id = 0;
    check_refused(MPSHM_E_GEOMETRY, &header, size, true);
    header.id = 8;
    header.abi++;
    check_refused(MPSHM_E_ABI, &header, size, true);
    header.abi--;
    header.magic = ARENA_MAGIC;
    check_refused(MPSHM_E_MAGIC, &header, size, true);
    int fds[2];

    CHECK_EQ(0, pipe(fds));
    CHECK_EQ(MPSHM_E_MAGIC, attach(fds[0], &out));
    CHECK_EQ(MPSHM_E_MAGIC, attach(open("/dev/null", O_RDWR), &out));
    CHECK_EQ(MPSHM_E_MAGIC, attach(memfd_create("empty", 0), &out));
    CHECK_EQ(-EBADF, attach(-1, &out));
    CHECK_EQ(MPSHM_E_MAGIC, mpshm_roster_attach(fds[0]));
}

/* Whatever others write there, nothing here goes wrong but what names say. */
static void
forged_words_harm_nothing(void)
{
    static const uint64_t words[] = {0, 1, UINT64_MAX, 0x8000000000000000, 0xffffffff00010001,
                                     0x00000001000f0001, 0x00020001, 0x00010000};

    open_roster(64);
    CHECK(me() != 0);
    for (uint32_t i = 0; i < 200; i++) {
        uint64_t seed = i * UINT64_C(0x9e3779b97f4a7c15);

        for (uint32_t number = 0; number < 64; number++) {
            uint64_t word = words[(i + number) % 8];

            atomic_store(&roster->records[number].word, i < 8 ? word : word ^ seed >> number);
            atomic_store(&roster->records[number].born, seed ^ word);
            atomic_store(&roster->records[number].space, seed ^ number);
            atomic_store(&roster->records[number].noted, (uint32_t) seed);
        }
        atomic_store(&roster->header->high, (uint32_t) (i % 3 ? seed : UINT32_MAX));
        atomic_store(&roster->header->next, (uint32_t) (i % 5 ? seed >> 32 : UINT32_MAX));
        atomic_store(&roster->header->looked, (uint32_t) seed);
        roster->header->limit = (uint32_t) (seed >> 7);
        CHECK(roster_high(roster) <= 64);
        for (uint32_t number = 0; number < NUMBER_LIMIT; number += 21) {
            (void) roster_is_dead(roster, NAME(number, i % 4));
        }
        CHECK(roster_is_dead(roster, NAME(64, 1))); /* past the end */
        CHECK(roster_is_dead(roster, UINT32_MAX));
        atomic_store(&roster->header->looked_ms, 0);
        census();
        mpshm_process_ended((int) i);
        (void) roster_validate(roster);
        int pid = fork();

        if (pid == 0) {
            process_lock();
            (void) roster_heir(roster);
            process_unlock();
            (void) me();
            _exit(0);
        }
        wait_child(pid);
    }
}

static void
embedded_roster_ends_with_its_arena(void)
{
    int fd = memfd_create("arena", MFD_CLOEXEC), before = open_descriptors();
    struct roster *again;

    CHECK_EQ(0, ftruncate(fd, 65536));
    char *mapped = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *at = mapped + OWN_ROSTER_OFFSET;

    CHECK_EQ(0, pipe(told));
    process_lock();
    CHECK_EQ(MPSHM_E_MAGIC, roster_embedded(fd, OWN_ROSTER_OFFSET, at, false, &roster));
    CHECK_EQ(0, roster_embedded(fd, OWN_ROSTER_OFFSET, at, true, &roster));
    CHECK_EQ(0, roster_embedded(fd, OWN_ROSTER_OFFSET, at, false, &again));
    name mine = roster_me(roster), other = roster_me(again);

    CHECK(mine != 0 && other != 0 && mine != other); /* two handles, two names */
    CHECK_EQ(0, roster_id(roster));
    CHECK_EQ(-1, roster_fd(roster));
    process_unlock();
    name who;
    int pid = start(&who);

    CHECK(who != mine && who != other);
    CHECK(!roster_is_dead(again, who) && !roster_is_dead(again, mine));
    kill_child(pid);
    CHECK(roster_is_dead(again, who));
    process_lock();
    uint32_t deaths_before = roster_deaths(again);

    roster_unref(roster);
    CHECK(roster_is_dead(again, mine));
    CHECK(!roster_is_dead(again, other));
    while (roster_deaths(again) < deaths_before + 2) { /* this one, and the child */
        roster_census(again);
        usleep(1000);
    }
    ((struct roster_header *) at)->limit = OWN_ROSTER_LIMIT + 1;
    CHECK_EQ(MPSHM_E_GEOMETRY, roster_embedded(fd, OWN_ROSTER_OFFSET, at, false, &roster));
    ((struct roster_header *) at)->abi++;
    CHECK_EQ(MPSHM_E_ABI, roster_embedded(fd, OWN_ROSTER_OFFSET, at, false, &roster));
    roster_unref(again);
    CHECK(mpshm_process.rosters == NULL);
    process_unlock();
    CHECK_EQ(before + 2, open_descriptors()); /* the pipe */
}

static void
refused_memory_is_an_error(void)
{
    struct rlimit limit;
    struct roster *out;

    CHECK_EQ(0, getrlimit(RLIMIT_FSIZE, &limit));
    limit.rlim_cur = 1024; /* and no SIGXFSZ */
    CHECK_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
    int before = open_descriptors();

    process_lock();
    CHECK_EQ(-EFBIG, roster_family(&out));
#ifdef MPSHM_DEBUG
    limit.rlim_cur = limit.rlim_max;
    CHECK_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
    mpshm_debug_refuse(1, 1);
    CHECK_EQ(-ENOSPC, roster_family(&out));
#endif
    CHECK_EQ(before, open_descriptors());
    limit.rlim_cur = 100 * 1024;
    CHECK_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
    CHECK_EQ(0, roster_family(&out));
    CHECK_EQ(2048, out->limit); /* as many as the file may hold */
    CHECK(roster_me(out) != 0);
    process_unlock();
}

/* Threads. */

static _Atomic bool over;
static _Atomic name latest;

static void *
ask_all_the_time(void *unused)
{
    (void) unused;
    while (!atomic_load(&over)) {
        name who = atomic_load(&latest);

        for (uint32_t number = 0; number < 8; number++) {
            (void) roster_is_dead(roster, NAME(number, 1));
        }
        CHECK(!roster_is_dead(roster, me()));
        if (!roster_is_dead(roster, who) && who != 0) {
            usleep(10);
        }
        census();
    }
    return NULL;
}

static void
threads_ask_while_others_join_and_die(void)
{
    pthread_t threads[4];

    open_roster(64);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(0, pthread_create(&threads[i], NULL, ask_all_the_time, NULL));
    }
    for (int i = 0; i < 60; i++) {
        name who;
        int pid = start(&who);

        atomic_store(&latest, who);
        CHECK(!roster_is_dead(roster, who));
        kill_child(pid);
        CHECK(roster_is_dead(roster, who));
        mpshm_process_ended(pid);
    }
    atomic_store(&over, true);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(0, pthread_join(threads[i], NULL));
    }
}

/* All alive at once; then they are killed, noticed, and their records used again. */
static void
crowd_joins_and_dies(void)
{
    const char *wanted = getenv("CROWD");
    int count = wanted ? atoi(wanted) : SANITIZED ? 100 : 1000;
    int *pids = calloc((size_t) count, sizeof *pids);
    name who;

    open_roster(NUMBER_LIMIT);
    CHECK(me() != 0);
    int64_t begun = now_ns();

    for (int i = 0; i < count; i++) {
        pids[i] = start(&who);
        CHECK(who != 0);
    }
    int64_t joined = now_ns();

    CHECK_EQ(count + 1, roster_high(roster));
    CHECK(!roster_is_dead(roster, who));
    kill_child(pids[count / 2]);
    mpshm_process_ended(pids[count / 2]);
    int64_t churn = now_ns();
    uint32_t number = (uint32_t) -1;

    for (int i = 0; i < 2; i++) { /* the one record that is free, then a new one */
        int pid = start(&who);

        number = i == 0 ? NAME_NUMBER(who) : number;
        kill_child(pid);
    }
    CHECK_EQ(count / 2 + 1, number);
    int64_t churned = now_ns();

    for (int i = 0; i < 1000; i++) {
        atomic_store(&roster->header->looked_ms, 0);
        census();
    }
    int64_t looked = now_ns();

    for (int i = 0; i < count; i++) {
        if (i != count / 2) {
            kill_child(pids[i]);
            mpshm_process_ended(pids[i]);
        }
    }
    CHECK(deaths() >= (uint32_t) count);
    if (wanted) {
        printf("%d processes: join %.0f us each (fork included), again %.0f us; a census %.0f us; "
               "kill, wait and note %.0f us\n",
               count, (double) (joined - begun) / 1e3 / count, (double) (churned - churn) / 2e3,
               (double) (looked - churned) / 1e6, (double) (now_ns() - looked) / 1e3 / count);
    }
    kill_child(start(&who));
    CHECK_EQ(1, NAME_NUMBER(who));
    CHECK_EQ(1, roster_validate(roster));
    free(pids);
}

static const struct test tests[] = {
    TEST(noted_deaths_keep_the_roster_short),
    TEST(deaths_that_nobody_noted_are_told_by_who_claims_the_record),
    TEST(incarnation_goes_round_and_is_never_0),
    TEST(crowded_roster_gives_no_name_until_somebody_dies),
    TEST(process_that_found_no_record_tries_again),
    TEST(living_member_by_pid_keeps_its_record),
    TEST(census_notices_all_deaths),
    TEST(name_noted_dead_is_dead_though_its_lock_is_held),
    TEST(processes_killed_while_they_join_leave_nothing),
    TEST(living_processes_never_share_a_record),
    TEST(family_is_made_once_and_costs_one_descriptor),
    TEST(roster_that_was_handed_over_is_the_family),
    TEST(standard_streams_numbers_are_not_taken),
    TEST(forged_files_are_refused),
    TEST(forged_words_harm_nothing),
    TEST(embedded_roster_ends_with_its_arena),
    TEST(refused_memory_is_an_error),
    TEST(threads_ask_while_others_join_and_die),
    TEST(crowd_joins_and_dies),
};
RUN_TESTS(tests)
