from __future__ import annotations

import pytest
import torch

from djepa_mm.evaluate.frechet import frechet_distance
from djepa_mm.evaluate.words import GrammarRecogniser, word_error_rate


def test_frechet_distance_of_known_normals() -> None:
    """N(0, I) against N(m, s²I): |m|² + d·(1 − s)², exactly, for samples whitened to those moments."""
    torch.manual_seed(0)
    x = torch.randn(500, 6).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    shift = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    assert frechet_distance(x, 3 * x + shift) == pytest.approx(5 + 6 * 4, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_singular_covariances() -> None:
    """Dead pixels must not spoil it; checked against scipy on the living ones."""
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    a, b = torch.randn(300, 4).double() @ torch.randn(4, 4).double(), torch.randn(200, 4).double()
    ca, cb = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + float((ca + cb - 2 * sqrtm(ca @ cb).real).trace())
    dead = torch.zeros(1, 3)
    padded = frechet_distance(torch.cat([a, dead.expand(300, 3)], 1), torch.cat([b, dead.expand(200, 3)], 1))
    assert padded == pytest.approx(expected, rel=1e-6)


def test_word_error_rate() -> None:
    assert word_error_rate(["one two three", "four"], ["one three", "four five"]) == pytest.approx(2 / 4)
    assert word_error_rate(["one"], [""]) == 1
    assert word_error_rate(["one two"], ["one two"]) == 0


def test_the_recogniser_hears_espeak_through_mel_and_griffin_lim() -> None:
    """The floor under every word error rate that is reported for spoken digits."""
    from djepa_mm.data.spoken_digits import WORDS, speak
    from djepa_mm.recipe import load_recipe

    texts = ["three one zero", "nine two seven four", "eight six five"]
    recogniser, mel = GrammarRecogniser(WORDS), load_recipe("spoken-digits").tokenizer.build()
    waves = [torch.from_numpy(samples).float() / 32768 for samples, _ in speak(texts)]
    back = [mel.decode(mel.encode(w[None]), mel.spec_of(tuple(w.shape)))[0] for w in waves]
    assert word_error_rate(texts, [recogniser.hear(w, mel.sample_rate_hz) for w in waves]) == 0
    assert word_error_rate(texts, [recogniser.hear(w, mel.sample_rate_hz) for w in back]) <= 0.1
    noise = torch.randn(22050, generator=torch.Generator().manual_seed(0))
    assert word_error_rate(texts[:1], [recogniser.hear(0.1 * noise, 22050)]) > 0.5
