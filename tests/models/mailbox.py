"""Mailboxes: a message for a receiver that waits is handed over, all others go to the socket
(csrc/mailbox.c). Messages keep their order, none is lost, and no wake-up.

    put       look at the state and at the counts: if the receiver is not out and has read all that
              was counted, write the message and swap the state for FULL; wake the receiver if it
              slept
    post      count; write to the socket; swap the state for CALLED if the receiver is not out
    receive   if the sender is there and all that it counted has been read: say LOOKING, look at
              that again, and wait; then say OUT, if nothing has come, and go to the socket
    take      copy it, and say COMING

Checked: what is received is what was sent, in order. The end of the receiver's time is not tried
while the sender lives, so nobody sleeps beside a message. A killed sender is noticed at the socket.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import DEAD, OVER, STUCK, Broken, Case, Model, Place, Step, broken

OUT, COMING, LOOKING, SLEEPING, FULL, CALLED = range(6)
OPEN = (COMING, LOOKING, SLEEPING)
ASLEEP: Place = ("asleep",)


class Both(NamedTuple):
    state: int
    open: bool
    posted: int
    box: int
    """The message that lies in the mailbox, by its number."""
    socket: tuple[int, ...]
    read: int
    got: int
    """How many messages the receiver has; they are numbered from 0."""
    procs: tuple[Place, ...]


class Mailbox(Model):
    """A sender s of messages, each short (s) or long (L); and r.

    F: one that cannot be written.  U: a long one whose reader is interrupted before it counts.
    """

    who = ("s", "r")

    def __init__(self, messages: str, kill: str = "", variant: str = "") -> None:
        self.messages = messages.replace("F", "")
        self.sends, self.kill, self.variant = messages, frozenset(kill), variant
        self.start = Both(OUT, True, 0, -1, (), 0, 0, (("begin", 0, 0), ("counted?",)))

    def program(self, s: Both, who: str, at: Place) -> Step | list[Step]:
        return self.send(s, at) if who == "s" else self.receive(s, at)

    def send(self, s: Both, at: Place) -> Step:
        step, i, number = at[:3]
        if step == "begin":
            if i == len(self.sends):
                then = OVER if self.variant == "nocall" else ("call", i, number)
                return s._replace(open=False), then
            read = s.posted == s.read or self.variant == "overtakes"
            short = self.sends[i] == "s" and s.state in OPEN and read
            return s, ("put" if short else "count", i, number)
        if step == "put":
            return s._replace(box=number), ("swap", i, number)
        if step == "swap":
            if s.state not in OPEN:
                return s, ("count", i, number)
            then = (
                ("wake", i + 1, number + 1) if s.state == SLEEPING else ("begin", i + 1, number + 1)
            )
            return s._replace(state=FULL), then
        if step == "count":
            return s._replace(posted=s.posted + 1), ("write", i, number)
        if step == "write":
            if self.sends[i] == "F":
                return s, ("begin", i + 1, number)
            s = s._replace(socket=(*s.socket, number))
            blind = self.variant == "nocall"
            return s, ("begin" if blind else "call", i + 1, number + 1)
        if step == "call":
            over = i > len(self.sends) or not s.open
            then = OVER if over else ("begin", i, number)
            if s.state not in OPEN:
                return s, then
            slept = s.state == SLEEPING
            return s._replace(state=CALLED), ("wake", i, number) if slept else then
        if self.place(s, "r") == ASLEEP:
            s = self.at(s, "r", ("leave", OUT))
        return s, OVER if not s.open else ("begin", i, number)

    def receive(self, s: Both, at: Place) -> Step | list[Step]:
        step = at[0]
        if step == "counted?":
            return s, ("look",) if self.may_come(s) else ("leave", OUT)
        if step == "look":
            if s.state == FULL:
                return s, ("leave", OUT)
            return s._replace(state=LOOKING), ("wait" if self.variant == "nolook" else "again?",)
        if step == "again?":
            return s, ("wait",) if self.may_come(s) else ("leave", OUT)
        if step == "wait":
            if s.state != LOOKING:
                return s, ("leave", OUT)
            return [(s, at), (s._replace(state=SLEEPING), ("sleep",))]
        if step == "sleep":
            return s, ASLEEP if s.state == SLEEPING else ("leave", OUT)
        if step == "asleep":
            return (s, ("leave", OUT)) if self.is_dead(s, "s") else []
        if step == "leave":
            if s.state == FULL:
                return s, ("take",)
            then = ("socket",) if at[1] == OUT else ("counted?",)
            return s if self.variant == "stays" else s._replace(state=at[1]), then
        if step in ("take", "copy"):
            return self.take(s, step)
        if step == "socket":
            if s.socket:
                number, *rest = s.socket
                read = s.read + (self.messages[number] != "U")
                s = self.came(s._replace(socket=tuple(rest), read=read), number)
                return s, ("back",)
            ended = self.is_dead(s, "s") or not s.open
            return (s, OVER) if ended else []
        comes = s.state == OUT and self.may_come(s)
        return s._replace(state=COMING) if comes else s, ("counted?",)

    def may_come(self, s: Both) -> bool:
        return s.open and s.posted == s.read

    def take(self, s: Both, step: str) -> Step:
        if self.variant == "early":
            if step == "take":
                return s._replace(state=COMING), ("copy",)
            return self.came(s, s.box), ("counted?",)
        if step == "take":
            return self.came(s, s.box), ("copy",)
        return s._replace(state=COMING), ("counted?",)

    def came(self, s: Both, number: int) -> Both:
        if number != s.got:
            raise Broken(f"message {number} comes in the place of {s.got}")
        return s._replace(got=s.got + 1)

    def luck(self, s: Both, who: str, at: Place) -> list[tuple[str, Step]]:
        interrupted = who == "r" and at in (("wait",), ASLEEP)
        return [("is interrupted", (s, ("leave", COMING)))] if interrupted else []

    def goal(self, s: Both) -> bool:
        if self.place(s, "r") == DEAD:
            return self.place(s, "s") in (OVER, DEAD)
        all_came = s.got == len(self.messages) or self.is_dead(s, "s")
        return self.place(s, "r") == OVER and all_came


CASES = [
    Case("short ones", lambda: Mailbox("sss")),
    Case("a sender is killed", lambda: Mailbox("sLs", kill="s")),
    Case("a receiver is killed", lambda: Mailbox("sLs", kill="r")),
    Case("long ones between", lambda: Mailbox("LssLs")),
    Case("one fails", lambda: Mailbox("sFsFL", kill="s")),
    Case("one is not counted", lambda: Mailbox("LssUsL", kill="s")),
    # the receiver does not look at the count again when it has said LOOKING
    broken("nolook", STUCK, lambda v: Mailbox("sL", variant=v)),
    # who has written to the socket does not say so
    broken("nocall", STUCK, lambda v: Mailbox("sL", variant=v)),
    # a sender uses the mailbox whatever it has posted before
    broken("overtakes", "in the place of", lambda v: Mailbox("LsLs", variant=v)),
    # the receiver goes to the socket and does not say so
    broken("stays", STUCK, lambda v: Mailbox("Ls", variant=v)),
    # the receiver gives the mailbox free before it has copied the message
    broken("early", "in the place of", lambda v: Mailbox("sss", variant=v)),
]
