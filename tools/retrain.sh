#!/bin/sh
# retrain.sh FOLDER - trains the shipped cascade, its metric networks and the classifier from nothing: `make retrain`.
#
# The steps of the shipped weights, without the pauses between their sittings. Started again it goes on where it stopped.
# SHARE=500 takes a 500th of every count: a rehearsal of minutes.
set -e
out=$1 share=${SHARE:-1} tools=${TOOLS:-build}
world=examples/world
mkdir -p "$out"
for d in base sr256 sr1024 metrics; do cp -r $world/$d "$out/"; done
find "$out/base" "$out/sr256" "$out/sr1024" "$out/metrics" -name '*.safetensors' -delete
n() { echo $(($1 / share > 3 || $1 < 3 ? $1 / share : 3)); }

pool() { # name, size, count, more
    name=$1 size=$2 count=$(n $3)
    shift 3
    [ -f "$out/$name.pool" ] || $tools/world pool --out "$out/$name.pool" --size $size --count $count "$@"
}
pool base 64 60000 --samples 3 --individuals 40
pool sr 256 3000 --samples 2 --seed 200000
pool sr1024 256 4000 --virtual 1024 --samples 2 --seed 300000
pool metric 64 60000 --samples 3 --split metric
pool dino 64 60000 --samples 3 --split metric --individuals 50

pretrain() { # what, steps in all, decay, more
    what=$1 steps=$(n $2) decay=$(n $3)
    shift 3
    $tools/pretrain ${what%1024} --state "$out/$what.state" --steps $steps --decay $decay "$@"
}
base() { pretrain base "$@" --dir "$out/base" --pool "$out/base.pool" --precision bf16 --lr 8e-4; }
sr() { pretrain sr "$@" --dir "$out/sr256" --text "$out/base" --pool "$out/sr.pool" --precision bf16 --size 64 --scale 4 --batch 8; }
$tools/pretrain vocabulary --dir "$out/base"
pretrain text 2500 1000 --dir "$out/base" --batch 64 --lr 2e-3 --warmup 200
base 8806 0 --size 32 --batch 32
base 49060 2200 --size 64 --batch 16 --ema 0.998
sr 24464 0
sr 26100 1500 --ema 0.998
pretrain sr1024 24500 3000 --dir "$out/sr1024" --text "$out/base" --pool "$out/sr1024.pool" --precision bf16 --size 64 --scale 4 --batch 8 --lr 1e-3 --ema 0.998

metric() { # what, steps, decay, batch, learning rate, average, pool
    $tools/pretrain_metrics $1 --dir "$out/metrics/$1" --pool "$out/${7:-metric}.pool" --state "$out/$1.state" --precision bf16 \
        --steps $(n $2) --decay $(n $3) --batch $4 --lr $5 --ema $6
}
metric classifier 3000 1000 64 1e-3 0.997
metric lpips 1600 500 32 1e-3 0.996
metric clip 2500 800 96 1e-3 0.997
metric dino 12400 2400 64 4e-4 0.998 dino

$tools/gates run --captions $world/captions.txt --model "$out/base" --classifier "$out/metrics/classifier" \
    --metrics "$out/metrics" --out "$out" --precision bf16 --count $(n 512)
