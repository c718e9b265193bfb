"""Configurations of the reference become configs of ours."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_jax import config as configs
from vlm_jax.errors import ConfigError
from vlm_jax.systems.snps3 import reference_config, reference_keys
from vlm_jax.task import get_task
from vlm_jax.train.optimizer import parameter_names

ROOT = Path(__file__).parents[3]
NORM = "{type: GroupNormalize, params: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}"
SCALED = "{type: custom_transforms, params: {mode: sequential, transforms: [{type: ImageLongsideScaleAndPad, params: "
SCALED += "{max_size: SIZE, random_scale: SCALE, pad: false}}, " + NORM + "]}}"
BASE = f"""
task_attributes:
  univl_task:
    dataset_size_proportional_sampling: true
    dataset_attributes:
      SECTION:
        pretraining: true
        data_root_dir: ../data
        annotations: {{train: [a.jsonl], val: b.jsonl, test: b.jsonl}}
        videos: {{train: v, val: v, test: v}}
        use_videos: true
        train_ensemble_n_clips: 2
        test_ensembel_n_clips: 2
        num_frm: 1
        processors:
          train_frame_processor: {SCALED.replace("SIZE", "768").replace("SCALE", "true")}
          test_frame_processor: {SCALED.replace("SIZE", "768").replace("SCALE", "false")}
          caption_processor:
            type: masked_bert_tokenizer
            params:
              max_seq_length: 30
              mask_probability: PROBABILITY
              trim_start_token: false
              tokenizer_config: {{type: bert-base-uncased, params: {{model_type: bert}}}}
              preprocessor: {{type: simple_sentence, params: {{}}}}
model_attributes:
  univl:
    training_head_type: HEAD
    training_stage: stage1+stage2
    hidden_size: &size 768
    with_text_encoder: true
    text_encoder:
      type: PretrainedTransformerEncoder
      params: {{gradient_checkpointing: false, num_hidden_layers: 12, vocab_size: 30522, hidden_size: *size}}
    with_cross_encoder: true
    cross_encoder: {{params: {{num_hidden_layers: 3}}}}
    with_temporal_encoder: false
optimizer_attributes:
  type: AdamW
  params: {{lr: 5e-5, betas: [0.9, 0.98], weight_decay: 1e-2}}
training_parameters:
  clip_gradients: true
  max_grad_l2_norm: 5.0
  lr_scheduler: true
  lr_epochs: [10]
  max_epochs: 20
  batch_size: 16
  test_batch_size: 64
  snapshot_interval: 5000
  max_ckpt_num: 10
"""
WORDS = """
task_attributes:
  univl_task:
    dataset_attributes:
      video_text_pretrain:
        add_false_caption: true
        processors:
          caption_processor:
            params:
              random_truncate: true
              intra_VTM:
                IW_MLM: false
                HT_words_count_file_dir: ${WORDS_DIR}/count.json
                vocab_same_lema_dir: $WORDS_DIR/simi.json
                words_top_k: 3000
model_attributes:
  univl:
    pretraining_heads:
      itm: {type: ITM, params: {hidden_size: 768}}
      Vision_Word_Matching: false
      MASK_All_IWords_info:
        HT_words_count_file_dir: ${WORDS_DIR}/count.json
        words_top_k: 3000
        Word_Chosen_Num: 3
        VWM_count_stage: after
    hard_example_mining: false
    re_weight_method: median
    re_sample_method: nearliest
"""
SWIN = """
task_attributes:
  univl_task:
    dataset_attributes:
      SECTION:
        processors:
          train_frame_processor: {type: pyvideo_transform, params: {mode: train, crop_size: 224, aug_type: randaug}}
          test_frame_processor: {type: pyvideo_transform, params: {mode: val, crop_size: 224, aug_type: randaug}}
model_attributes:
  univl:
    with_image_encoder: true
    image_encoder:
      type: VideoSwinEncoder
      params: {model_path: None, gradient_checkpointing: [false, false, false, false], pretrained: true, freeze: false}
"""
PVT = """
model_attributes:
  univl:
    image_encoder: {type: DetrBatchPVTImageEncoder, params: {gradient_checkpointing: [true, true, true, true]}}
"""
MAIN = """
includes:
- ../base.yml
- ./words.yml
- ./network.yml
training_parameters:
  lr_epochs: []
  lr_steps: [110000]
  use_warmup: true
  warmup_factor: 0.1
  warmup_iterations: 2000
  max_iterations: 130000
  batch_size: 128
