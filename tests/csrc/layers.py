"""Check that calls between the core's C files go down; `layers.py FILE.o...` asks nm for symbols.

A file calls those of the lines above its own and none of its own line, so the files can be read
from the top down.
"""

import subprocess
import sys
from pathlib import Path

LAYERS = """
    freemap pids process refuse wait
    memfile spin watch
    records
    roster
    member
    handle
    mapping
    loans rings segment window
    ring_check segment_check strays tasks
    positions
    chain
    stream
    mirror trim turns
    arena inspect ring
    mailbox
    leases pressure
    waking
    waiters
    stream_get tracking
    fork frame queue reap
    claims peek queue_get
    runs
    parcel
    queue_put
    stream_put
"""
# Calls up that cannot go down.
ALLOWED = {
    # The first to take the lock in a child that no hook saw has all others forget their parent.
    ("process", "member"),
    ("process", "fork"),
}

level = {name: n for n, line in enumerate(LAYERS.split("\n")) for name in line.split()}
homes: dict[str, str] = {}
used: list[tuple[str, str]] = []
for path in sys.argv[1:]:
    for line in subprocess.check_output(["nm", path], text=True).splitlines():
        *_, kind, symbol = line.split()
        if kind == "U":
            used.append((Path(path).stem, symbol))
        elif kind.isupper():
            homes[symbol] = Path(path).stem
calls = {(one, homes[symbol]): symbol for one, symbol in used if symbol in homes}
wrong = [
    f"{one}.c calls {symbol} of {other}.c, which is not below it"
    for (one, other), symbol in calls.items()
    if level[other] >= level[one] and (one, other) not in ALLOWED
]
wrong += [f"{one}.c calls nothing of {other}.c any more" for one, other in ALLOWED - calls.keys()]
sys.exit("\n".join(wrong) or 0)
