# Sourced where the made world is needed: prepare_shapes DIR TRAIN TEST makes so many videos, the word list and the shards.

prepare_shapes() {
    local data=$1 world=$1/world
    $python data_prep/shapes.py --output "$world" --train "$2" --test "$3" --workers 2
    $python data_prep/milnce.py vocabulary --list "$world/train/videos.csv" --captions "$world/train/captions" \
        --output "$data/vocabulary.npy" --rows 128
    $python data_prep/milnce.py howto100m --list "$world/train/videos.csv" --videos "$world/train/videos" \
        --captions "$world/train/captions" --output "$data/train" --num_shards 8 --workers 2 --short_side 64 \
        --smallest_side 64 --segment_seconds 3 --epoch segments --clip_seconds 1.6 --min_time 2 --min_seconds 1.6
    $python data_prep/milnce.py segments --csv "$world/test/queries.csv" --videos "$world/test/videos" \
        --output "$data/test" --num_shards 2 --workers 2 --windows 2 --num_frames 8 --fps 5 --size 64
}
