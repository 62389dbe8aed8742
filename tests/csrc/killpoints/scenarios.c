/* The table of scenarios: which act, on which kinds, after what. */
#include "scenarios.h"

#include <stddef.h>

#include "stage.h"

#define RINGS (KIND(UNBOUNDED) | KIND(SIMPLE))

const struct scenario scenarios[] = {
    {"put short", ALL_KINDS, put_short, .before = three},
    {"put longer", QUEUES, put_longer, .before = three},
    {"put copied", ALL_KINDS, put_copied, .before = three},
    {"put the first run", ALL_KINDS, put_copied, .before = NULL},
    {"put views", ALL_KINDS, put_viewed, .before = three},
    {"put an index", ALL_KINDS, put_indexed, .before = three},
    {"put a stream", ALL_KINDS, put_streamed, .before = three},
    {"put an own run", ALL_KINDS, put_filled, .before = three},
    {"send a copy", CONNECTIONS, put_by_copy, .before = three, .ready = have_segment},
    {"put four at once", QUEUES, put_four, .before = three},
    {"take a place, put", QUEUES, place_and_put, .before = three},
    {"take a place, give it back", QUEUES, place_and_give, .before = three},
    {"put where it is full", WITH_PLACES, put_where_full, .before = fill},
    {"wait for room in the ring", RINGS, wait_for_ring, .before = fill_ring},
    {"wait for room in memory", CONNECTIONS, wait_for_memory, .ready = put_viewed},

    {"get short", ALL_KINDS, get_one, .before = put_short, .hands = 1},
    {"get longer", QUEUES, get_one, .before = put_longer, .hands = 1},
    {"get copied", ALL_KINDS, get_one, .before = put_copied, .hands = 1},
    {"get views", ALL_KINDS, get_one, .before = put_viewed, .hands = 1},
    {"get an index", ALL_KINDS, get_one, .before = put_indexed, .hands = 1},
    {"get a stream", ALL_KINDS, get_one, .before = put_streamed, .hands = 1},
    {"get all", ALL_KINDS, get_all, .before = six, .hands = 1},
    {"get four at once", QUEUES, get_four, .before = six, .hands = 4},
    {"put, get, hold views", ALL_KINDS, hold_views, .hands = 1},
    {"get nothing", ALL_KINDS, get_nothing, .before = NULL},
    {"poll", QUEUES, poll_for_some, .before = three},
    {"poll for nothing", QUEUES, poll_for_none, .before = NULL},
    {"watch", QUEUES, watch, .before = put_short, .hands = 1},
    {"call", QUEUES, call, .before = put_short},
    {"get, task_done", WITH_TASKS, get_and_done, .before = three, .hands = 1},
    {"task_done", WITH_TASKS, done, .before = take_one},
    {"wait_done", WITH_TASKS, wait_done, .before = three},
    {"wait_done for nothing", WITH_TASKS, wait_done, .before = NULL},

    {"claim, increase, abandon", ALL_KINDS, claim_and_abandon, .before = three},
    {"hold views, let them go", ALL_KINDS, hold_and_let_go, .hands = 1},
    {"release all", ALL_KINDS, release_all, .ready = hold_views},
    {"exit with views", ALL_KINDS, exit_with_view, .ready = hold_views},
    {"open and release ends", QUEUES, open_ends_more, .before = put_short},
    {"join", ALL_KINDS, join, .before = three, .flags = IS_NEW},
    {"join and put", ALL_KINDS, put_copied, .before = three, .flags = IS_NEW},
    {"join and get", ALL_KINDS, get_one, .before = three, .hands = 1, .flags = IS_NEW},
    {"attach, leave", ALL_KINDS, attach_and_leave, .before = three},
    {"attach, put, leave", ALL_KINDS, attach_put_leave, .before = three, .flags = IS_NEW},
    {"leave", ALL_KINDS, leave, .before = three},
    {"leave with views", ALL_KINDS, leave_with_view, .ready = hold_views},
    {"leave with a loan", ALL_KINDS, leave_with_loan, .before = three},
    {"fork with views", ALL_KINDS, fork_with_views, .ready = hold_views, .flags = ACT_FORKS},
    {"fork with views: the child", ALL_KINDS, fork_child_with_views, .ready = hold_views,
     .flags = ACT_FORKS | ACT_OF_CHILD},
    {"fork with a loan", ALL_KINDS, fork_with_loan, .ready = hold_views, .flags = ACT_FORKS},
    {"fork with nothing", ALL_KINDS, fork_alone, .before = three, .flags = ACT_FORKS},
    {"fork, the child works", ALL_KINDS, fork_child_works, .before = three, .hands = 1,
     .flags = ACT_FORKS | ACT_OF_CHILD},
    {"plain fork", ALL_KINDS, fork_plain, .ready = hold_views, .flags = ACT_FORKS},
    {"plain fork, the child works", ALL_KINDS, fork_plain_child, .before = three,
     .ready = hold_views, .hands = 1, .flags = ACT_FORKS | ACT_OF_CHILD},

    {"reap the living", ALL_KINDS, reap, .before = three},
    {"reap the dead", ALL_KINDS, reap, .before = one_dead},
    {"reap many dead", ALL_KINDS, reap, .before = many_dead},
    {"reap, give memory back", KIND(LARGE), reap, .before = large_dead},

    {"put to one that sleeps", QUEUES, put_short, .sleep = sleep_for_message,
     .nudge = nudge_message, .flags = KILL_ONLY},
    {"get where one sleeps for a place", WITH_PLACES, get_one, .before = fill, .hands = 1,
     .sleep = sleep_for_place, .nudge = nudge_place, .flags = KILL_ONLY},
    {"get where one sleeps for the ring", RINGS, get_half_a_ring, .before = fill_ring,
     .hands = 100, .sleep = sleep_for_ring, .nudge = nudge_ring, .flags = KILL_ONLY},
    {"task_done where one joins", WITH_TASKS, done, .before = take_one,
     .sleep = sleep_for_tasks, .nudge = nudge_tasks, .flags = KILL_ONLY},
    {"get where one sleeps for memory", CONNECTIONS, get_one, .hands = 1,
     .sleep = sleep_for_memory, .nudge = nudge_memory, .flags = KILL_ONLY},
    {NULL, .act = NULL},
};

/* A connection has one reader at a time, who may be stopped in the middle of a frame. */
const struct other others[] = {
    {"takes everything", ALL_KINDS, QUEUES, take_everything},
    {"puts some", ALL_KINDS, ALL_KINDS, put_some},
    {"goes laps", ALL_KINDS, QUEUES, go_laps},
    {"reaps", ALL_KINDS, ALL_KINDS, reap_twice},
    {"comes and goes", ALL_KINDS, ALL_KINDS, come_and_go},
    {"claims much", ALL_KINDS, ALL_KINDS, claim_much},
    {"forks with views", ALL_KINDS, QUEUES, fork_and_view},
    {"sees one die", ALL_KINDS, QUEUES, die_and_reap},
    {NULL, .act = NULL},
};
