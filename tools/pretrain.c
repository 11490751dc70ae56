/* pretrain - trains the networks of the shipped cascade from nothing.

   build/pretrain vocabulary --dir DIR                       writes DIR/tokenizer/spiece.model
   build/pretrain text --dir DIR --steps N                   trains DIR/text_encoder on sentences
   build/pretrain base --dir DIR --pool FILE --steps N       trains DIR/unet on a pool of pictures
   build/pretrain sr --dir DIR --text DIR2 --pool FILE       trains a super-resolver on crops
                     --size 64 --scale 4 --steps N           of a pool of whole large pictures

   All trainings keep their whole state in --state FILE and go on from it. They stop after the step
   in hand on SIGTERM or SIGINT, having saved; what they save on the way never loses more than
   --save_every steps. Weights go to DIR in f16 (their average) when they end. A new
   training starts from the weights in --init FILE, or from random ones. --device cuda|cpu|auto.

   The base, as PAPER_NOTES.md explains: prediction of v; the loss weighted threefold inside the
   renderer's object mask; an auxiliary head, dropped afterwards, that predicts mask and normals
   from the decoder's features; a learning rate that warms up, stays, and decays over the last
   --decay steps; half the size first (--size 32), then the whole.                              */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#define WORLD_IMPLEMENTATION
#include "world.h"
#define IMAGES_IMPLEMENTATION
#include "images.h"
#define SPIECE_IMPLEMENTATION
#include "spiece.h"
#include "training.h"
#include "threads.h"

enum { TOKENS = 77, TEXT_TOKENS = 32, PIECES_MULTIPLE = 64 };
enum {
    FOR_BATCH = FOR_INIT + 1,
    FOR_TIME,
    FOR_NOISE,
    FOR_MASK,
    FOR_CROP,
    FOR_LEVEL,
    FOR_LOW_RES
}; /* purposes of random streams */

/* ---- vocabulary ------------------------------------------------------------------------------ */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Counts the words of many sentences and writes them with the reserved pieces as a spiece.model. */
static int vocabulary(const options *o)
{
    enum { SENTENCES = 200000 };
    size_t n = 0, capacity = 4u << 20, distinct = 0, k;
    char **word = (char **)malloc(capacity * sizeof *word), buffer[WORLD_CAPTION_MAX], path[4096];
    spiece_word *list;
    if (!word) return fail("out of memory", NULL);
    for (k = 0; k < SENTENCES; k++) {
        char *w;
        world_text(world_seed(WORLD_PRETRAIN, k), buffer, sizeof buffer);
        for (w = strtok(buffer, " "); w && n < capacity; w = strtok(NULL, " ")) {
            size_t rare = 0;
            while (rare < world_n_rare && strcmp(world_rare[rare], w)) rare++;
            if (rare == world_n_rare) word[n++] = strdup(w);
        }
    }
    qsort(word, n, sizeof *word, by_text);
    list = (spiece_word *)calloc(n + 1, sizeof *list);
    for (k = 0; k < n; k++) {
        if (!k || strcmp(word[k], word[k - 1])) list[distinct++].text = word[k];
        list[distinct - 1].count++;
    }
    snprintf(path, sizeof path, "%s/tokenizer/spiece.model", o->dir);
    n = spiece_write(path, list, distinct, world_rare, world_n_rare, PIECES_MULTIPLE);
    if (!n) return fail("cannot write ", path);
    printf("%zu words, %d reserved pieces, %zu pieces in %s\n", distinct, (int)world_n_rare, n,
           path);
    return 0;
}

/* ---- the text encoder ------------------------------------------------------------------------ */

/* A sentence for the encoder. 40 % get a reserved word before one of theirs, and half of those say
   it twice ("a zxk dog and the zxk dog"), so that a word without meaning has to be carried along to
   be predicted. *rare is its number, or -1. */
