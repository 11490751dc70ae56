"""Do diffusers and transformers load the shipped cascade and what we fine-tune of it, and compute the same?

    python3 tests/check_diffusers.py [DIRECTORY ...]     (torch, diffusers, transformers; build/dreambooth)

Loads each pipeline directory's U-Net and T5 encoder with diffusers and transformers, runs both sides on the same
random inputs (ours through `build/dreambooth probe`), compares, and draws one picture with diffusers' own pipeline.
Without arguments: all stages as shipped, and the first two after two steps of fine-tuning. The super-resolvers have no text
encoder of their own; their pipelines get the base's embeddings."""
import json, os, subprocess, sys, tempfile
import numpy as np, torch, diffusers, transformers
from safetensors.numpy import load_file, save_file

LIMIT = 1e-3
passed = failed = 0


def report(name, error):
    global passed, failed
    ok = error <= LIMIT
    passed, failed = passed + ok, failed + (not ok)
    print(f"{'ok' if ok else 'FAIL'} {name}: {error:.1e}")


def probe(model, part, inputs):
    with tempfile.TemporaryDirectory() as d:
        save_file({k: np.ascontiguousarray(v.numpy()) for k, v in inputs.items()}, f"{d}/in.safetensors")
        subprocess.run(["build/dreambooth", "probe", "--pretrained_model_name_or_path", model, "--part", part, "--in", f"{d}/in.safetensors",
                        "--out", f"{d}/out.safetensors"], check=True)
        return torch.from_numpy(next(iter(load_file(f"{d}/out.safetensors").values())))


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def fine_tuned(stage, out):
    subprocess.run(["build/dreambooth", "train", "--quiet", "--pretrained_model_name_or_path", f"examples/world/{stage}", "--instance_data_dir",
                    "examples/world/subjects/dog1", "--instance_prompt", "a zxk dog", "--max_train_steps", "2", "--learning_rate", "1e-3",
                    "--train_batch_size", "1", "--output_dir", out], check=True)
    return out


def embeddings(prompt):
    base = "examples/world/base"
    text = transformers.T5EncoderModel.from_pretrained(base, subfolder="text_encoder").float().eval()
    tokenizer = transformers.T5Tokenizer.from_pretrained(base, subfolder="tokenizer")
    ids = tokenizer([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return text(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state


scratch = tempfile.TemporaryDirectory()
models = sys.argv[1:] or ["examples/world/base", "examples/world/sr256", "examples/world/sr1024"] + [fine_tuned(s, f"{scratch.name}/{s}") for s in ("base", "sr256")]
for model in models:
    torch.manual_seed(0)
    index = json.load(open(f"{model}/model_index.json"))
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet").float().eval()
    c = unet.config
    x = {"sample": torch.randn(2, c.in_channels, 32, 48), "timestep": torch.tensor([700.0, 20.0]), "encoder_hidden_states": torch.randn(2, 77, c.encoder_hid_dim or c.cross_attention_dim)}
    if c.class_embed_type:
        x["class_labels"] = torch.tensor([250.0, 3.0])
    with torch.no_grad():
        theirs = unet(x["sample"], x["timestep"], x["encoder_hidden_states"], class_labels=x.get("class_labels")).sample
    report(f"{model} unet", relative(probe(model, "unet", x), theirs))
    if os.path.exists(f"{model}/text_encoder/config.json"):
        text = transformers.T5EncoderModel.from_pretrained(model, subfolder="text_encoder").float().eval()
        tokenizer = transformers.T5Tokenizer.from_pretrained(model, subfolder="tokenizer")
        ids = tokenizer(["a red dog on the beach", "a zxk teapot"], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            theirs = text(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
        inputs = {"input_ids": ids.input_ids.int(), "attention_mask": ids.attention_mask.int()}
        report(f"{model} text encoder", relative(probe(model, "text_encoder", inputs), theirs))
        ours = subprocess.run(["build/dreambooth", "tokenize", "--pretrained_model_name_or_path", model, "a red dog on the beach"], capture_output=True, text=True, check=True).stdout.split()
        report(f"{model} tokenizer", float(ours != [str(i) for i in ids.input_ids[0].tolist() if i > 2]))
    if index["_class_name"] == "IFPipeline":
        pipe = diffusers.IFPipeline.from_pretrained(model, safety_checker=None, feature_extractor=None, watermarker=None, torch_dtype=torch.float32)
        picture = pipe("a red dog on the beach", num_inference_steps=5, guidance_scale=3.0, output_type="pt").images
        report(f"{model} IFPipeline draws {tuple(picture.shape)}", float(not torch.isfinite(picture).all()))
    else:
        pipe = diffusers.IFSuperResolutionPipeline.from_pretrained(model, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
                                                                   watermarker=None, torch_dtype=torch.float32)
        picture = pipe(image=torch.rand(1, 3, 64, 64) * 2 - 1, prompt_embeds=embeddings("a dog"), negative_prompt_embeds=embeddings(""), noise_level=20,
                       height=256, width=256, num_inference_steps=2, guidance_scale=2.0, output_type="pt").images
        report(f"{model} IFSuperResolutionPipeline draws {tuple(picture.shape)}", float(not torch.isfinite(picture).all()))
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
