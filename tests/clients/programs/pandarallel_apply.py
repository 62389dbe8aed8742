"""pandarallel: parallel_apply over pipes, with progress queues through a manager."""

import hashlib

import numpy as np
import pandas as pd
from pandarallel import pandarallel


def score(row):
    return row["a"] * 2 + abs(row["b"]) ** 0.5


def main():
    pandarallel.initialize(nb_workers=2, verbose=0, use_memory_fs=False)
    rng = np.random.default_rng(10)
    frame = pd.DataFrame(rng.standard_normal((60_000, 40)))
    frame = frame.rename(columns={0: "a", 1: "b"})
    digest = hashlib.sha256()
    for _ in range(3):
        digest.update(frame.parallel_apply(score, axis=1).to_numpy().tobytes())
    digest.update(frame["a"].parallel_map(lambda value: round(value, 3)).to_numpy().tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
