/* pretrain_metrics - trains the world's metric networks from nothing.

   build/pretrain_metrics dino --dir DIR --pool FILE --steps N        a ViT by self-distillation
   build/pretrain_metrics clip --dir DIR --pool FILE --steps N        a CLIP, contrastively
   build/pretrain_metrics lpips --dir DIR --pool FILE --steps N       a distance, the renderer's
   build/pretrain_metrics classifier --dir DIR --pool FILE --steps N  attributes (tools only)

   DIR holds config.json, and but for lpips preprocessor_config.json (for clip spiece.model, too),
   and gets model.safetensors in f16: the average of the weights. Make the pool of scenes that
   nothing else is trained on: `build/world pool --out FILE --split metric --size 64 --count 60000`.
   Stopping, --state and the other flags are those of pretrain.c.                                */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#define WORLD_IMPLEMENTATION
#include "world.h"
#include "classifier.h"
#include "training.h"
#include "threads.h"
#include "statistics.h"

/* purposes of random streams */
enum { FOR_BATCH = FOR_INIT + 1, FOR_VIEW, FOR_CHANGE, FOR_BLUR, FOR_GRAIN };
enum { EVERY = 100 }; /* steps from line to line */

/* ---- what the trainings share ---------------------------------------------------------------- */

typedef struct session {
    const options *o;
    db_ctx *ctx;
    const char *name;
    world_pool pool;
    trainer tr;
    db_tape *tape;
    db_tensor loss;
    double sum, began; /* of the loss since the last line */
    size_t summed;     /* in so many steps                */
} session;

static int open_session(session *s, const options *o, db_ctx *ctx, const char *name)
{
    char error[300];
    memset(s, 0, sizeof *s);
    s->o = o, s->ctx = ctx, s->name = name;
    if (!o->pool) return fail("--pool is needed", NULL), 0;
    if (world_pool_open(o->pool, &s->pool, error, sizeof error)) return fail(error, NULL), 0;
    if (s->pool.header->size != s->pool.header->virtual_size)
        return fail("the pool must hold whole pictures: ", o->pool), 0;
    return 1;
}

/* Before the first step: random weights or a saved state, the loss and its gradient. */
static db_result start(session *s, db_param_table *params)
{
    return init_trainer(&s->tr, params, s->o, state_exists(s->o));
}

static void record_loss(session *s, db_tensor loss)
{
    db_memory_plan plan;
    s->loss = loss;
    db_backward(s->tape, loss);
    if (db_plan(s->tape, &plan) != DB_OK) return;
    printf("%s: %.2fM parameters, %llu pictures in the pool, batch %ld: %.0f MB, %.1f GFLOP a "
           "step, %s %s\n",
           s->name, (double)s->tr.params->count / 1e6, (unsigned long long)s->pool.header->count,
           s->o->batch, (double)plan.arena_bytes / 1e6, plan.flops / 1e9,
           db_isa(s->ctx), s->o->bf16 ? "bf16" : "f32");
    fflush(stdout);
    s->began = now() - s->tr.seconds;
}

static int running(const session *s)
{
    return s->tr.step < (uint64_t)s->o->steps && !stop_asked && db_status(s->ctx) == DB_OK;
}

/* Runs the tape on the inputs that are there and updates the weights. Returns 0, or when it is time
   for a line the steps since the last; *mean is then their loss. */
static size_t update(session *s, double *mean)
{
    size_t steps;
    trainer *tr = &s->tr;
    float value = 0;
    db_zero_grad(tr->params);
    db_run(s->tape, (uint64_t)s->o->seed, (uint32_t)tr->step);
    db_download(s->tape, s->loss, &value);
    db_optimizer_step(&tr->opt, learning_rate(s->o, tr->step), 1, NULL);
    db_ema_update(tr->params, tr->ema, ema_decay(s->o, tr->step));
    tr->step++, tr->seen += (uint64_t)s->o->batch;
    tr->seconds = now() - s->began;
    s->sum += (double)value, steps = ++s->summed;
    if (s->o->state && tr->step % (uint64_t)s->o->save_every == 0) save_state(tr, s->o->state);
    if (tr->step % EVERY) return 0;
    *mean = s->sum / (double)steps, s->sum = 0, s->summed = 0;
    return steps;
}

static void line(const session *s, double loss, const char *rest)
{
    printf("%s %llu loss %.4f%s lr %.1e %.0f s %.1f pictures/s\n", s->name,
           (unsigned long long)s->tr.step, loss, rest, (double)learning_rate(s->o, s->tr.step),
           s->tr.seconds, (double)s->tr.seen / s->tr.seconds);
    fflush(stdout);
}

