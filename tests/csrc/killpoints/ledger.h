/* The ledger: which messages were put and which arrived, said by those who did it. */
#ifndef LEDGER_H
#define LEDGER_H

#include <stdbool.h>
#include <stdint.h>

void ledger_begin(void);
void ledger_clear(void);
/* A message that this process is about to put: its number, from 1 on. */
uint32_t ledger_start(uint8_t shape);
/* It was put, and is so many bytes of a pipe; or it was refused and will never come. */
void ledger_put(uint32_t message, uint32_t pipe_bytes);
void ledger_refused(uint32_t message);
/* Its sender is about to take it back: so it arrives or not.  And whether that was in time. */
void ledger_withdraws(uint32_t message);
void ledger_withdrawn(uint32_t message, bool in_time);
/* It has a place already, so it counts as a task. */
void ledger_accepted(uint32_t message);
/* It arrived here.  Complains of one that nobody put, that came before, or that is out of order. */
void ledger_got(uint32_t message);
uint8_t ledger_shape(uint32_t message);
/* Tasks: this process is about to say that one is done; it has; it was refused. */
void ledger_task_start(void);
void ledger_task_done(void);
void ledger_task_refused(void);
/* Messages put that have not arrived anywhere. */
uint32_t ledger_missing(void);
/* Whether a pipe with so many bytes unread begins with a whole message. */
bool ledger_is_whole(uint32_t unread);
/* Nothing is missing but up to `hands` messages that a dead process had in hand, and nobody's messages
   have a gap. */
void ledger_check(uint32_t hands);
/* How many tasks must be left, and how many can be. */
void ledger_tasks_left(uint32_t *least, uint32_t *most);
/* How many are certain to be left while nobody is dead. */
uint32_t ledger_tasks_certain(void);
/* None is left of the messages until now: all are in nobody's hands. */
void ledger_tasks_settled(void);

#endif
