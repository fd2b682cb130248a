"""Eyes, pools, trunks and heads by short name. Each takes `input_shape` (and `output_dim` where it ends in a vector) and tells its `output_shape`."""
from Blocks.Architectures.CNN import CNN, NatureCNN
from Blocks.Architectures.MLP import MLP, DenseMLP, Dueling, LayerNormTanh, LinearNorm, SquareNorm
from Blocks.Architectures.Null import Flatten, Null

__all__ = ['CNN', 'MLP', 'DenseMLP', 'Dueling', 'Flatten', 'LayerNormTanh', 'LinearNorm', 'NatureCNN', 'Null', 'SquareNorm']
