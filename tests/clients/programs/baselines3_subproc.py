"""stable-baselines3: SubprocVecEnv with 200 kB frames, then a short PPO on vectors."""

import hashlib

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv


class Screen(gym.Env):
    """A camera: 256 x 256 x 3 bytes a frame."""

    observation_space = gym.spaces.Box(0, 255, (256, 256, 3), np.uint8)
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frame = self.np_random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        self.count = 0
        return self.frame, {}

    def step(self, action):
        self.count += 1
        self.frame = np.roll(self.frame, int(action) + 1, axis=0)
        return self.frame, float(self.frame[0, 0, 0]), self.count % 200 == 0, False, {}


def main():
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    envs = SubprocVecEnv([Screen] * 4, start_method="fork")
    envs.seed(7)
    frames = envs.reset()
    rng = np.random.default_rng(3)
    for _ in range(600):
        digest.update(np.ascontiguousarray(frames[:, ::8, ::8]).tobytes())
        frames, rewards, _, _ = envs.step(rng.integers(0, 4, 4))
        digest.update(rewards.tobytes())
    envs.close()

    envs = make_vec_env(
        "CartPole-v1",
        n_envs=4,
        seed=1,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "forkserver"},
    )
    model = PPO("MlpPolicy", envs, seed=1, n_steps=256, batch_size=256, n_epochs=4, device="cpu")
    model.learn(3000)
    for parameter in model.policy.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    envs.close()
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
