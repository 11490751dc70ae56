#!/bin/sh
# The command-line tool as people use it, and what bad input gets: a message that names file and cause, a non-zero
# exit, nothing half-written.
#
#     sh tests/tool.sh build/dreambooth FOLDER
tool=$1 work=$2
. tests/checks.sh
base=examples/world/base mixed=tests/golden/photos
weights=unet/diffusion_pytorch_model.safetensors lora=pytorch_lora_weights.safetensors

# ---- flags
refuses "unknown command" "did you mean generate" $tool generat
refuses "unknown flag" "did you mean --learning_rate" $tool train --learnin_rate 1
refuses "flag without value" "needs a value" $tool train --learning_rate
refuses "no number" "takes a number" $tool train --learning_rate fast
refuses "negative count" "whole number" $tool train --max_train_steps=-3
refuses "a value for a switch" "takes no value" $tool train --center_crop=1
refuses "unknown instruction set" "instruction set" $tool info --isa sse9
refuses "dashes for underscores" "takes a number" $tool train --learning-rate fast
says "identifiers" "score" $tool identifier --count 3 --threads 1
says "a usable identifier" "a usable identifier" $tool identifier zxk
says "an identifier's faults" "is a rifle" $tool identifier sks
says "help" "instance_data_dir" $tool train --help

# ---- every flag of train_dreambooth.py: taken, or refused with the reason
flags="pretrained_model_name_or_path=x instance_data_dir=x instance_prompt=x class_data_dir=x class_prompt=x seed=1 max_train_steps=1
    checkpoints_total_limit=1 resume_from_checkpoint=latest validation_prompt=x mixed_precision=bf16 tokenizer_max_length=77 validation_images=x
    with_prior_preservation center_crop train_text_encoder gradient_checkpointing scale_lr pre_compute_text_embeddings text_encoder_use_attention_mask
    skip_save_text_encoder prior_loss_weight=1.0 num_class_images=100 output_dir=x resolution=512 train_batch_size=4 sample_batch_size=4
    snr_gamma=5.0 offset_noise num_train_epochs=1 checkpointing_steps=500 gradient_accumulation_steps=1 learning_rate=5e-6 lr_scheduler=constant lr_warmup_steps=500 lr_num_cycles=1
    lr_power=1.0 adam_beta1=.9 adam_beta2=.999 adam_weight_decay=1e-2 adam_epsilon=1e-8 max_grad_norm=1.0 num_validation_images=4 validation_steps=100
    validation_scheduler=DDPMScheduler rank=4 lora_dropout=0 use_8bit_adam variant=fp16 report_to=wandb logging_dir=logs dataloader_num_workers=2 allow_tf32 set_grads_to_none
    enable_xformers_memory_efficient_attention prior_generation_precision=fp32 local_rank=0"
count=0 unknown=
for f in $flags; do
    count=$((count + 1))
    $tool train "--$f" --help > "$work/out" 2>&1 || unknown="$unknown $f"
    case $f in *=*) $tool train "--${f%%=*}" "${f#*=}" --help > "$work/out" 2>&1 || unknown="$unknown $f" ;; esac
done
[ -z "$unknown" ] && ok "$count flags of train_dreambooth.py" || bad "flags of train_dreambooth.py" "not taken:$unknown"
refuses "class_labels_conditioning" "noise level of its small image" $tool train --class_labels_conditioning timesteps
refuses "push_to_hub" "uses a network" $tool train --push_to_hub
refuses "hub_model_id" "uses a network" $tool train --hub_model_id a/b
refuses "revision" "a directory on this machine" $tool train --revision main
refuses "tokenizer_name" "model's directory" $tool train --tokenizer_name x
refuses "mixed_precision fp16" "bf16 is as small" tiny "$work/m0" --mixed_precision fp16
refuses "variant non_ema" "no variant, or else fp16" tiny "$work/m0" --variant non_ema
refuses "lora_dropout" "no dropout" tiny "$work/m0" --lora_dropout 0.1
refuses "embeddings computed before, and trained" "exclude each other" tiny "$work/m0" --pre_compute_text_embeddings --train_text_encoder
refuses "another number of tokens" "sampled with 77 tokens" tiny "$work/m0" --tokenizer_max_length 50
refuses "small pictures for a base" "for a super-resolver" tiny "$work/m0" --validation_images "$photos/0.png"
refuses "validation with an unknown scheduler" "takes ddpm" tiny "$work/m0" --validation_prompt x --validation_scheduler euler
refuses "a super-resolver's text encoder" "reads the text encoder of another folder" tiny "$work/m0" --pretrained_model_name_or_path examples/world/sr256 --train_text_encoder
refuses "noise that leaves nothing" "lie in \[0,1)" tiny "$work/m0" --noise_variance 1
tiny "$work/v0" --pre_compute_text_embeddings --tokenizer_max_length 77 --text_encoder_use_attention_mask --lora_dropout 0 --report_to wandb \
    --validation_prompt "a zxk dog" --validation_steps 1 --num_validation_images 2 --validation_scheduler DDPMScheduler --learning_rate 2e-4 > "$work/out" 2>&1