static void text_sentence(uint64_t seed, const db_rng *rng, uint64_t r, char *out, size_t size,
                          int *rare)
{
    char plain[WORLD_CAPTION_MAX], *word[64];
    size_t n = 0, at, k, length = 0;
    world_text(seed, plain, sizeof plain);
    *rare = -1;
    if (db_random_uniform(rng, r) >= 0.4f) {
        snprintf(out, size, "%s", plain);
        return;
    }
    for (word[0] = strtok(plain, " "); word[n] && n < 63; word[++n] = strtok(NULL, " ")) {}
    if (!n) word[n++] = plain;
    *rare = (int)db_random_below(rng, r + 1, world_n_rare);
    at = db_random_below(rng, r + 2, (uint32_t)n);
    out[0] = 0;
    for (k = 0; k < n && length + 2 * 16 < size; k++)
        length += (size_t)snprintf(out + length, size - length, "%s%s%s%s", k ? " " : "",
                                   k == at ? world_rare[*rare] : "", k == at ? " " : "", word[k]);
    if (db_random_uniform(rng, r + 3) < 0.5f)
        snprintf(out + length, size - length, " and the %s %s", world_rare[*rare], word[at]);
}

/* Two tasks on text alone. Spans of tokens, 15-30 % of a sentence, are replaced by a mask piece and
   predicted in their places: span corruption, decoded in parallel. And the mean of all states has
   to tell a word of the sentence, the reserved one above all, so that the pooled encoding tells
   sentences apart that differ in a meaningless word. The output layer of both is the embedding
   itself. */
