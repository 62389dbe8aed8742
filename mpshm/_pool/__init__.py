"""Pool: how tasks come to workers, and results back.

    apply, map, imap
      |
      | a source: a function, and its units of work
      v
    Dispatcher --- batch: units of 1 ms in one message ---> +------+ ---> worker: takes the batch,
      ^     |                                               | ring |      then each of its units
      |     +--- a word for each batch: who has it, and --- +------+         |
      |          which unit is next; whoever changes it                      |
      |          swaps the value that it found                               |
      |                                                     +------+         |
      +---- whoever waits for a result reads results <----- | ring | <-------+
                                                            +------+

`words` has the words, `wire` the messages, `worker` what a worker does, `dispatcher` what the
program's process does, `results` what callers get.
"""
