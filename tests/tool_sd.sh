#!/bin/sh
# Stable Diffusion's files through the command-line tool: pictures from given latents, conversion there and back, single
# networks, and checkpoints of other kinds.
#
#     sh tests/tool_sd.sh build/dreambooth FOLDER build/test_sd
tool=$1 work=$2 test_sd=$3
. tests/checks.sh
made=$work/made sd=$work/made/sd
mkdir "$made"; $test_sd "$made" > "$work/out" 2>&1 || bad "test_sd leaves its files" "$(tail -n 1 "$work/out")"
with() { command=$1 from=$2; shift 2; $tool "$command" --quiet --threads 1 --pretrained_model_name_or_path "$from" "$@"; }

# ---- pictures from given latents, as diffusers draws them
draw() { out=$1 from=$2; shift 2; with generate "$from" --prompt "a photo of a dog" "Zwei Katzen, 3 cups" --negative_prompt blurry --latents "$made/latents.safetensors" --output_dir "$out" "$@"; }
mkdir "$work/drawn"
says "generate, DDIM" "2 pictures" draw "$work/drawn/ddim" "$sd" --scheduler ddim --num_inference_steps 7 --guidance_scale 3
says "generate, DPM-Solver++, a PNDM file's default" "2 pictures" draw "$work/drawn/dpm" "$sd" --num_inference_steps 8 --guidance_scale 5
says "generate, no guidance" "2 pictures" draw "$work/drawn/unguided" "$sd" --scheduler DDIMScheduler --num_inference_steps 4 --guidance_scale 0 --height 16 --width 24
"$test_sd" "$made" "$work/drawn" > "$work/out" 2>&1
grep -v " passed, " "$work/out"
passed=$((passed + $(grep -c "^ok" "$work/out"))) failed=$((failed + $(grep -c "^FAIL" "$work/out")))
[ "$(grep -c "^ok" "$work/out")" = 3 ] || bad "drawn pictures compared" "$(tail -n 1 "$work/out")"
draw "$work/file" "$made/ldm.safetensors" --scheduler ddim --num_inference_steps 7 --guidance_scale 3 > "$work/out" 2>&1
[ "$(sum "$work/file/00001.png")" = "$(sum "$work/drawn/ddim/00001.png")" ] && ok "a single file draws the same" || bad "a single file draws the same" "$(tail -n 1 "$work/out")"
refuses "latents of another number" "3 pictures of 24 x 16 pixels need \[3,4,8,12\]" with generate "$sd" --prompt a b c --latents "$made/latents.safetensors" --output_dir "$work/g"
refuses "latents of another size" "need \[2,4,8,16\]" with generate "$sd" --prompt a b --width 32 --latents "$made/latents.safetensors" --output_dir "$work/g"
refuses "no latents in the file" "no tensor \"latents\"" with generate "$sd" --prompt a --latents "$sd/vae/diffusion_pytorch_model.fp16.safetensors" --output_dir "$work/g"
{ printf 'H\0\0\0\0\0\0\0'; printf '%-72s' '{"latents": {"dtype": "F32", "shape": [1,4,0,0], "data_offsets": [0,0]}}'; } > "$work/empty.safetensors"
refuses "latents without pixels" "no tensor \"latents\" of shape" with generate "$sd" --prompt a --latents "$work/empty.safetensors" --output_dir "$work/g"
[ ! -e "$work/g" ] && ok "nothing written" || bad "nothing written" "$work/g is there"
with generate "$sd" --prompt "a dog" "a cat" --num_images 2 --num_inference_steps 2 --height 16 --width 24 --seed 4 --output_dir "$work/s0" > "$work/out" 2>&1
with generate "$sd" --prompt "a cat" --num_inference_steps 2 --height 16 --width 24 --seed 7 --output_dir "$work/s1" > "$work/out" 2>&1
[ "$(sum "$work/s0/00003.png")" = "$(sum "$work/s1/00000.png")" ] && ok "a picture depends on its prompt and seed alone" || bad "a picture depends on its prompt and seed alone" "it does not"

