/* The points themselves: stands in for the thread sanitizer's runtime.

   Knows processes and steps.  Does not know the core, nor what its steps mean.

   A kill before a load leaves the same memory behind as one before the next store, so loads are points
   only where a process is stopped and goes on.  Plain accesses are none: shared words are atomic, and
   what is private dies with the process.  One thread at a time. */
#define _GNU_SOURCE
#include "points.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define SITES 2048u
#define STACK 256

static struct point_note nowhere, *note = &nowhere;
static unsigned chosen = POINT_CHANGES, most_of_each;

static struct {
    bool on;
    enum point_deed deed;
    unsigned long number, count;
} armed, child_to_be;

/* The functions that are being executed, and for each depth a sum of them. */
static struct {
    void *callers[STACK];
    uint64_t sums[STACK];
    int depth;
} stack;

/* How often each step has counted. */
static struct {
    uint64_t key;
    unsigned count;
} sites[SITES];

static uint64_t
mix(uint64_t sum, const void *site)
{
    sum = (sum ^ (uint64_t) (uintptr_t) site) * UINT64_C(0x9e3779b97f4a7c15);
    return sum ^ sum >> 29;
}

static uint64_t
stack_sum(void)
{
    return stack.depth == 0 ? 1 : stack.sums[(stack.depth < STACK ? stack.depth : STACK) - 1];
}

/* Whether this step has not counted too often yet. */
static bool
counts(void *site)
{
    uint64_t key = mix(stack_sum(), site);

    for (uint64_t i = key; most_of_each != 0 && i < key + SITES; i++) {
        if (sites[i % SITES].key == 0) {
            sites[i % SITES].key = key;
        }
        if (sites[i % SITES].key == key) {
            return sites[i % SITES].count++ < most_of_each;
        }
    }
    return true;
}

static void
end_here(const char *step, void *site)
{
    note->number = armed.count;
    note->step = step;
    note->site = site;
    note->depth = 0;
    for (int i = stack.depth < STACK ? stack.depth : STACK; i > 0 && note->depth < POINT_FRAMES;) {
        note->callers[note->depth++] = stack.callers[--i];
    }
    if (armed.deed == POINT_STOP) {
        armed.on = false; /* what it does when it goes on has no end here */
        kill(getpid(), SIGSTOP);
        return;
    }
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

void
point(unsigned kind, const char *step, void *site)
{
    if (armed.on && (kind & chosen) != 0 && counts(site) && ++armed.count == armed.number) {
        end_here(step, site);
    }
}

void
points_note_in(struct point_note *to)
{
    note = to;
}

void
points_choose(unsigned kinds, unsigned most)
{
    chosen = kinds;
    most_of_each = most;
}

void
points_arm(unsigned long number, enum point_deed deed)
{
    if (most_of_each != 0) {
        memset(sites, 0, sizeof sites);
    }
    armed.count = 0;
    armed.number = number;
    armed.deed = deed;
    armed.on = true;
}

void
points_arm_child(unsigned long number, enum point_deed deed)
{
    child_to_be.on = true;
    child_to_be.number = number;
    child_to_be.deed = deed;
    armed.on = false;
}

void
points_disarm(void)
{
    armed.on = false;
}

/* The first to be registered: the last before the fork, and the first after it. */
static void
before_fork(void)
{
    point(POINT_CHANGES, "fork()", __builtin_return_address(0));
}

static void
in_parent(void)
{
    child_to_be.on = false;
}

void
points_begin_child(void)
{
    armed.on = false;
    if (child_to_be.on) {
        child_to_be.on = false;
        points_arm(child_to_be.number, child_to_be.deed);
        point(POINT_CHANGES, "fork() in the child", __builtin_return_address(0));
    }
}

__attribute__((constructor(101))) static void
watch_forks(void)
{
    (void) pthread_atfork(before_fork, in_parent, points_begin_child);
}

/* What the compiler calls. */

void
__tsan_init(void)
{
}

void
__tsan_func_entry(void *caller)
{
    uint64_t sum = stack_sum();

    if (stack.depth < STACK) {
        stack.callers[stack.depth] = caller;
        stack.sums[stack.depth] = mix(sum, caller);
    }
    stack.depth++;
}

void
__tsan_func_exit(void)
{
    stack.depth--;
}

#define PLAIN(name)                                                                            \
    void __tsan_##name(void *at) { (void) at; }
#define PLAINS(n)                                                                              \
    PLAIN(read##n) PLAIN(write##n) PLAIN(unaligned_read##n) PLAIN(unaligned_write##n)          \
    PLAIN(volatile_read##n) PLAIN(volatile_write##n) PLAIN(unaligned_volatile_read##n)         \
    PLAIN(unaligned_volatile_write##n)
PLAINS(1)
PLAINS(2)
PLAINS(4)
PLAINS(8)
PLAINS(16)

void
__tsan_read_range(void *at, unsigned long size)
{
    (void) at;
    (void) size;
}

void
__tsan_write_range(void *at, unsigned long size)
{
    (void) at;
    (void) size;
}

#define HERE __builtin_return_address(0)

void
__tsan_atomic_thread_fence(int order)
{
    (void) order;
    point(POINT_CHANGES, "fence", HERE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void
__tsan_atomic_signal_fence(int order)
{
    (void) order;
}

#define FETCH(bits, name)                                                                      \
    uint##bits##_t __tsan_atomic##bits##_fetch_##name(volatile uint##bits##_t *at,             \
                                                      uint##bits##_t value, int order)         \
    {                                                                                          \
        (void) order;                                                                          \
        point(POINT_CHANGES, "fetch_" #name, HERE);                                            \
        return __atomic_fetch_##name(at, value, __ATOMIC_SEQ_CST);                             \
    }
#define SWAP(bits, name)                                                                       \
    int __tsan_atomic##bits##_##name(volatile uint##bits##_t *at, uint##bits##_t *expected,    \
                                     uint##bits##_t value, int order, int failure)             \
    {                                                                                          \
        (void) order;                                                                          \
        (void) failure;                                                                        \
        point(POINT_CHANGES, "compare_exchange", HERE);                                        \
        return __atomic_compare_exchange_n(at, expected, value, 0, __ATOMIC_SEQ_CST,           \
                                           __ATOMIC_SEQ_CST);                                  \
    }
#define ATOMICS(bits)                                                                          \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *at, int order)    \
    {                                                                                          \
        (void) order;                                                                          \
        point(POINT_LOADS, "load", HERE);                                                      \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                          \
    }                                                                                          \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *at, uint##bits##_t value,        \
                                     int order)                                                \
    {                                                                                          \
        (void) order;                                                                          \
        point(POINT_CHANGES, "store", HERE);                                                   \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                         \
    }                                                                                          \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t *at,                 \
                                                  uint##bits##_t value, int order)             \
    {                                                                                          \
        (void) order;                                                                          \
        point(POINT_CHANGES, "exchange", HERE);                                                \
        return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                               \
    }                                                                                          \
    FETCH(bits, add) FETCH(bits, sub) FETCH(bits, and) FETCH(bits, or) FETCH(bits, xor)        \
    SWAP(bits, compare_exchange_strong) SWAP(bits, compare_exchange_weak)
ATOMICS(8)
ATOMICS(16)
ATOMICS(32)
ATOMICS(64)
