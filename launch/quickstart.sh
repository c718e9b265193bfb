#!/usr/bin/env bash
# From video files to a trained, evaluated model, on a laptop's CPU: bash launch/quickstart.sh [milnce|groundnlq|lfb|snps3]
#
# milnce      sentences find clips: real ones, and made ones that training never showed (the default)
# groundnlq   sentences find moments in synthetic films that training never showed
# lfb         people and their actions, second by second, in a silent film of nine seconds; trained on that film itself
# snps3       sentences find parts of videos, and questions about videos are answered, after joint pre-training
#
# Needs Python 3.11 or newer, pip, and on the first run a package index. Everything it makes is in .venv and runs/.
set -euo pipefail
cd "$(dirname "$0")/.."

system=${1:-milnce} extras=cpu,data,video,figures
case $system in
    milnce) minutes=five ;;
    groundnlq) minutes=ten ;;
    lfb) minutes=six extras=$extras,people ;;  # people: OpenCV, whose detector finds the people of a film
    snps3) minutes=eight ;;
    *)
        echo "error: expected milnce, groundnlq, lfb or snps3, found '$system'" >&2
        exit 1
        ;;
esac
echo "This takes about $minutes minutes on two cores, installation included; everything it makes is in .venv and runs/."
. launch/environment.sh
. examples/synthetic_data.sh
make_environment "$extras"

python=.venv/bin/python
run=runs/quickstart
data_short=runs/data/synthetic_short

milnce() {
    local clips=data_prep/clips data=runs/data config=configs/milnce_quickstart.py

    echo "== 1/6 word list and TFRecord shards from the clips in $clips"
    $python -m data_prep.milnce vocabulary --list $clips/videos.csv --captions $clips/captions \
        --output $data/clips/vocabulary.npy --rows 300
    $python -m data_prep.milnce howto100m --list $clips/videos.csv --videos $clips --captions $clips/captions \
        --output $data/clips --num_shards 2 --workers 2 --short_side 80 --smallest_side 64 --segment_seconds 3 --epoch segments \
        --clip_seconds 1.6 --min_time 2 --min_seconds 1.6
    $python -m data_prep.milnce segments --csv $clips/queries.csv --videos $clips \
        --output $data/queries --num_shards 2 --workers 2 --windows 2 --num_frames 8 --fps 5 --size 64

    echo "== 2/6 training a small S3D with MIL-NCE"
    $python launch/train.py --config $config --workdir $run

    echo "== 3/6 evaluating the restored checkpoint in a new process"
    $python launch/evaluate.py --workdir $run

    echo "== 4/6 drawing"
    $python launch/figures.py retrieval --results $run/results/clips_rankings.json --videos $clips \
        --output $run/figures/retrieval.png

    echo "== 5/6 synthetic videos: shapes that move, with narration seconds off; train, then search in compositions never seen"
    prepare_synthetic $data_short 150 40
    $python launch/train.py --config configs/milnce_synthetic.py:quick --workdir $run-synthetic
    $python launch/evaluate.py --workdir $run-synthetic --evaluator synthetic --evaluator synthetic_shuffled

    echo "== 6/6 text-to-video retrieval, each query against one window per query"
    $python launch/figures.py table "$run:clips=real clips, those trained on" \
        "$run-synthetic:synthetic=synthetic videos, held out" \
        "$run-synthetic:synthetic_shuffled=the same, frames shuffled"
    echo "Picture: $run/figures/retrieval.png   All metrics: $run/results, $run-synthetic/results"
    echo "Next, moments in films by sentence:  bash launch/quickstart.sh groundnlq"
}