/* Saves the state and, in f16, the average of the parameters. */
static int finish(session *s)
{
    char path[4096];
    if (s->o->state && db_status(s->ctx) == DB_OK) save_state(&s->tr, s->o->state);
    snprintf(path, sizeof path, "%s/model.safetensors", s->o->dir);
    if (db_status(s->ctx) == DB_OK) db_params_save(s->tr.params, s->tr.ema, path, DB_F16);
    if (db_status(s->ctx) != DB_OK) return fail(db_last_error(s->ctx), NULL);
    printf("%s: %llu steps, %.0f s -> %s\n", s->name, (unsigned long long)s->tr.step, s->tr.seconds,
           path);
    db_tape_destroy(s->tape);
    db_optimizer_free(&s->tr.opt);
    db_ema_free(s->tr.params, s->tr.ema);
    world_pool_close(&s->pool);
    return stopped();
}

static db_rng stream(const session *s, uint32_t purpose)
{
    db_rng rng;
    rng.seed = (uint64_t)s->o->seed, rng.purpose = purpose, rng.step = (uint32_t)s->tr.step;
    return rng;
}

/* The pool's picture for place k of this step's batch; the last tenth is kept for tests. */
static size_t draw_picture(const session *s, uint64_t k)
{
    db_rng rng = stream(s, FOR_BATCH);
    return db_random_below(&rng, k, (uint32_t)(s->pool.header->count * 9 / 10));
}

static db_image pool_picture(const session *s, size_t i)
{
    db_image image;
    image.w = image.h = s->pool.header->size;
    image.rgb = s->pool.rgb + i * image.w * image.h * 3;
    return image;
}

/* A square of a picture: out [side,side,3], of which the view is returned. */
static db_image cut(const db_image *from, size_t x0, size_t y0, size_t side, uint8_t *out)
{
    db_image part;
    size_t y;
    for (y = 0; y < side; y++)
        memcpy(out + y * side * 3, from->rgb + ((y0 + y) * from->w + x0) * 3, side * 3);
    part.rgb = out, part.w = part.h = side;
    return part;
}

/* The object of the pool's picture i as another photo might show it: of a scene drawn anew all else
   is taken, place, light, view, pose, accessory, style. rgb [S,S,3]. */
static void show_elsewhere(const session *s, size_t i, uint64_t k, uint8_t *rgb)
{
    const world_scene *own = &s->pool.scenes[i];
    const world_pool_header *h = s->pool.header;
    uint64_t seed = h->seed + h->count + s->tr.step * 65536 + k;
    int S = (int)h->size;
    world_scene scene;
    world_sample(seed, &scene);
    scene.object = own->object, scene.head = own->head, scene.glyph = own->glyph;
    memcpy(scene.shape, own->shape, sizeof scene.shape);
    memcpy(scene.rgb, own->rgb, 3 * sizeof *scene.rgb); /* the fourth is the accessory's */
    memcpy(scene.marks, own->marks, sizeof scene.marks);
    scene.n_marks = own->n_marks, scene.pattern = own->pattern;
    scene.pattern_period = own->pattern_period, scene.pattern_phase = own->pattern_phase;
    if (!world_is_animal(scene.object)) scene.pose = WORLD_STANDING;
    world_set_view(&scene, scene.view, seed);
    world_render(&scene, S, 0, 0, S, S, 2, rgb, NULL);
}

/* A square picture of `from` pixels a side scaled to `to`, in place; x is room for the larger. */
static void rescale(db_ctx *ctx, uint8_t *rgb, size_t from, size_t to, float *x)
{
    db_image image;
    image.rgb = rgb, image.w = image.h = from;
    db_resize(ctx, &image, to, to, x);
    db_to_rgb(x, to * to * 3, rgb);
}

/* A square of `low` to `high` of the picture's area, at the network's size, a little darker or
   lighter in each colour: out [S,S,3] as the processor gives them. */
