"""The guarded import of torchvision. What declares operators has a process of its own: torch cannot take them back."""

import subprocess
import sys
from pathlib import Path

import pytest

from Blocks import Vision

ROOT = Path(__file__).parents[2]

# A torchvision that fails exactly where the real one does: a shape function for an operator that nothing declared.
BROKEN = """
import torch
from . import extension
for name in 'nms', 'qnms':
    @torch.library.register_fake(f'torchvision::{name}')
    def meta(dets, scores, iou_threshold):
        return dets
"""


def run(code, *paths):
    """Runs code in a fresh Python that finds Graft, and before it the given folders; returns what it printed."""
    setup = f'import sys; sys.path[:0] = {[str(path) for path in (*paths, ROOT)]}\n'
    done = subprocess.run([sys.executable, '-c', setup + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fake_torchvision(folder, code):
    """Makes a package named torchvision with this code, and a submodule that counts how often it was imported."""
    package = folder / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text(code)
    (package / 'extension.py').write_text("import builtins; builtins.imports = getattr(builtins, 'imports', 0) + 1")
    return folder


def test_installed_torchvision_works():
    run("""
import torch
from Blocks.Vision import import_torchvision

assert 'torchvision' not in sys.modules, 'nothing is imported before the call'
vision = import_torchvision()
assert vision is sys.modules['torchvision'] and import_torchvision() is vision

v2 = import_torchvision('transforms.v2')
image = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
assert torch.equal(v2.RandomHorizontalFlip(p=1.0)(image), image.flip(-1))
assert v2.Resize((4, 4))(image).shape == (3, 4, 4)

picture, label = import_torchvision('datasets').FakeData(size=2, image_size=(3, 8, 8), num_classes=3)[1]
assert picture.size == (8, 8) and 0 <= label < 3

from torchvision.models import resnet18
assert resnet18(num_classes=5).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)

boxes, scores = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.1], [5., 5., 6., 6.]]), torch.tensor([0.9, 0.8, 0.7])
if vision.extension._has_ops():
    assert vision.ops.nms(boxes, scores, 0.5).tolist() == [0, 2]
else:
    try:
        vision.ops.nms(boxes, scores, 0.5)
    except RuntimeError as error:
        assert "Couldn't load custom C++ ops" in str(error), error
    else:
        raise AssertionError('nms without its operator must raise')
""")


def test_missing_operators_are_declared_and_stay(tmp_path):
    run("""
import builtins, gc, torch
from Blocks import Vision

try:
    import torchvision
except RuntimeError as error:
    assert 'operator torchvision::nms does not exist' in str(error), error
else:
    raise AssertionError('the stand-in must fail as the real one does')

vision = Vision.import_torchvision()
assert builtins.imports == 2, 'the half-imported submodule must be imported again'
gc.collect()
boxes = torch.zeros(1, 4, device='meta')
assert torch.ops.torchvision.nms(boxes, boxes[:, 0], 0.5).device.type == 'meta'
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    assert 'torchvision::nms' in str(error), error
else:
    raise AssertionError('the declared operator has no implementation')
""", fake_torchvision(tmp_path, BROKEN))


@pytest.fixture
def no_torchvision(monkeypatch):
    """Hides any torchvision that this process has imported, and puts it back."""
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(Vision, '_declarations', None)
    yield monkeypatch
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[name]


def test_healthy_torchvision_is_left_alone(no_torchvision, tmp_path):
    no_torchvision.syspath_prepend(fake_torchvision(tmp_path, 'from . import extension; healthy = True'))
    no_torchvision.setattr(Vision, '_declare_missing', lambda: pytest.fail('nothing is missing'))
    vision = Vision.import_torchvision()
    assert vision.healthy and sys.modules['torchvision'] is vision
    assert Vision.import_torchvision('extension') is vision.extension


@pytest.mark.parametrize('code, kind, message', [
    ("raise RuntimeError('CUDA versions differ')", RuntimeError, 'CUDA versions differ'),
    ('import a_package_that_is_not_there', ModuleNotFoundError, 'a_package_that_is_not_there'),
])
def test_other_failures_are_passed_on(no_torchvision, tmp_path, code, kind, message):
    no_torchvision.syspath_prepend(fake_torchvision(tmp_path, code))
    with pytest.raises(kind, match=message):
        Vision.import_torchvision()
    assert Vision._declarations is None


def test_absent_torchvision_says_how_to_install_it(no_torchvision):
    class Absent:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'torchvision':
                raise ModuleNotFoundError("No module named 'torchvision'", name=name)

    no_torchvision.setattr(sys, 'meta_path', [Absent, *sys.meta_path])
    with pytest.raises(ImportError, match='pip install torchvision=='):
        Vision.import_torchvision('transforms.v2')
