/* Fuzzes what stands between a checkpoint's files and its networks. The input's first byte chooses:
     U, V, T   the config.json of a U-Net, an autoencoder or a text encoder: parsed, built, its
               forward pass recorded
     D, C, L   the same of DINO, CLIP, LPIPS
     S         a scheduler_config.json, and the timesteps of a few steps
     other     a list of tensors, which become a single LDM file: each is a letter for a name, a
               rank and the sizes

     make fuzz_checkpoint          or, once built, with inputs of one's own:
     build/fuzz_checkpoint -max_total_time=120 CORPUS */

#define DREAMBOOTH_IMPLEMENTATION
#include "../dreambooth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* At most 64 MB: what asks for more fails, as on a machine that is full. */
typedef union block {
    size_t bytes;
    char alignment[64];
} block;
static size_t allocated;

static void *limited(void *user, size_t bytes)
{
    size_t limit = (size_t)64 << 20;
    block *b = bytes > limit - allocated ? NULL : (block *)malloc(bytes + sizeof *b);
    (void)user;
    if (!b) return NULL;
    allocated += bytes, b->bytes = bytes;
    return b + 1;
}

static void release(void *user, void *memory)
{
    block *b = (block *)memory - 1;
    (void)user;
    if (!memory) return;
    allocated -= b->bytes;
    free(b);
}

/* Builds a network of one kind from its configuration's text, with weights of zero. */
static void build(db_ctx *ctx, const db__network *kind, const char *text, size_t n)
{
    const db_json *j = db_json_parse(ctx, "config.json", text, n);
    void *config = db__alloc(ctx, 1, kind->config_bytes);
    if (j && config && db__config_read(ctx, kind, j, "config.json", config) == DB_OK)
        db__network_free(db__network_create(ctx, kind, config, "config.json"));
    db__free(ctx, config);
    db_json_free(j);
}

static void schedule(db_ctx *ctx, const char *text, size_t n)
{
    const db_json *j = db_json_parse(ctx, "scheduler_config.json", text, n);
    db_trajectory tr;
    db_schedule s;
    int k;
    memset(&s, 0, sizeof s);
    if (j && db__schedule_read(ctx, j, "scheduler_config.json", &s) == DB_OK)
        for (k = 0; k < 3 && ctx->result == DB_OK; k++) {
            float x[4] = {1, -1, 0.5f, 0}, pred[8] = {0}, noise[4] = {0};
            size_t i;
            if (db_trajectory_init(&s, (db_sampler)k, 5, 4, &tr) == DB_OK)
                for (i = 0; i < tr.n && ctx->result == DB_OK; i++) {
                    if (tr.timestep[i] >= s.num_train_timesteps) abort();
                    db_trajectory_step(&tr, i, 1, 1, 4, 8, pred, noise, x);
                }
            db_trajectory_free(&tr);
        }
    db_schedule_free(&s);
    db_json_free(j);
}

/* A file whose tensors the input lists: names from those that a checkpoint has, shapes as they
   come. */
static void load_ldm(db_ctx *ctx, const uint8_t *data, size_t size)
{
    static const char *const names[] = {
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.0.out_layers.3.weight",
        "model.diffusion_model.input_blocks.1.1.norm.weight",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.input_blocks.3.0.out_layers.3.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.conv_in.weight",
        "first_stage_model.decoder.conv_out.weight",
        "first_stage_model.decoder.conv_in.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "first_stage_model.encoder.down.1.block.0.conv1.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "conditioner.embedders.0.weight",
        "lora_unet_x.lora_down.weight",
        "model_ema.decay"};
    enum { NAMES = sizeof names / sizeof *names };
    enum { ROOM = 1 << 20 };
    static char header[1 << 15], file[ROOM + (1 << 15)];
    int used[NAMES];
    size_t n = 1, at = 0, count = 0, bytes = 0;
    db_pipeline *p = (db_pipeline *)db__alloc(ctx, 1, sizeof *p);
    db_safetensors *st = NULL;
    if (!p) return;
    p->ctx = ctx, p->directory = db__strdup(ctx, "/nowhere");
    memset(used, 0, sizeof used);
    header[0] = '{';
    while (at < size && bytes < ROOM) {
        size_t name = data[at++] % NAMES, rank = at < size ? data[at++] % 5 : 0, k, all;
        if (used[name]++) continue;
        n += (size_t)sprintf(header + n, "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[",
                             count++ ? "," : "", names[name]);
        for (k = 0, all = 1; k < rank && at < size; k++, at++) {
            size_t d = all * data[at] * 2 > ROOM - bytes ? 1 : data[at];
            all *= d;
            n += (size_t)sprintf(header + n, "%s%zu", k ? "," : "", d);
        }
        n += (size_t)sprintf(header + n, "],\"data_offsets\":[%zu,%zu]}", bytes, bytes + all * 2);
        bytes += all * 2;
    }
    header[n++] = '}';
    for (at = 0; at < 8; at++) file[at] = (char)(n >> 8 * at & 255);
    memcpy(file + 8, header, n);
    memset(file + 8 + n, 0, bytes);
    if (db_safetensors_open_memory(ctx, "fuzz", file, n + 8 + bytes, &st) == DB_OK)
        db__load_single(p, "fuzz.safetensors", st);
    db_safetensors_close(st);
    db_pipeline_free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    db_config config = db_config_default();
    db_ctx *ctx;
    const char *text = (const char *)data + 1;
    config.allocate = limited, config.release = release, config.threads = 1;
    if (size < 2 || db_create(&ctx, &config) != DB_OK) return 0;
    if (*data == 'U') build(ctx, &db__unet_network, text, size - 1);
    else if (*data == 'V') build(ctx, &db__vae_network, text, size - 1);
    else if (*data == 'T') build(ctx, &db__text_network, text, size - 1);
    else if (*data == 'D') build(ctx, &db__vit_network, text, size - 1);
    else if (*data == 'C') build(ctx, &db__clip_network, text, size - 1);
    else if (*data == 'L') build(ctx, &db__lpips_network, text, size - 1);
    else if (*data == 'S') schedule(ctx, text, size - 1);
    else load_ldm(ctx, data + 1, size - 1);
    if (ctx->live_bytes != 0) abort();
    db_destroy(ctx);
    return 0;
}
