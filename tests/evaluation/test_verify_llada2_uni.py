"""The measured arrays of llada2_uni_tiny, which is too large for the repository: ``UNMASK_LLADA2_UNI`` names its folder, else it is
../shared/golden/llada2_uni_tiny beside the checkout; without either, these tests are skipped and tests/pipeline/test_llada2_uni.py remains.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.verify import verify
from unmask.pipeline.from_pickles import to_safetensors

MEASURED = Path(
    os.environ.get("UNMASK_LLADA2_UNI") or Path(__file__).parents[3] / "shared" / "golden" / "llada2_uni_tiny"
)
DECODED = ("dec.", "turbo.", "vq.", "vq2.")

pytestmark = pytest.mark.skipif(not MEASURED.is_dir(), reason=f"{MEASURED} is not here")


def test_every_array_is_equal(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a pickle.*unmask convert"):
        verify(MEASURED, device="cpu")
    to_safetensors(MEASURED, tmp_path / "uni")
    found = verify(tmp_path / "uni", device="cpu")
    assert not [d.name for d in found if not d.ok] and len(found) == 206
    assert max(d.worst for d in found if d.name.startswith(DECODED)) <= 1e-5
    assert any(d.worst > 0 for d in found) and sum(d.exact for d in found) > 100
