# Functions that prepare the synthetic world for each system. To be sourced; $python names the interpreter.

# prepare_synthetic DIR TRAIN TEST: make TRAIN and TEST videos, the word list, and the shards of MIL-NCE.
prepare_synthetic() {
    local data=$1 world=$1/world
    $python -m data_prep.synthetic --output "$world" --train "$2" --test "$3" --workers 2
    $python -m data_prep.milnce vocabulary --list "$world/train/videos.csv" --captions "$world/train/captions" \
        --output "$data/vocabulary.npy" --rows 128
    $python -m data_prep.milnce howto100m --list "$world/train/videos.csv" --videos "$world/train/videos" \
        --captions "$world/train/captions" --output "$data/train" --num_shards 8 --workers 2 --short_side 64 \
        --smallest_side 64 --segment_seconds 3 --epoch segments --clip_seconds 1.6 --min_time 2 --min_seconds 1.6
    $python -m data_prep.milnce segments --csv "$world/test/queries.csv" --videos "$world/test/videos" \
        --output "$data/test" --num_shards 2 --workers 2 --windows 2 --num_frames 8 --fps 5 --size 64
}

# prepare_features DIR CHECKPOINT: extract features of all videos, as clips for GroundNLQ and windows for CTRL.
prepare_features() {
    local data=$1 split
    for split in train test; do
        $python launch/extract_features.py --checkpoint "$2" --videos "$data/world/$split/videos" \
            --output "$data/features/$split" --stride 2 --batch_size 64
        $python -m data_prep.groundnlq features --features "$data/features/$split" \
            --output "$data/groundnlq/${split}_clips" --num_shards 4
        $python -m data_prep.ctrl windows --features "$data/features/$split" --fps 10 \
            --lengths 16 24 32 --output "$data/ctrl/${split}_windows" --num_shards 4
    done
}

# prepare_sentences DIR CHECKPOINT SET SPLIT JSONL: encode sentences by the checkpoint's text tower, for both systems.
prepare_sentences() {
    local data=$1 set=$3 split=$4 text=$1/text/$3_$4
    mkdir -p "$data/text"
    $python launch/extract_text_features.py --checkpoint "$2" --queries "$5" --layer words --output "$text.words.npz"
    $python launch/extract_text_features.py --checkpoint "$2" --queries "$5" --output "$text.npz"
    $python -m data_prep.groundnlq queries --format jsonl --annotations "$5" \
        --text "$text.words.npz" --split "$split" --output "$data/groundnlq/$set" --num_shards 2
    $python -m data_prep.ctrl queries --format jsonl --sentences "$5" --vectors "$text.npz" \
        --fps 10 --split "$split" --output "$data/ctrl/$set" --num_shards 2
}

# make_query_blind FOLDER: write query_blind.jsonl, a split's moments with every sentence replaced by the same one.
make_query_blind() {
    sed -E 's/"query": "[^"]*"/"query": "what will happen next"/' "$1/moments.jsonl" > "$1/query_blind.jsonl"
}

# prepare_words DIR QUESTIONS CAPTIONS...: make the vocabulary, significant words, and answers.
prepare_words() {
    local data=$1 questions=$2
    shift 2
    $python -m data_prep.snps3 vocabulary --texts "$@" "$questions" --size 500 --output "$data/vocab.txt"
    $python -m data_prep.snps3 words --captions "$@" --vocabulary "$data/vocab.txt" --tagger rules --output "$data/words"
    $python -m data_prep.snps3 answers --questions "$questions" --size 60 --output "$data/answers.json"
}

# prepare_items DIR SPLIT VIDEOS JSONL OPTIONS...: eight frames of every part, with its captions, questions or choices.
prepare_items() {
    local data=$1 split=$2 videos=$3 annotations=$4
    shift 4
    $python -m data_prep.snps3 items --output "$data" --split "$split" --media "$videos" --annotations "$annotations" \
        --num_frames 8 --num_shards 4 --workers 2 "$@"
}
