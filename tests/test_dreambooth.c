/* test_dreambooth.c - the loss of DreamBooth, its gradients and ten updates against PyTorch
   (golden/make_dreambooth.py); photos, class images, checkpoints, super-resolution's conditioning;
   the same on latents, against diffusers. With TEST_CUDA trainings on the GPU backend, by itself or
   under cuda_host.h. */

#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "test.h"
#include "networks.h"

#define GOLDEN "tests/golden/dreambooth/"
enum { STEPS = 10 };

typedef struct subject { /* a pipeline made of golden configurations and hashed weights, with photos */
    db_ctx *ctx;
    db_pipeline p;
    uint8_t *pixels[3];
    db_image photo[3];
    float *classes; /* [5,size,size,3] */
    size_t size;
} subject;

/* Pixels 0 ... 255 from the hash, as make_dreambooth.py's `photo`. */
static void hashed_photo(const char *name, size_t n, uint8_t *out)
{
    float *x = (float *)malloc(n * sizeof *x);
    size_t k;
    hashed(name, n, 1, x);
    for (k = 0; k < n; k++) out[k] = (uint8_t)floorf((x[k] * 0.5f + 0.5f) * 255);
    free(x);
}

#ifdef TEST_CUDA
static const db_backend *backend(void)
{
    const char *why;
    const db_backend *cuda = db_backend_cuda(&why);
    if (!cuda) test_fail("a GPU", "%s", why), exit(test_summary());
    return cuda;
}
#else
static const db_backend *backend(void) { return NULL; }
#endif

static db_dtype computed_in = DB_F32; /* by the subjects that are created */

/* `name` of a golden file; with "sd" in front it is Stable Diffusion in small. */
static int subject_create(subject *s, const char *name, const char *prediction, size_t size,
                          int threads)
{
    int latent = !strncmp(name, "sd", 2);
    static const size_t sizes[3][2] = {{24, 24}, {20, 31}, {37, 25}};
    db_config config = db_config_default();
    db_unet_config u;
    db_text_config t;
    char path[300];
    uint8_t *bytes = (uint8_t *)malloc(size * size * 3);
    size_t k, i;
    memset(s, 0, sizeof *s);
    config.threads = threads;
    config.compute = computed_in;
    config.backend = backend();
    if (db_create(&s->ctx, &config) != DB_OK) return 0;
    s->p.ctx = s->ctx, s->size = size;
    snprintf(path, sizeof path, GOLDEN "%s.json", latent ? "sd" : name);
    db_unet_config_load(s->ctx, path, &u);
    db_text_config_load(s->ctx, latent ? GOLDEN "sd_text_encoder.json" : GOLDEN "text_encoder.json",
                        &t);
    if (latent) {
        db_vae_config v;
        if (db_vae_config_load(s->ctx, GOLDEN "sd_vae.json", &v) != DB_OK ||
            db_vae_create(s->ctx, &v, &s->p.vae) != DB_OK)
            return 0;
        fill_params(&s->p.vae->params);
    }
    db_unet_create(s->ctx, &u, &s->p.unet);
    db_text_encoder_create(s->ctx, &t, &s->p.text_encoder);
    db_tokenizer_load(s->ctx,
                      latent ? "tests/golden/tokenizers/clip" : "examples/world/base/tokenizer",
                      &s->p.tokenizer);
    db_schedule_init(s->ctx, latent ? "scaled_linear" : "squaredcos_cap_v2", 0.00085, 0.012, 1000,
                     &s->p.scheduler);
    db_schedule_init(s->ctx, "squaredcos_cap_v2", 0, 0, 1000, &s->p.image_noising);
    s->p.scheduler.prediction_type = !strcmp(prediction, "epsilon") ? DB_PREDICT_EPSILON
        : !strcmp(prediction, "sample")                             ? DB_PREDICT_SAMPLE
                                                                    : DB_PREDICT_V;
    s->p.super_resolution = u.class_embed_timestep;
    if (db_status(s->ctx) != DB_OK) return 0;
    fill_params(&s->p.unet->params);
    fill_params(&s->p.text_encoder->params);
    for (k = 0; k < 3; k++) {
        char photo[16];
        snprintf(photo, sizeof photo, "photo%d", (int)k);
        s->photo[k].h = sizes[k][0], s->photo[k].w = sizes[k][1];
        s->pixels[k] = (uint8_t *)malloc(sizes[k][0] * sizes[k][1] * 3);
        hashed_photo(photo, sizes[k][0] * sizes[k][1] * 3, s->pixels[k]);
        s->photo[k].rgb = s->pixels[k];
    }
    s->classes = (float *)malloc(5 * size * size * 3 * sizeof(float));
    for (k = 0; k < 5; k++) {
        char image[16];
        snprintf(image, sizeof image, "class%d", (int)k);
        hashed_photo(image, size * size * 3, bytes);
        for (i = 0; i < size * size * 3; i++)
            s->classes[k * size * size * 3 + i] = (float)bytes[i] / 127.5f - 1;
    }
    free(bytes);
    return 1;
}

static void subject_free(subject *s)
{
    size_t k;
    for (k = 0; k < 3; k++) free(s->pixels[k]);
    free(s->classes);
    db_tokenizer_free(s->p.tokenizer);
    db_text_encoder_free(s->p.text_encoder);
    db_unet_free(s->p.unet);
    db_vae_free(s->p.vae);
    db_schedule_free(&s->p.scheduler);
    db_schedule_free(&s->p.image_noising);
    db_destroy(s->ctx);
}

/* The settings of make_dreambooth.py's cases. */
static db_dreambooth_config settings(const subject *s, int prior)
{
    db_dreambooth_config c = db_dreambooth_config_default();
    c.instance_prompt = "a zxk dog", c.class_prompt = prior ? "a dog" : NULL,
    c.prior_loss_weight = 0.7f;
    c.resolution = s->size, c.crop_size = 8, c.train_batch_size = 2, c.class_batch_size = 3,
    c.max_train_steps = STEPS;
    c.learning_rate = 1e-3f, c.seed = 7, c.noise_level = -0.5;
    return c;
}

/* |dw - ref| / |ref| of one parameter since `before`, a copy of its table: its change against the
   file's. 1e9 where the file has no change. */
static double change_error(const db_param_table *p, const float *before, const db_param *item,
                           db_safetensors *st, const char *prefix)
{
    char name[300];
    size_t dim[4], i;
    float *ref, *was = (float *)malloc(item->count * sizeof(float)),
                *is = (float *)malloc(item->count * sizeof(float));
    double sum = 0, norm = 0;
    snprintf(name, sizeof name, "delta.%s%s", prefix, item->name);
    ref = golden(st, name, dim);
    db_param_get(item, before + (item->data - p->data), was);
    db_param_get(item, item->data, is);
    for (i = 0; ref && i < item->count; i++) {
        double d = (double)is[i] - (double)was[i] - (double)ref[i];
        sum += d * d, norm += (double)ref[i] * (double)ref[i];
    }
    free(ref), free(was), free(is);
    return norm > 0 ? sqrt(sum / norm) : 1e9;
}