static int train_text(const options *o, db_ctx *ctx)
{
    char path[4096], sentence[2 * WORLD_CAPTION_MAX];
    db_text_config c;
    db_text_encoder *e = NULL;
    db_tokenizer *tok = NULL;
    db_tape *t = NULL;
    db_tensor ids, mask, targets, told, y, table, loss, pooled_loss;
    trainer tr;
    size_t dim[2], B = (size_t)o->batch, n = B * TEXT_TOKENS, k, i;
    int32_t *in = (int32_t *)malloc(n * 4), *goal = (int32_t *)malloc(n * 4), valid[TEXT_TOKENS],
            word[256];
    float *attend = (float *)malloc(n * sizeof(float));
    double sum = 0, pooled_sum = 0, summed = 0, began;
    memset(&tr, 0, sizeof tr);
    if (B > 256) return fail("--batch is at most 256", NULL);
    snprintf(path, sizeof path, "%s/text_encoder/config.json", o->dir);
    db_text_config_load(ctx, path, &c);
    snprintf(path, sizeof path, "%s/tokenizer", o->dir);
    if (db_tokenizer_load(ctx, path, &tok) != DB_OK) return fail(db_last_error(ctx), NULL);
    if (db_tokenizer_size(tok) >= c.vocab_size)
        return fail("the vocabulary has no room for the mask piece", NULL);
    if (db_text_encoder_create(ctx, &c, &e) != DB_OK ||
        init_trainer(&tr, &e->params, o, state_exists(o)) != DB_OK)
        return fail(db_last_error(ctx), NULL);
    db_tape_create(ctx, &t);
    dim[0] = B, dim[1] = TEXT_TOKENS;
    ids = db_input(t, DB_I32, 2, dim), mask = db_input(t, DB_F32, 2, dim),
    targets = db_input(t, DB_I32, 2, dim);
    dim[1] = 1, told = db_input(t, DB_I32, 2, dim);
    y = db_text_forward(t, e, ids, mask); /* [B,T,D] */
    {
        db__net net;
        memset(&net, 0, sizeof net);
        net.tape = t, net.params = &e->params;
        y = db_weighted_sum(t, 1.0f / sqrtf((float)c.d_model), y, 0, db_none);
        table = db__weight(&net, "shared.weight", c.vocab_size, c.d_model, 0, 0);
    }
    loss = db_cross_entropy(t, db_linear(t, y, table, db_none, db_none), targets);
    pooled_loss =
        db_cross_entropy(t, db_linear(t, db_mean_tokens(t, y), table, db_none, db_none), told);
    db_backward(t, db_weighted_sum(t, 1, loss, 0.5f, pooled_loss));
    began = now() - tr.seconds;
    for (; tr.step < (uint64_t)o->steps && !stop_asked && db_status(ctx) == DB_OK; tr.step++) {
        float value = 0, pooled_value = 0;
        db_rng rng;
        rng.seed = (uint64_t)o->seed, rng.purpose = FOR_MASK, rng.step = (uint32_t)tr.step;
        for (k = 0; k < B; k++) {
            int32_t *row = in + k * TEXT_TOKENS, *g = goal + k * TEXT_TOKENS;
            size_t length = 0, masked, want;
            uint64_t r = k * 1000;
            int rare;
            text_sentence(world_seed(WORLD_PRETRAIN, tr.step * B + k), &rng, r, sentence,
                          sizeof sentence, &rare);
            r += 4;
            db_tokenize(tok, sentence, TEXT_TOKENS, row, valid, NULL);
            for (i = 0; i < TEXT_TOKENS; i++) {
                length += (size_t)valid[i];
                attend[k * TEXT_TOKENS + i] = valid[i] ? 0.0f : -1e9f;
                g[i] = -1;
            }
            word[k] = row[db_random_below(&rng, r++, (uint32_t)DB__MAX(1, length - 1))];
            if (rare >= 0 && db_random_uniform(&rng, r++) < 0.7f) {
                char piece[32];
                snprintf(piece, sizeof piece, "\xe2\x96\x81%s", world_rare[rare]);
                word[k] = db_tokenizer_find(tok, piece);
            }
            want = DB__MAX(
                1, (size_t)((0.15f + 0.15f * db_random_uniform(&rng, r++)) * (float)length));
            for (masked = 0; masked < want;) {
                size_t at = db_random_below(&rng, r++, (uint32_t)length),
                       span = 1 + db_random_below(&rng, r++, 3);
                for (i = at; i < length && i < at + span && masked < want; i++)
                    if (g[i] < 0) g[i] = row[i], row[i] = (int32_t)c.vocab_size - 1, masked++;
                if (r > k * 1000 + 900) break;
            }
        }
        db_upload(t, ids, in), db_upload(t, mask, attend), db_upload(t, targets, goal),
            db_upload(t, told, word);
        db_zero_grad(&e->params);
        db_run(t, (uint64_t)o->seed, (uint32_t)tr.step);
        db_download(t, loss, &value), db_download(t, pooled_loss, &pooled_value);
        db_optimizer_step(&tr.opt, learning_rate(o, tr.step), 1, NULL);
        db_ema_update(&e->params, tr.ema, ema_decay(o, tr.step));
        sum += (double)value, pooled_sum += (double)pooled_value, summed++;
        if ((tr.step + 1) % 200 == 0) {
            printf("text %llu loss %.4f pooled %.4f %.0f s\n", (unsigned long long)tr.step + 1,
                   sum / summed, pooled_sum / summed, now() - began),
                fflush(stdout);
            sum = pooled_sum = summed = 0;
        }
        if ((tr.step + 1) % (uint64_t)o->save_every == 0 && o->state) {
            tr.step++, tr.seconds = now() - began, save_state(&tr, o->state), tr.step--;
        }
    }
    tr.seconds = now() - began;
    if (o->state) save_state(&tr, o->state);
    snprintf(path, sizeof path, "%s/text_encoder/model.safetensors", o->dir);
    db_params_save(&e->params, tr.ema, path, DB_F16);
    if (db_status(ctx) != DB_OK) return fail(db_last_error(ctx), NULL);
    printf("text encoder: %llu steps, %.0f s -> %s\n", (unsigned long long)tr.step, tr.seconds,
           path);
    return stopped();
}

/* ---- the base -------------------------------------------------------------------------------- */

static const char *const sheet_prompts[] = {"a red dog on the beach",
                                            "a blue teapot in the snow",
                                            "a green car in the city at night",
                                            "a yellow duck on the grass",
                                            "a purple backpack in the desert",
                                            "a white cat on a wooden table",
                                            "a brown boot in the forest",
                                            "an orange mug on the moon",
                                            "a black robot in a kitchen",
                                            "a yellow rabbit on a red carpet",
                                            "a blue owl under water",
                                            "a red turtle on pink fabric",
                                            "a white candle on a cobblestone street",
                                            "a green clock in a swimming pool",
                                            "a purple bear on the beach",
                                            "a brown vase on the grass",
                                            "a dog",
                                            "a cat",
                                            "a teapot",
                                            "a car",
                                            "a blue dog seen from the front",
                                            "a blue dog seen from the side",
                                            "a blue dog seen from the back",
                                            "a blue dog seen from above",
                                            "a red cat wearing a hat in the snow",
                                            "a sleeping orange dog on the grass",
                                            "a spotted black and white duck",
                                            "a pencil sketch of a robot",
                                            "pixel art of a green car",
                                            "a striped red mug",
                                            "a dog wearing sunglasses on the beach",
                                            "a white rabbit in a crown"};
