/* prior - prior preservation off and on (paper, section 3.3): the same training twice, and how far
   each has carried the pictures of "a dog" away from what they were.

       cc -O2 -fopenmp -I. -Itools examples/prior.c -o prior -lm && ./prior 400

   The argument is the number of steps, 40 without one.

   Prints
       lambda 0 and lambda 1: 40 steps each
       "a dog" drifts less with prior preservation
       before, without and with it: prior.png                                                    */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "photos.h"

enum { N = 4, SIZE = 64, PIXELS = SIZE * SIZE * 3 };

static const char *const dogs[N] = {"a dog", "a dog", "a dog", "a dog"};

/* Draws "a dog" N times, always from the same noise. */
static void draw(db_pipeline *model, db_sampler sampler, uint64_t seed, float *out)
{
    db_sample_config c = db_sample_config_default();
    c.sampler = sampler, c.num_inference_steps = 10, c.guidance_scale = 1, c.seed = seed;
    db_generate(model, dogs, N, NULL, &c, SIZE, SIZE, out);
}

/* Fine-tunes the shipped model with weight lambda on the class term, and draws "a dog" with it. */
static db_result train(db_ctx *ctx, float lambda, size_t steps, const db_image *photo, size_t n,
                       const float *class_images, float *out)
{
    db_pipeline *model = NULL;
    db_dreambooth *d = NULL;
    db_dreambooth_config c = db_dreambooth_config_default();
    c.instance_prompt = "a zxk dog", c.class_prompt = "a dog";
    c.prior_loss_weight = lambda; /* 0 is the ablation: the class term has no weight */
    c.train_batch_size = c.class_batch_size = 2, c.max_train_steps = steps, c.learning_rate = 2e-4f;
    if (db_pipeline_load(ctx, "examples/world/base", &model) == DB_OK &&
        db_dreambooth_create(model, model, &c, photo, n, class_images, N, &d) == DB_OK) {
        while (db_dreambooth_steps_done(d) < steps && db_dreambooth_step(d, NULL) == DB_OK) {}
        draw(model, DB_SAMPLER_DDIM, 1, out);
    }
    db_dreambooth_free(d);
    db_pipeline_free(model);
    return db_status(ctx);
}

static double distance(const float *a, const float *b)
{
    double sum = 0;
    size_t k;
    for (k = 0; k < N * PIXELS; k++) sum += (double)((a[k] - b[k]) * (a[k] - b[k]));
    return sum;
}

int main(int argc, char **argv)
{
    static float class_images[N * PIXELS], before[N * PIXELS], without[N * PIXELS],
        with[N * PIXELS];
    size_t steps = argc > 1 ? (size_t)atoi(argv[1]) : 40, k;
    db_ctx *ctx = NULL;
    db_pipeline *model = NULL;
    img_image image[MAX_PHOTOS], sheet;
    db_image photo[MAX_PHOTOS];
    size_t n = load_photos("examples/world/subjects/dog1", image, photo);
    int bad;

    if (db_create(&ctx, NULL) != DB_OK) return 1;
    if (db_pipeline_load(ctx, "examples/world/base", &model) == DB_OK) {
        draw(model, DB_SAMPLER_DDPM, db_class_image_seed("a dog", 0), class_images);
        draw(model, DB_SAMPLER_DDIM, 1, before);
    }
    db_pipeline_free(model);
    train(ctx, 0, steps, photo, n, class_images, without);
    train(ctx, 1, steps, photo, n, class_images, with);
    bad = db_status(ctx) != DB_OK;
    if (bad) {
        fprintf(stderr, "%s\n", db_last_error(ctx));
    } else {
        static unsigned char rgb[3 * N][PIXELS];
        const unsigned char *row[3 * N];
        const char *label[3 * N];
        img_grid_config grid = img_grid_config_default();
        char err[IMG_ERROR_SIZE];
        db_to_rgb(before, N * PIXELS, rgb[0]);
        db_to_rgb(without, N * PIXELS, rgb[N]);
        db_to_rgb(with, N * PIXELS, rgb[2 * N]);
        for (k = 0; k < 3 * N; k++)
            row[k] = rgb[k], label[k] = k < N ? "before" : k < 2 * N ? "lambda 0" : "lambda 1";
        grid.columns = N, grid.scale = 2, grid.title = "\"a dog\"";
        printf("lambda 0 and lambda 1: %d steps each\n", (int)steps);
        printf("\"a dog\" drifts %s with prior preservation\n",
               distance(with, before) < distance(without, before) ? "less" : "more");
        bad = img_grid(row, label, 3 * N, SIZE, SIZE, &grid, &sheet, err, sizeof err) != IMG_OK ||
              img_save_png("prior.png", sheet.rgb, sheet.w, sheet.h, err, sizeof err) != IMG_OK;
        if (bad) fprintf(stderr, "%s\n", err);
        else img_free(&sheet), printf("before, without and with it: prior.png\n");
    }
    db_destroy(ctx);
    for (k = 0; k < n; k++) img_free(&image[k]);
    return bad;
}