/* Whether a parameter's golden gradient is nothing beside the largest: zero in theory. */
static int has_no_gradient(const db_param *item, db_safetensors *st, const char *prefix,
                           double largest)
{
    char name[300];
    size_t dim[4];
    float *grad;
    int zero;
    snprintf(name, sizeof name, "grad.%s%s", prefix, item->name);
    grad = golden(st, name, dim);
    zero = grad && test_largest(grad, item->count) < 1e-7 * largest;
    free(grad);
    return zero;
}

/* The relative error of a step's losses (total, instance, prior) against the golden ones. */
static double loss_error(const db_dreambooth_losses *l, const float *ref, int prior)
{
    double e = test_worse(fabs((double)(l->total / ref[0]) - 1),
                          fabs((double)(l->instance / ref[1]) - 1));
    return prior ? test_worse(e, fabs((double)(l->prior / ref[2]) - 1)) : e;
}

/* The weights as they are now. */
static float *copy_of(const db_param_table *p)
{
    float *copy = (float *)malloc(p->count * sizeof *copy);
    memcpy(copy, p->data, p->count * sizeof *copy);
    return copy;
}

static double largest_gradient(db_safetensors *st)
{
    size_t k, i;
    double most = 0;
    for (k = 0; k < db_safetensors_count(st); k++) {
        const db_file_tensor *f = db_safetensors_at(st, k);
        float *x;
        if (strncmp(f->name, "grad.", 5)) continue;
        x = (float *)malloc(f->count * sizeof(float));
        db_file_tensor_to_f32(f, x);
        for (i = 0; i < f->count; i++) most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
        free(x);
    }
    return most;
}

static void compare_with_pytorch(const char *name, const char *prediction, size_t size, int prior,
                                 int text, float lambda, size_t b0, size_t b1, size_t accumulation,
                                 size_t rank)
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    db_safetensors *st = NULL;
    char label[300], path[300], where[300] = "";
    float *losses, *before[2] = {NULL, NULL};
    db_param_table *table[2];
    size_t dim[4], k, i, n = 0, in_file = 0, tables = text ? 2 : 1;
    double worst_loss = 0, first = 0, worst = 0, largest;
    const char *const prefix[2] = {"", "text_encoder:"};
    if (!subject_create(&s, name, prediction, size, 2)) {
        test_fail(name, "%s", s.ctx ? db_last_error(s.ctx) : "no context");
        return;
    }
    c = settings(&s, prior);
    c.train_text_encoder = text, c.prior_loss_weight = lambda, c.train_batch_size = b0,
    c.class_batch_size = b1, c.gradient_accumulation_steps = accumulation;
    if (rank) { /* beside the U-Net, its factors hashed: the trainer takes it as it is */
        c.lora_rank = rank;
        if (db_unet_add_lora(s.p.unet, rank, 6, 0) == DB_OK)
            fill_params(&s.p.unet->params.lora->params);
    }
    snprintf(path, sizeof path, GOLDEN "%s.safetensors", name);
    db_safetensors_open(s.ctx, path, &st);
    losses = golden(st, "losses", dim);
    largest = largest_gradient(st);
    table[0] = rank && s.p.unet->params.lora ? &s.p.unet->params.lora->params : &s.p.unet->params,
    table[1] = &s.p.text_encoder->params;
    for (k = 0; k < tables; k++) before[k] = copy_of(table[k]);
    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, prior ? s.classes : NULL, prior ? 5 : 0,
                             &d) != DB_OK)
        goto done;
    for (k = 0; k < STEPS; k++) {
        db_dreambooth_losses l;
        db_dreambooth_step(d, &l);
        worst_loss = test_worse(worst_loss, loss_error(&l, losses + 3 * k, prior));
        if (k) continue;
        first = worst_loss;
        for (i = 0; i < tables;
             i++) { /* gradients are still there after the first update; averaged over the runs */
            size_t j, m;
            for (j = 0; j < table[i]->n; j++) {
                db_param *item = &table[i]->item[j];
                float *ours = (float *)malloc(item->count * sizeof(float)), *ref;
                double err;
                snprintf(label, sizeof label, "grad.%s%s", prefix[i], item->name);
                ref = golden(st, label, dim);
                db_param_get(item, item->grad, ours);
                for (m = 0; m < item->count; m++) ours[m] /= (float)accumulation;
                err = ref ? test_error(ours, ref, item->count, 1e-4 * largest, NULL) : 1e9;
                if (err > worst || err != err)
                    worst = err, snprintf(where, sizeof where, "%s", label);
                n++;
                free(ours), free(ref);
            }
        }
    }
    for (k = 0; k < db_safetensors_count(st); k++)
        in_file += !strncmp(db_safetensors_at(st, k)->name, "grad.", 5);
    snprintf(label, sizeof label, "%s loss", name);
    if (db_status(s.ctx) == DB_OK && first <= 1e-5 && worst_loss <= 1e-4)
        test_pass(label, "first step %.1e, worst of %d steps %.1e", first, STEPS, worst_loss);
    else
        test_fail(label, "first step %.1e, worst of %d steps %.1e; %s", first, STEPS, worst_loss,
                  db_last_error(s.ctx));
    snprintf(label, sizeof label, "%s gradients", name);
    if (worst <= 1e-3 && n == in_file)
        test_pass(label, "%zu of %zu tensors compared, worst %.1e at %s", n, in_file, worst, where);
    else
        test_fail(label, "%zu of %zu tensors compared, worst %.1e at %s", n, in_file, worst, where);
    worst = 0, n = 0;
    for (i = 0; i < tables; i++)
        for (k = 0; k < table[i]->n; k++) {
            const db_param *item = &table[i]->item[k];
            double e;
            if (has_no_gradient(item, st, prefix[i], largest)) {
                printf("   no gradient: %s%s\n", prefix[i], item->name);
                continue;
            }
            e = change_error(table[i], before[i], item, st, prefix[i]);
            if (e > worst || e != e)
                worst = e, snprintf(where, sizeof where, "%s%s", prefix[i], item->name);
            n++;
        }
    snprintf(label, sizeof label, "%s ten updates", name);
    if (worst <= 1e-2)
        test_pass(label, "%zu tensors, worst |dw - ref| / |ref| %.1e at %s", n, worst, where);
    else test_fail(label, "%zu tensors, worst |dw - ref| / |ref| %.1e at %s", n, worst, where);
done:
    if (db_status(s.ctx) != DB_OK) test_fail(name, "%s", db_last_error(s.ctx));
    free(losses), free(before[0]), free(before[1]);
    db_safetensors_close(st);
    db_dreambooth_free(d);
    subject_free(&s);
}

