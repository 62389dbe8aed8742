"""Models of the protocols in shared memory: small programs whose every order of steps is tried.

    every_order       tries all interleavings of a model, deaths included
    roster            who is alive
    deaths            who notices a death, and whose sweep finds what the dead held
    segment_lock      claiming and releasing chunks
    positions         a bounded queue
    growing           an unbounded queue: a chain of rings (its parts: rings, ring_get, ring_reap)
    unfinished        task_done() and join()
    unfinished_rings  the same, over a chain of rings
    byte_turns        maxbytes
    stream            messages for which a queue has no memory
    holders           runs that several processes hold
    tracking          messages that are taken back while they are taken
    pipe_runs         runs in flight on a pipe
    waiters           receivers and senders that sleep at a ring

Each module says its protocol, step by step as the C code takes them, then what is checked. Its
`CASES` must hold, except for those with `fails`: they do something wrong on purpose, and must fail
that way. `python -m models` runs them, from `tests/`.
"""
