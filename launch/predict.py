"""Find moments of videos, videos by texts, answers to questions, or the actions of people.

    python launch/predict.py --checkpoint RUN --video film.mp4 --query "a bird sings" [--query ...] [--figure FILE.png]
    python launch/predict.py --checkpoint RUN --filelist FILE [--output DIR] [--config.predict.split=validation ...]
    python launch/predict.py --checkpoint RUN --video film.mp4 [--boxes FILE.csv] [--video_output FILE.mp4]
    python launch/predict.py --checkpoint RUN --filelist FILE [--boxes FILE.csv] [--output DIR]
    python launch/predict.py --checkpoint RUN --search "a bird sings" --videos FOLDER [--index FILE.npz] [--figure ...]
    python launch/predict.py --checkpoint RUN --video film.mp4 --question "what sings?" [--option "a bird" --option ...]
    python launch/predict.py --checkpoint RUN --filelist QUESTIONS.jsonl [--videos FOLDER] [--output DIR]

The first form needs only the video. The run's config.json names the checkpoints that made its training features; they
make the features of the video, too. The second form answers a list of prepared videos: names, one per line or a JSON
list, or JSON or JSONL of {video, query, qid}. It needs no ground truth. It writes `predictions.jsonl`, one line per
sentence with scored segments, best first, and the reference's own result file.

Without sentences, and for a run that detects actions, the last two forms find people at every second of one film, or of
a list of video files, and their actions. They write `predictions.jsonl`, one line per second, and `detections.csv`, the
scores of all actions in AVA's form.

The last three forms are for runs that embed videos and texts, or answer questions. A file list of questions is JSON or
JSONL of {video, question, options, qid, start, end}, of which only the video is always needed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _cli

from vlm_jax import inference
from vlm_jax.annotations import AnnotationError
from vlm_jax.errors import ConfigError
from vlm_jax.figures import Shown, draw_ranked, draw_timeline, quoted
from vlm_jax.predictor import Predictor
from vlm_jax.text_features import TextVectors
from vlm_jax.video.listing import videos_of

Request = dict[str, Any]
Skipped = list[tuple[str, str, str]]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="RUN, RUN@best, RUN@STEP, a converted one, released:NAME")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--video", type=Path, help="a video file")
    asked.add_argument("--filelist", type=Path, help="videos of the prepared data, or sentences about them")
    asked.add_argument("--search", action="append", help="a text to find --videos by; may be repeated")
    parser.add_argument(
        "--videos", nargs="+", help="folders and files to search, or the folder of a file list's videos"
    )
    parser.add_argument("--index", type=Path, help="file of the encoded videos, made from --videos if it is missing")
    parser.add_argument("--question", help="a question about --video")
    parser.add_argument("--option", action="append", help="an option to choose from; may be repeated")
    parser.add_argument("--query", action="append", help="a sentence about --video; may be repeated")
    parser.add_argument("--output", type=Path, help="folder for the answers (default with --filelist: predictions)")
    parser.add_argument("--figure", type=Path, help="picture to write of what was found in --video or --videos")
    parser.add_argument(
        "--top_k", type=int, default=5, help="number of segments, videos or answers per text (default: %(default)s)"
    )
    parser.add_argument("--boxes", type=Path, help="csv of people: video, second, x1, y1, x2, y2[, score] in [0, 1]")
    parser.add_argument(
        "--detector", default="opencv", help="opencv, or frame for the whole frame (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="smallest score of an action (default: %(default)s)"
    )
    parser.add_argument("--video_output", type=Path, help=".mp4 to write: --video with people and their actions")
    parser.add_argument("--average", action="store_true", help="use the running average of the parameters")
    parser.add_argument("--vectors", type=Path, help=".npz of launch/extract_text_features.py, by qid")
    parser.add_argument("--video_checkpoint", default="", help="checkpoint of video features or bank, if it was moved")
    parser.add_argument("--text_checkpoint", default="", help="checkpoint of the text features, if it was moved")
    parser.add_argument("--vocabulary", default="", help="word list of the text encoder, if its config names none")
    arguments, overrides = _cli.parse_overrides(parser)
    if arguments.top_k < 1:
        raise ConfigError(f"--top_k: expected at least 1, found {arguments.top_k}")
    if arguments.query and not arguments.video:
        raise ConfigError("--video and --query belong together: a video, and what to look for in it")
    for name, wanted in (("figure", arguments.video or arguments.search), ("video_output", arguments.video)):
        if getattr(arguments, name) and not wanted:
            raise ConfigError(f"--{name}: draws one --video")
    check_forms(arguments)
    requests, skipped = read_requests(arguments.filelist) if arguments.filelist else ([], [])
    _cli.compile_cache()
    predictor = inference.load(
        arguments.checkpoint,
        average=arguments.average,
        video_checkpoint=arguments.video_checkpoint,
        text_checkpoint=arguments.text_checkpoint,
        vocabulary=arguments.vocabulary,
        overrides=overrides,
    )
    check_use(predictor, arguments)
    if arguments.search:
        search_videos(predictor, arguments)
    elif hasattr(predictor, "detect"):
        detect_people(predictor, arguments, requests, skipped)
    elif hasattr(predictor, "answer"):
        answer_questions(predictor, arguments, requests, skipped)
    elif arguments.video:
        answer_video(predictor, arguments)
    else:
        answer_list(predictor, arguments, requests, skipped)


def check_forms(arguments: argparse.Namespace) -> None:
    """Check that the options that belong together are given together.

    Raises:
      ConfigError: if one is missing.
    """
    if arguments.search and not (arguments.videos or (arguments.index and arguments.index.is_file())):
        raise ConfigError("--search needs --videos: folders and files to search")
    if arguments.index and not arguments.search:
        raise ConfigError("--index belongs to --search")
    if (arguments.question is not None or arguments.option) and not arguments.video:
        raise ConfigError("--question and --option ask about one --video")
    if arguments.videos and not arguments.search and (arguments.video or len(arguments.videos) > 1):
        raise ConfigError("--videos: expected --search, or a --filelist whose videos lie in one folder")


def check_use(predictor: Predictor, arguments: argparse.Namespace) -> None:
    """Check that the system answers what the options ask.

    Raises:
      ConfigError: if it does not.
    """
    system = f"{arguments.checkpoint}: {predictor.config.task}"
    if arguments.search:
        if not hasattr(predictor, "search"):
            raise ConfigError(f"{system} does not search videos; leave out --search")
        if arguments.index and not hasattr(predictor, "open_index"):
            raise ConfigError(f"--index: {system} keeps no index; leave it out")
        return
    if (arguments.question is not None or arguments.option) and not hasattr(predictor, "answer"):
        raise ConfigError(f"{system} answers no questions; leave out --question and --option")
    if arguments.videos and not hasattr(predictor, "answer"):
        raise ConfigError(
            f"--videos: {system} answers no questions about a folder's videos; give --search, or leave it out"
        )
    if hasattr(predictor, "detect"):
        if arguments.query:
            raise ConfigError(f"{system} finds people and their actions, not moments; leave out --query")
        return
    for name in ("boxes", "video_output"):
        if getattr(arguments, name):
            raise ConfigError(f"--{name}: {system} finds no people")
    if hasattr(predictor, "answer"):
        if arguments.query or arguments.figure:
            raise ConfigError(f"{system} finds no moments; leave out --{'query' if arguments.query else 'figure'}")
        if arguments.video and arguments.question is None and not arguments.option:
            raise ConfigError("--video and --question belong together: a video, and what is asked about it")
        return
    if not hasattr(predictor, "ground"):
        raise ConfigError(f"{system} finds no moments" + "; give --search" * hasattr(predictor, "search"))
    if arguments.video and not arguments.query:
        raise ConfigError("--video and --query belong together: a video, and what to look for in it")


def detect_people(
    predictor: Predictor, arguments: argparse.Namespace, requests: list[Request], skipped: Skipped
) -> None:
    """Print, write and draw the people of films and their actions."""
    options = {"detector": arguments.detector, "threshold": arguments.threshold}
    films = [{"video": str(arguments.video)}] if arguments.video else requests
    found = predictor.predict(films, arguments.boxes, **options)
    skipped += found.missing
    if not found.lines:
        name, reason, place = skipped[0]
        raise ConfigError(f"{name}: {reason} ({place})")
    if arguments.video:
        for line in found.lines:
            for person in line["people"]:
                actions = ", ".join(f"{action['name']} {action['score']:.2f}" for action in person["actions"])
                box = " ".join(f"{edge:.2f}" for edge in person["box"])
                print(f"{line['second']:6d} s  {box}  {actions or 'no action reaches the threshold'}")
    if arguments.output or not arguments.video:
        output = arguments.output or Path("predictions")
        write_lines(output, found.lines, found.files)
        _cli.report_skipped(output / "skipped.csv", skipped)
        print(f"{output}: {len(found.lines)} seconds of {len({line['video'] for line in found.lines})} films")
    alone = (
        sum(line["people"][0]["found_by"] == "frame" for line in found.lines) if arguments.detector != "frame" else 0
    )
    if alone:
        print(f"{alone} of {len(found.lines)} seconds: {arguments.detector} found nobody, the whole frame was used")
    if arguments.figure or arguments.video_output:
        predictor.draw(arguments.video, found.lines, figure=arguments.figure, film=arguments.video_output)
        for path in filter(None, (arguments.figure, arguments.video_output)):
            print(f"{path}: people and their actions")


def search_videos(predictor: Predictor, arguments: argparse.Namespace) -> None:
    """Print the videos that fit texts; write and draw them if the options ask for it."""
    videos = arguments.videos
    if arguments.index:
        videos = predictor.open_index(arguments.index, arguments.videos or ())
    found = predictor.search(arguments.search, videos, arguments.top_k)
    lines = []
    for text, matches in zip(arguments.search, found, strict=True):
        print(text)
        for place, match in enumerate(matches, start=1):
            span = "" if match.end is None else f"  {match.start:.1f} to {match.end:.1f} s"
            scores = "  ".join(
                f"{name} {score:.3f}" for name, score in (match.levels or {"score": match.score}).items()
            )
            print(f"  {place}. {match.video}{span}   {scores}")
        lines.append({"text": text, "best": [{**match._asdict(), **match.levels} for match in matches]})
    for match in (match for line in lines for match in line["best"]):
        del match["levels"]
    if arguments.output:
        write_lines(arguments.output, lines, {})
    if arguments.figure:
        if not arguments.videos:
            raise ConfigError("--figure: draws the files of --videos")
        paths = videos_of(arguments.videos)
        shown = [[Shown(paths[match.video], match.start, match.end, match.score) for match in own] for own in found]
        draw_ranked(list(zip(map(quoted, arguments.search), shown, strict=True)), arguments.figure)
        print(f"{arguments.figure}: frames of the best videos")


def answer_questions(
    predictor: Predictor, arguments: argparse.Namespace, requests: list[Request], skipped: Skipped
) -> None:
    """Print the answers to the question about one video, or write those of a list."""
    if arguments.video:
        request = {"video": str(arguments.video), "query": arguments.question or "", "options": arguments.option}
        requests = [request]
    elif arguments.videos:
        requests = [{**request, "video": str(Path(arguments.videos[0]) / request["video"])} for request in requests]
    found = predictor.predict(requests, arguments.top_k)
    skipped += found.missing
    if not found.lines:
        raise ConfigError(f"nothing can be answered; {': '.join(map(str, skipped[0][1:]))}")
    if arguments.video:
        print(arguments.question or "which option?")
        for place, answer in enumerate(found.lines[0]["best"], start=1):
            print(f"  {place}. {answer['answer']}   {answer['score']:.3f}")
    if arguments.output or not arguments.video:
        output = arguments.output or Path("predictions")
        write_lines(output, found.lines, found.files)
        videos = len({line["video"] for line in found.lines})
        print(f"{output}: {len(found.lines)} questions about {videos} videos ({arguments.checkpoint})")
        _cli.report_skipped(output / "skipped.csv", skipped)


def answer_video(predictor: Predictor, arguments: argparse.Namespace) -> None:
    """Print the moments of one video; write and draw them if the options ask for it."""
    found = predictor.ground(arguments.video, arguments.query, top_k=arguments.top_k)
    lines = []
    for number, (query, moments) in enumerate(zip(arguments.query, found, strict=True)):
        print(query)
        for place, (start, end, score) in enumerate(moments, start=1):
            print(f"  {place}. {start:8.1f} to {end:.1f} s   {score:.3f}")
        if not moments:
            print("  no moment: the sentence has no word that the text encoder knows")
        line = {"qid": str(number), "video": arguments.video.name, "query": query}
        lines.append(line | {"seconds": [list(moment) for moment in moments]})
    if arguments.output:
        write_lines(arguments.output, lines, {})
    if arguments.figure:
        draw_timeline(lines, arguments.video.parent, arguments.figure, len(lines))
        print(f"{arguments.figure}: the moments along the video")


def answer_list(predictor: Predictor, arguments: argparse.Namespace, requests: list[Request], skipped: Skipped) -> None:
    """Answer a list of prepared videos and sentences about them, and write the answers."""
    if arguments.vectors:
        add_vectors(requests, TextVectors(arguments.vectors))
    found = predictor.predict(requests, arguments.top_k)
    skipped += found.missing
    if not found.lines:
        name, reason, place = skipped[0]
        raise ConfigError(f"{arguments.filelist}: nothing can be predicted; {name}: {reason} ({place})")
    output = arguments.output or Path("predictions")
    write_lines(output, found.lines, found.files)
    videos = len({line["video"] for line in found.lines})
    print(f"{output}: {len(found.lines)} sentences of {videos} videos ({arguments.checkpoint})")
    _cli.report_skipped(output / "skipped.csv", skipped)


def write_lines(output: Path, lines: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> None:
    """Write predictions.jsonl and further files."""
    output.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for name, content in {"predictions.jsonl": text, **files}.items():
        (output / name).write_text(content, encoding="utf-8")


def read_requests(path: Path) -> tuple[list[Request], Skipped]:
    """Return the requests of a file list (see `vlm_jax.predictor.Request`), and its entries that cannot be used.

    Raises:
      AnnotationError: if the file cannot be read, or has no request.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not a UTF-8 file ({error})") from None
    requests: list[Request] = []
    skipped: Skipped = []
    asked: dict[str, int] = {}
    seen = set()
    for number, entry in enumerate(_entries(path, text), start=1):
        entry = {"video": entry} if isinstance(entry, str) else entry
        keys = (("video", "vid"), ("query", "sentence", "question"), ("qid",))
        video, query, qid = (_word(entry, *names) for names in keys)
        request, fault = {"video": video, **_asked(entry)}, _fault(entry)
        if query.strip() or "options" in request:
            request |= {"query": query, "qid": qid or f"{video}#{asked.get(video, 0)}"}
            asked[video] = asked.get(video, 0) + 1
        # Sentences are told apart by qid, a video without a sentence by its own name.
        key = ("qid", request["qid"]) if "qid" in request else ("video", video)
        if not video:
            skipped.append((f"entry {number}", "no video", json.dumps(entry)[:80]))
        elif fault:
            skipped.append((f"entry {number}", fault, json.dumps(entry)[:80]))
        elif key in seen:
            skipped.append((f"entry {number}", "duplicate id", request.get("qid", video)))
        else:
            seen.add(key)
            requests.append(request)
    if not requests:
        raise AnnotationError(
            f"{path}: an empty list; expected videos, one a line, or JSON of {{video, query}}"
            + (f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else "")
        )
    return requests, skipped