/* Ten steps of train_dreambooth.py, with `c` beside the usual settings. What is not trained is
   released before the first. */
static void compare_with_diffusers(const char *name, const char *prediction, db_dreambooth_config c)
{
    subject s;
    db_dreambooth *d = NULL;
    db_safetensors *st = NULL;
    char label[300], path[300], where[300] = "";
    float *losses, *norms, *before[2] = {NULL, NULL};
    db_param_table *table[2];
    size_t dim[4], k, i, n = 0, in_file = 0, tables = c.train_text_encoder ? 2 : 1;
    double worst_loss = 0, worst_norm = 0, worst = 0;
    const char *const prefix[2] = {"", "text_encoder:"};
    if (!subject_create(&s, name, prediction, 16, 2)) {
        test_fail(name, "%s", s.ctx ? db_last_error(s.ctx) : "no context");
        return;
    }
    snprintf(path, sizeof path, GOLDEN "%s.safetensors", name);
    if (db_safetensors_open(s.ctx, path, &st) != DB_OK) goto done;
    losses = golden(st, "losses", dim), norms = golden(st, "norms", dim);
    table[0] = &s.p.unet->params, table[1] = &s.p.text_encoder->params;
    for (k = 0; k < tables; k++) before[k] = copy_of(table[k]);
    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, c.class_prompt ? s.classes : NULL,
                             c.class_prompt ? 5 : 0, &d) != DB_OK)
        goto done;
    db_pipeline_release(&s.p, !c.train_text_encoder, 1);
    for (k = 0; k < STEPS; k++) {
        db_dreambooth_losses l;
        db_dreambooth_step(d, &l);
        worst_loss = test_worse(worst_loss, loss_error(&l, losses + 3 * k, c.class_prompt != NULL));
        worst_norm = test_worse(worst_norm, fabs((double)(l.grad_norm / norms[k]) - 1));
    }
    snprintf(label, sizeof label, "%s%s loss", name, c.in_sequence ? " in sequence" : "");
    if (db_status(s.ctx) == DB_OK && worst_loss <= 1e-4 && worst_norm <= 1e-4)
        test_pass(label, "worst of %d steps %.1e; the gradient's norm %.1e", STEPS, worst_loss,
                  worst_norm);
    else
        test_fail(label, "worst of %d steps %.1e; the gradient's norm %.1e; %s", STEPS, worst_loss,
                  worst_norm, db_last_error(s.ctx));
    for (k = 0; k < db_safetensors_count(st); k++)
        in_file += !strncmp(db_safetensors_at(st, k)->name, "delta.", 6);
    for (i = 0; i < tables; i++)
        for (k = 0; k < table[i]->n; k++) {
            const db_param *item = &table[i]->item[k];
            double e;
            snprintf(label, sizeof label, "none.%s%s", prefix[i], item->name);
            if (db_safetensors_find(st, label)) {
                printf("   no gradient: %s%s\n", prefix[i], item->name);
                continue;
            }
            e = change_error(table[i], before[i], item, st, prefix[i]);
            if (e > worst || e != e)
                worst = e, snprintf(where, sizeof where, "%s%s", prefix[i], item->name);
            n++;
        }
    snprintf(label, sizeof label, "%s%s ten updates", name, c.in_sequence ? " in sequence" : "");
    if (worst <= 1e-2 && n == in_file)
        test_pass(label, "%zu of %zu tensors, worst |dw - ref| / |ref| %.1e at %s", n, in_file,
                  worst, where);
    else
        test_fail(label, "%zu of %zu tensors, worst |dw - ref| / |ref| %.1e at %s", n, in_file,
                  worst, where);
    free(losses), free(norms);
done:
    if (db_status(s.ctx) != DB_OK) test_fail(name, "%s", db_last_error(s.ctx));
    free(before[0]), free(before[1]);
    db_safetensors_close(st);
    db_dreambooth_free(d);
    subject_free(&s);
}

/* make_dreambooth.py's run_sd cases. */
static void test_latent(void)
{
    db_dreambooth_config c = db_dreambooth_config_default(), prior;
    c.instance_prompt = "a zxk dog", c.resolution = 16, c.train_batch_size = 2,
    c.class_batch_size = 3, c.max_train_steps = STEPS;
    c.learning_rate = 1e-3f, c.seed = 7, c.prior_loss_weight = 0.7f;
    prior = c, prior.class_prompt = "a dog";
    c.center_crop = 1;
    compare_with_diffusers("sd_plain", "epsilon", c);
    c = prior, c.noise_offset = 0.1f;
    compare_with_diffusers("sd_prior", "epsilon", c);
    c = prior, c.snr_gamma = 5, c.train_batch_size = 2, c.class_batch_size = 1;
    compare_with_diffusers("sd_v", "v_prediction", c);
    c = prior, c.prior_loss_weight = 1, c.train_batch_size = 1, c.class_batch_size = 2;
    for (c.in_sequence = 0; c.in_sequence < 2; c.in_sequence++) {
        c.snr_gamma = 5, c.train_text_encoder = 0;
        compare_with_diffusers("sd_snr", "epsilon", c);
        c.snr_gamma = 0, c.train_text_encoder = 1;
        compare_with_diffusers("sd_text", "epsilon", c);
    }
}

/* With an infinite gamma the weight turns a loss in what the network predicts into one in epsilon. */
static void test_epsilon_weights(void)
{
    static const double alphas[] = {.9999, .7, .2, 1e-4};
    db_schedule s;
    double worst = 0;
    size_t t;
    memset(&s, 0, sizeof s);
    s.alphas_cumprod = (double *)alphas;
    for (t = 0; t < sizeof alphas / sizeof *alphas; t++) {
        double a = alphas[t]; /* eps - eps^ = alpha (v - v^) = alpha / sigma (x^ - x) */
        s.prediction_type = DB_PREDICT_EPSILON;
        worst = test_worse(worst, fabs((double)db__loss_weight(&s, HUGE_VAL, t) - 1));
        s.prediction_type = DB_PREDICT_V;
        worst = test_worse(worst, fabs((double)db__loss_weight(&s, HUGE_VAL, t) / a - 1));
        s.prediction_type = DB_PREDICT_SAMPLE;
        worst = test_worse(worst,
                           fabs((double)db__loss_weight(&s, HUGE_VAL, t) / (a / (1 - a)) - 1));
    }
    test_check(worst < 1e-6, "loss in epsilon", "weights 1, alpha^2, alpha^2 / sigma^2");
}

/* In one batch or one term after the other: the same gradient of everything that is trained, in a
   smaller arena. */