# ---- there and back
mkdir "$work/c"
says "convert to one file" "f32" with convert "$sd" --output_dir "$work/c/a.safetensors"
says "and to a directory" "f32" with convert "$work/c/a.safetensors" --output_dir "$work/c/b"
says "and to one file" "f32" with convert "$work/c/b" --output_dir "$work/c/c.safetensors"
[ "$(sum "$work/c/a.safetensors")" = "$(sum "$work/c/c.safetensors")" ] && ok "one file, there and back: the same bits" || bad "one file, there and back" "other bits"
for t in f16 bf16; do
    says "convert to $t" "$t" with convert "$sd" --output_dir "$work/c/$t" --dtype $t
    with convert "$work/c/$t" --output_dir "$work/c/$t.safetensors" > "$work/out" 2>&1
    with convert "$work/c/$t.safetensors" --output_dir "$work/c/$t-back" > "$work/out" 2>&1
    diff -r "$work/c/$t" "$work/c/$t-back" > "$work/out" 2>&1 && ok "a directory in $t, there and back: the same bits" || bad "a directory in $t, there and back" "$(head -n 1 "$work/out")"
    [ $(($(wc -c < "$work/c/$t/unet/diffusion_pytorch_model.safetensors") * 10)) -lt $(($(wc -c < "$work/c/b/unet/diffusion_pytorch_model.safetensors") * 7)) ] && ok "$t is smaller" || bad "$t is smaller" "it is not"
done
mkdir "$work/j" "$work/j/file" "$work/j/without"; cp -r "$work/c/b" "$work/j/b"; words=$work/j/b/tokenizer
{ printf '{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": '; cat "$words/vocab.json"
  printf ', "merges": ['; sed '1d; s/[\\"]/\\&/g; s/.*/"&"/; $!s/$/,/' "$words/merges.txt"; printf ']}}'; } > "$words/tokenizer.json"
rm "$words/vocab.json" "$words/merges.txt"
with convert "$work/j/b" --output_dir "$work/j/file/b.safetensors" > "$work/out" 2>&1
[ "$(with tokenize "$work/j/file/b.safetensors" "a photo of a dog")" = "$(with tokenize "$sd" "a photo of a dog")" ] && ok "a tokenizer.json goes beside one file" ||
    bad "a tokenizer.json goes beside one file" "$(ls "$work/j/file" | tr '\n' ' ')"
rm -r "$words"
says "without a tokenizer" "warning: no tokenizer lies beside .* of another Stable Diffusion" with convert "$work/j/b" --output_dir "$work/j/without/b.safetensors"
refuses "convert over a file" "exists" with convert "$sd" --output_dir "$work/c/a.safetensors"
refuses "convert to a pickle" "pickles are not written" with convert "$sd" --output_dir "$work/c/a.ckpt"
refuses "convert to f8" "takes f32, f16 or bf16" with convert "$sd" --output_dir "$work/c/d" --dtype f8
refuses "convert IF to one file" "only Stable Diffusion has a single-file form" with convert examples/world/base --output_dir "$work/c/if.safetensors"
[ ! -e "$work/c/if.safetensors" ] && ok "nothing written" || bad "nothing written" "if.safetensors is there"
says "convert IF to another type" "f32" with convert examples/world/base --output_dir "$work/c/if32" --dtype f32
says "and back" "f16" with convert "$work/c/if32" --output_dir "$work/c/if16" --dtype f16
[ "$(sum "$work/c/if16/unet/diffusion_pytorch_model.safetensors")" = "$(sum examples/world/base/unet/diffusion_pytorch_model.safetensors)" ] && ok "IF's weights, there and back: the same bits" || bad "IF's weights, there and back" "other bits"

# ---- training on latents
teach() { out=$1; shift; with train "$sd" --instance_data_dir examples/world/subjects/dog1 --instance_prompt "a zxk dog" --with_prior_preservation --class_prompt "a dog" \
    --class_data_dir "$work/class" --num_class_images 2 --class_steps 2 --train_batch_size 1 --max_train_steps 2 --learning_rate 1e-4 --output_dir "$out" "$@"; }
says "train on latents" "^2 steps" teach "$work/t0" --snr_gamma 5 --offset_noise --sequential --resolution 16
says "and the text encoder" "^2 steps" teach "$work/t1" --train_text_encoder --resolution 16
differ() { [ "$(sum "$work/c/f16/$1/$2")" != "$(sum "$3/$1/$2")" ]; }
differ unet diffusion_pytorch_model.safetensors "$work/t0" && differ text_encoder model.safetensors "$work/t1" &&
    ok "what is trained is saved" || bad "what is trained is saved" "the same weights as before"
