#!/bin/sh
# What a fuzz target starts from: small golden files, behind the letter by which the target knows what they are.
# What it finds is put beside them and serves the next run, too.
#
#     sh tests/fuzz_seeds.sh checkpoint FOLDER
folder=$2 golden=tests/golden world=examples/world n=0
mkdir -p "$folder"
seeds() { # LETTER FILE...
    letter=$1; shift
    for f in "$@"; do n=$((n + 1)); (printf %s "$letter"; cat "$f") > "$folder/$n"; done
}
case $1 in
checkpoint)
    seeds U $golden/networks/if*/config.json $golden/networks/sd_*/config.json
    seeds V $golden/networks/vae_*/config.json
    seeds T $golden/networks/clip_*/config.json $golden/networks/t5_*/config.json
    seeds D $golden/networks/vit_*/config.json $world/metrics/dino/config.json
    seeds C $golden/metrics/clip/config.json $world/metrics/clip/config.json
    seeds L $golden/metrics/lpips/config.json $world/metrics/lpips/config.json
    seeds S $world/*/scheduler/scheduler_config.json $golden/pipelines/*/scheduler/scheduler_config.json ;;
jpeg) seeds "" $golden/photos/*.[jJ]* ;;
json) seeds "" $golden/networks/*/config.json $world/*/model_index.json $golden/metrics/*/*.json ;;
png) seeds "" $golden/photos/*.png ;;
safetensors) seeds "" $golden/lora/[cds]*.safetensors $golden/dreambooth/lora.safetensors $golden/networks/lpips_*/golden.safetensors ;;
spiece)
    seeds "" $golden/tokenizers/[frsw]*.model
    (printf C; cat $golden/metrics/clip/vocab.json; printf '\0'; cat $golden/metrics/clip/merges.txt) > "$folder/clip"
    cat > "$folder/json" << 'END'
J{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["\u2581", -2.5], ["\u2581a", -3], ["dog", -4.25], ["d", -6]]},
"normalizer": null, "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}, "added_tokens": []}
END
    ;;
*) echo "no target $1" >&2; exit 1 ;;
esac