static void test_sequence(void)
{
    float *grad[2][2] = {{NULL, NULL}, {NULL, NULL}};
    size_t count[2] = {0, 0}, k;
    double e = 0;
    db_memory_plan plan[2];
    int i;
    for (i = 0; i < 2; i++) {
        subject s;
        db_dreambooth *d = NULL;
        db_dreambooth_config c;
        if (!subject_create(&s, "base", "v_prediction", 8, 2)) {
            test_fail("in sequence", "no subject");
            return;
        }
        c = settings(&s, 1), c.in_sequence = i, c.train_text_encoder = 1,
        c.gradient_accumulation_steps = 2, c.snr_gamma = 5;
        memset(&plan[i], 0, sizeof plan[i]);
        if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d) == DB_OK &&
            db_dreambooth_step(d, NULL) == DB_OK) {
            const db_param_table *table[2];
            table[0] = &s.p.unet->params, table[1] = &s.p.text_encoder->params;
            db_dreambooth_plan(d, &plan[i]);
            for (k = 0; k < 2; k++) {
                count[k] = table[k]->count, grad[i][k] = (float *)malloc(count[k] * sizeof(float));
                memcpy(grad[i][k], table[k]->grad, count[k] * sizeof(float));
            }
        } else {
            test_fail("in sequence", "%s", db_last_error(s.ctx));
        }
        db_dreambooth_free(d);
        subject_free(&s);
    }
    for (k = 0; k < 2 && grad[0][k] && grad[1][k]; k++) {
        double one = test_error(grad[1][k], grad[0][k], count[k], 1e-9, NULL);
        e = one > e || one != one ? one : e;
    }
    if (k == 2 && e < 1e-5 &&
        plan[1].arena_bytes < plan[0].arena_bytes) /* 2 samples, then 3, in place of 5 */
        test_pass("in sequence",
                  "gradients as in one batch (%.1e), arena %zu in place of %zu bytes", e,
                  plan[1].arena_bytes, plan[0].arena_bytes);
    else
        test_fail("in sequence", "gradients differ by %.1e, arena %zu and %zu bytes", e,
                  plan[1].arena_bytes, plan[0].arena_bytes);
    for (k = 0; k < 4; k++) free(grad[k / 2][k % 2]);
}

static char warning[300];
static void keep_warning(void *user, db_log_level level, const char *line)
{
    (void)user;
    if (level == DB_LOG_WARNING) snprintf(warning, sizeof warning, "%s", line);
}

/* Prompts: T5's in lower case whatever they are for, CLIP's too by its tokenizer; what IF's
   pipelines elsewhere would make of an identifier (golden/dreambooth/cleaning.txt). */
static void test_prompts(void)
{
    static const char *const same[2] = {" A ZXK Dog \n", "a zxk dog"};
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    FILE *f = fopen(GOLDEN "cleaning.txt", "rb");
    char line[200], wrong[200] = "", *lower;
    float *states;
    int n = 0, right = 0;
    if (!subject_create(&s, "base", "v_prediction", 8, 1)) {
        test_fail("prompts", "no subject");
        return;
    }
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        n++;
        if (db__cleaning_alters(line + 2, strlen(line + 2)) == (line[0] == '1')) right++;
        else snprintf(wrong, sizeof wrong, "%s", line);
    }
    if (f) fclose(f);
    if (n > 30 && right == n)
        test_pass("words that IF's pipelines clean away", "%d of %d", right, n);
    else test_fail("words that IF's pipelines clean away", "%d of %d, wrong: %s", right, n, wrong);

    states = (float *)malloc(2 * DB_PROMPT_TOKENS * 8 * sizeof *states);
    db_encode(s.p.text_encoder, s.p.tokenizer, same, 2, DB_PROMPT_TOKENS, states, NULL);
    test_check(
        db_status(s.ctx) == DB_OK &&
            !memcmp(states, states + DB_PROMPT_TOKENS * 8, DB_PROMPT_TOKENS * 8 * sizeof *states),
        "prompts for T5", "in lower case, without blanks around");
    lower = db__lower(s.ctx, "\tÉCOLE ŻÓŁĆ ДОМ \xff İ ");
    test_check(lower && !strcmp(lower, "école żółć дом \xff i\xcc\x87"), "lower case beyond ASCII",
               "letters of two bytes, bytes that are none");
    db__free(s.ctx, lower);

    s.ctx->config.log = keep_warning;
    c = settings(&s, 1);
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    test_check(d && !*warning, "an identifier that survives cleaning", "no warning");
    db_dreambooth_free(d), d = NULL;
    c.instance_prompt = "A ZXK dog";
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    test_check(d && !*warning, "capitals, which every pipeline lowers", "no warning");
    db_dreambooth_free(d), d = NULL;
    c.instance_prompt = "a xxy5syt00 dog";
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    if (d && strstr(warning, "\"xxy5syt00\"") && strstr(warning, "clean_caption=False"))
        test_pass("an identifier that cleaning deletes", "%s", warning);
    else
        test_fail("an identifier that cleaning deletes", "\"%s\"; %s", warning,
                  db_last_error(s.ctx));
    db_dreambooth_free(d);
    free(states);
    subject_free(&s);
}

/* A text encoder that was released is saved all the same. */
static void test_released(void)
{
    db_ctx *ctx = NULL;
    db_pipeline *p = NULL, *again = NULL;
    float *before = NULL;
    size_t count = 0;
    if (db_create(&ctx, NULL) != DB_OK) {
        test_fail("a released text encoder", "no context");
        return;
    }
    if (db_pipeline_load(ctx, "examples/world/base", &p) == DB_OK) {
        count = p->text_encoder->params.count, before = (float *)malloc(count * sizeof *before);
        db_params_fill(&p->text_encoder->params);
        memcpy(before, p->text_encoder->params.data, count * sizeof *before);
        db_pipeline_release(p, 1, 1);
        db_pipeline_save(p, scratch, DB_F16);
        db_pipeline_load(ctx, scratch, &again);
    }
    if (again && again->text_encoder && again->text_encoder->params.count == count &&
        db_params_fill(&again->text_encoder->params) == DB_OK &&
        !memcmp(before, again->text_encoder->params.data, count * sizeof *before))
        test_pass("a released text encoder", "is saved from where it was");
    else test_fail("a released text encoder", "%s", db_last_error(ctx));
    free(before);
    db_pipeline_free(p), db_pipeline_free(again);
    db_destroy(ctx);
}

static uint64_t hash_of(const db_param_table *p)
{
    uint64_t hash = 0xcbf29ce484222325u;
    size_t k;
    for (k = 0; k < p->count; k++) {
        uint32_t bits;
        memcpy(&bits, &p->data[k], 4);
        hash = (hash ^ bits) * 0x100000001b3u;
    }
    return hash;
}

/* What is trained: all of the U-Net; with the text encoder, moments in 8 bits; a LoRA. */
enum { ALL, EIGHT_BIT, LORA };

/* The weights after `steps` updates, saved and resumed on the way if asked, hashed; 0 if anything
   failed or nothing changed. */
