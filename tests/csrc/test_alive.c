/* Who is alive: processes that are stopped, killed, replaced, orphaned and forked in every way.

   A child of the tests joins the family and then lives as it is told; its parent asks whether it lives. */
#define _GNU_SOURCE
#include "check.h"

#include "roster.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct word {
    int pid;
    name who;
};

static struct roster *roster;
static int told[2], turn[2]; /* pipes: what children say, and their turns */

static name
me_in(struct roster *in)
{
    process_lock();
    name me = roster_me(in);

    process_unlock();
    return me;
}

static name
me(void)
{
    return me_in(roster);
}

static struct roster *
family(void)
{
    struct roster *out;

    process_lock();
    CHECK_EQ(0, roster_family(&out));
    process_unlock();
    return out;
}

static void
open_family(void)
{
    roster = family();
    CHECK_EQ(0, pipe(told));
    CHECK_EQ(0, pipe(turn));
}

static void
say(name who)
{
    struct word word = {getpid(), who};

    CHECK_EQ(sizeof word, write(told[1], &word, sizeof word));
}

static struct word
hear(void)
{
    struct word word;

    CHECK_EQ(sizeof word, read(told[0], &word, sizeof word));
    return word;
}

static void
rest(void)
{
    for (;;) {
        pause();
    }
}

/* A test that fails leaves no child behind for long. */
static int
end_with_the_test(int pid)
{
    CHECK(pid != -1);
    if (pid == 0) {
        alarm(60);
    }
    return pid;
}

/* A child that joins, says its name and then does that. */
static struct word
start(void (*life)(void))
{
    int pid = end_with_the_test(fork());

    if (pid == 0) {
        say(me());
        life();
        _exit(0);
    }
    struct word child = hear();

    child.pid = pid; /* its own may be another namespace's */
    return child;
}

