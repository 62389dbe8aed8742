/* What roster.c and records.c share. */
#ifndef MPSHM_ROSTER_H
#define MPSHM_ROSTER_H

#include "internal.h"

struct roster {
    struct roster *next;
    struct roster_header *header;
    struct record *records;
    _Atomic int fd;         /* the arena's if it is embedded; may have become another file's */
    uint64_t device, inode, offset;
    uint64_t id;            /* 0: embedded */
    uint32_t limit;         /* checked copy: the header's may be changed under us */
    uint32_t refs;
    name me, heir;          /* 0: none */
    bool heir_tried;        /* in this fork */
    bool has_ended;         /* a process of it, when last a child of this one had ended */
    void *page, *heir_page; /* the mappings that hold their locks; NULL: no lock */
    int64_t crowded_until_ns; /* no search for a free record before */
};

/* records.c.  Both need no lock.  roster->fd if it is still the file's, or -1. */
int record_file(const struct roster *roster);
/* Note that record's death if there is one; this process has a name.  space: ask its lock only if its pid, in that namespace, is
   unused; 0: ask it anyway. */
void record_look(const struct roster *roster, uint32_t number, uint64_t space);

/* Claim a record by its lock: the name, and the mapping that holds the lock.  0: none is free; -1: no
   lock can be had.  pid 0: for a child that is not born yet. */
int64_t record_claim_by_lock(const struct roster *roster, uint32_t pid, void **page);
/* Claim one by pid: the name, or 0. */
int64_t record_claim_by_pid(const struct roster *roster, uint32_t pid);
/* A record claimed by pid gets its lock, if one can be had by now: the mapping, or NULL. */
void *record_lock_later(const struct roster *roster, name who, uint32_t pid);
void record_write_facts(const struct roster *roster, name who, uint32_t pid);
/* Let go of the lock that this mapping holds; NULL: nothing. */
void latch_drop(void *page);

#endif
