/* What victims do, and what others do meanwhile. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "runner.h"

extern const struct scenario scenarios[];
extern const struct other others[];

/* acts_messages.c */
void put_short(void), put_longer(void), put_copied(void), put_viewed(void), put_indexed(void);
void put_streamed(void), put_filled(void), put_by_copy(void), put_four(void);
void place_and_put(void), place_and_give(void), put_where_full(void), wait_for_turn(void);
void wait_for_memory(void);
void put_plainly(void), put_pieces(void), use_all_records(void), wait_for_record(void);
void get_one(void), get_all(void), get_four(void), get_nothing(void);
void poll_for_some(void), poll_for_none(void), watch(void), call(void);
void get_and_done(void), done(void), wait_done(void);
void put_tracked_short(void), put_tracked_views(void), put_tracked_index(void), put_tracked_plainly(void);
void take_back(void), put_and_take_back(void), put_and_take_back_views(void), wait_for_receipt(void);
bool sleep_for_receipt(void);
bool sleep_for_message(void), sleep_for_room(void), sleep_for_turn(void), sleep_for_tasks(void);
bool sleep_for_memory(void), sleep_for_taker(void);
void nudge_message(void), nudge_room(void), nudge_ring(void), nudge_tasks(void), nudge_all_tasks(void);
void nudge_memory(void), nudge_taker(void), nudge_pieces(void);
void get_half_a_ring(void);
/* What was done before. */
void three(void), six(void), fill(void), take_one(void);

/* acts_processes.c */
void have_segment(void), map_nothing(void), use_all_but_reserve(void);
void use_all_and_put_views(void), use_all_and_put_copied(void);
void claim_and_abandon(void), hold_and_let_go(void), exit_with_view(void);
void open_ends_more(void), join(void), attach_and_leave(void), attach_put_leave(void);
void take_over(void), make_another(void);
void leave(void), leave_with_view(void), leave_with_loan(void);
void reap(void), notice_death(void);
void use_memory(void), trim(void), hold_large(void), release_large(void);
void use_pieces(void), one_dead_in_pieces(void);
void one_dead(void), many_dead(void), large_dead(void), one_gone(void);

/* acts_forks.c */
void fork_with_views(void), fork_and_keep(void), fork_and_go(void), fork_in_fork(void);
void fork_again(void), fork_with_loan(void), fork_alone(void), fork_child_works(void);
void clone_child_works(void), lose_descriptors(void), lose_descriptors_and_hold(void);
void put_without_descriptors(void);

/* acts_rings.c */
void open_and_grow(int kind);
void grow_and_put(void), put_over_link(void), put_and_shrink(void), done_twice(void);
void fill_and_grow(void), fill_two(void), leave_two_places(void), leave_one_before_link(void);
void leave_few_behind_link(void), take_over_link(void), be_about_to_shrink(void), shrink(void);

/* acts_processes.c: others. */
void take_everything(void), put_some(void), go_laps(void), reap_twice(void), come_and_go(void);
void claim_much(void), trim_often(void), fork_and_view(void), die_and_reap(void), do_all(void);
void grow_and_shrink(void); /* acts_rings.c */

#endif
