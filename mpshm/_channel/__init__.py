"""Channels between two ends: pipes and sockets, and what objects become on their way.

    Connection.send(obj)                                          Connection.recv()
      payload.dump(obj)                                             payload.load(message)
        small:  bytes  ------ plain frame: the stock module's ------>  bytes
        4 to 32 KiB    ------ a run, copied in and out ------------->  bytes
        large:  Parcel ------ frame of descriptors ----------------->  views of leased runs
        no memory: Message -- plain frame, counted with its reason ->  bytes

`pipe_end` has the ends, `making` makes them.  `call_end` has those of managers and proxies, whose
short messages go by mailbox.  `handshake` makes two strangers share memory.
`forking` resets ends in a forked child.  `search` finds the memory of an end that came here as a
bare file descriptor.
"""