enum { SHEET = sizeof sheet_prompts / sizeof *sheet_prompts };

/* A labelled sheet of samples of the average weights: DDIM, 30 steps, guidance 3. */
static void write_sheet(const options *o, db_unet *u, trainer *tr, const db_schedule *s,
                        db_text_encoder *e, const db_tokenizer *tok)
{
    size_t row = TOKENS * e->config.d_model;
    float *text = (float *)malloc((2 * SHEET + 16) * row * sizeof(float)),
          *part = text + 2 * SHEET * row, *pixels;
    const char *prompts[2 * SHEET];
    const uint8_t *pictures[SHEET];
    size_t P = (size_t)(o->size * o->size * 3), k, i;
    uint8_t *bytes = (uint8_t *)malloc(SHEET * P);
    db_sample_config c = db_sample_config_default();
    img_grid_config g = img_grid_config_default();
    img_image sheet;
    char path[4096], title[200], err[IMG_ERROR_SIZE];
    float *params = u->params.data;
    for (k = 0; k < SHEET; k++) prompts[k] = "", prompts[SHEET + k] = sheet_prompts[k];
    db_encode(e, tok, prompts, 2 * SHEET, TOKENS, text, NULL);
    pixels = (float *)malloc(SHEET * P * sizeof(float));
    c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = 30, c.guidance_scale = 3, c.seed = 1;
    for (i = 0; i < u->params.n; i++)
        u->params.item[i].data = tr->ema + (u->params.item[i].data - params);
    for (k = 0; k < SHEET; k += 8) { /* eight at a time, to keep the arena small */
        memcpy(part, text + k * row, 8 * row * sizeof(float));
        memcpy(part + 8 * row, text + (SHEET + k) * row, 8 * row * sizeof(float));
        c.seed = 1 + k;
        db_sample(u, s, &c, part, TOKENS, e->config.d_model, 8, (size_t)o->size, (size_t)o->size, 3,
                  pixels + k * P);
    }
    for (i = 0; i < u->params.n; i++)
        u->params.item[i].data = params + (u->params.item[i].data - tr->ema);
    db_to_rgb(pixels, SHEET * P, bytes);
    for (k = 0; k < SHEET; k++) pictures[k] = bytes + k * P;
    snprintf(title, sizeof title, "step %llu, %llu pictures seen, %.0f min",
             (unsigned long long)tr->step, (unsigned long long)tr->seen, tr->seconds / 60);
    g.title = title, g.columns = 8, g.scale = o->size > 32 ? 2 : 4;
    snprintf(path, sizeof path, "%s/sheet_%07llu.png", o->sheets, (unsigned long long)tr->step);
    if (img_grid(pictures, sheet_prompts, SHEET, (size_t)o->size, (size_t)o->size, &g, &sheet, err,
                 sizeof err) == IMG_OK) {
        if (img_save_png(path, sheet.rgb, sheet.w, sheet.h, err, sizeof err) != IMG_OK)
            fprintf(stderr, "%s\n", err);
        img_free(&sheet);
    }
    free(bytes);
    free(pixels);
    free(text);
}

/* Averages f x f pixels of 8-bit planes [..][row][channels] into floats. */
static float average(const unsigned char *p, size_t row, size_t channels, size_t y, size_t x,
                     size_t f, size_t ch)
{
    float sum = 0;
    size_t dy, dx;
    for (dy = 0; dy < f; dy++)
        for (dx = 0; dx < f; dx++) sum += p[((y * f + dy) * row + x * f + dx) * channels + ch];
    return sum / (float)(f * f);
}

