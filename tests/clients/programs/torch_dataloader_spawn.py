"""torch DataLoader under spawn, with persistent workers and a NumPy collate."""

import hashlib
import multiprocessing

import numpy as np
from torch.utils.data import DataLoader, Dataset

context = multiprocessing.get_context("spawn")


class Frames(Dataset):
    def __len__(self):
        return 1200

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (3, 160, 224), dtype=np.uint8), index


def collate(samples):
    frames, labels = zip(*samples, strict=True)
    return np.stack(frames).astype(np.float32), np.array(labels)


def main():
    digest = hashlib.sha256()
    loader = DataLoader(
        Frames(),
        batch_size=8,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=context,
        persistent_workers=True,
    )
    for _epoch in range(3):
        for frames, labels in loader:
            digest.update(frames[:, :, ::16, ::16].tobytes())
            digest.update(labels.tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
