"""MDAnalysis: RMSD with backend="multiprocessing" over a trajectory in memory."""

import hashlib
import warnings

import MDAnalysis
import numpy as np
from MDAnalysis.analysis.rms import RMSD


def main():
    warnings.simplefilter("ignore")
    atoms, frames = 2000, 1500
    rng = np.random.default_rng(13)
    start = rng.random((atoms, 3), dtype=np.float32) * 50
    walk = rng.standard_normal((frames, atoms, 3), dtype=np.float32) * 0.1
    universe = MDAnalysis.Universe.empty(atoms, trajectory=True)
    universe.add_TopologyAttr("masses", np.ones(atoms))
    universe.load_new(start + np.cumsum(walk, axis=0), order="fac")
    digest = hashlib.sha256()
    for first in (0, 700):
        analysis = RMSD(universe, universe, ref_frame=first)
        analysis.run(backend="multiprocessing", n_workers=2, n_parts=8)
        digest.update(np.round(analysis.results.rmsd, 6).tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
