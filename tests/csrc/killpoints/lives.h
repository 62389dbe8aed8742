/* Processes of a life, their ends, and what one of them complains of. */
#ifndef LIVES_H
#define LIVES_H

#include <stdbool.h>
#include <stdint.h>

#include "points.h"

/* Memory that all processes of a life share, and their runner. */
struct report {
    struct point_note victim, reaper;
    char complaint[400]; /* the first one */
    int victim_pid;
    int family;          /* process group of the victim and what it has forked */
    uint32_t strays;     /* runs that are known to be lost for a while */
    int64_t ahead_ns;    /* the clock of all of them is so far ahead */
};
extern struct report *report;

/* Say what is wrong, and end this process: its life is bad. */
void complain(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4), noreturn));
#define EXPECT(condition)                                                                      \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            complain(__FILE__, __LINE__, "not so: %s", #condition);                            \
        }                                                                                      \
    } while (0)
#define EXPECT_EQ(expected, actual)                                                            \
    do {                                                                                       \
        int64_t expect_ = (int64_t) (expected), got_ = (int64_t) (actual);                     \
        if (expect_ != got_) {                                                                 \
            complain(__FILE__, __LINE__, "%s: expected %lld, got %lld", #actual,               \
                     (long long) expect_, (long long) got_);                                   \
        }                                                                                      \
    } while (0)

enum ending { ENDED_WELL, WAS_KILLED, HAS_STOPPED };

/* The exit code of a process that has done its work. */
#define DONE 7

/* To a process that begins outside: by this it is handed what there is. */
extern int life_line;

void lives_begin(void);
/* Fork a process that dies with this one, and that is ended when it hangs.  `how` forks. */
int life_begin(int (*how)(void));
/* Wait until it ends or stops: how.  Any other end makes this life bad.  One that was killed stays a
   zombie, as it does until its parent asks. */
enum ending life_wait(int pid, const char *name);
void life_go_on(int pid);
void life_kill(int pid);
/* In a process whose children are to be waited for by others, when it has died: be a family. */
void life_begin_family(void);
/* Wait until nobody of it is left. */
void life_collect_family(int pid);
/* Wait until the process sleeps. */
void wait_asleep(int pid);

/* Run `life` in a process group of its own: its exit code, or -signal. */
int life_run(int (*life)(void *), void *what, unsigned hang_s);

#endif
