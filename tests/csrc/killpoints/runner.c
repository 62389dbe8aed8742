/* Lives: a thing is opened, a victim works on it and is killed or stopped at one point, the others go
   on, and everything is checked.

   Knows scenarios as functions.  Does not know what they work on. */
#define _GNU_SOURCE
#include "runner.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lives.h"
#include "points.h"
#include "where.h"

/* What a life answers: its victim was killed or stopped, or ended before that; or its reaper did. */
enum { GOOD, BAD, OVER, REAPER_OVER };

/* After so many bad points of a scenario its others are left out. */
#define MOST_BAD 60
/* So often the same step of a reaper counts. */
#define MOST_OF_REAPER 3
/* No scenario has so many points. */
#define MOST_POINTS 100000

const char *const mode_names[MODES] = {"kill", "pause", "stop", "reaper"};

struct life {
    const struct subject *subject;
    enum mode mode;
    int kind;
    const struct scenario *scenario;
    const struct other *other;
    unsigned long point, reaper_point;
};

/* The victim's process, to its end. */
static void
be_victim(const struct life *life, enum point_deed deed)
{
    const struct scenario *scenario = life->scenario;

    points_note_in(&report->victim);
    report->victim_pid = getpid();
    if (scenario->flags & ACT_FORKS) {
        life_begin_family();
    }
    if ((scenario->flags & (IS_NEW | IS_STRANGER)) == 0) {
        life->subject->settle();
    }
    if (scenario->ready != NULL) {
        scenario->ready();
    }
    if (scenario->flags & ACT_OF_CHILD) {
        points_arm_child(life->point, deed);
    } else {
        points_arm(life->point, deed);
    }
    scenario->act();
    point(POINT_CHANGES, "its end", __builtin_return_address(0)); /* with all it has left */
    points_disarm();
    _exit(DONE);
}

static int
begin_sleeper(const struct life *life)
{
    if (life->scenario->sleep == NULL) {
        return 0;
    }
    int pid = life_begin(fork);

    if (pid == 0) {
        while (!life->scenario->sleep()) {
        }
        _exit(DONE);
    }
    wait_asleep(pid);
    return pid;
}

static void
work_meanwhile(const struct life *life)
{
    int pid = life_begin(fork);

    if (pid == 0) {
        life->other->act();
        _exit(DONE);
    }
    if (life_wait(pid, "who works meanwhile") != ENDED_WELL) {
        complain(__FILE__, __LINE__, "who works meanwhile was killed");
    }
}

/* Whether the reaper was killed. */
static bool
kill_reaper(const struct life *life)
{
    int pid = life_begin(fork);

    if (pid == 0) {
        life->subject->settle();
        points_note_in(&report->reaper);
        points_choose(POINT_CHANGES, MOST_OF_REAPER);
        points_arm(life->reaper_point, POINT_KILL);
        life->subject->reap();
        point(POINT_CHANGES, "its end", __builtin_return_address(0));
        points_disarm();
        _exit(DONE);
    }
    return life_wait(pid, "the reaper") == WAS_KILLED;
}

/* A process of another family, until it is handed what there is. */
static int
begin_stranger(int *line)
{
    int ends[2];

    EXPECT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    int pid = life_begin(fork);

    life_line = ends[1];
    *line = ends[0];
    return pid;
}

static int
begin_newcomer(const struct subject *subject, int *line)
{
    int pid = begin_stranger(line);

    if (pid == 0) {
        subject->check_newcomer();
        _exit(DONE);
    }
    return pid;
}

static void
check_as_newcomer(const struct subject *subject, int line, int pid)
{
    subject->hand_over(line);
    if (life_wait(pid, "the newcomer") != ENDED_WELL) {
        complain(__FILE__, __LINE__, "the newcomer was killed");
    }
}

static enum point_deed
deed_of(const struct life *life)
{
    return life->mode == MODE_PAUSE || life->mode == MODE_STOP ? POINT_STOP : POINT_KILL;
}

/* -1: it begins later, as a child. */
static int
begin_victim_outside(const struct life *life, int *line)
{
    int pid = (life->scenario->flags & IS_STRANGER) != 0 ? begin_stranger(line) : -1;

    if (pid == 0) {
        be_victim(life, deed_of(life));
    }
    return pid;
}

static int
begin_victim(const struct life *life)
{
    int pid = life_begin(fork);

    if (pid == 0) {
        be_victim(life, deed_of(life));
    }
    return pid;
}

/* Who is there in a life beside its first process.  0: there is no sleeper. */
struct cast {
    int newcomer, newcomer_line, victim, sleeper;
};

/* Open it, and have everybody begin. */
static struct cast
begin(const struct life *life)
{
    struct cast cast;
    int line;

    cast.newcomer = begin_newcomer(life->subject, &cast.newcomer_line);
    int outside = begin_victim_outside(life, &line);

    life->subject->open(life->kind);
    if (life->scenario->before != NULL) {
        life->scenario->before();
    }
    cast.sleeper = begin_sleeper(life);
    if (outside != -1) {
        life->subject->hand_over(line);
    }
    cast.victim = outside != -1 ? outside : begin_victim(life);
    return cast;
}

/* Until the victim has ended, and all that it forked: whether it met its point, or its child did. */
static bool
end_victim(const struct life *life, int victim)
{
    enum ending ending = life_wait(victim, "the victim");
    bool met = ending != ENDED_WELL;

    if (ending == HAS_STOPPED) {
        work_meanwhile(life);
        if (life->mode == MODE_STOP) {
            life_kill(victim);
        } else {
            life_go_on(victim);
        }
        (void) life_wait(victim, "the victim");
    }
    if (life->scenario->flags & ACT_FORKS) {
        life_collect_family(victim);
    }
    return met || report->victim.number != 0;
}