def _asked(entry: Any) -> dict[str, Any]:
    """Return the part of a video and the options that an entry names."""
    found = entry if isinstance(entry, dict) else {}
    return {key: found[key] for key in ("start", "end", "options") if found.get(key) is not None}


def _fault(entry: Any) -> str:
    """Return what is wrong with the part of a video and the options of an entry; '' if nothing is."""
    asked = _asked(entry)
    options = asked.pop("options", [""])
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        return "options are no list of texts"
    if not all(
        isinstance(time, int | float) and not isinstance(time, bool) and 0 <= time < 1e8 for time in asked.values()
    ):
        return "start or end is no time in seconds"
    return ""


def _entries(path: Path, text: str) -> Sequence[Any]:
    begin = text.lstrip()[:1]
    try:
        if begin == "[":
            return json.loads(text)
        if begin == "{":
            try:
                return [json.loads(text)]
            except ValueError:
                return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise AnnotationError(f"{path}: neither JSON nor JSONL ({error})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _word(entry: Any, *names: str) -> str:
    """Return the value of the first of some keys that an entry has, as text; empty if it has none."""
    found = next((entry[name] for name in names if name in entry), "") if isinstance(entry, dict) else ""
    return str(found) if isinstance(found, str | int) else ""


def add_vectors(requests: Sequence[Request], vectors: TextVectors) -> None:
    """Add the vector of its qid to every request that has one."""
    for request in requests:
        if request.get("qid") in vectors:
            request |= {"vector": vectors[request["qid"]], "source": vectors.source}


if __name__ == "__main__":
    _cli.run(main)