static void draw_view(session *s, const db_image_processor *p, size_t S, const db_image *image,
                      uint64_t k, double low, double high, float *out)
{
    db_rng rng = stream(s, FOR_VIEW);
    double area = low + (high - low) * (double)db_random_uniform(&rng, 8 * k);
    size_t side = (size_t)((double)image->w * sqrt(area) + 0.5), x0, y0, i;
    uint8_t *crop = (uint8_t *)malloc(side * side * 3);
    db_image part;
    float gain[3];
    x0 = db_random_below(&rng, 8 * k + 1, (uint32_t)(image->w - side + 1));
    y0 = db_random_below(&rng, 8 * k + 2, (uint32_t)(image->h - side + 1));
    for (i = 0; i < 3; i++) gain[i] = 0.85f + 0.3f * db_random_uniform(&rng, 8 * k + 3 + i);
    part = cut(image, x0, y0, side, crop);
    db_resize(s->ctx, &part, S, S, out);
    for (i = 0; i < S * S * 3; i++) {
        float v = DB__MIN(1.0f, (out[i] / 2 + 0.5f) * gain[i % 3]);
        out[i] = (v - p->image_mean[i % 3]) / p->image_std[i % 3];
    }
    free(crop);
}

static db_tensor input_pictures(db_tape *t, size_t B, size_t S)
{
    size_t dim[4];
    dim[0] = B, dim[1] = dim[2] = S, dim[3] = 3;
    return db_input(t, DB_F32, 4, dim);
}

/* ---- DINO ------------------------------------------------------------------------------------
   What DINO does (Caron et al., 2021), with the loss of MoCo v3 (Chen et al., 2021): a student sees
   a crop of a picture and has to find, by cosine, what its own average (the teacher) makes of
   another picture of the same scene among the batch's others, from any side and in another place,
   as different photos of a thing would be. The last steps' pictures are more to tell apart (MoCo's
   queue): with the batch alone few are of one class. No class or caption is seen, and no subject
   occurs.

   DINO's own loss, agreement on a distribution over prototypes that the teacher centres, needs
   batches of a thousand: with 32 it led to all of the 1024 prototypes or to fifteen (PAPER_NOTES).
   It is ViT features learned by self-distillation that the metric asks for.                     */

enum { QUEUE = 2048 };
static const float dino_temperature = 0.07f;

/* x [B,S,S,3] -> unit vectors [B,D]: the features themselves, which the metric compares. A head of
   two layers before the loss, to be dropped, kept from the features what it had learned. */
static db_tensor dino_forward(db_tape *t, db_vit *m, db_tensor x)
{
    return db_unit_norm(t, db_vit_forward(t, m, x));
}

/* A ViT from DIRECTORY/config.json and preprocessor_config.json, weights zero. NULL after an error;
   free with db_vit_free. */
static db_vit *empty_vit(db_ctx *ctx, const char *directory)
{
    char path[4096];
    db_vision_config c;
    db_vit *m = NULL;
    snprintf(path, sizeof path, "%s/config.json", directory);
    if (db_vit_config_load(ctx, path, &c) != DB_OK || db_vit_create(ctx, &c, &m) != DB_OK)
        return NULL;
    snprintf(path, sizeof path, "%s/preprocessor_config.json", directory);
    if (db_image_processor_load(ctx, path, &m->processor) == DB_OK) return m;
    db_vit_free(m);
    return NULL;
}

/* How often two photos of one development subject are more alike than photos of two. */
static double dino_auc(db_vit *m)
{
    enum { MOST = world_n_dev * world_max_photos };
    size_t S = m->config.image_size, D = m->config.hidden_size, n = 0, i, j;
    uint8_t *rgb = (uint8_t *)malloc(MOST * S * S * 3);
    float *z = (float *)malloc(MOST * D * sizeof *z);
    double *same = (double *)malloc(MOST * MOST * sizeof *same), auc;
    double *other = (double *)malloc(MOST * MOST * sizeof *other);
    db_image image[MOST];
    int subject[MOST], a, b;
    size_t n_same = 0, n_other = 0;
    for (a = 0; a < world_n_dev; a++)
        for (b = 0; b < world_subject(a).n_photos; b++, n++) {
            world_scene scene;
            world_subject_photo(a, b, &scene);
            world_render(&scene, (int)S, 0, 0, (int)S, (int)S, 3, rgb + n * S * S * 3, NULL);
            image[n].rgb = rgb + n * S * S * 3, image[n].w = image[n].h = S;
            subject[n] = a;
        }
    db_vit_embed(m, image, n, z);
    for (i = 0; i < n; i++)
        for (j = i + 1; j < n; j++) {
            double c = db_cosine_paired(z + i * D, z + j * D, 1, D);
            if (subject[i] == subject[j]) same[n_same++] = c;
            else other[n_other++] = c;
        }
    auc = stat_auc(same, n_same, other, n_other);
    free(rgb), free(z), free(same), free(other);
    return auc;
}

