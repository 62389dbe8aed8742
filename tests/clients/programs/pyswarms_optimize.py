"""pyswarms with n_processes=2: a swarm in slices through a Pool."""

import hashlib
import logging

import numpy as np
import pyswarms


def rosenbrock(x):
    return np.sum(100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2, axis=1)


def main():
    logging.disable(logging.CRITICAL)
    np.random.seed(12)
    optimizer = pyswarms.single.GlobalBestPSO(
        n_particles=4000, dimensions=30, options={"c1": 0.5, "c2": 0.3, "w": 0.9}
    )
    cost, position = optimizer.optimize(rosenbrock, iters=500, n_processes=2, verbose=False)
    digest = hashlib.sha256(position.tobytes() + repr(float(cost)).encode())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