/* In the life's own process: from the opening to the last check. */
static int
live(void *what)
{
    const struct life *life = what;
    const struct subject *subject = life->subject;
    struct cast cast = begin(life);
    bool met = end_victim(life, cast.victim);
    bool reaper_met = life->mode == MODE_REAPER && met && kill_reaper(life);

    if (cast.sleeper != 0) {
        life->scenario->nudge();
        EXPECT(life_wait(cast.sleeper, "the sleeper") == ENDED_WELL);
    }
    subject->check(met && life->mode != MODE_PAUSE ? life->scenario->hands : 0);
    check_as_newcomer(subject, cast.newcomer_line, cast.newcomer);
    subject->check_last();
    return !met ? OVER : life->mode == MODE_REAPER && !reaper_met ? REAPER_OVER : GOOD;
}

static void
print_bad(const struct life *life, int code)
{
    printf("BAD  %s | %s | %s", mode_names[life->mode], life->subject->kinds[life->kind],
           life->scenario->name);
    if (life->other != NULL) {
        printf(" | %s", life->other->name);
    }
    printf(" | point %lu", life->point);
    if (life->mode == MODE_REAPER) {
        printf(" | point %lu of the reaper", life->reaper_point);
    }
    if (report->complaint[0] != '\0') {
        printf("\n     %s\n", report->complaint);
    } else {
        printf("\n     %s %d\n", code < 0 ? "signal" : "ended with", code < 0 ? -code : code);
    }
    where_print(&report->victim, "     ");
    where_print(&report->reaper, "     reaper: ");
    fflush(stdout);
}

struct tally {
    unsigned long lives, bad, bad_here;
};

static int
run_one(const struct life *life, const struct choice *choice, struct tally *tally)
{
    life->subject->clear();
    int code = life_run(live, (void *) life, choice->hang_s);

    tally->lives++;
    if (report->complaint[0] != '\0') {
        code = BAD; /* perhaps of a process that nobody asked how it ended */
    }
    if (code != GOOD && code != OVER && code != REAPER_OVER) {
        tally->bad++;
        tally->bad_here++;
        print_bad(life, code);
        code = report->victim.number == 0 ? OVER : BAD; /* bad without being killed: so are all */
    }
    return code;
}

/* The victim's point is given: each of its reaper's. */
static int
run_reapers(struct life *life, const struct choice *choice, struct tally *tally)
{
    int code = GOOD;

    if (choice->reaper_point != 0) {
        life->reaper_point = choice->reaper_point;
        return run_one(life, choice, tally);
    }
    for (life->reaper_point = 1; life->reaper_point < MOST_POINTS; life->reaper_point++) {
        code = run_one(life, choice, tally);
        if (code == OVER || code == REAPER_OVER || tally->bad_here >= MOST_BAD
            || (code == BAD && report->reaper.number == 0)) {
            break;
        }
    }
    return code;
}

static void
run_points(struct life *life, const struct choice *choice, struct tally *tally)
{
    unsigned long first = choice->point != 0 ? choice->point : 1;
    unsigned long last = choice->point != 0 ? choice->point : MOST_POINTS;

    tally->bad_here = 0;
    for (life->point = first; life->point <= last; life->point++) {
        int code = life->mode == MODE_REAPER ? run_reapers(life, choice, tally)
                                             : run_one(life, choice, tally);

        if (code == OVER) {
            return;
        }
        if (tally->bad_here >= MOST_BAD) {
            printf("     and more: the rest of this scenario is left out\n");
            return;
        }
    }
}

static bool
is_chosen(const char *name, const char *part)
{
    return part == NULL || strstr(name, part) != NULL;
}

static void
run_scenario(struct life *life, const struct choice *choice, struct tally *tally)
{
    const struct scenario *scenario = life->scenario;

    if (life->mode == MODE_KILL || life->mode == MODE_REAPER) {
        run_points(life, choice, tally);
        return;
    }
    if (scenario->flags & (KILL_ONLY | ACT_OF_CHILD)) {
        return;
    }
    for (life->other = life->subject->others; life->other->act != NULL; life->other++) {
        uint32_t kinds = scenario->hands > 0 ? life->other->kinds_beside_takers : life->other->kinds;

        if (kinds >> life->kind & 1
            && is_chosen(life->other->name, choice->other)) {
            run_points(life, choice, tally);
        }
    }
}

unsigned long
run(const struct subject *subject, const struct choice *choice)
{
    bool stops = choice->mode == MODE_PAUSE || choice->mode == MODE_STOP;
    struct tally all = {0};

    points_choose(POINT_CHANGES | (stops ? POINT_LOADS : 0), choice->most);
    for (int kind = 0; subject->kinds[kind] != NULL; kind++) {
        struct tally tally = {0};
        struct life life = {.subject = subject, .mode = choice->mode, .kind = kind};

        if (choice->kind != -1 && choice->kind != kind) {
            continue;
        }
        for (life.scenario = subject->scenarios; life.scenario->act != NULL; life.scenario++) {
            if (life.scenario->kinds >> kind & 1
                && is_chosen(life.scenario->name, choice->scenario)) {
                life.other = NULL;
                run_scenario(&life, choice, &tally);
            }
        }
        printf("%s: %s: %lu lives, %lu bad\n", mode_names[choice->mode], subject->kinds[kind],
               tally.lives, tally.bad);
        fflush(stdout);
        all.bad += tally.bad;
    }
    return all.bad;
}
