"""datasets: to_csv(num_proc=2) and from_generator."""

import hashlib
import pathlib
import tempfile

import numpy as np
from datasets import Dataset, disable_progress_bars


def main():
    disable_progress_bars()
    rng = np.random.default_rng(14)
    rows = 60_000
    table = Dataset.from_dict(
        {
            "id": list(range(rows)),
            "value": np.round(rng.random(rows), 6).tolist(),
            "text": [f"row {i} " * 8 for i in range(rows)],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "out.csv")
        for _ in range(3):
            table.to_csv(path, num_proc=2, batch_size=2000)
        print("digest:", hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
