/* killpoints: kills and stops processes at every point, and says which points are bad.

   killpoints quick          one kind of queue, a pipe, and a queue that grows: each scenario, killed
   killpoints all            every kind and mode
   killpoints MODE [KIND [SCENARIO [POINT [OTHER or POINT OF THE REAPER]]]]
                             KIND: a name, or -; SCENARIO and OTHER: parts of names; POINT: 0 is all
   killpoints list           the names */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checks.h"
#include "ledger.h"
#include "lives.h"
#include "runner.h"
#include "scenarios.h"
#include "stage.h"

/* No life comes near it. */
#define HANG_S 20

static const struct subject subject = {
    .kinds = kind_names,
    .scenarios = scenarios,
    .others = others,
    .clear = ledger_clear,
    .open = open_and_grow,
    .settle = stage_settle,
    .reap = stage_reap,
    .check = check_everything,
    .hand_over = stage_hand_over,
    .check_newcomer = check_as_newcomer,
    .check_last = check_last,
};

static void
list(void)
{
    printf("modes:\n");
    for (int i = 0; i < MODES; i++) {
        printf("    %s\n", mode_names[i]);
    }
    printf("kinds:\n");
    for (int i = 0; i < KINDS; i++) {
        printf("    %s\n", kind_names[i]);
    }
    printf("scenarios:\n");
    for (const struct scenario *one = scenarios; one->act != NULL; one++) {
        printf("    %s\n", one->name);
    }
    printf("others, for pause and stop:\n");
    for (const struct other *one = others; one->act != NULL; one++) {
        printf("    %s\n", one->name);
    }
}

/* Steps in a loop are tried a few times, for a copied message has a hundred. */
static unsigned long
run_quick(void)
{
    struct choice choice = {.mode = MODE_KILL, .most = 3, .hang_s = HANG_S};

    choice.kind = BOTH;
    unsigned long bad = run(&subject, &choice);

    choice.kind = PIPE;
    bad += run(&subject, &choice);
    choice.kind = GROWING;
    choice.most = 2;
    return bad + run(&subject, &choice);
}

/* The kinds in which a stopped process is in another's way differently. */
static unsigned long
run_kinds(struct choice choice, const int *kinds, int count)
{
    unsigned long bad = 0;

    for (int i = 0; i < count; i++) {
        choice.kind = kinds[i];
        bad += run(&subject, &choice);
    }
    return bad;
}

static unsigned long
run_all(void)
{
    static const int differ[] = {UNBOUNDED, JOINABLE, BOTH, BYTES, PIPE, GROWING, GROWN};
    struct choice kill = {.mode = MODE_KILL, .kind = -1, .hang_s = HANG_S};
    struct choice pause = {.mode = MODE_PAUSE, .other = "all of it", .most = 1, .hang_s = HANG_S};
    struct choice stop = {.mode = MODE_STOP, .other = "all of it", .most = 1, .hang_s = HANG_S};
    struct choice reaper = {.mode = MODE_REAPER, .most = 1, .hang_s = HANG_S};
    unsigned long bad = run(&subject, &kill);

    bad += run_kinds(reaper, differ, 7);
    bad += run_kinds(pause, differ, 6);
    return bad + run_kinds(stop, differ, 6);
}

static int
find(const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    fprintf(stderr, "no such name: %s\n", name);
    exit(2);
}

static unsigned long
run_chosen(int argc, char **argv)
{
    struct choice choice = {.kind = -1, .hang_s = HANG_S};
    const char *most = getenv("MOST"); /* so often the same step counts */

    choice.mode = (enum mode) find(argv[1], mode_names, MODES);
    choice.most = most != NULL ? (unsigned) atoi(most) : 0;
    if (argc > 2 && strcmp(argv[2], "-") != 0) {
        choice.kind = find(argv[2], kind_names, KINDS);
    }
    choice.scenario = argc > 3 ? argv[3] : NULL;
    choice.point = argc > 4 ? strtoul(argv[4], NULL, 0) : 0;
    if (argc > 5 && choice.mode == MODE_REAPER) {
        choice.reaper_point = strtoul(argv[5], NULL, 0);
    } else if (argc > 5) {
        choice.other = argv[5];
    }
    return run(&subject, &choice);
}

int
main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "wait") == 0) { /* for a scenario: until it is killed */
        close(atoi(argv[2]));
        pause();
        return 1;
    }
    lives_begin();
    ledger_begin();
    if (argc < 2 || strcmp(argv[1], "list") == 0) {
        list();
        return 0;
    }
    unsigned long bad = strcmp(argv[1], "quick") == 0 ? run_quick()
                        : strcmp(argv[1], "all") == 0 ? run_all()
                                                      : run_chosen(argc, argv);

    printf("%s: %lu bad\n", argv[0], bad);
    return bad != 0;
}
