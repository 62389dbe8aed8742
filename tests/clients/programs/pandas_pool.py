"""pandas DataFrames through multiprocessing.Pool: split, apply, combine."""

import hashlib
import multiprocessing

import numpy as np
import pandas as pd


def summarise(frame):
    out = frame.groupby("key").agg({"a": "mean", "b": "std", "c": "sum"})
    frame = frame.assign(d=frame["a"].rolling(7, min_periods=1).mean())
    return out, frame


def main():
    rng = np.random.default_rng(4)
    rows = 400_000
    frame = pd.DataFrame(rng.random((rows, 3)), columns=["a", "b", "c"])
    frame["key"] = rng.integers(0, 50, rows)
    frame["name"] = np.array(["red", "green", "blue"])[rng.integers(0, 3, rows)]
    parts = [frame.iloc[i : i + 20_000].copy() for i in range(0, rows, 20_000)]
    digest = hashlib.sha256()
    with multiprocessing.Pool(2) as pool:
        for _ in range(14):
            for summary, part in pool.imap(summarise, parts):
                digest.update(np.round(summary.to_numpy(), 9).tobytes())
                digest.update(pd.util.hash_pandas_object(part.iloc[::50]).to_numpy().tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
