/* The runner: one life after the other, each killed or stopped at its next point.

   What it tests, it knows by a `struct subject` only. */
#ifndef RUNNER_H
#define RUNNER_H

#include <stdbool.h>
#include <stdint.h>

/* What one process does while others watch. */
struct scenario {
    const char *name;
    uint32_t kinds;        /* a bit for each kind of thing that it is for */
    void (*act)(void);     /* the work, whose steps are the points */
    void (*before)(void);  /* what was done before by the process that watches, or NULL */
    void (*ready)(void);   /* what the victim itself does before its steps count, or NULL */
    bool (*sleep)(void);   /* what a third process does that sleeps all the while: again and again until it
                              is true; or NULL */
    void (*nudge)(void);   /* what the watcher does so that it ends, if the victim did not */
    uint32_t hands;        /* so many messages may be lost with the victim */
    unsigned flags;
};
/* The points are those of the child that the act forks. */
#define ACT_OF_CHILD 1u
/* The act leaves processes behind, which end by themselves. */
#define ACT_FORKS 2u
/* To be killed only: it does not let other work go on beside it. */
#define KILL_ONLY 4u
/* The victim is new here: its first steps count as well. */
#define IS_NEW 8u
/* It is of another family, and is handed over what there is in its act. */
#define IS_STRANGER 16u

/* A whole piece of work, which another process does while the victim is stopped. */
struct other {
    const char *name;
    uint32_t kinds;
    uint32_t kinds_beside_takers; /* when the victim takes messages as well */
    void (*act)(void);
};

struct subject {
    const char *const *kinds; /* names, NULL at the end */
    const struct scenario *scenarios; /* act NULL at the end */
    const struct other *others;       /* the same */
    void (*clear)(void);      /* in the runner, before each life */
    void (*open)(int kind);   /* in the life's first process */
    void (*settle)(void);     /* first in each victim that is not new here */
    void (*reap)(void);
    void (*check)(uint32_t hands);
    void (*hand_over)(int line);      /* to a process that began before the opening */
    void (*check_newcomer)(void);     /* in such a one */
    void (*check_last)(void);
};

enum mode {
    MODE_KILL,   /* killed at each point */
    MODE_PAUSE,  /* stopped there; another process does its work; then it goes on */
    MODE_STOP,   /* stopped there; another process does its work; then it is killed */
    MODE_REAPER, /* killed there; then the reaper is killed at each of its points; another finishes */
    MODES
};
extern const char *const mode_names[MODES];

struct choice {
    enum mode mode;
    int kind;                 /* -1: all */
    const char *scenario;     /* part of its name, or NULL: all */
    const char *other;        /* the same of who works meanwhile */
    unsigned long point, reaper_point; /* 0: all */
    unsigned most;            /* so often the same step counts; 0: always */
    unsigned hang_s;
};

/* How many bad points there are.  Prints each. */
unsigned long run(const struct subject *subject, const struct choice *choice);

#endif