/* Picture i of the pool at `size` (the pool's, or half of it by averaging) in [-1,1], its object
   weight (mean 1) and the auxiliary head's target at half that size: mask in [0,1], normals in
   [-1,1]. */
static void read_picture(const world_pool *pool, size_t i, size_t size, float *rgb, float *weight,
                         float *aux)
{
    size_t S = pool->header->size, f = S / size, A = S / 2, x, y, ch;
    const unsigned char *p = pool->rgb + i * S * S * 3, *a = pool->aux + i * A * A * 4;
    double total = 0;
    for (y = 0; y < size; y++)
        for (x = 0; x < size; x++) {
            for (ch = 0; ch < 3; ch++)
                rgb[(y * size + x) * 3 + ch] = average(p, S, 3, y, x, f, ch) / 127.5f - 1;
            total += weight[y * size + x] =
                1 + 2 * (float)a[(y * A / size * A + x * A / size) * 4] / 255.0f;
        }
    for (x = 0; x < size * size; x++) weight[x] *= (float)((double)(size * size) / total);
    for (y = 0; y < size / 2; y++)
        for (x = 0; x < size / 2; x++)
            for (ch = 0; ch < 4; ch++) {
                float v = average(a, A, 4, y, x, f, ch) / 255.0f;
                aux[(y * (size / 2) + x) * 4 + ch] = ch ? 2 * v - 1 : v;
            }
}

/* A random crop of picture i, and the low-resolution image around it as the network will read it:
   the whole picture downsampled by `scale`, upscaled and noised by the library. `room` holds a
   whole picture and its small one. */
static void read_crop(const options *o, const world_pool *pool, size_t i,
                      const db_schedule *noising, double level, const db_rng *rng, float *room,
                      float *rgb, float *low_res)
{
    size_t S = pool->header->size, f = (size_t)o->scale, size = (size_t)o->size, x0, y0, y, k;
    const unsigned char *p = pool->rgb + i * S * S * 3;
    float *small = room + S * S * 3;
    db_rng at = *rng;
    at.purpose = FOR_CROP;
    x0 = db_random_below(&at, 2 * i, (uint32_t)(S - size + 1)),
    y0 = db_random_below(&at, 2 * i + 1, (uint32_t)(S - size + 1));
    for (k = 0; k < S * S * 3; k++) room[k] = (float)p[k] / 127.5f - 1;
    db_downsample(room, S, S, 3, f, small);
    for (y = 0; y < size; y++)
        memcpy(rgb + y * size * 3, room + ((y0 + y) * S + x0) * 3, size * 3 * sizeof(float));
    db_condition_low_res(noising, level, rng, small, S / f, S / f, 3, S, S, y0, x0, size, size,
                         low_res);
}

/* Noise levels of super-resolution: half of them uniform over the schedule, as IF has it, half with
   a variance that is log-uniform from 1e-5 to .2, where fine-tuning and sampling happen. */
static double draw_level(const db_schedule *noising, const db_rng *rng, uint64_t k)
{
    double u = (double)db_random_uniform(rng, 2 * k + 1);
    if (db_random_uniform(rng, 2 * k) < 0.5f) return u * (double)(noising->num_train_timesteps - 1);
    return db_noise_level(noising, 1e-5 * pow(2e4, u));
}

/* A timestep with density min(1, 5 sigma_t^2): where little noise hides little, predicting it to
   the last digit would take most of the gradient and teach no shapes. */
static size_t draw_timestep(const db_schedule *s, const db_rng *rng, uint64_t k)
{
    uint64_t j;
    size_t t = 0;
    for (j = 0; j < 50; j++) {
        t = db_random_below(rng, 100 * k + 2 * j, (uint32_t)s->num_train_timesteps);
        if ((double)db_random_uniform(rng, 100 * k + 2 * j + 1) < 5 * (1 - s->alphas_cumprod[t]))
            break;
    }
    return t;
}

/* The first picture from `at` on that shows a back, if there is one: every sixth of a batch. 14 %
   of the pool do, too few to be told from fronts. */
static size_t next_back(const world_pool *pool, size_t at)
{
    size_t n = (size_t)pool->header->count, k;
    for (k = 0; k < n; k++)
        if (pool->scenes[(at + k) % n].view == WORLD_BACK) return (at + k) % n;
    return at;
}