tiny "$work/v1" --skip_save_text_encoder --max_train_steps 0 --num_train_epochs 1 --train_batch_size 3 --scale_lr --learning_rate 1e-4 > "$work/out" 2>&1
[ -e "$work/v0/validation-1.png" ] && [ -e "$work/v0/validation-2.png" ] && ok "validation pictures" || bad "validation pictures" "$(ls "$work/v0" | tr '\n' ' ')"
[ -e "$work/v1/unet/config.json" ] && [ ! -e "$work/v1/text_encoder/config.json" ] && grep -q '"text_encoder": \[null, null\]' "$work/v1/model_index.json" &&
    ok "skip_save_text_encoder" || bad "skip_save_text_encoder" "$(tail -n 1 "$work/out")"
grep -q "^2 steps" "$work/out" && ok "an epoch of $(ls $photos | wc -l) photos by 3" || bad "num_train_epochs" "$(tail -n 1 "$work/out")"
tiny "$work/v2" --max_train_steps 2 --train_batch_size 3 --learning_rate 3e-4 > "$work/out" 2>&1
[ "$(sum "$work/v1/$weights")" = "$(sum "$work/v2/$weights")" ] &&
    ok "scale_lr: three times the rate with batches of 3" || bad "scale_lr" "other weights than with three times the rate"

# ---- every flag of train that has an effect: other weights than without it; or none: the same
prior="--with_prior_preservation --class_prompt dog --class_data_dir $work/e-class --num_class_images 2 --class_steps 2"
effect() { # same|other FILE FLAGS CHANGE...: FILE after a training with FLAGS and each change in turn
    want=$1 file=$2 flags=$3; shift 3
    rm -rf "$work/e"; tiny "$work/e" $flags > "$work/out" 2>&1; reference=$(sum "$work/e/$file")
    for change in "$@"; do
        rm -rf "$work/e"; tiny "$work/e" $flags $change > "$work/out" 2>&1; got=other
        [ -s "$work/e/$file" ] || got=no
        [ "$reference" = "$(sum "$work/e/$file")" ] && got=same
        [ $got = "$want" ] && ok "$change: $got weights" || bad "$change" "$got weights, not $want: $(tail -n 1 "$work/out")"
    done
}
effect other $weights "" "--seed 1" "--learning_rate 2e-4" "--snr_gamma 5" "--snr_gamma inf" "--noise_offset .1" "--train_batch_size 2" "--max_train_steps 3" \
    "--gradient_accumulation_steps 2" "--mixed_precision bf16" "--use_8bit_adam" "--train_text_encoder" "--resolution 24" "--crop_size 8" \
    "--adam_beta1 .5" "--adam_beta2 .5" "--adam_weight_decay 1" "--adam_epsilon 1e-3" "--max_grad_norm .01"
