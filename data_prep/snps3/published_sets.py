"""Annotation files as the data sets publish them, read as lines of SNP-S3.

    coco       captions_train2014.json: {images: [{id, file_name}], annotations: [{id, image_id, caption}]},
               or Karpathy's dataset_coco.json: {images: [{filename, split, sentences: [{sentid, raw}]}]}
    vg         region_descriptions.json: [{regions: [{region_id, image_id, phrase}]}]; phrases describe the image
    cc3m       Train_GCC-training.tsv: caption, address
    webvid     results_2M_train.csv: videoid, page_dir, name
    howto100m  caption.json: {video: {start: [], end: [], text: []}}, seconds; one line per sentence;
               or csv files with start, end, text, named by their video or with the column video_path
    msrvtt     train_val_videodatainfo.json: {videos: [{video_id, split}], sentences: [{sen_id, video_id, caption}]},
               or MSR_VTT.json in COCO's form, or MSRVTT_JSFUSION_test.csv: video_id, sentence
    msvd       AllVideoDescriptions.txt: lines `VIDEO caption`
    didemo     train_data.json: [{annotation_id, video, description}]; the descriptions of a video become one paragraph
    msrvtt_qa  train_qa.json: [{id, video_id, question, answer}]
    msvd_qa    the same, with youtube_mapping.txt: lines `VIDEO vidNUMBER`
    msrvtt_mc  msrvtt_mc_test.jsonl: lines {qid, clip_name, answer, options}

Sources of the forms: m-bain/frozen-in-time (data_loader/), ArrowLuo/CLIP4Clip (dataloaders/; its
dataloader_didemo_retrieval.py makes the paragraphs of DiDeMo), xudejing/video-question-answering (preprocess_*.py),
showlab/all-in-one (AllInOne/datasets/).
"""

import collections
import csv
import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import DataError

Row = dict[str, Any]
Item = tuple[str, Callable[[], tuple[Row, Row]]]
"""Name of an annotation, and a function that returns the parts of its file's name, and its line without that name."""


class Unusable(Exception):
    """Reason and detail of an annotation that is left out."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command that a reader may use.

    Attributes:
      split: Name of a split that the files contain, '' for all.
      mapping: Names of videos by their other name (MSVD-QA).
    """

    split: str = ""
    mapping: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Set:
    """Form of a data set's annotations.

    Attributes:
      read: Function that yields the annotations of a file.
      names: Form of the names of its images or videos.
      splits: Values of `--split`.
    """

    read: Callable[[Path, Options], Iterator[Item]]
    names: str
    splits: tuple[str, ...] = ()


def _coco(path: Path, options: Options) -> Iterator[Item]:
    content = _json(path)
    images = _list(path, content, "images")
    if "annotations" not in content:
        splits = {"train": ("train", "restval")}.get(options.split, (options.split,))
        for number, image in enumerate(images):
            sentences = image.get("sentences") if isinstance(image, dict) else None
            if options.split and isinstance(image, dict) and image.get("split") not in splits:
                continue
            for place, sentence in enumerate(sentences if isinstance(sentences, list) else [None]):

                def of_karpathy(image: Any = image, sentence: Any = sentence) -> tuple[Row, Row]:
                    fields = {"file_name": _string(image["filename"])}
                    return fields, _caption(sentence["raw"], sentence["sentid"], "image")

                yield f"image {number}, sentence {place}", of_karpathy
        return
    if options.split:
        raise DataError(f"{path}: has no splits; only Karpathy's dataset_coco.json has")
    known = [image for image in images if isinstance(image, dict)]
    files = {image.get("id"): image.get("file_name") for image in known}
    for number, entry in enumerate(_list(path, content, "annotations")):

        def of_coco(entry: Any = entry) -> tuple[Row, Row]:
            if entry["image_id"] not in files:
                raise Unusable("no such image", entry["image_id"])
            return {"file_name": _string(files[entry["image_id"]])}, _caption(entry["caption"], entry["id"], "image")

        yield f"annotation {number}", of_coco


def _vg(path: Path, options: Options) -> Iterator[Item]:
    # The file has five million regions, of whose entries three are needed.
    needed = ("region_id", "image_id", "phrase")
    content = _json(path, lambda found: tuple(map(found.get, needed)) if "phrase" in found else found)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of images with their regions")
    for number, image in enumerate(content):
        regions = image.get("regions") if isinstance(image, dict) else None
        for place, region in enumerate(regions if isinstance(regions, list) else [None]):

            def make(region: Any = region) -> tuple[Row, Row]:
                identity, image_id, phrase = region
                if image_id is None:
                    raise Unusable("no image_id", region)
                return {"image_id": image_id}, _caption(phrase, identity, "image")

            yield f"image {number}, region {place}", make


