/* Stable Diffusion's networks, schedulers and pipelines against diffusers and transformers: outputs and the
   gradient of every parameter, for what golden/make_sd.py computed; and what bad input gets. */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "test.h"
#include "networks.h"

/* ---- files ---------------------------------------------------------------------------------------------------- */

static char scratch[300]; /* a folder for this run */

static const char *at(const char *name)
{
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

static void write_text(const char *name, const char *text)
{
    FILE *f = fopen(at(name), "wb");
    if (f) fputs(text, f), fclose(f);
}

/* Writes a table without the first `skip` characters of its names; `leave` is left out, `bend` gets a further row. */
static void write_params(db_ctx *ctx, const db_param_table *p, const char *name, size_t skip, const char *leave, const char *bend)
{
    db_safetensors_writer *w = db_safetensors_create(ctx, at(name));
    float *row = (float *)calloc(1 << 20, sizeof *row);
    size_t k, pass;
    for (pass = 0; pass < 2; pass++)
        for (k = 0; k < p->n; k++) {
            size_t dim[4];
            if (leave && !strcmp(p->item[k].name, leave)) continue;
            memcpy(dim, p->item[k].dim, sizeof dim);
            dim[0] += bend && !strcmp(p->item[k].name, bend);
            db_param_get(&p->item[k], p->item[k].data, row);
            if (!pass) db_safetensors_declare(w, p->item[k].name + skip, DB_F32, p->item[k].n_dims, dim);
            else db_safetensors_write_f32(w, p->item[k].name + skip, row);
        }
    free(row);
    db_safetensors_finish(w);
}

/* The context must have failed, with a sentence that holds both words. */
static void expect(db_ctx *ctx, const char *name, db_result code, const char *a, const char *b)
{
    const char *error = db_last_error(ctx);
    if (db_status(ctx) == code && strstr(error, a) && strstr(error, b)) test_pass(name, "%s", error);
    else test_fail(name, "%s, \"%s\"; expected %s with \"%s\" and \"%s\"", db_result_name(db_status(ctx)), error, db_result_name(code), a, b);
    db_clear_error(ctx);
}

static void check_text_files(db_ctx *ctx)
{
    static const char config[] = "{\"model_type\": \"clip_text_model\", \"vocab_size\": 40, \"hidden_size\": 16, \"intermediate_size\": 24, "
                                 "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"hidden_act\": \"quick_gelu\"}";
    static const char bias[] = "text_model.encoder.layers.0.mlp.fc1.bias";
    db_text_encoder *e = NULL, *f = NULL;
    db_text_config c;
    write_text("config.json", config);
    db_text_config_load(ctx, at("config.json"), &c);
    if (db_text_encoder_create(ctx, &c, &e) != DB_OK) {
        test_fail("clip files", "%s", db_last_error(ctx));
        db_clear_error(ctx);
        return;
    }
    fill_params(&e->params);
    write_params(ctx, &e->params, "model.safetensors", strlen("text_model."), NULL, NULL);
    db_text_encoder_load(ctx, scratch, &f);
    test_check(f && !memcmp(e->params.data, f->params.data, e->params.count * sizeof(float)), "clip without the prefix text_model.", "the same weights");
    db_text_encoder_free(f);
    db_clear_error(ctx);
    write_params(ctx, &e->params, "model.safetensors", 0, bias, NULL);
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, a tensor missing", DB_ERROR_MISSING, "model.safetensors", bias);
    write_params(ctx, &e->params, "model.safetensors", 0, NULL, bias);
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, a tensor misshaped", DB_ERROR_SHAPE, "has shape [25]", "asks for [24]");
    remove(at("model.safetensors"));
    write_text("model.safetensors.index.json", "{\"metadata\": {}, \"weight_map\": {\"text_model.final_layer_norm.bias\": \"model-0000");
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, a truncated shard index", DB_ERROR_FORMAT, "model.safetensors.index.json", "");
    write_text("config.json", "{\"model_type\": \"siglip_text_model\"}");
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "a text encoder of another kind", DB_ERROR_UNSUPPORTED, "config.json", "siglip_text_model");
    write_text("config.json", "{\"model_type\": \"clip_text_model\", \"vocab_size\": 40, \"hidden_size\": 15, \"intermediate_size\": 24, "
                              "\"num_hidden_layers\": 1, \"num_attention_heads\": 2}");
    db_text_encoder_load(ctx, scratch, &f);
    expect(ctx, "clip, heads that do not fit", DB_ERROR_FORMAT, "config.json", "hidden_size");
    remove(at("model.safetensors.index.json"));
    remove(at("config.json"));
    db_text_encoder_free(e);
}

