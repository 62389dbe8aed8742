"""Queues: how a message passes through put and get.

    put(obj)                                                      get()
      |                                                             ^
      | payload.dump: pickled at once                               | payload.load
      v                                                             |
    try_put ------------------------> +------------------+ ------> QueueGetter: one looks,
      | no place, ring full,          | ring in shared   |         one sleeps as its guard
      | no memory                     | memory: 512 slots|
      v                               |  small: whole in |
    put_within ---- when drained ---> |  the slot; large:|
      | not drained any more          |  names of runs   |
      v                               +------------------+
    give_to_feeder                            ^
      |   _buffer   +--------+                |
      +-----------> | Feeder | ---------------+   a thread, until it has caught up
                    +--------+

`putting` (with `putting_many` and `simple_putting`) and `getting` are the two ways; `bounds` stands
where stock has a semaphore of places; `stock_locks` serves queues that keep stock's locks;
`queue_end` has the ends.
"""
