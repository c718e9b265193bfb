"""Published files: fetched once, put in place when whole, or one line that says what to do."""

import io
from urllib.response import addinfourl

import pytest

from vlm_jax.interop import released
from vlm_jax.interop.rules import ConversionError


def test_a_file_is_fetched_once(tmp_path):
    (tmp_path / "there").mkdir()
    source = tmp_path / "there" / "TALL.pdparams"
    source.write_bytes(b"content")
    path = released.fetch(source.as_uri(), tmp_path / "cache", "them")
    assert (path, path.read_bytes()) == (tmp_path / "cache" / "TALL.pdparams", b"content")
    source.unlink()
    assert released.fetch(source.as_uri(), tmp_path / "cache", "them") == path
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["TALL.pdparams"]


def test_without_a_network_it_says_what_to_put_where(tmp_path):
    url = (tmp_path / "absent" / "TALL.pdparams").as_uri()
    with pytest.raises(ConversionError) as said:
        released.fetch(url, tmp_path / "cache", "them")
    assert str(said.value).startswith(f"{url}: cannot be fetched (")
    assert str(said.value).endswith(f"; fetch it elsewhere and put it at {tmp_path / 'cache' / 'TALL.pdparams'}")
    assert "\n" not in str(said.value)


def test_half_a_file_is_none(tmp_path, monkeypatch):
    answer = addinfourl(io.BytesIO(b"half"), {"Content-Length": "100"}, "")
    monkeypatch.setattr(released.urllib.request, "urlopen", lambda url, timeout: answer)
    with pytest.raises(ConversionError, match="4 of 100 bytes came"):
        released.fetch("https://example.org/TALL.pdparams", tmp_path, "them")
    assert not list(tmp_path.iterdir())


def test_a_file_without_an_address_may_be_put_there(tmp_path):
    with pytest.raises(ConversionError) as said:
        released.fetch("groundnlq.pth.tar", tmp_path, "houzhijian/GroundNLQ")
    place = tmp_path / "groundnlq.pth.tar"
    assert str(said.value) == (
        f"groundnlq.pth.tar: its address is not known here; get it from houzhijian/GroundNLQ and put it at {place}"
    )
    place.write_bytes(b"content")
    assert released.fetch("groundnlq.pth.tar", tmp_path, "houzhijian/GroundNLQ") == place
