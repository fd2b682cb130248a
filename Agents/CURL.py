"""CURL: SAC with a contrastive loss on its encoder (Laskin et al. 2020, 2004.04136).

What is attached: `aux=curl` (Hparams/Agent/Agents.CURL.yaml); `aux=` with another name replaces it.
"""
from Agents.SAC import SAC


class CURL(SAC):
    """SAC; see there."""
