"""Queues: how a message passes through put and get.

    put(obj)                                                      get()
      |                                                             ^
      | payload.dump: pickled at once                               | payload.load
      v                                                             |
    try_put ------------------------> +------------------+ ------> QueueGetter: one thread
      | no place, ring full,          | ring in shared   |         spins, one is the backup
      | no memory                     | memory: 512 slots|
      v                               |  small: whole in |
    put_within ---- when drained ---> |  the slot; large:|
      | no longer drained             |  names of runs   |
      v                               +------------------+
    give_to_feeder                            ^
      |   _buffer   +--------+                |
      +-----------> | Feeder | ---------------+   a thread, until it has caught up
                    +--------+

`putting` (with `putting_many` and `simple_putting`) puts and `getting` gets.  `bounds` stands in
for stock's semaphore of places.  `stock_locks` serves queues that keep stock's locks.  `queue_end`
has the ends.
"""
