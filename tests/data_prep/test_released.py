"""Published data: listed with their addresses, fetched by name."""

import pytest

from data_prep import released
from vlm_jax.errors import DataError


def test_all_are_listed_with_their_addresses(capsys):
    released.main([])
    said = capsys.readouterr().out
    for name in ("word2vec", "howto100m_captions", "tacos_windows_train", "internvideo", "released:milnce"):
        assert f"{name} (" in said
    assert "https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/s3d_howto100m.pth" in said
    assert "https://paddlemodels.bj.bcebos.com/video_grounding/TALL.pdparams" in said


def test_they_are_fetched_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "mirror" / "internvideo").mkdir(parents=True)
    names = ["internvideo.zip", "internvideo.z01", "internvideo.z02"]
    for name in names:
        (tmp_path / "mirror" / "internvideo" / name).write_text(name)
    monkeypatch.setenv("VLM_JAX_MIRROR", str(tmp_path / "mirror"))
    released.main(["internvideo", "--output", str(tmp_path / "data")])
    assert [(tmp_path / "data" / "internvideo" / name).read_text() for name in names] == names
    assert capsys.readouterr().out.split() == [str(tmp_path / "data" / "internvideo" / name) for name in names]


def test_what_no_program_can_fetch_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("VLM_JAX_MIRROR", raising=False)
    with pytest.raises(
        ValueError, match=r"exp_data: no program can fetch it; get it from jiyanggao/TALL, https://drive"
    ):
        released.main(["tacos_sentences", "--output", str(tmp_path)])
    with pytest.raises(DataError, match="mine: not one of ava_proposals, charades_sta, "):
        released.main(["mine"])
