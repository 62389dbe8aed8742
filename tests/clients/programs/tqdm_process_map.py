"""tqdm's process_map: concurrent.futures with a progress bar."""

import hashlib

import numpy as np
from tqdm.contrib.concurrent import process_map


def spectrum(seed):
    signal = np.random.default_rng(seed).random(60000)
    return np.abs(np.fft.rfft(signal))


def main():
    digest = hashlib.sha256()
    for result in process_map(spectrum, range(3000), max_workers=2, chunksize=4, disable=None):
        digest.update(np.round(result[:500], 6).tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