groundnlq() {
    local config=configs/groundnlq_synthetic.py:short film

    echo "== 1/6 synthetic films: shapes that move, with narration seconds off"
    prepare_synthetic $data_short 150 40

    echo "== 2/6 training a small S3D on the narration"
    $python launch/train.py --config configs/milnce_synthetic.py:short --workdir $run-narration

    echo "== 3/6 its features of the films, and of the words of sentences that are true at one moment of a film"
    prepare_features $data_short $run-narration
    head -n 480 $data_short/world/train/moments.jsonl > $data_short/world/train/few.jsonl
    prepare_sentences $data_short $run-narration few train $data_short/world/train/few.jsonl
    prepare_sentences $data_short $run-narration moments test $data_short/world/test/moments.jsonl
    make_query_blind $data_short/world/test
    prepare_sentences $data_short $run-narration query_blind test $data_short/world/test/query_blind.jsonl

    echo "== 4/6 training a small GroundNLQ"
    $python launch/train.py --config $config --workdir $run-groundnlq

    echo "== 5/6 evaluating the restored checkpoint in a new process, on films that training never showed"
    $python launch/evaluate.py --config $config --workdir $run-groundnlq

    echo "== 6/6 drawing, and asking about one film in one command"
    $python launch/figures.py timeline --predictions $run-groundnlq/results/synthetic_queries.jsonl \
        --videos $data_short/world/test/videos --output $run-groundnlq/figures/timeline.png
    film=$(ls $data_short/world/test/videos/*.mp4 | head -n 1)
    $python launch/predict.py --checkpoint $run-groundnlq --video "$film" --query "the red star grows" --top_k 2 \
        --figure $run-groundnlq/figures/film.png
    $python launch/figures.py table "$run-groundnlq:synthetic=films never shown" \
        "$run-groundnlq:synthetic_query_blind=the same, all sentences alike" --metrics R1@0.3 R1@0.5 R5@0.5 mIoU
    echo "Picture: $run-groundnlq/figures/timeline.png   All metrics: $run-groundnlq/results"
    echo "Next, your own film:  $python launch/predict.py --checkpoint $run-groundnlq --video FILM --query SENTENCE"
    echo "Or people and their actions:  bash launch/quickstart.sh lfb"
}

lfb() {
    local config=configs/lfb_quickstart.py clips=data_prep/clips data=runs/data/chaplin split

    echo "== 1/6 people of the film, found by OpenCV, and records of its nine keyframes"
    mkdir -p $data/films
    cp $clips/chaplin.mp4 $data/films
    $python -m data_prep.lfb people --videos $data/films --output $data/people.csv
    for split in train val; do
        $python -m data_prep.lfb keyframes --output $data --split $split --videos $data/films --whole_films \
            --annotations $clips/chaplin_ava.csv --actions 12,80 --proposals $data/people.csv --num_shards 1
    done

    echo "== 2/6 training a small detector without a bank"
    $python launch/train.py --config $config --workdir $run-lfb-baseline

    echo "== 3/6 its mAP, and its features of all people: the bank of the film"
    $python launch/evaluate.py --workdir $run-lfb-baseline

    echo "== 4/6 training a detector that looks into the bank"
    $python launch/train.py --config $config:nl --workdir $run-lfb

    echo "== 5/6 evaluating the restored checkpoint in a new process"
    $python launch/evaluate.py --workdir $run-lfb

    echo "== 6/6 the whole film, which gets a bank of its own: with given boxes, then with those that OpenCV finds"
    $python launch/predict.py --checkpoint $run-lfb --video $clips/chaplin.mp4 --boxes $clips/chaplin_ava.csv \
        --output $run-lfb/film --figure $run-lfb/figures/film.png --video_output $run-lfb/figures/film.mp4
    $python launch/predict.py --checkpoint $run-lfb --video $clips/chaplin.mp4 --output $run-lfb/film_opencv
    $python launch/figures.py table "$run-lfb-baseline:val=without a bank" "$run-lfb:val=with a bank" \
        --metrics mAP "AP/12 stand" "AP/80 watch (a person)"
    echo "Training and evaluation had the same nine keyframes: the table shows that the chain works, and no more."
    echo "Picture: $run-lfb/figures/film.png   Film: $run-lfb/figures/film.mp4   Scores: $run-lfb/film"
    echo "Next, your own film:  $python launch/predict.py --checkpoint $run-lfb --video FILM --figure people.png"
    echo "What a bank is good for, on films with a long memory (an hour):  bash examples/long_memory.sh"
    echo "Or questions about videos:  bash launch/quickstart.sh snps3"
}

snps3() {
    local config=configs/snps3_quickstart.py clips=data_prep/clips data=runs/data/snps3_quickstart film
    local world=$data/world train=$data/world/train test=$data/world/test

    echo "== 1/7 captions, questions and options about synthetic videos; captions of the packaged clips; their words"
    $python -m data_prep.synthetic --output $world --train 40 --test 8 --seconds 30 --workers 2
    $python -m data_prep.snps3 annotations --set howto100m --source $clips/captions/*.csv --output $data/clips.jsonl
    $python -m data_prep.snps3 annotations --set howto100m --source $clips/queries.csv --output $data/queries.jsonl
    prepare_words $data $train/snps3/question_answering.jsonl $train/snps3/pretraining.jsonl $data/clips.jsonl

    echo "== 2/7 records: eight frames of every part of a video, and tables of its texts"
    prepare_items $data/captions train $train/videos $train/snps3/pretraining.jsonl
    prepare_items $data/captions test $test/videos $test/snps3/retrieval.jsonl
    prepare_items $data/clips train $clips $data/clips.jsonl --max_side 128
    prepare_items $data/clips test $clips $data/queries.jsonl --max_side 128
    prepare_items $data/questions train $train/videos $train/snps3/question_answering.jsonl --use questions \
        --answers $data/answers.json
    prepare_items $data/questions test $test/videos $test/snps3/question_answering.jsonl --use questions \
        --answers $data/answers.json
    prepare_items $data/choices test $test/videos $test/snps3/multiple_choice.jsonl --use choices

    echo "== 3/7 pre-training a small model on both kinds of videos: masked significant words, matching of words and clips"
    $python launch/train.py --config $config --workdir $run-snps3-pretraining
    $python launch/evaluate.py --workdir $run-snps3-pretraining --evaluator synthetic --evaluator clips

    echo "== 4/7 fine-tuning it for retrieval; evaluating the restored checkpoint in a new process, also with options"
    $python launch/train.py --config $config:retrieval --workdir $run-snps3
    $python launch/evaluate.py --workdir $run-snps3 --evaluator synthetic --evaluator clips --evaluator choices

    echo "== 5/7 fine-tuning it for questions, with the answers of the training videos as classes"
    $python launch/train.py --config $config:question_answering --workdir $run-snps3-questions
    $python launch/evaluate.py --workdir $run-snps3-questions --evaluator questions

    echo "== 6/7 searching the packaged clips, and asking about one synthetic video"
    $python launch/predict.py --checkpoint $run-snps3 --videos $clips --top_k 3 --figure $run-snps3/figures/search.png \
        --search "a bird stands on a branch and sings" --search "a racing car with two men drives close past the camera"
    film=$(ls $test/videos/*.mp4 | head -n 1)
    $python launch/predict.py --checkpoint $run-snps3-questions --video "$film" --top_k 3 \
        --question "how many shapes are there in the end"
    $python launch/figures.py retrieval --results $run-snps3/results/clips.jsonl --videos $clips \
        --output $run-snps3/figures/retrieval.png

    echo "== 7/7 text to video, each text against all parts: by embeddings (l1) and by the cross encoder (l2); questions"
    $python launch/figures.py table "$run-snps3-pretraining:synthetic=synthetic videos, held out, pre-trained" \
        "$run-snps3:synthetic=the same, fine-tuned" "$run-snps3-pretraining:clips=real clips, those trained on, pre-trained" \
        "$run-snps3:clips=the same, fine-tuned" --metrics l{1,2}_simi_t2v-r@10 l{1,2}_simi_t2v-mr
    $python launch/figures.py table "$run-snps3:choices=five options, fine-tuned for retrieval" \
        "$run-snps3-questions:questions=open questions, fine-tuned for them" --metrics accuracy
    echo "Real clips were trained on, by their captions: those rows show that the chain works, and no more."
    echo "Synthetic videos were held out; so few steps suffice to see the chain at work, not for a good model."
    echo "About 0.16 of the open questions are answered rightly by the kind of question, without the video."
    echo "Pictures: $run-snps3/figures   Rankings and answers with their scores: $run-snps3/results, $run-snps3-questions/results"
    echo "Next, your own videos:  $python launch/predict.py --checkpoint $run-snps3 --videos FOLDER --search SENTENCE"
    echo "What pre-training is good for, with three seeds (hours):  bash examples/snps3_synthetic.sh"
}

$system