"""
ENVIRONMENT = {"WORDS_DIR": "/words"}


def write(folder, head="video_pretraining", network=SWIN, main=MAIN, words=WORDS, **replaced):
    section = reference_keys.DATASETS[reference_keys.HEADS[head]]
    (folder / "configs").mkdir(exist_ok=True)
    texts = {"base.yml": BASE, "configs/words.yml": words, "configs/network.yml": network, "configs/main.yml": main}
    for name, text in texts.items():
        text = text.replace("SECTION", section).replace("HEAD", head)
        text = text.replace("PROBABILITY", "0.15" if head == "video_pretraining" else "0")
        for old, new in replaced.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    return folder / "configs" / "main.yml"


def convert(path, *pairs, processes=8):
    return reference_keys.convert(reference_config.merge(path, pairs, ENVIRONMENT), processes)


def test_pretraining(tmp_path):
    found = convert(write(tmp_path))
    expected = {
        "head": "pretraining",
        "batch_size": 128,
        "batch_groups": 8,
        "steps": 130000,
        "epochs": 0,
        "frames.clips": 2,
        "frames.form": "crop",
        "text.length": 30,
        "words.masking": False,
        "words.matching": "",
        "momentum.enabled": True,
        "optimizer.weight_decay": 0.01,
        "optimizer.clip_norm": 5.0,
        "schedule.learning_rate": 5e-5,
        "schedule.warmup_steps": 2000,
        "schedule.warmup_start": 0.1,
        "schedule.boundary_steps": (110000,),
        "schedule.boundary_epochs": (),
        "checkpoint.best_metric": "val/total_loss",
        "checkpoint.best_is_lowest": True,
        "model.dtype": "float32",
        "model.remat": False,
    }
    assert {key: found.keys[key] for key in expected} == expected
    assert found.network == "swin"
    assert found.evaluators == {"val": ("loss", "val")}
    assert any("epochs is left out" in note for note in found.notes)
    assert "dataset_attributes.annotations.train" in found.ignored
    assert not any(key.startswith("training_parameters.") for key in found.ignored), "defaults are not listed"
    assert "model_attributes.univl.cross_encoder.params.num_hidden_layers" in found.ignored


def test_pairs_of_the_command_line(tmp_path):
    section = "task_attributes.univl_task.dataset_attributes.video_text_pretrain."
    words = "model_attributes.univl.pretraining_heads."
    pairs = (
        (f"{section}processors.caption_processor.params.intra_VTM.IW_MLM", "True"),
        (f"{words}Vision_Word_Matching", "True"),
        (f"{words}MASK_All_IWords_info.VWM_count_stage", "both"),
        (f"{words}MASK_All_IWords_info.Word_Chosen_Num", "5"),
        ("model_attributes.univl.hard_example_mining", "true"),
        ("training_parameters.enable_amp", "True"),
        ("training_parameters.resume_file", "/runs/a.ckpt"),
        ("optimizer_attributes.params.lr", "1e-5"),
        ("optimizer_attributes.params.lr", "2e-5"),
    )
    keys = convert(write(tmp_path), *pairs).keys
    assert keys["words.masking"]
    assert (keys["words.matching"], keys["words.chosen"]) == ("both", 5)
    assert (keys["words.ranks"], keys["words.groups"]) == ("/words/count.json", "/words/simi.json")
    assert (keys["loss.hard_mining"], keys["loss.reweight"]) == ("nearliest", True)
    assert keys["model.dtype"] == "bfloat16"
    assert keys["init_from"] == ("/runs/a.ckpt",)
    assert keys["schedule.learning_rate"] == 2e-5


def test_whole_frames(tmp_path):
    found = convert(write(tmp_path, network=PVT))
    assert found.network == "pvt"
    assert found.keys["frames.form"] == "whole"
    assert found.keys["frames.max_size"] == 768
    assert found.keys["frames.random_scale"]
    assert found.keys["model.remat"]
    path = "task_attributes.univl_task.dataset_attributes.video_text_pretrain.processors.test_frame_processor.params"
    found = convert(tmp_path / "configs" / "main.yml", (f"{path}.transforms.[0].params.max_size", "448"))
    assert "evaluation has 448 pixels" in found.notes[0]


def test_epochs_of_the_schedule(tmp_path):
    main = "includes: [../base.yml, ./words.yml, ./network.yml]\ntraining_parameters: {lr_epochs: [5], batch_size: 8}\n"
    keys = convert(write(tmp_path, main=main)).keys
    assert (keys["steps"], keys["epochs"]) == (0, 20)
    assert (keys["schedule.boundary_steps"], keys["schedule.boundary_epochs"]) == ((), (5,))
    assert keys["schedule.warmup_steps"] == 0


def test_fine_tuning(tmp_path):
    main = MAIN + "  monitored_metric: val/l2_simi_t2v-mean_recall\n  metric_minimize: false\n"
    main += "model_attributes: {univl: {encoder_lr_decay: 0.01}}\n"
    found = convert(write(tmp_path, "video_text_retrieval", main=main, words="{}"))
    assert found.evaluators == {"val": ("retrieval", "val"), "test": ("retrieval", "test")}
    assert found.keys["checkpoint.best_metric"] == "val/l2_simi_t2v-mean_recall"
    assert not found.keys["checkpoint.best_is_lowest"]
    config = configs.load(str(ROOT / "configs/snps3_retrieval_msrvtt.py:smoke"))
    names = parameter_names(get_task(config).abstract_variables()["params"])
    groups = found.keys["optimizer.groups"]
    chosen = {name: next((g[1:] for g in groups if re.search(g[0], name)), None) for name in names}
    assert chosen["bert/layer_0/query/kernel"] == chosen["visual/img_fc_0/kernel"] == (0.01, 0.01)
    assert chosen["bert/pooler/dense/kernel"] == (0.01, 0.01)
    assert chosen["bert/layer_0/output_norm/scale"] == chosen["visual/img_fc_0/bias"] == (0.01, 0.0)
    assert chosen["visual/network/norm/scale"] == (0.01, 0.01), "norms of the visual network are decayed"
    assert chosen["similarity/score/bias"] == chosen["bert/cross_pooler/dense/bias"] == (1.0, 0.0)
    assert chosen["similarity/hidden/kernel"] is chosen["bert/cross_pooler/dense/kernel"] is None


@pytest.mark.parametrize("head", reference_keys.HEADS)
def test_runs_start_from_published_files(tmp_path, head):
    path = write(tmp_path, head, words=WORDS if head == "video_pretraining" else "{}")
    text = (tmp_path / "base.yml").read_text()
    (tmp_path / "base.yml").write_text(text.replace("num_hidden_layers: 12", "num_hidden_layers: 12, pretrained: true"))
    found = convert(path)
    assert found.keys["init_from"] == ("released:bert_base_uncased", "released:video_swin_snps3")
    config = configs.load(str(ROOT / "configs/snps3_retrieval_msrvtt.py:smoke"))
    config.head = found.keys["head"]
    names = parameter_names(get_task(config).abstract_variables()["params"])
    fresh = {name for name in names if any(re.search(each, name) for each in found.keys["init_fresh"])}
    assert all(any(re.search(each, name) for name in names) for each in found.keys["init_fresh"])
    assert {name for name in names if not name.startswith(("bert/", "visual/network/"))} == fresh
    file = tmp_path / "configs" / "network.yml"
    file.write_text(file.read_text().replace("model_path: None", "model_path: /my/swin.pt"))
    assert convert(path).keys["init_from"][1] == "/my/swin.pt"
    assert convert(path, ("training_parameters.resume_file", "a.ckpt")).keys["init_from"] == ("a.ckpt",)


def test_questions_and_choices(tmp_path):
    main = MAIN + "  monitored_metric: accuracy\nmodel_attributes: {univl: {num_labels: 1000, encoder_lr_decay: 0.5}}\n"
    found = convert(write(tmp_path, "video_text_classification", main=main, words="{}"))
    assert found.keys["model.num_answers"] == 1000
    assert found.keys["checkpoint.best_metric"] == "val/accuracy"
    assert not found.keys["checkpoint.best_is_lowest"], "the reference's file minimises it by mistake"
    assert "optimizer.groups" not in found.keys, "questions train all parameters at one rate"
    assert not found.keys["momentum.enabled"]
    found = convert(write(tmp_path, "video_multi_choice_qa", main=main, words="{}"))
    assert found.evaluators["test"] == ("choices", "test")
    assert found.keys["optimizer.groups"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("training_parameters.gradient_accumulation_steps", "2"), "gradient_accumulation_steps: only 1 is supported"),
        (("model_attributes.univl.training_head_type", "x"), "training_head_type: expected one of video_pretraining"),
        (("model_attributes.univl.image_encoder.type", "ViT"), "image_encoder.type: expected one of VideoSwinEncoder"),
        (("training_parameters.batch_size", "12"), "batch_size: 12 cannot be divided over 8 processes"),
        (("training_parameters.batch_size", "many"), "batch_size: expected int, found 'many'"),
        (("training_parameters.batch_size", "True"), "batch_size: expected int, found True"),
        (("optimizer_attributes.params.betas", "[0.9]"), "betas: expected two numbers"),
        (("training_parameters.lr_schedule", "1"), "training_parameters.lr_schedule: no such key"),
        (("training_parameters", "1"), "training_parameters: is a section"),
        (("model_attributes.univl.with_temporal_encoder", "True"), "with_temporal_encoder: only False is supported"),
    ],
)
def test_values_that_cannot_be_converted(tmp_path, pair, message):
    with pytest.raises(ConfigError, match=message):
        convert(write(tmp_path), pair)


def test_unknown_keys_are_named(tmp_path):
    main = MAIN + "  learning_rate_of_my_own: 1\nmodel_attributes: {univl: {extra: {depth: 2}}}\n"
    with pytest.raises(ConfigError) as caught:
        convert(write(tmp_path, main=main))
    assert str(caught.value) == (
        "unknown keys: training_parameters.learning_rate_of_my_own, model_attributes.univl.extra.depth"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("includes: [./missing.yml]", "missing.yml: no such file"),
        ("includes: [./main.yml]", "main.yml: includes itself"),
        ("includes: 3", "includes: expected a list of files"),
        ("- a\n- b", "expected sections such as training_parameters, found list"),
        ("", "expected sections such as training_parameters, found NoneType"),
        ("a: [", "main.yml: expected yml"),
        ("a: !!python/object/apply:os.system [ls]", "main.yml: expected yml"),
        (b"\xff\xfe", "main.yml: expected text in UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "main.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        reference_config.merge(path)
    assert "\n" not in str(caught.value)


def test_environment_in_files(tmp_path):
    path = tmp_path / "main.yml"
    path.write_text("training_parameters: {batch_size: $SIZE, save_dir: '${HERE}/$OTHER/x$$'}")
    found = reference_config.merge(path, (), {"SIZE": "32", "HERE": "/runs"})["training_parameters"]
    assert found["batch_size"] == 32
    assert found["save_dir"] == "/runs/$OTHER/x$$"


SCRIPT = """
export PYTHONPATH=`pwd`:$PYTHONPATH
# a comment with 'quotes
CONFIG=configs/main.yml
SAVE_DIR="/my runs"
CUDA_VISIBLE_DEVICES=1 \\
python -m antmmf.utils.launch \\
    --nproc_per_node=4 --master_port=12 prj/run.py \\
    --config ${CONFIG} \\
    training_parameters.batch_size 64 \\
    training_parameters.save_dir ${SAVE_DIR}/test
