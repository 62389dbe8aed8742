"""SciPy differential_evolution(workers=2): its own Pool, made by MapWrapper."""

import hashlib

import numpy as np
from scipy.optimize import differential_evolution


def cost(x):
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def main():
    result = differential_evolution(
        cost,
        [(-2, 2)] * 6,
        workers=2,
        updating="deferred",
        maxiter=600,
        popsize=20,
        tol=0,
        polish=False,
        rng=np.random.default_rng(6),
    )
    digest = hashlib.sha256(result.x.tobytes() + repr((result.fun, result.nfev)).encode())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
