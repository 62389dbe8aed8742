"""tsfresh extract_features(n_jobs=2)."""

import hashlib

import numpy as np
import pandas as pd
from tsfresh import extract_features
from tsfresh.feature_extraction import MinimalFCParameters


def main():
    rng = np.random.default_rng(9)
    ids, length = 1500, 100
    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(ids), length),
            "time": np.tile(np.arange(length), ids),
            "x": rng.random(ids * length),
            "y": rng.random(ids * length),
        }
    )
    features = extract_features(
        frame,
        column_id="id",
        column_sort="time",
        default_fc_parameters=MinimalFCParameters(),
        n_jobs=2,
        disable_progressbar=True,
    )
    features = features[sorted(features.columns)].sort_index()
    digest = hashlib.sha256(np.round(features.to_numpy(), 8).tobytes())
    print("digest:", features.shape[0] and digest.hexdigest())


if __name__ == "__main__":
    main()
