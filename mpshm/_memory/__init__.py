"""Shared memory: arenas, the runs in them, and how a message gets in and out.

    sender                        arena's memory file                        receiver

    Parcel.put_stream, put_buffer    segment: chunk chunk chunk ...
      copies bytes into runs  ---->  run: chunks on loan
    Parcel.send                      run: in flight  -- its descriptor -->  Reader.read
      seals the runs and writes                        in a pipe's frame     leases the runs
      the frame that names them                                              as views
    ring.send                        ring: slot READY -- or in a slot --->  ring.receiver
      puts the frame in a slot                                               takes the slot
                                     chunks free again  <-------------------  the last view dies

This package handles bytes and runs; it does not know pickle.  Only `core` imports the C core.
"""
