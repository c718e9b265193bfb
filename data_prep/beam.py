"""Making shards by Apache Beam: on one machine, Dataflow, Flink or Spark. Used by `--beam_pipeline_options`."""

from collections.abc import Callable, Sequence

from vlm_jax.errors import DataError, MissingPackageError


def make_all(function: Callable[[object], None], tasks: Sequence[object], options: str) -> None:
    """Calls a function on every task, in a pipeline whose elements they are.

    Beam may call it again for an element, or twice at once: its effect has to be the same every time, such as a file
    that it renames to its place.

    Args:
      function: Importable by the workers.
      tasks: What it is called on, picklable.
      options: Of the pipeline, such as `runner=DirectRunner,direct_num_workers=8`, as TFDS takes them.

    Raises:
      ImportError: where Beam is not installed.
      DataError: for options that Beam does not take.
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
