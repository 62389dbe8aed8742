/* Where a point is, in words. */
#ifndef WHERE_H
#define WHERE_H

#include "points.h"

/* Print it to stdout, as lines that begin with `indent`: the step, and what called that. */
void where_print(const struct point_note *note, const char *indent);

#endif
