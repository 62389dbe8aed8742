"""torch.multiprocessing.Pool: tensors and arrays out and back."""

import hashlib

import torch
import torch.multiprocessing as mp


def work(pair):
    seed, tensor = pair
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(tensor.shape, generator=generator)
    return (tensor + noise).numpy(), float(noise[0, 0]), noise[:4, :4].clone()


def main():
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    tensors = [torch.full((256, 400), float(i)) for i in range(16)]
    with mp.Pool(2) as pool:
        for _ in range(20):
            for array, value, corner in pool.imap(work, enumerate(tensors)):
                digest.update(array[::16].tobytes())
                digest.update(repr(value).encode())
                digest.update(corner.numpy().tobytes())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
