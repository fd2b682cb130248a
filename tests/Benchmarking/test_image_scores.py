"""Scores of generated images: by hand, by a classifier whose answers are known, and through torchmetrics where it is installed."""
import math

import pytest
import torch

import Benchmarking.ImageScores as module
from Benchmarking.ImageScores import ImageScores, colours, label_scores
from Blocks.Vision import import_torchvision

SHAPE = (1, 4, 4)


def test_label_scores_by_hand():
    told = label_scores(torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    doubt = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert told == pytest.approx({'doubt': doubt, 'label_entropy': math.log(2), 'classifier_score': 2 / math.exp(doubt)})


@pytest.mark.parametrize('p, score, entropy', [
    (torch.eye(10).repeat(7, 1), 10, math.log(10)), (torch.eye(10)[:1].repeat(7, 1), 1, 0), (torch.full((7, 10), 0.1), 1, 0),
    (torch.eye(10)[:4], 4, math.log(4))], ids=['varied and sure', 'one class', 'unsure', 'four classes'])
def test_the_score_counts_the_classes_that_are_made_for_sure(p, score, entropy):
    told = label_scores(p)
    assert told['classifier_score'] == pytest.approx(score) and told['label_entropy'] == pytest.approx(entropy)


class Mean(torch.nn.Module):
    """Takes dark images for class 0, bright ones for class 1."""

    device, generate = torch.device('cpu'), False
    obs_spec = type('Spec', (), {'stacked_shape': SHAPE})
    action_spec = type('Spec', (), {'num_actions': 0, 'size': 2})

    def predict(self, obs, classes):
        bright = obs.float().mean((1, 2, 3)) > 127
        return torch.nn.functional.one_hot(bright.long(), classes) * 50.0


def test_generated_and_stored_images_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, 'saved_agent', lambda path, device: Mean())
    scores = ImageScores(SHAPE, images=40, classifier='somewhere')
    dark, both = torch.zeros(300, *SHAPE, dtype=torch.uint8), torch.zeros(300, *SHAPE, dtype=torch.uint8)
    both[::2] = 255
    told = scores(dark, both)
    assert told['label_entropy'] == 0 and told['label_entropy_data'] == pytest.approx(math.log(2))
    assert told['classifier_score'] == pytest.approx(1) and told['classifier_score_data'] == pytest.approx(2)
    assert set(scores(dark, None)) == {'classifier_score', 'label_entropy', 'doubt'}


def test_nothing_is_scored_unless_it_is_asked_for():
    assert ImageScores(SHAPE).images == 0


@pytest.mark.parametrize('options, message', [
    ({'metrics': 'kid'}, 'generation.metrics=kid: expected fid, is, or'), ({'images': -1}, 'generation.images=-1'),
    ({'images': 1, 'metrics': 'is'}, 'generation.images=1: expected at least 2'), ({'classifier': 'nowhere'}, 'nowhere')], ids=str)
def test_what_is_refused(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        ImageScores(SHAPE, **options)


def test_a_classifier_of_other_images_or_a_generator_is_refused(monkeypatch):
    monkeypatch.setattr(module, 'saved_agent', lambda path, device: Mean())
    with pytest.raises(ValueError, match=r'one that sees images of \(3, 8, 8\); it sees \(1, 4, 4\)'):
        ImageScores((3, 8, 8), classifier='somewhere')
    monkeypatch.setattr(Mean, 'generate', True)
    with pytest.raises(ValueError, match='generation.classifier=somewhere: expected a run that classifies'):
        ImageScores(SHAPE, classifier='somewhere')


def test_stacks_show_their_newest_frame():
    stack = torch.arange(4, dtype=torch.uint8)[None, :, None, None].expand(1, 4, 2, 2)
    assert colours(stack).unique().tolist() == [3] and colours(stack).shape == (1, 3, 2, 2)
    assert colours(torch.arange(6, dtype=torch.uint8)[None, :, None, None].expand(1, 6, 2, 2))[0, :, 0, 0].tolist() == [3, 4, 5]


def test_without_torchmetrics_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'torchmetrics.image.fid', None)
    with pytest.raises(ImportError, match=r'generation.metrics=fid needs torchmetrics: pip install'):
        ImageScores(SHAPE, metrics='fid')


class Pixels(torch.nn.Module):
    """Features that FID can be worked out from by hand: two pixels."""

    num_features = 2

    def forward(self, images):
        return images.float()[:, 0, 0, :2]


def test_fid_by_hand(monkeypatch):
    """Of two Gaussians with diagonal covariances: |μ − μ′|² + Σ (σ − σ′)²."""
    import_torchvision()
    fid = pytest.importorskip('torchmetrics.image.fid')
    monkeypatch.setattr(module, 'inception', lambda name: fid.FrechetInceptionDistance(feature=Pixels()).set_dtype(torch.float64))
    scores = ImageScores((3, 4, 4), images=8, metrics=['fid'])
    corners = torch.tensor([[0, 0], [0, 2], [2, 0], [2, 2]], dtype=torch.uint8).repeat(100, 1)
    drawn, stored = torch.zeros(400, 3, 4, 4, dtype=torch.uint8), torch.zeros(400, 3, 4, 4, dtype=torch.uint8)
    drawn[:, 0, 0, :2], stored[:, 0, 0, :2] = corners * 3, corners + 10
    variance = 400 / 399  # of the corners, unbiased
    expected = 2 * (11 - 3) ** 2 + 2 * (3 - 1) ** 2 * variance
    assert scores(drawn, stored) == pytest.approx({'fid': expected}, rel=1e-4)
    assert scores(drawn, stored) == pytest.approx({'fid': expected}, rel=1e-4), 'each evaluation begins anew'