def _cc3m(path: Path, options: Options) -> Iterator[Item]:
    for number, line in enumerate(lines_of(path)):

        def make(line: str = line, number: int = number) -> tuple[Row, Row]:
            caption, address, *_ = line.split("\t")
            return {"index": number, "crc": zlib.crc32(address.strip().encode())}, _caption(caption, 0, "image")

        yield f"line {number + 1}", make


def _webvid(path: Path, options: Options) -> Iterator[Item]:
    columns = ("videoid", "page_dir", "name")
    for number, row in enumerate(_table(path, columns), start=2):

        def make(row: Any = row) -> tuple[Row, Row]:
            if not row["videoid"] or row["page_dir"] is None:
                raise Unusable("no videoid", row)
            return {"videoid": row["videoid"], "page_dir": row["page_dir"]}, _caption(row["name"], 0)

        yield f"line {number}", make


def _howto100m(path: Path, options: Options) -> Iterator[Item]:
    if path.suffix == ".csv":
        for number, row in enumerate(_table(path, ("start", "end", "text")), start=2):

            def of_csv(row: Any = row, number: int = number) -> tuple[Row, Row]:
                video = Path(_string(row["video_path"])).stem if "video_path" in row else path.stem
                return {"video": video}, _sentence(row["text"], number - 2, row["start"], row["end"])

            yield f"{path.name}, line {number}", of_csv
        return
    content = _json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected the start, end and text of the sentences of every video")
    for video, said in content.items():
        texts = said.get("text") if isinstance(said, dict) else None
        for place in range(len(texts) if isinstance(texts, list) else 1):

            def make(video: str = video, said: Any = said, place: int = place) -> tuple[Row, Row]:
                return {"video": video}, _sentence(said["text"][place], place, said["start"][place], said["end"][place])

            yield f"{video}, sentence {place}", make


def _msrvtt(path: Path, options: Options) -> Iterator[Item]:
    if path.suffix == ".csv":
        for number, row in enumerate(_table(path, ("video_id", "sentence")), start=2):

            def of_csv(row: Any = row) -> tuple[Row, Row]:
                return {"video": _string(row["video_id"])}, _caption(row["sentence"], 0)

            yield f"line {number}", of_csv
        return
    content = _json(path)
    if isinstance(content, dict) and "annotations" in content:
        if options.split:
            raise DataError(f"{path}: has no splits; choose by --videos")
        sentences, video, order = _list(path, content, "annotations"), "image_id", "id"
        kept = None
    else:
        sentences, video, order = _list(path, content, "sentences"), "video_id", "sen_id"
        splits = {"7k": ("train", "validate"), "val": ("validate",)}.get(options.split, (options.split,))
        videos = [entry for entry in _list(path, content, "videos") if isinstance(entry, dict)]
        kept = {entry.get("video_id") for entry in videos if entry.get("split") in splits} if options.split else None
    for number, entry in enumerate(sentences):

        def make(entry: Any = entry) -> tuple[Row, Row]:
            return {"video": _string(entry[video])}, _caption(entry["caption"], entry[order])

        if kept is None or not isinstance(entry, dict) or entry.get(video) in kept:
            yield f"sentence {number}", make


def _msvd(path: Path, options: Options) -> Iterator[Item]:
    counts: collections.Counter[str] = collections.Counter()
    for number, line in enumerate(lines_of(path), start=1):
        if line.startswith("#") or not line.strip():
            continue

        def make(line: str = line) -> tuple[Row, Row]:
            video, _, caption = line.strip().partition(" ")
            if not re.fullmatch(r".+_\d+_\d+", video):
                raise Unusable("no name such as VIDEO_START_END", video)
            counts[video] += 1
            return {"video": video}, _caption(caption, counts[video] - 1)

        yield f"line {number}", make


def _didemo(path: Path, options: Options) -> Iterator[Item]:
    content = _json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of descriptions")
    paragraphs: dict[str, list[str]] = {}
    for number, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("description"), str):

            def broken(entry: Any = entry) -> tuple[Row, Row]:
                raise Unusable("no description", entry)

            yield f"description {number}", broken
        else:
            paragraphs.setdefault(str(entry.get("video", "")), []).append(entry["description"].strip())
    for video, descriptions in paragraphs.items():

        def make(video: str = video, descriptions: Sequence[str] = tuple(descriptions)) -> tuple[Row, Row]:
            return {"video": _string(video)}, _caption(" ".join(filter(None, descriptions)), 0)

        yield video, make