static uint64_t weights_after(size_t steps, size_t resume_at, int threads, int what,
                              const char *file)
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    uint64_t hash = 0, at_first;
    int round;
    for (round = 0; round < (resume_at ? 2 : 1);
         round++) { /* the second round is another process, as it were */
        if (!subject_create(&s, "base", "v_prediction", 8, threads)) return 0;
        c = settings(&s, 1);
        c.train_text_encoder = c.optimizer.use_8bit_adam =
            what == EIGHT_BIT; /* its embeddings are large enough */
        c.lora_rank = what == LORA ? 4 : 0;
        db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
        if (what == EIGHT_BIT && d && !d->text_opt.m8)
            printf("   no 8-bit moments\n"), db_dreambooth_free(d), d = NULL;
        if (!d) return 0;
        at_first = hash_of(d->opt.params);
        if (round) db_dreambooth_resume(d, file);
        while (db_status(s.ctx) == DB_OK &&
               db_dreambooth_steps_done(d) < (resume_at && !round ? resume_at : steps))
            db_dreambooth_step(d, NULL);
        if (resume_at && !round) db_dreambooth_save(d, file);
        hash = hash_of(d->opt.params) ^ (d->text_opt.params ? 31 * hash_of(d->text_opt.params) : 0);
        if (hash_of(d->opt.params) == at_first) hash = 0;
        if (db_status(s.ctx) != DB_OK) printf("   %s\n", db_last_error(s.ctx)), hash = 0;
        db_dreambooth_free(d), d = NULL;
        subject_free(&s);
    }
    return hash;
}

static void test_determinism(void)
{
    static const char *const names[] = {"weights", "weights with 8-bit moments", "a LoRA"};
    char file[400];
    int what;
    snprintf(file, sizeof file, "%s", at("state.safetensors"));
    for (what = ALL; what <= LORA; what++) {
        uint64_t one = weights_after(6, 0, 1, what, file), two = weights_after(6, 0, 2, what, file),
                 resumed = weights_after(6, 3, 2, what, file);
        char label[100];
        snprintf(label, sizeof label, "%s after 6 steps, 1 and 2 threads", names[what]);
        test_check(one && one == two, label, "the same bits");
        snprintf(label, sizeof label, "%s after 6 steps, saved and resumed after 3", names[what]);
        test_check(one && one == resumed, label, "the same bits");
    }
    remove(file);
}

/* Four steps with `c`: the losses, the learning rates, the plan. */
static int four_steps(db_dreambooth_config c, float losses[4], float rates[4], db_memory_plan *plan)
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_losses l;
    int k, good;
    if (!subject_create(&s, "base", "v_prediction", 8, 1)) return 0;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    for (k = 0; k < 4 && d; k++) {
        db_dreambooth_step(d, &l);
        losses[k] = l.total, rates[k] = l.lr;
    }
    if (d) db_dreambooth_plan(d, plan);
    good = db_status(s.ctx) == DB_OK &&
        (!c.lora_rank ||
         s.p.unet->params.lora->alpha == (c.lora_alpha != 0 ? c.lora_alpha : (float)c.lora_rank));
    if (!good) printf("   %s\n", db_last_error(s.ctx));
    db_dreambooth_free(d);
    subject_free(&s);
    return good;
}

/* Checkpointing changes the memory and no loss, bf16 the losses a little, a schedule the rates. */
static void test_settings(void)
{
    subject s;
    db_dreambooth_config c;
    db_memory_plan plan, smaller;
    float usual[4], losses[4], rates[4];
    double worst = 0, off = 0;
    int k, good;
    if (!subject_create(&s, "base", "v_prediction", 8, 1)) {
        test_fail("settings", "no subject");
        return;
    }
    c = settings(&s, 1);
    subject_free(&s);
    good = four_steps(c, usual, rates, &plan);
    c.gradient_checkpointing = 1;
    good = good && four_steps(c, losses, rates, &smaller);
    test_check(good && !memcmp(usual, losses, sizeof losses) &&
                   smaller.arena_bytes < plan.arena_bytes &&
                   smaller.n_operations > plan.n_operations,
               "gradient checkpointing", "the same losses in less memory");
    c.gradient_checkpointing = 0;
    computed_in = DB_BF16;
    good = good && four_steps(c, losses, rates, &smaller);
    computed_in = DB_F32;
    for (k = 0; k < 4; k++) worst = test_worse(worst, fabs((double)(losses[k] / usual[k]) - 1));
    test_check(good && worst > 1e-6 && worst < .03 && smaller.arena_bytes < plan.arena_bytes,
               "training in bf16", "losses within 3 %, in less memory");
    c.lr_scheduler = DB_LR_COSINE_WITH_RESTARTS, c.lr_warmup_steps = 2, c.lr_num_cycles = 2;
    c.max_train_steps = 6;
    good = good && four_steps(c, losses, rates, &plan);
    for (k = 0; k < 4; k++) /* half a rate, then two cosines over the four steps behind it */
        off = test_worse(off, fabs((double)rates[k] / 1e-3 - (k < 2 ? k / 2. : k == 2 ? 1 : .5)));
    test_check(good && off < 1e-6, "the rates of a schedule", "warm-up, then cosines");
    c = settings(&s, 1), c.lora_rank = 4, c.lora_alpha = 3;
    good = four_steps(c, losses, rates, &plan);
    c.lora_alpha = 0;
    test_check(good && four_steps(c, usual, rates, &plan) &&
                   memcmp(usual, losses, sizeof losses),
               "a LoRA's alpha", "3, or the rank, 4");
}

/* The network's output for one picture S x S: channels of x, conditioning, level. */
static void forward(subject *s, size_t S, const float *noise, const float *low, float level, size_t step,
                    const char *prompt, float *out)
{
    db_tape *t = NULL;
    size_t dim[4] = {1, S, S, 6}, text[3] = {1, DB_PROMPT_TOKENS, 8}, k;
    float *in = (float *)malloc(S * S * 6 * sizeof *in),
          *words = (float *)malloc(DB_PROMPT_TOKENS * 8 * sizeof *words), time = (float)step;
    db_tensor x, ts, w, labels, y;
    for (k = 0; k < S * S; k++)
        memcpy(in + 6 * k, noise + 3 * k, 3 * sizeof *in),
            memcpy(in + 6 * k + 3, low + 3 * k, 3 * sizeof *in);
    db_encode(s->p.text_encoder, s->p.tokenizer, &prompt, 1, DB_PROMPT_TOKENS, words, NULL);
    db_tape_create(s->ctx, &t);
    x = db_input(t, DB_F32, 4, dim), ts = db_input(t, DB_F32, 1, dim),
    w = db_input(t, DB_F32, 3, text), labels = db_input(t, DB_F32, 1, dim);
    y = db_slice(t, db_unet_forward(t, s->p.unet, x, ts, w, labels, NULL), 0, 3);
    db_keep(t, y);
    db_upload(t, x, in), db_upload(t, ts, &time), db_upload(t, w, words),
        db_upload(t, labels, &level);
    db_run(t, 0, 0);
    db_download(t, y, out);
    db_tape_destroy(t);
    free(in), free(words);
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double e = 0;
    size_t k;
    for (k = 0; k < n; k++)
        e = test_worse(e, fabs((double)a[k] - (double)b[k]));
    return e;
}

