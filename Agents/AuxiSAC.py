"""AuxiSAC: SAC with A2-winner, the auxiliary loss that a search over 7.5e20 of them found (He et al. 2022, 2210.06041).

What is attached: `aux=a2_winner` (Hparams/Agent/Agents.AuxiSAC.yaml, with the paper's numbers); `aux=` with another name replaces it.
"""
from Agents.SAC import SAC


class AuxiSAC(SAC):
    """SAC; see there."""
