"""Shared memory that another process has overwritten: what a program is told, and what goes on.

The words are written here as csrc/layout.h describes them.  What may be in a frame is tested in
test_bad_input.py, and what the core stands at random in csrc/test_hostile.c.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

import mpshm
from kit.programs import run_python
from kit.road import SHARED
from kit.words import DIRECTORY_AT
from mpshm._memory import arena

if SHARED:
    from mpshm._memory.arena import Arena
    from mpshm._memory.core import Descriptor

pytestmark = [
    pytest.mark.shared_memory("none of it is shared on the plain road"),
    pytest.mark.usefixtures("hang_guard"),
]

LARGE = 100_000
HEAD_BYTES_AT = 16
CHUNK_COUNT_MASK = 0xFFFFF
SEGMENT_HEAD_BYTES, RUN_BYTES = 192, 16


def word_at(fd: int, offset: int) -> int:
    return int(struct.unpack("=Q", os.pread(fd, 8, offset))[0])


def write_word(fd: int, offset: int, word: int) -> None:
    assert 8 == os.pwrite(fd, struct.pack("=Q", word), offset)


def run_table_at(fd: int) -> int:
    """Where the run table of the first segment begins in the file."""
    chunks = word_at(fd, DIRECTORY_AT) & CHUNK_COUNT_MASK
    return word_at(fd, HEAD_BYTES_AT) + SEGMENT_HEAD_BYTES + 4 * 8 * (chunks // 64 + 1)


@pytest.fixture
def channel() -> Iterator[tuple[mpshm.Connection, mpshm.Connection, int]]:
    """A pipe whose first segment is there, and its memory file; another channel goes on beside."""
    a, b = mpshm.Pipe()
    other = mpshm.Pipe()
    a.send_bytes(bytes(LARGE))
    assert bytes(LARGE) == b.recv_bytes()
    yield a, b, a._arena.fileno()  # type: ignore[attr-defined]
    for sent in (b"small", os.urandom(LARGE)):
        for one, two in (other, (a, b)):
            one.send_bytes(sent)
            assert sent == two.recv_bytes()
    for end in (a, b, *other):
        end.close()


def test_buffer_whose_run_was_overwritten_is_an_error_that_says_so(
    channel: tuple[mpshm.Connection, mpshm.Connection, int],
) -> None:
    a, b, fd = channel
    buffer = a.get_buf(LARGE)
    buffer.view[:] = b"x" * LARGE
    table = run_table_at(fd)
    was = word_at(fd, table)
    write_word(fd, table, was ^ 8)  # another process's name
    for call in (lambda: buffer.increase_buf(LARGE), lambda: a.send_buf(buffer)):
        with pytest.raises(
            mpshm.ProtocolError, match="damaged or forged: another process has over"
        ):
            call()
    write_word(fd, table, 0)  # free
    buffer.release()
    assert not b.poll()


def test_forged_entry_of_the_directory_is_named_and_stops_no_message(
    channel: tuple[mpshm.Connection, mpshm.Connection, int],
) -> None:
    a, b, fd = channel
    for word in (1, 1 << 26 | 3 << 20 | 64, 1 << 26 | 40 << 20 | 1 << 16, (1 << 64) - 1):
        write_word(fd, DIRECTORY_AT + 8, word)
        for call in (a.stats, lambda: a._arena.lease(Descriptor(1, 0, LARGE, 1))):  # type: ignore[attr-defined]
            with pytest.raises(mpshm.ProtocolError, match="entry in the arena's directory is dam"):
                call()
        sent = [os.urandom(LARGE) for _ in range(3)]
        a.send(sent)
        assert sent == b.recv()
    write_word(fd, DIRECTORY_AT + 8, 0)


def test_put_with_forged_memory_never_speaks_of_bytes(
    channel: tuple[mpshm.Connection, mpshm.Connection, int],
) -> None:
    """An error once began: "no 7 bytes is an arena whose geometry does not fit its file"."""
    a, b, fd = channel
    was = word_at(fd, DIRECTORY_AT)
    for word in (0, (1 << 64) - 1, was ^ 1 << 20):
        write_word(fd, DIRECTORY_AT, word)
        a.send_bytes(b"7" * LARGE)
        assert b"7" * LARGE == b.recv_bytes()
    write_word(fd, DIRECTORY_AT, was)


@pytest.mark.parametrize("size", [0, 1000, 1 << 21])
def test_truncated_arena_is_refused_by_name(
    channel: tuple[mpshm.Connection, mpshm.Connection, int], size: int
) -> None:
    _, _, fd = channel
    short = os.memfd_create("truncated")
    os.pwrite(short, os.pread(fd, 4096, 0), 0)
    os.ftruncate(short, size)
    with pytest.raises(mpshm.ProtocolError) as caught:
        Arena.attach(short)
    assert str(caught.value) in (
        "shared memory file is not an arena",
        "shared memory file is an arena whose geometry does not fit its file",
    )


def test_memory_files_cannot_be_truncated_or_grown(
    channel: tuple[mpshm.Connection, mpshm.Connection, int],
) -> None:
    """Or a peer could have this process killed by SIGBUS."""
    roster = arena.family_fd()
    assert roster is not None
    for fd in (channel[2], roster):
        size = os.fstat(fd).st_size
        for other in (0, size - 1, size + 1):
            with pytest.raises(OSError) as caught:
                os.ftruncate(fd, other)
            assert errno.EPERM == caught.value.errno


DECLARED_DEAD = """
import os, struct, sys
import mpshm
from mpshm._memory import arena

# The roster: a header of 64 bytes, and records of 32.  A record begins with its word, whose low 16
# bits are the incarnation; `noted`, the last incarnation found dead, is at 24.
a, b = mpshm.Pipe()
buffer = a.get_buf(100_000)
roster = arena.family_fd()
(word,) = struct.unpack("=Q", os.pread(roster, 8, 64))
assert word >> 32 == os.getpid()

def reap(end):
    os.pwrite(roster, struct.pack("=I", word & 0xffff), 64 + 24)
    assert 0 == end.stats().runs_in_use
    end.send_bytes(b"reaped")
    end.close()

process = mpshm.get_context("fork").Process(target=reap, args=(b,))
process.start()
process.join()
assert 0 == process.exitcode
assert b"reaped" == a.recv_bytes()
try:
    a.send_buf(buffer)
except mpshm.ProtocolError as error:
    print(error)
os.pwrite(roster, struct.pack("=I", 0), 64 + 24)
for size in (10, 100_000):
    a.send_bytes(b"a" * size)
    assert b"a" * size == b.recv_bytes()
assert 0 == a.stats().runs_in_use
"""


def test_buffer_of_a_process_that_a_forged_roster_declared_dead_is_an_error_that_says_so() -> None:
    """It said that the buffer had been sent or released."""
    done = run_python("-c", DECLARED_DEAD)
    assert 0 == done.returncode, done.stderr
    assert done.stdout.startswith("shared memory of this channel is damaged or forged")