effect other $weights "--crop_size 8" --center_crop
effect other $weights "--lr_scheduler constant_with_warmup" "--lr_warmup_steps 1"
effect other $weights "--lr_warmup_steps 0" "--lr_scheduler linear" "--lr_scheduler cosine"
effect other $weights "--max_train_steps 3 --lr_warmup_steps 0 --lr_scheduler cosine_with_restarts" "--lr_num_cycles 2"
effect other $weights "--max_train_steps 3 --lr_warmup_steps 0 --lr_scheduler polynomial" "--lr_power 2"
effect other $weights "--max_train_steps 0 --num_train_epochs 1" "--num_train_epochs 2"
effect other $weights "$prior --train_batch_size 4" "--prior_loss_weight .5" "--num_class_images 1" "--class_prompt cat --class_data_dir $work/e-cat" \
    "--class_steps 3 --class_data_dir $work/e-steps" "--class_guidance 3 --class_data_dir $work/e-guidance"
effect other text_encoder/model.safetensors "" --train_text_encoder
effect other $lora "--rank 2" "--rank 3" "--lora_alpha 1"
effect other $weights "--pretrained_model_name_or_path examples/world/sr256 --resolution 64 --crop_size 16 --max_train_steps 1" "--noise_variance .25"
effect same $weights "$prior" "--gradient_checkpointing" "--sample_batch_size 1 --class_data_dir $work/e-one" "--class_guidance 0 --class_data_dir $work/e-none" "--prior_loss_weight 1 --max_grad_norm 1" \
    "--adam_beta1 .9 --adam_beta2 .999 --adam_weight_decay .01 --adam_epsilon 1e-8" "--validation_prompt dog --validation_steps 1 --num_validation_images 1"
effect same $weights "--noise_offset .1" "--noise_offset 0 --offset_noise"

# ---- LoRA
says "a LoRA with 8-bit moments" "parameters trained" tiny "$work/l1" --rank 2 --use_8bit_adam --learning_rate 1e-2
[ -e "$work/l1/$lora" ] && [ ! -e "$work/l1/unet" ] && ok "a LoRA is saved alone" || bad "a LoRA is saved alone" "$(ls "$work/l1" | tr '\n' ' ')"
tiny "$work/l2" --rank 2 --use_8bit_adam --learning_rate 1e-2 --max_train_steps 1 --checkpointing_steps 1 > "$work/out" 2>&1
tiny "$work/l2" --rank 2 --use_8bit_adam --learning_rate 1e-2 --resume_from_checkpoint latest >> "$work/out" 2>&1
[ "$(sum "$work/l1/$lora")" = "$(sum "$work/l2/$lora")" ] && ok "a resumed LoRA: the same bits" || bad "a resumed LoRA" "$(tail -n 1 "$work/out")"
tiny "$work/l3" --rank 2 --max_train_steps 1 --learning_rate 0 > "$work/out" 2>&1; tiny "$work/l4" --rank 2 --max_train_steps 1 --learning_rate 5e-4 > "$work/out" 2>&1
[ "$(sum "$work/l3/$lora")" = "$(sum "$work/l4/$lora")" ] && ok "a LoRA's own rate, 5e-4" || bad "a LoRA's own rate" "$(tail -n 1 "$work/out")"
refuses "a LoRA's checkpoint without --rank" "another kind of training" tiny "$work/l2" --max_train_steps 3 --resume_from_checkpoint latest
draw="$tool generate --quiet --prompt dog --num_inference_steps 2 --height 16 --width 16 --pretrained_model_name_or_path $base"
$draw --output_dir "$work/g1" > "$work/out" 2>&1; says "generate with a LoRA" "1 pictures" $draw --output_dir "$work/g2" --lora "$work/l1"
[ "$(sum "$work/g1/00000.png")" != "$(sum "$work/g2/00000.png")" ] && ok "a LoRA changes the picture" || bad "a LoRA changes the picture" "the same bits"
$tool generate --quiet --prompt dog --num_images 2 --num_inference_steps 2 --height 32 --width 32 --pretrained_model_name_or_path $base --output_dir "$work/g3" > "$work/out" 2>&1
says "eval passes over the grid of generate" "class diversity" $tool eval --class_dir "$work/g3" --lpips examples/world/metrics/lpips
refuses "a LoRA as a model" "belongs to" $tool generate --prompt x --pretrained_model_name_or_path "$work/l1"
refuses "a LoRA that is not there" "cannot be opened" $tool generate --prompt x --pretrained_model_name_or_path $base --lora "$work/none"