/* scale a b^T: every cosine of two batches of unit vectors, [A,P] and [B,P] -> [A,B] */
static db_tensor cosines_of(db_tape *t, db_tensor a, db_tensor b, float scale)
{
    a = db_linear(t, a, db_cast(t, b, DB_F32), db_none, db_none);
    return db_weighted_sum(t, scale, a, 0, db_none);
}

/* The place of the largest of n numbers. */
static size_t best_of(const float *x, size_t n)
{
    size_t best = 0, k;
    for (k = 1; k < n; k++) best = x[k] > x[best] ? k : best;
    return best;
}

static int train_dino(const options *o, db_ctx *ctx)
{
    session s;
    size_t B = (size_t)o->batch, N = 2 * B, all = N + QUEUE, S, P, D, k, j, dim[2], right = 0;
    size_t queued = 0; /* pictures so far; the queue is a ring */
    db_vit *m, *teacher;
    db_tape *tt = NULL;
    db_tensor x, scores, tx, z, keys, mask, targets;
    float *views, *embedded, *row, *hidden, *room;
    int32_t *partner;
    uint8_t *pictures; /* [N,S,S,3], of the pool and elsewhere */
    double loss;
    int threads = db__threads(ctx);
    (void)threads;
    if (!open_session(&s, o, ctx, "dino")) return 1;
    m = empty_vit(ctx, o->dir);
    teacher = m ? empty_vit(ctx, o->dir) : NULL;
    if (!m || !teacher || start(&s, &m->params) != DB_OK) return fail(db_last_error(ctx), NULL);
    S = m->config.image_size, P = S * S * 3, D = m->config.hidden_size;
    if (s.pool.header->size != S)
        return fail("the pool's pictures are not of the network's size", NULL);
    for (k = 0; k < m->params.n; k++) /* the teacher is the student's average */
        teacher->params.item[k].data = s.tr.ema + (m->params.item[k].data - m->params.data);
    db_tape_create(ctx, &tt), db_tape_create(ctx, &s.tape);
    tx = input_pictures(tt, N, S);
    z = dino_forward(tt, teacher, tx); /* [N,D] */
    db_keep(tt, z);
    x = input_pictures(s.tape, N, S);
    dim[0] = all, dim[1] = D, keys = db_input(s.tape, DB_F32, 2, dim);
    dim[0] = N, dim[1] = all, mask = db_input(s.tape, DB_F32, 2, dim);
    dim[1] = 1, targets = db_input(s.tape, DB_I32, 2, dim);
    scores = cosines_of(s.tape, dino_forward(s.tape, m, x), keys, 1 / dino_temperature);
    scores = db_weighted_sum(s.tape, 1, scores, 1, db_cast(s.tape, mask, s.tape->compute));
    db_keep(s.tape, scores);
    record_loss(&s, db_cross_entropy(s.tape, scores, targets));
    views = (float *)malloc(N * P * sizeof *views), room = (float *)malloc(P * sizeof *room);
    pictures = (uint8_t *)malloc(N * P);
    embedded = (float *)calloc(all * D, sizeof *embedded);
    row = (float *)malloc(N * all * sizeof *row), hidden = (float *)calloc(N * all, sizeof *hidden);
    partner = (int32_t *)malloc(N * sizeof *partner);
    for (k = 0; k < N; k++) { /* a crop is not to find itself, but its picture's other */
        hidden[k * all + k] = -1e9f;
        for (j = N; j < all; j++) hidden[k * all + j] = -1e9f; /* the queue is empty */
        partner[k] = (int32_t)((k + B) % N);
    }
    db_upload(s.tape, targets, partner);
    while (running(&s)) {
        db_rng blur = stream(&s, FOR_BLUR);
        char rest[100];
        long task;
        for (k = 0; k < B; k++)
            memcpy(pictures + k * P, s.pool.rgb + draw_picture(&s, k) * P, P);
        DB__OMP(omp parallel for num_threads(threads) schedule(dynamic))
        for (task = 0; task < (long)B; task++)
            show_elsewhere(&s, draw_picture(&s, (uint64_t)task), (uint64_t)task,
                           pictures + (B + (size_t)task) * P);
        for (k = 0; k < N; k++) {
            uint8_t *rgb = pictures + k * P;
            size_t side = S / 2 + db_random_below(&blur, 2 * k, (uint32_t)(S / 2));
            db_image image;
            image.rgb = rgb, image.w = image.h = S;
            if (db_random_uniform(&blur, 2 * k + 1) < 0.5f)
                rescale(ctx, rgb, S, side, room), rescale(ctx, rgb, side, S, room);
            draw_view(&s, &m->processor, S, &image, k, 0.4, 1, views + k * P);
        }
        db_upload(tt, tx, views);
        db_run(tt, 0, 0);
        db_download(tt, z, embedded);
        db_upload(s.tape, x, views), db_upload(s.tape, keys, embedded);
        if (queued < QUEUE + N) db_upload(s.tape, mask, hidden); /* later the queue is full */
        j = update(&s, &loss);
        db_download(s.tape, scores, row);
        for (k = 0; k < N; k++) right += best_of(row + k * all, all) == (size_t)partner[k];
        for (k = 0; k < N; k++, queued++) {
            size_t to = N + queued % QUEUE, i;
            memcpy(embedded + to * D, embedded + k * D, D * sizeof *embedded);
            for (i = 0; i < N && queued < QUEUE; i++) hidden[i * all + to] = 0;
        }
        if (!j) continue;
        snprintf(rest, sizeof rest,
                 " pictures that find their scene's other among %zu: %.3f, AUC of subjects %.3f",
                 all, (double)right / (double)(N * j), dino_auc(teacher));
        line(&s, loss, rest);
        right = 0;
    }
    free(views), free(room), free(pictures), free(embedded), free(row), free(hidden), free(partner);
    db_tape_destroy(tt);
    db_vit_free(teacher);
    k = (size_t)finish(&s);
    db_vit_free(m);
    return (int)k;
}

