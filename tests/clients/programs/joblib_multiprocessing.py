"""joblib.Parallel with the multiprocessing backend: arrays below and above its memmap threshold."""

import hashlib

import numpy as np
from joblib import Parallel, delayed


def smooth(block, rounds):
    for _ in range(rounds):
        block = (block + np.roll(block, 1, axis=0) + np.roll(block, -1, axis=0)) / 3
    return block


def main():
    rng = np.random.default_rng(5)
    digest = hashlib.sha256()
    with Parallel(n_jobs=2, backend="multiprocessing") as parallel:
        for size in (100, 300, 500):
            blocks = [rng.random((size, 400)) for _ in range(160)]
            for result in parallel(delayed(smooth)(block, 4) for block in blocks):
                digest.update(result.tobytes())
        for number in parallel(delayed(pow)(i, 3) for i in range(20000)):
            digest.update(b"%d" % number)
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
