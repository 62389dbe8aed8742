"""Shows that queues and pools survive SIGKILL at any moment, by counting every message.

Floors, top to bottom; imports go down only:

    __main__              the command line: scenarios, progress, what was found, exit code
    selftest              runs in which something must be found: stock under kills, broken fakes
    nest                  a fresh session for each scenario; none of its processes outlives it
    -- inside the fresh session --
    child                 one scenario, what it left behind, JSON lines
    scenarios             which there are
    queues | pools | herd | backlog     storms over queues | over a Pool | 64 blocked consumers |
                                        100,000 messages and nobody to take them
    crew                  workers: hired, killed, stopped, replaced, waited for
    workers               what a producer and a consumer do
    verdict               the oracle: which message may be missing
    message | ledger      payloads with checksums | what a killed process has written down
    transports            mpshm, stock, or a fake
    fakes                 queues with a fault on purpose, and one that survives without locks
    report                Settings, Result: the words all the others share

From kit/: what a scenario leaves behind, what its processes do, how they are killed.
"""