/* ---- CLIP ------------------------------------------------------------------------------------
   Radford et al., 2021: in a batch, each picture has to find its caption, and each caption its
   picture, by cosine. The temperature stays .07, where transformers' logit_scale begins.        */

static int train_clip(const options *o, db_ctx *ctx)
{
    session s;
    char path[4096], caption[WORLD_CAPTION_MAX];
    db_clip_config c;
    db_clip *m = NULL;
    size_t B = (size_t)o->batch, S, T, k, j, dim[2], right = 0;
    db_tensor x, ids, ends, targets, image, text, logits, loss;
    float *pictures, *scores;
    db_param *temperature;
    int32_t *words, *places, *own;
    double mean;
    if (!open_session(&s, o, ctx, "clip")) return 1;
    snprintf(path, sizeof path, "%s/config.json", o->dir);
    if (db_clip_config_load(ctx, path, &c) == DB_OK) db_clip_create(ctx, &c, &m);
    snprintf(path, sizeof path, "%s/preprocessor_config.json", o->dir);
    if (m && db_image_processor_load(ctx, path, &m->processor) == DB_OK)
        db_tokenizer_load(ctx, o->dir, &m->tokenizer);
    if (db_status(ctx) != DB_OK || start(&s, &m->params) != DB_OK)
        return fail(db_last_error(ctx), NULL);
    temperature = db_params_find(&m->params, "logit_scale");
    temperature->frozen = 1;
    temperature->data[0] = s.tr.ema[temperature->data - m->params.data] = logf(1 / 0.07f);
    S = c.vision.image_size, T = c.text.max_position_embeddings;
    db_tape_create(ctx, &s.tape);
    x = input_pictures(s.tape, B, S);
    dim[0] = B, dim[1] = T, ids = db_input(s.tape, DB_I32, 2, dim);
    dim[1] = 1, ends = db_input(s.tape, DB_I32, 2, dim), targets = db_input(s.tape, DB_I32, 2, dim);
    image = db_unit_norm(s.tape, db_clip_image_forward(s.tape, m, x));       /* [B,P] */
    text = db_unit_norm(s.tape, db_clip_text_forward(s.tape, m, ids, ends)); /* [B,P] */
    logits = cosines_of(s.tape, text, image, 1 / 0.07f); /* [B,B] */
    loss = db_cross_entropy(s.tape, logits, targets);
    loss = db_weighted_sum(
        s.tape, 0.5f, loss, 0.5f,
        db_cross_entropy(s.tape, cosines_of(s.tape, image, text, 1 / 0.07f), targets));
    db_keep(s.tape, logits), db_keep(s.tape, loss);
    record_loss(&s, loss);
    pictures = (float *)malloc(B * S * S * 3 * sizeof *pictures);
    scores = (float *)malloc(B * B * sizeof *scores);
    words = (int32_t *)malloc(B * T * sizeof *words);
    places = (int32_t *)malloc(2 * B * sizeof *places), own = places + B;
    while (running(&s)) {
        char rest[100];
        for (k = 0; k < B; k++) {
            size_t at = draw_picture(&s, k);
            db_image picture = pool_picture(&s, at);
            draw_view(&s, &m->processor, S, &picture, k, 0.8, 1, pictures + k * S * S * 3);
            world_caption_kept(&s.pool.scenes[at], s.tr.step * B + k, caption, sizeof caption);
            db_tokenize(m->tokenizer, caption, T, words + k * T, NULL, NULL);
            places[k] = (int32_t)(k * T + db_clip_end(m, words + k * T, T));
            own[k] = (int32_t)k;
        }
        db_upload(s.tape, x, pictures), db_upload(s.tape, ids, words);
        db_upload(s.tape, ends, places), db_upload(s.tape, targets, own);
        k = update(&s, &mean);
        db_download(s.tape, logits, scores);
        for (j = 0; j < B; j++) right += best_of(scores + j * B, B) == j;
        if (!k) continue;
        snprintf(rest, sizeof rest, " captions that find their picture among %zu: %.3f", B,
                 (double)right / (double)(k * B));
        line(&s, mean, rest);
        right = 0;
    }
    free(pictures), free(scores), free(words), free(places);
    k = (size_t)finish(&s);
    db_clip_free(m);
    return (int)k;
}