def _questions(path: Path, options: Options, prefix: str) -> Iterator[Item]:
    for number, entry in enumerate(_json_or_lines(path)):

        def make(entry: Any = entry, number: int = number) -> tuple[Row, Row]:
            video = entry["video_id"]
            if options.mapping:
                name = f"vid{video}" if isinstance(video, int) else video
                if name not in options.mapping:
                    raise Unusable("video without a line in --mapping", name)
                fields = {"video": options.mapping[name]}
            else:
                fields = {"video": video if isinstance(video, str) else f"{prefix}{int(video)}"}
            question = {"qid": entry.get("id", number), "caption": _string(entry["question"]), "type": "video"}
            return fields, question | {"label": _string(entry["answer"])}

        yield f"question {number}", make


def _choices(path: Path, options: Options) -> Iterator[Item]:
    for number, entry in enumerate(_json_or_lines(path)):

        def make(entry: Any = entry, number: int = number) -> tuple[Row, Row]:
            texts = entry["options"]
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise Unusable("options are no list of texts", texts)
            row = {"qid": entry.get("qid", number), "title": entry.get("title") or "", "options": texts}
            if entry.get("answer") is not None:
                if not 0 <= int(entry["answer"]) < len(texts):
                    raise Unusable("answer is none of the options", entry["answer"])
                row["answer"] = str(int(entry["answer"]))
            return {"video": _string(entry["clip_name"])}, row | {"type": "video"}

        yield f"question {number}", make


def _caption(text: Any, order: Any, media: str = "video") -> Row:
    caption = " ".join(_string(text).split())
    return {"caption": caption, "type": media, "sen_id": order}


def _sentence(text: Any, order: int, start: Any, end: Any) -> Row:
    """Return the caption of a part of a video.

    Raises:
      Unusable: If the part is empty.
    """
    part = {"start": float(start), "end": float(end)}
    if not 0 <= part["start"] < part["end"] < float("inf"):
        raise Unusable("start is not before end", f"{start} and {end}")
    return _caption(text, order) | part


def _string(value: Any) -> str:
    """Return a text.

    Raises:
      Unusable: If it is none, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise Unusable("an empty or missing text", value)
    return value.strip()


def _list(path: Path, content: Any, key: str) -> list[Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{path}: expected an object with the list {key!r}")
    return found


def _json(path: Path, hook: Callable[[Row], Any] | None = None) -> Any:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file, object_hook=hook)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON ({error})") from None


def _json_or_lines(path: Path) -> list[Any]:
    """Return the entries of a JSON list, or one per line of a file that ends with `.jsonl`; None for a broken line."""
    if path.suffix != ".jsonl":
        found = _json(path)
        if not isinstance(found, list):
            raise DataError(f"{path}: expected a JSON list")
        return found
    entries = []
    for line in lines_of(path):
        try:
            entries.append(json.loads(line) if line.strip() else None)
        except (ValueError, RecursionError):
            entries.append(None)
    return entries


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file.

    Raises:
      DataError: If it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from (line.rstrip("\r\n") for line in file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected text in UTF-8 ({error})") from None


def _table(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str | None]]:
    """Yield the rows of a csv file, which may have millions."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            if absent := [column for column in columns if column not in found]:
                raise DataError(f"{path}: no column {absent[0]!r}; it has {', '.join(found) or 'none'}")
            yield from reader
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a csv file in UTF-8 ({error})") from None


SETS = {
    "coco": Set(_coco, "{file_name}", ("train", "val", "test")),
    "vg": Set(_vg, "{image_id}.jpg"),
    "cc3m": Set(_cc3m, "{index:07d}.jpg"),
    "webvid": Set(_webvid, "{page_dir}/{videoid}.mp4"),
    "howto100m": Set(_howto100m, "{video}.mp4"),
    "msrvtt": Set(_msrvtt, "{video}.mp4", ("train", "val", "test", "7k")),
    "msvd": Set(_msvd, "{video}.avi"),
    "didemo": Set(_didemo, "{video}"),
    "msrvtt_qa": Set(functools.partial(_questions, prefix="video"), "{video}.mp4"),
    "msvd_qa": Set(functools.partial(_questions, prefix="vid"), "{video}.avi"),
    "msrvtt_mc": Set(_choices, "{video}.mp4"),
}
"""Forms by the name of the set."""
