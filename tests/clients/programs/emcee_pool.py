"""emcee with a Pool: thousands of small messages."""

import hashlib
import multiprocessing

import emcee
import numpy as np


def log_probability(theta):
    return -0.5 * np.sum(theta**2) - 0.1 * np.sum(np.abs(np.diff(theta)))


def main():
    np.random.seed(42)
    start = np.random.randn(64, 5)
    with multiprocessing.Pool(2) as pool:
        sampler = emcee.EnsembleSampler(64, 5, log_probability, pool=pool)
        sampler.run_mcmc(start, 1200)
    digest = hashlib.sha256(sampler.get_chain().tobytes()).hexdigest()
    print("digest:", digest)


if __name__ == "__main__":
    main()