/* ---- LPIPS -----------------------------------------------------------------------------------
   A distance of LPIPS's architecture, fitted as a whole to what the renderer knows: a picture, and
   the same scene with some of its parameters changed by known amounts, often less sharp or grainy
   by a known amount besides.                                                                    */

/* Changes one to four properties of a scene; returns how far it went, 0 to about 1. */
static double change_scene(const db_rng *rng, uint64_t k, world_scene *scene)
{
    world_scene was = *scene;
    size_t changes = 1 + db_random_below(rng, k, 4), c;
    double distance = 0;
    for (c = 0; c < changes; c++) {
        uint64_t r = k + 1 + 8 * c;
        float u = db_random_uniform(rng, r + 1), w = db_random_uniform(rng, r + 2);
        switch (db_random_below(rng, r, 7)) {
        case 0: scene->place = (int8_t)db_random_below(rng, r + 1, WORLD_PLACES); break;
        case 1: world_set_color(scene, 0, (int)db_random_below(rng, r + 1, WORLD_COLORS)); break;
        case 2: scene->yaw += u - 0.5f; break;
        case 3: scene->fill *= 0.8f + 0.3f * u; break;
        case 4: scene->shift[0] = 2 * u - 1, scene->shift[1] = 2 * w - 1; break;
        case 5: scene->shape[db_random_below(rng, r + 1, 8)] = w; break;
        default: scene->light_azimuth += 2 * u - 1; break;
        }
    }
    for (c = 0; c < 3; c++) distance += 0.15 * fabs((double)(scene->rgb[0][c] - was.rgb[0][c]));
    for (c = 0; c < 8; c++) distance += 0.05 * fabs((double)(scene->shape[c] - was.shape[c]));
    for (c = 0; c < 2; c++) distance += 0.05 * fabs((double)(scene->shift[c] - was.shift[c]));
    distance += 0.30 * (scene->place != was.place);
    distance += 0.20 * fabs((double)(scene->yaw - was.yaw));
    distance += 0.30 * fabs((double)(scene->fill - was.fill));
    distance += 0.05 * fabs((double)(scene->light_azimuth - was.light_azimuth));
    return distance;
}

/* Half of the pictures [S,S,3] lose sharpness, a quarter get grain; returns how far it went. */
static double spoil(db_ctx *ctx, const db_rng *rng, uint64_t k, size_t S, uint8_t *rgb)
{
    size_t n = S * S * 3, i, side;
    float *x = (float *)malloc(2 * n * sizeof *x), *grain = x + n;
    double factor = 1 + 3 * (double)db_random_uniform(rng, k + 1), distance = 0,
           sigma = 0.1 * (double)db_random_uniform(rng, k + 2);
    if (db_random_uniform(rng, k) < 0.5f) { /* smaller and back */
        side = (size_t)((double)S / factor + 0.5);
        rescale(ctx, rgb, S, side, x), rescale(ctx, rgb, side, S, x);
        distance += 0.1 * log2((double)S / (double)side);
    }
    if (db_random_uniform(rng, k + 3) < 0.25f) {
        db_rng own = *rng;
        own.purpose = FOR_GRAIN, own.seed += k << 32;
        db_random_normal(&own, n, grain);
        for (i = 0; i < n; i++)
            rgb[i] = (uint8_t)DB__MIN(255, DB__MAX(0, rgb[i] + 255 * (float)sigma * grain[i]));
        distance += sigma;
    }
    free(x);
    return distance;
}

