"""torch DataLoader with its default collate: tensors, which torch shares by itself."""

import hashlib
import multiprocessing

import numpy as np
from torch.utils.data import DataLoader, Dataset

context = multiprocessing.get_context("fork")


class Frames(Dataset):
    def __len__(self):
        return 2400

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (3, 160, 224), dtype=np.uint8), index


def main():
    digest = hashlib.sha256()
    for _epoch in range(2):
        loader = DataLoader(Frames(), batch_size=8, num_workers=2, multiprocessing_context=context)
        for frames, labels in loader:
            digest.update(frames[:, :, ::16, ::16].contiguous().numpy().tobytes())
            digest.update(labels.numpy().tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