/* Training and sampling feed a super-resolver the same thing at the same level: what
   db_dreambooth_step draws, and what db_upscale's only step computes, are both held to
   db_condition_low_res. */
static void test_conditioning(void)
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    db_sample_config sampling = db_sample_config_default();
    float small[4 * 4 * 3], whole[16 * 16 * 3], expected[16 * 16 * 3], part[8 * 8 * 3],
        noise[16 * 16 * 3], drawn[16 * 16 * 3], low[8 * 8 * 3], sums[16 * 16], level;
    const char *prompt = "a zxk dog";
    size_t k, step = 0;
    double e = 1;
    db_trajectory tr;
    db_rng rng;
    if (!subject_create(&s, "upscaler", "sample", 16, 1)) {
        test_fail("conditioning", "no subject");
        return;
    }
    c = settings(&s, 0);
    c.train_batch_size = 1, c.center_crop = 1;
    s.photo[0].w = s.photo[0].h = 16; /* no resizing: the first 16 x 16 pixels of the buffer */
    for (k = 0; k < 768; k++) whole[k] = (float)s.pixels[0][k] / 127.5f - 1;
    db_downsample(whole, 16, 16, 3, 4, small);
    level = (float)c.noise_level;
    rng.seed = 7;

    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 1, NULL, 0, &d) == DB_OK) {
        db_dreambooth_step(d, NULL), db_dreambooth_step(d, NULL);
        rng.step = 1, rng.purpose = DB__FOR_INSTANCE + 10;
        db_condition_low_res(&s.p.image_noising, level, &rng, small, 4, 4, 3, 16, 16, 4, 4, 8, 8,
                             part);
        e = largest_difference(d->batch.low, part, 192);
        if (e == 0 && d->batch.labels[0] == level)
            test_pass("conditioning in training", "a window of the whole small photo at level %g",
                      (double)level);
        else
            test_fail("conditioning in training", "differs by %g, level %g for %g", e,
                      (double)d->batch.labels[0], (double)level);
    }

    sampling.num_inference_steps = 1, sampling.guidance_scale = 1,
    sampling.sampler = DB_SAMPLER_DDIM, sampling.seed = 7;
    s.p.scheduler.clip_sample = 0;
    db_upscale(&s.p, &s.p, &prompt, 1, NULL, &sampling, 2000, small, 4, 4, 16, 16, drawn);
    expect(s.ctx, "a noise level beyond the schedule", DB_ERROR_ARGUMENT, "2000", "from -1 to 999");
    db_upscale(&s.p, &s.p, &prompt, 1, NULL, &sampling, level, small, 0, 4, 16, 16, drawn);
    expect(s.ctx, "a small picture without pixels", DB_ERROR_ARGUMENT, "4 x 0", "");
    db_upscale(&s.p, &s.p, &prompt, 1, NULL, &sampling, level, small, 4, 4, 16, 16, drawn);
    rng.step = 0, rng.purpose = DB__FOR_LOW_RES;
    db_condition_low_res(&s.p.image_noising, level, &rng, small, 4, 4, 3, 16, 16, 0, 0, 16, 16,
                         expected);
    rng.purpose = DB__FOR_SAMPLE;
    db_random_normal(&rng, 768, noise);
    if (db_trajectory_init(&s.p.scheduler, sampling.sampler, 1, 768, &tr) == DB_OK)
        step = tr.timestep[0];
    db_trajectory_free(&tr);
    memcpy(whole, expected, sizeof whole);
    forward(&s, 16, noise, whole, level, step, prompt, expected);
    for (k = 0; k < 768; k++) expected[k] = fminf(fmaxf(expected[k], -1), 1);
    e = largest_difference(drawn, expected, 768);
    if (db_status(s.ctx) == DB_OK && e <= 1e-5)
        test_pass("conditioning in sampling", "the whole small photo at level %g (%.1e)",
                  (double)level, e);
    else
        test_fail("conditioning in sampling", "the picture differs by %g; %s", e,
                  db_last_error(s.ctx));

    /* with noise in every step, each step's its own */
    for (k = 0; k < 2; k++) {
        size_t i;
        sampling.num_inference_steps = 3, sampling.eta = k ? 1 : 0;
        sampling.sampler = k ? DB_SAMPLER_DDIM : DB_SAMPLER_DDPM;
        db_upscale(&s.p, &s.p, &prompt, 1, NULL, &sampling, level, small, 4, 4, 16, 16, drawn);
        memcpy(expected, noise, sizeof expected);
        db_trajectory_init(&s.p.scheduler, sampling.sampler, 3, 768, &tr);
        tr.eta = sampling.eta, tr.use_clipped_model_output = sampling.use_clipped_model_output;
        for (i = 0; i < 3; i++) {
            float predicted[768], fresh[768];
            forward(&s, 16, expected, whole, level, tr.timestep[i], prompt, predicted);
            rng.purpose = DB__FOR_SAMPLER_NOISE, rng.step = (uint32_t)i;
            db_random_normal(&rng, 768, fresh);
            db_trajectory_step(&tr, i, 1, 256, 3, 3, predicted, fresh, expected);
        }
        db_trajectory_free(&tr);
        for (i = 0; i < 768; i++) expected[i] = fminf(fmaxf(expected[i], -1), 1);
        e = largest_difference(drawn, expected, 768);
        test_check(db_status(s.ctx) == DB_OK && e <= 1e-5,
                   k ? "DDIM with eta 1" : "DDPM's pictures", "three steps with noise of their own");
    }
    sampling.num_inference_steps = 1, sampling.sampler = DB_SAMPLER_DDIM, sampling.eta = 0;

    for (k = 0, e = 0; k < 1000; k += 37) /* diffusers' integer levels, and back from the variance */
    {
        double variance = 1 - s.p.image_noising.alphas_cumprod[k];
        e = test_worse(e, fabs(db_noise_variance(&s.p.image_noising, (double)k) - variance));
        e = test_worse(e, 1e-6 * fabs(db_noise_level(&s.p.image_noising, variance) - (double)k));
    }
    test_check(e < 1e-9 && db_noise_variance(&s.p.image_noising, -1) == 0, "noise levels",
               "1 - alphas_cumprod of every timestep");

    /* the same in squares of 8 that begin at 0, 4 and 8: a quarter (2) would do, the last ends with
       the picture, so they share 4; towards inner edges a square counts 2/3 and 1/3 */
    memset(expected, 0, sizeof expected), memset(sums, 0, sizeof sums);
    for (k = 0; k < 9 * 64; k++) {
        size_t y0 = k / 192 * 4, x0 = k / 64 % 3 * 4, y = k % 64 / 8, x = k % 8, at, ch;
        float wy = fminf(y0 ? (float)(y + 1) / 3 : 1, y0 < 8 ? (float)(8 - y) / 3 : 1),
              wx = fminf(x0 ? (float)(x + 1) / 3 : 1, x0 < 8 ? (float)(8 - x) / 3 : 1);
        float weight = fminf(wy, 1) * fminf(wx, 1);
        if (k % 64 == 0) {
            for (at = 0; at < 64; at++)
                for (ch = 0; ch < 3; ch++) {
                    size_t from = ((y0 + at / 8) * 16 + x0 + at % 8) * 3 + ch;
                    part[at * 3 + ch] = noise[from], low[at * 3 + ch] = whole[from];
                }
            forward(&s, 8, part, low, level, step, prompt, part);
        }
        at = (y0 + y) * 16 + x0 + x, sums[at] += weight;
        for (ch = 0; ch < 3; ch++) expected[at * 3 + ch] += weight * part[(y * 8 + x) * 3 + ch];
    }
    for (k = 0; k < 768; k++) expected[k] = fminf(fmaxf(expected[k] / sums[k / 3], -1), 1);
    sampling.tile = 8;
    db_upscale(&s.p, &s.p, &prompt, 1, NULL, &sampling, level, small, 4, 4, 16, 16, drawn);
    e = largest_difference(drawn, expected, 768);
    test_check(db_status(s.ctx) == DB_OK && e <= 1e-5, "sampling in squares", "blended");

    /* without noise, a window is the whole's part */
    db_condition_low_res(&s.p.image_noising, -1, &rng, small, 4, 4, 3, 16, 16, 0, 0, 16, 16, whole);
    db_condition_low_res(&s.p.image_noising, -1, &rng, small, 4, 4, 3, 16, 16, 4, 4, 8, 8, part);
    for (e = 0, k = 0; k < 8; k++)
        e += largest_difference(part + k * 24, whole + ((k + 4) * 16 + 4) * 3, 24);
    test_check(e == 0, "a window of the upscaled photo", "the whole's part");
    db_dreambooth_free(d);
    subject_free(&s);
}

