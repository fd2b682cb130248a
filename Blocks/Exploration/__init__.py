"""Bonuses for what is new, on any agent: `explore=rnd`. A user's own is a subclass of `Bonus`, `explore=my_package.MyBonus`."""
from Blocks.Exploration.Bonus import Bonus
from Blocks.Exploration.RND import RND

__all__ = ['RND', 'Bonus']
