/* What must hold after any death. */
#ifndef CHECKS_H
#define CHECKS_H

#include <stdint.h>

/* In a process that was there all the time.  hands: so many messages may have gone with the dead. */
void check_everything(uint32_t hands);
/* In a process that knows nothing yet, and is handed over what there is. */
void check_as_newcomer(void);
/* In the first one, after that. */
void check_last(void);

#endif