/* A distance is a sum of squares: no linear layer may have a negative weight. `data` is the table's
   or its average. */
static void keep_positive(const db_param_table *params, float *data, int mirror)
{
    size_t k, i;
    for (k = 0; k < params->n; k++) {
        float *w = data + (params->item[k].data - params->data);
        if (strncmp(params->item[k].name, "lin", 3)) continue;
        for (i = 0; i < params->item[k].count; i++) w[i] = mirror ? fabsf(w[i])
            : DB__MAX(w[i], 0.0f);
    }
}

static int train_lpips(const options *o, db_ctx *ctx)
{
    session s;
    char path[4096];
    db_lpips_config c;
    db_lpips *m = NULL;
    size_t B = (size_t)o->batch, S, P, k, i, dim[2], n = 0;
    db_tensor x, y, targets, distance;
    float *a, *b, *goal, *found;
    uint8_t *rgb;
    double mean, sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
    if (!open_session(&s, o, ctx, "lpips")) return 1;
    snprintf(path, sizeof path, "%s/config.json", o->dir);
    if (db_lpips_config_load(ctx, path, &c) == DB_OK) db_lpips_create(ctx, &c, &m);
    if (db_status(ctx) != DB_OK || start(&s, &m->params) != DB_OK)
        return fail(db_last_error(ctx), NULL);
    S = s.pool.header->size, P = S * S * 3;
    db_tape_create(ctx, &s.tape);
    x = input_pictures(s.tape, B, S), y = input_pictures(s.tape, B, S);
    dim[0] = B, dim[1] = 1, targets = db_input(s.tape, DB_F32, 2, dim);
    distance = db_lpips_forward(s.tape, m, x, y);
    db_keep(s.tape, distance);
    record_loss(&s, db_mse(s.tape, distance, targets, db_none, db_none, NULL));
    a = (float *)malloc(B * P * sizeof *a), b = (float *)malloc(B * P * sizeof *b);
    goal = (float *)malloc(2 * B * sizeof *goal), found = goal + B, rgb = (uint8_t *)malloc(B * P);
    while (running(&s)) {
        db_rng rng = stream(&s, FOR_CHANGE);
        char rest[100];
        long task;
        int threads = db__threads(ctx);
        (void)threads;
        /* random ones begin on the right side */
        keep_positive(&m->params, m->params.data, !s.tr.step);
        DB__OMP(omp parallel for num_threads(threads) schedule(dynamic))
        for (task = 0; task < (long)B; task++) {
            world_scene scene = s.pool.scenes[draw_picture(&s, (uint64_t)task)];
            goal[task] = (float)change_scene(&rng, 64 * (uint64_t)task, &scene);
            world_render(&scene, (int)S, 0, 0, (int)S, (int)S, 2, rgb + (size_t)task * P, NULL);
        }
        for (k = 0; k < B; k++) {
            db_image was = pool_picture(&s, draw_picture(&s, k)), is = was;
            goal[k] += (float)spoil(ctx, &rng, 64 * (k + B), S, rgb + k * P);
            is.rgb = rgb + k * P;
            db_preprocess(ctx, &m->processor, &was, S, S, a + k * P);
            db_preprocess(ctx, &m->processor, &is, S, S, b + k * P);
        }
        db_upload(s.tape, x, a), db_upload(s.tape, y, b), db_upload(s.tape, targets, goal);
        i = update(&s, &mean);
        db_download(s.tape, distance, found);
        for (k = 0; k < B; k++, n++) {
            double u = (double)goal[k], v = (double)found[k];
            sx += u, sy += v, sxx += u * u, syy += v * v, sxy += u * v;
        }
        if (!i) continue;
        snprintf(rest, sizeof rest, " correlation %.3f",
                 (sxy - sx * sy / (double)n) / sqrt((sxx - sx * sx / (double)n)
                                                    * (syy - sy * sy / (double)n)));
        line(&s, mean, rest);
        sx = sy = sxx = syy = sxy = 0, n = 0;
    }
    keep_positive(&m->params, s.tr.ema, 0);
    free(a), free(b), free(goal), free(rgb);
    k = (size_t)finish(&s);
    db_lpips_free(m);
    return (int)k;
}

/* ---- the classifier -------------------------------------------------------------------------- */

