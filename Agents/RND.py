"""PPO that is rewarded for what is new: random network distillation (Burda et al. 2018, 1810.12894).

The bonus is `explore=rnd`, which attaches to any agent; here are the paper's PPO and, in Hparams/Agent/Agents.RND.yaml, its numbers. They are those of the run
that was published, with convolutions instead of its recurrent policy: the 8,152 of its table 1 on Montezuma's Revenge belong to a GRU over 1.97 billion frames.
"""
from Agents.PPO import PPO


class RND(PPO):
    """See PPO."""