# ---- photos
mkdir "$work/none" "$work/texts"
echo hello > "$work/texts/a.txt"
refuses "no photos" "$work/none holds no photos" tiny "$work/m0" --instance_data_dir "$work/none"
refuses "no folder" "cannot read the folder" tiny "$work/m0" --instance_data_dir "$work/nowhere"
refuses "only a text file" "holds no photos" tiny "$work/m0" --instance_data_dir "$work/texts"
[ ! -e "$work/m0" ] && ok "nothing written without photos" || bad "nothing written without photos" "$work/m0 is there"
says "a mixed folder trains" "2 steps" tiny "$work/m1" --instance_data_dir $mixed --resolution 64
for f in truncated.jpg empty.png notes.txt thumbnail.jpg; do
    tiny "$work/m2" --overwrite --instance_data_dir $mixed --resolution 64 > "$work/out" 2>&1
    grep "skipped" "$work/out" | grep -q $f && ok "skipped: $(grep "skipped.*$f" "$work/out")" || bad "$f is skipped with a notice" "$(head -n 3 "$work/out" | tr '\n' ' ')"
done
grep -q "warning: .*small.png has 60 x 50 pixels" "$work/out" && ok "a small photo: $(grep small.png "$work/out")" || bad "a small photo" "no warning"
grep -q "DS_Store" "$work/out" && bad ".DS_Store" "is mentioned" || ok ".DS_Store is passed over"

# ---- identifiers
says "identifier unknown to the tokenizer" 'identifier "日本" is unknown.*better: ' tiny "$work/i1" --instance_prompt "a 日本 dog" --class_prompt "a dog"
says "identifier that splits into letters" "splits into single letters.*better: " tiny "$work/i2" --instance_prompt "a x9w5q7h dog"
says "identifier that is a common word" "is a common word.*better: " tiny "$work/i3" --instance_prompt "a red dog"
says "the identifier of so many examples" "is a rifle.*better: " tiny "$work/i5" --instance_prompt "a sks dog"
tiny "$work/i4" > "$work/out" 2>&1; grep -q "warning: the identifier" "$work/out" && bad "a rare identifier" "$(cat "$work/out")" || ok "a rare identifier passes without a warning"

# ---- prior preservation, folders, class images
refuses "prior preservation without a class prompt" "needs --class_prompt" tiny "$work/p1" --with_prior_preservation
refuses "an output folder in use" "exists and holds something" tiny "$work/m1"
says "class images are drawn" "2 class images of \"a dog\", 2 of them new" tiny "$work/p2" --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 2 --class_steps 2
grep -n "parameters trained" "$work/out" | head -n 1 | grep -q "^1:" && [ "$(grep -c "parameters trained" "$work/out")" = 1 ] &&
    ok "what training needs is told before class images" || bad "what training needs is told before class images" "$(cat "$work/out")"
[ -s "$work/class/grid_class_16.png" ] && ok "class images have a grid" || bad "class images have a grid" "$(ls "$work/class")"
before=$(sum "$work/class/00001.png"); rm "$work/class/00001.png"
says "a missing class image is completed" "3 class images of \"a dog\", 2 of them new" tiny "$work/p3" --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 3 --class_steps 2
[ "$before" = "$(sum "$work/class/00001.png")" ] && ok "a class image depends on prompt and number alone" || bad "a class image depends on prompt and number alone" "it changed"
refuses "class images that are too small" "00000.png has less than 96 x 96" tiny "$work/p4" --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 2 --class_steps 2 --resolution 96
refuses "class images of another class" 'holds class images of "a dog", not of "a cat"' tiny "$work/p4" --with_prior_preservation --class_prompt "a cat" --class_data_dir "$work/class" --num_class_images 2 --class_steps 2
sed -i 's/^model .*/model 0/' "$work/class/prompt.txt"
refuses "class images of another model" "another model has drawn" tiny "$work/p4" --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 2 --class_steps 2
rm "$work/class/prompt.txt"
refuses "crops that do not fit, before class images" "crops of 32 pixels do not fit" tiny "$work/p6" --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class6" --num_class_images 2 --class_steps 2 --crop_size 32
[ -d "$work/class6" ] && [ -z "$(ls "$work/class6")" ] && ok "no class image is drawn for what cannot be trained" || bad "no class image is drawn for what cannot be trained" "$(ls "$work/class6")"
refuses "class images without a text encoder" "no text encoder" tiny "$work/p7" --pretrained_model_name_or_path "$work/v1" --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class7"
mkdir "$work/own"; cp $photos/00.png "$work/own/0-d1f3.PNG"; cp $photos/01.png "$work/own/1-a2b4.png"; echo text > "$work/own/notes.txt"; cp $photos/02.png "$work/own/grid_64.png"
says "class images of one's own are taken" "3 class images of \"a dog\", 1 of them new" tiny "$work/p5/made/too" --with_prior_preservation --class_prompt="a dog" \
    --class_data_dir "$work/own" --num_class_images 3 --class_steps 2

