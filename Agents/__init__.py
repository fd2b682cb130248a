"""Every agent a user can name: `Agents.DQN` is the class DQN of Agents/DQN.py."""