static int cancel_at_two(void *user, const char *what, size_t done, size_t total)
{
    (void)user, (void)what, (void)total;
    return done == 2;
}

static void test_bad_input(void)
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    db_dreambooth_losses l;
    db_memory_plan plan;
    db_safetensors_writer *w;
    size_t k;
    float first;
    if (!subject_create(&s, "base", "v_prediction", 8, 1)) {
        test_fail("bad input", "no subject");
        return;
    }
    c = settings(&s, 1);
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 0, s.classes, 5, &d);
    expect(s.ctx, "no photos", DB_ERROR_MISSING, "no photos", "");
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d);
    expect(s.ctx, "prior preservation without class images", DB_ERROR_MISSING, "a dog", "");
    c.crop_size = 9;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    expect(s.ctx, "a crop larger than the photos", DB_ERROR_ARGUMENT, "9", "");
    c = settings(&s, 1), c.train_batch_size = 0;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    expect(s.ctx, "an empty batch", DB_ERROR_ARGUMENT, "batch", "");
    c = settings(&s, 1), s.photo[1].w = 0;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    expect(s.ctx, "an empty photo", DB_ERROR_ARGUMENT, "photo 1", "");
    s.photo[1].w = 31;

    s.ctx->config.progress = cancel_at_two;
    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d) == DB_OK) {
        db_dreambooth_step(d, &l);
        db_dreambooth_step(d, &l);
    }
    test_check(d && db_dreambooth_steps_done(d) == 2, "a cancelled step", "is done");
    expect(s.ctx, "cancelled by the progress callback", DB_ERROR_CANCELLED, "step 2", "");
    s.ctx->config.progress = NULL;

    first = s.p.unet->params.data[0];
    for (k = 0; k < 5 * 8 * 8 * 3; k++) s.classes[k] = NAN;
    db_dreambooth_free(d), d = NULL;
    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d) == DB_OK)
        db_dreambooth_step(d, &l);
    test_check(d && s.p.unet->params.data[0] == first && !db_dreambooth_steps_done(d),
               "a loss that is not a number", "changes no weight");
    expect(s.ctx, "a loss that is not a number stops", DB_ERROR_NUMERIC, "step 1", "");
    if (d) db_dreambooth_resume(d, GOLDEN "base.safetensors");
    expect(s.ctx, "a state of another network", DB_ERROR_SHAPE, "base.safetensors", "");
    w = db_safetensors_create(s.ctx, at("other.safetensors"));
    db_safetensors_add_metadata(w, "step", "7");
    k = 1, db_safetensors_declare(w, "unet", DB_F32, 1, &k), db_safetensors_write_f32(w, "unet", &first);
    db_safetensors_finish(w);
    if (d) db_dreambooth_resume(d, at("other.safetensors"));
    expect(s.ctx, "a state of another size", DB_ERROR_SHAPE, "other.safetensors", "unet");
    test_check(d && !db_dreambooth_steps_done(d), "a state that is refused", "leaves the step alone");
    db_dreambooth_free(d), d = NULL;
    c = settings(&s, 0), c.lora_rank = 4;
    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d) == DB_OK) {
        db_dreambooth_step(d, &l);
        db_lora_merge(&s.p.unet->params);
        db_dreambooth_step(d, &l);
    }
    expect(s.ctx, "a step of a LoRA that was merged", DB_ERROR_ARGUMENT, "merged", "");
    if (d) db_dreambooth_plan(d, &plan);
    expect(s.ctx, "its plan", DB_ERROR_ARGUMENT, "merged", "");
    if (d) db_dreambooth_save(d, at("merged.safetensors"));
    expect(s.ctx, "its state", DB_ERROR_ARGUMENT, "merged", "");
    db_unet_add_lora(s.p.unet, 8, 4, 1); /* another in its place is not it */
    if (d) db_dreambooth_step(d, &l);
    expect(s.ctx, "a step of a LoRA that was replaced", DB_ERROR_ARGUMENT, "merged", "");
    db_dreambooth_free(d), d = NULL; /* touches nothing of it */
    c.lora_rank = 0; /* the LoRA stands beside what is trained */
    if (db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d) == DB_OK) {
        db_dreambooth_step(d, &l);
        db_lora_merge(&s.p.unet->params);
        db_dreambooth_step(d, &l);
    }
    expect(s.ctx, "a step beside a LoRA that was merged", DB_ERROR_ARGUMENT, "merged", "");
    db_dreambooth_free(d);
    {
        enum { WIDER = 8 };
        db_sample_config draw = db_sample_config_default();
        size_t D = s.p.text_encoder->config.d_model + WIDER;
        float *text = (float *)calloc(2 * 4 * D, sizeof *text), drawn[8 * 8 * 3];
        draw.num_inference_steps = 1;
        db_sample(s.p.unet, &s.p.scheduler, &draw, text, 4, D, 1, 8, 8, 3, drawn);
        expect(s.ctx, "texts of another width", DB_ERROR_SHAPE, "weight, for what it is given,",
               "does not fit");
        free(text);
    }
    {
        float none[3];
        s.photo[0].h = 0, db_resize(s.ctx, &s.photo[0], 1, 1, none);
        expect(s.ctx, "scaling an empty picture", DB_ERROR_ARGUMENT, "24 x 0", "1 x 1");
    }
    {
        static const float x[] = {-1, 1, 0, 7, -7, .5f};
        uint8_t rgb[6];
        db_to_rgb(x, 6, rgb);
        test_check(rgb[0] == 0 && rgb[1] == 255 && rgb[2] == 128 && rgb[3] == 255 && !rgb[4] &&
                       rgb[5] == 191,
                   "numbers to bytes", "rounded, and cut off");
    }
    subject_free(&s);
}

