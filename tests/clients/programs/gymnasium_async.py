"""gymnasium AsyncVectorEnv, shared_memory=False: each observation, 300 kB, goes through a pipe."""

import hashlib

import gymnasium as gym
import numpy as np


class Screen(gym.Env):
    """A camera: 320 x 320 x 3 bytes a frame."""

    observation_space = gym.spaces.Box(0, 255, (320, 320, 3), np.uint8)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frame = self.np_random.integers(0, 256, (320, 320, 3), dtype=np.uint8)
        self.count = 0
        return self.frame, {}

    def step(self, action):
        self.count += 1
        self.frame = np.roll(self.frame, int(action) + 1, axis=0)
        return self.frame, float(self.frame[0, 0, 0]), self.count % 200 == 0, False, {}


def main():
    envs = gym.vector.AsyncVectorEnv([Screen] * 4, shared_memory=False)
    rng = np.random.default_rng(3)
    digest = hashlib.sha256()
    frames, _ = envs.reset(seed=7)
    for _ in range(2500):
        digest.update(np.ascontiguousarray(frames[:, ::8, ::8]).tobytes())
        frames, rewards, *_ = envs.step(rng.integers(0, 4, 4))
        digest.update(rewards.tobytes())
    envs.close()
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
