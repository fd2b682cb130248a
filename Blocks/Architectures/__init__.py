"""Eyes, pools, trunks and heads by short name. Each takes `input_shape` (and `output_dim` where it ends in a vector) and tells its `output_shape`.

Two more go by the name of their file: `DCGAN.Generator` and `DCGAN.Discriminator`, and `timm.<name>` is any network of timm."""
from Blocks.Architectures.CNN import CNN, RNDCNN, ImpalaCNN, NatureCNN
from Blocks.Architectures.CoAtNet import CoAtNet, CoAtNet0, CoAtNet1, CoAtNet2, CoAtNet3, CoAtNet4
from Blocks.Architectures.ConvMixer import ConvMixer
from Blocks.Architectures.ConvNeXt import ConvNeXt, ConvNeXtTiny
from Blocks.Architectures.Load import Load
from Blocks.Architectures.MLP import MLP, DenseMLP, Dueling, LayerNormTanh, LinearNorm, LinearReLU, ResidualReLU, SquareNorm, TwoLinearReLU
from Blocks.Architectures.Null import Flatten, Null
from Blocks.Architectures.Pools import AttentionPool, AvgPool, CLSPool, MaxPool
from Blocks.Architectures.ResNet import MiniResNet, ResNet, ResNet18, ResNet34, ResNet50
from Blocks.Architectures.RN import RN
from Blocks.Architectures.Timm import Timm
from Blocks.Architectures.Transformers import Perceiver, Transformer, ViT

load = Load  # as it is written on the command line

__all__ = ['CNN', 'MLP', 'RN', 'RNDCNN', 'AttentionPool', 'AvgPool', 'CLSPool', 'CoAtNet', 'CoAtNet0', 'CoAtNet1', 'CoAtNet2', 'CoAtNet3', 'CoAtNet4',
           'ConvMixer', 'ConvNeXt', 'ConvNeXtTiny', 'DenseMLP', 'Dueling', 'Flatten', 'ImpalaCNN', 'LayerNormTanh', 'LinearNorm', 'LinearReLU', 'Load',
           'MaxPool', 'MiniResNet', 'NatureCNN', 'Null', 'Perceiver', 'ResNet', 'ResNet18', 'ResNet34', 'ResNet50', 'ResidualReLU', 'SquareNorm',
           'Timm', 'Transformer', 'TwoLinearReLU', 'ViT']