"""


def test_scripts(tmp_path):
    path = write(tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.sh").write_text(SCRIPT)
    script = reference_config.read_script(tmp_path / "scripts" / "run.sh")
    assert script.file == path
    assert script.processes == 4
    assert script.pairs == [
        ("training_parameters.batch_size", "64"),
        ("training_parameters.save_dir", "/my runs/test"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo", "expected a line that starts run.py with --config"),
        ("python run.py --config", "expected a line that starts run.py with --config"),
        ("python run.py --config a.yml key", "'key' has no value; expected pairs KEY VALUE"),
        ("python run.py --config a.yml --key 3", "'--key' is no key of the reference"),
        ("python 'run.py", "cannot be read as a shell script"),
        ("launch --nproc_per_node=x run.py --config a.yml", "--nproc_per_node: expected a number, found 'x'"),
    ],
)
def test_scripts_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "run.sh"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        reference_config.read_script(path)


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / "launch/convert_config.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={"WORDS_DIR": "w", "PYTHONPATH": str(ROOT)}
    )


def test_the_command_line_comes_before_the_script_and_this_before_the_file(tmp_path):
    write(tmp_path, network=PVT)
    (tmp_path / "scripts").mkdir()
    script = SCRIPT + "    # end\n"
    script = script.replace("batch_size 64", "batch_size 64 training_parameters.log_interval 7")
    (tmp_path / "scripts" / "run.sh").write_text(script)
    words = "--script scripts/run.sh --output mine.py --data data/a training_parameters.log_interval 9"
    made = run(*words.split(), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "mine.py" in made.stdout
    assert "keys are not read: " in made.stdout
    config = configs.load(str(tmp_path / "mine.py"))
    assert (config.batch_size, config.batch_groups, config.log_every) == (64, 4, 9)
    assert config.model.visual.name == "pvt"
    assert config.evaluation.val.kind == "loss"
    assert config.data.directories == ("data/a",)
    assert "training_parameters.save_dir" in (tmp_path / "mine.py").read_text()


def test_errors_are_one_line(tmp_path):
    write(tmp_path)
    made = run("--source", "configs/main.yml", "training_parameters.nothing", "1", cwd=tmp_path)
    assert made.returncode == 1
    assert made.stderr.startswith("error: training_parameters.nothing: no such key")
    assert made.stderr.count("\n") == 1
