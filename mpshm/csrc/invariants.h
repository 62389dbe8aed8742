/* The core's invariants: one list, each with a number that nothing else has.  Every assertion cites
   one, and `make core-test` checks that it is in this list.

   The memory file, arenas and the process
   A1  The file's size is fixed at creation, and sealed where its kind allows that.
   A2  An arena's struct lives while its handle, or a lease, run or parcel of this process, does.
   A3  The child of a fork trusts nothing that only its parent's memory says (fork.c resets it).
   A4  mpshm_process.lock is held while the process's list, an arena's fields or the table of leases
       changes.
   A5  An arena's geometry in this process is a checked copy; the file holds what it describes.

   The layout
   L1  A free bit is 1.  The bits past the last chunk, the guard first, are 0 for ever.
   L2  The run table's entry of a run's first chunk holds its state, its holder and its length; the words
       of its other chunks are in state FREE.
   L3  A segment's geometry never changes once its directory word is not 0.  Only its owner does.
   L4  Chunks of a run that is not FREE have their free bits 0, and its first chunk has its bit in `heads`,
       from before the run's word until the lock's holder has seen it FREE.
   L5  A mark is its process's own to write, and counts only while it bears that process's incarnation.
   L6  Only the holder of a segment's lock, whom the lock word names, touches its maps, claims in it, or
       changes the length of a run there.
   L7  A SHARED run's holders are the names beside it.  Before one goes, the count in its word goes up.  A run
       with no name is nobody's.

   The free map
   M1  Bits at or past `count` are never found, set or cleared.

   Segments
   S1  A segment is mapped at most once in a process, head and data each.
   S2  `mine` is true in at most one process per claim; a fork clears it in the child.
   S3  Free map, run table and data lie inside the segment's stride.

   Runs on loan, and the messages that hold them
   R1  A claim is all or nothing: the store of LOANED is it.  An increase that cannot reach its minimum leaves
       no trace.
   R2  Seal comes before the frame is out, and a failed write unseals: a run is in flight if and only if its
       frame went out, or will.  Its tail goes back afterwards, so an unsealed run is what it was.
   R3  Only the process that claimed a run touches it before seal (`generation`, and its name in the word).
   P1  A parcel's parts hold the stream's runs first, then the buffers'.
   P2  A run is the parcel's until its frame is out: then it is the receiver's, and the parcel is
       empty.
   P3  Nothing is moved: a stream that cannot grow in place goes on in a second run.
   P4  A parcel with parts has a reference to its arena, in which they lie.  What is sealed is no longer
       than its run.

   Leases
   V1  A leased run of this process stands in the table exactly once.
   V2  A run is freed when its last holder lets go.  A fork makes the child a holder of each lease before it,
       by the child's own name; or the child has a copy.
   V3  A view whose process has forked is private to it: no write is seen outside.
   V4  What lies in the reserve is leased only while it is copied out; but for good by a process that has no private
       memory for the copy.

   Frames
   F1  Reading never goes past a frame: other processes may share the end.
   F2  A frame half read stays in the reader when a signal interrupts.
   F3  A frame's runs are leased in the call that reads it, all or none, and stay the reader's until
       each has a holder: no interruption of the caller comes in between.
   F4  A frame that is written is as long as its length word says, and fits its pipe or its slot.
   F5  What a head was parsed to lies inside its frame, and what a reader holds inside its bytes.

   Mailboxes
   B1  Only the receiver takes a mailbox out of OUT, FULL and CALLED, and only a sender brings it to FULL or CALLED.
   B2  What lies in a mailbox is a sender's to write until it is FULL, and the receiver's to read from then on until it
       is COMING.  One thread of one process sends, and one receives, at a time.
   B3  A message is counted in `posted` before a byte of it is in the socket.
   B4  A message is put in a mailbox only when all that were counted have been read: messages keep their order.
   B5  A receiver blocks in the socket only while its mailbox says OUT.
   B6  One that has left for good does not stay COMING.

   The ring
   G1  A position is claimed only while fewer than `bound` positions before it are open, that is claimed and
       not passed, and only when its slot has passed the lap before.  A position that has passed never is
       open again.
   G2  `tail` is at most one behind the last position claimed.  The head moves over slots that have passed
       and over no other, and counts those that were skipped; it may lag.  A process that finds one of them
       behind moves it on.
   G3  One sender's messages are taken in its order: a receiver that passed over a slot looks at it
       again once it has seen a later one READY.
   G4  A process that may sleep says so (MAY_SLEEP in `wakeups`, `room_mark`) before it looks a last time,
       and sleeps only while the event count is as it was before.  So a message or a free slot that it
       does not see wakes it, but for a kill at the wrong moment, which costs the time until a watch.
   G5  While the ring is watched, its pipe holds a byte or more, at rest, exactly while there is a message
       or one being written.  A sender sees to it between its claim, or the end of its holding, and READY,
       so a message that can be taken has its byte; a receiver that finds neither reads the bytes that were
       there before it looked, one receiver at a time; a process that changed the pipe looks at the ring
       again.  A process killed in between leaves a byte and no message, never a message and no byte.
   G6  A message wakes a sleeper, unless a receiver spins or sleeps as the backup, and the time until
       which it has said so is not over.  At most one spins and one is the backup.
   G7  A receiver that spins or is the backup takes back what it has said before it sleeps or leaves, and
       then looks once more.  Each that leaves wakes another if there is a message.
   G8  A slot's word names a process while it is HELD, WRITING or TAKING, and in no other state.  Only that
       process changes it then; when it is dead, any: HELD and WRITING to SKIPPED, TAKING to FREE of the
       next lap.
   G9  A message of n bytes occupies no word past its slot and, where there is one, its overflow.

   The chain
   C1  Rings from `first` along the links to the end are the queue.  A ring joins by the one swap that claims the
       last ring's slot for the link, and leaves when `first` moves on; nothing is claimed in a ring outside it.
   C2  Who comes to a ring by a word that may be old reads the ring's life behind what it has read there, and
       before it claims or takes: in another life it begins again.
   C3  Only its maker changes the head, `before` and the old link of a ring, and gives its memory back, while its
       word says MAKING of that one.  Positions and slots' words go on over all lives, and never go back.
   C4  A ring that is USED, or MAKING of the dead, is in the chain, or nobody's.

   Queues
   Q1  A run in flight names the spot of a slot, from the moment that the slot is claimed until it has
       passed.  So a run in flight whose slot has passed is nobody's.
   Q2  Unfinished = pending of the living + positions - skipped - done, read in the order done, skipped,
       pending, positions: 0 only if nothing was unfinished at a moment of the reading.  A message stops
       pending after it has a position.  Whoever changes done, skipped or pending sums up afterwards.
   Q3  Nothing in the queue's files blocks while it holds the process's lock.
   Q4  A batch's messages lie inside its data, and their runs inside its list of runs.
   Q5  Bytes: a message is READY, in a queue that is bounded by them, only once what all open positions
       before it take leaves room for it, or nothing does; and it has said what it takes.

   Stream records
   T1  A record is in use while its owner's word names a process: from its claim until T3.  Only that process writes
       its spot, its piece and `written`; only the one that is TAKING the slot at its spot writes `read`.
   T2  A piece is written only when the one before it has been read, or as the first, before the slot is READY; and
       copied only when `written` is one ahead of what has been copied.
   T3  A record is freed, and its generation counted on by the next claim, when its slot has passed or it never had one,
       and its owner will not write any more: it is dead, or has said that the last piece was written or that it gave up.
       Otherwise only the owner frees it.
   T4  A taker that finds the owner dead reads `written` once more before it skips the slot.

   Messages that are tracked
   K1  A tracked message is taken, or taken back, by one compare-and-swap of one word: of its slot, from READY; or of its
       ticket's run, from FLIGHT.  Who takes it back frees its runs afterwards, and nobody leases them.
   K2  A tracking notes the runs of one message, of this process, before that can be taken back; a connection's first is
       the ticket, which stays in use until its frame has been met.

   Rosters
   E1  A process has a name before its first change to shared words; a fork's child has another
       (`generation`).
   E2  The byte of a record that says PROOF_LOCK is locked from before its word names the process until
       no thread of the process can write any more.
   E3  A name is dead if its record has another incarnation, or notes this one as dead, or else if its lock
       is free, asked in this order.  What is not known counts as alive.
   E4  `high` is past a record's number before that is claimed, and never goes down.
   E5  No process keeps a mapping that holds another's lock, but a parent its heir's until it has forked.

   Reaping
   D1  No word of a living process is changed by another, but as the protocols say; a dead name stays dead.
   D2  Each step leaves a state that the next reaper understands: any number reap at a time, and may be killed
       anywhere.

   Waiting
   W1  A wait has an end: its timeout is not negative.
   W2  A spin's credit and the rarity of its tries stay inside their limits.
   W3  A waiter wakes by itself: at the end of its watch, the 32nd period from now at the latest.
   W4  One that wakes by its watch at a queue mends what the dead left, and wakes those for whom there is a message,
       room, a record or the last task's end, whatever the words of those that wait say. */
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
