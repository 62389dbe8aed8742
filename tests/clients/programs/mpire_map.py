"""mpire's WorkerPool: map over arrays, imap_unordered over small items, worker state."""

import hashlib

import numpy as np
from mpire import WorkerPool


def init(state):
    state["seen"] = 0


def work(state, number):
    state["seen"] += 1
    return number * number


def blur(block):
    return (block[1:] + block[:-1]) / 2


def main():
    rng = np.random.default_rng(2)
    blocks = [rng.random((300, 200)) for _ in range(200)]
    digest = hashlib.sha256()
    with WorkerPool(n_jobs=2, start_method="fork") as pool:
        for _ in range(3):
            for result in pool.map(blur, blocks, chunk_size=4, concatenate_numpy_output=False):
                digest.update(result[::16].tobytes())
    with WorkerPool(n_jobs=2, use_worker_state=True, keep_alive=True) as pool:
        for _ in range(2):
            total = sum(pool.imap_unordered(work, range(20000), worker_init=init, chunk_size=20))
            digest.update(b"%d" % total)
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
