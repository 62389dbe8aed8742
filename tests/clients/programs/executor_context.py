"""concurrent.futures.ProcessPoolExecutor with an mp_context: arrays out and back."""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np


def scaled(pair):
    factor, block = pair
    return block * factor


def main():
    context = multiprocessing.get_context("fork")
    blocks = [np.random.default_rng(i).random((200, 400)) for i in range(16)]
    digest = hashlib.sha256()
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        for _ in range(120):
            for result in executor.map(scaled, enumerate(blocks)):
                digest.update(result[::16].tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