# ---- a learned variance is not trained: the fine-tuned model says that sampling takes the posterior's
copy() { rm -rf "$work/model"; cp -r $base "$work/model"; }
scheduler=scheduler/scheduler_config.json
copy; sed -i 's/"variance_type": "fixed_small"/"variance_type": "learned_range"/' "$work/model/$scheduler"
tiny "$work/s1" --pretrained_model_name_or_path "$work/model" > "$work/out" 2>&1
grep -q learned_range "$work/model/$scheduler" && cmp -s $base/$scheduler "$work/s1/$scheduler" &&
    ok "a learned variance is not kept" || bad "a learned variance is not kept" "$(grep variance_type "$work/s1/$scheduler" "$work/out")"

# ---- damaged models
copy; head -c 100000 $base/$weights > "$work/model/$weights"
refuses "truncated weights" "model/$weights" tiny "$work/d1" --pretrained_model_name_or_path "$work/model"
copy; rm "$work/model/$weights"
refuses "no weights" "no weights" tiny "$work/d1" --pretrained_model_name_or_path "$work/model"
copy; sed -i 's/"cross_attention_dim": 128/"cross_attention_dim": 96/' "$work/model/unet/config.json"
refuses "weights of another shape" "the configuration asks for" tiny "$work/d1" --pretrained_model_name_or_path "$work/model"
copy; sed -i 's/"layers_per_block": \[1, 1, 2, 1\]/"layers_per_block": [1, 2, 2, 1]/' "$work/model/unet/config.json"
refuses "a missing tensor" "down_blocks.1.*is missing" tiny "$work/d1" --pretrained_model_name_or_path "$work/model"
$tool info --pretrained_model_name_or_path "$work/model" > "$work/out" 2>&1
[ "$(grep -c "is missing, too" "$work/out")" -ge 2 ] && ok "info names further missing tensors" || bad "info names further missing tensors" "$(cat "$work/out")"
copy; sed -i 's/"num_layers": [0-9]*/"num_layers": 2/' "$work/model/text_encoder/config.json"
says "a tensor that no parameter takes" "does not know the tensor encoder.block.2.*ignored" $tool info --pretrained_model_name_or_path "$work/model"
copy; echo "{" > "$work/model/unet/config.json"
refuses "a damaged config.json" "unet/config.json" tiny "$work/d1" --pretrained_model_name_or_path "$work/model"
refuses "no model" "nothing-here" tiny "$work/d1" --pretrained_model_name_or_path "$work/nothing-here"
[ ! -e "$work/d1" ] && ok "nothing written without a model" || bad "nothing written without a model" "$work/d1 is there"