/* The share of right answers on the pool's last tenth, at most 512 pictures, for each attribute. */
static void classifier_accuracy(const session *s, classifier *m, double right[CLASSIFIER_N])
{
    size_t count = s->pool.header->count, n = DB__MIN((size_t)512, count / 10), k, a,
           asked[CLASSIFIER_N] = {0};
    db_image *image = (db_image *)malloc(n * sizeof *image);
    int32_t *out = (int32_t *)malloc(n * CLASSIFIER_N * sizeof *out), truth[CLASSIFIER_N];
    for (k = 0; k < n; k++) image[k] = pool_picture(s, count - n + k);
    classifier_run(m, image, n, out);
    for (a = 0; a < CLASSIFIER_N; a++) right[a] = 0;
    for (k = 0; k < n; k++) {
        classifier_truth(&s->pool.scenes[count - n + k], truth);
        for (a = 0; a < CLASSIFIER_N; a++)
            right[a] += out[k * CLASSIFIER_N + a] == truth[a], asked[a] += truth[a] >= 0;
    }
    for (a = 0; a < CLASSIFIER_N; a++) right[a] /= (double)DB__MAX(asked[a], (size_t)1);
    free(image), free(out);
}

static int train_classifier(const options *o, db_ctx *ctx)
{
    session s;
    size_t B = (size_t)o->batch, S, k, a, dim[2];
    classifier *m;
    db_tensor x, targets[CLASSIFIER_N], logits[CLASSIFIER_N], total = db_none;
    float *pictures;
    int32_t *truth;
    double mean, right[CLASSIFIER_N];
    if (!open_session(&s, o, ctx, "classifier")) return 1;
    m = classifier_open(ctx, o->dir, 0);
    if (!m || start(&s, &m->params) != DB_OK) return fail(db_last_error(ctx), NULL);
    S = m->config.image_size;
    db_tape_create(ctx, &s.tape);
    x = input_pictures(s.tape, B, S);
    classifier_forward(s.tape, m, x, logits);
    dim[0] = B, dim[1] = 1;
    for (a = 0; a < CLASSIFIER_N; a++) {
        db_tensor one;
        targets[a] = db_input(s.tape, DB_I32, 2, dim);
        one = db_cross_entropy(s.tape, logits[a], targets[a]);
        total = a ? db_weighted_sum(s.tape, 1, total, 1, one) : one;
    }
    db_keep(s.tape, total);
    record_loss(&s, total);
    pictures = (float *)malloc(B * S * S * 3 * sizeof *pictures),
        truth = (int32_t *)malloc(B * (CLASSIFIER_N + 1) * sizeof *truth);
    while (running(&s)) {
        char rest[200];
        int length = 0;
        for (k = 0; k < B; k++) {
            size_t at = draw_picture(&s, k);
            db_image image = pool_picture(&s, at);
            draw_view(&s, &m->processor, S, &image, k, 0.8, 1, pictures + k * S * S * 3);
            classifier_truth(&s.pool.scenes[at], truth + k * CLASSIFIER_N);
        }
        db_upload(s.tape, x, pictures);
        for (a = 0; a < CLASSIFIER_N; a++) {
            int32_t *column = truth + B * CLASSIFIER_N;
            for (k = 0; k < B; k++) column[k] = truth[k * CLASSIFIER_N + a];
            db_upload(s.tape, targets[a], column);
        }
        if (!update(&s, &mean)) continue;
        classifier_accuracy(&s, m, right);
        for (a = 0; a < CLASSIFIER_N; a++)
            length += snprintf(rest + length, sizeof rest - (size_t)length, " %s %.2f",
                               classifier_attributes[a].name, right[a]);
        line(&s, mean, rest);
    }
    free(pictures), free(truth);
    k = (size_t)finish(&s);
    classifier_free(m);
    return (int)k;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(const options *, db_ctx *); } commands[] = {
        {"dino", train_dino}, {"clip", train_clip}, {"lpips", train_lpips},
            {"classifier", train_classifier}};
    options o;
    db_ctx *ctx;
    size_t k, n = sizeof commands / sizeof *commands;
    int status;
    let_threads_sleep(argv);
    memset(&o, 0, sizeof o);
    o.steps = 1000, o.batch = 32, o.warmup = 200, o.save_every = 1000, o.lr = 5e-4, o.ema = 0.996,
        o.seed = 2;
    for (k = 0; argc > 1 && k < n && strcmp(commands[k].name, argv[1]); k++) {}
    if (argc < 2 || k == n) return fail("dino, clip, lpips or classifier?", NULL);
    if (!read_flags(&o, argc, argv)) return 1;
    if (!(ctx = open_context(&o))) return 1;
    status = commands[k].run(&o, ctx);
    db_destroy(ctx);
    return status;
}
