"""Losses that attach to the encoder of any agent: `aux=curl`. A user's own is a subclass of `Auxiliary`, `aux=my_package.MyLoss`."""
from Blocks.Auxiliary.A2 import A2
from Blocks.Auxiliary.Auxiliary import Auxiliary, JoiningLoss, Parts
from Blocks.Auxiliary.BarlowTwins import BarlowTwins
from Blocks.Auxiliary.BYOL import BYOL
from Blocks.Auxiliary.CURL import CURL
from Blocks.Auxiliary.SPR import SPR

__all__ = ['A2', 'BYOL', 'CURL', 'SPR', 'Auxiliary', 'BarlowTwins', 'JoiningLoss', 'Parts']
