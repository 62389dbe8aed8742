/* The core's invariants: one list, each with a number that nothing else has.  Every assertion cites
   one, and `make core-test` checks that it is in this list.

   The memory file, arenas and the process
   A1  The file's size is fixed at creation, and sealed where its kind allows that.
   A2  An arena's struct lives while its handle, or a lease, run or parcel of this process, does.
   A3  The child of a fork trusts nothing that only its parent's memory says (receiver.c resets it).
   A4  mpshm_process.lock is held while the process's list, an arena's fields or the table of leases
       changes.
   A5  An arena's geometry in this process is a checked copy; the file holds what it describes.

   The layout
   L1  A free bit is 1.  The bits past the last chunk, the guard first, are 0 for ever.
   L2  The run table's word of a run's first chunk holds its state, its length and its tag; the
       words of its other chunks are in state FREE.
   L3  A segment's geometry never changes once its directory word is not 0.  Only its owner does.
   L4  Chunks of a run that is not FREE have their free bits 0.
   L5  A peer's record is its own to write.  Others only free it, under `reaper`, when it is dead.
   L6  A process changes shared words between enter and leave only (peers.c), while its `steps` is odd.

   The free map
   M1  A claim takes all its bits or none, and never one at or past `count`.
   M2  A bit that is put back was 0: what is free is never given back.

   Segments
   S1  A segment is mapped at most once in a process, head and data each.
   S2  `mine` is true in at most one process per claim; a fork clears it in the child.
   S3  Free map, run table and data lie inside the segment's stride.

   Runs on loan, and the messages that hold them
   R1  A claim is all or nothing; an increase that cannot reach its minimum leaves no trace.
   R2  Seal comes before the write to the pipe, and a failed write unseals: a run is in flight if and
       only if its frame went out.  Its tail goes back after the write.
   R3  Only the process that claimed a run touches it before seal (`generation`).
   P1  A parcel's parts hold the stream's runs first, then the buffers'.
   P2  A run is the parcel's until its frame is out: then it is the receiver's, and the parcel is
       empty.
   P3  Nothing is moved: a stream that cannot grow in place goes on in a second run.
   P4  A parcel with parts has a reference to its arena, in which they lie.  What is sealed is no longer
       than its run.

   Leases
   V1  A leased run of this process stands in the table exactly once.
   V2  A run is freed when its last holder lets go; every fork adds one holder per lease, before it,
       and each peer's record says how many of its leases have several.
   V3  A view whose process has forked is a private mapping over the run: no write is seen outside.

   Frames
   F1  Reading never goes past a frame: other processes may share the end.
   F2  A frame half read stays in the reader when a signal interrupts.
   F3  A frame's runs are leased in the call that reads it, all or none, and stay the reader's until
       each has a holder: no interruption of the caller comes in between.
   F4  A frame that is written is as long as its length word says, and fits its pipe or its slot.
   F5  What a head was parsed to lies inside its frame, and what a reader holds inside its bytes.

   The ring
   G1  A slot is claimed in its lap only when it is FREE in that lap, so only when its message of the
       lap before has been taken.
   G2  `tail` is at most one behind the last position claimed, `head` at most at the first position
       not taken.  A process that finds one of them behind moves it on.
   G3  One sender's messages are taken in its order: a receiver that passed over a slot looks at it
       again once it has seen a later one READY.
   G4  A process that may sleep says so (MAY_SLEEP in `wakeups`, `room_mark`) before it looks a last time,
       and sleeps only while the event count is as it was before.  So a message or a free slot that it
       does not see wakes it, but for a kill at the wrong moment, which costs the time until a watch.
   G5  While the ring is watched, its pipe holds a byte or more, at rest, exactly while a slot is
       claimed.  A sender sees to it between its claim and READY, so a message that can be taken has
       its byte; a receiver that finds nothing claimed reads all bytes; a process that changed the
       pipe looks at the ring again.  Only a sender killed in between leaves a byte and no message.
   G6  A message wakes a sleeper, unless a receiver spins or sleeps as the backup, and the time until
       which it has said so is not over.  At most one spins and one is the backup.
   G7  A receiver that spins or is the backup takes back what it has said before it sleeps or leaves, and
       then looks once more.  Each that leaves wakes another if there is a message.
   G8  A slot's word is FREE or READY with no owner, or WRITING with a peer's number or 0.
   G9  A message of n bytes occupies no word past its slot and, where there is one, its overflow.

   Queues
   Q1  A message's slot is put in the window in which its runs are sealed, and taken in the window in
       which they are leased.  So when all peers rest and the ring is empty, a run in flight is an
       orphan.
   Q2  places_used is at least what the ring and the living hold: a kill makes the queue fuller than
       it is, never emptier, and reap.c finds the difference.  What a peer has pending is in no ring.
   Q3  Nothing in the queue's files blocks while it holds the process's lock.
   Q4  A batch's messages lie inside its data, and their runs inside its list of runs.

   Peers and reaping
   E1  A process joins before its first change; its child in a fork joins anew (`generation`).
   E2  Between enter and leave nothing sleeps: only a process killed or stopped stays there.
   D1  One peer reaps at a time (`reaper`), and is dead when another takes over.
   D2  Each step leaves a state that the next reaper understands: it may be killed anywhere.

   Waiting
   W1  A wait has an end: its timeout is not negative.
   W2  A spin's credit and the rarity of its tries stay inside their limits.
   W3  A waiter wakes by itself: at the end of its watch, the 32nd period from now at the latest. */
#ifndef MPSHM_INVARIANTS_H
#define MPSHM_INVARIANTS_H

#include <assert.h>

/* In the debug build, stop the process if `condition` does not hold; else evaluate nothing, but keep
   what it names used.  number: of the invariant, as in the list above. */
#ifdef MPSHM_DEBUG
#define INVARIANT(number, condition) assert((condition) && #number)
#else
#define INVARIANT(number, condition) ((void) sizeof((condition) ? 1 : 0))
#endif

#endif
