"""Preparation of shards by Apache Beam: `--beam_pipeline_options`, on one machine, Dataflow, Flink or Spark."""

from collections.abc import Callable, Sequence

from vlm_jax.errors import DataError, MissingPackageError


def make_all(function: Callable[[object], None], tasks: Sequence[object], options: str) -> None:
    """Call a function on every task, in a pipeline with one element per task.

    Beam may call the function more than once for an element, even at the same time. Every call must therefore have the
    same effect, such as writing a file under a temporary name and renaming it.

    Args:
      function: Function that the workers can import.
      tasks: Arguments of the calls, picklable.
      options: Options of the pipeline as TFDS takes them, such as `runner=DirectRunner,direct_num_workers=8`.

    Raises:
      MissingPackageError: if Beam is not installed.
      DataError: for options that Beam rejects.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise MissingPackageError("--beam_pipeline_options needs Apache Beam: pip install 'vlm_jax[beam]'") from None
    words = [f"--{word.strip().removeprefix('--')}" for word in options.split(",") if word.strip()]
    try:
        parsed = PipelineOptions(words, save_main_session=False)
        pipeline = apache_beam.Pipeline(options=parsed)
    except (ValueError, SystemExit) as error:
        raise DataError(f"--beam_pipeline_options {options!r}: {error}") from None
    with pipeline:
        elements = pipeline | "shards" >> apache_beam.Create(tasks, reshuffle=True)
        _ = elements | "make" >> apache_beam.Map(function)
