"""Peak memory of a process and all its descendants, seen from outside.

On Linux a page that several processes share is counted once: the kernel's PSS divides each page by
the number of its mappers. Where /proc does not tell, the answer is None, and the caller has to make
do with something coarser.
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SAMPLE_PAUSE_S = 0.01  # a sample of three processes takes 8 ms of one core: never while timing

ROLLUP = Path("/proc/self/smaps_rollup")
PSS_AVAILABLE = ROLLUP.exists() and "Pss_Shmem:" in ROLLUP.read_text()  # Linux 5.4

# Memory that has a file descriptor: memfd_create() and shm_open(), also after the unlink.
MEMORY_FILES = ("/memfd:", "/dev/shm/")


def watch(process: subprocess.Popen[str]) -> int | None:
    """Wait until process ends; return the most bytes that it and its descendants held at once."""
    if not PSS_AVAILABLE:
        process.wait()
        return None
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, held_bytes(process.pid))
        time.sleep(SAMPLE_PAUSE_S)
    return peak_bytes


def held_bytes(root: int) -> int:
    """Return the bytes that root and its descendants hold now.

    PSS misses a page of a memory file that no process has mapped at the moment. Such a page is
    memory all the same, so shared memory counts as what its files occupy if that is more.
    """
    private_bytes = shared_bytes = 0
    file_bytes: dict[tuple[int, int], int] = {}
    for pid in family(root):
        try:
            pss = read_pss(pid)
            file_bytes.update(memory_files(pid))
        except OSError:  # the process has just ended: what it held is gone as well
            continue
        private_bytes += pss["Pss"] - pss["Pss_Shmem"]
        shared_bytes += pss["Pss_Shmem"]
    return private_bytes + max(shared_bytes, sum(file_bytes.values()))


def family(root: int) -> Iterator[int]:
    """Yield root and its descendants, as far as they are alive."""
    yield root
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:
            continue
        for pid in pids:
            yield from family(int(pid))


def read_pss(pid: int) -> dict[str, int]:
    """Return pid's "Pss" and "Pss_Shmem" in bytes."""
    found = {"Pss": 0, "Pss_Shmem": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found


def memory_files(pid: int) -> dict[tuple[int, int], int]:
    """Return the bytes in use of each memory file that pid has open, by (device, inode)."""
    sizes = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(link.readlink()).startswith(MEMORY_FILES):
                status = link.stat()
                sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
        except OSError:  # closed between the listing and the look
            continue
    return sizes