# ---- a full disk, a loss that is not a number, Ctrl-C
full() { (trap '' XFSZ; ulimit -f 2000; tiny "$@"); } # no file beyond 1 MB
refuses "a full disk" "cannot write\|File too large" full "$work/f1"
[ -z "$(find "$work/f1" -name '*.safetensors' -o -name '*.partial')" ] && ok "a full disk leaves no half-written file" || bad "a full disk leaves no half-written file" "$(ls "$work/f1" "$work/f1/unet" | tr '\n' ' ')"
tiny "$work/n1" --checkpointing_steps 2 > "$work/out" 2>&1
refuses "a loss that is not a number" "not a number" tiny "$work/n1" --max_train_steps 20 --learning_rate 1e30 --resume_from_checkpoint latest
says "goes on from the last good checkpoint" "1 steps" tiny "$work/n1" --max_train_steps 3 --resume_from_checkpoint latest
refuses "latest without a checkpoint, over a finished model" "holds something" tiny "$work/v2" --resume_from_checkpoint latest
says "latest without a checkpoint" "from the beginning" tiny "$work/n2" --max_train_steps 4 --checkpointing_steps 1 --resume_from_checkpoint latest
tiny "$work/n2" --max_train_steps 3 --checkpointing_steps 1 --checkpoints_total_limit 1 --resume_from_checkpoint checkpoint-2 > "$work/out" 2>&1
[ "$(ls "$work/n2" | grep checkpoint)" = checkpoint-3 ] && ok "going back, the newest checkpoint stays" || bad "going back" "$(ls "$work/n2" | tr '\n' ' ')"
refuses "a missing picture of validation" "nothing.png" tiny "$work/n3" --pretrained_model_name_or_path examples/world/sr256 --validation_prompt x --validation_images nothing.png
seq 1200 | sed "s|^|$work/many/checkpoint-|" | xargs mkdir -p; for f in "$work"/many/*; do echo > "$f/state.safetensors"; done
refuses "the newest of 1200 checkpoints" "checkpoint-1200/state" tiny "$work/many" --resume_from_checkpoint latest
run=exec
tiny "$work/c1" --max_train_steps 100000 > "$work/out" 2>&1 & pid=$!
waited=0
while [ $waited -lt 100 ] && ! grep -q "GFLOP a step" "$work/out"; do sleep 0.5; waited=$((waited + 1)); done # it trains now
sleep 1; kill -INT $pid; wait $pid; status=$?; run=
[ $status != 0 ] && grep -q "resume_from_checkpoint" "$work/out" && ls "$work/c1" | grep -q checkpoint && ok "Ctrl-C: $(grep stopped "$work/out")" || bad "Ctrl-C" "status $status, $(tail -n 1 "$work/out")"

# ---- kill -9 at twenty moments: the same bits as an undisturbed run, also with one thread
began=$(date +%s%N)
tiny "$work/k0" --max_train_steps 12 --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 2 > "$work/out" 2>&1
took=$((($(date +%s%N) - began) / 1000000)) reference=$(sum "$work/k0/$weights")
tiny "$work/k1" --max_train_steps 12 --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 2 --threads 1 > "$work/out" 2>&1
[ "$reference" = "$(sum "$work/k1/$weights")" ] && ok "1 and all threads: the same bits" || bad "1 and all threads" "different weights"
kills=0 rounds=0 moment=7
while [ $rounds -lt 60 ]; do
    rounds=$((rounds + 1)) run=exec
    tiny "$work/k2" --max_train_steps 12 --with_prior_preservation --class_prompt "a dog" --class_data_dir "$work/class" --num_class_images 2 \
        --checkpointing_steps 1 --checkpoints_total_limit 2 --resume_from_checkpoint latest > "$work/out" 2>&1 & pid=$!
    run=
    if [ $kills -lt 20 ]; then
        moment=$(((moment * 421 + 1663) % 7875)) # a share of that time: from loading to the last step
        sleep "$(awk "BEGIN { print $moment / 7875 * $took / 1000 }")"
        if kill -9 $pid 2> /dev/null; then kills=$((kills + 1)); fi
        wait $pid 2> /dev/null
        [ -e "$work/k2/$weights" ] && { [ $kills -ge 20 ] || rm -rf "$work/k2"; }
    else
        wait $pid && break
    fi
done
[ $kills = 20 ] && [ "$reference" = "$(sum "$work/k2/$weights")" ] && ok "killed $kills times and resumed: the same bits" || bad "killed $kills times and resumed" "$(tail -n 1 "$work/out")"

# ---- pictures
says "generate" "2 pictures" $tool generate --quiet --pretrained_model_name_or_path $base --num_inference_steps 2 --prompt "a dog" "a red car" --output_dir "$work/g1" --threads 1
$tool generate --quiet --pretrained_model_name_or_path $base --num_inference_steps 2 --prompt "a dog" "a red car" --output_dir "$work/g2" > /dev/null 2>&1
[ "$(sum "$work/g1/00001.png")" = "$(sum "$work/g2/00001.png")" ] && ok "pictures: the same bits with 1 and all threads" || bad "pictures" "differ between 1 and all threads"
plain="$tool generate --quiet --prompt dog --height 16 --width 16"
$plain --output_dir "$work/g5" > "$work/out" 2>&1
$plain --scheduler dpmsolver++ --num_inference_steps 20 --guidance_scale 4 --guidance_stop .6 --upscale_steps 10 --upscale_guidance 1 --noise_variance 1e-3 --output_dir "$work/g6" > "$work/out" 2>&1
[ "$(sum "$work/g5/00000.png")" = "$(sum "$work/g6/00000.png")" ] && ok "the shipped cascade is drawn with its own defaults" || bad "the shipped cascade is drawn with its own defaults" "other pictures than with them given"
small="$tool generate --quiet --prompt dog --num_inference_steps 4 --upscale_steps 1 --height 16 --width 16"
$small --output_dir "$work/g7" > "$work/out" 2>&1
for change in "--seed 1" "--negative_prompt cat" "--guidance_scale 2" "--guidance_stop 1" "--scheduler ddim" "--num_inference_steps 3" "--stages 1" \
    "--upscale_steps 2" "--upscale_guidance 3" "--noise_variance .25" "--mixed_precision bf16" "--height 24"; do
    rm -rf "$work/g8"; $small $change --output_dir "$work/g8" > "$work/out" 2>&1
    [ -s "$work/g8/00000.png" ] && [ "$(sum "$work/g7/00000.png")" != "$(sum "$work/g8/00000.png")" ] && ok "generate $change: another picture" ||
        bad "generate $change" "no picture, or the same: $(tail -n 1 "$work/out")"
done
three="$tool generate --quiet --prompt dog --num_inference_steps 2 --upscale_steps 1 --height 16 --width 16 --stages 3"
says "three stages, the last in squares" "1 pictures" $three --upscale_tile 64 --output_dir "$work/g3"
$three --upscale_tile 0 --output_dir "$work/g4" > /dev/null 2>&1
[ "$(sum "$work/g3/grid_64.png")" = "$(sum "$work/g4/grid_64.png")" ] && [ "$(sum "$work/g3/grid_256.png")" != "$(sum "$work/g4/grid_256.png")" ] &&
    ok "squares change what is larger than one, and nothing else" || bad "squares" "$(ls "$work/g3" "$work/g4" | tr '\n' ' ')"
refuses "no stages" "takes 1 to 3" $three --stages 0
says "a negative prompt that is too long" "the negative prompt, longer than 77 tokens, lost its end" $small --stages 1 --output_dir "$work/g9" \
    --negative_prompt "$(seq 100 | tr '\n' ' ')"
refuses "a folder that cannot be written into" "cannot write into /proc/self" $small --output_dir /proc/self
refuses "the same before training" "cannot write into /proc/self" tiny /proc/self --overwrite
refuses "no prompt" "needs --prompt" $tool generate
refuses "a sampler that does not exist" "takes ddpm, ddim" $tool generate --prompt x --scheduler euler
refuses "a picture of odd size" "multiples of 8" $tool generate --prompt x --width 60
says "tokenize" "^[0-9][0-9 ]*$" $tool tokenize "a zxk dog"
says "info" "forward pass" $tool info --pretrained_model_name_or_path $base

# ---- the main job and a super-resolver, in their fewest steps
says "demo" "more pictures:" $tool demo --quiet --instance_data_dir examples/world/subjects/dog1 --output_dir "$work/demo" --max_train_steps 1 \
    --upscaler_train_steps 1 --num_class_images 2 --class_steps 1 --train_batch_size 1 --num_inference_steps 1 --upscale_steps 1
for f in grid_64.png grid_256.png restored.png class.png loss.png loss_256.png summary.txt model/base/model_index.json model/sr256/model_index.json; do
    [ -e "$work/demo/$f" ] || bad "demo writes $f" "$(ls "$work/demo" | tr '\n' ' ')"
done
mkdir "$work/cascade"; cp -r examples/world/base examples/world/sr256 "$work/cascade"; rm -r "$work/cascade/base/tokenizer"
refuses "demo without a tokenizer" "no text encoder or no tokenizer" $tool demo --quiet --instance_data_dir $photos --output_dir "$work/demo2" --pretrained_model_name_or_path "$work/cascade"
refuses "demo into a folder in use" "holds something" $tool demo --instance_data_dir examples/world/subjects/dog1 --output_dir "$work/demo"
says "training a super-resolver" "1 steps" $tool train --quiet --pretrained_model_name_or_path examples/world/sr256 --instance_data_dir examples/world/subjects/dog1 \
    --instance_prompt "a zxk dog" --train_batch_size 1 --max_train_steps 1 --output_dir "$work/sr"
mkdir "$work/small"; cp "$work/g1/00000.png" "$work/small"
says "upscale" "1 pictures" $tool upscale --quiet --images "$work/small" --prompt "a zxk dog" --pretrained_model_name_or_path "$work/demo/model" --upscale_steps 1 \
    --output_dir "$work/up"
refuses "upscale into its own folder" "pictures to enlarge" $tool upscale --images "$work/small" --output_dir "$work/small"
mkdir "$work/odd"; cp $mixed/small.png "$work/odd"
says "upscale of odd sides" "1 pictures" $tool upscale --quiet --images "$work/odd" --downsample --pretrained_model_name_or_path "$work/demo/model" --upscale_steps 1 --output_dir "$work/up2"
mkdir "$work/mine"; cp "$work/g1/00000.png" "$work/mine"
refuses "generate over somebody's pictures" "not generate's" $tool generate --prompt dog --output_dir "$work/mine"
refuses "upscale over somebody's pictures" "not upscale's" $tool upscale --images "$work/small" --output_dir "$work/mine"
printf 'a dog\na red car\n' > "$work/prompts.txt"
says "eval" "CLIP-T" $tool eval --generated_dir "$work/g3" --instance_data_dir examples/world/subjects/dog1 --prompts "$work/prompts.txt" \
    --dino examples/world/metrics/dino --clip examples/world/metrics/clip
score() { # a score of the pictures of FOLDER with those lines, of which one serves for all
    mkdir -p "$work/score"; i=0
    for f in "$1"/0*.png; do cp "$f" "$work/score/0000$i.png"; i=$((i + 1)); done
    for f in "$work"/score/*; do echo "$2"; done > "$work/lines.txt"
    $tool eval --generated_dir "$work/score" --instance_data_dir $photos --held_out_dir "$work/g1" --prompts "$work/lines.txt" \
        --dino examples/world/metrics/dino --clip examples/world/metrics/clip --output_file "$work/score.json" > "$work/out" 2>&1
    rm -rf "$work/score"
    sed -n "s/.*\"$3\": \([-0-9.]*\).*/\1/p" "$work/score.json"
}
above() { awk "BEGIN { exit !(\"$2\" != \"\" && \"$3\" != \"\" && $2 > $3 + .1) }" && ok "eval: $1 ($2, $3)" || bad "eval: $1" "$2 is not above $3"; }
above "DINO is of the photos" "$(score $photos "a dog" dino)" "$(score $photos "a dog" dino_held_out)"
above "CLIP-I is of the pictures" "$(score $photos "a dog" clip_i)" "$(score "$work/g1" "a dog" clip_i)"
above "CLIP-T is of the lines" "$(score $photos "a dog" clip_t)" "$(score $photos "a red car" clip_t)"
cp -r "$work/g3" "$work/named"; mv "$work/named/00000.png" "$work/named/dog.png"
refuses "eval of a picture without a number" "line's number" $tool eval --generated_dir "$work/named" --prompts "$work/prompts.txt" --clip examples/world/metrics/clip
echo "$passed passed, $failed failed"
[ $failed = 0 ]