/* networks/NAME/config.json with `to` in place of `from` must be refused with a sentence that holds `word`. */
static void refuse_config(db_ctx *ctx, const char *name, const char *from, const char *to, const char *word)
{
    char path[300], text[8192], changed[8192], label[200];
    FILE *f;
    size_t n;
    const char *where;
    db_unet_config c;
    snprintf(path, sizeof path, "tests/golden/networks/%s/config.json", name);
    f = fopen(path, "rb");
    n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    where = strstr(text, from);
    snprintf(label, sizeof label, "%s with %s", name, to);
    if (!where) {
        test_fail(label, "%s does not hold %s", path, from);
        return;
    }
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(where - text), text, to, where + strlen(from));
    write_text("config.json", changed);
    db_unet_config_load(ctx, at("config.json"), &c);
    expect(ctx, label, strstr(word, "level") || strstr(word, "head") ? DB_ERROR_FORMAT : DB_ERROR_UNSUPPORTED, "config.json", word);
    remove(at("config.json"));
}

static void check_unet_configs(db_ctx *ctx)
{
    refuse_config(ctx, "sd_a", "\"CrossAttnDownBlock2D\"", "\"AttnDownBlock2D\"", "AttnDownBlock2D");
    refuse_config(ctx, "sd_a", "\"UNetMidBlock2DCrossAttn\"", "\"UNetMidBlock2D\"", "UNetMidBlock2D");
    refuse_config(ctx, "sd_a", "\"attention_head_dim\": 2", "\"attention_head_dim\": 3", "attention_head_dim");
    refuse_config(ctx, "sd_a", "\"layers_per_block\": 1", "\"layers_per_block\": [1]", "2 levels");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 3", "level 0");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 2, \"addition_embed_type\": \"text_time\"", "text_time");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 2, \"conv_in_kernel\": 1", "conv_in_kernel");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 2, \"num_class_embeds\": 10", "num_class_embeds");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 2, \"resnet_time_scale_shift\": \"spatial\"", "spatial");
    refuse_config(ctx, "sd_a", "\"norm_num_groups\": 2", "\"norm_num_groups\": 2, \"resnet_skip_time_act\": true", "resnet_skip_time_act");
    refuse_config(ctx, "if1_a", "\"text_proj\"", "\"image_proj\"", "image_proj");
}

int main(int argc, char **argv)
{
    static const char *const clips[] = {"clip_a", "clip_b", "clip_c"}, *const unets[] = {"sd_a", "sd_b", "sd_c"};
    size_t k;
    db_ctx *ctx;
    (void)argc;
    test_let_threads_sleep(argv);
    snprintf(scratch, sizeof scratch, "%s/test_sd_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(scratch) || db_create(&ctx, NULL) != DB_OK) return 1;
    for (k = 0; k < sizeof clips / sizeof *clips; k++) check_text_encoder(ctx, clips[k]);
    check_text_files(ctx);
    for (k = 0; k < sizeof unets / sizeof *unets; k++) check_unet(ctx, unets[k], 1e-4, 1e-3);
    check_unet_configs(ctx);
    db_destroy(ctx);
    rmdir(scratch);
    return test_summary();
}