/* A child of which no hook knows. */
static int
fork_raw(void)
{
    return end_with_the_test((int) syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
}

/* A fork with an heir, as the hooks do it. */
static int
fork_heir(name *heir)
{
    process_lock();
    *heir = roster_heir(roster);
    CHECK_EQ(*heir, roster_heir(roster)); /* once for each arena */
    int pid = fork_raw();

    if (pid == 0) {
        process_is_a_child();
        rosters_after_fork_in_child();
    } else {
        rosters_after_fork_in_parent();
    }
    process_unlock();
    return pid;
}

static bool
is_dead(name who)
{
    return roster_is_dead(roster, who);
}

static void
await_dead(name who)
{
    while (!is_dead(who)) {
        usleep(1000);
    }
}

static struct record *
record_of(name who)
{
    return &roster->records[NAME_NUMBER(who)];
}

static enum proof
proof_of(name who)
{
    return RECORD_PROOF(atomic_load(&record_of(who)->word));
}

static void
process_is_alive_until_it_ends(void)
{
    open_family();
    struct word child = start(rest);

    CHECK(child.who != 0 && child.who != me());
    CHECK(!is_dead(child.who));
    CHECK(!is_dead(me()));
    CHECK_EQ(false, is_dead(0)); /* nobody */
    CHECK_EQ(PROOF_LOCK, proof_of(child.who));
    CHECK_EQ(1, roster_validate(roster));
    kill_child(child.pid);
    CHECK(is_dead(child.who));
    CHECK(!is_dead(me()));
}

static void
zombie_not_waited_for_is_dead(void)
{
    siginfo_t info;

    open_family();
    struct word child = start(rest);

    CHECK_EQ(0, kill(child.pid, SIGKILL));
    CHECK_EQ(0, waitid(P_PID, (id_t) child.pid, &info, WEXITED | WNOWAIT));
    CHECK(is_dead(child.who));
    wait_killed(child.pid);
}

static void
stopped_process_is_alive(void)
{
    int status;

    open_family();
    struct word child = start(rest);

    CHECK_EQ(0, kill(child.pid, SIGSTOP));
    CHECK_EQ(child.pid, waitpid(child.pid, &status, WUNTRACED));
    CHECK(WIFSTOPPED(status));
    CHECK(!is_dead(child.who));
    kill_child(child.pid);
    CHECK(is_dead(child.who));
}

static void *
await_turn(void *unused)
{
    (void) unused;
    await(turn);
    _exit(0);
}

static void
end_the_main_thread(void)
{
    pthread_t thread;

    CHECK_EQ(0, pthread_create(&thread, NULL, await_turn, NULL));
    syscall(SYS_exit, 0); /* of this thread */
}

static void
process_whose_main_thread_has_ended_is_alive(void)
{
    char path[48], text[256] = "";

    open_family();
    struct word child = start(end_the_main_thread);

    snprintf(path, sizeof path, "/proc/%d/stat", child.pid);
    while (strstr(text, ") Z ") == NULL) {
        int fd = open(path, O_RDONLY);

        CHECK(read(fd, text, sizeof text - 1) > 0);
        close(fd);
    }
    CHECK(!is_dead(child.who));
    go(turn);
    wait_child(child.pid);
    CHECK(is_dead(child.who));
}

static void
become_another_program(void)
{
    execl("/bin/sleep", "sleep", "60", (char *) NULL);
}

static void
exec_ends_a_name_though_the_pid_lives(void)
{
    open_family();
    struct word child = start(become_another_program);

    await_dead(child.who);
    CHECK_EQ(0, kill(child.pid, 0));
    kill_child(child.pid);
}

/* Close all but the tests' pipes, and open other files under all numbers below. */
static void
close_everything(void)
{
    int kept[] = {fcntl(told[0], F_DUPFD, 100), fcntl(told[1], F_DUPFD, 100),
                  fcntl(turn[0], F_DUPFD, 100), fcntl(turn[1], F_DUPFD, 100)};

    CHECK_EQ(0, syscall(SYS_close_range, 3, 99, 0));
    for (int fd = 3; fd < 30; fd++) {
        CHECK_EQ(fd, open("/tmp", O_TMPFILE | O_RDWR, 0600));
        CHECK_EQ(4, write(fd, "mine", 4));
    }
    memcpy(told, kept, sizeof told);
    memcpy(turn, kept + 2, sizeof turn);
}

static name victim;

static void
be_a_daemon(void)
{
    char text[8] = "";
    struct stat status;

    close_everything();
    CHECK_EQ(-1, roster_fd(roster));
    CHECK(me() != 0);
    CHECK(!is_dead(me())); /* no lock can be asked: this and the rest by pids */
    CHECK(!is_dead(victim));
    say(0);
    await(turn);
    CHECK(is_dead(victim));
    for (int fd = 3; fd < 30; fd++) {
        CHECK_EQ(4, pread(fd, text, sizeof text, 0));
        CHECK_EQ(0, memcmp(text, "mine", 4));
        CHECK_EQ(0, fstat(fd, &status));
        CHECK_EQ(4, status.st_size);
    }
    /* What it makes from now on is another family's, which can be handed on. */
    struct roster *second = family();

    CHECK(second != roster && roster_fd(second) != -1);
    CHECK(second == family());
    CHECK(me_in(second) != 0);
    CHECK_EQ(PROOF_LOCK, RECORD_PROOF(second->records[0].word));
    say(0);
    rest();
}

static void
daemon_that_closed_every_descriptor_is_alive(void)
{
    open_family();
    struct word other = start(rest);

    victim = other.who;
    struct word child = start(be_a_daemon);

    hear();
    CHECK(!is_dead(child.who));
    kill_child(other.pid);
    go(turn);
    hear();
    CHECK(!is_dead(child.who));
    kill_child(child.pid);
    CHECK(is_dead(child.who));
}

/* It has not joined yet when its descriptors are gone. */
static void
process_that_lost_the_rosters_file_joins_by_its_pid(void)
{
    open_family();
    int pid = end_with_the_test(fork());

    if (pid == 0) {
        close_everything();
        say(me());
        CHECK(!is_dead(me()));
        CHECK_EQ(1, roster_validate(roster));
        rest();
    }
    name who = hear().who;

    CHECK(who != 0);
    CHECK_EQ(PROOF_PID, proof_of(who));
    CHECK(me() != 0 && NAME_NUMBER(me()) != NAME_NUMBER(who));
    CHECK(!is_dead(who));
    kill_child(pid);
    CHECK(is_dead(who));
}

static void
at_the_limit_of_descriptors_a_process_joins_by_its_pid_and_gets_its_lock_later(void)
{
    struct rlimit none = {0, 0}, was;

    open_family();
    CHECK_EQ(0, getrlimit(RLIMIT_NOFILE, &was));
    none.rlim_max = was.rlim_max;
    CHECK_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
    name who = me();

    CHECK(who != 0);
    CHECK_EQ(PROOF_PID, proof_of(who));
    CHECK(!is_dead(who));
    CHECK_EQ(1, roster_validate(roster));
    struct word child = start(rest);

    CHECK(!is_dead(child.who));
    kill_child(child.pid);
    CHECK(is_dead(child.who));
    CHECK_EQ(0, setrlimit(RLIMIT_NOFILE, &was));
    while (proof_of(who) == PROOF_PID) {
        process_lock();
        roster_census(roster);
        process_unlock();
        usleep(1000);
    }
    CHECK_EQ(who, me());
    CHECK(!is_dead(who));
    CHECK_EQ(1, roster_validate(roster));
}

static void
pid_in_its_second_life_is_dead(void)
{
    open_family();
    struct word child = start(rest);
    struct record *record = record_of(child.who);
    uint32_t incarnation = NAME_INCARNATION(child.who);
    uint64_t space = atomic_load(&record->space), word = atomic_load(&record->word);

    kill_child(child.pid);
    atomic_store(&record->word, RECORD_WORD(getpid(), PROOF_PID, incarnation));
    atomic_store(&record->born, RECORD_FACT(incarnation, pid_born((uint32_t) getpid())));
    CHECK(!is_dead(child.who));
    atomic_fetch_add(&record->born, 1);
    CHECK(!is_dead(child.who)); /* nobody knows: seen from another time namespace */
    atomic_fetch_add(&record->born, (1 << 16) - 1);
    CHECK(is_dead(child.who)); /* this pid's process began at another time */
    atomic_store(&record->born, RECORD_FACT(incarnation, 0));
    CHECK(!is_dead(child.who)); /* nobody knows when */
    atomic_store(&record->word, (word & ~UINT64_C(0xf0000)) | PROOF_PID << 16);
    CHECK(is_dead(child.who)); /* no such pid */
    atomic_store(&record->space, space + 1);
    CHECK(!is_dead(child.who)); /* nobody knows: another namespace's */
    atomic_store(&record->space, RECORD_FACT(incarnation - 1, FACT_VALUE(space)));
    CHECK(!is_dead(child.who)); /* nobody knows: killed before it had written where it is */
}

/* Forks. */

static void
heir_is_alive_before_and_after_the_fork(void)
{
    name failed, heir;

    open_family();
    CHECK(me() != 0);
    process_lock();
    failed = roster_heir(roster);
    CHECK(failed != 0);
    CHECK(!is_dead(failed));
    rosters_after_fork_in_parent(); /* as when fork() fails */
    process_unlock();
    CHECK(is_dead(failed));
    int pid = fork_heir(&heir);

    if (pid == 0) {
        CHECK_EQ(heir, me());
        CHECK_EQ(1, roster_validate(roster)); /* its pid is there */
        await(turn);
        _exit(0);
    }
    CHECK(heir != 0 && heir != failed);
    CHECK(!is_dead(heir));
    go(turn);
    wait_child(pid);
    CHECK(is_dead(heir));
    CHECK(!is_dead(me()));
}

static void
child_killed_before_its_first_step_is_dead(void)
{
    open_family();
    process_lock();
    name heir = roster_heir(roster);
    int pid = fork_raw();

    if (pid == 0) {
        rest(); /* it has told nobody its pid */
    }
    rosters_after_fork_in_parent();
    process_unlock();
    CHECK(!is_dead(heir));
    kill_child(pid);
    CHECK(is_dead(heir));
    uint32_t deaths = roster_deaths(roster);

    mpshm_process_ended(pid);
    CHECK_EQ(deaths + 1, roster_deaths(roster));
}

static int how; /* 0: fork(), 1: a raw clone(), 2: a fork with an heir */

static void
have_a_child(void)
{
    name heir;
    int pid = how == 0 ? end_with_the_test(fork()) : how == 1 ? fork_raw() : fork_heir(&heir);

    if (pid == 0) {
        say(how == 1 ? 0 : me());
    }
    rest();
}

/* born_heir: else it joins by itself. */
static void
name_ends_with_its_process(bool born_heir)
{
    for (how = 0; how < 3; how++) {
        struct word parent;

        open_family();
        if (!born_heir) {
            parent = start(have_a_child);
        } else if ((parent.pid = fork_heir(&parent.who)) == 0) {
            have_a_child();
        }
        struct word child = hear();

        CHECK(!is_dead(parent.who));
        kill_child(parent.pid);
        CHECK(is_dead(parent.who));
        CHECK_EQ(0, kill(child.pid, 0));
        CHECK(!is_dead(child.who));
        CHECK_EQ(0, kill(child.pid, SIGKILL));
        if (how != 1) {
            await_dead(child.who);
        }
    }
}

static void
name_ends_with_its_process_though_a_child_lives(void)
{
    name_ends_with_its_process(false);
}

static void
heirs_name_ends_with_its_process_though_a_child_lives(void)
{
    name_ends_with_its_process(true);
}

static void
raw_clone_is_a_process_of_its_own(void)
{
    open_family();
    struct word child = start(rest);
    name mine = me();
    uint32_t generation = mpshm_process.generation;
    int pid = fork_raw();

    if (pid == 0) {
        name other = me();

        CHECK(other != 0 && other != mine);
        CHECK_EQ(generation + 1, mpshm_process.generation);
        CHECK(!is_dead(mine) && !is_dead(child.who) && !is_dead(other));
        CHECK_EQ(other, me());
        CHECK_EQ(1, roster_validate(roster));
        name heir;
        int grandchild = fork_heir(&heir);

        if (grandchild == 0) {
            CHECK_EQ(heir, me());
            _exit(0);
        }
        wait_child(grandchild);
        _exit(0);
    }
    wait_child(pid);
    CHECK_EQ(generation, mpshm_process.generation);
    CHECK_EQ(mine, me());
}

static void *
hold_the_lock(void *unused)
{
    (void) unused;
    process_lock();
    go(turn);
    await(told);
    process_unlock();
    return NULL;
}

static void
raw_clone_is_not_stopped_by_a_lock_that_its_parent_held(void)
{
    pthread_t thread;

    open_family();
    name mine = me();

    CHECK_EQ(0, pthread_create(&thread, NULL, hold_the_lock, NULL));
    await(turn);
    int pid = fork_raw();

    if (pid == 0) {
        _exit(me() == mine);
    }
    wait_child(pid);
    go(told);
    CHECK_EQ(0, pthread_join(thread, NULL));
    CHECK_EQ(mine, me());
}

static _Atomic bool over;

/* Forks children that live on, as often as it can. */
static void *
fork_siblings(void *unused)
{
    (void) unused;
    while (!atomic_load(&over)) {
        if (end_with_the_test(fork()) == 0) {
            rest();
        }
        usleep(1000);
    }
    return NULL;
}

static void
sibling_forked_by_another_thread_keeps_nobody_alive(void)
{
    pthread_t thread;

    open_family();
    setpgid(0, 0);
    CHECK_EQ(0, pthread_create(&thread, NULL, fork_siblings, NULL));
    for (int i = 0; i < 100; i++) {
        name heir;
        int pid = fork_heir(&heir);

        if (pid == 0) {
            rest();
        }
        CHECK(!is_dead(heir));
        kill_child(pid);
        CHECK(is_dead(heir));
    }
    atomic_store(&over, true);
    CHECK_EQ(0, pthread_join(thread, NULL));
    signal(SIGTERM, SIG_IGN);
    CHECK_EQ(0, kill(0, SIGTERM));
}

/* Namespaces. */

static name outer_name;

/* The first process of a namespace of its own, which has another namespace's /proc. */
static void
live_apart(void)
{
    CHECK_EQ(1, getpid());
    CHECK(!is_dead(outer_name));
    CHECK_EQ(0, pid_born(1));
    int fd = fcntl(roster_fd(roster), F_DUPFD_CLOEXEC, 100);

    CHECK_EQ(0, close(roster_fd(roster)));
    CHECK(!is_dead(outer_name)); /* no lock can be asked, and its pid says nothing here */
    CHECK_EQ(0, mpshm_roster_attach(fd));
    CHECK_EQ(fd, roster_fd(roster));
    say(me());
    rest();
}

/* In a child: the leak sanitizer cannot work where children are in another namespace. */
static void
process_of_another_pid_namespace_lives_and_dies(void)
{
    open_family();
    outer_name = me();
    int pid = end_with_the_test(fork());

    if (pid != 0) {
        wait_child(pid);
        return;
    }
    if (unshare(CLONE_NEWPID) == -1) {
        printf("no pid namespace is to be had: skipped\n");
        fflush(stdout);
        _exit(0);
    }
    struct word child = start(live_apart); /* it joins twice: its word is heard here, */
    name again = hear().who; /* and here */

    CHECK_EQ(child.who, again);
    CHECK_EQ(PROOF_LOCK, proof_of(again));
    CHECK_EQ(1, RECORD_PID(atomic_load(&record_of(again)->word)));
    CHECK(!is_dead(again));
    kill_child(child.pid);
    CHECK(is_dead(again));
    _exit(0);
}

static void
without_proc_a_process_joins_by_its_pid(void)
{
    open_family();
    int pid = end_with_the_test(fork());

    if (pid == 0) {
        if (unshare(CLONE_NEWNS) == -1 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == -1
            || umount2("/proc", MNT_DETACH) == -1) {
            printf("no mount namespace is to be had: skipped\n");
            fflush(stdout);
            say(0);
            _exit(0);
        }
        name who = me();

        CHECK(who != 0);
        CHECK(!is_dead(who));
        say(who);
        rest();
    }
    name who = hear().who;

    if (who == 0) {
        wait_child(pid);
        return;
    }
    CHECK_EQ(PROOF_PID, proof_of(who));
    CHECK(!is_dead(who));
    uint64_t space = FACT_VALUE(atomic_load(&record_of(who)->space));

    CHECK(space == 0 || space == pid_space());
    kill_child(pid);
    CHECK_EQ(space != 0, is_dead(who)); /* an older kernel does not say where it was: for ever alive */
}

static const struct test tests[] = {
    TEST(process_is_alive_until_it_ends),
    TEST(zombie_not_waited_for_is_dead),
    TEST(stopped_process_is_alive),
    TEST(process_whose_main_thread_has_ended_is_alive),
    TEST(exec_ends_a_name_though_the_pid_lives),
    TEST(daemon_that_closed_every_descriptor_is_alive),
    TEST(process_that_lost_the_rosters_file_joins_by_its_pid),
    TEST(at_the_limit_of_descriptors_a_process_joins_by_its_pid_and_gets_its_lock_later),
    TEST(pid_in_its_second_life_is_dead),
    TEST(heir_is_alive_before_and_after_the_fork),
    TEST(child_killed_before_its_first_step_is_dead),
    TEST_THAT_NEEDS(madvice, name_ends_with_its_process_though_a_child_lives),
    TEST_THAT_NEEDS(madvice, heirs_name_ends_with_its_process_though_a_child_lives),
    TEST_THAT_NEEDS(madvice, raw_clone_is_a_process_of_its_own),
    TEST_THAT_NEEDS(madvice, raw_clone_is_not_stopped_by_a_lock_that_its_parent_held),
    TEST(sibling_forked_by_another_thread_keeps_nobody_alive),
    TEST(process_of_another_pid_namespace_lives_and_dies),
    TEST(without_proc_a_process_joins_by_its_pid),
};
RUN_TESTS(tests)