static int train_unet(const options *o, db_ctx *ctx, int sr)
{
    char path[4096], caption[WORLD_CAPTION_MAX], err[256];
    db_unet_config c;
    db_unet *u = NULL;
    db_text_encoder *e = NULL;
    db_tokenizer *tok = NULL;
    db_schedule s, noising;
    world_pool pool;
    trainer tr;
    db_tape *t = NULL, *tt = NULL;
    db_unet_features features;
    db_tensor x, alpha, sigma, minus, time, words, weight = db_none, low_res = db_none,
                                                   labels = db_none, aux_goal = db_none,
                                                   aux_weight = db_none;
    db_tensor eps, x_t, v, loss, total, aux_loss = db_none, ids, valid, encoded;
    size_t B = (size_t)o->batch, S = (size_t)o->size, P = S * S, A = S / 2, T = TOKENS, k, i,
           dim[4];
    float *pixels = (float *)malloc(B * P * 3 * 4), *weights = (float *)malloc(B * P * 4),
          *goals = (float *)malloc(B * A * A * 4 * 4);
    float *room = NULL, *lows = (float *)malloc(B * P * 3 * 4), a[256], g[256], m[256], tm[256],
          aw[256], levels[256], *text, *mask = (float *)malloc(B * T * 4);
    int32_t *tokens = (int32_t *)malloc(2 * B * T * 4);
    double sum = 0, aux_sum = 0, summed = 0, began;
    memset(&tr, 0, sizeof tr);
    if (B > 256) return fail("--batch is at most 256", NULL);
    if (world_pool_open(o->pool ? o->pool : "", &pool, err, sizeof err)) return fail(err, NULL);
    if (!sr && pool.header->size != S && pool.header->size != 2 * S)
        return fail("--size must be the pool's or half of it", NULL);
    if (sr && (pool.header->size < S || pool.header->size % (size_t)o->scale))
        return fail("--size and --scale do not fit the pool", NULL);
    if (sr)
        room =
            (float *)malloc((size_t)pool.header->size * pool.header->size * 2 * 3 * sizeof(float));
    snprintf(path, sizeof path, "%s/tokenizer", o->text), db_tokenizer_load(ctx, path, &tok);
    snprintf(path, sizeof path, "%s/text_encoder", o->text), db_text_encoder_load(ctx, path, &e);
    snprintf(path, sizeof path, "%s/scheduler/scheduler_config.json", o->dir),
        db_schedule_load(ctx, path, &s);
    if (sr)
        snprintf(path, sizeof path, "%s/image_noising_scheduler/scheduler_config.json", o->dir),
            db_schedule_load(ctx, path, &noising);
    snprintf(path, sizeof path, "%s/unet/config.json", o->dir), db_unet_config_load(ctx, path, &c);
    if (db_status(ctx) != DB_OK || db_unet_create(ctx, &c, &u) != DB_OK)
        return fail(db_last_error(ctx), NULL);
    if (!sr && c.n_levels < 3) return fail("the auxiliary head needs a base of three levels", NULL);
    if (!sr) { /* the auxiliary head is one more parameter of the table while training */
        size_t from = c.block_out_channels[c.n_levels - 2], shape[4];
        shape[0] = 4, shape[1] = from, shape[2] = shape[3] = 1;
        db__params_declare(&u->params, "aux.weight", 4, shape);
        db__params_declare(&u->params, "aux.bias", 1, shape);
        ctx->backend->release(ctx, u->params.data);
        db__params_allocate(&u->params);
    }
    if (init_trainer(&tr, &u->params, o, state_exists(o)) != DB_OK)
        return fail(db_last_error(ctx), NULL);

    /* the text encoder on a tape of its own: frozen */
    text = (float *)malloc(B * T * e->config.d_model * 4);
    db_tape_create(ctx, &tt);
    dim[0] = B, dim[1] = T;
    ids = db_input(tt, DB_I32, 2, dim), valid = db_input(tt, DB_F32, 2, dim);
    encoded = db_text_forward(tt, e, ids, valid);
    db_keep(tt, encoded);

    /* E[ w |v_hat(alpha x + sigma eps, c) - v|^2 ] + aux * |head(features) - truth|^2 */
    db_tape_create(ctx, &t);
    dim[0] = B, dim[1] = S, dim[2] = S, dim[3] = 3;
    x = db_input(t, DB_F32, 4, dim);
    if (sr) low_res = db_input(t, DB_F32, 4, dim), labels = db_input(t, DB_F32, 1, dim);
    else weight = db_input(t, DB_F32, 3, dim);
    alpha = db_input(t, DB_F32, 1, dim), sigma = db_input(t, DB_F32, 1, dim),
    minus = db_input(t, DB_F32, 1, dim), time = db_input(t, DB_F32, 1, dim);
    dim[1] = T, dim[2] = e->config.d_model;
    words = db_input(t, DB_F32, 3, dim);
    eps = db_normal_like(t, x, FOR_NOISE);
    x_t = db_mix(t, alpha, x, sigma, eps); /* alpha x + sigma eps */
    v = db_mix(t, alpha, eps, minus, x);   /* alpha eps - sigma x */
    if (sr)
        x_t =
            db_concat(t, db_cast(t, x_t, config_dtype(o)), db_cast(t, low_res, config_dtype(o)), 3);
    total = loss = db_mse(t, db_unet_forward(t, u, x_t, time, words, labels, &features), v, db_none,
                          weight, NULL);
    if (!sr) {
        db__net net;
        memset(&net, 0, sizeof net);
        net.tape = t, net.params = &u->params;
        dim[1] = A, dim[2] = A, dim[3] = 4;
        aux_goal = db_input(t, DB_F32, 4, dim), aux_weight = db_input(t, DB_F32, 1, dim);
        aux_loss =
            db_mse(t, db__conv_layer(&net, "aux", features.up[c.n_levels - 3], 4, 1, db_none),
                   aux_goal, aux_weight, db_none, NULL);
        total = db_weighted_sum(t, 1, loss, (float)o->aux, aux_loss);
    }
    db_backward(t, total);
    {
        db_memory_plan plan;
        if (db_plan(t, &plan) == DB_OK)
            printf("%s: %.2fM parameters, %zu pictures in the pool, batch %zu at %zu px: %.0f MB, "
                   "%.1f GFLOP a step, %s %s\n",
                   sr ? "sr" : "base", (double)u->params.count / 1e6, (size_t)pool.header->count, B,
                   S, (double)plan.arena_bytes / 1e6, plan.flops / 1e9,
                   db_isa(ctx), o->bf16 ? "bf16" : "f32");
        fflush(stdout);
    }
    began = now() - tr.seconds;
    while (tr.step < (uint64_t)o->steps && !stop_asked && db_status(ctx) == DB_OK) {
        db_rng rng;
        float value = 0, aux_value = 0;
        rng.seed = (uint64_t)o->seed, rng.step = (uint32_t)tr.step;
        for (k = 0; k < B; k++) {
            size_t at, step_t;
            rng.purpose = FOR_BATCH, at = db_random_below(&rng, k, (uint32_t)pool.header->count);
            if (!sr && k % 6 == 0) at = next_back(&pool, at);
            rng.purpose = FOR_TIME;
            step_t = sr ? db_random_below(&rng, k, (uint32_t)s.num_train_timesteps)
                        : draw_timestep(&s, &rng, k);
            if (sr) {
                double level;
                rng.purpose = FOR_LEVEL, level = draw_level(&noising, &rng, k);
                rng.purpose = FOR_LOW_RES + (uint32_t)k;
                read_crop(o, &pool, at, &noising, level, &rng, room, pixels + k * P * 3,
                          lows + k * P * 3);
                levels[k] = (float)level;
            } else {
                read_picture(&pool, at, S, pixels + k * P * 3, weights + k * P,
                             goals + k * A * A * 4);
                aw[k] = step_t < 800 ? 1.0f : 0.0f; /* nothing to be seen in almost pure noise */
            }
            db_schedule_coefficients(&s, step_t, &a[k], &g[k]);
            m[k] = -g[k];
            tm[k] = (float)step_t;
            world_caption(&pool.scenes[at], tr.step * B + k, caption, sizeof caption);
            db_tokenize(tok, caption, T, tokens + k * T, tokens + (B + k) * T, NULL);
            for (i = 0; i < T; i++) mask[k * T + i] = tokens[(B + k) * T + i] ? 0.0f : -1e9f;
        }
        db_upload(tt, ids, tokens), db_upload(tt, valid, mask);
        db_run(tt, 0, 0);
        db_download(tt, encoded, text);
        db_upload(t, x, pixels), db_upload(t, words, text);
        db_upload(t, alpha, a), db_upload(t, sigma, g), db_upload(t, minus, m),
            db_upload(t, time, tm);
        if (sr) db_upload(t, low_res, lows), db_upload(t, labels, levels);
        else
            db_upload(t, weight, weights), db_upload(t, aux_goal, goals),
                db_upload(t, aux_weight, aw);
        db_zero_grad(&u->params);
        db_run(t, (uint64_t)o->seed, (uint32_t)tr.step);
        db_download(t, loss, &value);
        if (!sr) db_download(t, aux_loss, &aux_value);
        db_optimizer_step(&tr.opt, learning_rate(o, tr.step), 1, NULL);
        db_ema_update(&u->params, tr.ema, ema_decay(o, tr.step));
        tr.step++, tr.seen += B;
        tr.seconds = now() - began;
        sum += (double)value, aux_sum += (double)aux_value, summed++;
        if (tr.step % 200 == 0) {
            printf("%s %llu loss %.4f aux %.4f lr %.1e seen %llu %.0f s %.1f pictures/s\n",
                   sr ? "sr" : "base", (unsigned long long)tr.step, sum / summed, aux_sum / summed,
                   (double)learning_rate(o, tr.step), (unsigned long long)tr.seen, tr.seconds,
                   (double)tr.seen / tr.seconds);
            fflush(stdout);
            sum = aux_sum = summed = 0;
        }
        if (o->state && tr.step % (uint64_t)o->save_every == 0) save_state(&tr, o->state);
        if (!sr && o->sheets && tr.step % (uint64_t)o->sheet_every == 0)
            write_sheet(o, u, &tr, &s, e, tok);
    }
    if (db_status(ctx) == DB_OK && o->state) save_state(&tr, o->state);
    if (db_status(ctx) == DB_OK && !sr && o->sheets) write_sheet(o, u, &tr, &s, e, tok);
    if (!sr) u->params.n -= 2; /* the head goes */
    snprintf(path, sizeof path, "%s/unet/diffusion_pytorch_model.safetensors", o->dir);
    if (db_status(ctx) == DB_OK) db_params_save(&u->params, tr.ema, path, DB_F16);
    if (db_status(ctx) != DB_OK) return fail(db_last_error(ctx), NULL);
    printf("%s: %llu steps, %llu pictures, %.0f s -> %s\n", sr ? "sr" : "base",
           (unsigned long long)tr.step, (unsigned long long)tr.seen, tr.seconds, path);
    return stopped();
}

int main(int argc, char **argv)
{
    options o;
    db_ctx *ctx;
    int status;
    let_threads_sleep(argv);
    memset(&o, 0, sizeof o);
    o.steps = 1000, o.batch = 16, o.size = 64, o.scale = 4, o.warmup = 300, o.save_every = 1000,
    o.sheet_every = 2000, o.lr = 8e-4, o.ema = 0.9995, o.aux = 0.3, o.seed = 1;
    if (argc < 2) return fail("vocabulary, text, base or sr?", NULL);
    if (!read_flags(&o, argc, argv)) return 1;
    if (!strcmp(argv[1], "vocabulary")) return vocabulary(&o);
    if (!(ctx = open_context(&o))) return 1;
    status = !strcmp(argv[1], "text") ? train_text(&o, ctx)
        : !strcmp(argv[1], "base")    ? train_unet(&o, ctx, 0)
        : !strcmp(argv[1], "sr")      ? train_unet(&o, ctx, 1)
                                      : fail("unknown command ", argv[1]);
    db_destroy(ctx);
    return status;
}