says "a trained directory draws" "1 pictures" with generate "$work/t0" --prompt "a zxk dog" --num_inference_steps 2 --height 16 --width 16 --output_dir "$work/t2"
refuses "a resolution that is no whole latent" "multiples of 2" teach "$work/t3" --resolution 17 --class_data_dir "$work/class17"
refuses "min-SNR below 0" "must not be negative" teach "$work/t3" --snr_gamma -1

# ---- what is inside; single networks
says "info, a directory" "autoencoder.*2 pixels" with info "$sd"
says "info, a single file" "one file in the original" with info "$work/c/a.safetensors"
says "tokenize beside a single file" "^[0-9][0-9 ]*$" with tokenize "$work/c/a.safetensors" "a photo of a dog"
golden=tests/golden/networks
refuses "probe without its input" "sample must be there" with probe "$sd" --part vae_encoder --in "$made/latents.safetensors" --out "$work/p"
refuses "probe, an unknown part" "takes unet, text_encoder, vae_encoder or vae_decoder" with probe "$sd" --part vae --in x --out y

# ---- training with pictures on the way, without its text encoder
says "train" "2 steps" with train "$sd" --instance_data_dir $photos --instance_prompt "a dog" --resolution 16 --train_batch_size 1 --max_train_steps 2 --output_dir "$work/t" \
    --validation_prompt "a dog" --validation_steps 2 --num_validation_images 1 --skip_save_text_encoder
[ -e "$work/t/validation-2.png" ] && ok "validation pictures" || bad "validation pictures" "$(ls "$work/t" | tr '\n' ' ')"
[ -e "$work/t/vae/config.json" ] && [ ! -e "$work/t/text_encoder/config.json" ] && ok "skip_save_text_encoder" || bad "skip_save_text_encoder" "$(ls "$work/t" | tr '\n' ' ')"
says "train without pictures on the way" "2 steps" with train "$sd" --instance_data_dir $photos --instance_prompt "a dog" --resolution 16 --train_batch_size 1 --max_train_steps 2 \
    --output_dir "$work/without" --skip_save_text_encoder
[ -e "$work/without/vae/config.json" ] && [ ! -e "$work/without/text_encoder/config.json" ] && ok "skip_save_text_encoder with a released autoencoder" ||
    bad "skip_save_text_encoder with a released autoencoder" "$(ls "$work/without" | tr '\n' ' ')"

# ---- checkpoints of another kind
for f in other.safetensors cut.safetensors model.ckpt model.gguf; do
    cp "$made/$f" "$work/$f"
done
refuses "a pickle" "is a pickle.*Convert it once" with generate "$work/model.ckpt" --prompt x --output_dir "$work/r"
refuses "a GGUF file" "GGUF" with generate "$work/model.gguf" --prompt x --output_dir "$work/r"
refuses "a file cut off" "cut.safetensors" with generate "$work/cut.safetensors" --prompt x --output_dir "$work/r"
refuses "a file of something else" "no Stable Diffusion 1.x checkpoint" with convert "$work/other.safetensors" --output_dir "$work/r"
cp -r "$sd" "$work/xl"; sed -i 's/StableDiffusionPipeline/StableDiffusionXLPipeline/' "$work/xl/model_index.json"
refuses "Stable Diffusion XL" "Stable Diffusion XL: two text encoders.*take a Stable Diffusion 1.x" with train "$work/xl" --instance_data_dir $photos --instance_prompt x --output_dir "$work/r"
mkdir "$work/lora"; cp "$made/other.safetensors" "$work/lora/pytorch_lora_weights.safetensors"
refuses "a folder with a LoRA" "a LoRA, which only changes a model" with generate "$work/lora" --prompt x --output_dir "$work/r"
refuses "one part of a pipeline" "model_index.json" with generate "$sd/unet" --prompt x --output_dir "$work/r"
rm -rf "$work/broken"; cp -r "$sd" "$work/broken"; rm "$work/broken/unet/diffusion_pytorch_model-00002-of-00002.safetensors"
refuses "a missing shard" "00002-of-00002" with generate "$work/broken" --prompt x --output_dir "$work/r"
refuses "a model without its tokenizer" "no text encoder or no tokenizer" sh -c "rm -rf '$work/broken'; cp -r '$work/c/b' '$work/broken'; rm -r '$work/broken/tokenizer'; $tool generate --pretrained_model_name_or_path '$work/broken' --prompt x --output_dir '$work/r2'"
[ ! -e "$work/r" ] && ok "nothing written for any of them" || bad "nothing written for any of them" "$work/r is there"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