static void test_bad_latents(void)
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    if (!subject_create(&s, "sd", "epsilon", 16, 1)) {
        test_fail("bad latents", "no subject");
        return;
    }
    c = settings(&s, 0), c.resolution = 17, c.crop_size = 16;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d);
    expect(s.ctx, "a resolution that is no whole latent", DB_ERROR_ARGUMENT, "17",
           "multiples of 2");
    c.resolution = 16, s.ctx->config.progress = cancel_at_two;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d);
    expect(s.ctx, "cancelled while encoding", DB_ERROR_CANCELLED, "encoding", "2 of 3");
    s.ctx->config.progress = NULL, s.p.released[1] = 1;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d);
    expect(s.ctx, "training without the autoencoder", DB_ERROR_MISSING, "autoencoder", "released");
    s.p.released[1] = 0;
    s.p.unet->config.in_channels = 9;
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, NULL, 0, &d);
    expect(s.ctx, "an inpainting network", DB_ERROR_UNSUPPORTED, "9 channels", "");
    s.p.unet->config.in_channels = 4;
    subject_free(&s);
}

static void test_class_seeds(void)
{
    test_check(db_class_image_seed("a dog", 0) != db_class_image_seed("a cat", 0) &&
                   db_class_image_seed("a dog", 7) == db_class_image_seed("a dog", 0) + 7,
               "class images' seeds",
               "of (class, index): consecutive in one class, apart between classes");
}

#if defined(TEST_CUDA) && defined(CUDA_ON_HOST)
extern long cuda_host_life, cuda_host_allocations;
extern unsigned long cuda_host_graphs;

/* One more step of a training resumed from `file`, whose GPU is lost after `life` launches or has
   memory for `allocations` blocks; -1: for all. What comes of it, and the error's text. */
static db_result failing_step(long life, long allocations, const char *file, char why[400])
{
    subject s;
    db_dreambooth *d = NULL;
    db_dreambooth_config c;
    db_result r;
    if (!subject_create(&s, "base", "v_prediction", 8, 1)) return DB_ERROR_ARGUMENT;
    c = settings(&s, 1);
    db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
    if (d) db_dreambooth_resume(d, file);
    cuda_host_life = life, cuda_host_allocations = allocations;
    if (d) db_dreambooth_step(d, NULL);
    r = db_status(s.ctx);
    why[0] = 0;
    if (r != DB_OK) strncat(why, db_last_error(s.ctx), 399);
    if (r != DB_OK && d) { /* nothing of the failed step can be written over the checkpoint */
        db_dreambooth_save(d, file);
        if (db_status(s.ctx) == DB_OK) r = DB_OK;
    }
    db_dreambooth_free(d);
    subject_free(&s);
    cuda_host_life = cuda_host_allocations = -1;
    return r;
}

/* The GPU fails in the middle of a step: an error, the checkpoint is whole, training goes on from
   it to the bits of an undisturbed one. */
static void test_failures(void)
{
    char file[400], why[400];
    uint64_t whole, after;
    unsigned long graphs;
    snprintf(file, sizeof file, "%s", at("state.safetensors"));
    whole = weights_after(4, 0, 1, ALL, file), graphs = cuda_host_graphs;
    test_check(weights_after(4, 2, 1, ALL, file) == whole && cuda_host_graphs > graphs,
               "training as graphs, saved and resumed", "the same bits");
    weights_after(2, 1, 1, ALL, file); /* leaves a checkpoint of one step */
    test_check(failing_step(300, -1, file, why) == DB_ERROR_DEVICE &&
                   strstr(why, "--resume_from_checkpoint"),
               "a GPU lost in a step", "DB_ERROR_DEVICE and what to do");
    test_check(failing_step(-1, 0, file, why) == DB_ERROR_MEMORY && strstr(why, "MB") &&
                   strstr(why, "batch"),
               "no GPU memory for the step", "DB_ERROR_MEMORY, the figures and what to do");
    {
        subject s;
        db_dreambooth *d = NULL;
        db_dreambooth_config c;
        subject_create(&s, "base", "v_prediction", 8, 1);
        c = settings(&s, 1);
        db_dreambooth_create(&s.p, &s.p, &c, s.photo, 3, s.classes, 5, &d);
        if (d) db_dreambooth_resume(d, file);
        while (d && db_status(s.ctx) == DB_OK && db_dreambooth_steps_done(d) < 4)
            db_dreambooth_step(d, NULL);
        after = d ? hash_of(d->opt.params) : 0;
        db_dreambooth_free(d);
        subject_free(&s);
    }
    test_check(after == whole, "training from the checkpoint after both failures",
               "the bits of an undisturbed one");
    remove(file);
}
#endif

static int end(void)
{
    char command[400];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    if (system(command)) printf("   %s is left\n", scratch);
    return test_summary();
}

int main(void)
{
    int on_host = 0;
    if (!make_scratch("test_dreambooth")) return 1;
#if defined(TEST_CUDA) && defined(CUDA_ON_HOST)
    on_host = 1; /* a thread of the GPU at a time: a part of the tests will do */
    test_failures();
#endif
    compare_with_pytorch("text", "epsilon", 8, 1, 1, 1.0f, 1, 2, 2, 0);
    compare_with_pytorch("lora", "v_prediction", 8, 1, 0, 0.7f, 2, 3, 1, 2);
    if (on_host) return end();
    compare_with_pytorch("base", "v_prediction", 8, 1, 0, 0.7f, 2, 3, 1, 0);
    compare_with_pytorch("alone", "sample", 12, 0, 0, 0, 2, 3, 1, 0);
    compare_with_pytorch("upscaler", "v_prediction", 16, 0, 0, 0, 2, 3, 1, 0);
    test_latent();
    test_epsilon_weights();
    test_sequence();
    test_prompts();
    test_released();
    test_determinism();
    test_settings();
    test_conditioning();
    test_bad_input();
    test_bad_latents();
    test_class_seeds();
    return end();
}
