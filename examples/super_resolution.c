/* super_resolution - fine-tunes the second stage (section 4.4 of the paper's first version): pairs
   of a photo and the same photo four times smaller, with almost no noise on the small one. Four
   photos are learned from; the fifth, never seen, is made smaller and restored, before and after,
   and measured.

       cc -O2 -fopenmp -I. -Itools examples/super_resolution.c -o super_resolution -lm
       ./super_resolution 150

   The argument is the number of steps, 24 without one: enough to see the loss fall. For the
   subject's own texture train longer and faster, as `make demo` does: 600 steps, 2e-3, a cosine.

   Prints
       24 steps on crops of 4 photos at noise variance 1e-05
       the loss on the unseen photo has fallen
       before.png, after.png                                                                     */
#define DREAMBOOTH_IMPLEMENTATION
#include "dreambooth.h"
#include "photos.h"

enum { SIZE = 256, SMALL = 64, PIXELS = SIZE * SIZE * 3 };

/* Makes the small photo large again and writes it; 0, or 1 when that failed. */
static int restore(db_pipeline *sr, db_pipeline *base, double level, const float *small,
                   const char *path)
{
    static float restored[PIXELS];
    const char *prompt = "a zxk dog";
    db_sample_config c = db_sample_config_default();
    c.sampler = DB_SAMPLER_DDIM, c.num_inference_steps = 8, c.guidance_scale = 1, c.seed = 1;
    return db_upscale(sr, base, &prompt, 1, NULL, &c, level, small, SMALL, SMALL, SIZE, SIZE,
                      restored) != DB_OK || save_picture(restored, SIZE, path);
}

/* The denoising loss on photos that are not learned from: training with learning rate 0. The same
   crops, times and noise each time, since these depend on the seed and the step alone. */
static float measure(db_pipeline *sr, db_pipeline *base, const db_dreambooth_config *settings,
                     const db_image *photo)
{
    enum { STEPS = 6 };
    db_dreambooth *d = NULL;
    db_dreambooth_config c = *settings;
    db_dreambooth_losses loss;
    float sum = 0;
    int k;
    c.learning_rate = 0, c.seed = 99;
    if (db_dreambooth_create(sr, base, &c, photo, 1, NULL, 0, &d) == DB_OK)
        for (k = 0; k < STEPS && db_dreambooth_step(d, &loss) == DB_OK; k++)
            sum += loss.total / STEPS;
    db_dreambooth_free(d);
    return sum;
}

int main(int argc, char **argv)
{
    static float original[PIXELS], small[SMALL * SMALL * 3];
    db_ctx *ctx = NULL;
    db_pipeline *base = NULL, *sr = NULL; /* the base lends its text encoder */
    db_dreambooth *d = NULL;
    db_dreambooth_config c = db_dreambooth_config_default();
    img_image image[MAX_PHOTOS];
    db_image photo[MAX_PHOTOS];
    size_t n = load_photos("examples/world/subjects/dog1", image, photo), k;
    float before, after;
    int bad = 1;

    if (db_create(&ctx, NULL) != DB_OK) return 1;
    db_pipeline_load(ctx, "examples/world/base", &base);
    if (db_pipeline_load(ctx, "examples/world/sr256", &sr) != DB_OK || n < 5) goto done;

    db_resize(ctx, &photo[4], SIZE, SIZE, original); /* bytes to [-1,1] */
    db_downsample(original, SIZE, SIZE, 3, SIZE / SMALL, small);

    c.instance_prompt = "a zxk dog";
    c.resolution = SIZE, c.crop_size = SMALL; /* photos at 256 pixels, crops of 64 */
    c.max_train_steps = argc > 1 ? (size_t)atoi(argv[1]) : 24;
    c.learning_rate = 1e-4f;
    c.noise_level =
        db_noise_level(&sr->image_noising, 1e-5); /* the paper's, below IF's first level */
    if (restore(sr, base, c.noise_level, small, "before.png")) goto done;
    before = measure(sr, base, &c, &photo[4]);
    if (db_dreambooth_create(sr, base, &c, photo, 4, NULL, 0, &d) != DB_OK) goto done;
    while (db_dreambooth_steps_done(d) < c.max_train_steps)
        if (db_dreambooth_step(d, NULL) != DB_OK) goto done;
    printf("%d steps on crops of 4 photos at noise variance %.0e\n",
           (int)db_dreambooth_steps_done(d), db_noise_variance(&sr->image_noising, c.noise_level));
    after = measure(sr, base, &c, &photo[4]);
    if (restore(sr, base, c.noise_level, small, "after.png")) goto done;
    printf("the loss on the unseen photo has %s\nbefore.png, after.png\n",
           after < before ? "fallen" : "risen");
    bad = 0;
done:
    if (bad) fprintf(stderr, "%s\n", n < 5 ? "photos are missing" : db_last_error(ctx));
    db_dreambooth_free(d);
    db_pipeline_free(sr);
    db_pipeline_free(base);
    db_destroy(ctx);
    for (k = 0; k < n; k++) img_free(&image[k]);
    return bad;
}
