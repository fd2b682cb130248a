"""The one way to torchvision.

The torchvision wheel of the usual index is a CUDA build. Beside a CPU torch its compiled part cannot load, which alone would only cost `ops.nms`
and its like; but torchvision 0.28 also registers shape functions for two of those missing operators, and so the whole package dies at import with
`operator torchvision::nms does not exist`. Declaring the two operators first, without an implementation, is enough for transforms, datasets and
models, and for what imports torchvision in turn (timm, torchmetrics): call `import_torchvision` before those.

Nothing is imported until it is called, and a torchvision that imports as it is stays untouched.
"""

import importlib
import sys
from types import ModuleType

import torch

MISSING = ('nms', 'qnms')  # the operators whose shape functions are registered unconditionally; both take boxes, scores, threshold and return indices

_declarations: torch.library.Library | None = None  # torch forgets the operators when this object goes


def import_torchvision(submodule: str = '') -> ModuleType:
    """Imports torchvision, or a module of it, also beside a torch that its compiled operators do not fit.

    In the mended case `torchvision.ops.nms` and the image decoders raise a clear error of their own when they are called; decode images with Pillow.

    Args:
        submodule: dotted path below torchvision, such as `'transforms.v2'`; empty for torchvision itself.

    Raises:
        ImportError: torchvision is not installed, or has no such module.
        RuntimeError: torchvision fails at import for another reason than the missing operators.
    """
    name = f'torchvision.{submodule}' if submodule else 'torchvision'
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != 'torchvision':
            raise
        raise ImportError('torchvision is not installed: pip install torchvision==0.28.0 (make setup installs it)', name='torchvision') from error
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error) or _declarations is not None:
            raise
    _declare_missing()
    return importlib.import_module(name)


def _declare_missing() -> None:
    """Declares the operators, and drops the modules that the failed import left half done."""
    global _declarations
    _declarations = torch.library.Library('torchvision', 'FRAGMENT')
    for operator in MISSING:
        _declarations.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    for module in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[module]
