/* Points: the numbered places at which a process can be killed or stopped.

   The core is compiled with -fsanitize=thread and linked with points.c in place of that sanitizer's
   runtime, so each of its atomic steps calls a function here.  wraps.c adds its system calls. */
#ifndef POINTS_H
#define POINTS_H

#include <stdbool.h>

#define POINT_FRAMES 12

/* Where a process was killed or stopped.  It lies in memory that outlives the process. */
struct point_note {
    unsigned long number; /* 0: nowhere */
    const char *step;     /* "store", "munmap()", ... */
    void *site;           /* where in the core the step stands, */
    int depth;            /* and what called that, the nearest first */
    void *callers[POINT_FRAMES];
};

/* Which steps are points. */
#define POINT_CHANGES 1u /* stores, exchanges, fences, system calls */
#define POINT_LOADS 2u   /* loads as well: they matter to a process that is stopped and goes on */

enum point_deed { POINT_KILL, POINT_STOP };

void points_note_in(struct point_note *note);
/* most: how often the same step, called from the same places, counts; 0: always. */
void points_choose(unsigned kinds, unsigned most);
/* Do it at the `number`-th point from now, the first being 1.  0: only count. */
void points_arm(unsigned long number, enum point_deed deed);
/* The same in the next child of a fork, from its first step on; this process counts no more. */
void points_arm_child(unsigned long number, enum point_deed deed);
/* In a child that was made without fork(). */
void points_begin_child(void);
void points_disarm(void);
/* A step that is about to be made at `site`. */
void point(unsigned kind, const char *step, void *site);

#endif
